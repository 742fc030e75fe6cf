"""A first recipe for a set: what is found by looking, and that the choices follow from it."""

import math
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espy import spec as specs
from espy.data.check import Report, check
from espy.data.findings import Fault, gather
from espy.data.masks import Coding
from espy.data.sets import Classified, Dataset, Item, Masked
from espy.errors import DataError, SpecError
from espy.labels import CAMVID, CITYSCAPES, VOC, Label
from espy.learn.films import films, hold_out_pattern
from espy.learn.recipe import SECTIONS, from_dict, meaning, read_recipe, to_dict
from espy.learn.suggest import commands, pick_splits, sided, suggest
from espy.learn.suggest import hours as hours_of
from espy.learn.tasks import MOST_PIXELS, network_size
from samples import SHARED, attempt, needs
from trees import counts, folder, mask, save

PHOTOS = "folder:photos/"
DATA = SHARED / "data"
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def items(names, split="train"):
    return tuple(
        Masked(Path(f"images/{name}.jpg"), split, Path(f"masks/{name}.png"), Coding.plain(2)) for name in names
    )


def report(
    classes=("background", "disc"), pixels=None, sizes=None, splits=None, names=None, findings=(), seeded=False
):  # fmt: skip
    """What a check would find; 240 + 60 pictures of 384 x 640 and two classes unless told otherwise."""
    splits = splits or {"train": 240, "val": 60}
    there = names or sum((items([split], split) * pairs for split, pairs in splits.items()), ())
    labels = tuple(Label(name, (0, 0, 0)) for name in classes)
    data = Dataset("folder", Path("photos"), labels, there, seeded=seeded)
    pixels = pixels or dict.fromkeys(range(len(classes)), 500)
    return Report(data, pixels, sizes or {(384, 640): len(there)}, findings)


def recipe(where=PHOTOS, network="espnetv2", **found):
    return suggest(report(**found), where, network).recipe


def said(**found):
    """All sentences of a suggestion, one line each."""
    suggestion = suggest(report(**found), PHOTOS)
    return "\n".join(suggestion.found + suggestion.chosen)


def of_pictures(pictures=(150, 150), sizes=None, splits=None, names=None, findings=()):
    """What a check would find of pictures in folders; 240 + 60 of 256 x 256 and two classes unless told otherwise."""
    splits = splits or {"train": 240, "val": 60}
    there = sum(((Classified(Path("a.jpg"), split, 0),) * many for split, many in splits.items()), ())
    labels = tuple(Label(name, (0, 0, 0)) for name in names or [f"kind {k}" for k in range(len(pictures))])
    data = Dataset("imagefolder", Path("animals"), labels, there, task="classify")
    return Report(data, {}, sizes or {(256, 256): len(there)}, findings, tuple(pictures))


def of_boxes(boxes=(900, 600), side=0.2, sizes=None, splits=None, names=None, findings=()):
    """The same of pictures with boxes, 480 x 640, the median box's shorter side a fifth of its picture's."""
    splits = splits or {"train": 240, "val": 60}
    there = sum(((Item(Path("a.jpg"), split),) * many for split, many in splits.items()), ())
    labels = tuple(Label(name, (0, 0, 0)) for name in names or [f"kind {k}" for k in range(len(boxes))])
    data = Dataset("coco", Path("cells"), labels, there, task="detect")
    return Report(data, {}, sizes or {(480, 640): len(there)}, findings, tuple(boxes), tuple(boxes), side)


def made(report):
    """The recipe for what a check found."""
    return suggest(report, PHOTOS).recipe


def words(report):
    """All sentences of a suggestion for it, one line each."""
    suggestion = suggest(report, PHOTOS)
    return "\n".join(suggestion.found + suggestion.chosen)


class TestSize:
    SIDES = st.integers(1, 6000)

    @given(height=SIDES, width=SIDES)
    def test_sides_are_multiples_of_32_within_the_picture_and_the_limit(self, height, width):
        high, wide = network_size(height, width, MOST_PIXELS)
        assert high % 32 == wide % 32 == 0
        assert high * wide <= MOST_PIXELS
        assert 32 <= high <= max(32, height + 16)
        assert 32 <= wide <= max(32, width + 16)

    @given(height=st.integers(400, 6000), ratio=st.floats(0.4, 2.5))  # below, rounding to 32 takes more than the share
    def test_the_shape_is_kept_and_the_limit_is_used(self, height, ratio):
        width = round(height * ratio)
        high, wide = network_size(height, width, MOST_PIXELS)
        assert abs(wide - high * width / height) <= 16 + 16 * width / height  # each side is rounded
        assert high * wide >= 0.75 * min(MOST_PIXELS, height * width)

    @pytest.mark.parametrize(
        ("picture", "seen"),
        [
            ((360, 480), (352, 480)), ((1024, 2048), (512, 1024)), ((3000, 4000), (608, 800)), ((4000, 3000), (800, 608)),
            ((96, 128), (96, 128)), ((10, 10), (32, 32)), ((64, 90_000), (64, 1024)),
        ],
    )  # fmt: skip
    def test_of_pictures_that_people_have(self, picture, seen):
        assert recipe(sizes={picture: 300}).data.size == seen

    def test_it_follows_the_median_picture(self):
        assert recipe(sizes={(100, 200): 1, (480, 640): 198, (6000, 200): 1}).data.size == (480, 640)

    def test_larger_pictures_are_trained_on_in_parts_that_show_all_at_the_lowest_scale(self):
        large, small = recipe(sizes={(1024, 2048): 300}), recipe(sizes={(384, 640): 300})
        crop, size = large.augment.crop, large.data.size
        assert crop[0] * crop[1] <= 384 * 640
        assert abs(crop[1] / crop[0] - 2) < 0.15
        assert large.augment.scale[0] * math.sqrt(math.prod(size)) <= math.sqrt(math.prod(crop))
        assert small.augment.crop is None

    def test_it_is_said_when_small_things_vanish_and_when_shapes_differ(self):
        assert "times as high and wide" in said(sizes={(3000, 4000): 300})
        assert "times as high and wide" not in said(sizes={(720, 1280): 300})
        assert "width / height goes from 0.75 to 1.33" in said(sizes={(640, 480): 150, (480, 640): 150})
        assert "stretched" not in said(sizes={(480, 640): 150, (500, 640): 150})


class TestClasses:
    def test_their_shares_are_those_of_the_labelled_pixels(self, tmp_path):
        truth = folder(tmp_path, pairs=4)
        times = counts(truth.values())
        words = "\n".join(suggest(check(f"folder:{tmp_path}"), PHOTOS).found)
        labelled = sum(times[value] for value in (0, 1, 2))
        for value, name in enumerate(("background", "disc", "box")):
            assert f"{name} {100 * times[value] / labelled:.2f} %" in words
        assert f"{100 * times[255] / (labelled + times[255]):.2f} % of all pixels are void" in words

    @pytest.mark.parametrize(
        ("pixels", "weights"),
        [
            ({0: 9800, 1: 200}, "none"), ({0: 9950, 1: 50}, "frequency"),
            ({0: 9800, 1: 200, 255: 90_000}, "none"),  # void is no pixel of a class
            ({0: 10_000}, "none"),  # a class that is never seen cannot be weighted
        ],
    )  # fmt: skip
    def test_they_are_weighted_where_one_has_less_than_a_hundredth(self, pixels, weights):
        assert recipe(pixels=pixels).loss.class_weights == weights

    @pytest.mark.parametrize(("classes", "flip"), [(("left_hand", "Right hand"), 0.0), (("bright", "lefty"), 0.5)])
    def test_pictures_are_not_mirrored_where_classes_tell_left_from_right(self, classes, flip):
        assert recipe(classes=classes).augment.flip == flip
        assert ("not mirrored" in said(classes=classes)) == (flip == 0) == bool(sided(classes))

    def test_many_are_not_all_listed_but_the_rarest_is(self):
        classes = [f"kind {k}," for k in range(60)]
        words = said(classes=classes, pixels={k: 10 * (60 - k) for k in range(60)})
        (line,) = [line for line in words.splitlines() if line.startswith("60 classes")]
        assert line.count("kind") == 20
        assert classes[0] in line
        assert classes[59] in line


class TestStart:
    def test_the_decoder_is_as_wide_as_the_weights_have_it(self):
        """What the network would have by itself follows from the number of classes: min(classes // 2, 16)."""
        for classes in (["a", "b"], [f"kind {k}" for k in range(60)]):
            chosen = recipe(classes=classes)
            assert chosen.network == {"network": "espnetv2", "width": 2.0, "projection": 10}
            assert chosen.train.init == "street"

    @pytest.mark.parametrize(
        ("labels", "init", "mapping"),
        [(CITYSCAPES, "street", ""), (CAMVID, "street", "cityscapes-camvid"), (VOC, "objects", "")],
        ids=["cityscapes", "camvid", "voc"],
    )
    def test_a_published_sets_classes_are_all_known(self, labels, init, mapping):
        classes = [label.name.upper() for label in labels if not label.ignored]
        chosen = recipe(classes=classes).train
        assert (chosen.init, chosen.init_mapping) == (init, mapping)
        assert "afresh" not in said(classes=classes)

    def test_what_is_said_to_be_known_is_what_a_run_takes(self):
        from espy import build
        from espy.learn.start import start

        classes = ("sky", "drone", "Traffic_Light", "background")
        labels = tuple(Label(name, (0, 0, 0)) for name in classes)
        taken = start(build(**recipe(classes=classes).network, classes=4, seed=0), labels, "street")
        known = [name for name in classes if taken.classes[name]]
        assert known == ["sky", "Traffic_Light", "background"]
        assert f"by name: {', '.join(known)}; afresh: drone" in said(classes=classes)
        assert taken.fresh == {}

    def test_its_terms_go_with_it(self):
        assert "non-commercial" in recipe().card.terms
        assert "non-commercial" in said()

    @pytest.mark.parametrize("network", sorted(specs.NETWORKS))
    def test_the_network_can_be_chosen(self, network):
        chosen = recipe(network=network)
        assert chosen.network["network"] == network
        assert bool(chosen.train.init) == (network == "espnetv2")
        assert chosen.data.multiple == (1 if network == "espnet" else 32)


class TestOtherTasks:
    @pytest.mark.parametrize(("report", "task"), [(of_pictures(), "classify"), (of_boxes(), "detect")])
    def test_they_take_the_encoder_of_objects(self, report, task):
        from espy import build
        from espy.learn.start import start

        recipe = made(report)
        assert recipe.network == {"network": "espnetv2", "task": task, "width": 2.0}
        assert (recipe.train.init, recipe.train.init_mapping, recipe.data.multiple) == ("objects", "", 32)
        assert "Pascal VOC" in recipe.card.terms
        assert "its encoder started from the bundled objects; afresh: the encoder's last level and" in words(report)
        network = build(**recipe.network, classes=2, seed=0)
        taken = start(network, report.data.labels, recipe.train.init)
        encoder = [name for name in network.state_dict() if name.startswith("encoder.") and "num_batches" not in name]
        fresh = [name for name in encoder if name not in taken.whole]
        assert len(taken.whole) > 0.7 * len(encoder)
        assert all("5" in name.split(".")[1] for name in fresh)

    @pytest.mark.parametrize("network", ["espnet", "espnetv2_first"])
    @pytest.mark.parametrize("report", [of_pictures(), of_boxes()], ids=["classify", "detect"])
    def test_networks_that_segment_alone_are_refused(self, report, network):
        _, message = attempt(SpecError, suggest, report, PHOTOS, network)
        assert message.startswith(f"{network}: task '{report.data.task}' is unknown")

    @pytest.mark.parametrize(("make", "batch"), [(of_pictures, 32), (of_boxes, 8)])
    @pytest.mark.parametrize("pictures", [2, 7, 8, 33, 205, 9469])
    def test_a_run_has_as_many_steps_as_with_masks(self, make, batch, pictures):
        train = made(make(splits={"train": pictures, "val": 20})).train
        epoch = max(1, pictures // batch)
        assert train.batch == min(batch, pictures)
        assert abs(train.epochs * epoch - 7500) <= epoch / 2

    @pytest.mark.parametrize("make", [of_pictures, of_boxes])
    def test_pictures_are_not_mirrored_where_classes_tell_left_from_right(self, make):
        assert made(make(names=("left turn", "right turn"))).augment.flip == 0
        assert made(make()).augment.flip == 0.5

    @pytest.mark.parametrize(
        ("make", "truth"), [(of_pictures, "in folders of their classes"), (of_boxes, "with boxes")]
    )
    def test_what_was_found_is_said(self, make, truth):
        found = suggest(make(splits={"train": 9}), PHOTOS).found
        assert found[0] == f"9 pictures {truth}: train 9"
        assert found[1].startswith("no split to validate on")
        assert found[2].startswith("9 pictures to train on: fewer than 50")

    @pytest.mark.parametrize("make", [of_pictures, of_boxes])
    def test_classes_of_few_pictures_are_named(self, make):
        there = words(make((200, 9, 10, 0, 1), names=["cat", "dog", "cow", "yak", "elk"]))
        assert "fewer than 10, too few to learn much from: dog 9, elk 1; add some" in there
        assert "too few" not in words(make((200, 10)))

    @pytest.mark.parametrize("make", [of_pictures, of_boxes])
    def test_hours_follow_the_pixels_and_are_by_the_speed_that_is_said(self, make):
        report = make(splits={"train": 240})
        suggestion = suggest(report, PHOTOS)
        run = suggestion.recipe.train
        (speed,) = re.findall(r"by ([\d.]+) pictures of height", suggestion.chosen[-1])
        assert suggestion.hours == pytest.approx(
            run.epochs * (240 // run.batch) * run.batch / float(speed) / 3600, rel=0.05
        )
        assert suggest(make(splits={"train": 240, "val": 100}), PHOTOS).hours > suggestion.hours


class TestClassify:
    @pytest.mark.parametrize(
        ("sizes", "side"),
        [
            ({(128, 128): 9}, 128), ({(375, 500): 9}, 224), ({(500, 150): 9}, 128), ({(96, 2000): 9}, 96),
            ({(28, 28): 9}, 64), ({(1, 4000): 9}, 64), ({(100, 300): 4, (200, 170): 5}, 160),
        ],
    )  # fmt: skip
    def test_the_size_is_a_square_of_the_median_short_side(self, sizes, side):
        assert made(of_pictures(sizes=sizes)).data.size == (side, side)

    def test_pictures_vary_in_scale_and_shape_and_labels_are_smoothed(self):
        recipe = made(of_pictures())
        assert (recipe.augment.scale, recipe.augment.stretch, recipe.loss.smoothing) == ((1.0, 1.7), 1.3, 0.1)
        assert recipe.augment.crop is None
        there = words(of_pictures())
        assert "sees the middle of a picture at height 224, width 224" in there
        assert "scaled by 1 to 1.7 and stretched by up to 1.3" in there
        assert "smoothed by 0.1" in there

    @pytest.mark.parametrize(
        ("pictures", "weights"),
        [
            ((150, 150), "none"),
            ((700, 100), "none"),
            ((710, 100), "frequency"),
            ((100,) * 200, "none"),
            ((90, 0, 90), "none"),
        ],
    )
    def test_classes_are_weighted_where_one_has_less_than_a_quarter_of_an_even_share(self, pictures, weights):
        assert made(of_pictures(pictures)).loss.class_weights == weights

    def test_the_reason_for_weights_is_said(self):
        assert "weighted by frequency, as kind 1 has 1.00 % of the pictures" in words(of_pictures((990, 10)))
        assert "not weighted, as each has 12.5 % of the pictures or more" in words(of_pictures())

    def test_it_is_said_when_ends_of_pictures_are_cut_off(self):
        assert "long sides are up to 2.00 times the short ones" in words(
            of_pictures(sizes={(100, 100): 9, (300, 150): 1})
        )
        assert "long sides" not in words(of_pictures(sizes={(100, 110): 9}))

    @pytest.mark.parametrize("pictures", [(30,), (30, 0)])
    def test_one_class_is_refused(self, pictures):
        _, message = attempt(DataError, suggest, of_pictures(pictures), "imagefolder:animals")
        assert message.startswith("imagefolder:animals: has pictures of one class, so there is nothing to tell apart")


class TestDetect:
    @pytest.mark.parametrize(
        ("picture", "box", "side"),
        [
            ((480, 640), 0.2, 320), ((1080, 1920), 0.05, 320), ((1080, 1920), 0.04, 416), ((1080, 1920), 0.001, 512),
            ((200, 400), 0.01, 384), ((100, 100), 0.01, 320),
        ],
    )  # fmt: skip
    def test_the_size_is_a_square_that_grows_for_small_boxes_in_large_pictures(self, picture, box, side):
        """0.05 of 320 is 16 pixels; 0.04 of 416 is 16.6, of 384 it would be 15.4."""
        assert made(of_boxes(sizes={picture: 9}, side=box)).data.size == (side, side)

    @pytest.mark.parametrize(
        ("box", "seen"),
        [
            (0.2, "64 of 320 pixels"), (0.04, "17 of 416 pixels; of 320 pixels, which are usual, it would be 13"),
            (0.02, "10 of 512 pixels; of 320 pixels, which are usual, it would be 6; below 16 things are hard to find: cut "
                   "pictures, with their boxes, into parts"),
        ],
        ids=["large", "small", "tiny"],
    )  # fmt: skip
    def test_it_is_said_how_large_boxes_are_seen(self, box, seen):
        found = suggest(of_boxes(sizes={(1080, 1920): 9}, side=box), PHOTOS).found
        assert f"the median box's shorter side is {100 * box:.1f} % of its picture's, {seen}" in found

    def test_pictures_vary_as_in_the_recipe_for_bccd(self):
        ours, theirs = made(of_boxes()).augment, read_recipe(RECIPES / "bccd.toml").augment
        assert ours == theirs
        there = words(of_boxes())
        assert (
            "scaled by 0.8 to 1.8 and stretched by up to 1.2, each part overlapping a box by at least 0, 0.3 or 0.5"
            in there
        )

    def test_one_kind_of_thing_is_enough(self):
        assert "1 class, of the boxes: kind 0 100.00 %" in words(of_boxes((50,)))

    def test_classes_are_never_weighted(self):
        assert made(of_boxes((10_000, 1))).loss.class_weights == "none"
        assert "weighted" not in words(of_boxes((10_000, 1)))

    def test_crowds_alone_are_refused(self):
        _, message = attempt(DataError, suggest, of_boxes((3,), side=0.0), PHOTOS)
        assert "no box to learn" in message


def fewer(root, found, pictures):
    """Some of a set's pictures in a set of the same layout, as links."""
    for path in found:
        for one in sorted(path.iterdir())[:pictures]:
            link = root / path.relative_to(path.parents[1]) / one.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(one)
    return root


class TestPublishedSets:
    """What is suggested for them is what a run takes."""

    @staticmethod
    def resolved(where, tmp_path):
        from espy.learn.loop import resolve
        from espy.learn.sets import open_sets

        file = tmp_path / "my.toml"
        file.write_text(suggest(check(where), where).to_toml(file), encoding="utf-8")
        recipe = read_recipe(file)
        return resolve(recipe, open_sets(recipe.data, recipe.network["task"]))

    @needs(DATA / "imagenette128")
    def test_imagenette(self, tmp_path):
        source = DATA / "imagenette128"
        root = fewer(tmp_path / "some", [*(source / "train").iterdir(), *(source / "val").iterdir()], 12)
        recipe = self.resolved(f"imagefolder:{root}", tmp_path)
        assert (recipe.data.size, recipe.train.batch, recipe.network["classes"]) == ((128, 128), 32, 10)
        assert recipe.train.epochs == 2500  # 120 pictures: 3 steps an epoch

    @needs(DATA / "bccd")
    def test_bccd(self, tmp_path):
        """640 x 480; red cells, which are most, are about a hundred pixels."""
        recipe = self.resolved(f"voc:{DATA / 'bccd'}", tmp_path)
        assert (recipe.data.size, recipe.train.batch, recipe.network["classes"]) == ((320, 320), 8, 3)
        assert recipe.train.epochs == 300  # 205 pictures: 25 steps an epoch

    @needs(DATA / "coco128")
    def test_coco128(self, tmp_path):
        recipe = self.resolved(f"coco:{DATA / 'coco128'}", tmp_path)
        assert (recipe.data.size, recipe.network["classes"]) == ((320, 320), 80)
        assert recipe.train.epochs == 1250  # 51 of the 64 pictures: 6 steps an epoch


class TestRun:
    @pytest.mark.parametrize("pictures", [8, 9, 100, 367, 5000, 59_000])
    def test_it_sees_60000_pictures_whatever_the_set(self, pictures):
        train = recipe(splits={"train": pictures, "val": 20}).train
        epoch = pictures // 8 * 8  # whole batches
        assert abs(train.epochs * epoch - 60_000) <= epoch / 2
        assert train.batch == 8

    def test_it_sees_all_of_a_larger_set_once(self):
        assert recipe(splits={"train": 200_000}).train.epochs == 1

    @pytest.mark.parametrize("pictures", range(1, 8))
    def test_a_batch_is_no_more_than_there_are_and_the_steps_no_more_than_of_other_sets(self, pictures):
        train = recipe(splits={"train": pictures}).train
        assert (train.batch, train.epochs) == (pictures, 7500)

    def test_300_pictures_take_a_night_on_two_cores(self):
        """By the training speed alone, 2 crops of 384 x 640 a second, 60,000 of them are 8.3 h."""
        suggestion = suggest(report(sizes={(1080, 1800): 300}), PHOTOS)
        assert suggestion.recipe.augment.crop == (384, 640)
        assert 8.3 < suggestion.hours < 10
        assert "about 9 h on two cores" in suggestion.chosen[-1]
        assert "18 h on two that do not" in suggestion.chosen[-1]

    def test_hours_follow_the_pixels_and_the_steps(self):
        splits = {"train": 240}
        whole, half = (hours_of(recipe(sizes={size: 300}, splits=splits), splits) for size in ((384, 640), (384, 320)))
        steps = 7500 * 0.07 / 3600
        assert whole - steps == pytest.approx(2 * (half - steps))
        assert whole == pytest.approx(60_000 / 2 / 3600 + steps)

    def test_it_looks_about_fifty_times(self):
        for pictures in (10, 240, 3000):
            chosen = recipe(splits={"train": pictures, "val": 60})
            assert 20 <= chosen.train.epochs / chosen.validate.every <= 75


class TestSplits:
    @pytest.mark.parametrize(
        ("splits", "picked"),
        [
            (["train", "val", "test"], ("train", "val")), (["training", "validation"], ("training", "validation")),
            (["trainval"], ("trainval", "")), (["test", "train"], ("train", "")), (["val"], ("val", "")), (["a"], ("a", "")),
        ],
    )  # fmt: skip
    def test_are_told_by_their_names(self, splits, picked):
        assert pick_splits(splits) == picked

    def test_drawn_by_a_hash_are_said_to_be(self, tmp_path):
        folder(tmp_path / "one")
        for split in ("train", "val"):
            folder(tmp_path / "two" / split)
        one, two = (suggest(check(f"folder:{tmp_path / name}"), PHOTOS).found[0] for name in ("one", "two"))
        assert one.startswith("4 pictures with masks: train 3, val 1; ")
        assert "hash of the names" in one
        assert two == "8 pictures with masks: train 4, val 4"

    def test_without_one_to_validate_on_it_is_said_and_evaluated_where_it_trained(self):
        chosen = recipe(splits={"train": 9})
        assert chosen.data.validate == ""
        assert "no split to validate on" in said(splits={"train": 9})
        assert commands(chosen, Path("my.toml"))[1].endswith("--split train")


class TestFilms:
    def test_are_names_of_one_prefix_numbered_evenly(self):
        film = [f"drive_{k:06}" for k in range(30, 900, 30)]
        stills = [f"photo_{k}" for k in (3, 14, 15, 92, 653, 5897, 9323, 84626, 433832, 795028)]
        few = [f"few_{k}" for k in range(7)]
        (found,) = films(items([*film, *stills, *few, "cover"]))
        assert (found.prefix, found.first, found.last, found.pictures) == ("drive_", film[0], film[-1], 29)

    def test_an_ending_that_all_names_share_is_no_number(self):
        names = [f"{town}_{k:06}_leftImg8bit" for town, k in product(("aachen", "bonn"), range(10, 200, 10))]
        assert [(film.prefix, film.pictures) for film in films(items(names))] == [("aachen_", 19), ("bonn_", 19)]

    def test_a_missing_frame_here_and_there_makes_no_difference(self):
        names = [f"f{k}" for k in range(40) if k not in (3, 17, 18, 30)]
        assert [film.pictures for film in films(items(names))] == [36]

    def test_names_without_numbers_are_none(self):
        assert films(items(["a", "b", "cover"])) == []

    def test_in_training_and_validation_are_named_with_what_helps(self):
        """Three films, one in both splits; of train's 60 pictures a holds 32, b 16, c 12: c is a fifth."""
        train = [f"{film}{k}" for film, pictures in (("a", 32), ("b", 16), ("c", 12)) for k in range(pictures)]
        words = said(names=items(train) + items([f"b{k}" for k in range(16, 40)], "val"))
        assert "names run on: b0 to b39 (40 pictures) and 2 more such rows" in words
        assert 'hold_out = ["c*"] in [data]' in words

    def test_that_lie_in_one_split_each_need_no_word(self):
        there = items([f"a{k}" for k in range(30)]) + items([f"b{k}" for k in range(30)], "val")
        assert "names run on" not in said(names=there)

    def test_the_only_one_has_to_be_cut(self):
        there = items([f"a{k}" for k in range(30)]) + items([f"a{k}" for k in range(30, 40)], "val")
        assert "a split of its own by folders" in said(names=there)

    def test_a_pattern_holds_what_it_says_and_at_most_half(self):
        names = [f"[x]{k}" for k in range(8)] + [f"y{k}" for k in range(24)]
        pattern = hold_out_pattern(films(items(names)), [f"{name}.jpg" for name in names])
        assert pattern == "[[]x]*"
        assert hold_out_pattern(films(items(names[8:])), [f"{name}.jpg" for name in names[8:]]) == ""


class TestFile:
    def test_it_is_the_recipe_with_every_field_and_its_meaning(self, tmp_path):
        suggestion = suggest(report(), PHOTOS)
        file = tmp_path / "my.toml"
        file.write_text(suggestion.to_toml(file), encoding="utf-8")
        assert read_recipe(file) == suggestion.recipe
        text = file.read_text(encoding="utf-8")
        for section, kind in SECTIONS.items():
            for field, words in meaning(kind).items():
                assert words, f"[{section}] {field} has no meaning"
                assert any(
                    line.startswith((f"{field} = ", f"# {field}: ")) and line.endswith(words)
                    for line in text.splitlines()
                )

    def test_it_opens_with_what_to_run_the_hours_and_what_was_found(self):
        suggestion = suggest(report(), PHOTOS)
        head = suggestion.to_toml(Path("sets/my.toml")).partition("[network]")[0]
        lines = [line.removeprefix("#").strip() for line in head.splitlines()]
        assert lines[2:5] == [
            "espy train sets/my.toml", "espy eval runs/my/best.safetensors folder:photos/",
            "espy export runs/my/best.safetensors --to onnx -o my.onnx",
        ]  # fmt: skip
        told = " ".join(lines)
        for sentence in suggestion.found + suggestion.chosen:
            assert sentence in told
        assert all(line.startswith("#") and len(line) <= 132 for line in head.strip().splitlines())

    @pytest.mark.parametrize("name", ["my photos", 'a"b\\c', "ü # [x]", "a\tb"])
    def test_names_of_any_kind_stay_what_they_are(self, name):
        suggestion = suggest(report(classes=(name, "b]\n")), f"folder:{name}")
        text = suggestion.to_toml(Path(f"{name}.toml"))
        assert from_dict(tomllib.loads(text)) == suggestion.recipe
        assert suggestion.recipe.data.set == f"folder:{name}"
        assert shlex.split(commands(suggestion.recipe, Path(f"{name}.toml"))[0]) == ["espy", "train", f"{name}.toml"]

    def test_it_holds_nothing_that_json_and_toml_cannot(self):
        assert from_dict(to_dict(recipe())) == recipe()


class TestRefusals:
    @pytest.mark.parametrize(
        ("found", "says"),
        [
            ({"classes": ("all",)}, "one class"), ({"pixels": {255: 100}}, "every pixel is void"),
            ({"findings": gather([(Fault("unreadable", "cut", "replace it"), "a.png")])}, "faults"),
        ],
    )  # fmt: skip
    def test_a_set_that_cannot_be_trained_on_is_named_with_the_reason(self, found, says):
        _, message = attempt(DataError, suggest, report(**found), PHOTOS)
        assert message.startswith(PHOTOS)
        assert says in message

    def test_a_name_that_is_no_unicode_is_refused(self):
        _, message = attempt(DataError, suggest, report(), "folder:a\udcff")
        assert "rename" in message


def test_warnings_of_the_check_are_told(tmp_path):
    folder(tmp_path)
    save(tmp_path / "masks" / "p1.png", np.full(mask().shape, 255, np.uint8))
    assert any(line.startswith("warning: masks/p1.png") for line in suggest(check(f"folder:{tmp_path}"), PHOTOS).found)


def test_suggesting_needs_no_torch():
    code = "import sys, espy.learn.suggest, espy.cli.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
