"""Pictures in a folder a class: SPLIT/CLASS/ with train/ among the splits, or CLASS/ alone, split by a seed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from espy.data.boxes import labels_of
from espy.data.findings import Fault, gather
from espy.data.sets import Classified, Dataset, Lone, choose, missing, relative, seeded_split, subfolders, walk
from espy.picture.read import ENDINGS

LOOSE = Fault("class_missing", "lies in no folder of a class", "move it into the folder of its class, or take it away")
SPLITS = ("train", "val", "valid", "validation", "test")


def open_imagefolder(root: Path, split: str | None = None) -> Dataset:
    """A folder of folders of pictures: a class is called as its folder, and counted in the order of the names.

    The classes are those of all splits together. A class that is not trained on is a fault: mostly its folder is called
    another way in train/. Raises DataError where the folder is not laid out so.
    """
    splits = [name for name in SPLITS if (root / name).is_dir()]
    if not any(subfolders(root / name) for name in splits):
        splits = []  # such as vehicles: bus, car, train
    parts: dict[str | None, Path] = {name: root / name for name in splits} or {None: root}
    found = {(name, kind): _pictures(part / kind) for name, part in parts.items() for kind in subfolders(part)}
    if not any(found.values()):
        raise missing(root, "no folders of pictures in it, one a class, nor train/ with such folders")
    names = sorted({kind for _, kind in found})
    rows: list[tuple[Fault, str]] = []
    items: list[Classified] = []
    lone: list[Lone] = []
    chosen: Iterable[str | None] = choose(split, splits, root) if splits else [None]
    for name in chosen:
        part = parts[name]
        loose = _pictures(part, within=False)
        rows += [(LOOSE, relative(path, root)) for path in loose]
        lone += [Lone(path) for path in loose]
        rows += _absent(name, parts, names, found, root)
        for index, kind in enumerate(names):
            pictures = found.get((name, kind), [])
            stems = {relative(path, root): path for path in pictures}
            held = seeded_split(stems) if name is None else dict.fromkeys(stems, name)
            items += [Classified(path, held[stem], index) for stem, path in stems.items()]
    data = Dataset(
        "imagefolder", root, labels_of(names), tuple(items), gather(rows), tuple(lone), seeded=not splits, task="classify"
    )  # fmt: skip
    if split is not None and not splits:
        choose(split, ["train", "val"], root)
        return data.only(split)
    return data


def _pictures(folder: Path, within: bool = True) -> list[Path]:
    """The pictures of a folder, those `within` its folders too."""
    return [path for path in walk(folder, within) if path.suffix.lower() in ENDINGS]


def _absent(
    split: str | None,
    parts: dict[str | None, Path],
    names: list[str],
    found: dict[tuple[str | None, str], list[Path]],
    root: Path,
) -> list[tuple[Fault, str]]:
    """The (fault, file) rows of classes that a split does not have."""
    rows = []
    for kind in names:
        folder = relative(parts[split] / kind, root)
        if found.get((split, kind)):
            if "train" in parts and split != "train" and not found.get(("train", kind)):
                what = "a class that train/ has no picture of, so that it is never learnt"
                cure = "call its folder as in train/, or add pictures there"
                rows.append((Fault("class_not_trained", what, cure), folder))
        elif not any(pictures for (_, other), pictures in found.items() if other == kind):
            what = "a folder without pictures: a class that is never seen"
            fault = Fault("class_never_seen", what, "add pictures, or take the folder away", warning=True)
            if (split, kind) in found:
                rows.append((fault, folder))
        elif split != "train":
            what = f"no picture of this class in {split}/, so that nothing is known of how well it is told"
            rows.append((Fault("class_never_seen", what, "add some", warning=True), folder))
    return rows
