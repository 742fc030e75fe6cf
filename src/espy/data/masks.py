"""Pictures and masks of a set: uint8 class indices, 255 = void, or a reason why not. Never a guess about what a value means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from espy.data.findings import MOST_VALUES, Fault
from espy.errors import DataError, PictureError
from espy.picture.read import UPRIGHT, Picture, TooLargeError, orientation, read, stored

VOID = 255
MOST_CLASSES = 255  # 0 to 254

LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "AVIF": "AVIF", "JPEG2000": "JPEG 2000", "GIF": "GIF"}
"""Pillow's formats that change values, or may: GIF keeps colours, but its encoders number them anew."""

LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
INTEGERS = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of one channel beyond 8 bits


class FileError(DataError):
    """A picture or mask of a set that cannot be used; `fault` says why."""

    def __init__(self, path: Path, fault: Fault) -> None:
        super().__init__(f"{path}: {fault.text()}: {fault.cure}")
        self.fault = fault


@dataclass(frozen=True)
class Coding:
    """What the values of a mask file mean: `classes[k]` is the value of class k, those in `void` are not labelled.

    Any other value is a fault.

    >>> Coding(classes=(7, 8), void=frozenset({0, 255})).indices(np.array([[7, 8, 0, 255]], np.uint8))
    array([[  0,   1, 255, 255]], dtype=uint8)
    """

    classes: tuple[int, ...]
    void: frozenset[int] = frozenset({VOID})

    @classmethod
    def plain(cls, classes: int) -> Coding:
        """The index itself, 255 void."""
        return cls(tuple(range(classes)))

    @cached_property
    def table(self) -> np.ndarray:
        """uint8 [256]: value in the file -> class index or 255."""
        table = np.full(256, VOID, np.uint8)
        table[list(self.classes)] = range(len(self.classes))
        return table

    def odd(self, values: np.ndarray) -> tuple[int, ...]:
        """The values of an integer array [H, W] that mean nothing, ascending."""
        known = {*self.classes, *self.void}
        return tuple(value for value in distinct(values) if value not in known)

    def indices(self, values: np.ndarray) -> np.ndarray:
        """uint8 [H, W] class indices, 255 void, of an integer array [H, W] without odd values."""
        return self.table[values]


@dataclass(frozen=True)
class Mask:
    """A mask that was read: `indices` uint8 [H, W], 255 void; `notes`: what had to be put up with on the way."""

    indices: np.ndarray
    notes: tuple[Fault, ...] = ()


def read_picture(path: Path) -> Image.Image:
    """Read a picture of a set, upright RGB. Raises FileError."""
    return read_upright(path).image


def read_upright(path: Path) -> Picture:
    """The same with what is known of it beside. Raises FileError."""
    try:
        return read(path)
    except PictureError as error:
        raise FileError(path, unreadable(error, path)) from None


def read_mask(path: Path, coding: Coding) -> Mask:
    """Read a mask.

    Grey and palette pictures of 1, 2, 4 and 8 bits hold the index itself. 16-bit, floating-point, opaque alpha and three
    equal channels are read where nothing is lost, with a note. Turned by its own EXIF, as pictures are. Raises FileError
    for all else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.fromarray(np.array([[0, 2], [255, 1]], np.uint8)).save(Path(folder) / "a.png")
    ...     read_mask(Path(folder) / "a.png", Coding.plain(3)).indices.tolist()
    [[0, 2], [255, 1]]
    """
    stored_in = read_values(path)
    if odd := coding.odd(stored_in.values):
        raise FileError(path, out_of_range(odd, coding))
    if stored_in.greys and stored_in.greys <= {*coding.classes, *coding.void}:
        what = "a palette whose greys are values of classes too, but others than its indices: which are meant?"
        raise FileError(
            path, Fault("rgb_mask", what, "save it as 8-bit grey; some programs that shrink PNGs number anew")
        )
    return Mask(coding.indices(stored_in.values), stored_in.notes)


@dataclass(frozen=True)
class Stored:
    """What a mask file holds: `values` integers [H, W], whatever they mean. `greys`: of a palette that is all grey and
    not simply the indices or black and white, the greys that occur."""

    values: np.ndarray
    notes: tuple[Fault, ...] = ()
    greys: frozenset[int] = frozenset()


def read_values(path: Path) -> Stored:
    """The values of a mask file and what had to be put up with. Raises FileError."""
    try:
        with stored(path) as image:
            if (fault := _lossy(image, path)) or (fault := _frames(image)):
                raise FileError(path, fault)
            raw, highest = _samples(image)
            image.load()
            turn = UPRIGHT.get(orientation(image))
            greys = _greys(image) if image.mode == "P" else frozenset()
            values, note = _values(image if turn is None else image.transpose(turn), raw, highest, path)
    except PictureError as error:
        raise FileError(path, unreadable(error, path)) from None
    return Stored(values, (note,) if note else (), greys)


def mask_size(path: Path) -> tuple[int, int] | None:
    """(height, width) of a mask whose values cannot be used; None where there is no picture at all."""
    try:
        with stored(path) as image:
            upright = image.height, image.width
            return upright if orientation(image) < 5 else upright[::-1]
    except PictureError:
        return None


def unreadable(error: PictureError, path: Path) -> Fault:
    """The fault of a file that `picture.read` refused."""
    if isinstance(error, TooLargeError):
        cure = "shrink picture and mask alike (masks by nearest neighbour), or cut both into parts"
        return Fault("unreadable", f"above the limit of {error.limit / 1e6:g} megapixels", cure, detail=error.size)
    reason = re.sub(r" \(\d+ bytes not processed\)", "", str(error).removeprefix(f"{path}: "))
    return Fault("unreadable", reason, "replace it by a whole copy, or take picture and mask out of the set")


def out_of_range(odd: tuple[int, ...], coding: Coding) -> Fault:
    """The fault of a mask that holds values which mean nothing."""
    last = len(coding.classes) - 1
    if coding.classes == tuple(range(last + 1)):
        known = f"classes are 0 to {last}" if last else "the only class is 0"
        void = " and ".join(str(value) for value in sorted(coding.void))
        what = f"holds {{values}}; {known}, void is {void}"
    else:
        what = "holds {values}, which is no known id"
    if odd[-1] >= 1000:
        cure = "values such as class * 1000 + instance: keep the class alone (value // 1000)"
    else:
        cure = "correct the mask, or name every class that occurs"
    return Fault("value_out_of_range", what, cure, odd[:MOST_VALUES])


def distinct(values: np.ndarray) -> Iterable[int]:
    """The values of an integer array, ascending."""
    if values.dtype == np.uint8:  # Pillow counts bytes much faster than numpy sorts
        return [value for value, count in enumerate(count(values)) if count]
    return np.unique(values).tolist()


def count(indices: np.ndarray) -> list[int]:
    """How often each of 0 to 255 occurs in uint8 [H, W]."""
    return Image.fromarray(np.ascontiguousarray(indices)).histogram()


# From Pillow's modes to integers


def _values(image: Image.Image, raw: str, highest: int, path: Path) -> tuple[np.ndarray, Fault | None]:
    array = np.asarray(image)
    if image.mode == "1":
        return array.astype(np.uint8), None
    if image.mode in ("L", "P"):
        if highest != 255:  # Pillow stretched the samples to 0 to 255
            array = np.rint(array * (highest / 255)).astype(np.uint8)
        return array, None
    if image.mode in INTEGERS:
        note = Fault("mask_16bit", "more than 8 bits a pixel; read as the index itself", _AS_PNG, warning=True)
        return array.astype(np.int64), note
    if image.mode == "F":
        return _whole_numbers(array, path)
    if ";16" in raw:  # Pillow keeps the upper byte alone, and small indices live in the lower one
        raise FileError(path, Fault("mask_16bit", "16 bits in each of several channels", _AS_PNG))
    return _one_channel(array, image.mode, path)


_AS_PNG = "save masks as 8-bit grey or palette PNG of class indices"


def _samples(image: Image.Image) -> tuple[str, int]:
    """Of a picture not decoded yet: how samples are stored (Pillow's raw mode), and the highest that they can be."""
    tiles = getattr(image, "tile", [])
    if not tiles:
        return "", 255
    decoder, arguments = tiles[0][0], tiles[0][3]
    arguments = arguments if isinstance(arguments, tuple) else (arguments,)
    raw = arguments[0] if arguments and isinstance(arguments[0], str) else ""
    if decoder.startswith("ppm") and image.mode == "L":
        return raw, int(arguments[1])
    return raw, {"L;2": 3, "L;4": 15}.get(raw, 255)


def _whole_numbers(array: np.ndarray, path: Path) -> tuple[np.ndarray, Fault]:
    broken = ~(np.isfinite(array) & (np.abs(array) < 2**31))
    broken |= np.where(broken, 0, array) % 1 != 0
    if broken.any():
        odd = np.unique(array[broken & np.isfinite(array)])[:MOST_VALUES]
        what = "floating-point values that are no indices" + (": {values}" if odd.size else " (NaN or infinite)")
        raise FileError(path, Fault("float_mask", what, _AS_PNG, tuple(odd.tolist())))
    note = Fault("float_mask", "floating-point values, all whole; read as indices", _AS_PNG, warning=True)
    return array.astype(np.int64), note


def _one_channel(array: np.ndarray, mode: str, path: Path) -> tuple[np.ndarray, Fault]:
    """The one channel of LA and PA, or of RGB with equal channels."""
    index = np.ascontiguousarray(array[..., 0])
    grey = mode in ("LA", "PA") or (
        mode in ("RGB", "RGBA", "RGBX") and all((array[..., k] == index).all() for k in (1, 2))
    )
    if not grey:
        cure = "save class indices: replace each colour by the number of its class"
        raise FileError(path, Fault("rgb_mask", "colours where class indices are needed", cure))
    if mode in ("LA", "PA", "RGBA") and (array[..., -1] != 255).any():
        what = "partly transparent: what is meant there?"
        raise FileError(path, Fault("alpha_mask", what, _AS_PNG))
    if mode in ("LA", "PA"):
        return index, Fault("alpha_mask", "an alpha channel, opaque all over; left out", _AS_PNG, warning=True)
    return index, Fault("rgb_mask", "three equal channels; one of them is read as the index", _AS_PNG, warning=True)


def _greys(image: Image.Image) -> frozenset[int]:
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    used = [index for index, times in enumerate(image.histogram()) if times and index < len(palette)]
    greys = palette[used, 0]
    if (palette[used] != greys[:, None]).any() or (greys == used).all() or set(greys.tolist()) <= {0, 255}:
        return frozenset()
    return frozenset(greys.tolist())


def _frames(image: Image.Image) -> Fault | None:
    frames = getattr(image, "n_frames", 1)
    if frames == 1:
        return None
    return Fault("unreadable", f"{frames} frames: which one is the mask?", "save the one that is meant alone")


def _lossy(image: Image.Image, path: Path) -> Fault | None:
    name = LOSSY.get(image.format or "")
    if image.format == "WEBP" and _webp_is_lossy(path):
        name = "lossy WebP"
    if image.format == "TIFF" and image.info.get("compression") in LOSSY_TIFF:
        name = "TIFF compressed as JPEG or WebP"
    if name is None:
        return None
    cure = "its indices are not what they were: make it again from the original, as PNG"
    return Fault("lossy_mask", f"saved as {name}, which may change values", cure)


def _webp_is_lossy(path: Path) -> bool:
    """Whether the first picture data in the file's chunks is VP8 (lossy) and not VP8L (Google's WebP container)."""
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:4] in (b"VP8 ", b"VP8L"):
                return head[:4] == b"VP8 "
            size = int.from_bytes(head[4:], "little")
            file.seek(size + size % 2, 1)
    return True
