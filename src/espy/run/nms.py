"""Greedy suppression of boxes: of those that overlap, the best stays.

The rule of the deployed graph's NonMaxSuppression (docs/networks.md 4), for engines that give every prior's box.
"""

from __future__ import annotations

import numpy as np

from espy.priors import areas, shared_areas

LEAST_SCORE = 0.01
OVERLAP = 0.45  # intersection over union above which the worse of two boxes of a kind goes
MOST = 200  # boxes a kind


def detections(scores: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """float32 [D, 7] of probabilities [N, kinds, P] and boxes [N, P, 4] (corners): picture, kind, score, x1, y1, x2, y2.

    Of each kind the boxes that score above 0.01 and overlap no better one by more than 0.45, at most 200; per picture the
    best first, equal scores in the order of kinds and priors.
    """
    found = [np.empty((0, 7), np.float32)]
    for picture, (of_kinds, places) in enumerate(zip(scores, boxes, strict=True)):
        rows = []
        for kind, row in enumerate(of_kinds):
            kept = suppress(row, places)
            rows.append(
                np.column_stack([np.full(len(kept), picture), np.full(len(kept), kind), row[kept], places[kept]])
            )
        together = np.concatenate(rows)
        found.append(together[np.argsort(-together[:, 2], kind="stable")])
    return np.concatenate(found).astype(np.float32)


def suppress(scores: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """int64 [K]: the boxes of one kind that stay, best first, of scores [P] and boxes [P, 4]."""
    left = np.flatnonzero(scores > LEAST_SCORE)
    left = left[np.argsort(-scores[left], kind="stable")]
    kept: list[int] = []
    while len(left) and len(kept) < MOST:
        best, left = left[0], left[1:]
        kept.append(int(best))
        left = left[iou(boxes[best], boxes[left]) <= OVERLAP]
    return np.array(kept, np.int64)


def iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[B]: intersection over union of a box [4] and others [B, 4] (corners); 0 where there is no area."""
    shared = shared_areas(box[None], others)[0]
    whole = areas(box[None]) + areas(others) - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
