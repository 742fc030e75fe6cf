"""Segmentation: one confusion matrix, and the readings that people make of it.

The matrix counts pixels, int64 [K + 1, K + 1]: row = truth, column = prediction, of K classes and void (the last row and
column). Truth that is void (255, or an ignored class) lands in the last row; a prediction of none of the K classes lands in
the last column and is wrong wherever the truth is a class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VOID = 255


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """The matrix int64 [classes + 1, classes + 1] of uint8 arrays of one shape; values from `classes` on are void.

    >>> confusion(np.array([[0, 1, 255]], np.uint8), np.array([[0, 0, 1]], np.uint8), 2).tolist()
    [[1, 0, 0], [1, 0, 0], [0, 1, 0]]
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth is {truth.shape}, the prediction {prediction.shape}: evaluate at the truth's own size")
    side = classes + 1
    cells = np.minimum(truth, classes).astype(np.intp).ravel()
    cells *= side
    cells += np.minimum(prediction, classes).ravel()
    return np.bincount(cells, minlength=side * side).reshape(side, side)


@dataclass(frozen=True)
class Scores:
    """What a matrix says, all 0..1: `iou` float64 [K], nan for classes in neither truth nor prediction.

    `miou`: mean of the others. `class_accuracy`: mean over the classes that occur in the truth. nan where no pixel counts.
    """

    miou: float
    pixel_accuracy: float
    class_accuracy: float
    iou: np.ndarray


def scores(matrix: np.ndarray, *, void_counted: bool = False) -> Scores:
    """IoU = hit / (truth + predicted − hit) of each class. `void_counted`: void stays in the truth.

    Then a class predicted on void is a false alarm, and no prediction on void is a hit; void has no IoU of its own.

    >>> matrix = np.array([[3, 1, 0], [0, 4, 0], [2, 0, 0]])
    >>> scores(matrix).iou.tolist(), scores(matrix, void_counted=True).iou.tolist()
    ([0.75, 0.8], [0.5, 0.8])
    """
    counted = matrix if void_counted else matrix[:-1]
    hit = np.diagonal(matrix)[:-1].astype(np.float64)
    truth = matrix[:-1].sum(1)
    predicted = counted.sum(0)[:-1]
    iou = ratio(hit, truth + predicted - hit)
    return Scores(mean(iou), float(ratio(hit.sum(), counted.sum())), mean(ratio(hit, truth)), iou)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where there is nothing."""
    whole = np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def mean(values: np.ndarray) -> float:
    """The mean of those that are numbers, nan where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
