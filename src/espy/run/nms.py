"""Greedy suppression of boxes: of those that overlap, the best stays.

The rule of the deployed graph's NonMaxSuppression (docs/networks.md 4), for engines that give every prior's box.
"""

from __future__ import annotations

import numpy as np

from espy.priors import areas, shared_areas

LEAST_SCORE = 0.01
OVERLAP = 0.45  # intersection over union above which the worse of two boxes of a kind goes
MOST = 200  # boxes a kind
BLOCK = 256  # candidates that are compared at a time


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
    kept = left[:0]
    for start in range(0, len(left), BLOCK):
        some = left[start : start + BLOCK]
        some = some[~(iou(boxes[kept], boxes[some]) > OVERLAP).any(0)]
        apart = ~(iou(boxes[some], boxes[some]) > OVERLAP)
        stay = np.ones(len(some), bool)
        for k in range(len(some)):
            if stay[k]:
                stay[k + 1 :] &= apart[k, k + 1 :]
        kept = np.concatenate([kept, some[stay]])[:MOST]
        if len(kept) == MOST:
            break
    return kept


def iou(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[A, B]: intersection over union of boxes [A, 4] and [B, 4] (corners); 0 where there is no area."""
    shared = shared_areas(ones, others)
    whole = areas(ones)[:, None] + areas(others) - shared
    found: np.ndarray = shared / np.maximum(whole, np.full_like(whole, np.finfo(whole.dtype).tiny))
    return found
