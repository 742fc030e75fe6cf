"""`auto` is the fastest installed engine by one measurement that is kept; what was kept is believed only where it is whole."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

import toys
from espy import bundle, cli, load
from espy.errors import EngineError
from espy.run import choice
from espy.run.choice import Trial, candidates
from espy.run.engines import ENGINES, installed
from espy.run.predictor import header_of, resolve
from espy.ship import bench
from samples import scene

SMALL = bundle.path("street-small", ".onnx")
MS = {"steady": 12.0, "swift": 3.0, "slow": 30.0}  # the fastest is not the first


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, the toys among the engines, short turns."""
    folder = tmp_path / "cache"
    monkeypatch.delenv(choice.ENGINE)
    monkeypatch.setenv(choice.CACHE, str(folder))
    monkeypatch.setattr(choice, "TARGET", "toys:main")
    monkeypatch.setattr(choice, "TURN_S", 0.0)
    monkeypatch.setitem(sys.modules, toys.HERE, toys)
    for name, row in toys.ROWS.items():
        monkeypatch.setitem(ENGINES, name, row)
    return folder


@pytest.fixture
def toy(tmp_path):
    """Writes a `.toy` file: milliseconds of the engines, or how they fail."""

    def write(name="model", **engines):
        does = {engine: how if isinstance(how, dict) else {"ms": how} for engine, how in (MS | engines).items()}
        path = tmp_path / f"{name}.toy"
        path.write_text(json.dumps(does))
        return path

    return write


@pytest.fixture
def measured(monkeypatch):
    """What was to be measured, one entry a time; every engine is as fast as `MS` says, and no process starts."""
    log = []

    def measure(files, size, threads, precision):
        log.append((list(files), size, threads, precision))
        return {name: Trial(str(file), MS.get(name, 50.0), MS.get(name, 50.0), 5) for name, file in files.items()}

    monkeypatch.setattr(choice, "measure", measure)
    return log


def chosen(path, **keywords):
    with load(path, header=toys.header(), **keywords) as model:
        return model.engine.name


def entries(cache):
    return sorted((cache / "engines").glob("*")) if cache.exists() else []


# Measuring


def test_the_fastest_engine_is_chosen_by_one_measurement_that_says_what_it_found(toy, cache):
    path, said = toy(), []
    assert chosen(path, threads=1, remark=said.append) == "swift"
    assert said == ["measuring steady, swift and slow for height 32, width 48: takes some seconds, once"]
    opened = [line.split() for line in path.with_suffix(".log").read_text().splitlines()]
    assert sorted(name for name, *_ in opened[:-1]) == ["slow", "steady", "swift"]
    assert len({pid for _, pid, *_ in opened}) == 4  # each in a process of its own, and here the one that was chosen
    assert opened[-1][:2] == ["swift", str(os.getpid())]
    for name, _, named, *asked in opened[:-1]:
        assert named == name  # so that whatever `auto` means in there, it measures nothing
        assert asked == ["1", "float32"]
    (entry,) = entries(cache)
    kept = json.loads(entry.read_text())
    assert kept["engine"] == "swift"
    assert kept["asked"]["size"] == [32, 48]
    assert (kept["asked"]["threads"], kept["asked"]["precision"]) == (1, "float32")
    assert kept["asked"]["sha256"].keys() == {"model.toy"}
    assert kept["asked"]["versions"].keys() == {"espy", *MS}
    assert abs(time.time() - time.mktime(time.strptime(kept["time"], "%Y-%m-%dT%H:%M:%SZ")) + time.timezone) < 600
    for name, trial in kept["trials"].items():
        assert trial["file"] == str(path)
        assert MS[name] <= trial["ms"] <= trial["median_ms"]
        assert trial["runs"] >= 2
    assert chosen(path, threads=1, remark=said.append) == "swift"
    assert len(said) == 1
    assert len(path.with_suffix(".log").read_text().splitlines()) == len(opened) + 1  # opened here, nowhere else


def test_an_engine_that_fails_dies_or_hangs_is_left_out_with_the_reason(toy, cache, monkeypatch):
    monkeypatch.setattr(choice, "RUN_S", 1.5)
    path = toy(steady={"ms": 0, "fails": "dying"}, swift={"ms": 0, "fails": "hanging"})
    assert chosen(path) == "slow"
    trials = json.loads(entries(cache)[0].read_text())["trials"]
    assert trials["steady"]["left_out"].startswith("its process was killed by SIGKILL")
    assert trials["swift"]["left_out"] == "gave no answer within 1.5 s"
    assert trials["slow"]["runs"] >= 2
    path = toy(steady={"ms": 0, "fails": "raising"}, slow={"ms": 0, "fails": "opening"})
    assert chosen(path) == "swift"
    trials = [json.loads(entry.read_text())["trials"] for entry in entries(cache)]
    (trials,) = [trial for trial in trials if trial["swift"].get("runs")]
    assert trials["steady"]["left_out"] == "RuntimeError: out of order"
    assert trials["slow"]["left_out"] == "cannot open it"


def test_where_none_can_the_first_says_why_and_nothing_is_kept(toy, cache):
    path = toy(**{name: {"ms": 0, "fails": "opening"} for name in MS})
    with pytest.raises(EngineError, match="cannot open it"):
        chosen(path)
    assert entries(cache) == []


def test_real_engines_are_measured_and_the_fastest_runs(cache, monkeypatch):
    monkeypatch.setattr(choice, "TARGET", "espy.run.choice:main")
    with load(SMALL, threads=1, size=(64, 96)) as model:
        assert model(scene(40, 50)).mask.shape == (40, 50)
    kept = json.loads(entries(cache)[0].read_text())
    times = {name: trial["ms"] for name, trial in kept["trials"].items()}
    assert times.keys() == {"onnxruntime", "openvino"}
    assert model.engine.name == kept["engine"] == min(times, key=times.get)
    assert all(0 < ms < 1000 for ms in times.values())


def test_two_processes_at_once_choose_alike_and_leave_one_whole_answer(toy, cache):
    path = toy()
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\nimport toys; from espy import load; from espy.run import choice\n"
        "toys.install(); choice.TARGET, choice.TURN_S = 'toys:main', 0.0\n"
        f"print(load({str(path)!r}, header=toys.header()).engine.name)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].splitlines()[-1] for process in running] == ["swift"] * 2
    (entry,) = entries(cache)
    assert json.loads(entry.read_text())["engine"] == "swift"


# What is asked


def test_a_bundled_model_is_measured_in_the_engines_of_both_its_files(measured):
    with load("street-small") as model:
        assert model.engine.name == "onnxruntime"  # all 50 ms: the first
    engines = [name for name in ("onnxruntime", "openvino", "torch", "native") if installed(name)]
    assert len(engines) >= 3
    assert measured == [(engines, (512, 1024), None, "float32")]


def test_the_file_is_that_of_the_engine(measured, monkeypatch):
    monkeypatch.setitem(MS, "torch", 1.0)
    with load("street-small", size=(64, 96)) as model:
        assert (model.engine.name, model.path.name) == ("torch", "street-small.safetensors")
        assert model.header.export is None  # of the weights, not of the deployed file


@pytest.mark.parametrize(
    ("keywords", "size"),
    [({}, (32, 48)), ({"size": (64, 96)}, (64, 96)), ({"size": "native"}, (32, 48)), ({"tile": (64, 64)}, (64, 64)),
     ({"size": (128, 128), "tile": (64, 64)}, (64, 64))],
    ids=str,
)  # fmt: skip
def test_the_size_is_the_one_asked_for_or_the_tiles_or_the_headers(toy, measured, keywords, size):
    chosen(toy(), **keywords)
    assert [entry[1] for entry in measured] == [size]


OTHERS = {
    "size": lambda patch, toy: {"size": (64, 96)},
    "threads": lambda patch, toy: {"threads": 1},
    "precision": lambda patch, toy: {"precision": "bfloat16"},
    "weights": lambda patch, toy: toy(slow=31) and {},
    "processor": lambda patch, toy: patch.setattr(choice, "processor", lambda: "another"),
    "flags": lambda patch, toy: patch.setattr(choice, "flags", lambda: ["avx512_vnni"]),
    "cores": lambda patch, toy: patch.setattr(choice, "available_threads", lambda: 64),
    "version": lambda patch, toy: patch.setattr(choice, "installed_version", lambda name: "99"),
    "espy": lambda patch, toy: patch.setattr(choice, "VERSION", "99"),
    "one less": lambda patch, toy: patch.delitem(ENGINES, "slow"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_question_is_measured_again_and_the_first_is_remembered(toy, measured, monkeypatch, what):
    path = toy()
    assert [chosen(path), chosen(path)] == ["swift"] * 2
    assert len(measured) == 1
    with monkeypatch.context() as patch:
        keywords = OTHERS[what](patch, toy) or {}
        assert [chosen(path, **keywords), chosen(path, **keywords)] == ["swift"] * 2
        assert len(measured) == 2
    assert chosen(toy()) == "swift"
    assert len(measured) == 2


def test_with_one_engine_nothing_is_measured_nor_kept(toy, measured, cache, monkeypatch):
    for name in ("swift", "slow"):
        monkeypatch.setitem(ENGINES, name, (*toys.ROWS[name][:3], "no_such_package"))
    assert chosen(toy()) == "steady"
    assert (measured, entries(cache)) == ([], [])


def test_where_none_is_installed_the_first_is_named_with_what_installs_it(toy, measured, monkeypatch):
    for name in MS:
        monkeypatch.setitem(ENGINES, name, ("not_there:None", *toys.ROWS[name][1:3], "no_such_package"))
    with pytest.raises(
        ModuleNotFoundError, match="not_there"
    ):  # its own module, which for a real engine imports the package
        chosen(toy())
    assert list(candidates("m", [toy()])) == ["steady"]
    assert measured == []


def test_a_frozen_program_measures_nothing(toy, measured, monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert chosen(toy()) == "steady"
    assert measured == []


def test_where_no_process_can_be_started_the_first_runs(toy, monkeypatch):
    said = []
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert chosen(toy(), remark=said.append) == "steady"
    assert said[1:] == ["cannot measure, so steady runs it: no process can be started: No such file or directory"]


# Who decides instead


@pytest.mark.parametrize("engine", MS)
def test_an_engine_that_is_named_runs_and_nothing_is_measured(toy, measured, cache, monkeypatch, engine):
    assert chosen(toy(), engine=engine) == engine
    monkeypatch.setenv("ESPY_ENGINE", engine)
    assert chosen(toy()) == engine
    assert chosen(toy(), engine="slow") == "slow"  # the call counts more than the environment
    assert (measured, entries(cache)) == ([], [])


def test_the_environment_names_an_engine_for_the_files_that_it_opens(toy, measured, monkeypatch):
    monkeypatch.setenv("ESPY_ENGINE", "openvino")
    assert chosen(toy()) == "swift"
    assert [*resolve("street-small")] == ["openvino"]
    for same in ("", "auto"):
        monkeypatch.setenv("ESPY_ENGINE", same)
        assert chosen(toy()) == "swift"
    assert len(measured) == 1
    monkeypatch.setenv("ESPY_ENGINE", "swfit")
    with pytest.raises(EngineError, match="ESPY_ENGINE names an unknown engine, 'swfit': did you mean 'swift'"):
        chosen(toy())


@pytest.mark.parametrize(
    ("model", "files", "engine", "message"),
    [
        ("m", ["m"], "auto", "m: no engine opens a file without ending: give .safetensors or .onnx"),
        ("street", ["street.onnx", "street.safetensors"], "ncnn",
         "street: engine ncnn opens .param, not .onnx and .safetensors: export it first: espy export street --to ncnn"),
        ("a/m.xml", ["a/m.xml"], "onnxruntime", "a/m.xml: engine onnxruntime opens .onnx, not .xml: give it .onnx"),
        ("m.toy", ["m.toy"], "swfit", "unknown engine 'swfit': did you mean 'swift'?"),
    ],
)  # fmt: skip
def test_what_no_engine_opens_is_refused_with_the_cure(model, files, engine, message):
    with pytest.raises(EngineError) as caught:
        candidates(model, [Path(file) for file in files], engine)
    assert str(caught.value).startswith(message)


# The cache


def test_half_an_answer_is_none_wherever_it_ends(toy, measured, cache, monkeypatch):
    monkeypatch.setattr(choice, "flags", lambda: ["avx2"])
    path = toy()
    chosen(path)
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    asked, files = json.loads(whole)["asked"], dict.fromkeys(MS, path)
    assert choice._read(entry, asked, files).engine == "swift"
    for length in range(len(whole)):
        entry.write_bytes(whole[:length])
        assert choice._read(entry, asked, files) is None, length
    assert chosen(path) == "swift"
    assert len(measured) == 2
    assert json.loads(entry.read_bytes())["trials"] == json.loads(whole)["trials"]  # made anew


def changed(**others):
    return lambda kept: json.dumps(kept | others).encode()


BROKEN = {
    "nothing": lambda kept: b"",
    "binary": lambda kept: bytes(range(256)) * 9,
    "zeros": lambda kept: bytes(4096),
    "no Unicode": lambda kept: (
        json.dumps(kept).replace("swift", "sw\\u00eeft").encode("latin-1").replace(b"st", b"\xff")
    ),
    "a list": lambda kept: b"[1, 2]",
    "null": lambda kept: b"null",
    "an empty object": lambda kept: b"{}",
    "nested too deeply": lambda kept: b'{"asked": {"a": ' + b"[" * 100_000,
    "twice": lambda kept: json.dumps(kept).encode() * 2,
    "trials of another type": changed(trials=[]),
    "times in words": lambda kept: json.dumps(kept).replace('"ms": ', '"ms": "1", "x": ').encode(),
    "no time for an engine": lambda kept: json.dumps(kept | {"trials": {"swift": kept["trials"]["swift"]}}).encode(),
    "no trials": changed(trials={}),
    "an engine that is none": changed(engine="flying"),
    "an engine of another type": changed(engine=7),
    "not the fastest": changed(engine="slow"),
    "another question": lambda kept: json.dumps(kept | {"asked": kept["asked"] | {"threads": 7}}).encode(),
    "no question": changed(asked=None),
    "none ran": changed(engine="", trials={name: {"file": "m.toy", "left_out": "it broke"} for name in MS}),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_answer_is_measured_and_written_anew(toy, measured, cache, how):
    path, said = toy(), []
    chosen(path)
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    broken = BROKEN[how](json.loads(whole))
    entry.write_bytes(broken)
    assert chosen(path, remark=said.append) == "swift"
    assert len(measured) == 2
    assert len(said) == 1  # that it measures, no more
    assert json.loads(entry.read_bytes())["trials"] == json.loads(whole)["trials"]
    assert chosen(path) == "swift"
    assert len(measured) == 2


@pytest.mark.parametrize("what", ["a file in the folder's place", "a folder in the file's place", "no folder known"])
def test_what_cannot_be_kept_is_measured_every_time_and_said(toy, measured, cache, monkeypatch, what):
    path, said = toy(), []
    if what == "a file in the folder's place":
        cache.write_bytes(b"")
    elif what == "a folder in the file's place":
        chosen(path)
        (entry,) = entries(cache)
        entry.unlink()
        entry.mkdir()
    else:
        monkeypatch.delenv("ESPY_CACHE")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    before = len(measured)
    assert [chosen(path, remark=said.append), chosen(path, remark=said.append)] == ["swift"] * 2
    assert len(measured) - before == 2
    assert len(said) == 4
    assert said[1].startswith("swift is the fastest; this is measured again next time: ")
    assert "\n" not in "".join(said)


def test_readers_and_writers_at_once_see_whole_answers_alone(toy, measured, cache):
    path = toy()
    chosen(path)
    (entry,) = entries(cache)
    kept = msgspec.json.decode(entry.read_bytes(), type=choice.Kept)
    files = dict.fromkeys(MS, path)

    def write(_):
        choice._keep(entry, kept)

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, k) for k in range(60)]
        seen = 0
        while not all(future.done() for future in writing):
            assert choice._read(entry, kept.asked, files) == kept
            seen += 1
        for future in writing:
            future.result()
    assert seen > 5
    assert entries(cache) == [entry]


def test_the_cache_keeps_so_many_answers_and_drops_the_oldest_of_its_own(toy, measured, cache, monkeypatch):
    monkeypatch.setattr(choice, "KEPT", 3)
    path, seen = toy(), []
    (cache / "engines").mkdir(parents=True)
    (cache / "engines" / "notes.json").write_text("somebody else's")
    (cache / "engines" / ".espy-0f.part").write_text("half")
    os.utime(cache / "engines" / ".espy-0f.part", (1, 1))
    for threads in range(1, 6):
        before = set(entries(cache))
        chosen(path, threads=threads)
        (new,) = set(entries(cache)) - before
        os.utime(new, (1000 + threads,) * 2)
        seen.append(new)
    assert set(entries(cache)) == {*seen[2:], cache / "engines" / "notes.json"}


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {}, "home/.cache/espy"),
        ("linux", {"XDG_CACHE_HOME": "{}/xdg"}, "xdg/espy"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "home/.cache/espy"),  # which the standard says to pass over
        ("freebsd14", {}, "home/.cache/espy"),
        ("darwin", {"XDG_CACHE_HOME": "{}/xdg"}, "home/Library/Caches/espy"),
        ("win32", {"LOCALAPPDATA": "{}/local"}, "local/espy"),
        ("win32", {"ESPY_CACHE": "{}/mine"}, "mine"),
    ],
)
def test_the_cache_is_where_the_system_has_such_files(tmp_path, monkeypatch, platform, variables, folder):
    for name in ("ESPY_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert choice.cache_folder() == tmp_path / folder


# The command line


def test_predict_and_eval_say_once_that_they_measure_and_name_the_engine(measured, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, pixels in (("images", scene(40, 50)), ("masks", np.zeros((40, 50), np.uint8))):
        Path(f"set/{folder}").mkdir(parents=True)
        Image.fromarray(pixels).save(f"set/{folder}/a.png")
    Path("set/classes.txt").write_text("".join(f"{label.name}\n" for label in header_of(SMALL).labels))

    def said(verb, *arguments):
        call = [verb, "--threads", "1", "--size", "64x96", "--json", *arguments]
        assert cli.run(call) == 0
        out, err = capsys.readouterr()
        return json.loads(out), err

    predict = ("predict", "set/images/a.png", "--model", str(SMALL), "--force")
    _, err = said(*predict)
    words = "measuring onnxruntime and openvino for height 64, width 96: takes some seconds, once"
    assert err.splitlines()[0] == words
    assert "street-small on onnxruntime" in err
    assert "measuring" not in said(*predict)[1]
    assert "measuring" not in said(*predict, "--engine", "onnxruntime", "--threads", "2")[1]
    printed, err = said("eval", str(SMALL), "folder:set", "--split", "train")
    assert printed["protocol"]["engine"] == "onnxruntime"
    assert "measuring" not in err
    assert len(measured) == 1


def test_bench_measures_the_engine_that_auto_is_at_each_size(measured):
    cases = bench.plan([SMALL, "street-small"], sizes=[(32, 64), (64, 96)], threads=[1])
    assert [(case.engine, case.size) for case in cases] == [("onnxruntime", (32, 64)), ("onnxruntime", (64, 96))] * 2
    assert [entry[1:3] for entry in measured] == [((32, 64), 1), ((64, 96), 1)] * 2
