"""Pictures into files, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from espy.labels import Label
from espy.output import writing
from espy.picture.draw import colour_mask

JPEG_QUALITY = 88
LONGEST = {"JPEG": 65500, "WEBP": 16383}  # pixels a side that the formats hold


def write_picture(path: str | Path, image: Image.Image, *, force: bool = False) -> None:
    """An RGB picture in the format that the path's ending names (JPEG, PNG, WebP), shrunk where that holds no more."""
    kind = {".png": "PNG", ".webp": "WEBP"}.get(Path(path).suffix.lower(), "JPEG")
    longest = LONGEST.get(kind, max(image.size))
    if max(image.size) > longest:
        image = image.resize([max(1, side * longest // max(image.size)) for side in image.size])
    with writing(path, force=force) as file:
        image.save(file, kind, quality=JPEG_QUALITY)


def write_mask(path: str | Path, mask: np.ndarray, labels: tuple[Label, ...], *, force: bool = False) -> None:
    """A palette PNG whose pixel values are the class indices, shown in the labels' colours."""
    with writing(path, force=force) as file:
        colour_mask(mask, labels).save(file, "PNG", compress_level=1)
