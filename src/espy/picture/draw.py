"""Pictures for people: masks in the labels' colours over the photo, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from espy.labels import Label

STRIP_ROWS = 512  # blending goes strip by strip, so that a large picture is not held several times
LEGEND_LEAST = 0.005  # share of the picture from which a class is named
LEGEND_HEIGHT = 0.4  # share of the picture that the legend may cover at most


def palette(labels: Sequence[Label]) -> list[int]:
    """R, G, B of every label in a row, as palette pictures want it."""
    return [value for label in labels for value in label.colour]


def colour_mask(mask: np.ndarray, labels: Sequence[Label]) -> Image.Image:
    """uint8 [H, W] class indices as a palette picture in the labels' colours."""
    image = Image.fromarray(np.ascontiguousarray(mask))
    image.putpalette(palette(labels))
    return image


def shares(mask: np.ndarray, labels: Sequence[Label]) -> dict[str, float]:
    """Label name → share of the pixels, in the labels' order."""
    counts = Image.fromarray(np.ascontiguousarray(mask)).histogram()
    return {label.name: counts[index] / mask.size for index, label in enumerate(labels)}


def overlay(
    image: Image.Image,
    mask: np.ndarray,
    labels: Sequence[Label],
    *,
    alpha: float = 0.5,
    legend: bool = True,
    in_place: bool = False,
) -> Image.Image:
    """The picture with its mask blended over it (`alpha` of the colour) and a legend of classes and shares at the bottom.

    Black labels (background, void) leave the picture as it is. `in_place` draws on the picture itself: a copy of one of
    100 megapixels takes 400 MB.
    """
    out = image if in_place else image.copy()
    weight = [round(255 * alpha) if any(label.colour) else 0 for label in labels]
    weight += [0] * (256 - len(weight))
    for top in range(0, image.height, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, image.height)
        strip = np.ascontiguousarray(mask[top:bottom])
        colours = colour_mask(strip, labels).convert("RGB")
        out.paste(colours, (0, top), Image.fromarray(strip).point(weight))
    if legend:
        draw_legend(out, labels, shares(mask, labels))
    return out


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of one size beside each other, or one above the other where they are wide."""
    width, height = left.size
    wide = width > 1.5 * height
    out = Image.new("RGB", (width, 2 * height) if wide else (2 * width, height))
    out.paste(left, (0, 0))
    out.paste(right, (0, height) if wide else (width, 0))
    return out


def draw_legend(image: Image.Image, labels: Sequence[Label], part: dict[str, float]) -> None:
    """A band at the bottom: a square of the colour, name and share of each class, largest first.

    Text grows with the picture and stays readable on small ones; classes that do not fit are left out, and so is the legend
    on pictures too small for a line of it.
    """
    text_px = max(12, round(0.02 * max(image.width, image.height)))
    font = _font(text_px)
    gap, line = text_px // 2, round(1.5 * text_px)
    named = sorted((label for label in labels if part[label.name] >= LEGEND_LEAST), key=lambda label: -part[label.name])
    places: list[tuple[int, int, Label, str]] = []
    x = y = gap
    for label in named:
        text = f"{label.name} {100 * part[label.name]:.0f} %"
        width = round(1.4 * text_px + font.getlength(text)) + 2 * gap
        if x + width > image.width and x > gap:
            x, y = gap, y + line
        if y + line + gap > LEGEND_HEIGHT * image.height or x + width > image.width:
            break
        places.append((x, y, label, text))
        x += width
    if not places:
        return
    height = places[-1][1] + line + gap
    top = image.height - height
    band = image.crop((0, top, image.width, image.height))
    image.paste(Image.blend(band, Image.new("RGB", band.size), 0.65), (0, top))
    draw = ImageDraw.Draw(image)
    for x, y, label, text in places:
        square = (x, top + y, x + text_px, top + y + text_px)
        draw.rectangle(square, fill=label.colour, outline=(255, 255, 255), width=max(1, text_px // 12))
        draw.text((x + round(1.4 * text_px), top + y + text_px / 2), text, fill=(255, 255, 255), font=font, anchor="lm")


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
