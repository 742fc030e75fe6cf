"""Pictures from files, bytes, arrays and Pillow images: 8-bit RGB, upright, or a reason why not."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from espy.errors import EspyError, PictureError

MAX_PIXELS = 100_000_000
"""Pictures larger than this are refused unless told otherwise: 100 megapixels are 300 MB as RGB."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
"""Only these of Pillow's decoders are used; the others are rarely needed and some of them start other programs."""

ENDINGS = {
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".ppm", ".pgm",
}  # fmt: skip
"""What a search through a folder takes; a file that is named itself is tried whatever its ending."""

ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

Source: TypeAlias = "str | Path | bytes | IO[bytes] | Image.Image | np.ndarray"

_opening = threading.Lock()


class TooLargeError(PictureError):
    """A picture of more pixels than the `limit`; `size` says how large it is."""

    def __init__(self, name: str, width: int, height: int, limit: int) -> None:
        self.limit, self.size = limit, f"{width}x{height} is {width * height / 1e6:.1f} megapixels"
        super().__init__(
            f"{name}: {self.size}, above the limit of {limit / 1e6:g}: raise it with --max-pixels N if the file is trusted"
        )


@dataclass(frozen=True)
class Picture:
    """A picture that was read.

    `image` is 8-bit RGB and upright; `note` says what was left out ("first of 3 frames"); `orientation` is the EXIF
    orientation that it was stored in, 1 (upright) to 8.
    """

    image: Image.Image
    source: str
    note: str | None = None
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.height, self.image.width

    @cached_property
    def array(self) -> np.ndarray:
        """The pixels as uint8 [H, W, 3]."""
        return np.asarray(self.image)


def read(source: Source, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture.

    `source`: a path, the bytes of a file, an open binary file, a Pillow image, or a uint8 array [H, W, 3] RGB or [H, W].
    Turned upright by EXIF, alpha dropped, 16 bits scaled to 8, of several frames the first. Raises PictureError, one line,
    for what cannot be read whole: never a part of a picture, never a wrong one.
    """
    if isinstance(source, np.ndarray):
        return Picture(_from_array(source, max_pixels), "array")
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "") or "picture")
        picture = _finish(source, name, max_pixels)
        return replace(picture, image=source.copy()) if picture.image is source else picture  # it may change later
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), "bytes", max_pixels)
    if isinstance(source, str | Path):
        return _read_file(Path(source), max_pixels)
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise PictureError("a file opened as text: open it with mode 'rb'")
        return _decode(io.BytesIO(data), str(getattr(source, "name", "file")), max_pixels)
    raise PictureError(f"{type(source).__name__} is not a picture: give a path, bytes, an image or a uint8 array")


@contextlib.contextmanager
def stored(path: Path, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """A picture file as it is stored: Pillow's own image and mode, not decoded yet, neither turned nor converted.

    For masks, whose values are no colours. Raises PictureError as `read` does, for decoding inside the block too.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("I;16", (4, 2), 700).save(Path(folder) / "mask.png")
    ...     with stored(Path(folder) / "mask.png") as image:
    ...         image.mode, image.getpixel((0, 0))
    ('I;16', 700)
    """
    if path.is_dir():
        raise PictureError(f"{path}: is a folder, not a picture")
    try:
        with path.open("rb") as file:
            _check_png(file)
            try:
                image = _open(file)
            except UnidentifiedImageError:
                raise PictureError(f"{path}: {_looks_like(file)}") from None
            with image:
                check_size(image.width, image.height, str(path), max_pixels)
                yield image
    except EspyError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file") from None
    except MemoryError:
        raise PictureError(f"{path}: not enough memory to decode it") from None
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        raise PictureError(f"{path}: damaged or truncated ({_reason(error)})") from None


def _read_file(path: Path, max_pixels: int) -> Picture:
    try:
        if path.is_dir():
            raise PictureError(f"{path}: is a folder, not a picture")
        with path.open("rb") as file:
            return _decode(file, str(path), max_pixels)
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # a zero byte in a name is a ValueError
        raise PictureError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _decode(file: IO[bytes], name: str, max_pixels: int) -> Picture:
    try:
        _check_png(file)
        image = _open(file)
    except PictureError as error:
        raise PictureError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise PictureError(f"{name}: {_looks_like(file)}") from None
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        raise PictureError(f"{name}: damaged or truncated ({_reason(error)})") from None
    with image:
        return _finish(image, name, max_pixels)


def _check_png(file: IO[bytes]) -> None:
    """Checksums of a PNG's chunks: Pillow passes over those of the pixels."""
    if file.read(8) == b"\x89PNG\r\n\x1a\n":
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            content, total = file.read(int.from_bytes(head[:4])), file.read(4)
            if len(total) < 4:
                raise PictureError("damaged or truncated (the PNG file ends in the middle)")
            if zlib.crc32(content, zlib.crc32(head[4:])) != int.from_bytes(total):
                raise PictureError(f"damaged or truncated (wrong checksum of {head[4:]!r})")
    file.seek(0)


def _open(file: IO[bytes]) -> Image.Image:
    """Image.open without its size limit, which is a warning below a fixed number and no choice above it; ours follows."""
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _finish(image: Image.Image, name: str, max_pixels: int) -> Picture:
    """Decode, turn upright, convert to 8-bit RGB."""
    check_size(image.width, image.height, name, max_pixels)
    try:
        frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
        image.load()
        rgb = _to_rgb(image)
        stored_in = orientation(image)
    except PictureError as error:
        raise PictureError(f"{name}: {error}") from None
    except MemoryError:
        raise PictureError(f"{name}: not enough memory for {image.width}x{image.height} pixels") from None
    except Exception as error:  # as above
        raise PictureError(f"{name}: damaged or truncated ({_reason(error)})") from None
    rotation = UPRIGHT.get(stored_in)
    if rotation is not None:
        rgb = rgb.transpose(rotation)
    note = f"the first of {frames} frames" if frames > 1 else None
    return Picture(rgb, name, note, stored_in if rotation is not None else 1)


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raise PictureError for a picture without pixels or with more than `max_pixels`."""
    if width < 1 or height < 1:
        raise PictureError(f"{name}: a picture of {width}x{height} has no pixels")
    if width * height > max_pixels:
        raise TooLargeError(name, width, height, max_pixels)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a Pillow image, 1 (upright) to 8; 1 where it has none or a damaged one."""
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = image.getexif().get(ORIENTATION, 1)
        except Exception:  # a damaged EXIF block: show as stored
            return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.copy() if image.readonly else image
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray(_from_16_bits(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_from_floats(np.asarray(image))).convert("RGB")
    if image.mode in ("P", "PA", "RGBa", "La"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGB")


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise PictureError(f"32-bit values from {low} to {high}: save it with 8 or 16 bits")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_floats(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise PictureError("floating-point pixels that are not numbers (NaN or infinite): repair or convert it")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise PictureError(
            f"floating-point pixels from {low:g} to {high:g}, only 0 to 1 is known: convert it to 8 or 16 bits"
        )
    return np.rint(values * 255).astype(np.uint8)


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise PictureError(
            f"an array of {array.dtype} {list(array.shape)}: give uint8 [H, W, 3] (RGB) or [H, W] (grey)"
        )
    check_size(array.shape[1], array.shape[0], "array", max_pixels)
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def _looks_like(file: IO[bytes]) -> str:
    """What a file is that no decoder knows."""
    file.seek(0)
    start = file.read(512)
    head = start.lstrip().lower()
    if not start:
        return "an empty file"
    if not start.strip(b"\0"):
        return "a file of zero bytes: its content was lost"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the picture: fetch it with `git lfs pull`"
    if b"<svg" in head:
        return "an SVG drawing, which has no pixels: export it as PNG"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML or XML page, not a picture"
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "a HEIC picture, which is not read: convert it to JPEG"
    if head.startswith(b"%pdf"):
        return "a PDF document: export its page as PNG"
    return (
        "not a picture of a known format (JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000, PPM), or cut in its header"
    )
