"""Cityscapes as published: leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_label(Train)Ids.png."""

from __future__ import annotations

from pathlib import Path

from espy.data.findings import Fault, gather
from espy.data.masks import VOID, Coding
from espy.data.sets import Dataset, Files, Lone, Masked, choose, missing, pair
from espy.labels import CITYSCAPES, CITYSCAPES_IDS

SPLITS = ("train", "val")
"""Opened unless one is named: the published masks of `test` are empty."""

LABELS = tuple(label for label in CITYSCAPES if not label.ignored)
MOST_ID = 33
"""labelIds go from 0 to 33 (cityscapesScripts, helpers/labels.py); -1, the licence plate, is 255 in the files."""

_IDS = CITYSCAPES_IDS[: len(LABELS)]
LABEL_IDS = Coding(_IDS, frozenset({*range(MOST_ID + 1), VOID} - {*_IDS}))
TRAIN_IDS = Coding.plain(len(LABELS))


def open_cityscapes(root: Path, split: str | None = None) -> Dataset:
    """Cityscapes in a folder: its 19 classes; every other id is void.

    labelIds are mapped; where a picture has none, its labelTrainIds are used as they are. Raises DataError where the
    folder is no Cityscapes.
    """
    pictures_in, masks_in = root / "leftImg8bit", root / "gtFine"
    if not (pictures_in.is_dir() and masks_in.is_dir()):
        raise missing(root, "no leftImg8bit/ and gtFine/ in it")
    there = sorted(path.name for path in pictures_in.iterdir() if path.is_dir() and not path.name.startswith("."))
    known = there if split else [name for name in SPLITS if name in there]
    items: list[Masked] = []
    lone: list[Lone] = []
    rows: list[tuple[Fault, str]] = []
    for name in choose(split, known, root):
        pictures = Files.below(pictures_in / name).ending_in("_leftImg8bit")
        every = Files.below(masks_in / name)
        ids, train_ids = every.ending_in("_gtFine_labelIds"), every.ending_in("_gtFine_labelTrainIds")
        found = pair(pictures, Files(every.folder, train_ids.found | ids.found), root)
        rows += found.rows
        lone += found.lone(_coding)
        items += [Masked(picture, name, mask, _coding(mask)) for picture, mask in found.pairs.values()]
    return Dataset("cityscapes", root, LABELS, tuple(items), gather(rows), tuple(lone))


def _coding(mask: Path) -> Coding:
    return LABEL_IDS if mask.stem.endswith("_labelIds") else TRAIN_IDS
