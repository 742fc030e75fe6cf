"""How good a model is on a set: every picture predicted, compared with its truth, counted once."""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from espy.data.kinds import open_set
from espy.data.sets import Dataset, size_words
from espy.errors import DataError, EspyError
from espy.labels import CITYSCAPES, Label, find
from espy.measure import classify, detect
from espy.measure.mapping import read_mapping, table
from espy.measure.segment import VOID, Scores, confusion, mean, scores
from espy.output import shown
from espy.run.predictor import Model, load
from espy.spec import nearest

AHEAD = 2  # pairs that are read while the engine runs
FULL_SIZE = (1024, 2048)  # (height, width) of Cityscapes' masks
PROTOCOLS = ("cityscapes", "mean-over-images", "void-counted")


@dataclass(frozen=True)
class Reading:
    """Another way to count: its mIoU, 0..1 (nan where nothing counts), and why it differs from the standard one."""

    miou: float
    why: str


@dataclass(frozen=True)
class Worst:
    """One of the worst pictures: its place in the set, its own mIoU, and what was predicted, uint8 [H, W], 255 = no class."""

    index: int
    miou: float
    prediction: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What all tasks' evaluations share. `labels`: the classes that count. `protocol`: how it was measured."""

    labels: tuple[Label, ...]
    protocol: Mapping[str, Any] = field(kw_only=True)

    metric: ClassVar[str]
    """The name of the figure by which weights are chosen."""

    @property
    def figure(self) -> float:
        """That figure, 0..1."""
        raise NotImplementedError

    def figures(self) -> dict[str, Any]:
        """All figures as JSON has them: a number or null each, and one object by class."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as docs/schema/eval.json has it; null where a figure is not a number."""
        return {**self.figures(), "protocol": dict(self.protocol)}


@dataclass(frozen=True)
class Evaluation(Measured):
    """What a segmentation model does on a set.

    `labels`: K of them. `matrix`: pixels, int64 [K + 1, K + 1], row = truth, column = prediction, the last of each void.
    `truth_table`: uint8 [256], a value of the set's masks → place in `labels`, 255 void. `of_pictures`: each picture's own mIoU
    in the set's order, nan where no pixel counts. `unknown`: classes that no label of the model means. `worst`: worst first.
    """

    metric = "mIoU"

    matrix: np.ndarray
    truth_table: np.ndarray
    of_pictures: tuple[float, ...]
    unknown: tuple[str, ...]
    worst: tuple[Worst, ...]

    @cached_property
    def scores(self) -> Scores:
        """The standard reading: void left out of the truth, one matrix over all pictures."""
        return scores(self.matrix)

    @property
    def miou(self) -> float:
        """Mean IoU of the classes that occur, 0..1."""
        return self.scores.miou

    @property
    def figure(self) -> float:
        return self.miou

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right, 0..1."""
        return self.scores.pixel_accuracy

    @property
    def class_accuracy(self) -> float:
        """Mean over the classes of the share that is right, 0..1."""
        return self.scores.class_accuracy

    @property
    def iou(self) -> dict[str, float]:
        """Class name → IoU, 0..1; nan for a class in neither truth nor prediction."""
        return {label.name: float(value) for label, value in zip(self.labels, self.scores.iou, strict=True)}

    @property
    def shares(self) -> dict[str, float]:
        """Class name → share of the labelled pixels, 0..1."""
        truth = self.matrix[:-1].sum(1)
        return {label.name: float(n) / max(1, truth.sum()) for label, n in zip(self.labels, truth, strict=True)}

    def truth(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the set as it was counted: uint8 [H, W], places in `labels`, 255 void."""
        counted: np.ndarray = self.truth_table[mask]
        return counted

    def reading(self, protocol: str) -> Reading:
        """The figure by another of PROTOCOLS. Raises EspyError where it is unknown or means nothing for this set."""
        check_protocol(protocol, self.labels)
        if protocol == "void-counted":
            value = scores(self.matrix, void_counted=True).miou
            return Reading(value, "void stays in the truth: whatever is predicted on it is a false alarm of that class")
        if protocol == "mean-over-images":
            known = [value for value in self.of_pictures if not math.isnan(value)]
            value = sum(known) / len(known) if known else math.nan
            return Reading(
                value, "each picture's own mIoU, averaged: a few pixels of a class weigh as much as a full view"
            )
        small = [size for size in self.protocol["label_sizes"] if tuple(size) != FULL_SIZE]
        why = "equal to the standard reading, which counts as the benchmark does: 19 classes, masks of full size"
        if small:
            why = (
                f"masks are {size_words(small[0])}, the benchmark's {size_words(FULL_SIZE)}: not to be compared with it"
            )
        return Reading(self.miou, why)

    def figures(self) -> dict[str, Any]:
        return {
            "miou": number(self.miou),
            "pixel_accuracy": number(self.pixel_accuracy),
            "class_accuracy": number(self.class_accuracy),
            "iou": {name: number(value) for name, value in self.iou.items()},
        }


@dataclass(frozen=True)
class ClassEvaluation(Measured):
    """What a classifier does on a set; `scores` counts as espy.measure.classify does."""

    scores: classify.Scores

    metric = "top-1"

    @property
    def figure(self) -> float:
        return self.scores.top1

    @property
    def accuracy(self) -> dict[str, float]:
        """Class name → share of its pictures that is right, 0..1; nan where there is none."""
        return {label.name: float(value) for label, value in zip(self.labels, self.scores.accuracy, strict=True)}

    def figures(self) -> dict[str, Any]:
        found = self.scores
        return {
            "top1": found.top1, "top5": found.top5, "calibration_error": found.calibration_error,
            "class_accuracy": number(found.class_accuracy),
            "accuracy": {name: number(value) for name, value in self.accuracy.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class BoxEvaluation(Measured):
    """What a detector does on a set: as COCO counts, and each kind's AP as Pascal VOC counts, float64 [K]."""

    coco: detect.Coco
    voc: np.ndarray

    metric = "AP50"

    @property
    def figure(self) -> float:
        return self.coco.ap50

    @property
    def ap50(self) -> dict[str, float]:
        """Kind → AP at IoU 0.5, 0..1; nan for a kind that the set does not have."""
        return {label.name: float(value) for label, value in zip(self.labels, self.coco.kinds50, strict=True)}

    def figures(self) -> dict[str, Any]:
        return {
            "map": number(self.coco.map), "ap50": number(self.coco.ap50), "ap75": number(self.coco.ap75),
            "voc_ap50": number(mean(self.voc)),
            "ap50_of": {name: number(value) for name, value in self.ap50.items()},
        }  # fmt: skip


METRICS = {"segment": Evaluation.metric, "classify": ClassEvaluation.metric, "detect": BoxEvaluation.metric}
"""Task → the figure by which weights are chosen."""


def check_protocol(protocol: str, labels: Sequence[Label]) -> None:
    """Raise EspyError for a reading that is unknown or means nothing for a set of these labels."""
    if protocol not in PROTOCOLS:
        raise EspyError(f"unknown protocol {protocol!r}: {nearest(protocol, PROTOCOLS)}")
    names, wanted = ([label.name for label in part if not label.ignored] for part in (labels, CITYSCAPES))
    if protocol == "cityscapes" and names != wanted:
        raise DataError(
            f"protocol cityscapes is for Cityscapes' 19 classes; this set has {len(names)} of its own: "
            "use mean-over-images or void-counted"
        )


def number(value: float) -> float | None:
    """A figure as JSON has it: None for nan."""
    return None if math.isnan(value) else value


def evaluate(
    model: Model | str | Path,
    data: Dataset | str,
    *,
    split: str | None = "val",
    mapping: Mapping[str, str] | str | Path | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    worst: int = 0,
    advance: Callable[[str], None] = lambda name: None,
    **loading: Any,
) -> Any:
    """Measure a model on a set (or `KIND:PATH`): Evaluation, ClassEvaluation or BoxEvaluation, by the model's task.

    Masks are compared at their own size, boxes in the picture's own pixels.

    `model`: a loaded one, or what `espy.load` takes; for the latter `loading` is load's keywords: `engine`, `threads`,
    `precision`, `size`, `tile`, `overlap`, `header`. `mapping`: what the model's labels mean in the set, by file, shipped name
    or as a dict; by equal names unless given. `flip`: see every picture mirrored too; `scales`: at several scales. `worst`:
    keep the predictions of so many of the worst pictures; these four are for segmentation. `advance` is called with each
    picture's name when it is done.
    Raises EspyError for a pair that cannot be read: a figure over part of a set would be another figure.
    """
    if not isinstance(model, Model):
        with load(model, **loading) as loaded:
            return evaluate(
                loaded, data, split=split, mapping=mapping, flip=flip, scales=scales, worst=worst, advance=advance
            )
    if loading:
        raise EspyError(f"{', '.join(loading)}: chosen when a model is loaded, so give it to espy.load")
    opened = open_set(data, split, model.task) if isinstance(data, str) else data.only(split)
    if opened.task != model.task:
        raise DataError(f"{opened.root}: holds truth for the task {opened.task}, the model's is {model.task}")
    if not opened.items:
        raise DataError(f"{opened.root}: no pairs to evaluate on: see espy check {opened.kind}:{opened.root}")
    if model.task == "segment":
        return _masks(model, opened, split, mapping, flip, scales, worst, advance)
    if mapping is not None or flip or tuple(scales) != (1.0,) or worst:
        raise EspyError(f"mapping, flip, scales and worst are for segmentation, the model's task is {model.task}")
    return (_classes if model.task == "classify" else _boxes)(model, opened, split, advance)


def _masks(
    model: Model, opened: Dataset, split: str | None, mapping: Mapping[str, str] | str | Path | None, flip: bool,
    scales: Sequence[float], worst: int, advance: Callable[[str], None],
) -> Evaluation:  # fmt: skip
    named = mapping if mapping is None or isinstance(mapping, Mapping) else read_mapping(mapping)
    labels = tuple(label for label in opened.labels if not label.ignored)
    to_class = table(model.labels, labels, named)
    truth_table = np.full(256, VOID, np.uint8)
    truth_table[[value for value, label in enumerate(opened.labels) if not label.ignored]] = range(len(labels))
    predict = _predictor(model, flip, scales)

    matrix = np.zeros((len(labels) + 1,) * 2, np.int64)
    of_pictures: list[float] = []
    sizes: Counter[tuple[int, int]] = Counter()
    kept: list[tuple[float, int, np.ndarray]] = []  # a heap, the best of the worst first
    for index, (image, mask) in enumerate(_read_ahead(opened)):
        truth, prediction = truth_table[mask], to_class[predict(image)]
        one = confusion(truth, prediction, len(labels))
        matrix += one
        own = scores(one).miou
        of_pictures.append(own)
        sizes[image.height, image.width] += 1
        if worst and not math.isnan(own):
            heapq.heappush(kept, (-own, -index, prediction))
            if len(kept) > worst:
                heapq.heappop(kept)
        advance(opened.items[index].picture.name)
    return Evaluation(
        labels, matrix, truth_table, tuple(of_pictures),
        tuple(label.name for place, label in enumerate(labels) if place not in to_class[: len(model.labels)]),
        tuple(Worst(-index, -own, prediction) for own, index, prediction in sorted(kept, reverse=True)),
        protocol={
            **_protocol(model, opened, split),
            "tile": list(model.tiling.tile) if model.tiling else None,
            "overlap": model.tiling.overlap if model.tiling else None,
            "label_sizes": [list(size) for size, _ in sizes.most_common()],
            "ignored": ["void", *(label.name for label in opened.labels if label.ignored)],
            "mapping": "given" if isinstance(mapping, Mapping) else Path(mapping).stem if mapping else None,
            "scales": [float(scale) for scale in scales],
            "flip": flip,
        },
    )  # fmt: skip


def _classes(model: Model, opened: Dataset, split: str | None, advance: Callable[[str], None]) -> ClassEvaluation:
    place = _places(model, opened)
    truth, found = [], []
    for index, (image, shown_class) in enumerate(_read_ahead(opened)):
        truth.append(shown_class)
        found.append(model(image).probabilities[place])
        advance(opened.items[index].picture.name)
    counted = classify.scores(np.stack(found), np.array(truth))
    return ClassEvaluation(opened.labels, counted, protocol=_protocol(model, opened, split))


def _boxes(model: Model, opened: Dataset, split: str | None, advance: Callable[[str], None]) -> BoxEvaluation:
    place = _places(model, opened)
    own = np.argsort(place)  # the model's class → the set's
    truth, found = [], []
    for index, (image, boxes) in enumerate(_read_ahead(opened)):
        aside = {"crowd": boxes.crowd} if opened.kind == "coco" else {"difficult": boxes.crowd}
        truth.append(detect.Truth(boxes.corners, boxes.classes, **aside))
        seen = model(image)
        found.append(detect.Found(seen.boxes, seen.scores, own[seen.classes]))
        advance(opened.items[index].picture.name)
    kinds = len(opened.labels)
    return BoxEvaluation(
        opened.labels, detect.coco(found, truth, kinds), detect.voc(found, truth, kinds),
        protocol=_protocol(model, opened, split),
    )  # fmt: skip


def _places(model: Model, opened: Dataset) -> np.ndarray:
    """int64 [K]: where in the model's labels each of the set's stands. Raises DataError where they are not the same ones."""
    places = [find(label.name, model.labels) for label in opened.labels]
    lacking = [label.name for label, place in zip(opened.labels, places, strict=True) if place is None]
    if lacking:
        raise DataError(f"{opened.root}: its classes are not the model's: it does not know {lacking[0]!r}")
    if sorted(place for place in places if place is not None) != list(range(len(model.labels))):
        what = f"it knows {len(model.labels)} classes, the set has {len(places)}"
        raise DataError(f"{opened.root}: its classes are not the model's: {what}")
    return np.array(places)


def _predictor(model: Model, flip: bool, scales: Sequence[float]) -> Callable[[Image.Image], np.ndarray]:
    if not flip and tuple(scales) == (1.0,):
        return lambda image: model(image).mask
    return model.averaging(flip, scales)


def _read_ahead(data: Dataset) -> Iterator[tuple[Image.Image, Any]]:
    """Every pair in order; the next ones are read while the caller works."""
    waiting: deque[Future[tuple[Image.Image, Any]]] = deque()
    left = iter(range(len(data)))
    with ThreadPoolExecutor(1, thread_name_prefix="espy-read") as pool:
        try:
            while True:
                for index in islice(left, 1 + AHEAD - len(waiting)):
                    waiting.append(pool.submit(data.read, index))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _protocol(model: Model, data: Dataset, split: str | None) -> dict[str, Any]:
    seen: Any = model.size or (model.preprocess.size if model.preprocess.resize != "native" else "native")
    return {
        "model": shown(model.path.stem),
        "engine": model.engine.name,
        "precision": model.engine.precision,
        "data": data.kind,
        "split": split,
        "images": len(data),
        "size": seen if seen == "native" else list(seen),
    }
