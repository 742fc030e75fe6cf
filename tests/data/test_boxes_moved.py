"""Boxes move with their pictures: what is painted in a box is found in the box that the view gives."""

import numpy as np
import pytest
from msgspec.structs import replace

from espy.data.augment import Augment, boxes_moved, geometry, overlapping, view
from espy.data.boxes import Boxes

STILL = Augment(scale=(1, 1), flip=0, brightness=0, contrast=0, saturation=0)
COLOURS = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)


def painted(corners, height=90, width=140):
    """A grey picture with boxes in clear colours, and the boxes."""
    image = np.full((height, width, 3), 90, np.uint8)
    for (x1, y1, x2, y2), colour in zip(corners, COLOURS, strict=False):
        image[y1:y2, x1:x2] = colour
    count = len(corners)
    return image, Boxes(np.array(corners, np.float32), np.arange(count), np.zeros(count, bool))


def seen_at(image, kind):
    """(x1, y1, x2, y2) around the pixels nearer to a box's colour than to any other."""
    near = np.abs(image.astype(int) - COLOURS[kind]).sum(2) < 120
    y, x = np.nonzero(near)
    return (x.min(), y.min(), x.max() + 1, y.max() + 1) if len(x) else None


@pytest.mark.parametrize("seed", range(12))
def test_the_box_is_around_what_is_seen_of_it(seed):
    image, boxes = painted([(10, 12, 40, 50), (70, 30, 120, 80)])
    choices = replace(STILL, scale=(0.7, 1.8), flip=0.5, stretch=1.3, crop=(64, 96))
    found, moved = view(image, boxes, (80, 120), choices, np.random.default_rng(seed))
    assert found.shape == (64, 96, 3)
    for corners, kind in zip(moved.corners, moved.classes, strict=True):
        assert np.allclose(corners, seen_at(found, kind), atol=1.6)  # edges are blurred over a pixel
    for kind in {0, 1} - set(moved.classes.tolist()):
        place = seen_at(found, kind)  # its middle lies outside, so at least half of it does
        assert place is None or place[0] == 0 or place[1] == 0 or place[2] == 96 or place[3] == 64


def test_a_turned_box_becomes_the_upright_one_around_it():
    image, boxes = painted([(50, 35, 90, 55)])
    choices = replace(STILL, rotate=40)
    for seed in range(6):
        found, moved = view(image, boxes, (90, 140), choices, np.random.default_rng(seed))
        assert np.allclose(moved.corners[0], seen_at(found, 0), atol=2)


def test_a_mirrored_box_keeps_left_before_right():
    _, boxes = painted([(10, 12, 40, 50)])
    to_source = geometry((90, 140), (90, 140), (90, 140), replace(STILL, flip=1), np.random.default_rng(0))
    moved = boxes_moved(boxes, to_source, (90, 140))
    assert np.allclose(moved.corners, [[100, 12, 130, 50]], atol=1e-4)


def test_boxes_whose_middle_is_cut_off_and_slivers_go_the_rest_is_cut_to_the_view():
    boxes = Boxes(
        np.array([[-30, 10, 20, 40], [60, 60, 130, 80], [50, 50, 50.5, 90], [90, 0, 120, 30]], np.float32),
        np.arange(4), np.array([False, True, False, False]),
    )  # fmt: skip
    moved = boxes_moved(boxes, np.array([[1.0, 0, 0], [0, 1, 0]]), (100, 100))
    assert moved.corners.tolist() == [
        [60, 60, 100, 80]
    ]  # 0's middle is left of it, 2 is half a pixel wide, 3's is right of it
    assert moved.classes.tolist() == [1]
    assert moved.crowd.tolist() == [True]


def test_a_picture_without_boxes_stays_one():
    none = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    choices = replace(STILL, scale=(0.5, 2), overlap=(0.5, 0.9))
    _, moved = view(np.zeros((40, 60, 3), np.uint8), none, (40, 60), choices, np.random.default_rng(0))
    assert len(moved) == 0
    assert moved.corners.shape == (0, 4)


@pytest.mark.parametrize("least", [0.1, 0.3, 0.5])
def test_views_overlap_a_box_as_much_as_they_should(least):
    _, boxes = painted([(40, 20, 100, 70)])
    source, size, crop = (90, 140), (90, 140), (60, 80)
    choices = replace(STILL, scale=(0.6, 3.0), crop=crop, overlap=(least,))
    drawn, kept = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        first = geometry(source, size, crop, choices, rng)
        for found, to_source in ((drawn, first), (kept, overlapping(first, boxes, source, size, crop, choices, rng))):
            (x1, y1), (x2, y2) = (to_source @ [x, y, 1] for x, y in ((0, 0), (80, 60)))
            shared = max(0, min(x2, 100) - max(x1, 40)) * max(0, min(y2, 70) - max(y1, 20))
            found.append(shared / ((x2 - x1) * (y2 - y1) + 60 * 50 - shared))
    assert min(kept) >= least - 1e-9
    assert min(drawn) < least
    unchanged = [k == pytest.approx(d) for d, k in zip(drawn, kept, strict=True)]
    assert unchanged == [d >= least for d in drawn]  # what overlaps enough is left as it was drawn


def test_a_class_stays_what_it_is():
    _, kind = view(np.zeros((40, 60, 3), np.uint8), 7, (32, 32), replace(STILL, scale=(1, 2)), np.random.default_rng(0))
    assert kind == 7
