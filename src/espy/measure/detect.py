"""Detection: average precision as COCO and as Pascal VOC count it.

Both ask, of one kind of things at a time: going down from the detection of highest score, what share of the detections so
far is right (precision), what share of the objects is found (recall)? The average precision (AP) is the area under
precision as a function of recall, 0..1, once precision is made to never rise with recall. Crowds and difficult objects are
neither hit nor missed, and a detection of one is neither right nor wrong. A kind without any other object has no AP, nan,
and counts in no mean. Where scores are equal, what is given first comes first, as it does elsewhere.

Boxes are (x1, y1, x2, y2) in pixels and x2 - x1 wide. Pascal VOC's files name the first and the last pixel, counted from 1:
such a box is (xmin - 1, ymin - 1, xmax, ymax) here and then overlaps as in VOC's own program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from espy.errors import EngineError, ModelError
from espy.priors import areas, shared_areas

VOC_OVERLAP = 0.5  # from which IoU on a detection is of an object


@dataclass(frozen=True)
class Found:
    """What a model found in a picture: boxes float32 [D, 4], scores float32 [D] (higher is surer), classes int64 [D]."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class Truth:
    """The objects of a picture: boxes float32 [B, 4], classes int64 [B]; without the others none is a crowd or difficult.

    `crowd` bool [B]: a box around many. `difficult` bool [B]: one that nobody has to find. `area` float [B], in pixels, is
    what COCO sorts objects into small, medium and large by: the outline's there, the box's where it is not given.
    """

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray | None = None
    difficult: np.ndarray | None = None
    area: np.ndarray | None = None


@dataclass(frozen=True)
class Coco:
    """What COCO counts, 0..1, nan where no object counts: the AP of each kind, then its twelve numbers in its order.

    `kinds`, `kinds50`: float64 [K], each kind's AP as the mean over the IoUs 0.5, 0.55 .. 0.95, and at 0.5. `map`, `ap50`: their
    means over the kinds; `ap75`: at IoU 0.75. `map_small` (area up to 32² pixels), `map_medium` (to 96²), `map_large`: `map`
    of objects of that size. `ar1`, `ar10`, `ar100`: the share of the objects that is found by the best 1, 10, 100 detections
    of a kind in a picture, averaged as `map` is; `ar_small` and so on: of objects of that size.
    """

    kinds: np.ndarray
    kinds50: np.ndarray
    map: float
    ap50: float
    ap75: float
    map_small: float
    map_medium: float
    map_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float


def coco(found: Sequence[Found], truth: Sequence[Truth], classes: int) -> Coco:
    """COCO's numbers of pictures, `found` and `truth` of each in one order, for kinds 0..classes - 1.

    Counted by faster-coco-eval by the rules of pycocotools. At most 100 detections of a kind in a picture count. A crowd
    takes every detection of which the threshold's share lies in it; a difficult object counts as a crowd, for COCO knows
    none. Raises EngineError where faster-coco-eval is not installed, ModelError for what is no detection.

    >>> boxes, kind = np.array([[10.0, 10, 50, 50]], np.float32), np.array([0])
    >>> seen = coco([Found(boxes + 2, np.ones(1), kind)], [Truth(boxes, kind)], 2)
    >>> round(seen.map, 3), round(seen.ap50, 3), seen.kinds.round(3).tolist()
    (0.7, 1.0, [0.7, nan])
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ModuleNotFoundError as error:
        raise EngineError(f"measuring detections needs {error.name}: pip install 'espy-vision[train]'") from None
    _check(found, truth, classes)

    def as_coco(annotations: list[dict[str, Any]]) -> COCO:
        numbered = [{"id": number, **row} for number, row in enumerate(annotations, 1)]  # 0 means "no match" there
        images, kinds = ([{"id": number} for number in range(n)] for n in (len(truth), classes))
        return COCO({"images": images, "categories": kinds, "annotations": numbered})

    evaluation = COCOeval_faster(as_coco(_objects(truth)), as_coco(_detections(found)), "bbox")
    evaluation.run()
    precision = evaluation.eval["precision"][..., 0, -1]  # [IoU, recall, kind] of any area, up to 100 detections
    kinds, kinds50 = (_known(part.mean((0, 1))) for part in (precision, precision[:1]))
    return Coco(kinds, kinds50, *_known(evaluation.stats).tolist())


def voc(found: Sequence[Found], truth: Sequence[Truth], classes: int, *, points: bool = False) -> np.ndarray:
    """The AP of each kind at IoU 0.5 as Pascal VOC counts it since 2010, float64 [classes]; `points`: as VOC 2007 did.

    A detection is of the object of its kind that it overlaps most, if by an IoU of at least 0.5. The first one of an object,
    by score, is right; all others are wrong, those of a difficult object neither. VOC knows no crowds: a detection that
    would be wrong is left out where at least half of it lies in one. Source: VOCevaldet.m of the VOC 2012 development kit;
    VOC 2007 averages the precision at recalls 0, 0.1 .. 1 instead of the area. Raises ModelError for what is no detection.

    >>> boxes, kind = np.array([[10.0, 10, 50, 50]], np.float32), np.array([0])
    >>> voc([Found(boxes + 2, np.ones(1), kind)], [Truth(boxes, kind)], 2).tolist()
    [1.0, nan]
    """
    _check(found, truth, classes)
    objects = np.zeros(classes, np.int64)  # that are to be found, of each kind
    judged: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(classes)]  # scores, right or wrong
    for seen, there in zip(found, truth, strict=True):
        crowd, difficult = _flags(there.crowd, there), _flags(there.difficult, there)
        objects += np.bincount(there.classes[~crowd & ~difficult], minlength=classes)
        for kind in np.unique(seen.classes):
            mine = np.flatnonzero(seen.classes == kind)
            mine = mine[np.argsort(-seen.scores[mine], kind="stable")]
            theirs, around = (there.classes == kind) & ~crowd, (there.classes == kind) & crowd
            right, spared = _judge(seen.boxes[mine], there.boxes[theirs], difficult[theirs])
            in_crowd = overlaps(seen.boxes[mine], there.boxes[around], within=True).max(1, initial=0) >= VOC_OVERLAP
            kept = ~(spared | (in_crowd & ~right))
            judged[kind].append((seen.scores[mine][kept], right[kept]))
    return np.array([_average_precision(*pair, points) for pair in zip(judged, objects.tolist(), strict=True)])


def _judge(boxes: np.ndarray, objects: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of a kind in a picture, best first, are the first of an object, which are of a difficult one: bool [D]."""
    right, spared = np.zeros((2, len(boxes)), bool)
    if len(objects):
        overlap = overlaps(boxes, objects)
        best = overlap.argmax(1)
        close = np.flatnonzero(overlap.max(1) >= VOC_OVERLAP)
        right[close[np.unique(best[close], return_index=True)[1]]] = True  # the first one of each object
        spared[close] = difficult[best[close]]
    return right, spared


def _average_precision(judged: list[tuple[np.ndarray, np.ndarray]], objects: int, points: bool) -> float:
    """The AP of detections (scores, bool right) of which `objects` should be right; nan without any."""
    if not objects:
        return float("nan")
    if not judged:
        return 0.0
    scores, right = (np.concatenate(parts) for parts in zip(*judged, strict=True))
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
    recall, precision = hits / objects, hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if points:
        return float(np.append(envelope, 0)[np.searchsorted(recall, np.arange(11) / 10)].mean())
    return float((np.diff(recall, prepend=0) * envelope).sum())


def overlaps(one: np.ndarray, other: np.ndarray, *, within: bool = False) -> np.ndarray:
    """Intersection over union, float64 [A, B], of boxes [A, 4] and [B, 4]; `within`: over the area of `one` alone.

    >>> a, b = np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2], [5, 5, 6, 6]])
    >>> overlaps(a, b).round(3).tolist(), overlaps(a, b, within=True).tolist()
    ([[0.333, 0.0]], [[0.5, 0.0]])
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    both = shared_areas(one, other)
    whole = areas(one)[:, None] + (0 if within else areas(other) - both)
    return np.divide(both, whole, out=np.zeros(both.shape), where=whole > 0)


def _objects(truth: Sequence[Truth]) -> list[dict[str, Any]]:
    """The objects as COCO's annotations."""
    return [
        {"image_id": image, "category_id": kind, "bbox": box, "area": area, "iscrowd": int(aside)}
        for image, there in enumerate(truth)
        for kind, box, area, aside in zip(
            there.classes.tolist(),
            _xywh(there.boxes),
            (areas(there.boxes.astype(np.float64)) if there.area is None else there.area).tolist(),
            _flags(there.crowd, there) | _flags(there.difficult, there),
            strict=True,
        )
    ]


def _detections(found: Sequence[Found]) -> list[dict[str, Any]]:
    """The detections as COCO's annotations."""
    return [
        {"image_id": image, "category_id": kind, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": score}
        for image, seen in enumerate(found)
        for kind, box, score in zip(seen.classes.tolist(), _xywh(seen.boxes), seen.scores.tolist(), strict=True)
    ]


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def _flags(flags: np.ndarray | None, truth: Truth) -> np.ndarray:
    return np.zeros(len(truth.boxes), bool) if flags is None else flags


def _known(values: np.ndarray) -> np.ndarray:
    """COCO's values with nan for its -1, which says that nothing was there to be found."""
    return np.where(np.asarray(values) < 0, np.nan, values)


def _check(found: Sequence[Found], truth: Sequence[Truth], classes: int) -> None:
    if len(found) != len(truth):
        raise ValueError(f"detections of {len(found)} pictures, the truth of {len(truth)}")
    for place, (seen, there) in enumerate(zip(found, truth, strict=True)):
        _fits(f"detections of picture {place}", classes, seen.boxes, seen.classes, seen.scores)
        flags = (there.crowd, there.difficult, there.area)
        _fits(f"objects of picture {place}", classes, there.boxes, there.classes, *flags)
        if not (np.isfinite(seen.boxes).all() and np.isfinite(seen.scores).all()):
            raise ModelError(f"picture {place} has detections whose box or score is no finite number")


def _fits(what: str, classes: int, boxes: np.ndarray, kinds: np.ndarray, *more: np.ndarray | None) -> None:
    shapes = {column.shape for column in (kinds, *more) if column is not None}
    if boxes.shape[1:] != (4,) or shapes != {boxes.shape[:1]}:
        raise ValueError(f"{what}: boxes are {boxes.shape}, the rest {sorted(shapes)}; give [D, 4] and [D]")
    if len(kinds) and (kinds.min() < 0 or kinds.max() >= classes):
        raise ValueError(f"{what}: classes are {kinds.min()}..{kinds.max()}, not 0..{classes - 1}")
