"""What went wrong, as pictures: a contact sheet of pictures, and a confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from espy.labels import Label
from espy.measure.segment import VOID
from espy.picture.draw import colour_mask

CELL_PX = 320  # width of a picture on the sheet
TEXT_PX = 14
COLUMNS = ("picture", "truth", "prediction", "error (red)")
WRONG, DARK = (230, 30, 30), (0, 0, 0)
MATRIX_CELL_PX = 44
MOST_NAMED = 40  # classes up to which a matrix has names and numbers; beyond it, small cells alone
SMALL_CELL_PX = 6
BLUE = np.array([8, 48, 107])  # of a full cell; an empty one is white


@dataclass(frozen=True)
class Row:
    """A row of the sheet: `truth` and `prediction` are uint8 [H, W] of the picture's size, 255 = void or no class."""

    title: str
    image: Image.Image
    truth: np.ndarray
    prediction: np.ndarray


def contact_sheet(rows: Iterable[Row], labels: Sequence[Label]) -> Image.Image:
    """Picture, truth, prediction and error beside each other, one row a picture. Void is black, and never an error."""
    strips = [_strip(row, labels) for row in rows]
    head = TEXT_PX * 2
    sheet = Image.new("RGB", (len(COLUMNS) * CELL_PX, head + sum(strip.height for strip in strips)), DARK)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(COLUMNS):
        draw.text((column * CELL_PX + 6, head / 2), name, fill=(255, 255, 255), font=_font(), anchor="lm")
    top = head
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _strip(row: Row, labels: Sequence[Label]) -> Image.Image:
    height = max(1, round(CELL_PX * row.image.height / row.image.width))
    size, nearest = (CELL_PX, height), Image.Resampling.NEAREST
    wrong = (row.truth != row.prediction) & (row.truth != VOID)
    # a palette of the labels leaves 255 black
    grey = row.image.convert("L").point(lambda value: value * 0.5).convert("RGB")
    error = Image.composite(Image.new("RGB", grey.size, WRONG), grey, Image.fromarray(wrong.astype(np.uint8) * 255))
    error.paste(DARK, mask=Image.fromarray((row.truth == VOID).astype(np.uint8) * 255))
    cells = [
        row.image.resize(size, Image.Resampling.BILINEAR),
        *(colour_mask(mask, labels).convert("RGB").resize(size, nearest) for mask in (row.truth, row.prediction)),
        error.resize(size, nearest),
    ]
    strip = Image.new("RGB", (len(cells) * CELL_PX, height + 2 * TEXT_PX), DARK)
    ImageDraw.Draw(strip).text((6, TEXT_PX), row.title, fill=(255, 255, 255), font=_font(), anchor="lm")
    for column, cell in enumerate(cells):
        strip.paste(cell, (column * CELL_PX, 2 * TEXT_PX))
    return strip


def grid(images: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Pictures in rows, each as wide as a column of a contact sheet."""
    shrunk = [image.resize((CELL_PX, max(1, round(CELL_PX * image.height / image.width)))) for image in images]
    rows = [shrunk[k : k + columns] for k in range(0, len(shrunk), columns)]
    heights = [max(image.height for image in row) for row in rows]
    out = Image.new("RGB", (columns * CELL_PX, sum(heights)), (255, 255, 255))
    for place, row in enumerate(rows):
        for column, image in enumerate(row):
            out.paste(image, (column * CELL_PX, sum(heights[:place])))
    return out


def matrix_picture(matrix: np.ndarray, labels: Sequence[Label]) -> Image.Image:
    """The matrix [K + 1, K + 1] (row = truth, column = prediction, void last): each row's shares, darker is more, in percent."""
    whole = matrix.sum(1, keepdims=True)
    share = np.divide(matrix, whole, out=np.zeros(matrix.shape), where=whole > 0)
    named = len(labels) <= MOST_NAMED
    cell = MATRIX_CELL_PX if named else SMALL_CELL_PX
    colours = np.rint(255 + share[..., None] * (BLUE - 255)).astype(np.uint8)
    body = Image.fromarray(colours).resize((cell * len(matrix),) * 2, Image.Resampling.NEAREST)
    if not named:
        return body
    names = [*(label.name for label in labels), "void"]
    font = _font()
    margin = round(max(font.getlength(name) for name in (*names, "column: predicted"))) + 2 * TEXT_PX
    out = Image.new("RGB", (margin + body.width, margin + body.height), (255, 255, 255))
    out.paste(body, (margin, margin))
    draw = ImageDraw.Draw(out)
    for line, word in enumerate(("row: truth", "column: predicted", "in % of the row")):
        draw.text((TEXT_PX / 2, (line + 0.5) * 1.4 * TEXT_PX), word, fill=DARK, font=font, anchor="lm")
    lying = Image.new(
        "RGB", (margin, body.width), (255, 255, 255)
    )  # names of the columns, before they are turned upright
    across = ImageDraw.Draw(lying)
    for place, name in enumerate(names):
        middle = (place + 0.5) * cell
        draw.text((margin - TEXT_PX / 2, margin + middle), name, fill=DARK, font=font, anchor="rm")
        across.text((TEXT_PX / 2, middle), name, fill=DARK, font=font, anchor="lm")
    out.paste(lying.transpose(Image.Transpose.ROTATE_90), (margin, 0))
    for (y, x), value in np.ndenumerate(share):
        if value >= 0.005:
            middle_of = (margin + (x + 0.5) * cell, margin + (y + 0.5) * cell)
            draw.text(
                middle_of, f"{100 * value:.0f}", fill=(255, 255, 255) if value > 0.5 else DARK, font=font, anchor="mm"
            )
    return out


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT_PX)
