"""The boxes that a detector starts from: where they lie, how offsets are read and written.

Source: SSD (Liu et al., ECCV 2016) as the authors' EdgeNets code has it; docs/networks.md 4. Boxes are in shares of the
picture's sides, as centre and size (cx, cy, w, h) or as corners (x1, y1, x2, y2).
"""

from __future__ import annotations

from math import sqrt

import numpy as np

PER_CELL = 6
CENTRE, SIZE = 0.1, 0.2  # the units in which offsets of centre and size are told


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
    """Boxes [..., P, 4] (corners, not clipped) of offsets [..., P, 4] from their priors [P, 4]."""
    centre = given[:, :2] + CENTRE * offsets[..., :2] * given[:, 2:]
    half = given[:, 2:] * np.exp(SIZE * offsets[..., 2:]) / 2
    return np.concatenate([centre - half, centre + half], -1)
