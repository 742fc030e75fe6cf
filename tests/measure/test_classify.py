"""Metrics of classification against loops over pictures, hand-made bins, and torchmetrics."""

import importlib.util
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from espy.errors import ModelError
from espy.measure.classify import BINS, calibration_error, scores

QUICK = settings(deadline=None, database=None, max_examples=100)


@st.composite
def cases(draw):
    """Probabilities [N, C] of few different values, so that many are equal, and truth [N]."""
    classes, pictures = draw(st.integers(1, 8)), draw(st.integers(1, 12))
    rows = draw(arrays(np.int64, (pictures, classes), elements=st.integers(0, 4)))
    rows[:, 0] += rows.sum(1) == 0
    truth = draw(arrays(np.int64, pictures, elements=st.integers(0, classes - 1)))
    return rows / rows.sum(1, keepdims=True), truth


def ranked(row):
    """The classes, highest probability first, of equal ones the lower index first."""
    return sorted(range(len(row)), key=lambda k: (-row[k], k))


def softmaxes(seed, pictures, classes, sharpness):
    rng = np.random.default_rng(seed)
    values = np.exp(sharpness * rng.normal(size=(pictures, classes)))
    probabilities = (values / values.sum(1, keepdims=True)).astype(np.float32)
    truth = np.where(rng.random(pictures) < 0.6, probabilities.argmax(1), rng.integers(0, classes, pictures))
    return probabilities, truth


@QUICK
@given(cases())
def test_scores_are_those_of_loops_over_pictures(case):
    probabilities, truth = case
    found = scores(probabilities, truth)
    pictures, classes = probabilities.shape
    order = [ranked(row) for row in probabilities]
    assert found.top1 == sum(o[0] == t for o, t in zip(order, truth, strict=True)) / pictures
    assert found.top5 == sum(t in o[:5] for o, t in zip(order, truth, strict=True)) / pictures
    shares = []
    for k in range(classes):
        of_class = [o[0] for o, t in zip(order, truth, strict=True) if t == k]
        for p in range(classes):
            assert found.matrix[k, p] == of_class.count(p)
        if of_class:
            shares.append(of_class.count(k) / len(of_class))
            assert found.accuracy[k] == shares[-1]
        else:
            assert math.isnan(found.accuracy[k])
    assert math.isclose(found.class_accuracy, sum(shares) / len(shares))
    assert found.matrix.dtype == np.int64


@QUICK
@given(cases())
def test_the_calibration_error_is_that_of_a_loop_over_bins(case):
    probabilities, truth = case
    error = 0.0
    for m in range(1, BINS + 1):
        inside = [
            (max(row), ranked(row)[0] == t)
            for row, t in zip(probabilities, truth, strict=True)
            if (m - 1) / BINS < max(row) <= m / BINS
        ]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            error += abs(confidence - accuracy) * len(inside) / len(truth)
    assert math.isclose(scores(probabilities, truth).calibration_error, error, abs_tol=1e-12)


@pytest.mark.skipif(importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is not installed")
@pytest.mark.parametrize(("classes", "sharpness"), [(3, 1), (5, 3), (40, 4)])
def test_scores_are_those_of_torchmetrics(classes, sharpness):
    import torch
    from torchmetrics.classification import (
        MulticlassAccuracy,
        MulticlassCalibrationError,
        MulticlassConfusionMatrix,
    )

    pair = softmaxes(classes, 3000, classes, sharpness)
    found = scores(*pair)
    for value, theirs in (
        (found.top1, MulticlassAccuracy(classes, top_k=1, average="micro")),
        (found.top5, MulticlassAccuracy(classes, top_k=min(5, classes), average="micro")),
        (found.class_accuracy, MulticlassAccuracy(classes, average="macro")),
        (found.accuracy, MulticlassAccuracy(classes, average="none")),
        (found.calibration_error, MulticlassCalibrationError(classes, n_bins=15, norm="l1")),
        (found.matrix, MulticlassConfusionMatrix(classes)),
    ):
        assert np.allclose(value, theirs(*map(torch.from_numpy, pair)), rtol=0, atol=1e-6), theirs


def test_of_equal_probabilities_the_lower_class_comes_first():
    everywhere = np.full((10, 10), 0.1)
    found = scores(everywhere, np.arange(10))
    assert found.top1 == 0.1
    assert found.top5 == 0.5
    assert found.matrix[:, 0].tolist() == [1] * 10


def test_with_up_to_five_classes_the_truth_is_always_among_the_top_five():
    probabilities, truth = softmaxes(0, 50, 5, 2)
    assert scores(probabilities, truth).top5 == 1 > scores(probabilities, truth).top1


class TestCalibration:
    @pytest.mark.parametrize(("inside", "edge"), [(0.96, 1.0), (0.3, 5 / 15), (0.05, 1 / 15)])
    def test_a_bin_holds_its_upper_edge(self, inside, edge):
        """A right answer and a wrong one even each other out where they share a bin, and not where they do not."""
        together, apart = abs(inside + edge - 1) / 2, (abs(inside - 1) + edge) / 2
        assert together < apart - 0.01
        assert math.isclose(calibration_error(np.array([inside, edge]), np.array([True, False])), together)

    def test_it_is_none_where_confidence_is_the_share_of_right_answers(self):
        confidence = np.repeat([0.75, 0.5], 4)
        right = np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
        assert calibration_error(confidence, right) == 0
        assert math.isclose(calibration_error(confidence, ~right), 0.25)

    def test_a_softmax_that_rounds_to_a_little_above_one_is_full_confidence(self):
        found = scores(np.array([[1.0005, 0], [1, 0]], np.float16), np.array([0, 0]))
        assert (found.top1, round(found.calibration_error, 3)) == (1, 0)


class TestRefused:
    @pytest.mark.parametrize(("value", "says"), [(-2.0, "from -2 to"), (np.nan, "nan"), (7.0, "to 7")])
    def test_what_is_no_probability_is_refused_with_its_picture(self, value, says):
        probabilities = np.full((4, 2), 0.5)
        probabilities[2, 1] = value
        with pytest.raises(ModelError, match=f"picture 2 has probabilities .*{says}.*softmax"):
            scores(probabilities, np.zeros(4, np.int64))

    @pytest.mark.parametrize("truth", [[0, 1], [[0], [1], [0]], [0, 1, 2], [0, -1, 1]])
    def test_a_truth_that_does_not_belong_to_the_probabilities_is_refused(self, truth):
        with pytest.raises(ValueError, match="truth"):
            scores(np.full((3, 2), 0.5), np.array(truth))

    def test_no_pictures_are_refused(self):
        with pytest.raises(ValueError, match="N at least 1"):
            scores(np.zeros((0, 2)), np.zeros(0, np.int64))
