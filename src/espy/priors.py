"""The boxes that a detector starts from: where they lie, how offsets are read and written.

Source: SSD (Liu et al., ECCV 2016) as the authors' EdgeNets code has it; docs/networks.md 4. Boxes are in shares of the
picture's sides, as centre and size (cx, cy, w, h) or as corners (x1, y1, x2, y2).
"""

from __future__ import annotations

from math import sqrt

import numpy as np

PER_CELL = 6
CENTRE, SIZE = 0.1, 0.2  # the units in which offsets of centre and size are told
IGNORED = -1.0  # instead of a class: a prior that is trained on neither as a thing nor as background


def priors(size: int) -> np.ndarray:
    """float32 [P, 4] (cx, cy, w, h) for square pictures of `size` pixels, in the order of the detector's outputs.

    >>> priors(300).shape, priors(512).shape
    ((11640, 4), (32742, 4))
    """
    maps = [-(-size // stride) for stride in (8, 16, 32, 64, 128)] + [1]
    strides = [8, 16, 32, 64, size / maps[4], size]
    low, high = -(-size // 10), -(-21 * size // 20)
    sizes = [low + k * (high - low) // 6 for k in range(7)]
    found = []
    for m, (cells, stride) in enumerate(zip(maps, strides, strict=True)):
        a, b = sizes[m] / size, sqrt(sizes[m] * sizes[m + 1]) / size
        shapes = [(a, a), (b, b)]
        for ratio in (2, 3):
            shapes += [(a * sqrt(ratio), a / sqrt(ratio)), (a / sqrt(ratio), a * sqrt(ratio))]
        centres = (np.arange(cells) + 0.5) * stride / size
        grid = np.empty((cells, cells, PER_CELL, 4))
        grid[..., 0], grid[..., 1] = centres[None, :, None], centres[:, None, None]
        grid[..., 2:] = shapes
        found.append(grid.reshape(-1, 4))
    return np.concatenate(found).clip(0, 1).astype(np.float32)


def encode(boxes: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Offsets [P, 4] of boxes [P, 4] (corners) from their priors [P, 4]."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    shift = (centre - given[:, :2]) / given[:, 2:] / CENTRE
    return np.concatenate([shift, np.log((boxes[:, 2:] - boxes[:, :2]) / given[:, 2:]) / SIZE], 1)


def decode(offsets: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Boxes [P, 4] (corners) of offsets [P, 4] from their priors [P, 4]."""
    t, p = np.ascontiguousarray(offsets.T), np.ascontiguousarray(given.T)  # number by number: many times as fast
    centre, half = p[:2] + CENTRE * t[:2] * p[2:], p[2:] * np.exp(SIZE * t[2:]) / 2
    return np.concatenate([centre - half, centre + half]).T


def corners(boxes: np.ndarray) -> np.ndarray:
    """[..., 4] corners of boxes given as centre and size."""
    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def shared_areas(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """[A, B]: shared areas of boxes [A, 4] and [B, 4] (corners)."""
    a, b = np.ascontiguousarray(one.T)[:, :, None], np.ascontiguousarray(two.T)  # corner by corner: many times as fast
    sides = (np.minimum(a[k + 2], b[k + 2]) - np.maximum(a[k], b[k]) for k in (0, 1))
    across, down = (np.maximum(side, np.zeros_like(side)) for side in sides)  # as is an array instead of a number
    shared: np.ndarray = across * down
    return shared


def areas(boxes: np.ndarray) -> np.ndarray:
    """[B]: of boxes [B, 4] (corners)."""
    area: np.ndarray = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return area


def match(boxes: np.ndarray, classes: np.ndarray, crowd: np.ndarray, given: np.ndarray, threshold: float) -> np.ndarray:
    """float32 [P, 5], what each prior is to learn: class (0 = background, kind k is k + 1) and offsets of its box.

    Each prior takes the box that it overlaps most, 1e-5 added to the denominator; then each box takes its best prior by force,
    later ones winning it; of the others, those that overlap theirs by less than `threshold` become background. Priors that lie in
    a crowd by more than half and are no box's are IGNORED. `boxes` [B, 4] are corners in shares, `crowd` bool [B].
    """
    target = np.zeros((len(given), 5), np.float32)
    places = corners(given)
    true = boxes[~crowd]
    if len(true):
        shared = shared_areas(places, true)
        iou = shared / (areas(places)[:, None] + areas(true)[None] - shared + 1e-5)
        best, own = iou.max(1), iou.argmax(1)
        for index, prior in enumerate(iou.argmax(0)):
            best[prior], own[prior] = np.inf, index
        things = best >= threshold
        target[things, 0] = classes[~crowd][own[things]] + 1
        target[things, 1:] = encode(true[own[things]], given[things])
    if crowd.any():
        within = (shared_areas(places, boxes[crowd]) / areas(places)[:, None].clip(min=1e-12)).max(1)
        target[(within > 0.5) & (target[:, 0] == 0), 0] = IGNORED
    return target
