"""Classifiers and detectors learn by the one loop: a few pictures by heart, killed and resumed, started from each other."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import espy
from espy.errors import DataError
from espy.header import read_safetensors
from espy.learn.profile import profile
from espy.learn.recipe import RecipeError, read_recipe
from runs import STILL, recipe
from samples import scene
from trees import boxed_shapes, clear_shapes, coloured_folders, save

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSIFIER = {"network": "espnetv2", "task": "classify", "width": 0.5}
DETECTOR = {"network": "espnetv2", "task": "detect", "width": 0.5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return coloured_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    return boxed_shapes(tmp_path_factory.mktemp("things"))


def of_classes(path, folders, **sections):
    data = {"set": f"imagefolder:{folders}", "size": [32, 32], "multiple": 32}
    return recipe(path, folders, CLASSIFIER, data=data, **sections)


def of_boxes(path, things, **sections):
    data = {"set": f"yolo:{things}", "size": [96, 96], "multiple": 32}
    return recipe(path, things, DETECTOR, data=data, **sections)


def test_a_handful_of_pictures_is_classified_by_heart(tmp_path, folders):
    path = of_classes(
        tmp_path / "r.toml", folders, augment=STILL,
        train={"epochs": 40, "batch": 8, "rate": 0.01, "ema": 0.9}, validate={"every": 40},
    )  # fmt: skip
    run = espy.train(path, folder=tmp_path / "run")
    assert (run.metric, run.score) == ("top-1", 1.0)
    last = run.metrics[-1]
    assert last["top5"] == 1.0
    assert set(last["accuracy"].values()) == {1.0}
    assert last["loss"] < 0.2 * run.metrics[0]["loss"]
    (metric,) = read_safetensors(run.best)[0].card.metrics
    assert (metric.name, metric.value) == ("top-1", 100.0)
    result = espy.load(run.folder, engine="torch")(folders / "val" / "kind 2" / "1.png")
    assert result.top(1)[0][0] == "kind 2"
    assert len(list((run.folder / "pictures").iterdir())) == 1


def test_a_handful_of_pictures_is_detected_by_heart(tmp_path, things):
    path = of_boxes(
        tmp_path / "r.toml", things, augment=STILL,
        train={"epochs": 60, "batch": 6, "rate": 0.005, "ema": 0.9}, validate={"every": 60},
    )  # fmt: skip
    run = espy.train(path, folder=tmp_path / "run")
    assert run.metric == "AP50"
    assert run.score > 0.95
    assert run.metrics[-1]["voc_ap50"] > 0.95
    found = espy.evaluate(str(run.best), f"yolo:{things}", engine="torch")
    assert found.figure == pytest.approx(run.score, abs=1e-6)
    seen = espy.load(run.folder, engine="torch")(things / "images" / "val" / "p1.png").above(0.5)
    assert set(seen.classes.tolist()) == {0, 1}


EVERYTHING = {
    "classify": {
        "loss": {"smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0, "class_weights": "frequency"},
        "augment": {"scale": [0.8, 2.0], "stretch": 1.3, "rotate": 10.0, "flip": 0.5, "hue": 20.0},
    },
    "detect": {
        "loss": {"match": 0.5, "negatives": 2.0, "boxes": 0.5},
        "augment": {"scale": [0.5, 2.0], "stretch": 1.2, "rotate": 5.0, "overlap": [0.0, 0.3, 0.7], "sizes": [64, 96]},
    },
}


@pytest.mark.parametrize("task", EVERYTHING)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_is_stopped_and_resumed_is_bit_for_bit_the_whole_one(tmp_path, folders, things, task, accumulate):
    make, pictures = (of_classes, folders) if task == "classify" else (of_boxes, things)
    train = {"epochs": 3, "batch": 4, "accumulate": accumulate, "rate": 0.01}
    whole = espy.train(make(tmp_path / "a.toml", pictures, train=train, **EVERYTHING[task]), folder=tmp_path / "whole")

    class Stop(espy.learn.watch.Watch):
        def progress(self, progress):
            if progress.step == 2:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGINT)

    again = make(tmp_path / "b.toml", pictures, train=train, **EVERYTHING[task])
    with pytest.raises(SystemExit):
        espy.train(again, folder=tmp_path / "parts", watch=Stop())
    parts = espy.train(again, folder=tmp_path / "parts", resume=True)
    for name in ("best.safetensors", "last.safetensors"):
        one, two = (read_safetensors(run.folder / name)[1] for run in (whole, parts))
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[key], two[key]) for key in one)
    timeless = [{k: v for k, v in line.items() if k != "images_s"} for line in whole.metrics]
    assert timeless == [{k: v for k, v in line.items() if k != "images_s"} for line in parts.metrics]


@pytest.mark.parametrize("task", EVERYTHING)
def test_the_profile_accounts_for_the_steps_of_every_task(tmp_path, folders, things, task):
    make, pictures = (of_classes, folders) if task == "classify" else (of_boxes, things)
    table = profile(read_recipe(make(tmp_path / "r.toml", pictures, train={"batch": 4})), steps=1)
    assert all(stage in table for stage in ("waiting for pictures", "forward", "backward", "optimiser"))


# Shapes


def test_classes_are_seen_in_the_middle_unless_the_recipe_stretches_them(tmp_path, folders, things):
    def header(resize, make=of_classes, pictures=folders):
        data = read_recipe(make(tmp_path / "s.toml", pictures), [f"data.resize={resize}"])
        return espy.train(data, folder=tmp_path / resize).folder / "last.safetensors"

    assert read_safetensors(header("auto"))[0].preprocess.resize == "short"
    assert read_safetensors(header("stretch"))[0].preprocess.resize == "stretch"
    with pytest.raises(RecipeError, match="resize is short, which cuts the sides off: this network's task is detect"):
        header("short", of_boxes, things)


# Starting from each other


def trained(tmp_path, make, pictures, name="first"):
    path = make(tmp_path / f"{name}.toml", pictures, train={"epochs": 1, "batch": 4})
    return espy.train(path, folder=tmp_path / name).folder


@pytest.mark.parametrize("target", ["detect", "segment", "classify"])
def test_a_classifiers_encoder_starts_every_task(tmp_path, folders, things, target):
    source = trained(tmp_path, of_classes, folders)
    said = []

    class Heard(espy.learn.watch.Watch):
        def say(self, line):
            said.append(line)

    train = {"epochs": 1, "batch": 2, "init": str(source), "rate": 1e-12}
    if target == "detect":
        path = of_boxes(tmp_path / "r.toml", things, train=train)
    elif target == "classify":
        path = of_classes(tmp_path / "r.toml", folders, train=train)
    else:
        masks = clear_shapes(tmp_path / "masks", pairs=4, split="train")
        path = recipe(tmp_path / "r.toml", masks, {"network": "espnetv2", "width": 0.5}, train=train,
                      data={"size": [64, 96], "multiple": 32, "validate": "train"})  # fmt: skip
    run = espy.train(path, folder=tmp_path / "run", watch=Heard())
    theirs, ours = (read_safetensors(folder / "last.safetensors")[1] for folder in (source, run.folder))
    norms = ("running_mean", "running_var")
    shared = [n for n in ours if n.startswith("encoder.") and n in theirs and not n.endswith(norms)]
    assert len(shared) > 100
    for name in shared:
        assert np.allclose(ours[name], theirs[name], atol=1e-6), name
    report = "\n".join(said)
    assert f"{source}: " in report
    assert "tensors taken as they are" in report
    if target == "detect":
        assert "fresh: heads" in report
        assert "fresh: encoder" in report  # the fifth level takes the picture in again
    if target == "segment":
        assert "fresh: pyramid1" in report


def test_a_detector_of_other_kinds_gives_all_but_its_scores(tmp_path, things):
    source = trained(tmp_path, of_boxes, things)
    other = boxed_shapes(tmp_path / "other", kinds=("ring", "box"))
    train = {"epochs": 1, "batch": 2, "init": str(source), "rate": 1e-12, "seed": 1}
    path = of_boxes(tmp_path / "r.toml", other, train=train)
    run = espy.train(path, folder=tmp_path / "run")
    theirs, ours = (read_safetensors(folder / "last.safetensors")[1] for folder in (source, run.folder))
    assert np.allclose(ours["heads.0.box.weight"], theirs["heads.0.box.weight"], atol=1e-6)
    assert not np.allclose(ours["heads.0.score.weight"], theirs["heads.0.score.weight"], atol=1e-3)


# What cannot work


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"loss": {"dice": 1.0}}, "dice is for the task segment, this network's is classify"),
        ({"loss": {"negatives": 2.0}}, "negatives is for the task detect"),
        ({"augment": {"overlap": [0.5]}}, "overlap is for the task detect"),
        ({"loss": {"cross_entropy": 0.5}}, "cross_entropy is for the task segment"),
    ],
)
def test_choices_of_another_task_are_refused_by_name(tmp_path, folders, sections, message):
    with pytest.raises(RecipeError, match=message):
        espy.train(of_classes(tmp_path / "r.toml", folders, **sections), folder=tmp_path / "run")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"loss": {"smoothing": 0.1}}, "smoothing is for the task segment or classify, this network's is detect"),
        ({"loss": {"class_weights": "frequency"}}, "class_weights is for the task segment or classify"),
        ({"augment": {"crop": [64, 96]}}, "crop .* a detector sees squares"),
    ],
)
def test_what_a_detector_does_not_heed_is_refused_by_name(tmp_path, things, sections, message):
    with pytest.raises(RecipeError, match=message):
        espy.train(of_boxes(tmp_path / "r.toml", things, **sections), folder=tmp_path / "run")


def test_weights_by_frequency_are_of_pictures(tmp_path):
    """Class k has k + 1 pictures: 1 / ln(1.1 + share), scaled to mean 1."""
    for kind in range(3):
        for k in range(kind + 1):
            for split in ("train", "val"):
                save(tmp_path / "set" / split / f"kind {kind}" / f"{k}.png", scene(40, 40, seed=10 * kind + k))
    path = of_classes(tmp_path / "r.toml", tmp_path / "set", loss={"class_weights": "frequency"})
    run = espy.train(path, folder=tmp_path / "run", epochs=1)
    raw = [1 / math.log(1.1 + (kind + 1) / 6) for kind in range(3)]
    kept = read_recipe(run.folder / "recipe.toml").loss.class_weights
    assert kept == pytest.approx([3 * value / sum(raw) for value in raw], abs=1e-5)


def test_a_set_of_another_task_is_refused(tmp_path, folders):
    path = recipe(tmp_path / "r.toml", folders, data={"set": f"imagefolder:{folders}"})
    with pytest.raises(DataError, match="imagefolder"):
        espy.train(path, folder=tmp_path / "run")


def test_a_detector_sees_squares(tmp_path, things):
    path = recipe(tmp_path / "r.toml", things, DETECTOR,
                  data={"set": f"yolo:{things}", "size": [64, 96], "multiple": 32})  # fmt: skip
    with pytest.raises(espy.errors.EspyError, match="square"):
        espy.train(path, folder=tmp_path / "run")


def test_the_log_has_one_line_an_epoch_with_the_tasks_figures(tmp_path, folders):
    run = espy.train(of_classes(tmp_path / "r.toml", folders), folder=tmp_path / "run")
    lines = [json.loads(line) for line in Path(run.folder, "metrics.jsonl").read_text("utf-8").splitlines()]
    assert lines == run.metrics
    assert all({"top1", "top5", "calibration_error", "class_accuracy", "accuracy"} <= line.keys() for line in lines)
