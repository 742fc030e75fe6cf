"""Boxes of a picture: as an annotation states them, and in the upright picture's own pixels, or a reason why not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from espy.data.findings import Fault
from espy.data.masks import FileError, read_upright
from espy.data.sets import Files, Item, Lone, relative, size_words
from espy.labels import Label, voc_colour

OUTSIDE_PX = 1.0
"""Up to here a box that leaves its picture is cut without a word: tools count pixels from 0 or from 1, and round."""

LARGEST = 1e9
"""Coordinates beyond this are no coordinates."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of a picture.

    `corners`: float32 [B, 4], x1, y1, x2, y2 in pixels of the upright picture, 0 at its left and upper edge, within it.
    `classes`: int64 [B]. `crowd`: bool [B], boxes that are not trained on and neither hit nor missed: COCO's iscrowd, Pascal
    VOC's difficult.
    """

    corners: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True, eq=False)
class Stated:
    """What an annotation says of one picture.

    `file`: the file that faults name. `corners`: float64 [B, 4], x1, y1, x2, y2 in pixels, or in shares of the picture's width
    and height (`shares`). `numbers`: int64 [B], which `unit` ("object", "line", ...) of the annotation each box is. `size`:
    (height, width) of the picture as stated, None where nothing is. `problems`: what cannot be used, picture or not.
    """

    file: Path
    corners: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    numbers: np.ndarray
    unit: str = "object"
    size: tuple[int, int] | None = None
    shares: bool = False
    problems: tuple[Fault, ...] = ()

    def placed(self, height: int, width: int, orientation: int) -> tuple[Boxes, list[Fault]]:
        """The boxes in a picture that is height x width upright, turned so by its EXIF orientation; and all that is wrong.

        Boxes with a fault are left out.
        """
        upright, kept = (height, width), (width, height) if orientation > 4 else (height, width)
        faults = list(self.problems)
        corners = self.corners * (width, height, width, height) if self.shares else self.corners
        if self.size not in (None, upright, kept):
            faults.append(self._another_size(upright))
            corners = corners[:0]
        elif self.size == kept != upright:
            corners = turned(corners, orientation, kept)
        elif orientation > 1 and len(corners) and (self.size is None or kept == upright):
            faults.append(_unclear(orientation))
        inside = corners.clip(0, (width, height, width, height))
        beyond = np.abs(inside - corners).max(1, initial=0)
        there = (inside[:, 2:] > inside[:, :2]).all(1)
        inside = inside.astype(np.float32)
        usable = (inside[:, 2:] > inside[:, :2]).all(1)
        for k in np.flatnonzero(~there).tolist():
            faults.append(self._outside(k, upright))
        for k in np.flatnonzero(there & ~usable).tolist():
            faults.append(no_area(self._words(k)))
        for k in np.flatnonzero(usable & (beyond > OUTSIDE_PX)).tolist():
            what, cure = "a box that leaves its picture; cut at the border", "correct it, or leave it"
            faults.append(Fault("box_outside", what, cure, warning=True, detail=self._words(k)))
        left = np.flatnonzero(usable)
        return Boxes(inside[left], self.classes[left], self.crowd[left]), faults

    def _words(self, index: int) -> str:
        return f"{self.unit} {self.numbers[index]}, {corner_words(self.corners[index])}"

    def _outside(self, index: int, size: tuple[int, int]) -> Fault:
        what = "a box wholly outside its picture"
        cure = "correct it, or take it out; are the boxes those of another size of the picture?"
        if self.shares:
            what = "a box wholly outside its picture, in shares of its width and height"
            cure = "write centre x, centre y, width and height divided by the picture's size: numbers from 0 to 1"
        detail = f"{self._words(index)}, the picture {size_words(size)} (height x width)"
        return Fault("box_outside", what, cure, detail=detail)

    def _another_size(self, size: tuple[int, int]) -> Fault:
        what = "states another size than its picture has"
        detail = f"{size_words(self.size or ())} (height x width), the picture {size_words(size)}"
        cure = "bring the picture in the size that was annotated, or correct size and boxes"
        return Fault("size_mismatch", what, cure, detail=detail)


def _unclear(orientation: int) -> Fault:
    what = (
        f"of a photo turned by EXIF orientation {orientation}; its boxes are taken as drawn on the photo as it is seen"
    )
    cure = "look whether they are; photos saved without EXIF orientation leave no doubt"
    return Fault("orientation_unclear", what, cure, warning=True)


@dataclass(frozen=True)
class Boxed(Item):
    """A picture and what its annotation states."""

    stated: Stated

    def read(self, cure: str) -> tuple[Image.Image, Boxes]:
        """The picture and its boxes."""
        picture = read_upright(self.picture)
        boxes, faults = self.stated.placed(*picture.size, picture.orientation)
        for fault in faults:
            if not fault.warning:
                raise FileError(self.stated.file, fault)
        return picture.image, boxes


def turned(corners: np.ndarray, orientation: int, size: tuple[int, int]) -> np.ndarray:
    """Corners [B, 4] in a photo stored as `size` (height, width), as they lie when it is turned by EXIF orientation 5 to 8.

    >>> turned(np.array([[0, 0, 10, 20]]), 6, (30, 40)).tolist()  # a quarter turn clockwise
    [[10, 0, 30, 10]]
    """
    height, width = size
    x1, y1, x2, y2 = corners.T
    if orientation in (6, 7):
        y1, y2 = height - y2, height - y1
    if orientation in (7, 8):
        x1, x2 = width - x2, width - x1
    return np.stack([y1, x1, y2, x2], 1)


# Making a statement from what files hold


class Statement:
    """The boxes of one picture, gathered one by one; what cannot be used becomes a problem."""

    def __init__(self, unit: str, shares: bool = False) -> None:
        self.unit, self.shares = unit, shares
        self.rows: list[tuple[float, float, float, float]] = []
        self.of: list[tuple[int, bool, int]] = []  # class, crowd, number
        self.problems: list[Fault] = []

    def add(self, number: int, corners: Sequence[float], index: int, crowd: bool) -> None:
        """A box of class `index`. `corners`: x1, y1, x2, y2 as stated, nan where that is no number."""
        x1, y1, x2, y2 = corners
        name = f"{self.unit} {number}"
        if not all(abs(value) <= LARGEST for value in corners):
            self.problems.append(invalid("a box whose corners are no numbers", f"{name}, {corner_words(corners)}"))
        elif x2 < x1 or y2 < y1:
            what = "a box whose right or lower edge comes before its left or upper one"
            cure = "correct it; where it was drawn from right to left or upwards, exchange the two"
            self.problems.append(Fault("box_inverted", what, cure, detail=f"{name}, {corner_words(corners)}"))
        elif x2 == x1 or y2 == y1:
            self.problems.append(no_area(f"{name}, {corner_words(corners)}"))
        else:
            self.rows.append((x1, y1, x2, y2))
            self.of.append((index, crowd, number))

    def stated(
        self, file: Path, size: tuple[int, int] | None = None, shift: tuple[float, float, float, float] = (0, 0, 0, 0)
    ) -> Stated:
        """All that was added; `shift` is added to the corners."""
        classes, crowd, numbers = zip(*self.of, strict=True) if self.of else ((), (), ())
        return Stated(
            file, np.array(self.rows, np.float64).reshape(-1, 4) + shift, np.array(classes, np.int64),
            np.array(crowd, np.bool_), np.array(numbers, np.int64), self.unit, size, self.shares, tuple(self.problems),
        )  # fmt: skip


def number(text: object) -> float:
    """What a text says in digits, or a number itself; nan for all else."""
    if isinstance(text, bool) or not isinstance(text, int | float | str) or (isinstance(text, str) and "_" in text):
        return np.nan
    try:
        return float(text)
    except (ValueError, OverflowError):
        return np.nan


def side(value: object) -> int:
    """A stated width or height; 0 where none is stated."""
    found = number(value)
    return int(found) if 0 < found <= LARGEST and found % 1 == 0 else 0


def corner_words(corners: Iterable[float]) -> str:
    """Corners as faults tell them."""
    return "x1, y1, x2, y2 = " + ", ".join(f"{value:g}" for value in corners)


def no_area(detail: str) -> Fault:
    """The warning of a box without area."""
    return Fault("box_empty", "a box of no area; left out", "correct it, or take it out", warning=True, detail=detail)


def invalid(what: str, detail: str, cure: str = "correct it, or take it out") -> Fault:
    """The fault of a field that is missing or makes no sense."""
    return Fault("annotation_invalid", what, cure, detail=detail)


def unknown(values: tuple[float, ...], what: str, detail: str, cure: str) -> Fault:
    """The fault of a class that is none."""
    return Fault("class_unknown", what, cure, values, detail=detail)


def labels_of(names: Iterable[str]) -> tuple[Label, ...]:
    """Classes of pictures or boxes: VOC's colours but black, its background, which these tasks do not have."""
    return tuple(Label(name, voc_colour(index + 1)) for index, name in enumerate(names))


# Pairing


@dataclass(frozen=True)
class Noted:
    """`pairs`: stem → (picture, its annotation file; None: without). `lone`: pictures in no pair. `rows`: (fault, file)."""

    pairs: dict[str, tuple[Path, Path | None]]
    lone: list[Lone]
    rows: list[tuple[Fault, str]]


def match(
    stems: Iterable[str],
    pictures: Files,
    notes: Mapping[str, Path],
    root: Path,
    bare: Fault,
    listed: Path | None = None,
) -> Noted:
    """Pictures and annotation files of these stems.

    `bare`: what is said of a picture without an annotation; if that is a warning, it is a picture without boxes. `listed`:
    the list that names the stems.
    """
    found = Noted({}, [], [])
    for stem in stems:
        paths, note = pictures.found.get(stem, []), notes.get(stem)
        if not paths:
            folder = relative(pictures.folder, root)
            if note is None and listed is not None:
                what = "names what has neither picture nor annotation"
                fault = Fault("image_missing", what, "add both, or drop the line", detail=stem)
                found.rows.append((fault, relative(listed, root)))
            elif note is not None:
                what, cure = f"no picture of this name in {folder}/", "add the picture, or take the file away"
                if stem in pictures.unread:
                    what += f" but a {pictures.unread[stem].suffix or 'nameless'} file, which is not read"
                    cure = "save the picture as JPEG or PNG"
                found.rows.append((Fault("image_missing", what, cure), relative(note, root)))
        elif len(paths) > 1:
            fault = Fault("stem_twice", "files of one name: which one is meant?", "keep one of them")
            found.rows.extend((fault, relative(path, root)) for path in paths)
            found.lone.extend(Lone(path) for path in paths)
        else:
            if note is None:
                found.rows.append((bare, relative(paths[0], root)))
            if note is None and not bare.warning:
                found.lone.append(Lone(paths[0]))
            else:
                found.pairs[stem] = paths[0], note
    return found
