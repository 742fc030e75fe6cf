"""Boxes of a picture, in the upright picture's own pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of a picture.

    `corners`: float32 [B, 4], x1, y1, x2, y2 in pixels of the upright picture, within it. `classes`: int64 [B]. `crowd`: bool [B],
    boxes that are not trained on and neither hit nor missed.
    """

    corners: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)
