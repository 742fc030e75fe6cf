"""What a model says of a picture."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from espy.errors import OutputError
from espy.labels import Label
from espy.output import write_bytes
from espy.picture import draw
from espy.picture.write import write_mask, write_picture

NOTEBOOK_PX = 1024  # longest side of the picture that a notebook shows


@dataclass(frozen=True)
class Segmentation:
    """A class for every pixel.

    `mask`: uint8 [H, W] at the picture's own size, indices into `labels`. `timing`: milliseconds of "decode", "prepare",
    "engine", "finish". `image`: the picture itself, upright RGB. `note`: what of the file was left out.
    """

    mask: np.ndarray
    labels: tuple[Label, ...]
    timing: Mapping[str, float]
    image: Image.Image = field(repr=False)
    note: str | None = None
    task: str = field(default="segment", init=False)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture in pixels."""
        height, width = self.mask.shape
        return height, width

    @cached_property
    def shares(self) -> dict[str, float]:
        """Label name → share of the picture, 0..1; all labels, in their order."""
        return draw.shares(self.mask, self.labels)

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The picture with the classes' colours over it and a legend."""
        return draw.overlay(self.image, self.mask, self.labels, alpha=alpha)

    def view(self, kind: str = "overlay") -> Image.Image:
        """`overlay`, `mask` (colours alone) or `side` (picture and overlay beside each other)."""
        if kind == "mask":
            return draw.colour_mask(self.mask, self.labels)
        over = self.overlay()
        return draw.side_by_side(self.image, over) if kind == "side" else over

    def to_dict(self) -> dict[str, Any]:
        """What the JSON output says of the picture."""
        shares = {name: round(share, 6) for name, share in self.shares.items()}
        result: dict[str, Any] = {"size": list(self.size), "task": self.task, "shares": shares}
        if self.note:
            result["note"] = self.note
        return {**result, "timing": {name: round(ms, 3) for name, ms in self.timing.items()}}

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Save by the path's ending: `.png` the mask (palette PNG of class indices), `.jpg` or `.webp` the overlay, `.json`.

        Raises OutputError where something stands there already and `force` is not given.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".png":
            write_mask(path, self.mask, self.labels, force=force)
        elif suffix in (".jpg", ".jpeg", ".webp"):
            write_picture(path, self.overlay(), force=force)
        elif suffix == ".json":
            write_bytes(path, json.dumps(self.to_dict(), ensure_ascii=False, indent=1).encode() + b"\n", force=force)
        else:
            raise OutputError(f"{path}: end the name in .png (mask), .jpg or .webp (overlay) or .json")

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        image = self.overlay()
        image.thumbnail((NOTEBOOK_PX, NOTEBOOK_PX))
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()
