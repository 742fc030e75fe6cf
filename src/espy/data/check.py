"""All that is wrong with a set, in one report: every picture and mask, paired or not, is read once, by several threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from espy.data.boxes import Boxed
from espy.data.cityscapes import LABEL_IDS, MOST_ID
from espy.data.findings import Fault, Finding, gather
from espy.data.kinds import TRUTHS, open_set
from espy.data.masks import VOID, Coding, FileError, count, mask_size, read_mask, read_picture, read_upright
from espy.data.sets import THREADS, Classified, Dataset, Item, Lone, Masked, relative, size_words
from espy.labels import CAMVID, CITYSCAPES, VOC, Label, compared
from espy.picture.read import orientation, stored

MOST_IN_ONE = 100  # classes in one mask, where nobody named them; ADE20K, with 150, has about 50 at most


@dataclass(frozen=True)
class Report:
    """What a check found.

    `pixels`: mask value -> how often it occurs over all masks of pairs that could be read, 255 for void; empty but for
    segmentation. `sizes`: (height, width) of their upright pictures -> how many. `findings`: faults first. `pictures`: in how
    many pictures each class occurs, and `boxes`: how many boxes it has, crowds too; empty for masks, the latter but for boxes.
    `box_side`: the median box's shorter side as a share of its picture's height or width, crowds left out; 0 without boxes.
    """

    data: Dataset
    pixels: dict[int, int]
    sizes: dict[tuple[int, int], int]
    findings: tuple[Finding, ...]
    pictures: tuple[int, ...] = ()
    boxes: tuple[int, ...] = ()
    box_side: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the set can be trained on: warnings, but no faults."""
        return not any(finding.severity == "fault" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as docs/schema/check.json has it."""
        counted = {"pictures": self.pictures, "boxes": self.boxes}
        return {
            "task": self.data.task,
            "pairs": len(self.data),
            "classes": [label.name for label in self.data.labels],
            "pixels": {str(value): times for value, times in self.pixels.items()},
            **{name: list(times) for name, times in counted.items() if times},
            "findings": [finding.to_dict() for finding in self.findings],
        }


@dataclass(frozen=True)
class _Looked:
    """A pair or a file in none: what is wrong, its picture's size, how often each value occurs in its mask, or the class of
    the picture or of each of its boxes, and the boxes' shorter sides in shares of the picture's."""

    of: Item | Lone
    rows: tuple[tuple[Fault, str], ...]
    size: tuple[int, int] | None = None
    counts: tuple[int, ...] | None = None
    classes: tuple[int, ...] = ()
    sides: tuple[float, ...] = ()

    @property
    def mask(self) -> Path:
        """The file that `counts` is of."""
        return self.of.mask if isinstance(self.of, Masked) else _picture_of(self.of)

    @property
    def coding(self) -> Coding | None:
        """What the values of that mask mean; None for a picture."""
        return self.of.coding if isinstance(self.of, Masked | Lone) else None


def check(
    data: Dataset | str,
    *,
    split: str | None = None,
    task: str | None = None,
    advance: Callable[[str], None] = lambda name: None,
) -> Report:
    """Read every picture of a set (or of `KIND:PATH`) with its truth, and every file in no pair, and report all that is wrong.

    `advance` is called with a picture's name when its pair is done, and with that of a file in none. Raises DataError where
    there is no set to look at; all that is wrong within a set is a finding.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("images", "masks"):
    ...         Path(root, name).mkdir()
    ...     _ = Path(root, "images", "a.jpg").write_bytes(b"")
    ...     for finding in check(f"folder:{root}").findings:
    ...         print(finding.message)
    images/a.jpg: no mask of this name in masks/
    images/a.jpg: an empty file
    """
    opened = open_set(data, split, task) if isinstance(data, str) else data.only(split)
    looked: list[_Looked] = []
    with ThreadPoolExecutor(THREADS, thread_name_prefix="espy-check") as pool:
        for one in pool.map(lambda of: _look(of, opened.root), (*opened.items, *opened.lone)):
            looked.append(one)
            advance(_picture_of(one.of).name)
    rows = [row for one in looked for row in one.rows]
    paired = [one for one in looked if isinstance(one.of, Item)]
    if opened.task == "segment":
        rows = _explained(rows, opened, looked) + list(_of_the_whole(opened, looked, rows))
    else:
        rows += _of_classes(opened, paired)
    findings = opened.findings + gather(rows)
    if not opened.items and not findings:
        what = f"no pictures with {TRUTHS[opened.task]}"
        findings = gather([(Fault("empty_set", what, "see docs/data.md for the layouts"), ".")])
    totals = _totals(paired)
    sizes = Counter(one.size for one in paired if one.size)
    within = range(len(opened.labels)) if opened.task != "segment" else ()
    pictures = Counter(index for one in paired for index in set(one.classes))
    boxes = Counter(index for one in paired for index in one.classes)
    return Report(
        opened, {value: n for value, n in enumerate(totals) if n}, dict(sizes.most_common()),
        tuple(sorted(findings, key=lambda finding: finding.severity != "fault")),
        tuple(pictures[index] for index in within),
        tuple(boxes[index] for index in within) if opened.task == "detect" else (),
        median(side for one in paired for side in one.sides) if any(one.sides for one in paired) else 0.0,
    )  # fmt: skip


# One pair, or one file


def _picture_of(of: Item | Lone) -> Path:
    return of.picture if isinstance(of, Item) else of.path


def _look(of: Item | Lone, root: Path) -> _Looked:
    def rows(faults: list[Fault], path: Path) -> tuple[tuple[Fault, str], ...]:
        return tuple((fault, relative(path, root)) for fault in faults)

    if isinstance(of, Boxed):
        return _boxed(of, rows)
    if isinstance(of, Classified):
        faults, size = _picture(of.picture)
        return _Looked(of, rows(faults, of.picture), size, classes=(of.index,) if size else ())
    if isinstance(of, Masked):
        of_picture, size = _picture(of.picture)
        of_mask, shape, counts = _mask(of.mask, of.coding)
        if size and shape and size != shape:
            of_mask.append(_sizes_differ(size, shape, of))
        return _Looked(of, rows(of_picture, of.picture) + rows(of_mask, of.mask), size, counts)
    if isinstance(of, Item) or of.coding is None:
        path = _picture_of(of)
        return _Looked(of, rows(_picture(path)[0], path))
    faults, _, counts = _mask(of.path, of.coding)
    return _Looked(of, rows(faults, of.path), counts=counts)


def _boxed(of: Boxed, rows: Callable[[list[Fault], Path], tuple[tuple[Fault, str], ...]]) -> _Looked:
    """A picture and its boxes; where it cannot be read, what its annotation alone shows."""
    try:
        picture = read_upright(of.picture)
    except FileError as error:
        return _Looked(of, rows([error.fault], of.picture) + rows([*of.stated.problems], of.stated.file))
    boxes, faults = of.stated.placed(*picture.size, picture.orientation)
    height, width = picture.size
    learnt = boxes.corners[~boxes.crowd] / (width, height, width, height)
    sides = (learnt[:, 2:] - learnt[:, :2]).min(1)
    return _Looked(
        of, rows(faults, of.stated.file), picture.size,
        classes=tuple(boxes.classes.tolist()), sides=tuple(sides.tolist()),
    )  # fmt: skip


def _picture(path: Path) -> tuple[list[Fault], tuple[int, int] | None]:
    """What is wrong with a picture, and its upright (height, width)."""
    try:
        image = read_picture(path)
    except FileError as error:
        return [error.fault], None
    return [], (image.height, image.width)


def _mask(path: Path, coding: Coding) -> tuple[list[Fault], tuple[int, int] | None, tuple[int, ...] | None]:
    """What is wrong with a mask, its (height, width), and how often each value occurs."""
    try:
        mask = read_mask(path, coding)
    except FileError as error:
        return [error.fault], mask_size(path), None
    height, width = mask.indices.shape
    counts = tuple(count(mask.indices))
    faults = list(mask.notes)
    if counts[VOID] == sum(counts):
        faults.append(Fault("all_void", "all void: no pixel counts", "label it, or leave it", warning=True))
    return faults, (height, width), counts


def _sizes_differ(size: tuple[int, int], shape: tuple[int, ...], item: Masked) -> Fault:
    what = "not of its picture's size"
    detail = f"{size_words(shape)} (height x width), the picture {size_words(size)}"
    cure = "make the mask in the picture's own size, or shrink both alike (masks by nearest neighbour)"
    if shape == size[::-1]:
        with stored(item.picture) as image:
            turned = orientation(image)
        if turned > 4:
            what = f"not of the size of its picture turned upright by EXIF orientation {turned}; without EXIF the sizes agree"
            cure = "turn the mask as the photo is seen, or take the EXIF orientation out of the photo"
    return Fault("size_mismatch", what, cure, detail=detail)


# All together


def _of_classes(data: Dataset, looked: list[_Looked]) -> Iterator[tuple[Fault, str]]:
    """What only all pictures, or all boxes, together show."""
    if data.task == "classify":
        yield from _twice(looked, data.root)
        return
    seen = {index for one in looked for index in one.classes}
    where = data.names or "."
    if not looked:
        return
    if not seen:
        yield Fault("empty_set", "no box in any picture", "is this the layout of its kind? see docs/data.md"), where
    elif unseen := [index for index in range(len(data.labels)) if index not in seen]:
        what = f"no box of {_named(data.labels, unseen)} in any picture"
        cure = "label some, or name only classes that occur"
        yield Fault("class_never_seen", what, cure, tuple(unseen), warning=True), where


def _twice(looked: list[_Looked], root: Path) -> Iterator[tuple[Fault, str]]:
    """Pictures of two classes, or of two splits, whose files are the same; only files of one length are read again."""
    lengths: dict[int, list[Classified]] = {}
    for one in looked:
        if isinstance(one.of, Classified) and one.size:
            lengths.setdefault(one.of.picture.stat().st_size, []).append(one.of)
    for alike in lengths.values():
        same: dict[bytes, list[Classified]] = {}
        for item in alike if len(alike) > 1 else []:
            same.setdefault(sha256(item.picture.read_bytes()).digest(), []).append(item)
        for items in same.values():
            if len({item.index for item in items}) > 1:
                what, cure = "the same picture in another class", "keep it in the class that is meant"
            elif len({item.split for item in items}) > 1:
                what, cure = "the same picture in another split, so that val says too much good", "keep one of them"
            else:
                continue
            others = [relative(item.picture, root) for item in items]
            for item, other in zip(items, [*others[1:], others[0]], strict=True):
                yield Fault("picture_twice", what, cure, warning=True, detail=other), relative(item.picture, root)


def _named(labels: tuple[Label, ...], indices: Sequence[int]) -> str:
    return ", ".join(repr(labels[index].name) for index in indices[:8]) + (", ..." if len(indices) > 8 else "")


def _totals(looked: list[_Looked]) -> list[int]:
    read_in = [one.counts for one in looked if one.counts]
    return [sum(column) for column in zip(*read_in, strict=True)] or [0] * (VOID + 1)


def _explained(rows: list[tuple[Fault, str]], data: Dataset, looked: list[_Looked]) -> list[tuple[Fault, str]]:
    """The rows, with values out of range explained by what all masks hold together."""
    odd = {value for fault, _ in rows if fault.diagnosis == "value_out_of_range" for value in fault.values}
    classes = len(data.labels)
    as_they_are = all(one.coding != LABEL_IDS for one in looked)
    if odd and as_they_are and max(odd) <= MOST_ID and _same(data.labels, CITYSCAPES):
        what = "holds {values}: Cityscapes' labelIds where train ids 0 to 18 are needed"
        cure = "map them to train ids, use the labelTrainIds files, or open the set as kind cityscapes"
        changed: dict[str, Any] = {"diagnosis": "label_ids", "what": what, "cure": cure}
    elif odd == {classes} and as_they_are:
        cure = f"the masks seem to count classes from 1: subtract 1 and write 255 for 0; or name a class {classes} too"
        changed = {"cure": cure}
    else:
        return rows
    return [
        (replace(fault, **changed) if fault.diagnosis == "value_out_of_range" else fault, file) for fault, file in rows
    ]


def _of_the_whole(data: Dataset, looked: list[_Looked], rows: list[tuple[Fault, str]]) -> Iterator[tuple[Fault, str]]:
    """What only all masks together show."""
    totals = _totals(looked)
    if _two_colours([one for one in looked if isinstance(one.of, Item)] or looked):
        what = "holds 0 and 255, and no mask another class: 255 means void, so nothing but class 0 would be learnt"
        for one in looked:
            if one.counts and one.counts[VOID]:
                yield Fault("binary_0_255", what, "write 1 where 255 stands"), relative(one.mask, data.root)
        return
    for one in _mixed(data, looked, totals):
        what = "holds 0 and 255 and no 1, where other masks hold 0 and 1 and no 255"
        fault = Fault("binary_0_255", what, "write 1 where 255 stands, unless it means void", warning=True)
        yield fault, relative(one.mask, data.root)
    for one in looked if data.looked else []:
        values = sum(bool(times) for times in one.counts or ())
        if values > MOST_IN_ONE:
            what = "a picture in grey, not indices, by its many values"
            fault = Fault("value_out_of_range", what, "save class indices, or name the classes in classes.txt")
            yield replace(fault, detail=f"{values} of them"), relative(one.mask, data.root)
    misread = any(fault.diagnosis == "value_out_of_range" for fault, _ in rows)
    if misread or not any(totals) or any(_same(data.labels, known) for known in (CITYSCAPES, CAMVID, VOC)):
        return
    unseen = tuple(index for index in range(len(data.labels)) if not totals[index])
    where = data.names or "masks"
    if unseen:
        what = f"no pixel of {_named(data.labels, unseen)} in any mask"
        cure = "label some, or name only classes that occur" if data.names else "name the classes in classes.txt"
        if data.looked and 2 * len(unseen) > len(data.labels):  # such as 0, 128, 255: levels of grey, hardly classes
            seen = tuple(index for index in range(len(data.labels)) if totals[index])
            what = "all hold {values} alone, of which most numbers between are missing: are these classes?"
            yield (
                Fault("value_out_of_range", what, "number the classes 0, 1, 2, ..., or name them in classes.txt", seen),
                where,
            )
            return
        yield Fault("class_never_seen", what, cure, unseen, warning=True), where


def _two_colours(looked: list[_Looked]) -> bool:
    """Whether the masks hold nothing but 0 and 255, both of them, where the values are the indices themselves."""
    return all(one.coding.classes[:1] == (0,) for one in looked if one.coding) and all(
        bool(times) == (value in (0, VOID)) for value, times in enumerate(_totals(looked))
    )


def _mixed(data: Dataset, looked: list[_Looked], totals: list[int]) -> list[_Looked]:
    """Of two classes: the masks with 255 for what others call 1, which shows where no mask holds both."""
    doubtful = [one for one in looked if one.counts and one.counts[VOID] and one.counts[0]]
    if len(data.labels) != 2 or not totals[1] or any(one.counts[1] for one in doubtful if one.counts):
        return []
    return doubtful


def _same(labels: tuple[Label, ...], known: tuple[Label, ...]) -> bool:
    """Whether these are the classes of a published set: of its few pictures that one has, many classes may be missing."""
    names = [compared(label.name) for label in labels]
    published = [compared(label.name) for label in known]
    return names == published[: len(names)] and all(label.ignored for label in known[len(names) :])
