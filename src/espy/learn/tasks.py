"""What of a first recipe differs by task: what is counted, what the network sees, how pictures vary; no torch."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from math import ceil, floor, sqrt
from types import MappingProxyType
from typing import ClassVar

from espy.data.augment import Augment
from espy.data.check import Report

STEP = 32  # sides are multiples of it, as the deployed ESPNetv2 needs them
LONGEST = 16  # width by height, or height by width
MOST_PIXELS = 512 * 1024  # that the network sees where masks are learnt; as many as `street`
MOST_TRAINED = 384 * 640  # pixels of a crop in training, which takes half the time and memory
CLASSIFIED = (64, 224)  # smallest side that a classifier sees, two of its last cells, and largest, as on ImageNet
DETECTED = (320, 512)  # smallest and largest side that a detector sees
LEAST_BOX_PX = 16  # of a box's shorter side: two of the detector's finest cells
RARE = 0.01  # share of the labelled pixels below which a class makes all be weighted
UNEVEN = 0.25  # the same of pictures, by the share that each class would have if all had as many
MUCH_LARGER = 2.0  # times what the network sees: from here on it is said that small things vanish
ONE_SHAPE = 1.2  # widest shape by narrowest, or long side by short: from here on stretching and cutting are said


class Task:
    """What of a recipe and its reasons depends on the task. `size` is the (height, width) that the network sees."""

    truth: ClassVar[str]
    """What the pictures have, in words."""

    unit: ClassVar[str]
    """What classes are counted in."""

    looked: ClassVar[str] = ""
    """How classes were found that no file names, and what to do, in words."""

    starts: ClassVar[tuple[str, ...]]
    """Bundled ESPNetv2 to start from, which were trained on thousands of pictures."""

    batch: ClassVar[int] = 8
    smoothing: ClassVar[float] = 0.0
    part: ClassVar[str] = ""
    """What of a picture the network sees, in words; "": all."""

    speed: ClassVar[Mapping[str, float]]
    """Network → crops of MOST_TRAINED pixels that two cores train on in a second in bfloat16; smaller ones as their pixels."""

    float32: ClassVar[float]
    """Times as long as that in float32."""

    looking: ClassVar[float] = 1 / 3
    """Time of a validated picture by that of a crop of its size trained on: there is no way back."""

    def counts(self, report: Report) -> tuple[int, ...]:
        """How often each class occurs."""
        raise NotImplementedError

    def unfit(self, report: Report) -> str:
        """Why a set without faults cannot be trained on, and what to do; "" where it can."""
        raise NotImplementedError

    def size(self, report: Report) -> tuple[int, int]:
        """The (height, width) to see."""
        raise NotImplementedError

    def augment(self, size: tuple[int, int]) -> Augment:
        """How pictures vary in training."""
        raise NotImplementedError

    def rare(self, classes: int) -> float:
        """The share below which a class makes all of these be weighted; 0: they never are."""
        raise NotImplementedError

    def seen(self, report: Report, size: tuple[int, int]) -> Iterator[str]:
        """What becomes of the pictures on their way into the network, in words."""
        raise NotImplementedError


class Segment(Task):
    """Masks."""

    truth = "with masks"
    unit = "labelled pixels"
    looked = "counted in the masks and named by number: name them in classes.txt"
    starts = ("street", "objects")
    speed = MappingProxyType({"espnetv2": 2.0, "espnetv2_first": 2.6, "espnet": 6.0})
    float32 = 2.0

    def counts(self, report: Report) -> tuple[int, ...]:
        return tuple(report.pixels.get(value, 0) for value in range(len(report.data.labels)))

    def unfit(self, report: Report) -> str:
        if len(report.data.labels) < 2:
            return "has one class, so there is nothing to tell apart: name two or more in classes.txt"
        return "" if any(self.counts(report)) else "every pixel is void, so there is nothing to learn: label some"

    def size(self, report: Report) -> tuple[int, int]:
        return network_size(*median_size(report), MOST_PIXELS)

    def augment(self, size: tuple[int, int]) -> Augment:
        crop = network_size(*size, MOST_TRAINED)
        if crop == size:
            return Augment()
        low, high = Augment().scale
        whole = floor(100 * sqrt(area(crop) / area(size))) / 100  # the scale at which a crop is the whole picture
        return Augment(crop=crop, scale=(min(low, whole), high))

    def rare(self, classes: int) -> float:
        return RARE

    def seen(self, report: Report, size: tuple[int, int]) -> Iterator[str]:
        yield from _stretched(report)
        height, width = median_size(report)
        times = sqrt(height * width / area(size))
        if times > MUCH_LARGER:
            yield (
                f"the median picture is {times:.1f} times as high and wide as what the network sees, so small things vanish: "
                "where they matter, cut pictures and masks into parts, or raise size and crop, which takes longer"
            )


class Classify(Task):
    """A class a picture."""

    truth = "in folders of their classes"
    unit = "pictures"
    starts = ("objects",)
    batch = 32
    smoothing = 0.1
    part = "the middle of a picture at "
    speed = MappingProxyType({"espnetv2": 2.7})  # 1.35 times a segmenter's, both measured in turn on one core
    float32 = 1.1

    def counts(self, report: Report) -> tuple[int, ...]:
        return report.pictures

    def unfit(self, report: Report) -> str:
        if sum(map(bool, report.pictures)) < 2:
            return "has pictures of one class, so there is nothing to tell apart: add a folder of another"
        return ""

    def size(self, report: Report) -> tuple[int, int]:
        least, most = CLASSIFIED
        short = statistics.median(min(size) for size in Counter(report.sizes).elements())
        side = min(most, max(least, int(short) // STEP * STEP))
        return side, side

    def augment(self, size: tuple[int, int]) -> Augment:
        return Augment(scale=(1.0, 1.7), stretch=1.3)

    def rare(self, classes: int) -> float:
        return UNEVEN / classes

    def seen(self, report: Report, size: tuple[int, int]) -> Iterator[str]:
        longest = max(max(one) / min(one) for one in report.sizes)
        if longest > ONE_SHAPE:
            yield (
                f"long sides are up to {longest:.2f} times the short ones, and in use the network sees the middle square alone: "
                "cut out yourself what counts where it lies elsewhere"
            )


class Detect(Task):
    """Boxes."""

    truth = "with boxes"
    unit = "boxes"
    looked = "found in the annotations: see that none is misspelt or without a name, or name them in classes.txt"
    starts = ("objects",)
    part = "the whole picture at "
    speed = MappingProxyType({"espnetv2": 2.0})  # as a segmenter's, measured so
    float32 = 1.1
    looking = 2 / 3  # and boxes that overlap have to be found

    def counts(self, report: Report) -> tuple[int, ...]:
        return report.boxes

    def unfit(self, report: Report) -> str:
        if not report.box_side:
            return "has no box to learn, as crowds and difficult ones are not learnt: label some"
        return ""

    def size(self, report: Report) -> tuple[int, int]:
        least, most = DETECTED
        enough = ceil(LEAST_BOX_PX / report.box_side / STEP) * STEP
        own = round(max(median_size(report)) / STEP) * STEP  # enlarged, pictures show nothing new
        side = max(least, min(most, enough, own))
        return side, side

    def augment(self, size: tuple[int, int]) -> Augment:
        return Augment(scale=(0.8, 1.8), stretch=1.2, overlap=(0.0, 0.3, 0.5))

    def rare(self, classes: int) -> float:
        return 0.0

    def seen(self, report: Report, size: tuple[int, int]) -> Iterator[str]:
        yield from _stretched(report)
        least, side, share = DETECTED[0], size[0], report.box_side
        words = f"the median box's shorter side is {100 * share:.1f} % of its picture's, {share * side:.0f} of {side} pixels"
        if side > least:
            words += f"; of {least} pixels, which are usual, it would be {share * least:.0f}"
        if share * side < LEAST_BOX_PX:
            words += f"; below {LEAST_BOX_PX} things are hard to find: cut pictures, with their boxes, into parts"
        yield words


TASKS: dict[str, Task] = {"segment": Segment(), "classify": Classify(), "detect": Detect()}


def _stretched(report: Report) -> Iterator[str]:
    shapes = [w / h for h, w in report.sizes]
    if max(shapes) > ONE_SHAPE * min(shapes):
        yield (
            f"width / height goes from {min(shapes):.2f} to {max(shapes):.2f}: all are stretched to one shape, in training "
            "as in use"
        )


def network_size(height: float, width: float, most: int) -> tuple[int, int]:
    """The largest (height, width) of this shape, sides multiples of STEP, at most `most` pixels and no larger than given.

    A side of the given size counts as rounded to STEP, so that 360 x 480 gives 352 x 480, and one longer than LONGEST times
    the other as that.

    >>> network_size(1080, 1920, MOST_PIXELS), network_size(360, 480, MOST_PIXELS)
    ((544, 960), (352, 480))
    """

    def near(side: float) -> int:
        return max(1, round(side / STEP)) * STEP

    height, width = min(height, LONGEST * width), min(width, LONGEST * height)
    fitting = [
        (high, wide)
        for high in range(STEP, near(height) + 1, STEP)
        if (wide := min(near(high * width / height), near(width))) * high <= most
    ]
    return max(fitting, key=lambda size: size[0] * size[1])


def median_size(report: Report) -> tuple[float, float]:
    """(height, width) of the median picture."""
    sizes = list(Counter(report.sizes).elements())
    height, width = (statistics.median(size[side] for size in sizes) for side in (0, 1))
    return height, width


def area(size: tuple[int, int]) -> int:
    """Pixels of a (height, width)."""
    return size[0] * size[1]
