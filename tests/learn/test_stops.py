"""What stops a run, and in which words; and what does not."""

import json
import math

import numpy as np
import pytest

import runs
import trees
from espy import build, train
from espy.errors import DataError, EspyError, TrainingError
from espy.header import read_safetensors
from espy.learn import checkpoint, loop
from espy.learn.watch import Watch
from samples import attempt

pytestmark = pytest.mark.usefixtures("one_thread")


class Said(Watch):
    """Remembers what was said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def photos(tmp_path):
    """A set of 6 pictures to train on and 2 to validate on."""
    for split, pairs in (("train", 6), ("val", 2)):
        trees.folder(tmp_path / "photos" / split, pairs=pairs, height=32, width=48, classes=None)
    (tmp_path / "photos" / "classes.txt").write_text("background\ndisc\nbox\n")
    return tmp_path / "photos"


@pytest.fixture
def start(tmp_path, photos):
    """Trains as a recipe with these sections says, 3 steps an epoch."""
    (tmp_path / "r.toml").unlink(missing_ok=True)

    def start(watch=None, resume=False, **sections):
        sections = {"validate": {"pictures": 0}, **sections}
        path = runs.recipe(tmp_path / "r.toml", photos, **sections)
        return train(path, folder=tmp_path / "run", watch=watch, resume=resume)

    return start


def refusal(kind, call, *arguments, **keywords):
    found, message = attempt(kind, call, *arguments, **keywords)
    assert found is None, "it went on"
    assert "\n" not in message
    return message


# Numbers that are not finite


def names_of(step, seed=0):
    """The files of a step's batch, by the definition: a permutation by (seed, epoch), two at a time."""
    order = np.random.default_rng([seed, (step - 1) // 3]).permutation(6)
    return [f"p{k}.jpg" for k in order[(step - 1) % 3 * 2 :][:2]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_step_batch_and_files(start, tmp_path, monkeypatch, value):
    losses, whole = [], loop.Pixels.loss

    def loss(self, sums, counts):
        losses.append(whole(self, sums, counts))
        return losses[-1] * value if len(losses) == 5 else losses[-1]

    monkeypatch.setattr(loop.Pixels, "loss", loss)
    message = refusal(TrainingError, start)
    assert message == (
        f"the loss is {value} in step 5 (epoch 2, batch 2 of 3): the last checkpoint is from before; lower train.rate, or "
        f"train in float32; the batch's files: {', '.join(names_of(5))}"
    )
    monkeypatch.undo()
    assert checkpoint.read(tmp_path / "run" / "last.ckpt")[1]["step"] == 3
    assert [line["step"] for line in start(resume=True).metrics] == [3, 6]


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_it_reaches_a_weight(start, tmp_path, monkeypatch, clip):
    """The loss is finite, and so would be the checkpoint of this last step of an epoch."""
    whole, steps = loop.Fabric.backward, []

    def backward(self, loss, *arguments, **keywords):
        whole(self, loss, *arguments, **keywords)
        steps.append(loss)
        if len(steps) == 6:
            next(p for group in optimisers[-1].param_groups for p in group["params"]).grad[0] = math.inf

    optimisers, make = [], loop.optimiser_of
    monkeypatch.setattr(loop, "optimiser_of", lambda *a: optimisers.append(make(*a)) or optimisers[-1])
    monkeypatch.setattr(loop.Fabric, "backward", backward)
    message = refusal(TrainingError, start, train={"clip": clip})
    assert message.startswith("the gradient's norm is inf in step 6 (epoch 2, batch 3 of 3): ")
    assert message.endswith(f"files: {', '.join(names_of(6))}")
    assert checkpoint.read(tmp_path / "run" / "last.ckpt")[1]["step"] == 3


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_weights_that_are_not_finite_are_never_written(start, tmp_path, monkeypatch, average):
    """Neither the loss nor the gradient shows it: a running variance that overflows."""
    whole = loop.Average.update

    def update(self, network, steps):
        whole(self, network, steps)
        if steps == 6:
            next(module for module in network.modules() if hasattr(module, "running_var")).running_var[0] = math.inf
            whole(self, network, steps)

    monkeypatch.setattr(loop.Average, "update", update)
    message = refusal(TrainingError, start, train={"ema": average})
    assert "running_var is not finite after step 6: the last checkpoint is from before" in message
    run = tmp_path / "run"
    assert checkpoint.read(run / "last.ckpt")[1]["step"] == 3
    assert not (run / "last.safetensors").exists()
    assert all(np.isfinite(array).all() for array in read_safetensors(run / "best.safetensors")[1].values())


def test_a_rate_far_too_high_ends_so(start, tmp_path):
    message = refusal(TrainingError, start, train={"rate": 1e30, "epochs": 5, "warm_up": 0, "ema": 0.0})
    assert " in step " in message or " after step " in message
    if (tmp_path / "run" / "last.ckpt").exists():
        arrays, _ = checkpoint.read(tmp_path / "run" / "last.ckpt")
        assert all(np.isfinite(array).all() for array in arrays.values())


# Void


def void(photos, split, stems=None):
    """Take the labels off some masks, or all."""
    for path in (photos / split / "masks").iterdir():
        if stems is None or path.stem in stems:
            trees.save(path, np.full((32, 48), 255, np.uint8))


LOSSES = {
    "cross-entropy": {},
    "dice": {"dice": 1.0, "cross_entropy": 0.0},
    "hardest": {"ohem": 0.3},
    "weighted": {"class_weights": [0.0, 2.0, 1.0], "smoothing": 0.1},
    "auxiliary": {"auxiliary": 0.4, "dice": 0.5, "class_weights": "frequency"},
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_without_a_labelled_pixel_leaves_every_weight_as_it_is(start, photos, loss):
    """Nothing is labelled, decays or has momentum: only the statistics of batch norms move."""
    trees.save(photos / "val" / "masks" / "p0.png", trees.mask(32, 48, (0, 1, 2)))
    void(photos, "train")
    options = {"optimiser": "sgd", "momentum": 0.0, "weight_decay": 0.0, "ema": 0.0, "rate": 1.0}
    watch = Said()
    run = start(watch, train=options, loss=LOSSES[loss])
    assert [line["loss"] for line in run.metrics] == [0.0, 0.0]
    fresh = build("espnet", classes=3, seed=0, **{k: v for k, v in runs.ESPNET.items() if k != "network"})
    _, arrays = read_safetensors(run.folder / "last.safetensors")
    for name, parameter in fresh.named_parameters():
        assert np.array_equal(arrays[name], parameter.detach().numpy()), name
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert any("all void" in line for line in watch.lines)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_without_a_labelled_pixel_among_others_is_trained_past(start, photos, loss, optimiser):
    void(photos, "train", {"p1", "p3", "p4"})
    run = start(train={"batch": 1, "optimiser": optimiser}, loss=LOSSES[loss])
    assert all(0 < line["loss"] < math.inf for line in run.metrics)
    _, arrays = read_safetensors(run.folder / "last.safetensors")
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_nothing_to_measure_by_is_no_figure(start, photos):
    """Every validation mask is void: null in metrics.jsonl, no metric in the header, and the weights are kept all the same."""
    void(photos, "val")
    run = start()
    lines = [
        json.loads(line, parse_constant=pytest.fail) for line in (run.folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["miou"] for line in lines] == [None, None]
    header, best = read_safetensors(run.best)
    assert header.card.metrics == ()
    _, last = read_safetensors(run.folder / "last.safetensors")
    assert all(np.array_equal(best[name], last[name]) for name in last)


# Sets


def test_a_set_with_faults_is_refused_before_anything_is_written_and_every_fault_is_told(start, photos, tmp_path):
    (photos / "train" / "masks" / "p0.png").unlink()
    trees.save(photos / "train" / "masks" / "p1.png", np.full((32, 48), 9, np.uint8))
    trees.save(photos / "val" / "masks" / "p1.png", np.zeros((5, 5), np.uint8))
    watch = Said()
    message = refusal(DataError, start, watch)
    faults = [line for line in watch.lines if line.startswith("fault: ")]
    assert len(faults) == 3
    for part in (
        "train/images/p0.jpg: no mask",
        "train/masks/p1.png: holds 9",
        "val/masks/p1.png: not of its picture's size",
    ):
        assert [part in line for line in faults].count(True) == 1, part
    assert message.startswith(
        f"folder:{photos}: 3 faults, first {faults[0].removeprefix('fault: ')}: nothing was trained"
    )
    assert not (tmp_path / "run").exists()


def test_a_picture_that_goes_away_meanwhile_is_named_and_the_run_can_go_on(start, photos, tmp_path, monkeypatch):
    from espy.data import loader

    picture = photos / "train" / "images" / "p2.jpg"
    whole, content = loop.Loop.save, picture.read_bytes()
    monkeypatch.setattr(loader, "free_memory", lambda: 0)  # pictures are read again in every epoch
    monkeypatch.setattr(loop.Loop, "save", lambda self: (whole(self), picture.unlink()))
    assert refusal(EspyError, start).startswith(f"{picture}: no such file: ")
    monkeypatch.undo()
    picture.write_bytes(content)
    assert [line["step"] for line in start(resume=True).metrics] == [3, 6]
