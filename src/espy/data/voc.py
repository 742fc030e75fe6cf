"""Pascal VOC as published: JPEGImages/ and lists in ImageSets/.

Masks: SegmentationClass/ (palette PNG, 255 at borders), ImageSets/Segmentation/SPLIT.txt. Boxes: Annotations/ (an XML file a
picture), ImageSets/Main/SPLIT.txt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from espy.data.boxes import Boxed, Stated, Statement, invalid, labels_of, match, number, side, unknown
from espy.data.findings import Fault, gather
from espy.data.masks import Coding
from espy.data.sets import (
    Dataset,
    Files,
    Lone,
    Masked,
    choose,
    empty,
    missing,
    names_twice,
    notes_below,
    pair,
    read_lines,
    read_names,
    relative,
    seeded_split,
)
from espy.errors import DataError
from espy.labels import VOC, Label

LISTS = Path("ImageSets", "Segmentation")
BOX_LISTS = Path("ImageSets", "Main")
CODING = Coding.plain(len(VOC))
KINDS = VOC[1:]
"""Of the published boxes: the classes of the masks but background, in their order (the development kit's VOCinit.m)."""

NAMES = "classes.txt"
SHIFT = (-1.0, -1.0, 0.0, 0.0)
"""Published corners name the first and the last pixel of a box, counted from 1; as edges, from 0, these are x1 - 1 and x2."""


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


# Boxes


def open_voc_boxes(root: Path, split: str | None = None) -> Dataset:
    """The boxes of Pascal VOC, or of a set of one's own in its layout, as labelImg and others write it.

    Classes: those of classes.txt, one a line; without it the published 20 where the set is Pascal VOC, else the names that
    occur in Annotations/, in alphabetical order. Splits are the lists as for masks, or drawn by seed where there are none.
    Raises DataError where the folder is no VOC.
    """
    pictures, notes = root / "JPEGImages", root / "Annotations"
    if not (pictures.is_dir() and notes.is_dir()):
        raise missing(root, "no JPEGImages/ with Annotations/ (boxes) or SegmentationClass/ (masks) in it")
    images, files = Files.below(pictures), notes_below(notes, ".xml")
    bare = Fault(
        "annotation_missing",
        "no annotation of this name in Annotations/",
        "add an XML file, without an object where there is none to see, or take the picture away",
    )
    items: list[Boxed] = []
    lone: list[Lone] = []
    rows: list[tuple[Fault, str]] = []
    lists = _box_lists(root)
    splits: dict[str | None, Iterable[str]] = {None: {**images.found, **files}}
    if lists:
        default = [name for name in lists if name in ("train", "val")] or [
            "trainval" if "trainval" in lists else lists[0]
        ]
        splits = {name: _listed(root, name, rows) for name in (choose(split, lists, root) if split else default)}
    known = (root / NAMES).is_file() or _published(root)
    needed = {stem for stems in splits.values() for stem in stems} if known else files
    read_in = {stem: read_annotation(path) for stem, path in files.items() if stem in needed}
    labels, index, of_names = _classes(root, read_in.values())
    rows += of_names
    for name, stems in splits.items():
        found = match(stems, images, files, root, bare, root / BOX_LISTS / f"{name}.txt" if name else None)
        rows += found.rows
        lone += found.lone
        held = seeded_split(found.pairs) if name is None else dict.fromkeys(found.pairs, name)
        for stem in stems:
            if stem not in files:
                continue
            file, note = relative(files[stem], root), read_in[stem]
            if isinstance(note, Fault):
                rows.append((note, file))
                lone += [Lone(found.pairs[stem][0])] if stem in found.pairs else []
            elif stem in found.pairs:
                items.append(Boxed(found.pairs[stem][0], held[stem], note.stated(files[stem], index)))
            else:
                rows += [(problem, file) for problem in note.stated(files[stem], index).problems]
    if not lists and not splits[None]:
        rows += empty(pictures, root)
    named = NAMES if (root / NAMES).is_file() else None
    data = Dataset(
        "voc", root, labels, tuple(items), gather(rows), tuple(lone), named, looked=named is None and labels != KINDS,
        seeded=not lists, task="detect",
    )  # fmt: skip
    if split is not None and not lists and items:
        choose(split, ["train", "val"], root)
        return data.only(split)
    return data


def _box_lists(root: Path) -> list[str]:
    """The lists of splits; those of single classes, such as dog_train.txt, are none."""
    found = sorted(path.stem for path in (root / BOX_LISTS).glob("[!.]*.txt"))
    return [name for name in found if not any(name.endswith(f"_{other}") for other in found)]


def _listed(root: Path, name: str, rows: list[tuple[Fault, str]]) -> list[str]:
    path = root / BOX_LISTS / f"{name}.txt"
    stems = list(dict.fromkeys(line.split()[0] for line in read_lines(path) if line))
    if not stems:
        rows += empty(path, root)
    return stems


@dataclass(frozen=True)
class Object:
    """One object of an annotation as it stands there: its place in the file from 1, its name and corners, and difficult."""

    number: int
    name: str | None
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class Annotation:
    """An XML file: (height, width) of the picture, None where it does not say, and its objects."""

    size: tuple[int, int] | None
    objects: tuple[Object, ...]

    def stated(self, file: Path, index: dict[str, int]) -> Stated:
        """The boxes, where `index` gives a name's class."""
        made = Statement("object")
        for one in self.objects:
            if one.name is None:
                made.problems.append(invalid("an object without a name", f"object {one.number}"))
            elif one.name not in index:
                cure = f"correct it, or name the class in {NAMES}"
                made.problems.append(unknown((), "a name that is none of the classes", repr(one.name), cure))
            else:
                made.add(one.number, one.corners, index[one.name], one.difficult)
        return made.stated(file, self.size, SHIFT)


def read_annotation(path: Path) -> Annotation | Fault:
    """An XML file of Pascal VOC's form, or why it cannot be used."""
    try:
        tree = parse(path.read_bytes())
    except OSError as error:
        return Fault("unreadable", f"cannot be read: {error.strerror}", "give it the right to be read, or take it away")
    except DataError as error:
        return Fault("unreadable", str(error), "save it again from the tool that wrote it, or take it away")
    if tree.tag != "annotation":
        return Fault("unreadable", f"no <annotation> of Pascal VOC but <{tree.tag}>", "write it in Pascal VOC's form")
    objects = []
    for place, one in enumerate(tree.iterfind("object"), 1):
        name = (one.findtext("name") or "").strip()
        x1, y1, x2, y2 = (number(one.findtext(f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax"))
        difficult = (one.findtext("difficult") or "").strip() in ("1", "true", "True")
        objects.append(Object(place, name or None, (x1, y1, x2, y2), difficult))
    height, width = (side(tree.findtext(f"size/{name}")) for name in ("height", "width"))
    return Annotation((height, width) if height and width else None, tuple(objects))


def parse(content: bytes) -> Element:
    """The root of an XML document. Raises DataError for what is none, and for one that declares a document type: entities
    declared there can make a small file grow without end, and annotations need none."""
    builder = TreeBuilder()

    def refuse(*declared: object) -> None:
        raise DataError("an XML file that declares a document type (<!DOCTYPE ...>), which no annotation needs")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: of encodings that it does not know
        raise DataError("an empty file" if not content.strip() else f"no XML, or cut off ({error})") from None
    return builder.close()


def _classes(
    root: Path, notes: Iterable[Annotation | Fault]
) -> tuple[tuple[Label, ...], dict[str, int], list[tuple[Fault, str]]]:
    """The classes, the index of each name on disk, and (fault, file) rows."""
    if (root / NAMES).is_file():
        names, rows = read_names(root / NAMES)
        return labels_of(names), {name: index for index, name in enumerate(names)}, rows
    found = sorted({one.name for note in notes if isinstance(note, Annotation) for one in note.objects if one.name})
    published = {_plain(label.name): index for index, label in enumerate(KINDS)}
    if _published(root) or {_plain(name) for name in found} == published.keys():
        return KINDS, {name: published[_plain(name)] for name in found if _plain(name) in published}, []
    alike = names_twice([name.casefold() for name in found], "Annotations")
    cure = f"give the class one name, or name the classes in {NAMES}"
    rows = [(replace(fault, what=f"{fault.what}, written in different ways", cure=cure, warning=True), file)
            for fault, file in alike]  # fmt: skip
    return labels_of(found), {name: index for index, name in enumerate(found)}, rows


def _published(root: Path) -> bool:
    """Whether this is Pascal VOC itself, which has lists for each of its classes."""
    return any((root / BOX_LISTS).glob(f"{KINDS[0].name}_*.txt"))


def _plain(name: str) -> str:
    """A name as the published files have it: diningtable, tvmonitor."""
    return "".join(letter for letter in name if letter.isalnum())
