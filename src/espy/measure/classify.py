"""Classification: how often the right class comes first, and how far the probabilities can be believed.

Equal probabilities: the class with the lower index comes first, as in `numpy.argmax`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espy.errors import ModelError
from espy.measure.segment import mean, ratio

BINS = 15  # of the calibration error, as in Guo et al. 2017
ROUNDING = 1e-3  # by so much a softmax of low precision may exceed 1


@dataclass(frozen=True)
class Scores:
    """What probabilities say beside the truth, all 0..1.

    `top1`, `top5`: share of the pictures whose true class has the highest, one of the min(5, C) highest probabilities.
    `calibration_error`: by how much the highest probability is off as a share of right answers; see `calibration_error`.
    `class_accuracy`: mean of `accuracy`, float64 [C], the share of each class's pictures that is right, nan for a class
    that does not occur. `matrix`: pictures, int64 [C, C], row = truth, column = prediction.
    """

    top1: float
    top5: float
    calibration_error: float
    class_accuracy: float
    accuracy: np.ndarray
    matrix: np.ndarray


def scores(probabilities: np.ndarray, truth: np.ndarray) -> Scores:
    """Scores of float [N, C] (each row 0..1, sum 1) and int [N] (0..C - 1); N is at least 1.

    Raises ModelError for probabilities that are none, ValueError for arrays that do not belong together.

    >>> found = scores(np.array([[0.7, 0.3, 0.0], [0.6, 0.4, 0.0]]), np.array([0, 1]))
    >>> found.top1, found.top5, found.accuracy.tolist(), found.matrix.tolist()
    (0.5, 1.0, [1.0, 0.0, nan], [[1, 0, 0], [1, 0, 0], [0, 0, 0]])
    """
    _check(probabilities, truth)
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    matrix = np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)
    accuracy = ratio(np.diagonal(matrix), matrix.sum(1))
    return Scores(
        top1=float((predicted == truth).mean()),
        top5=float((_ahead(probabilities, truth) < 5).mean()),
        calibration_error=calibration_error(probabilities.max(1), predicted == truth),
        class_accuracy=mean(accuracy),
        accuracy=accuracy,
        matrix=matrix,
    )


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error of float [N] (highest probabilities, 0..1) and bool [N], 0..1.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017: pictures are sorted into BINS bins of equal width by
    their confidence, the m-th being ((m - 1) / BINS, m / BINS]. The error is the distance between mean confidence and
    share of right answers in a bin, averaged with the bins' pictures as weights; an empty bin weighs nothing.

    >>> round(calibration_error(np.array([0.9, 0.9, 0.6]), np.array([True, False, True])), 6)
    0.4
    """
    # of sums, not means: a bin's distance times its pictures
    place = np.digitize(confidence, np.arange(1, BINS) / BINS, right=True)
    distance = np.bincount(place, confidence) - np.bincount(place, right)
    return float(np.abs(distance).sum() / len(right))


def _ahead(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """int [N]: how many classes come before the true one."""
    own = np.take_along_axis(probabilities, truth[:, None], 1)
    lower = np.arange(probabilities.shape[1]) < truth[:, None]
    return ((probabilities > own) | (lower & (probabilities == own))).sum(1)


def _check(probabilities: np.ndarray, truth: np.ndarray) -> None:
    if probabilities.ndim != 2 or truth.shape != probabilities.shape[:1] or not len(truth):
        raise ValueError(
            f"probabilities are {probabilities.shape}, the truth {truth.shape}: give [N, C] and [N], N at least 1"
        )
    if truth.min() < 0 or truth.max() >= probabilities.shape[1]:
        raise ValueError(
            f"the truth holds {truth.min()}..{truth.max()}: {probabilities.shape[1]} classes are counted from 0"
        )
    good = ((probabilities >= 0) & (probabilities <= 1 + ROUNDING)).all(1)  # what is no number is not good
    if not good.all():
        row = int(np.argmin(good))
        low, high = probabilities[row].min(), probabilities[row].max()
        raise ModelError(f"picture {row} has probabilities from {low:.3g} to {high:.3g}: give a softmax's, 0..1")
