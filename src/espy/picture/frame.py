"""The way from a picture to what the network sees, and back: how it was resized, remembered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from PIL import Image

from espy.errors import EspyError

if TYPE_CHECKING:
    from espy.header import Preprocess

SMALLEST_NATIVE = 32  # pixels a side; smaller pictures are enlarged to it

Size: TypeAlias = "tuple[int, int] | Literal['native'] | None"


@dataclass(frozen=True)
class Frame:
    """A picture of `picture` (height, width) pixels, whose part `box` the network sees at `network` (height, width).

    `box`: left, top, right, bottom in the picture's pixels, the whole picture unless it is cropped.
    """

    picture: tuple[int, int]
    network: tuple[int, int]
    box: tuple[float, float, float, float]
    filter: Literal["antialias", "plain"]

    @classmethod
    def of(cls, preprocess: Preprocess, picture: tuple[int, int], size: Size = None) -> Frame:
        """The frame of a picture's (height, width) as `preprocess` says, or at another `size` if one is given."""
        height, width = picture
        whole = (0.0, 0.0, float(width), float(height))
        if size == "native" or (size is None and preprocess.resize == "native"):
            return cls(picture, native_size(picture, preprocess.multiple), whole, preprocess.filter)
        network = size or preprocess.size
        if preprocess.resize == "short":
            scale = preprocess.crop * min(height / network[0], width / network[1])
            h, w = network[0] * scale, network[1] * scale
            left, top = (width - w) / 2, (height - h) / 2
            return cls(picture, network, (left, top, left + w, top + h), preprocess.filter)
        return cls(picture, network, whole, preprocess.filter)

    @property
    def _whole(self) -> bool:
        return self.box == (0, 0, self.picture[1], self.picture[0])

    def to_network(self, picture: Image.Image | np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] for the network, of an RGB Pillow image or uint8 [H, W, 3]."""
        given = picture.shape[:2] if isinstance(picture, np.ndarray) else (picture.height, picture.width)
        if given != self.picture:
            raise EspyError(f"a frame for {self.picture} (height, width) was given a picture of {given}")
        if self.network == self.picture and self._whole:
            return np.asarray(picture)
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        image, box = _cut_out(image, self.box, self.network)
        if self.filter == "plain":
            return resize_plain(np.asarray(image), self.network, box)
        size = (self.network[1], self.network[0])
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))

    def part(self, top: int, left: int, bottom: int, right: int) -> Frame:
        """The frame of a rectangle of the network's pixels: what a tile sees."""
        across = (self.box[2] - self.box[0]) / self.network[1]
        down = (self.box[3] - self.box[1]) / self.network[0]
        box = (
            self.box[0] + left * across, self.box[1] + top * down,
            self.box[0] + right * across, self.box[1] + bottom * down,
        )  # fmt: skip
        return Frame(self.picture, (bottom - top, right - left), box, self.filter)

    def mask_back(self, mask: np.ndarray) -> np.ndarray:
        """uint8 [h, w] of the network → [H, W] of the picture, nearest neighbour at pixel centres.

        What a crop left out takes the value at its edge.
        """
        if mask.shape == self.picture and self._whole:
            return mask
        if self._whole:
            size = (self.picture[1], self.picture[0])
            return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        left, top, right, bottom = self.box
        rows = _nearest(self.picture[0], top, bottom, self.network[0])
        columns = _nearest(self.picture[1], left, right, self.network[1])
        return mask[rows][:, columns]

    def boxes_back(self, boxes: np.ndarray) -> np.ndarray:
        """[D, 4] left, top, right, bottom in the network's pixels → float32 in the picture's, clipped to it."""
        left, top, right, bottom = self.box
        h, w = self.network
        scale = np.array([(right - left) / w, (bottom - top) / h] * 2)
        moved = np.asarray(boxes, np.float64).reshape(-1, 4) * scale + [left, top, left, top]
        return np.clip(moved, 0, [self.picture[1], self.picture[0]] * 2).astype(np.float32)


def native_size(picture: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The picture's own (height, width), each rounded down to the multiple, at least 32."""
    least = -(-SMALLEST_NATIVE // multiple) * multiple
    height, width = (max(least, side // multiple * multiple) for side in picture)
    return height, width


def _cut_out(
    image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """The part of a picture that resizing `box` to `size` reads, so that a tile of a large picture costs no more than a tile."""
    left, top = max(0.0, box[0]), max(0.0, box[1])  # sums of fractions may end a hair outside
    right, bottom = min(float(image.width), box[2]), min(float(image.height), box[3])
    reach_x, reach_y = 2 + (right - left) / size[1], 2 + (bottom - top) / size[0]  # a filter's reach
    x0, y0 = max(0, int(left - reach_x)), max(0, int(top - reach_y))
    x1, y1 = min(image.width, int(right + reach_x) + 1), min(image.height, int(bottom + reach_y) + 1)
    if (x0, y0, x1, y1) == (0, 0, image.width, image.height):
        return image, (left, top, right, bottom)
    return image.crop((x0, y0, x1, y1)), (left - x0, top - y0, right - x0, bottom - y0)


def resized(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 [C, h, w] → [C, H, W] of `size`: bilinear at pixel centres, smoothing when shrinking (Pillow's)."""
    if maps.shape[1:] == size:
        return maps
    out = [Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BILINEAR) for plane in maps]
    return np.stack([np.asarray(plane) for plane in out])


def resize_plain(array: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """uint8 [H, W, 3] → uint8 [h, w, 3]: bilinear, two taps a direction at pixel centres, no smoothing (as OpenCV does).

    Weights are rounded to 1/256, so that rows fit 16 bits and the result is within one level of the exact one.
    """
    left, top, right, bottom = box
    y0, y1, fy = _taps(size[0], top, bottom, array.shape[0])
    x0, x1, fx = _taps(size[1], left, right, array.shape[1])
    out = np.empty((*size, 3), np.uint8)
    for start in range(0, size[0], 32):  # strips that stay in the cache
        part = slice(start, start + 32)
        rows = np.multiply(array[y0[part]], (256 - fy[part])[:, None, None], dtype=np.uint16)
        rows += np.multiply(array[y1[part]], fy[part][:, None, None], dtype=np.uint16)  # [32, W, 3], times 256
        sums = np.multiply(np.take(rows, x0, 1), (256 - fx)[:, None], dtype=np.uint32)
        sums += np.multiply(np.take(rows, x1, 1), fx[:, None], dtype=np.uint32)  # [32, w, 3], times 65536
        sums += 32768
        sums >>= 16
        out[part] = sums
    return out


def _taps(outputs: int, start: float, end: float, inputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two inputs beside each output's centre and the weight of the second in 1/256."""
    position = start + (np.arange(outputs) + 0.5) * (end - start) / outputs - 0.5
    position = np.clip(position, 0, inputs - 1)
    first = np.minimum(position.astype(np.int64), max(inputs - 2, 0))
    return first, np.minimum(first + 1, inputs - 1), np.rint((position - first) * 256).astype(np.uint16)


def _nearest(outputs: int, start: float, end: float, inputs: int) -> np.ndarray:
    """The input under each output's centre, where `start`..`end` of the outputs were resized to the inputs."""
    position = (np.arange(outputs) + 0.5 - start) * inputs / (end - start)
    return np.clip(np.floor(position), 0, inputs - 1).astype(np.int64)
