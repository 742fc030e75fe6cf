"""Picture and truth changed together: one affine map for the geometry, one for the colours, both drawn from a generator.

Nothing here has a state. Who calls with a generator seeded by (seed, epoch, index) gets the same sample on every machine,
in every order and in any number of processes.
"""

from __future__ import annotations

from math import cos, radians, sin
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from PIL import Image

from espy.data.boxes import Boxes
from espy.data.masks import VOID
from espy.header import LARGEST_SIDE, SMALLEST_SIDE
from espy.priors import areas, shared_areas

FILL = (124, 116, 104)  # outside the picture: ImageNet's mean colour, 0 once normalised
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
GREY = 127.5  # what contrast turns about
LEAST_SIDE = 1.0  # pixels; what of a box is seen is a box from this on
TRIES = 50

Share = Annotated[float, Meta(ge=0, le=1)]


class Augment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How training pictures are varied. All off: the whole picture at the network's size."""

    crop: Annotated[
        tuple[int, int] | None, Meta(description="(height, width) the network sees in training; its size unless given")
    ] = None
    scale: Annotated[
        tuple[float, float],
        Meta(description="the picture is resized by a factor between these, evenly in its logarithm; 1 = the network's size"),
    ] = (0.75, 1.5)  # fmt: skip
    stretch: Annotated[
        float, Meta(ge=1, le=2, description="height and width are resized apart by up to this factor; 1 = never")
    ] = 1.0
    rotate: Annotated[float, Meta(ge=0, le=180, description="degrees to either side")] = 0.0
    overlap: Annotated[
        tuple[Share, ...],
        Meta(
            description="of boxes: each view overlaps one of them by at least one of these, drawn anew; empty: by any"
        ),
    ] = ()
    sizes: Annotated[
        tuple[Annotated[int, Meta(ge=SMALLEST_SIDE, le=LARGEST_SIDE)], ...],
        Meta(description="sides of square views, one drawn for each step, instead of crop; empty: crop"),
    ] = ()
    flip: Annotated[Share, Meta(description="chance that left and right are exchanged")] = 0.5
    brightness: Annotated[Share, Meta(description="factor of all values, 1 ± this")] = 0.2
    contrast: Annotated[Share, Meta(description="factor about grey, 1 ± this")] = 0.2
    saturation: Annotated[Share, Meta(description="factor about each pixel's own grey, 1 ± this")] = 0.2
    hue: Annotated[float, Meta(ge=0, le=180, description="turn of the colours in degrees to either side")] = 0.0

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0.05 <= low <= high <= 20:
            raise ValueError(f"scale must rise within 0.05 to 20, not {low} to {high}")
        for side in self.crop or ():
            if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
                raise ValueError(f"crop must be {SMALLEST_SIDE} to {LARGEST_SIDE} pixels a side, not {side}")


def view(
    image: np.ndarray, truth: Any, size: tuple[int, int], choices: Augment, rng: np.random.Generator,
    crop: tuple[int, int] | None = None,
) -> tuple[np.ndarray, Any]:  # fmt: skip
    """One sample: uint8 [h, w, 3] of the crop's size of a picture uint8 [H, W, 3], and its truth, moved with it.

    `size` (height, width): what scale 1 is. `crop`: that of the choices unless given. Outside the picture: `FILL`, in a mask
    void. Colours and geometry draw independently, so that one may be switched off without changing the other. The truth is a
    mask uint8 [H, W], `Boxes`, or a class, which stays what it is.
    """
    crop = crop or choices.crop or size
    to_source = geometry((image.shape[0], image.shape[1]), size, crop, choices, rng)
    matrix = colours(choices, rng)
    if isinstance(truth, Boxes) and choices.overlap:
        to_source = overlapping(to_source, truth, (image.shape[0], image.shape[1]), size, crop, choices, rng)
    pixels = Image.fromarray(image)
    across, down = (max(1, int(step + 1e-6)) for step in np.hypot(to_source[:, 0], to_source[:, 1]))
    if (across, down) != (1, 1):  # two taps would skip pixels: average whole ones first
        pixels = pixels.reduce((across, down))
    if matrix is not None:  # before the geometry, so that what lies outside keeps its colour
        pixels = pixels.convert("RGB", tuple(matrix.ravel()))
    scaled = to_source / [[across], [down]]
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    pixels = pixels.transform((crop[1], crop[0]), affine, tuple(scaled.ravel()), bilinear, fillcolor=FILL)
    return np.asarray(pixels), moved(truth, to_source, crop)


def moved(truth: Any, to_source: np.ndarray, crop: tuple[int, int]) -> Any:
    """A truth as it is seen in a crop (height, width) whose points `to_source` [2, 3] takes to the picture's."""
    if isinstance(truth, np.ndarray):
        affine, nearest = Image.Transform.AFFINE, Image.Resampling.NEAREST
        size = (crop[1], crop[0])
        return np.asarray(
            Image.fromarray(truth).transform(size, affine, tuple(to_source.ravel()), nearest, fillcolor=VOID)
        )
    if isinstance(truth, Boxes):
        return boxes_moved(truth, to_source, crop)
    return truth


def boxes_moved(boxes: Boxes, to_source: np.ndarray, crop: tuple[int, int]) -> Boxes:
    """The boxes around what of the boxes is seen: those whose middle lies in the crop, cut to it.

    A turned box becomes the upright one around it.
    """
    back = np.linalg.inv(np.vstack([to_source, [0, 0, 1]]))[:2]
    x1, y1, x2, y2 = boxes.corners.astype(np.float64).T
    points = np.stack(
        [np.stack([x, y, np.ones_like(x)]) for x, y in ((x1, y1), (x2, y1), (x1, y2), (x2, y2))]
    )  # [4, 3, B]
    placed = back @ points  # [4, 2, B]
    limits = np.array([crop[1], crop[0]])
    least, most = placed.min(0).T, placed.max(0).T  # [B, 2]
    middle = (least + most) / 2
    seen = ((middle > 0) & (middle < limits)).all(1)
    cut = np.concatenate([least, most], 1).clip(0, np.tile(limits, 2)).astype(np.float32)
    seen &= (cut[:, 2:] - cut[:, :2] >= LEAST_SIDE).all(1)
    return Boxes(cut[seen], boxes.classes[seen], boxes.crowd[seen])


def overlapping(
    to_source: np.ndarray, boxes: Boxes, source: tuple[int, int], size: tuple[int, int], crop: tuple[int, int],
    choices: Augment, rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """The geometry, or the first drawn anew, whose window overlaps a box by the IoU drawn from `choices.overlap`.

    After TRIES the last one is taken. The window is the upright rectangle around the crop in the picture.
    """
    least = choices.overlap[rng.integers(len(choices.overlap))]
    true = boxes.corners[~boxes.crowd]
    if not len(true):
        return to_source
    for _ in range(TRIES):
        ends = to_source @ [[0, crop[1], 0, crop[1]], [0, 0, crop[0], crop[0]], [1, 1, 1, 1]]
        window = np.concatenate([ends.min(1), ends.max(1)])[None]
        shared = shared_areas(window, true)[0]
        if (shared / (areas(window) + areas(true) - shared)).max() >= least:
            break
        to_source = geometry(source, size, crop, choices, rng)
    return to_source


def geometry(
    source: tuple[int, int], size: tuple[int, int], crop: tuple[int, int], choices: Augment, rng: np.random.Generator
) -> np.ndarray:
    """float64 [2, 3]: a point (x, y, 1) of the crop → (x, y) in the source, both in pixels, edges at whole numbers.

    Scaled, turned and mirrored about the crop's centre, which lies so that the crop is inside the picture where it fits,
    and the picture inside the crop where it does not.
    """
    low, high = np.log(choices.scale)
    s, t, turn, mirror, right, down = rng.uniform(-1, 1, 6)
    scale = np.exp(low + (high - low) * (s + 1) / 2)
    apart = choices.stretch ** (t / 2)
    h, w = size[0] * scale * apart, size[1] * scale / apart  # of the whole picture, in the crop's pixels
    angle = radians(choices.rotate * turn)
    sign = -1.0 if (mirror + 1) / 2 < choices.flip else 1.0
    per_pixel = np.diag([source[1] / w, source[0] / h])
    linear = per_pixel @ [[sign * cos(angle), -sin(angle)], [sign * sin(angle), cos(angle)]]
    centre = per_pixel @ [(w + right * abs(w - crop[1])) / 2, (h + down * abs(h - crop[0])) / 2]
    return np.column_stack([linear, centre - linear @ [crop[1] / 2, crop[0] / 2]])


def colours(choices: Augment, rng: np.random.Generator) -> np.ndarray | None:
    """float64 [3, 4]: (R, G, B, 1) → (R, G, B) in 0..255; None where nothing changes.

    Brightness, contrast, saturation and hue are linear in the values, so all four are one matrix.
    """
    b, c, s, turn = rng.uniform(-1, 1, 4)
    light, contrast = 1 + choices.brightness * b, 1 + choices.contrast * c
    colour, angle = 1 + choices.saturation * s, radians(choices.hue * turn)
    if (light, contrast, colour, angle) == (1, 1, 1, 0):
        return None
    grey = np.tile(LUMA, (3, 1))
    axis = np.ones((3, 3)) / 3  # the hue turns about the line of greys (Rodrigues' formula)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    hue = axis + cos(angle) * (np.eye(3) - axis) + sin(angle) * cross
    linear = light * contrast * (grey + colour * (np.eye(3) - grey)) @ hue
    return np.column_stack([linear, np.full(3, GREY * (1 - contrast))])
