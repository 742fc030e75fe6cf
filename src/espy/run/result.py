"""What a model says of a picture."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from espy.errors import OutputError
from espy.labels import Label
from espy.output import write_bytes
from espy.picture import draw
from espy.picture.write import write_mask, write_picture

NOTEBOOK_PX = 1024  # longest side of the picture that a notebook shows
TOP = 5  # classes that are told of a picture
MIN_SCORE = 0.3  # of boxes that are drawn and told


@dataclass(frozen=True)
class Result:
    """What all tasks' results share.

    `image`: the picture itself, upright RGB. `timing`: milliseconds of "decode", "prepare", "engine", "finish". `note`: what of
    the file was left out.
    """

    labels: tuple[Label, ...]
    image: Image.Image = field(repr=False)
    timing: Mapping[str, float]
    note: str | None = field(default=None, kw_only=True)

    task: ClassVar[str]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture in pixels."""
        return self.image.height, self.image.width

    def drawn(self, *, in_place: bool = False) -> Image.Image:
        """The picture with what was found drawn over it; `in_place`: on the picture itself."""
        raise NotImplementedError

    def view(self, kind: str = "overlay") -> Image.Image:
        """`overlay` or `side` (picture and overlay beside each other)."""
        over = self.drawn()
        return draw.side_by_side(self.image, over) if kind == "side" else over

    def found(self) -> dict[str, Any]:
        """What was found, as JSON has it."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """What the JSON output says of the picture."""
        result: dict[str, Any] = {"size": list(self.size), "task": self.task, **self.found()}
        if self.note:
            result["note"] = self.note
        return {**result, "timing": {name: round(ms, 3) for name, ms in self.timing.items()}}

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Save by the path's ending: `.jpg`, `.png` or `.webp` the overlay (of a segmentation `.png` is the mask), `.json`.

        Raises OutputError where something stands there already and `force` is not given.
        """
        suffix = Path(path).suffix.lower()
        if suffix in (".jpg", ".jpeg", ".webp", ".png"):
            write_picture(path, self.drawn(), force=force)
        elif suffix == ".json":
            write_bytes(path, json.dumps(self.to_dict(), ensure_ascii=False, indent=1).encode() + b"\n", force=force)
        else:
            raise OutputError(f"{path}: end the name in {self._endings}")

    _endings = ".jpg, .png or .webp (overlay) or .json"

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        image = self.drawn()
        image.thumbnail((NOTEBOOK_PX, NOTEBOOK_PX))
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()


@dataclass(frozen=True)
class Segmentation(Result):
    """A class for every pixel. `mask`: uint8 [H, W] at the picture's own size, indices into `labels`."""

    mask: np.ndarray

    task = "segment"

    @cached_property
    def shares(self) -> dict[str, float]:
        """Label name → share of the picture, 0..1; all labels, in their order."""
        return draw.shares(self.mask, self.labels)

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The picture with the classes' colours over it and a legend."""
        return draw.overlay(self.image, self.mask, self.labels, alpha=alpha)

    def drawn(self, *, in_place: bool = False) -> Image.Image:
        return draw.overlay(self.image, self.mask, self.labels, in_place=in_place)

    def view(self, kind: str = "overlay") -> Image.Image:
        """`overlay`, `mask` (colours alone) or `side` (picture and overlay beside each other)."""
        return draw.colour_mask(self.mask, self.labels) if kind == "mask" else super().view(kind)

    def found(self) -> dict[str, Any]:
        return {"shares": {name: round(share, 6) for name, share in self.shares.items()}}

    def save(self, path: str | Path, *, force: bool = False) -> None:
        if Path(path).suffix.lower() == ".png":
            write_mask(path, self.mask, self.labels, force=force)
        else:
            super().save(path, force=force)

    _endings = ".png (mask), .jpg or .webp (overlay) or .json"


@dataclass(frozen=True)
class Classification(Result):
    """A probability for every class. `probabilities`: float32 [C], their sum is 1, in the order of `labels`."""

    probabilities: np.ndarray

    task = "classify"

    def top(self, k: int = TOP) -> list[tuple[str, float]]:
        """The k likeliest labels and their probabilities, likeliest first."""
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.labels[index].name, float(self.probabilities[index])) for index in order]

    def overlay(self) -> Image.Image:
        """The picture with the likeliest classes listed below."""
        return self.drawn()

    def drawn(self, *, in_place: bool = False) -> Image.Image:
        return draw.overlay_top(self.image, self.top(), in_place=in_place)

    def found(self) -> dict[str, Any]:
        return {"top": [{"label": name, "probability": round(p, 6)} for name, p in self.top()]}


@dataclass(frozen=True)
class Detections(Result):
    """Boxes around things, best first.

    `boxes`: float32 [D, 4], x1, y1, x2, y2 in the picture's own pixels. `scores`: float32 [D], 0..1. `classes`: int64 [D], indices
    into `labels`. All above 0.01 are here; `min_score`: which are drawn and told.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    min_score: float = MIN_SCORE

    task = "detect"

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Those that score more."""
        kept = self.scores > score
        return replace(self, boxes=self.boxes[kept], scores=self.scores[kept], classes=self.classes[kept])

    def overlay(self, min_score: float | None = None) -> Image.Image:
        """The picture with the boxes that score more than `min_score` (0.3 unless told otherwise), labels and scores."""
        return replace(self, min_score=self.min_score if min_score is None else min_score).drawn()

    def drawn(self, *, in_place: bool = False) -> Image.Image:
        seen = self.above(self.min_score)
        return draw.overlay_boxes(self.image, seen.boxes, seen.scores, seen.classes, self.labels, in_place=in_place)

    def found(self) -> dict[str, Any]:
        seen = self.above(self.min_score)
        return {"boxes": [
            {
                "label": self.labels[kind].name, "class": int(kind), "score": round(float(score), 6),
                "bbox": [round(float(v), 2) for v in (x1, y1, x2 - x1, y2 - y1)],
            }
            for (x1, y1, x2, y2), score, kind in zip(seen.boxes, seen.scores, seen.classes, strict=True)
        ]}  # fmt: skip
