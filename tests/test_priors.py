"""The detector's priors and the coding of boxes, against the formulas written out and each other."""

from math import exp, log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from espy.header import Preprocess
from espy.nn.deployed import Detecting
from espy.priors import IGNORED, PER_CELL, decode, encode, match, priors


def test_the_first_cell_of_a_map_is_the_text_written_out():
    """Networks 4, at 300: sizes 30, 77, 125, ...; the cell's centre, clipped to the picture."""
    found = priors(300)
    a, b = 30 / 300, sqrt(30 * 77) / 300
    shapes = [(a, a), (b, b), (a * sqrt(2), a / sqrt(2)), (a / sqrt(2), a * sqrt(2)), (a * sqrt(3), a / sqrt(3)),
              (a / sqrt(3), a * sqrt(3))]  # fmt: skip
    assert np.allclose(found[:PER_CELL], [(4 / 300, 4 / 300, w, h) for w, h in shapes], atol=1e-7)
    second_row = 38 * PER_CELL
    assert np.allclose(found[second_row, :2], (4 / 300, 12 / 300), atol=1e-7)
    assert np.allclose(found[PER_CELL, :2], (12 / 300, 4 / 300), atol=1e-7)
    assert np.allclose(found[-PER_CELL, :2], (0.5, 0.5))


def decoded(offsets, given):
    """Networks 4: centre p + 0.1·t·size, size p·exp(0.2·t), to corners."""
    centre = given[:, :2] + 0.1 * offsets[:, :2] * given[:, 2:]
    half = given[:, 2:] * np.exp(0.2 * offsets[:, 2:]) / 2
    return np.concatenate([centre - half, centre + half], 1)


@pytest.mark.parametrize("size", [32, 64, 96, 128, 160, 224, 256, 300, 320, 416, 512, 608, 1024])
def test_every_prior_lies_in_the_picture_and_there_are_six_a_cell(size):
    found = priors(size)
    cells = sum((-(-size // stride)) ** 2 for stride in (8, 16, 32, 64, 128)) + 1
    assert found.shape == (PER_CELL * cells, 4)
    assert found.dtype == np.float32
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert (found[:, 2:] > 0).all()


def test_an_offset_is_the_text_written_out():
    prior = np.array([[0.5, 0.4, 0.2, 0.1]])
    box = np.array([[0.45, 0.30, 0.75, 0.60]])  # centre (0.6, 0.45), size (0.3, 0.3)
    expected = [0.1 / 0.2 / 0.1, 0.05 / 0.1 / 0.1, log(0.3 / 0.2) / 0.2, log(0.3 / 0.1) / 0.2]
    assert np.allclose(encode(box, prior), [expected])
    x, w = 0.5 + 0.1 * 2.0 * 0.2, 0.2 * exp(0.2 * 1.5)
    assert np.allclose(decoded(np.array([[2.0, 0.0, 1.5, 0.0]]), prior)[0, [0, 2]], [x - w / 2, x + w / 2])


corner = st.floats(0, 0.98)


@given(
    st.lists(st.tuples(corner, corner, st.floats(0.01, 1), st.floats(0.01, 1)), min_size=1, max_size=8), st.integers()
)
def test_decoding_undoes_encoding(boxes, seed):
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes])
    given_priors = np.random.default_rng(abs(seed)).choice(priors(300), len(boxes))
    offsets = encode(corners, given_priors)
    assert np.allclose(decoded(offsets, given_priors), corners, atol=1e-5)
    assert np.allclose(decode(offsets, given_priors), corners, atol=1e-5)


def test_the_deployed_detector_reads_offsets_as_they_are_written():
    """Its boxes are in the network's pixels; its scores are those of kinds, without the background."""
    known = priors(64)
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.5, (len(known), 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.05, 0.5, (len(known), 2))], 1)

    class Network(torch.nn.Module):
        def forward(self, x):
            scores = torch.log(torch.tensor([0.5, 0.3, 0.2])).expand(len(x), len(known), 3)
            return scores, torch.from_numpy(encode(boxes, known)).float().expand(len(x), -1, -1)

    scores, found = Detecting(Network(), Preprocess((64, 64)))(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    assert np.allclose(found[1], 64 * boxes, atol=1e-3)
    assert torch.allclose(scores, torch.tensor([0.3, 0.2])[None, :, None].expand(2, 2, len(known)))


# What each prior is to learn


def iou(one, two):
    """With 1e-5 added to the denominator, as the text has it."""
    w = max(0.0, min(one[2], two[2]) - max(one[0], two[0]))
    h = max(0.0, min(one[3], two[3]) - max(one[1], two[1]))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, two)]
    return w * h / (sum(areas) - w * h + 1e-5)


def matched_by_loops(boxes, classes, places, threshold):
    """Networks 4, in its order: each prior its best object, then each object its best prior by force, later ones winning."""
    kinds, own = [0] * len(places), [None] * len(places)
    for p, place in enumerate(places):
        values = [iou(place, box) for box in boxes]
        own[p] = int(np.argmax(values))
        kinds[p] = classes[own[p]] + 1 if max(values) >= threshold else 0
    for b, box in enumerate(boxes):
        best = int(np.argmax([iou(place, box) for place in places]))
        own[best], kinds[best] = b, classes[b] + 1
    return kinds, own


@given(st.lists(st.tuples(corner, corner, st.floats(0.02, 0.6), st.floats(0.02, 0.6)), min_size=1, max_size=5),
       st.sampled_from([0.3, 0.45, 0.5]), st.integers(0, 10**6))  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_priors_learn_what_the_text_says(boxes, threshold, seed):
    rng = np.random.default_rng(seed)
    known = priors(64)[rng.permutation(len(priors(64)))[:120]]
    true = np.array([(x, y, min(1, x + w), min(1, y + h)) for x, y, w, h in boxes])
    classes = rng.integers(0, 4, len(true))
    found = match(true, classes, np.zeros(len(true), bool), known, threshold)
    places = [(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) for cx, cy, w, h in known.astype(np.float64)]
    for box in true:
        best = sorted((iou(place, box) for place in places), reverse=True)
        assume(best[0] - best[1] > 1e-5)  # of two that are alike any may be forced
    kinds, own = matched_by_loops(true, classes, places, threshold)
    values = [max(iou(place, box) for box in true) for place in places]
    for p, (kind, box) in enumerate(zip(kinds, own, strict=True)):
        if abs(values[p] - threshold) < 1e-4:
            continue  # float32 and float64 may part there
        assert found[p, 0] == kind
        if kind:
            assert np.allclose(decoded(found[p : p + 1, 1:], known[p : p + 1]), true[box], atol=1e-4)


def test_every_box_is_some_priors_whatever_the_overlap():
    tiny = np.array([[0.5, 0.5, 0.501, 0.501], [0.1, 0.1, 0.102, 0.9]])
    found = match(tiny, np.array([0, 1]), np.zeros(2, bool), priors(300), 0.45)
    assert (found[:, 0] > 0).sum() >= 2
    assert set(found[:, 0]) == {0, 1, 2}


def test_without_boxes_all_is_background():
    assert not match(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), priors(96), 0.45).any()


def test_a_crowd_is_neither_a_thing_nor_background():
    boxes = np.array([[0.0, 0.0, 0.5, 1.0], [0.6, 0.6, 0.9, 0.9]])
    known = priors(96)
    found = match(boxes, np.array([0, 1]), np.array([True, False]), known, 0.45)
    assert 1 not in found[:, 0]  # the crowd's own kind is learnt nowhere
    low, high = known[:, :2] - known[:, 2:] / 2, known[:, :2] + known[:, 2:] / 2
    inside = (low >= 0).all(1) & (high <= [0.5, 1]).all(1)
    assert inside.sum() > 100
    assert (found[inside, 0] == IGNORED).all()
    right = known[:, 0] - known[:, 2] / 2 >= 0.5
    assert IGNORED not in found[right, 0]
    assert 2 in found[:, 0]
