"""What every kind of set shares: the set itself, its pairs, and how files are found, paired and split."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from espy.data.findings import Fault, Finding
from espy.data.masks import Coding, read_mask, read_picture
from espy.errors import DataError
from espy.labels import Label
from espy.picture.read import ENDINGS
from espy.spec import nearest

VAL_SHARE = 0.2
"""Share of the pairs that become `val` where a set is not split already."""

SEED = 0
"""Of that split. It depends on the files' names alone, so it is the same on every machine and in every run."""

THREADS = min(8, os.cpu_count() or 1)
"""That read a set's files at once."""


@dataclass(frozen=True)
class Item:
    """A picture and the split it belongs to. Each task has its own kind of item, which knows where the truth is."""

    picture: Path
    split: str

    def read(self, cure: str) -> tuple[Image.Image, Any]:
        """The picture, upright RGB, and its truth. Raises DataError, which ends in `cure` where the two do not fit."""
        raise NotImplementedError


@dataclass(frozen=True)
class Masked(Item):
    """A picture, its mask, and what the mask's values mean."""

    mask: Path
    coding: Coding

    def read(self, cure: str) -> tuple[Image.Image, np.ndarray]:
        """The picture and its mask, uint8 [H, W], 255 void."""
        image = read_picture(self.picture)
        mask = read_mask(self.mask, self.coding).indices
        if mask.shape != (image.height, image.width):
            raise DataError(
                f"{self.mask}: {size_words(mask.shape)} (height x width), its picture is "
                f"{image.height} x {image.width}: {cure}"
            )
        return image, mask


@dataclass(frozen=True)
class Classified(Item):
    """A picture and its class, an index into the set's labels."""

    index: int

    def read(self, cure: str) -> tuple[Image.Image, int]:
        """The picture and its class."""
        return read_picture(self.picture), self.index


@dataclass(frozen=True)
class Lone:
    """A picture or a mask that is in no pair; a check looks at it all the same. `coding` is None for a picture."""

    path: Path
    coding: Coding | None = None


@dataclass(frozen=True)
class Dataset:
    """A set of pictures with truth for one task: "segment" (masks), "classify" (a class a picture) or "detect" (boxes).

    `labels[k]` is class k, of a mask the value k; void is 255 and no class. `findings`: what was wrong already when files were
    paired; `espy.data.check.check` says all. `lone`: files in no pair. `names`: the file that names the classes, None where
    the kind knows them or they were found by looking (`looked`). `seeded`: whether the splits were drawn by `seeded_split`.
    """

    kind: str
    root: Path
    labels: tuple[Label, ...]
    items: tuple[Item, ...]
    findings: tuple[Finding, ...] = ()
    lone: tuple[Lone, ...] = ()
    names: str | None = None
    looked: bool = False
    seeded: bool = False
    task: str = "segment"

    @property
    def splits(self) -> dict[str, int]:
        """How many pictures each split has."""
        return dict(Counter(item.split for item in self.items))

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> tuple[Image.Image, Any]:
        """The picture, upright RGB, and its truth.

        The truth is a mask, uint8 [H, W] of the picture's size, 255 void (segment), the index of its class (classify), or
        `Boxes` in the picture's pixels (detect). Raises DataError for what cannot be used, never gives a wrong truth.
        """
        return self.items[index].read(f"see espy check {self.kind}:{self.root}")

    def only(self, split: str | None) -> Dataset:
        """The pictures of one split; all of them for None. Raises DataError for a split that is not there."""
        if split is None:
            return self
        choose(split, list(self.splits), self.root)
        return replace(self, items=tuple(item for item in self.items if item.split == split))


def size_words(size: tuple[int, ...]) -> str:
    """(height, width) as `48 x 64`."""
    return " x ".join(str(side) for side in size)


def choose(split: str | None, known: Collection[str], root: Path) -> list[str]:
    """The splits to open: the one that was asked for, or all that are known. Raises DataError."""
    if split is None:
        return list(known)
    if split not in known:
        raise DataError(f"{root}: no split {split!r}: {nearest(split, list(known)) if known else 'it has no pairs'}")
    return [split]


def relative(path: Path, root: Path) -> str:
    """A file as findings name it: relative to the set, with `/`."""
    return Path(os.path.relpath(path, root)).as_posix()


# Finding files


@dataclass(frozen=True)
class Files:
    """The pictures below a folder by stem: path relative to the folder, without ending. `unread`: other files by stem."""

    folder: Path
    found: dict[str, list[Path]] = field(default_factory=dict)
    unread: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def below(cls, folder: Path) -> Files:
        """All files of a folder and its folders but hidden ones. Raises DataError where one cannot be listed."""
        files = cls(folder)
        for path in walk(folder):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if path.suffix.lower() in ENDINGS:
                files.found.setdefault(stem, []).append(path)
            else:
                files.unread[stem] = path
        return files

    def ending_in(self, suffix: str) -> Files:
        """Those whose stem ends so, by the stem without it."""
        return replace(self, found={s.removesuffix(suffix): p for s, p in self.found.items() if s.endswith(suffix)})

    def among(self, stems: Collection[str]) -> Files:
        """Those of these stems."""
        return replace(self, found={stem: paths for stem, paths in self.found.items() if stem in stems})


def walk(folder: Path, within: bool = True) -> Iterator[Path]:
    """The files of a folder, and those `within` its folders, in order, but hidden ones.

    Raises DataError where a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: this folder cannot be listed: {error.strerror}") from None

    for at, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if within and not name.startswith("."))
        yield from (Path(at, name) for name in sorted(names) if not name.startswith("."))


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder in order, train first, but hidden ones. Raises DataError where it cannot be listed."""
    try:
        names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        raise missing(folder, str(error.strerror)) from None
    return sorted(names, key=lambda name: (name != "train", name))


def notes_below(folder: Path, suffix: str) -> dict[str, Path]:
    """The files of a folder and its folders with this ending, by stem as `Files` has it."""
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in walk(folder)
        if path.suffix.lower() == suffix
    }


def missing(root: Path, what: str) -> DataError:
    """The error for a folder that is not laid out as its kind: what was looked for, what lies there."""
    try:
        there = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return DataError(f"{root}: no such folder")
    except OSError as error:
        return DataError(f"{root}: this folder cannot be listed: {error.strerror}")
    holds = ", ".join(there[:6]) + (", ..." if len(there) > 6 else "")
    return DataError(f"{root}: {what}; it holds {holds or 'nothing'}: see docs/data.md for the layouts")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without a byte order mark, ends and empty lines at the end. Raises DataError."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_names(path: Path, most: int | None = None) -> tuple[list[str], list[tuple[Fault, str]]]:
    """The classes that a file names, one a line, and (fault, file) rows. Raises DataError where it cannot be used."""
    names = read_lines(path)
    if not 1 <= len(names) <= (most or len(names)):
        raise DataError(
            f"{path}: names {len(names)} classes: write 1 {f'to {most}' if most else 'or more'}, one a line"
        )
    if "" in names:
        raise DataError(f"{path}: line {names.index('') + 1} is empty: name every class, the first line is value 0")
    return names, names_twice(names, path.name)


def names_twice(names: Iterable[str], file: str) -> list[tuple[Fault, str]]:
    """The (fault, file) rows of names that stand more than once in a file."""
    cure = "give every class a name of its own"
    twice = [name for name, times in Counter(names).items() if times > 1]
    return [(Fault("class_name_twice", f"names {name!r} more than once", cure), file) for name in twice]


def read_text(path: Path) -> str:
    """A text file without a byte order mark. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text: save it as UTF-8") from None


# Pairing


@dataclass(frozen=True)
class Paired:
    """`pairs`: stem → (picture, mask). `pictures`, `masks`: those in no pair; `rows`: why not, as (fault, file)."""

    pairs: dict[str, tuple[Path, Path]]
    pictures: tuple[Path, ...]
    masks: tuple[Path, ...]
    rows: list[tuple[Fault, str]]

    def lone(self, coding: Callable[[Path], Coding]) -> list[Lone]:
        """Those in no pair, where `coding` says what the values of a mask mean."""
        return [*(Lone(path) for path in self.pictures), *(Lone(path, coding(path)) for path in self.masks)]


def pair(pictures: Files, masks: Files, root: Path) -> Paired:
    """Pictures and masks of the same stem."""
    both = {stem: (paths, masks.found[stem]) for stem, paths in pictures.found.items() if stem in masks.found}
    pairs = {stem: (p[0], m[0]) for stem, (p, m) in both.items() if len(p) == len(m) == 1}
    lone = [
        tuple(path for stem, paths in files.found.items() if stem not in pairs for path in paths)
        for files in (pictures, masks)
    ]
    return Paired(pairs, lone[0], lone[1], _unpaired(pictures, masks, root))


def _unpaired(pictures: Files, masks: Files, root: Path) -> list[tuple[Fault, str]]:
    rows: list[tuple[Fault, str]] = []
    if not pictures.found:
        return [(_empty(), relative(pictures.folder, root))]
    for files in (pictures, masks):
        for paths in files.found.values():
            if len(paths) > 1:
                fault = Fault("stem_twice", "files of one name: which one is meant?", "keep one of them")
                rows += [(fault, relative(path, root)) for path in paths]
    lone_pictures = sorted(pictures.found.keys() - masks.found.keys())
    lone_masks = sorted(masks.found.keys() - pictures.found.keys())
    renamed = _renamed(lone_pictures, lone_masks)
    folders = {files.folder: f"{relative(files.folder, root)}/" for files in (pictures, masks)}
    example = next((masks.found[other][0].relative_to(masks.folder).as_posix() for other in renamed.values()), None)
    for stem in lone_pictures:
        lying = example if stem in renamed else None
        fault = _lone("mask_missing", "mask", folders[masks.folder], masks.unread.get(stem), lying)
        rows += [(fault, relative(path, root)) for path in pictures.found[stem]]
    explained = set(renamed.values())
    for stem in lone_masks:
        if stem not in explained:
            fault = _lone("image_missing", "picture", folders[pictures.folder], pictures.unread.get(stem), None)
            rows += [(fault, relative(path, root)) for path in masks.found[stem]]
    return rows


def _empty() -> Fault:
    endings = " ".join(sorted(ENDINGS))
    return Fault("empty_set", "holds no pictures", f"put them there; these endings are read: {endings}")


def empty(path: Path, root: Path) -> list[tuple[Fault, str]]:
    """The (fault, file) row of a list or folder without pictures."""
    return [(_empty(), relative(path, root))]


def _lone(diagnosis: str, partner: str, folder: str, unread: Path | None, lying: str | None) -> Fault:
    if unread is not None:
        what = f"no {partner} of this name in {folder} but a {unread.suffix or 'nameless'} file, which is not read"
        return Fault(diagnosis, what, f"save the {partner} as PNG")
    if lying is not None:
        what = f"no {partner} of this name in {folder}, but names that have something more, such as {lying}"
        return Fault(diagnosis, what, "give picture and mask the same name but for the ending, such as 1.jpg and 1.png")
    return Fault(diagnosis, f"no {partner} of this name in {folder}", f"add the {partner}, or take the file away")


def _renamed(pictures: list[str], masks: list[str]) -> dict[str, str]:
    """Picture stem -> mask stem where one is the other with a prefix or suffix that most have in common."""
    for short, long in ((pictures, masks), (masks, pictures)):
        found: Counter[tuple[str, str]] = Counter()
        for stem in short[:20]:
            for other in long:
                before, within, after = other.partition(stem)
                if within:
                    found[before, after] += 1
        if not found:
            continue
        (before, after), times = found.most_common(1)[0]
        if 2 * times >= min(20, len(short)):
            there = set(long)
            matches = {stem: name for stem in short if (name := f"{before}{stem}{after}") in there}
            return matches if short is pictures else {name: stem for stem, name in matches.items()}
    return {}


def seeded_split(stems: Iterable[str]) -> dict[str, str]:
    """Stem -> `train` or `val`: VAL_SHARE of the stems, at least one of two, by a hash of SEED and the stem.

    >>> sorted(seeded_split(["a", "b", "c", "d"]).values())
    ['train', 'train', 'train', 'val']
    """

    def place(stem: str) -> bytes:
        return hashlib.sha256(f"{SEED} {stem}".encode(errors="surrogateescape")).digest()

    order = sorted(stems, key=place)
    held = max(1, round(VAL_SHARE * len(order))) if len(order) > 1 else 0
    return {stem: "val" if index < held else "train" for index, stem in enumerate(order)}
