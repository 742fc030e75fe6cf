"""Pictures for people: masks in the labels' colours over the photo, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from espy.labels import Label

STRIP_ROWS = 512  # blending goes strip by strip, so that a large picture is not held several times
LEGEND_LEAST = 0.005  # share of the picture from which a class is named
WHITE, BAR = (255, 255, 255), (70, 110, 160)
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
    text_px = _text_px(image)
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
    top = _band(image, places[-1][1] + line + gap)
    draw = ImageDraw.Draw(image)
    for x, y, label, text in places:
        square = (x, top + y, x + text_px, top + y + text_px)
        draw.rectangle(square, fill=label.colour, outline=(255, 255, 255), width=max(1, text_px // 12))
        draw.text((x + round(1.4 * text_px), top + y + text_px / 2), text, fill=(255, 255, 255), font=font, anchor="lm")


def overlay_top(image: Image.Image, top: Sequence[tuple[str, float]], *, in_place: bool = False) -> Image.Image:
    """The picture with labels and their probabilities on a band at the bottom, a bar behind each; those that fit."""
    out = image if in_place else image.copy()
    text_px = _text_px(out)
    font = _font(text_px)
    gap, line = text_px // 2, round(1.5 * text_px)
    lines = min(len(top), int((LEGEND_HEIGHT * out.height - 2 * gap) // line))
    if lines < 1:
        return out
    above = _band(out, lines * line + 2 * gap) + gap
    draw = ImageDraw.Draw(out)
    for place, (name, probability) in enumerate(top[:lines]):
        y = above + place * line
        draw.rectangle((gap, y, gap + probability * (out.width - 2 * gap), y + line - text_px // 6), fill=BAR)
        draw.text((2 * gap, y + line / 2), f"{name} {100 * probability:.1f} %", fill=WHITE, font=font, anchor="lm")
    return out


def overlay_boxes(
    image: Image.Image, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, labels: Sequence[Label], *,
    in_place: bool = False,
) -> Image.Image:  # fmt: skip
    """The picture with boxes [D, 4] (x1, y1, x2, y2 in its pixels) in their labels' colours, name and score at each.

    The best are drawn last, over the others.
    """
    out = image if in_place else image.copy()
    text_px = _text_px(out)
    font, width = _font(text_px), max(1, text_px // 6)
    draw = ImageDraw.Draw(out)
    for box, score, kind in list(zip(boxes.tolist(), scores, classes, strict=True))[::-1]:
        colour = labels[kind].colour
        x1, y1, x2, y2 = box
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=width)
        text = f"{labels[kind].name} {100 * score:.0f} %"
        wide, high = font.getlength(text) + text_px // 2, round(1.3 * text_px)
        left = max(0, min(x1, out.width - wide))
        top = y1 - high if y1 >= high else y1  # inside where there is no room above
        draw.rectangle((left, top, left + wide, top + high), fill=colour)
        dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 150  # ITU-R BT.601
        draw.text(
            (left + text_px // 4, top + high / 2), text, fill=(0, 0, 0) if dark else WHITE, font=font, anchor="lm"
        )
    return out


def _text_px(image: Image.Image) -> int:
    """Text grows with the picture and stays readable on small ones."""
    return max(12, round(0.02 * max(image.width, image.height)))


def _band(image: Image.Image, height: int) -> int:
    """Darken a band of that height at the bottom; where it starts."""
    top = image.height - height
    band = image.crop((0, top, image.width, image.height))
    image.paste(Image.blend(band, Image.new("RGB", band.size), 0.65), (0, top))
    return top


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
