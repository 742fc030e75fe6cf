"""CamVid as the SegNet tutorial laid it out: SPLIT/, SPLITannot/ and lists SPLIT.txt of `picture mask` lines; 11 is void."""

from __future__ import annotations

from pathlib import Path

from espy.data.findings import Fault, gather
from espy.data.masks import VOID, Coding
from espy.data.sets import Dataset, Files, Lone, Masked, Paired, choose, empty, missing, pair, read_lines, relative
from espy.errors import DataError
from espy.labels import CAMVID

SPLITS = ("train", "val", "test")
LABELS = tuple(label for label in CAMVID if not label.ignored)
CODING = Coding(tuple(range(len(LABELS))), frozenset({len(LABELS), VOID}))


def open_camvid(root: Path, split: str | None = None) -> Dataset:
    """CamVid in a folder: the 11 classes of `espy.labels.CAMVID` but void.

    Paired by the list where there is one, else by stem. Raises DataError where the folder is none.
    """
    known = [name for name in SPLITS if (root / f"{name}annot").is_dir()]
    if not known:
        raise missing(root, "no train/ and trainannot/ in it")
    items: list[Masked] = []
    lone: list[Lone] = []
    rows: list[tuple[Fault, str]] = []
    for name in choose(split, known, root):
        listed = root / f"{name}.txt"
        if listed.is_file():
            found = _listed(listed, root)
        else:
            found = pair(Files.below(root / name), Files.below(root / f"{name}annot"), root)
        rows += found.rows
        lone += found.lone(lambda mask: CODING)
        items += [Masked(picture, name, mask, CODING) for picture, mask in found.pairs.values()]
    return Dataset("camvid", root, LABELS, tuple(items), gather(rows), tuple(lone))


def _listed(path: Path, root: Path) -> Paired:
    lines = read_lines(path)
    if not lines:
        return Paired({}, (), (), empty(path, root))
    pairs: dict[str, tuple[Path, Path]] = {}
    pictures: list[Path] = []
    masks: list[Path] = []
    rows: list[tuple[Fault, str]] = []
    for number, line in enumerate(lines, 1):
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) != 2:
            raise DataError(f"{path}, line {number}: {line!r} is not a picture and a mask: write one pair a line")
        picture, mask = (_find(field.strip(), root) for field in fields)
        there = picture.is_file(), mask.is_file()
        if there == (False, False):
            fault = Fault(
                "image_missing", "names what has neither picture nor mask", "add both, or drop the line", detail=line
            )
            rows.append((fault, relative(path, root)))
        elif there == (True, False):
            pictures.append(picture)
            fault = Fault(
                "mask_missing", f"{path.name} names a mask that is not there", "add the mask, or drop the line"
            )
            rows.append((fault, relative(picture, root)))
        elif there == (False, True):
            masks.append(mask)
            what = f"{path.name} names a picture for it that is not there"
            rows.append((Fault("image_missing", what, "add the picture, or drop the line"), relative(mask, root)))
        elif str(picture) in pairs:
            what = f"stands in {path.name} more than once"
            rows.append((Fault("stem_twice", what, "keep one line"), relative(picture, root)))
        else:
            pairs[str(picture)] = picture, mask
    return Paired(pairs, tuple(pictures), tuple(masks), rows)


def _find(name: str, root: Path) -> Path:
    """A listed file; the published lists carry their authors' own folders before the last two names."""
    path = root / name
    return path if path.is_file() else root.joinpath(*Path(name).parts[-2:])
