"""Your own pictures: images/ and masks/ with the same names, and classes.txt that names the classes, one a line.

Split by folders (train/images and train/masks, or images/train and masks/train, and so val), or by a seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from espy.data.findings import gather
from espy.data.masks import MOST_CLASSES, VOID, Coding, FileError, distinct, read_values
from espy.data.sets import (
    THREADS,
    Dataset,
    Files,
    Masked,
    Paired,
    choose,
    missing,
    pair,
    read_names,
    seeded_split,
    subfolders,
)  # fmt: skip
from espy.labels import Label, plain, voc_colour

NAMES = "classes.txt"


def open_folder(root: Path, split: str | None = None) -> Dataset:
    """A folder of your own: value k of a mask is line k of classes.txt, 255 is void.

    Without classes.txt the masks of the pairs are looked through: classes are 0 to the highest value but 255. Raises
    DataError where the folder is not laid out so, or classes.txt cannot be used.
    """
    found: list[Paired] = []
    pairs: list[tuple[str, Path, Path]] = []
    folders = _folders(root)
    for name, pictures, masks in folders:
        if not (pictures.is_dir() and masks.is_dir()):
            lacking = masks if pictures.is_dir() else pictures
            raise missing(root, f"no {lacking.relative_to(root).as_posix()}/ in it")
        paired = pair(Files.below(pictures), Files.below(masks), root)
        here = paired.pairs
        splits = seeded_split(here) if name is None else dict.fromkeys(here, name)
        pairs += [(splits[stem], *both) for stem, both in here.items()]
        if split is None or name in (None, split):
            found.append(paired)
    rows = [row for paired in found for row in paired.rows]
    names = root / NAMES
    if named := names.is_file():
        listed_names, faults = read_names(names, MOST_CLASSES)
        labels = tuple(Label(name, voc_colour(index)) for index, name in enumerate(listed_names))
        rows += faults
    else:
        labels = plain(_look([mask for _, _, mask in pairs] or [mask for part in found for mask in part.masks]))
    coding = Coding.plain(len(labels))
    items = tuple(Masked(picture, name, mask, coding) for name, picture, mask in pairs)
    of_lone = coding if named else Coding.plain(MOST_CLASSES)  # nobody said which classes there are
    lone = tuple(one for part in found for one in part.lone(lambda mask: of_lone))
    seeded = any(name is None for name, _, _ in folders)
    listed = NAMES if named else None
    data = Dataset("folder", root, labels, items, gather(rows), lone, listed, looked=not named, seeded=seeded)
    if split is not None and items:
        choose(split, [name for name, _, _ in folders if name] or ["train", "val"], root)
        return data.only(split)
    return data


def _folders(root: Path) -> list[tuple[str | None, Path, Path]]:
    """(split, pictures, masks): from SPLIT/images, images/SPLIT, or images alone, whose split is None."""
    pictures, masks = root / "images", root / "masks"
    try:
        inside = subfolders(pictures) if pictures.is_dir() else []
        if "train" in inside and (masks / "train").is_dir():
            return [(name, pictures / name, masks / name) for name in inside]
        if pictures.is_dir() or masks.is_dir():
            return [(None, pictures, masks)]
        splits = [name for name in subfolders(root) if (root / name / "images").is_dir()]
    except OSError as error:
        raise missing(root, str(error.strerror)) from None
    if not splits:
        raise missing(root, "no images/ and masks/ in it, nor train/images/ and train/masks/")
    return [(name, root / name / "images", root / name / "masks") for name in splits]


def _look(masks: Iterable[Path]) -> int:
    """How many classes the masks hold, 255 left out; at least 1. Masks that cannot be read are for the check to name."""

    def highest(path: Path) -> int:
        try:
            values = distinct(read_values(path).values)
        except FileError:
            return 0
        return max((value for value in values if 0 <= value < VOID), default=0)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="espy-look") as pool:
        return 1 + max(pool.map(highest, masks), default=0)
