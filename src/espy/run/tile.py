"""Large pictures in overlapping tiles: which there are, and which part of each mask is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import lcm

import numpy as np
from PIL import Image

from espy.errors import EngineError
from espy.picture.frame import Frame
from espy.spec import Spec

GRID = 8  # tiles start at multiples of it: the networks' coarsest maps that matter keep their place


@dataclass(frozen=True)
class Tiling:
    """Tiles of (height, width) that share `overlap` pixels with their neighbours; half of it is dropped on either side."""

    tile: tuple[int, int]
    overlap: int

    @classmethod
    def of(cls, tile: tuple[int, int], spec: Spec, multiple: int, overlap: int | None = None) -> Tiling:
        """A tiling for a network. Raises EngineError for tiles that do not fit it.

        Without `overlap`: what covers the receptive field, so that the result equals the untiled one, where that takes no
        more than half of a tile's side; else a quarter of the side.
        """
        step = lcm(GRID, multiple)
        if any(side < step or side % step for side in tile):
            raise EngineError(f"--tile must be multiples of {step} here, not height {tile[0]}, width {tile[1]}")
        if overlap is None:
            field, side = spec.receptive_field_px, min(tile)
            # a logit sees up to 7 pixels further to one side than to the other: its place in its 1/8 cell
            exact = None if field is None else -(-(field + GRID) // (2 * GRID)) * 2 * GRID
            overlap = exact if exact is not None and exact <= side // 2 else side // 4 // (2 * GRID) * 2 * GRID
        if overlap < 0 or overlap % (2 * GRID) or overlap >= min(tile):
            raise EngineError(f"the overlap must be a multiple of {2 * GRID} below the tile's side, not {overlap}")
        return cls(tile, overlap)


def spans(length: int, tile: int, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, end, keep from, keep to) of the tiles along one side; starts are multiples of 8, the kept parts meet.

    >>> list(spans(40, 24, 16))
    [(0, 24, 0, 16), (8, 32, 16, 24), (16, 40, 24, 40)]
    """
    if length <= tile:
        yield 0, length, 0, length
        return
    last = -(-(length - tile) // GRID) * GRID
    starts = [*range(0, last, tile - overlap), last]
    edges = [0, *(start + overlap // 2 for start in starts[1:]), length]
    for index, start in enumerate(starts):
        yield start, min(start + tile, length), edges[index], edges[index + 1]


def run_tiled(run: Callable[[np.ndarray], np.ndarray], image: Image.Image, frame: Frame, tiling: Tiling) -> np.ndarray:
    """The mask uint8 [h, w] at the network's size, tile by tile; `run` maps uint8 [1, h, w, 3] to a mask [1, h, w]."""
    mask = np.empty(frame.network, np.uint8)
    for top, bottom, y0, y1 in spans(frame.network[0], tiling.tile[0], tiling.overlap):
        for left, right, x0, x1 in spans(frame.network[1], tiling.tile[1], tiling.overlap):
            part = run(frame.part(top, left, bottom, right).to_network(image)[None])[0]
            mask[y0:y1, x0:x1] = part[y0 - top : y1 - top, x0 - left : x1 - left]
    return mask
