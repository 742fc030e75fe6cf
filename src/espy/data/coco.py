"""COCO's boxes: annotations/instances_SPLIT.json with pictures in SPLIT/, or one JSON file beside images/, split by a seed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from espy.data.boxes import Boxed, Statement, invalid, labels_of, number, side, unknown
from espy.data.findings import Fault, gather
from espy.data.sets import Dataset, choose, missing, names_twice, relative, seeded_split, walk
from espy.picture.read import ENDINGS

ANNOTATIONS = "annotations"
PREFIX = "instances_"
Row = tuple[Fault, str]


def open_coco(root: Path, split: str | None = None) -> Dataset:
    """COCO as published, or a set of one's own in its form.

    A split is called as its file, without the year where one file a split is there: instances_train2017.json is train.
    Classes are the categories in the order of their ids; ids need not follow each other. Outlines and their codes are not
    read. Raises DataError where the folder is no COCO.
    """
    parts = _parts(root)
    rows: list[Row] = []
    categories: dict[Hashable, str] = {}
    for part in parts.values():
        part.categories(categories, rows, root)
    order = sorted(categories, key=lambda key: (isinstance(key, str), key))
    index = {key: place for place, key in enumerate(order)}
    items: list[Boxed] = []
    seeded = None in parts
    chosen: Iterable[str | None] = parts if seeded else choose(split, [name for name in parts if name], root)
    for name in chosen:
        parts[name].read(name, index, root, items, rows)
    source = relative(next(iter(parts.values())).file, root)
    labels = labels_of(categories[key] for key in order)
    data = Dataset("coco", root, labels, tuple(items), gather(rows), (), source, seeded=seeded, task="detect")
    if split is not None and seeded and items:
        choose(split, ["train", "val"], root)
        return data.only(split)
    return data


def _parts(root: Path) -> dict[str | None, _Part]:
    """Split (None: to be drawn) → its file and the folders that its pictures may lie in."""
    files = sorted((root / ANNOTATIONS).glob(f"{PREFIX}*.json"))
    if files:
        names = [path.stem.removeprefix(PREFIX) for path in files]
        short = [re.sub(r"(?<=\D)\d{4}$", "", name) for name in names]
        splits = short if len(set(short)) == len(short) else names
        folders = [[root / name, root / "images" / name, root / "images"] for name in names]
        found = {split: _Part(file, at) for split, file, at in zip(splits, files, folders, strict=True)}
        return dict(sorted(found.items(), key=lambda one: (one[0] != "train", one[0])))
    alone = sorted(path for path in root.glob("[!.]*.json") if path.is_file())
    if (root / "images").is_dir() and len(alone) == 1:
        return {None: _Part(alone[0], [root / "images"])}
    several = f" but {len(alone)} JSON files beside images/: keep one, or" if len(alone) > 1 else ";"
    raise missing(root, f"no {ANNOTATIONS}/{PREFIX}SPLIT.json in it{several} one JSON file beside images/ does as well")


# A file as it is laid out; fields are looked at one by one, so that one wrong number spoils one box


class _Image(msgspec.Struct):
    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None


class _Annotation(msgspec.Struct):
    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    iscrowd: Any = 0


class _Category(msgspec.Struct):
    id: Any = None
    name: Any = None


class _Categories(msgspec.Struct):
    categories: list[_Category]


class _File(_Categories):
    images: list[_Image]
    annotations: list[_Annotation]


@dataclass
class _Part:
    """A JSON file and where its pictures may lie. `broken`: why it cannot be read, once that is known."""

    file: Path
    folders: list[Path]
    broken: Fault | None = None

    def categories(self, known: dict[Hashable, str], rows: list[Row], root: Path) -> None:
        """Add this file's classes to those known."""
        file = relative(self.file, root)
        content = self._decode(_Categories)
        own: dict[Hashable, str] = {}
        for place, category in enumerate(content.categories if content else [], 1):
            where = f"category {place}"
            if not _is_key(category.id) or not isinstance(category.name, str) or not category.name.strip():
                rows.append((invalid("a category without an id or a name", where, "give it both"), file))
            elif category.id in own:
                rows.append((_twice("categories of one id"), file))
            elif known.setdefault(category.id, category.name) != category.name:
                what = "calls a category id another name than the file before it"
                detail = f"{category.id!r} is {known[category.id]!r} and {category.name!r}"
                rows.append((Fault("id_twice", what, "let all files have the same categories", detail=detail), file))
            else:
                own[category.id] = category.name
        rows += names_twice(own.values(), file)

    def read(
        self,
        split: str | None,
        index: dict[Hashable, int],
        root: Path,
        items: list[Boxed],
        rows: list[Row],
    ) -> None:
        """Add this file's pictures with their boxes."""
        file = relative(self.file, root)
        content: Any = None if self.broken else self._decode(_File)
        if self.broken:
            rows.append((self.broken, file))
            return
        folder = next((at for at in self.folders if at.is_dir()), None)
        if folder is None:
            raise missing(root, f"no folder {relative(self.folders[0], root)}/ with the pictures of {file} in it")
        there = {path.relative_to(folder).as_posix(): path for path in walk(folder)}
        images, twice = self._images(content.images, file, rows)
        statements = self._boxes(content.annotations, images, index, file, rows)
        for key, fault in twice:
            statements[key].problems.append(fault)
        paths: dict[Hashable, Path] = {}
        for key, image in images.items():
            name = _within(image.file_name, folder)
            if name in there:
                paths[key] = there[name]
            else:
                fault = Fault(
                    "image_missing", f"named in {file}, but not there", "add the picture, or take its entry out"
                )
                rows.append((fault, f"{relative(folder, root)}/{name}"))
        held = seeded_split(images[key].file_name for key in paths) if split is None else {}
        for key, path in paths.items():
            image = images[key]
            height, width = side(image.height), side(image.width)
            stated = statements[key].stated(path, (height, width) if height and width else None)
            items.append(Boxed(path, split or held[image.file_name], stated))
        used = set(paths.values())
        if not images:
            rows.append((Fault("empty_set", "names no pictures", "list them under images"), file))
        for path in there.values():
            if path not in used and path.suffix.lower() in ENDINGS:
                what, cure = f"stands not in {file}, so it is not used", "add it to the file, or take it away"
                rows.append((Fault("annotation_missing", what, cure, warning=True), relative(path, root)))

    def _images(
        self, images: list[_Image], file: str, rows: list[Row]
    ) -> tuple[dict[Hashable, _Image], list[tuple[Hashable, Fault]]]:
        """The entries by id, and the faults of those that stand there twice, whose boxes are not known to be all."""
        found: dict[Hashable, _Image] = {}
        twice: list[tuple[Hashable, Fault]] = []
        for place, image in enumerate(images, 1):
            if not _is_key(image.id) or not isinstance(image.file_name, str) or not image.file_name:
                rows.append((invalid("a picture without an id or a file_name", f"image {place}", "give it both"), file))
            elif image.id in found:
                twice.append((image.id, _twice(f"two pictures of one id in {file}", repr(image.id))))
            else:
                found[image.id] = image
        names = Counter(image.file_name for image in found.values())
        what, cure = f"stands more than once in {file}", "keep one entry with all its boxes"
        twice += [(key, Fault("stem_twice", what, cure)) for key, image in found.items() if names[image.file_name] > 1]
        return found, twice

    def _boxes(
        self, annotations: list[_Annotation], images: dict[Hashable, _Image], index: dict[Hashable, int], file: str,
        rows: list[Row],
    ) -> dict[Hashable, Statement]:  # fmt: skip
        made = {key: Statement(f"{file}, annotation") for key in images}
        seen: set[Hashable] = set()
        for place, one in enumerate(annotations, 1):
            shown = one.id if _is_number(one.id) else place
            where = f"annotation {shown}"
            if _is_key(one.id) and one.id in seen:
                fault = _twice("annotations of one id; each is a box", repr(one.id))
                rows.append((replace(fault, warning=True), file))
            elif _is_key(one.id):
                seen.add(one.id)
            if not _is_key(one.image_id) or one.image_id not in made:
                what, cure = "an annotation of a picture that is not under images", "list the picture, or take it out"
                rows.append(
                    (Fault("image_missing", what, cure, detail=f"{where}, image_id {_shown(one.image_id)}"), file)
                )
                continue
            statement = made[one.image_id]
            where = f"{file}, {where}"
            if not _is_key(one.category_id) or one.category_id not in index:
                values = (one.category_id,) if _is_number(one.category_id) else ()
                what = "a category id that is not under categories"
                detail = f"{where}, category_id {_shown(one.category_id)}"
                statement.problems.append(unknown(values, what, detail, "correct it, or list the category"))
            elif not isinstance(one.bbox, list) or len(one.bbox) != 4 or any(isinstance(v, str) for v in one.bbox):
                what, cure = "a bbox that is not four numbers", "write x, y, width, height in pixels"
                statement.problems.append(invalid(what, f"{where}, {_shown(one.bbox)}", cure))
            else:
                x, y, width, height = (number(value) for value in one.bbox)
                statement.add(shown, (x, y, x + width, y + height), index[one.category_id], one.iscrowd in (1, True))
        return made

    def _decode(self, kind: type[Any]) -> Any:
        """The file's content, or None, and then `broken` says why."""
        cure = "save it again from the tool that wrote it"
        try:
            content = self.file.read_bytes().removeprefix(b"\xef\xbb\xbf")
            return msgspec.json.decode(content, type=kind)
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
        except msgspec.ValidationError as error:
            what = f"not laid out as COCO's instances: {error}"
            cure = "bring it in COCO's form: images, annotations, categories"
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            what = f"no JSON, or cut off ({error})"
        self.broken = Fault("unreadable", what, cure)
        return None


def _is_key(value: Any) -> bool:
    """Whether a field can be an id."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Whether an id is a number of common size."""
    return _is_key(value) and not isinstance(value, str) and abs(value) < 2**53


def _twice(what: str, detail: str = "") -> Fault:
    return Fault("id_twice", what, "give each an id of its own", detail=detail)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _within(name: str, folder: Path) -> str:
    """A file_name relative to the folder of the pictures, where it may begin with that folder's own name."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return "/".join(parts[1:] if len(parts) > 1 and parts[0] == folder.name else parts)
