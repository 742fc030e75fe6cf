"""`espy bench` as a user meets it: tables, JSON, plots, bad calls, and nothing that lives on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_readme import faults, schema

import foreign
from espy.ship import bench
from espy.ship.limits import Limits
from samples import one_line

SMALL = ("--size", "32x64", "--threads", "1", "--rounds", "2")


@pytest.fixture
def quick(monkeypatch):
    """Limits that are known at once, turns of one run."""
    monkeypatch.setattr(bench, "measure_limits", lambda threads: Limits(threads, 100.0, 20.0))
    monkeypatch.setattr(bench, "TURN_S", 0.0)


def test_json_is_one_object_of_the_schema_and_tells_what_failed(espy, quick):
    other, bad = foreign.layers("other.onnx", 40, 56), foreign.failing("bad.onnx")
    outcome = espy("bench", "street-small", *SMALL, "--against", other, "--against", bad, "--profile", "--json")
    assert outcome.code == 1
    rule, printed = schema("bench.json"), json.loads(outcome.out)
    assert faults(printed, rule, rule) == []
    assert [(row["model"], row["foreign"], row["size"]) for row in printed["results"]] == [
        ("street-small", False, [32, 64]), ("other.onnx", True, [40, 56]),
    ]  # fmt: skip
    (error,) = printed["errors"]
    assert (error["model"], error["error"].split(":")[0]) == ("bad.onnx", "ONNX Runtime failed")
    assert f"espy: bad.onnx, onnxruntime, 32x64, 1 thread: {error['error']}" in outcome.err
    first = printed["results"][0]
    assert first["limit_ms"]["arithmetic"] == pytest.approx(2 * first["macs"] / 100e9 * 1e3)
    assert first["limit_ms"]["memory"] == pytest.approx(first["traffic_bytes"] / 20e9 * 1e3)
    assert first["times_limit"]["wall"] == pytest.approx(
        first["alone"]["wall_ms"]["median"] / max(first["limit_ms"].values())
    )
    assert first["operators"]


def test_the_tables_say_what_was_measured_and_where(espy, quick, monkeypatch):
    monkeypatch.setattr(bench, "counters", lambda: [])
    outcome = espy("bench", *SMALL, "--against", foreign.layers("other.onnx", 40, 56))
    assert outcome.code == 0, outcome
    times, sizes = (
        line for line in outcome.out.splitlines() if line.startswith("other.onnx, onnxruntime, 40x56, 1 thread ")
    )
    assert times.endswith(" –")  # a foreign network has no result
    macs = (20 * 28 * 4 * 27 + 20 * 28 * 4 * 8 + 10) / 1e6
    assert f" 154  {macs:13.1f} " in sizes
    for words in (
        "made for height 40, width 56 alone, and measured there", "joules an image: not readable here",
        "limits, threads 1: 100.0 GFLOP/s, 20.0 GB/s", "onnxruntime", "flags: ",
    ):  # fmt: skip
        assert words in outcome.out
    assert "rows: 1, turns of each: 2" in outcome.err


def test_a_plot_is_written_once_whatever_cannot_be_shown_in_it(espy, quick, monkeypatch):
    """At the model's own size, which its accuracy is of."""
    monkeypatch.setattr(bench, "WARM_UPS", 1)
    call = ("bench", "objects", "--threads", "1", "--rounds", "1", "--against", foreign.layers("other.onnx", 40, 56))
    outcome = espy(*call, "--plot", "plot.svg", "--plot", "plot.png")
    assert outcome.code == 0, outcome
    assert "objects, onnxruntime, 384x384, 1 thread: mIoU 67.01 % (Pascal VOC 2012 val, 384x384)" in Path(
        "plot.svg"
    ).read_text("utf-8")
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
    assert "not in the plot, no accuracy is stated for it: other.onnx" in outcome.err
    assert "exists already" in one_line(espy(*call, "--plot", "plot.svg"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["strete"], "strete: no such model file"),
        (["street", "--engine", "onnx"], "unknown engine 'onnx'"),
        (["street", "--size", "100x100"], "height 100, width 100 does not fit"),
        (["street", "--size", "native"], "--size is HEIGHTxWIDTH"),
        (["street", "--size", "0x64"], "--size is HEIGHTxWIDTH"),
        (["street", "--threads", "2"], "2 threads: this process may use 1 core"),
        (["street", "--threads", "0"], "'--threads'"),
        (["street", "--rounds", "0"], "'--rounds'"),
        (["street", "--against", "none.onnx"], "none.onnx: no such file"),
        (["street", "--against", "two.onnx"], "two.onnx: has 2 inputs (picture, mask)"),
        (["street", "--against", "strange.onnx"], "strange.onnx: takes tensor(int64): a picture is uint8"),
        (["street", "--engine", "torch", "--against", "other.onnx"], "runs on onnxruntime or openvino"),
        (["street", "--plot", "a.pdf"], "a plot is NAME.png or NAME.svg"),
        (["street", "--plot", "a.png", "--size", "32x64"], "no model's header states an accuracy"),
        ([], "name a model"),
    ],
    ids=str,
)  # fmt: skip
def test_a_call_that_cannot_work_is_one_line_and_runs_nothing(espy, monkeypatch, arguments, says):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr(bench, "measure", lambda *arguments, **keywords: pytest.fail("something ran"))
    foreign.convolution("two.onnx", mask=("float32", (1, 1, "h", "w")))
    foreign.convolution("strange.onnx", "int64")
    foreign.layers("other.onnx")
    assert says in one_line(espy("bench", *arguments))


def test_where_every_row_fails_the_exit_code_is_2_and_each_is_told(espy, quick):
    outcome = espy("bench", *SMALL, "--against", foreign.failing("bad.onnx"))
    assert (outcome.code, outcome.out) == (2, "")
    assert "\nespy: bad.onnx, onnxruntime, 32x64, 1 thread: ONNX Runtime failed" in outcome.err


def test_it_needs_no_torch_and_counts_nothing_then(tmp_path):
    """In a Python that has neither torch nor onnx; the foreign network is there already."""
    foreign.layers(tmp_path / "other.onnx", 40, 56)
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'onnx', 'openvino', 'matplotlib'))\n"
        "from espy.cli import run\nfrom espy.ship import bench\nfrom espy.ship.limits import Limits\n"
        "bench.measure_limits = lambda threads: Limits(threads, 100.0, 20.0)\n"
        f"sys.exit(run(['bench', 'street-small', '--against', 'other.onnx', *{SMALL!r}, '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rule, printed = schema("bench.json"), json.loads(done.stdout)
    assert faults(printed, rule, rule) == []
    assert [(row["parameters"], row["macs"], row["times_limit"]) for row in printed["results"]] == [
        (None, None, None)
    ] * 2


# Nothing lives on

LONGEST = 60  # seconds


def children(pid):
    """The processes of a bench that hold networks."""
    found = []
    for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"espy.ship.turns" in Path(f"/proc/{number}/cmdline").read_bytes():
            found.append(int(number))
    return found


def lives(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_for(fact):
    end = time.monotonic() + LONGEST
    while not (found := fact()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
    return found


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc, which shows a process's children")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)], ids=["Ctrl-C", "kill -9"]
)
def test_no_process_outlives_a_bench_that_is_stopped(tmp_path, number, code):
    """Ctrl-C reaches all that the terminal started; a process that is killed can tell nobody."""
    start = (
        "from espy.cli import main; from espy.ship import bench; from espy.ship.limits import Limits\n"
        "bench.measure_limits = lambda threads: Limits(threads, 100.0, 20.0)\n"
        "main(['bench', 'street-small', 'street-small', '--size', '32x64', '--threads', '1', '--rounds', '1000000'])"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", start], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    pids = wait_for(lambda: len(found := children(running.pid)) == 2 and found)
    os.killpg(running.pid, number)
    out, err = running.communicate(timeout=LONGEST)
    assert (running.returncode, out) == (code, "")
    if number == signal.SIGINT:
        assert err.splitlines()[-1] == "espy: interrupted; finished files are whole"
        assert "Traceback" not in err
    wait_for(lambda: not any(lives(pid) for pid in pids))
