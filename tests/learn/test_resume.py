"""A run that is killed at any moment, or stopped, and resumed ends as one that was left alone: bit for bit."""

import json
import os
import signal
import time
from random import Random

import pytest
from filelock import FileLock
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import runs
import trees
from forks import Forks, alive, at

STEPS, PER_EPOCH = 4, 2
START = 3  # files written before the first step: recipe.toml, metrics.jsonl, environment.json
SEED = 7  # of the moments drawn
ALL = {  # an average, an auxiliary head, a batch in parts; saved at the epochs' ends
    "train": {"batch": 4, "accumulate": 2, "ema": 0.9, "optimiser": "adamw", "rate": 1e-2},
    "loss": {"auxiliary": 0.4, "dice": 0.5, "ohem": 0.7},
    "validate": {"pictures": 1},
}
KINDS = {
    "adamw": ALL,
    "dropout": {"network": {"network": "espnetv2_first", "width": 0.5}, **ALL},
    "sgd": {  # saved after every step
        "train": {"batch": 4, "optimiser": "sgd", "rate": 0.1, "ema": 0.0, "save_minutes": 1e-9},
        "loss": {"class_weights": "frequency"},
        "validate": {"pictures": 0},
    },
    "classes": {
        "network": {"network": "espnetv2", "task": "classify", "width": 0.5},
        "data": {"set": "imagefolder:{folder}/coloured", "size": [32, 32], "multiple": 32},
        "train": {"batch": 4, "ema": 0.9, "rate": 1e-2, "epochs": 1},
        "loss": {"mixup": 0.3, "cutmix": 0.7, "smoothing": 0.1},
        "validate": {"pictures": 1},
    },
    "boxes": {
        "network": {"network": "espnetv2", "task": "detect", "width": 0.5},
        "data": {"set": "yolo:{folder}/things", "size": [64, 64], "multiple": 32},
        "train": {"batch": 3, "ema": 0.9, "rate": 1e-2},
        "augment": {"overlap": [0.1, 0.5], "sizes": [64, 96]},
        "validate": {"pictures": 1},
    },
}


class Bench:
    """Recipes, and the runs of them that were left alone."""

    def __init__(self, folder, forks):
        self.folder, self.forks, self.runs = folder, forks, {}
        trees.folder(folder / "photos", pairs=10, height=32, width=48)
        trees.coloured_folders(folder / "coloured")
        trees.boxed_shapes(folder / "things")
        self.recipes = {
            kind: runs.recipe(folder / f"{kind}.toml", folder / "photos", **self.placed(sections))
            for kind, sections in KINDS.items()
        }

    def placed(self, sections):
        data = sections.get("data", {})
        return sections | ({"data": data | {"set": data["set"].format(folder=self.folder)}} if data else {})

    def train(self, kind, out, *choices, resume=True, **keywords):
        options = ["--resume"] if resume else []
        return self.forks.run("train", self.recipes[kind], *choices, "--out", out, *options, **keywords)

    def whole(self, kind):
        """The folder of the run that was left alone, and the seconds it took."""
        if kind not in self.runs:
            outcome = self.train(kind, self.folder / kind, resume=False)
            assert outcome.code == 0, outcome
            self.runs[kind] = self.folder / kind, outcome.seconds
        return self.runs[kind]

    def resumed(self, kind, out, *choices, **keywords):
        """Let the run in `out` go on to its end, which must be that of the one left alone."""
        outcome = self.train(kind, out, *choices, **keywords)
        assert outcome.code == 0, outcome
        alone, found = left(self.whole(kind)[0]), left(out)
        assert [name for name in alone if alone[name] != found[name]] == []
        assert not list(out.rglob("*.part"))
        return outcome


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    forks = Forks()
    yield Bench(tmp_path_factory.mktemp("bench"), forks)
    forks.close()


def checkpoint(folder):
    """(tensors as bytes, state) of last.ckpt, without the code under test."""
    with safe_open(folder / "last.ckpt", framework="numpy") as file:
        state = json.loads(file.metadata()["espy_run"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return {name: (t.dtype.str, t.shape, t.tobytes()) for name, t in tensors.items()}, state


def lines(folder):
    """The lines of metrics.jsonl without the speed."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_s"} for line in found]


def left(folder):
    """What a run leaves that must not depend on what befell it."""
    tensors, state = checkpoint(folder)
    del state["recipe"]["train"]["workers"]  # may change
    files = [folder / "best.safetensors", folder / "last.safetensors", *sorted((folder / "pictures").glob("*"))]
    return {**{path.name: path.read_bytes() for path in files}, **tensors, "state": state, "metrics": lines(folder)}


def step_of(folder):
    """The step of last.ckpt, 0 where there is none."""
    return checkpoint(folder)[1]["step"] if (folder / "last.ckpt").is_file() else 0


def one_line(outcome, code):
    """The last thing that a command line said, nothing being a traceback."""
    assert outcome.code == code, outcome
    assert "Traceback" not in outcome.err
    assert "fault of espy" not in outcome.err
    return outcome.err.splitlines()[-1]


# Killed


@pytest.mark.parametrize(
    ("moment", "least"),
    [
        ({"do": "cut"}, 12),  # 3 at the start, 4 checkpoints, best, last, 2 lines, and one again after a checkpoint
        ({"place": "pathlib.Path.replace"}, 10),  # not the lines, which are added to a file
        ({"place": "pathlib.Path.replace", "after": True}, 9),
    ],
    ids=["half written", "before it has its name", "as soon as it has its name"],
)
def test_killed_at_each_of_its_writes_in_turn(bench, tmp_path, moment, least):
    """One run, killed again and again: at its first write, its second, ... counted from the last checkpoint."""
    out, kills, count, step = tmp_path / "run", 0, 1, 0
    while True:
        outcome = bench.train("sgd", out, events=[at(**{"place": "os.fsync", "count": count, **moment})])
        if outcome.code == 0:
            break
        assert outcome.code == -signal.SIGKILL, outcome
        kills += 1
        count, step = (START + 1, step_of(out)) if step_of(out) > step else (count + 1, step)
    assert kills >= least
    bench.resumed("sgd", out)


@pytest.mark.parametrize(
    "event",
    [
        at("pathlib.Path.mkdir"),
        at("pathlib.Path.mkdir", after=True),
        at("espy.learn.folder.FileLock.acquire", after=True),
        at("espy.learn.folder.RunFolder.rewind", after=True),
        at("espy.learn.events.Events.__init__", after=True),
        at("espy.data.loader.Samples.keep"),
        at("espy.learn.loop.Loop.step", 3),
        at("espy.learn.average.Average.update", 3),
        at("espy.learn.loop.evaluate"),
        at("espy.run.engines.torch.Torch.run", after=True),
        at("espy.learn.loop.Loop._write_weights", after=True),
        at("espy.learn.folder.write_picture", 2, after=True),
        at("espy.learn.folder.RunFolder.add", 2),
        at("espy.learn.folder.RunFolder.add", 2, after=True),
        at("espy.learn.folder.RunFolder.close"),
    ],
    ids=lambda event: (
        f"{'after' if event['after'] else 'before'} {event['place'].partition('espy.')[2]} {event['count']}"
    ),
)
def test_killed_at_a_chosen_moment(bench, tmp_path, event):
    killed = bench.train("adamw", tmp_path / "run", events=[event], resume=False)
    assert killed.code == -signal.SIGKILL, killed
    bench.resumed("adamw", tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_killed_at_any_moment_and_again(bench, tmp_path, times, workers):
    seconds = bench.whole("dropout")[1]
    moments = [Random(f"{SEED} {times} {workers} {k}").uniform(0, 0.8 * seconds) for k in range(times)]
    print("killed after", moments, "s")
    for moment in moments:
        outcome = bench.train("dropout", tmp_path / "run", f"workers={workers}", killed_after=moment)
        assert outcome.code in (-signal.SIGKILL, 0), outcome
    bench.resumed("dropout", tmp_path / "run", f"workers={2 - workers}")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["classes", "boxes"])
def test_the_other_tasks_are_killed_at_any_moment_too(bench, tmp_path, kind, workers):
    """At two moments drawn, and while the last checkpoint is half written."""
    seconds = bench.whole(kind)[1]
    for k in range(2):
        moment = Random(f"{SEED} {kind} {workers} {k}").uniform(0.3 * seconds, 0.9 * seconds)
        outcome = bench.train(kind, tmp_path / "run", f"workers={workers}", killed_after=moment)
        assert outcome.code in (-signal.SIGKILL, 0), outcome
    bench.train(kind, tmp_path / "run", f"workers={workers}", events=[at("os.fsync", 4, do="cut")])
    bench.resumed(kind, tmp_path / "run", f"workers={2 - workers}")


def test_what_was_best_before_a_kill_stays_best_after_it(bench, tmp_path):
    first, second = (line["miou"] for line in lines(bench.whole("adamw")[0]))
    assert second < first, "choose a rate at which the second epoch is the worse one"
    killed = bench.train("adamw", tmp_path / "run", events=[at("espy.learn.loop.Loop.step", 3)])
    assert killed.code == -signal.SIGKILL, killed
    best = (tmp_path / "run" / "best.safetensors").read_bytes()
    bench.resumed("adamw", tmp_path / "run")
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == best


def test_a_killed_runs_folder_is_free_at_once_though_its_workers_live_on(bench, tmp_path):
    event = at("espy.learn.loop.Loop.step", 2)
    killed = bench.train("adamw", tmp_path / "run", "workers=2", events=[event])
    assert killed.code == -signal.SIGKILL, killed
    assert alive(killed.group)
    bench.resumed("adamw", tmp_path / "run")


JUST_BEGUN = [
    at("multiprocessing.process.BaseProcess.start", after=True),
    at("espy.data.loader._ignore_signals", do="wait", number=0.5),
]


@pytest.mark.parametrize("events", [JUST_BEGUN, [at("espy.learn.loop.Loop.step", 2)]], ids=["just begun", "at work"])
def test_workers_end_soon_after_a_killed_run(bench, tmp_path, events):
    killed = bench.train("adamw", tmp_path / "run", "workers=2", events=events)
    assert killed.code == -signal.SIGKILL, killed
    longest = time.monotonic() + 30  # seconds; they look every 5
    while alive(killed.group):
        assert time.monotonic() < longest
        time.sleep(0.05)


def test_tensorboard_shows_every_epoch_once(bench, tmp_path):
    out = tmp_path / "run"
    for event in (at("espy.learn.folder.RunFolder.add", 1, after=True), at("espy.learn.loop.Loop.save", 2)):
        assert bench.train("adamw", out, events=[event]).code == -signal.SIGKILL
    bench.resumed("adamw", out)
    assert len(list((out / "events").iterdir())) == 3
    shown = EventAccumulator(str(out / "events"), size_guidance={"scalars": 0, "images": 0}).Reload()
    for name in ("loss", "rate", "miou", "pixel_accuracy", "class_accuracy"):
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        assert found == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines(out)], name
    assert [event.step for event in shown.Images("predictions")] == [PER_EPOCH, 2 * PER_EPOCH]


def test_what_a_run_started_from_is_not_needed_to_go_on(bench, tmp_path):
    weights = tmp_path / "start.safetensors"
    weights.write_bytes((bench.whole("sgd")[0] / "best.safetensors").read_bytes())
    choice = f"init={weights}"
    assert bench.train("sgd", tmp_path / "whole", choice).code == 0
    assert bench.train("sgd", tmp_path / "run", choice, events=[at("espy.learn.loop.Loop.step", 3)]).code < 0
    weights.unlink()
    assert bench.train("sgd", tmp_path / "run", choice).code == 0
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_a_finished_run_resumed_stays_as_it_is(bench):
    before = bench.whole("adamw")[0] / "last.ckpt"
    changed = before.stat().st_mtime_ns
    bench.resumed("adamw", before.parent, "workers=2", whole=True)
    assert before.stat().st_mtime_ns == changed


# Stopped

SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@SIGNALS
def test_a_signal_to_all_processes_finishes_the_step_and_saves(bench, tmp_path, number, code):
    event = at("espy.learn.loop.Loop.step", 3, do="signal", number=number)
    stopped = bench.train("adamw", tmp_path / "run", "workers=2", events=[event], whole=True)
    assert one_line(stopped, code) == f"stopped after step 3 of {STEPS}: go on with --resume"
    assert "stopping after this step" in stopped.err
    assert not alive(stopped.group)
    assert step_of(tmp_path / "run") == 3
    bench.resumed("adamw", tmp_path / "run", "workers=2", whole=True)


@pytest.mark.parametrize(
    ("place", "step"),
    [("espy.learn.loop.Loop.begin", 0), ("espy.learn.loop.evaluate", 2), ("espy.learn.loop.checkpoint.write", 3)],
)
def test_a_signal_beside_the_steps(bench, tmp_path, place, step):
    event = at(place, do="signal", number=signal.SIGTERM)
    stopped = bench.train("adamw", tmp_path / "run", events=[event])
    assert stopped.code == 143, stopped
    assert "Traceback" not in stopped.err
    assert step_of(tmp_path / "run") == step
    bench.resumed("adamw", tmp_path / "run")


@SIGNALS
def test_a_second_signal_ends_at_once(bench, tmp_path, number, code):
    first = at("espy.learn.loop.Loop.step", 2, do="signal", number=number)
    second = at("espy.learn.loop.evaluate", do="signal", number=number)
    stopped = bench.train("adamw", tmp_path / "run", "workers=2", events=[first, second], whole=True)
    assert stopped.code == code, stopped
    assert "Traceback" not in stopped.err
    assert "stopped after" not in stopped.err
    assert step_of(tmp_path / "run") == 0
    bench.resumed("adamw", tmp_path / "run")


# Beside it


def test_a_run_is_refused_while_another_one_holds_its_folder(bench, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        for resume in (False, True):
            refused = bench.train("sgd", tmp_path / "run", resume=resume)
            assert one_line(refused, 2).startswith(f"espy: {tmp_path / 'run'}: another run is writing there")
    bench.resumed("sgd", tmp_path / "run")


def test_a_worker_that_the_system_ends_is_told_and_the_run_can_go_on(bench, tmp_path):
    event = at("espy.learn.loop.Loop.step", 3, do="bereave")
    ended = bench.train("sgd", tmp_path / "run", "workers=2", "epochs=99", events=[event], whole=True)
    said = one_line(ended, 2)
    assert said.startswith("espy: a process that varies pictures was ended from outside (")
    assert said.endswith("go on with --resume and fewer train.workers")
    assert not alive(ended.group)
    assert step_of(tmp_path / "run") >= 2


def test_an_error_ends_the_workers_too(bench, tmp_path):
    """They heed no signal: left alone, they would keep the run from ending."""
    event = at("espy.learn.loop.Loop.save", 2, do="full", number=100)
    full = bench.train("sgd", tmp_path / "run", "workers=2", events=[event], whole=True)
    assert one_line(full, 2).startswith(f"espy: {tmp_path / 'run' / 'last.ckpt'}: cannot be written: ")
    assert not alive(full.group)
    bench.resumed("sgd", tmp_path / "run")


# Where the disk is full


@pytest.mark.parametrize(
    ("place", "count", "longest", "named"),
    [
        ("pathlib.Path.mkdir", 1, 10, "recipe.toml"),
        ("espy.learn.folder.RunFolder.rewind", 1, 100, "environment.json"),
        ("espy.learn.events.Events.__init__", 1, 10, "events"),
        ("espy.learn.events.Events.scalars", 2, 200, "events"),
        ("espy.learn.events.Events.picture", 2, 200, "events"),
        ("espy.learn.folder.RunFolder.add", 2, 300, "metrics.jsonl"),
        ("espy.learn.folder.write_picture", 2, 300, "pictures/epoch-0002.jpg"),
        ("espy.learn.loop.write_safetensors", 1, 5000, "best.safetensors"),
        ("espy.learn.loop.checkpoint.write", 1, 5000, "last.ckpt"),
        ("espy.learn.loop.checkpoint.write", 2, 5000, "last.ckpt"),
    ],
)
def test_a_full_disk_is_named_and_the_last_checkpoint_stays(bench, tmp_path, place, count, longest, named):
    out = tmp_path / "run"
    event = at(place, count, do="full", number=longest)
    full = bench.train("adamw", out, events=[event])
    assert one_line(full, 2) == f"espy: {out / named}: cannot be written: {os.strerror(27)}"
    assert step_of(out) == (PER_EPOCH if count == 2 else 0)
    assert not list(out.rglob("*.part"))
    bench.resumed("adamw", out)
