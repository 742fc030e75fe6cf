"""Measuring in turns: who runs when and where, what is made of the times, what becomes of those that fail."""

import math
import os
import signal
import statistics
import sys
import time

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image

import espy
import foreign
from espy import bundle
from espy.errors import EngineError, EspyError, ModelError
from espy.header import Card, Header, Metric, Preprocess, attach_onnx, from_json
from espy.labels import plain
from espy.machine import available_threads
from espy.nn.build import build
from espy.nn.count import macs, parameters, traffic
from espy.process import Process
from espy.run.engines.torch import Torch
from espy.ship import bench, limits, operators, plot
from espy.ship.bench import Case, Row, Timed, Times, measure, plan
from espy.ship.energy import Counter
from espy.ship.foreign import Work
from espy.ship.limits import Limits
from espy.ship.turns import ALONE, TARGET, WHOLE, peak_bytes
from espy.spec import make
from samples import attempt, scene

SIZE = (32, 64)
ROUNDS = 3


@pytest.fixture(scope="module")
def patched():
    """Limits that are known at once, turns of one run, and a log of every order: (process, order, answer, began, ended)."""
    log, ask = [], Process.ask

    def noting(self, do, **order):
        began = time.monotonic()
        answer = ask(self, do, **order)
        log.append((self.pid, {"do": do, **order}, answer, began, time.monotonic()))
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "measure_limits", lambda threads: Limits(threads, 100.0, 10.0))
        patch.setattr(bench, "TURN_S", 0.0)
        patch.setattr(bench, "WARM_UPS", 2)
        patch.setattr(Process, "ask", noting)
        yield log


@pytest.fixture(scope="module")
def measured(patched, tmp_path_factory):
    """One run of a bundled model and of a foreign network on two engines, its log, the turns that were told, and the cases."""
    told, start = [], len(patched)
    other = foreign.layers(tmp_path_factory.mktemp("foreign") / "other.onnx")
    cases = plan(["street-small"], sizes=[SIZE], threads=[1])
    cases += plan([], engines=["onnxruntime", "openvino"], sizes=[SIZE], threads=[1], against=[other])
    found = measure(cases, rounds=ROUNDS, profile=True, advance=told.append)
    assert not found.failed, found.failed
    return found, patched[start:], told, cases


def runs(log, what):
    """(process, seconds by the wall, processor seconds, began, ended) of every turn, warm-ups left out."""
    all_of_them = [entry for entry in log if entry[1]["do"] == "run" and entry[1]["what"] == what]
    processes = len({entry[0] for entry in all_of_them})
    return [(pid, a["wall"], a["cpu"], began, ended) for pid, _, a, began, ended in all_of_them[processes:]]


# Turns


def test_rows_take_turns_each_in_a_process_of_its_own(measured):
    found, log, told, cases = measured
    pids = [row.pid for row in found.rows]
    assert len({*pids, os.getpid()}) == 4
    assert [pid for pid, *_ in runs(log, ALONE)] == pids * ROUNDS
    assert [pid for pid, *_ in runs(log, WHOLE)] == pids[:1] * ROUNDS  # a foreign network has no result
    assert [row.case for row in found.rows] == cases
    assert told == [str(c) for c in cases] * (ROUNDS + 1) + [str(cases[0])] * (ROUNDS + 1)
    assert len(told) == bench.turns(cases, ROUNDS)


def test_all_are_open_and_warm_before_one_counts_and_none_lives_on(measured):
    _, log, _, cases = measured
    orders = [order["do"] + (f" {order['times']}" if order["do"] == "run" else "") for _, order, *_ in log]
    n = len(cases)
    assert orders[: 2 * n] == ["open"] * n + ["run 2"] * n
    assert orders[2 * n : 6 * n] == ["run 1"] * 3 * n + ["peak"] * n  # memory before files are read and results made
    for pid in {pid for pid, *_ in log}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_turn_lasts_long_enough_for_warm_caches(patched, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "TURN_S", 0.02)
    start = len(patched)
    found = measure(plan([], against=[foreign.layers(tmp_path / "a.onnx")], sizes=[SIZE], threads=[1]), rounds=2)
    times = [order["times"] for _, order, *_ in patched[start:] if order["do"] == "run"]
    warm = next(answer["wall"][-1] for _, order, answer, *_ in patched[start:] if order["do"] == "run")
    assert times[1:] == [math.ceil(0.02 / warm)] * 2
    assert times[1] > 1
    assert found.rows[0].alone.runs == 2 * times[1]


# Statistics


def test_a_rows_times_are_those_of_its_own_runs(measured):
    found, log, *_ = measured
    for row in found.rows:
        for what, timed in ((ALONE, row.alone), (WHOLE, row.whole)):
            mine = [turn for turn in runs(log, what) if turn[0] == row.pid]
            if timed is None:
                assert row.case.foreign
                assert not mine
                continue
            wall, cpu = (sorted(1e3 * one for turn in mine for one in turn[k]) for k in (1, 2))
            assert timed.runs == len(wall) == ROUNDS
            assert (timed.wall_ms.minimum, timed.cpu_ms.minimum) == pytest.approx((wall[0], cpu[0]))
            assert timed.wall_ms.median == pytest.approx(statistics.median(wall))
            assert timed.cpu_ms.median == pytest.approx(statistics.median(cpu))
            assert timed.images_s == pytest.approx(1000 / statistics.median(wall))
            for _, seconds, _, began, ended in mine:
                assert 0 < sum(seconds) < ended - began


@pytest.mark.parametrize("count", [1, 2, 20, 37])
def test_times_are_median_minimum_95th_percentile_and_how_far_they_lie_apart(count):
    seconds = np.random.default_rng(count).random(count) / 50 + 0.001
    ms = sorted(1e3 * s for s in seconds)
    place = 0.95 * (count - 1)  # between the two values beside it, as their distances say
    low, high = ms[math.floor(place)], ms[math.ceil(place)]
    p95 = low + (place - math.floor(place)) * (high - low)
    times = Times.of(list(seconds))
    assert times.p95 == pytest.approx(p95)
    assert (times.median, times.minimum) == pytest.approx((statistics.median(ms), ms[0]))
    assert times.spread == pytest.approx((p95 - ms[0]) / statistics.median(ms))


WORK = Work(parameters=1, macs=10**9, traffic=10**8)


def timed(wall, cpu=None):
    return Timed(len(wall), Times.of(wall), Times.of(cpu or wall))


def row(*, wall=(0.05,), cpu=None, threads=1, precision="float32", work=WORK, header=None, size=SIZE, name="street"):
    case = Case(name, bundle.path("street", ".onnx"), "onnxruntime", size, threads, precision, header=header)
    return Row(case, "1", 7, timed(list(wall), cpu), None, work, Limits(threads, 100.0, 20.0), 30, 10, {})


def test_times_the_limit_count_from_the_longer_of_arithmetic_and_memory():
    """2 GFLOP at 100 GFLOP/s are 20 ms; 100 MB at 20 GB/s are 5 ms, 1 GB 50 ms."""
    one = row(wall=[0.080], cpu=[0.100], threads=2)
    assert one.limit_ms == pytest.approx({"arithmetic": 20, "memory": 5})
    assert one.times_limit == pytest.approx({"wall": 4, "cpu": 2.5})  # two threads together spend 40 ms at least
    assert row(wall=[0.080], work=Work(1, 10**9, 10**9)).times_limit == pytest.approx({"wall": 1.6, "cpu": 1.6})


def test_where_the_limit_is_not_known_nothing_is_stated():
    assert row(work=Work(1)).times_limit is None
    assert row(precision="bfloat16").times_limit is None


def test_the_limits_are_measured_with_the_threads_that_were_asked_for_and_numpys_own_left_alone(monkeypatch):
    monkeypatch.setattr(limits, "python", lambda target, threads: [
        "/bin/sh", "-c", f'echo "{{\\"gflops\\": $OPENBLAS_NUM_THREADS$OMP_NUM_THREADS, \\"gb_s\\": {threads}}}"'
    ])  # fmt: skip
    assert limits.measure_limits(3) == Limits(3, 11, 3)


@pytest.mark.skipif(available_threads() < 2, reason="one core")
def test_two_threads_multiply_at_most_twice_as_much_as_one():
    """However the library behind NumPy spreads a product: where a thread waits its time is not the others' speed."""
    one, two = (max(limits.measure_limits(threads).gflops for _ in range(2)) for threads in (1, 2))
    assert two < 2.3 * one


def test_the_machines_limits_are_those_of_a_product_and_of_a_copy():
    """Of the size of the best of ten runs of each in this process."""
    found = limits.measure_limits(1)
    a = np.ones((512, 512), np.float32)
    source, target = np.ones(1 << 26, np.uint8), np.zeros(1 << 26, np.uint8)
    for run, work, rate in (
        (lambda: a @ a, 2 * 512**3, found.gflops), (lambda: np.copyto(target, source), 2 << 26, found.gb_s),
    ):  # fmt: skip
        seconds = []
        for _ in range(10):
            busy = time.process_time()
            run()
            seconds.append(time.process_time() - busy)
        assert 0.1 < rate / (work / min(seconds) / 1e9) < 10


def test_limits_that_cannot_be_measured_are_told_in_one_line(monkeypatch):
    monkeypatch.setattr(limits, "python", lambda *call: ["/bin/sh", "-c", "echo no room >&2; exit 1"])
    with pytest.raises(EngineError, match="limits cannot be measured: no room"):
        limits.measure_limits(1)


# Facts of a row


def test_work_is_that_of_the_plain_network_whatever_the_engine(measured):
    found, *_ = measured
    network = build("espnetv2", width=0.5, classes=20)
    assert found.rows[0].work == Work(parameters(network), macs(network, SIZE), traffic(network, SIZE))
    assert found.rows[1].work == found.rows[2].work
    assert found.rows[1].work.macs == (4 * 16 * 32) * 27 + (4 * 16 * 32) * 8 + 10


def test_memory_is_that_of_a_fresh_process(measured):
    """Each held more than bare Python, and none what this process with its tests holds."""
    found, *_ = measured
    assert all(5e6 < one.bare_bytes < 40e6 < one.peak_bytes < peak_bytes() for one in found.rows)


def test_operators_share_the_time_and_are_those_of_the_network(measured, tiny_espnet):
    found, *_ = measured
    listed = [one.operators for one in found.rows]
    engine = Torch(tiny_espnet, threads=1, precision="float32")
    image = scene(64, 96)[None]
    listed.append(operators.find("torch", tiny_espnet, 1, "float32", {}, lambda: engine.run(image)))
    wanted = [
        {"Conv", "ArgMax"},
        {"ConvTranspose", "Conv"},
        {"ConvolutionBackpropData", "Convolution"},
        {"aten::argmax"},
    ]
    for kinds, entries in zip(wanted, listed, strict=True):
        assert kinds <= {entry["operator"] for entry in entries}
        assert sum(entry["share"] for entry in entries) == pytest.approx(1)
        ms = [entry["ms"] for entry in entries]
        assert ms == sorted(ms, reverse=True)
    calls = {entry["operator"]: entry["calls"] for entry in listed[1]}
    assert calls["ConvTranspose"] == 1


def test_joules_are_those_of_the_own_turns_a_run(patched, monkeypatch, tmp_path):
    """A counter that rises by a joule an order, and by a hundred in the warm-up."""

    def read():
        return float(sum(100 if order["times"] == 2 else 1 for _, order, *_ in patched if order["do"] == "run"))

    monkeypatch.setattr(bench, "counters", lambda: [Counter("processor", read)])
    cases = plan(
        [], against=[foreign.layers(tmp_path / name) for name in ("a.onnx", "b.onnx")], sizes=[SIZE], threads=[1]
    )
    assert [one.joules for one in measure(cases, rounds=2).rows] == [{"processor": 1.0}] * 2


# What fails


def test_one_that_dies_or_raises_is_told_and_the_others_go_on(patched, monkeypatch, tmp_path):
    good, bad = foreign.layers(tmp_path / "good.onnx"), foreign.failing(tmp_path / "bad.onnx")
    cases = plan([], against=[bad, good, good], sizes=[SIZE], threads=[1])
    ask, turns = Process.ask, []

    def killing(self, do, **order):
        if do == "run":
            turns.append(self.pid)
            if turns.count(self.pid) == 2 and self.pid == turns[1]:
                os.kill(self.pid, signal.SIGKILL)
        return ask(self, do, **order)

    monkeypatch.setattr(Process, "ask", killing)
    found = measure(cases, rounds=3)
    assert [case for case, _ in found.failed] == cases[:2]
    raised, died = (reason for _, reason in found.failed)
    assert raised.startswith("ONNX Runtime failed: ")
    assert died == "its process was killed by SIGKILL: perhaps the memory is full"
    assert found.rows[0].alone.runs == 3


def test_a_process_tells_what_it_died_of(tmp_path):
    process = Process(TARGET)
    try:
        with pytest.raises(EngineError, match="nothing is open"):
            process.ask("run", what=ALONE, times=1)
        process._child.stdin.write("no order\n")
        with pytest.raises(EngineError, match=r"its process ended with exit code 1 \(json.*JSONDecodeError"):
            process.ask("peak")
    finally:
        process.close()


def test_a_precision_that_an_engine_has_not_fails_that_row_alone(patched):
    found = measure(plan(["street-small"], sizes=[SIZE], threads=[1], precision="bfloat16"), rounds=1)
    ((case, reason),) = found.failed
    assert reason == "engine onnxruntime computes in float32 or int8, not in 'bfloat16'"
    assert str(case) == "street-small, onnxruntime, 32x64, 1 thread, bfloat16"
    assert not found.rows


# What spoils the figures


def spoiled(*rows, load=0.1, cores=2):
    return bench.warnings({"load": load, "available": cores}, rows)


def test_a_load_above_half_of_the_cores_is_warned_of():
    assert spoiled(load=1.0) == spoiled(load=None) == []
    assert spoiled(load=1.1)[0].startswith("the load average was 1.1 on 2 cores before the start")
    assert len(spoiled(load=0.6, cores=1)) == 1


def test_times_far_apart_and_waiting_for_a_core_are_warned_of_by_name():
    assert spoiled(row(wall=[0.05, 0.06])) == []
    (wide,) = spoiled(row(wall=[0.05] * 10 + [0.2] * 9, threads=2))
    assert wide == "street, onnxruntime, 32x64, 2 threads: its times are 300% apart: something disturbed them"
    (waited,) = spoiled(row(wall=[0.10], cpu=[0.06]))
    assert waited == "street, onnxruntime, 32x64, 1 thread: waited 40% of its time for a core that something else had"
    assert spoiled(row(wall=[0.10], cpu=[0.06], threads=2)) == []  # two threads may have nothing to share


# What is to be measured


def test_every_combination_is_a_case_by_model_engine_size_and_threads(monkeypatch):
    monkeypatch.setattr(bench, "available_threads", lambda: 2)
    cases = plan(["street-small", "objects"], engines=["onnxruntime", "torch"], sizes=[None, SIZE], threads=[1, None])
    assert [str(case) for case in cases[:5]] == [
        "street-small, onnxruntime, 512x1024, 1 thread", "street-small, onnxruntime, 512x1024, 2 threads",
        "street-small, onnxruntime, 32x64, 1 thread", "street-small, onnxruntime, 32x64, 2 threads",
        "street-small, torch, 512x1024, 1 thread",
    ]  # fmt: skip
    assert str(cases[8]) == "objects, onnxruntime, 384x384, 1 thread"
    assert len(cases) == 16
    assert [case.path.suffix for case in cases[:8]] == [".onnx"] * 4 + [".safetensors"] * 4


def test_a_foreign_network_runs_at_the_sizes_asked_or_at_its_own(tmp_path):
    free, fixed = foreign.layers(tmp_path / "free.onnx"), foreign.layers(tmp_path / "fixed.onnx", 40, 56)
    cases = plan(["street-small"], sizes=[SIZE, (64, 64)], threads=[1], against=[free, fixed])
    assert [(case.size, case.note) for case in cases[2:]] == [
        (SIZE, None), ((64, 64), None), ((40, 56), "made for height 40, width 56 alone, and measured there"),
    ]  # fmt: skip
    assert plan(["street-small"], threads=[1], against=[free])[1].size == (512, 1024)  # beside a model at the model's
    assert plan([], threads=[1], against=[fixed])[0].note is None
    engines = ["torch", "auto", "openvino", "onnxruntime"]
    assert [case.engine for case in plan([], engines=engines, threads=[1], against=[fixed])] == [
        "onnxruntime",
        "openvino",
    ]


@pytest.mark.parametrize(
    ("kind", "call", "message"),
    [
        (EngineError, {"models": ["street"], "engines": ["onnx"]}, "unknown engine 'onnx'"),
        (ModelError, {"models": ["strete"]}, "strete: no such model file; bundled: street"),
        (EngineError, {"models": ["street"], "sizes": [(100, 100)]}, "height 100, width 100 does not fit: it takes heights"),
        (EngineError, {"models": ["street"], "sizes": [(0, 64)]}, "size is (height, width) in whole pixels"),
        (EngineError, {"models": ["street"], "threads": [0]}, "0 threads: this process may use"),
        (EngineError, {"models": []}, "nothing to measure"),
        (ModelError, {"models": ["street"], "against": ["none.onnx"]}, "none.onnx: no such file"),
        (EngineError, {"models": [], "against": ["free.onnx"]}, "free.onnx: takes pictures of any size: give one with --size"),
        (EngineError, {"models": [], "against": ["free.onnx"], "engines": ["torch"]}, "onnxruntime or openvino, not on torch"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_one_line_before_anything_runs(
    tmp_path, monkeypatch, kind, call, message
):
    monkeypatch.chdir(tmp_path)
    foreign.layers("free.onnx")
    _, said = attempt(kind, plan, **call)
    assert message in (said or "nothing was refused")


def test_a_size_that_a_file_was_not_exported_for_is_refused(tmp_path):
    graph = onnx.load(bundle.path("street-small", ".onnx"))
    kept = from_json(next(entry.value for entry in graph.metadata_props if entry.key == "espy"), "street-small")
    del graph.metadata_props[:]
    file, preprocess = tmp_path / "fixed.onnx", msgspec.structs.replace(kept.preprocess, size=(64, 96))
    fixed = msgspec.structs.replace(kept, sizes=[(64, 96)], preprocess=preprocess)
    file.write_bytes(attach_onnx(graph.SerializeToString(), fixed))
    assert plan([file])[0].size == (64, 96)
    with pytest.raises(EngineError, match="height 32, width 64 does not fit: it takes only height 64, width 96"):
        plan([file], sizes=[SIZE])


@pytest.mark.parametrize(("cores", "words"), [(1, "1 core, so that"), (2, "2 cores, so that")])
def test_more_threads_than_cores_are_refused(monkeypatch, cores, words):
    monkeypatch.setattr(bench, "available_threads", lambda: cores)
    assert bench.check_threads(None) == bench.check_threads(cores) == cores
    with pytest.raises(EngineError, match=words):
        bench.check_threads(cores + 1)


def test_no_round_is_none(patched):
    with pytest.raises(EspyError, match="rounds must be at least 1"):
        espy.bench("street-small", rounds=0)


# The plot


def header(size=(64, 96), value=70.0):
    spec = make("espnetv2", width=0.5, classes=20)
    metrics = (Metric("mIoU", value, "Cityscapes val"),) if value else ()
    return Header.of(spec, plain(20), Preprocess(size), Card(metrics=metrics))


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_accuracy_is_drawn_against_latency(tmp_path, ending):
    rows = [
        row(wall=[0.03, 0.05], header=header(), size=(64, 96)),
        row(wall=[0.02], header=header(value=60.5), size=(64, 96), name="$^$"),
    ]
    environment = {"processor": "Fast One", "available": 1, "cores": 2, "flags": ["hypervisor"], "load": 0.25, "system": "Linux",
                   "machine": "x86_64", "python": "3.11", "numpy": "2", "espy": "0", "time": "today"}  # fmt: skip
    found = bench.Bench(environment, (), 1, (*rows, row()), (), ())
    path = tmp_path / f"plot.{ending}"
    plot.plot(found, path)
    if ending == "png":
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    else:
        text = path.read_text("utf-8")
        assert text.count(">street, onnxruntime, 64x96, 1 thread: mIoU 70 % (Cityscapes val)</text>") == 1
        assert text.count(">$^$, onnxruntime, 64x96, 1 thread: mIoU 60.5 %") == 1
        assert "Fast One, virtual machine, 1 of 2 cores, load 0.2" in text
        assert "32x64" not in text


def test_an_accuracy_holds_at_the_cards_size_alone():
    case = row(header=header(), size=(64, 96)).case
    assert plot.accuracy(case).value == 70
    assert plot.accuracy(row(header=header(), size=SIZE).case) is None
    assert plot.accuracy(row(header=header(value=None), size=(64, 96)).case) is None
    assert plot.accuracy(row().case) is None
    plot.check_plot([], [case])


def test_a_plot_that_cannot_be_made_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    case = row(header=header(), size=(64, 96)).case
    with pytest.raises(EspyError, match=r"a\.pdf: a plot is NAME\.png or NAME\.svg"):
        plot.check_plot([tmp_path / "a.pdf"], [case])
    with pytest.raises(EspyError, match="states an accuracy for the size"):
        plot.check_plot([tmp_path / "a.png"], [row().case])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EspyError, match=r"--plot needs matplotlib.*: pip install 'espy-vision\[plot\]'"):
        plot.check_plot([tmp_path / "a.png"], [case])


def test_the_native_engines_units_are_told_with_what_they_do(tiny_v2):
    pytest.importorskip("espy_engine", reason="espy-engine is not installed: build native/")
    image = scene(64, 96)[None]
    found = operators.find("native", tiny_v2, 1, "float32", {"image": image}, lambda: None)
    assert sum(one["share"] for one in found) == pytest.approx(1)
    assert [one["ms"] for one in found] == sorted((one["ms"] for one in found), reverse=True)
    network = build("espnetv2", width=0.5, classes=5)
    assert sum(one["macs"] for one in found) == macs(network, (64, 96))
    calls = {one["operator"]: one["calls"] for one in found}
    assert calls["EESP 128x4x6"] == 7
    assert calls["PYRAMID + SEGMENT 64x96"] == 1
