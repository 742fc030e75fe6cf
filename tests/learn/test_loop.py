"""The loop: what a step does to weights, what is validated and kept, what a run leaves behind and says."""

import contextlib
import json
import math
import os
import re
import tomllib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import espy
from espy.data.kinds import open_set
from espy.errors import DataError, TrainingError
from espy.header import Preprocess, read_safetensors
from espy.learn import checkpoint
from espy.learn.folder import RunFolder
from espy.learn.loop import Loop, optimiser_of, resolve
from espy.learn.processes import make_fabric
from espy.learn.recipe import Recipe, RecipeError, from_dict, read_recipe, to_dict
from espy.learn.schedule import factor
from espy.learn.sets import open_sets
from espy.learn.watch import Watch
from espy.nn.build import build, weights_of
from espy.nn.learner import Learner
from runs import ESPNET, ESPNETV2, STILL, recipe
from samples import attempt
from trees import clear_shapes, save

pytestmark = pytest.mark.usefixtures("one_thread")
PICTURES = 10  # 8 to train on, 2 to validate on


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return clear_shapes(tmp_path_factory.mktemp("shapes"), pairs=PICTURES, height=32, width=48)


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos):
    """A run of 4 epochs of 2 steps, validated every 2nd and at the end, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    path = recipe(
        folder / "r.toml", photos, train={"epochs": 5, "batch": 4, "rate": 0.02}, validate={"every": 2, "pictures": 2}
    )
    return espy.train(path, folder=folder / "run")


class Steps(Watch):
    """Every step, and what a loop held after it."""

    def __init__(self):
        self.seen, self.said, self.looked = [], [], []

    def say(self, line):
        self.said.append(line)

    def look(self, name):
        self.looked.append(name)

    def progress(self, progress):
        self.seen.append(progress)


@pytest.fixture
def loop(tmp_path, photos):
    """Makes a loop whose steps are taken by hand, and the batches of its first epochs."""

    def make(**sections):
        followed = read_recipe(recipe(tmp_path / "r.toml", photos, **sections))
        sets = open_sets(followed.data)
        followed = resolve(followed, sets)
        loop = Loop(followed, sets, make_fabric(followed), None, Watch())
        loop.samples.keep()
        return loop

    return make


def batch(loop, *places, epoch=0):
    from espy.data.loader import collate

    return [collate([loop.samples[epoch, place, 0] for place in places])]


def copy_of(network):
    return {name: tensor.detach().clone() for name, tensor in weights_of(network).items()}


# A step


def test_weights_of_more_than_one_dimension_decay_and_no_others(photos, tmp_path):
    followed = read_recipe(recipe(tmp_path / "r.toml", photos, train={"weight_decay": 0.3}))
    learner = Learner(build("espnetv2", classes=4, width=0.5), Preprocess((32, 64)), auxiliary=True)
    decayed, others = optimiser_of(learner, followed).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {id(p): name for name, p in learner.named_parameters()}
    convolutions = {
        f"{name}.weight"
        for name, module in learner.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    }
    assert {names[id(p)] for p in decayed["params"]} == convolutions
    assert {names[id(p)] for group in (decayed, others) for p in group["params"]} == set(names.values())


def test_a_step_of_sgd_is_its_formula(loop):
    """v ← m·v + (g + λ·w), w ← w − r·v, with g from autograd on the loss written out."""
    made = loop(
        train={"optimiser": "sgd", "rate": 0.5, "momentum": 0.9, "weight_decay": 0.1, "clip": 0.0, "warm_up": 0.0},
        augment=STILL,
    )
    twin = Learner(build(made.header.spec, seed=0), made.header.preprocess)
    twin.load_state_dict(made.learner.state_dict())
    velocity = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for step in range(2):
        (part,) = batch(made, step, 4 + step)
        (logits,) = twin.train()(part.images)
        loss = nn.functional.cross_entropy(logits, part.truth.long(), ignore_index=255)
        found = torch.autograd.grad(loss, list(twin.parameters()))
        rate = 0.5 * (1 + math.cos(math.pi * step / made.steps)) / 2
        with torch.no_grad():
            for (name, w), g in zip(twin.named_parameters(), found, strict=True):
                velocity[name] = 0.9 * velocity[name] + g + (0.1 * w if w.dim() > 1 else 0)
                w -= rate * velocity[name]
        assert made.step([part]) == pytest.approx(loss.item(), rel=1e-5)
        made.state.step += 1
    for (name, mine), (_, theirs) in zip(made.learner.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_the_gradients_norm_is_clipped_and_smaller_ones_are_left_alone(loop):
    """With sgd, rate 1 and no decay the weights move by the gradient itself."""

    def moved(clip):
        made = loop(
            train={"optimiser": "sgd", "rate": 1.0, "weight_decay": 0.0, "momentum": 0.0, "clip": clip, "warm_up": 0.0},
            augment=STILL,
        )
        before = [p.detach().clone() for p in made.learner.parameters()]
        made.step(batch(made, 0, 1))
        return torch.cat([(a - b.detach()).flatten() for a, b in zip(before, made.learner.parameters(), strict=True)])

    free = moved(0.0)
    norm = float(free.norm())
    assert norm > 0.1
    torch.testing.assert_close(moved(norm / 4), free / 4, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moved(2 * norm), free)


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_the_rate_of_every_step_is_the_schedules(loop, schedule):
    made = loop(train={"epochs": 3, "batch": 4, "rate": 0.2, "schedule": schedule, "power": 2.0, "warm_up": 1.5})
    assert (made.steps, made.per_epoch) == (6, 2)
    for step in range(made.steps):
        made.step(batch(made, 0, 1))
        made.state.step += 1
        expected = 0.2 * factor(step, 6, warm_up=3, schedule=schedule, power=2.0)
        assert [group["lr"] for group in made.optimiser.param_groups] == [expected] * 2


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.99])
def test_the_kept_weights_are_the_average_of_the_trained_ones(loop, decay):
    """a ← d·a + (1 − d)·w, d the smaller of the decay and (1 + n) / (10 + n), in float64."""
    made = loop(train={"ema": decay, "rate": 0.1})
    expected = {name: t.double() for name, t in copy_of(made.learner.network).items()}
    for step in range(3):
        made.step(batch(made, 0, 1 + step))
        made.state.step += 1
        d = min(decay, (2 + step) / (11 + step))
        expected = {name: d * expected[name] + (1 - d) * w for name, w in copy_of(made.learner.network).items()}
    for name, kept in weights_of(made.average.network).items():
        torch.testing.assert_close(kept.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
    moved = [
        n for n, w in copy_of(made.learner.network).items() if not torch.equal(w, weights_of(made.average.network)[n])
    ]
    assert bool(moved) == (decay > 0)


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norms_keep_their_statistics_where_the_recipe_freezes_them(loop, frozen):
    made = loop(train={"freeze_norm": frozen})
    before = copy_of(made.learner.network)
    made.step(batch(made, 0, 1))
    after = weights_of(made.learner.network)
    changed = {name.rpartition(".")[2] for name in after if not torch.equal(before[name], after[name])}
    assert ("running_mean" in changed) == ("running_var" in changed) == (not frozen)
    assert "weight" in changed


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_stay_float32_in_every_precision(tmp_path, photos, precision):
    path = recipe(
        tmp_path / "r.toml", photos, ESPNETV2, data={"size": [32, 64], "multiple": 32},
        train={"precision": precision, "epochs": 1, "batch": 4, "rate": 0.01},
    )  # fmt: skip
    done = espy.train(path, folder=tmp_path / "run")
    _, arrays = read_safetensors(done.best)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert all(np.isfinite(array).all() for array in arrays.values())
    (start,) = json.loads((done.folder / "environment.json").read_text())["starts"]
    assert start["precision"] == {"float32": "32-true", "bfloat16": "bf16-mixed"}[precision]
    fresh = weights_of(build("espnetv2", width=0.5, classes=4, seed=0))
    assert not np.array_equal(arrays["encoder.level1.conv.weight"], fresh["encoder.level1.conv.weight"])


def test_processors_keep_their_layout_whatever_the_recipe_says_of_it(loop):
    """Channels-last, some gradients are wrong there (tests/nn/test_learner.py)."""
    losses = []
    for channels_last in (True, False):
        made = loop(network=ESPNETV2, train={"channels_last": channels_last, "rate": 0.01})
        assert made.learner.memory_format == torch.contiguous_format
        assert all(weight.is_contiguous() for weight in made.learner.parameters())
        losses.append([made.step(batch(made, 0, 1)) for _ in range(2)])
    assert losses[0] == losses[1]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_batch_and_files(tmp_path, photos):
    path = recipe(tmp_path / "r.toml", photos, train={"rate": 1e30, "clip": 0.0, "batch": 4, "warm_up": 0.0})
    _, message = attempt(TrainingError, espy.train, path, folder=tmp_path / "run")
    assert re.match(r"the loss is (nan|inf) in step 2 \(epoch 1, batch 2 of 2\).* files: (p\d\.png(, |$)){4}", message)
    assert "lower train.rate" in message


def test_pictures_without_a_labelled_pixel_change_nothing_but_decay(loop):
    made = loop(
        train={"optimiser": "sgd", "rate": 0.1, "weight_decay": 0.0, "freeze_norm": True},
        loss={"dice": 1.0, "ohem": 0.5},
    )
    (part,) = batch(made, 0, 1)
    part.truth.fill_(255)
    before = copy_of(made.learner)
    assert made.step([part]) == 0.0
    for name, tensor in weights_of(made.learner).items():
        assert torch.equal(tensor, before[name]), name


# What is validated and kept


def test_a_line_an_epoch_with_figures_where_it_was_validated(run):
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == run.metrics
    assert [(line["epoch"], line["step"]) for line in lines] == [(k, 2 * k) for k in range(1, 6)]
    assert ["miou" in line for line in lines] == [False, True, False, True, True]  # every 2nd, and the last
    for line in lines:
        assert line["loss"] > 0
        assert line["images_s"] > 0
        expected = {"epoch", "step", "loss", "rate", "images_s"}
        assert line.keys() == expected | (
            {"miou", "pixel_accuracy", "class_accuracy", "iou"} if "miou" in line else set()
        )
    assert set(lines[1]["iou"]) == {"grey", "disc", "box", "bar"}


def test_the_best_file_is_the_best_epochs_and_says_so(run):
    measured = {line["epoch"]: line for line in run.metrics if "miou" in line}
    best = max(measured, key=lambda epoch: measured[epoch]["miou"])
    header, _ = read_safetensors(run.best)
    (metric,) = header.card.metrics
    assert metric.value == pytest.approx(100 * measured[best]["miou"], abs=0.005)
    assert metric.set == "val"
    assert metric.protocol == f"epoch {best}, height 32, width 48, one scale"


@pytest.mark.parametrize("network", [ESPNETV2, ESPNET], ids=lambda n: n["network"])
def test_what_validates_is_to_the_last_bit_the_model_of_the_written_file(loop, tmp_path, network):
    made = loop(network=network, train={"rate": 0.1, "ema": 0.5})
    made.step(batch(made, 0, 1))
    made._write_weights(tmp_path / "m.safetensors", 1, None)
    images = batch(made, 2, 3)[0].images
    with (
        made._model() as validated,
        espy.load(tmp_path / "m.safetensors", engine="torch") as loaded,
        torch.inference_mode(),
    ):
        assert torch.equal(validated.engine._module(images)[1], loaded.engine._module(images)[1])


def test_the_averaged_weights_are_those_written(run):
    arrays, state = checkpoint.read(run.folder / "last.ckpt")
    _, last = read_safetensors(run.folder / "last.safetensors")
    for name, array in last.items():
        assert np.array_equal(array, arrays[f"average.{name}"]), name
    assert any(not np.array_equal(array, arrays[f"learner.network.{name}"]) for name, array in last.items())
    assert state["step"] == run.metrics[-1]["step"]


def test_pictures_are_drawn_at_every_validation(run):
    names = sorted(path.name for path in (run.folder / "pictures").iterdir())
    assert names == ["epoch-0002.jpg", "epoch-0004.jpg", "epoch-0005.jpg"]
    for name in names:
        with Image.open(run.folder / "pictures" / name) as sheet:
            assert sheet.width > sheet.height > 100


def test_no_pictures_are_drawn_where_none_are_asked_for(tmp_path, photos):
    done = espy.train(recipe(tmp_path / "r.toml", photos, validate={"pictures": 0}), folder=tmp_path / "run", epochs=1)
    assert not (done.folder / "pictures").exists()


def test_the_files_say_what_a_recipes_card_says(tmp_path, photos):
    path = recipe(tmp_path / "r.toml", photos, card={"title": "Shapes", "data": "made here", "terms": "none"})
    header, _ = read_safetensors(espy.train(path, folder=tmp_path / "run", epochs=1).best)
    assert (header.card.title, header.card.data, header.card.terms) == ("Shapes", "made here", "none")
    assert [label.name for label in header.labels] == ["grey", "disc", "box", "bar"]
    assert (header.preprocess.size, header.preprocess.multiple, header.sizes) == ((32, 48), 1, "any")


def test_a_set_without_a_validation_split_keeps_the_last_weights(tmp_path):
    clear_shapes(tmp_path / "s", pairs=4, height=32, width=48, split="train")
    path = recipe(tmp_path / "r.toml", tmp_path / "s", data={"validate": ""})
    done = espy.train(path, folder=tmp_path / "run")
    assert all("miou" not in line for line in done.metrics)
    assert np.array_equal(
        *(read_safetensors(f)[1]["up1.weight"] for f in (done.best, done.folder / "last.safetensors"))
    )
    assert read_safetensors(done.best)[0].card.metrics == ()
    _, message = attempt(DataError, espy.train, recipe(path, tmp_path / "s"), folder=tmp_path / "other")
    assert "no split 'val'" in message
    assert not (tmp_path / "other").exists()


def test_a_figure_that_is_none_is_null_and_the_run_goes_on(tmp_path):
    """All of the validation's truth is void: there is no mIoU."""
    root = clear_shapes(tmp_path / "s", pairs=4, height=32, width=48, split="train")
    save(root / "images" / "val" / "v.png", np.zeros((32, 48, 3), np.uint8))
    save(root / "masks" / "val" / "v.png", np.full((32, 48), 255, np.uint8))
    done = espy.train(recipe(tmp_path / "r.toml", root, train={"epochs": 2}), folder=tmp_path / "run")
    assert [line["miou"] for line in done.metrics] == [None, None]
    assert "NaN" not in (done.folder / "metrics.jsonl").read_text()
    assert done.best.is_file()


# What is trained on


def test_held_out_pictures_validate_and_are_not_trained_on(tmp_path, photos):
    stems = sorted(item.picture.name for item in open_set(f"folder:{photos}", "train").items)
    patterns = [stems[0], f"{stems[-1][:-4]}*"]
    data = {"hold_out": patterns}
    sets = open_sets(read_recipe(recipe(tmp_path / "r.toml", photos, data=data)).data)
    assert [item.picture.name for item in sets.validate.items] == [stems[0], stems[-1]]
    assert [item.picture.name for item in sets.train.items] == stems[1:-1]
    done = espy.train(tmp_path / "r.toml", folder=tmp_path / "run", epochs=1)
    assert read_safetensors(done.best)[0].card.metrics[0].set == "held out of train"
    truth = np.concatenate([sets.train.read(k)[1].ravel() for k in range(len(sets.train))])
    assert sets.counts == tuple(int((truth == value).sum()) for value in range(4))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"hold_out": ["zzz*"]}, "hold_out 'zzz*' is the name of no picture of train"),
        ({"hold_out": ["*"]}, "hold_out leaves no picture to train on"),
        ({"train": "trian"}, "no split 'trian': did you mean 'train'?"), ({"validate": "vall"}, "no split 'vall'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_choice_of_pictures_that_cannot_be_is_refused(tmp_path, photos, data, words):
    _, message = attempt(DataError, open_sets, read_recipe(recipe(tmp_path / "r.toml", photos, data=data)).data)
    assert words in message


def test_splits_that_a_kind_opens_only_by_name_can_be_trained_on(tmp_path):
    """A longer list of VOC's, beside train and val, which alone are opened unless one is named."""
    for k in range(4):
        save(tmp_path / "JPEGImages" / f"{k}.jpg", np.zeros((32, 48, 3), np.uint8))
        save(tmp_path / "SegmentationClass" / f"{k}.png", np.full((32, 48), k, np.uint8))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, members in {"train": "0\n", "val": "1\n", "trainaug": "0\n2\n3\n"}.items():
        (lists / f"{name}.txt").write_text(members)
    followed = {"network": ESPNET, "data": {"set": f"voc:{tmp_path}", "train": "trainaug"}}
    sets = open_sets(from_dict(followed).data)
    assert [item.picture.stem for item in sets.train.items] == ["0", "2", "3"]
    assert [item.picture.stem for item in sets.validate.items] == ["1"]


def test_faults_of_a_split_that_is_not_used_are_no_matter(tmp_path):
    for split in ("train", "val", "test"):
        clear_shapes(tmp_path / "s", pairs=2, height=32, width=48, split=split)
    save(tmp_path / "s" / "masks" / "test" / "p0.png", np.full((30, 48), 1, np.uint8))
    (tmp_path / "s" / "masks" / "test" / "p1.png").unlink()
    sets = open_sets(read_recipe(recipe(tmp_path / "r.toml", tmp_path / "s")).data)
    assert len(sets.train) == len(sets.validate) == 2


def test_every_fault_of_a_set_is_told_and_nothing_is_trained(tmp_path):
    root = clear_shapes(tmp_path / "s", pairs=5, height=32, width=48)
    save(root / "masks" / "p1.png", np.full((30, 48), 1, np.uint8))
    save(root / "masks" / "p2.png", np.full((32, 48), 9, np.uint8))
    watch = Steps()
    _, message = attempt(DataError, espy.train, recipe(tmp_path / "r.toml", root), folder=tmp_path / "run", watch=watch)
    assert "2 faults, first " in message
    assert f"nothing was trained; see espy check folder:{root}" in message
    assert sum(line.startswith("fault: ") for line in watch.said) == 2
    assert not (tmp_path / "run").exists()


def test_validating_on_the_training_pictures_is_said(tmp_path, photos):
    watch = Steps()
    espy.train(
        recipe(tmp_path / "r.toml", photos, data={"validate": "train"}), folder=tmp_path / "run", epochs=1, watch=watch
    )
    assert f"folder:{photos}: validates on the pictures that it trains on" in watch.said


# What a run leaves behind


def test_a_run_folder_is_complete_and_its_recipe_is_the_resolved_one(run, photos):
    there = {path.name for path in run.folder.iterdir()} - {".lock"}
    assert there == {"recipe.toml", "environment.json", "metrics.jsonl", "last.ckpt", "best.safetensors", "last.safetensors",
                     "events", "pictures"}  # fmt: skip
    kept = read_recipe(run.folder / "recipe.toml")
    assert (kept.network["classes"], kept.network["alpha2"], kept.train.epochs) == (4, 1, 5)
    again = resolve(kept, open_sets(kept.data))
    assert tomllib.loads((run.folder / "recipe.toml").read_text()) == to_dict(again)


def test_the_environment_says_where_and_with_what(run):
    (start,) = json.loads((run.folder / "environment.json").read_text())["starts"]
    assert start["espy"] == espy.__version__
    assert start["torch"] == torch.__version__
    assert (start["device"], start["processes"], start["threads"], start["step"]) == ("cpu", 1, 1, 0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", start["time"])
    assert start["cores"] == os.cpu_count()
    assert start["processor"]


def test_tensorboard_reads_the_figures_back(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "events"))
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {"loss", "rate", "images_s", "miou", "pixel_accuracy", "class_accuracy"}
    for name in tags["scalars"]:
        read = [(event.step, event.value) for event in events.Scalars(name)]
        assert read == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in run.metrics if name in line]
    assert tags["images"] == ["predictions"]
    assert [event.step for event in events.Images("predictions")] == [4, 8, 10]


def test_the_run_folder_is_a_model_to_load(run, photos):
    with espy.load(run.folder) as model:
        mask = model(photos / "images" / "p0.png").mask
    assert mask.shape == (32, 48)
    assert [label.name for label in model.labels] == ["grey", "disc", "box", "bar"]


# Calls


def test_a_recipe_in_memory_is_trained_into_a_folder_of_ones_own(tmp_path, photos):
    made = read_recipe(recipe(tmp_path / "r.toml", photos), {"epochs": 1})
    assert isinstance(made, Recipe)
    assert len(espy.train(made, folder=tmp_path / "run").metrics) == 1
    _, message = attempt(RecipeError, espy.train, made)
    assert "needs a folder=" in message
    _, message = attempt(RecipeError, espy.train, made, folder=tmp_path / "other", epochs=2)
    assert "build the Recipe with them" in message


def test_overrides_are_keywords_and_the_folder_takes_the_recipes_name(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = espy.train(recipe(tmp_path / "mine.toml", photos), epochs=1, title="t")
    assert done.folder == type(done.folder)("runs/mine")
    assert read_recipe("runs/mine/recipe.toml").card.title == "t"


def test_a_full_folder_and_one_in_use_are_refused(tmp_path, run, photos):
    path = recipe(tmp_path / "r.toml", photos)
    _, message = attempt(espy.EspyError, espy.train, path, folder=run.folder)
    assert "holds a run already: continue it with --resume, or choose another --out" in message
    held = RunFolder(tmp_path / "held", read_recipe(path), resume=False)
    with contextlib.closing(held):
        _, message = attempt(espy.EspyError, espy.train, path, folder=tmp_path / "held")
    assert "another run is writing there" in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"classes": 3}, "[network] classes is 3, the set has 4: leave it out"),
        ({"class_weights": [1, 2]}, "[loss] class_weights is [1.0, 2.0]: give 4 numbers, one a class of the set"),
        ({"class_weights": [1, 1, 1, -1]}, "none negative"), ({"class_weights": [0, 0, 0, 0]}, "not all 0"),
        ({"accumulate": 3}, "train.batch 2 does not divide into"),
        ({"init": "nowhere"}, "nowhere: no such model file"), ({"set": "folder:nowhere"}, "nowhere: no such folder"),
        ({"init": "street-small", "init_mapping": "nowhere"}, "nowhere: no such mapping"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_the_set_or_the_machine_is_refused_in_one_line(tmp_path, photos, overrides, words):
    path = recipe(tmp_path / "r.toml", photos)
    _, message = attempt(espy.EspyError, espy.train, path, folder=tmp_path / "run", **overrides)
    assert words in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(tmp_path, photos):
    _, message = attempt(
        RecipeError, espy.train, recipe(tmp_path / "r.toml", photos), folder=tmp_path / "run", device="cuda"
    )
    assert message == "train.device is cuda, but there is none: set it to auto or cpu"


def test_a_precision_that_processors_do_not_train_in_is_refused_not_exchanged(tmp_path, photos):
    path = recipe(tmp_path / "r.toml", photos, train={"precision": "float16"})
    _, message = attempt(RecipeError, espy.train, path, folder=tmp_path / "run")
    assert message == "train.precision is float16, in which processors do not train: set it to auto or bfloat16"


def test_progress_is_told_after_every_step(tmp_path, photos):
    watch = Steps()
    done = espy.train(recipe(tmp_path / "r.toml", photos, train={"batch": 4}), folder=tmp_path / "run", watch=watch)
    assert [(p.epoch, p.epochs, p.step, p.steps) for p in watch.seen] == [
        (1, 2, 1, 4),
        (1, 2, 2, 4),
        (2, 2, 3, 4),
        (2, 2, 4, 4),
    ]
    assert [p.loss for p in watch.seen][1::2] == [line["loss"] for line in done.metrics]
    assert [p.score for p in watch.seen] == [None, None, *[pytest.approx(done.metrics[0]["miou"], abs=1e-6)] * 2]
    assert all(p.images_s > 0 for p in watch.seen)
    assert watch.seen[-1].eta_s == 0
    trained = {item.picture.name for item in open_set(f"folder:{photos}", "train").items}
    assert Counter(watch.looked) == {
        f"p{k}.png": 1 + (f"p{k}.png" in trained) for k in range(PICTURES)
    }  # checked, decoded


def test_starting_weights_are_reported(tmp_path, photos, run):
    watch = Steps()
    path = recipe(tmp_path / "r.toml", photos, train={"init": str(run.folder), "rate": 1e-9, "ema": 0.0, "epochs": 1})
    done = espy.train(path, folder=tmp_path / "run", watch=watch)
    _, mine = read_safetensors(done.best)
    _, theirs = read_safetensors(run.best)
    assert f"{run.folder}: {len(mine)} tensors taken as they are" in watch.said
    np.testing.assert_allclose(mine["up1.weight"], theirs["up1.weight"], atol=1e-6)
