"""Pascal VOC as published: JPEGImages/, SegmentationClass/ (palette PNG, 255 at borders), ImageSets/Segmentation/SPLIT.txt."""

from __future__ import annotations

from pathlib import Path

from espy.data.findings import Fault, gather
from espy.data.masks import Coding
from espy.data.sets import Dataset, Files, Lone, Masked, choose, empty, missing, pair, read_lines, relative
from espy.labels import VOC

LISTS = Path("ImageSets", "Segmentation")
CODING = Coding.plain(len(VOC))


def open_voc(root: Path, split: str | None = None) -> Dataset:
    """Pascal VOC in a folder such as VOCdevkit/VOC2012: its 21 classes.

    Splits are the lists there (train, val, trainval, or others); unless one is named train and val, or trainval where they
    are missing. Raises DataError where the folder is no VOC.
    """
    folders = root / "JPEGImages", root / "SegmentationClass"
    if not all(folder.is_dir() for folder in (*folders, root / LISTS)):
        raise missing(root, f"no JPEGImages/, SegmentationClass/ and {LISTS.as_posix()}/ in it")
    known = sorted(path.stem for path in (root / LISTS).glob("[!.]*.txt"))
    default = [name for name in known if name in ("train", "val")] or ["trainval"]
    pictures, masks = (Files.below(folder) for folder in folders)
    items: list[Masked] = []
    lone: list[Lone] = []
    rows: list[tuple[Fault, str]] = []
    for name in choose(split, known, root) if split else default:
        listed = root / LISTS / f"{name}.txt"
        stems = {line.split()[0]: None for line in read_lines(listed) if line}
        if not stems:
            rows += empty(listed, root)
            continue
        there, true = pictures.among(stems), masks.among(stems)
        for stem in stems:
            if stem not in there.found and stem not in true.found:
                what = "names what has neither picture nor mask"
                fault = Fault("image_missing", what, "add both, or drop the line", detail=stem)
                rows.append((fault, relative(listed, root)))
        if there.found or true.found:
            found = pair(there, true, root)
            rows += found.rows
            lone += found.lone(lambda mask: CODING)
            items += [
                Masked(p, name, m, CODING) for p, m in (found.pairs[stem] for stem in stems if stem in found.pairs)
            ]
    return Dataset("voc", root, VOC, tuple(items), gather(rows), tuple(lone))
