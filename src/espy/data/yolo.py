"""YOLO's boxes: images/ and labels/, a text file a picture, a line a box: class, centre x, centre y, width, height in shares.

Split by folders (images/train and labels/train, or train/images and train/labels), or by a seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from espy.data.boxes import Boxed, Statement, invalid, labels_of, match, number, unknown
from espy.data.findings import Fault, gather
from espy.data.sets import (
    Dataset,
    Files,
    Lone,
    choose,
    empty,
    missing,
    names_twice,
    notes_below,
    read_lines,
    read_names,
    read_text,
    relative,
    seeded_split,
    subfolders,
)
from espy.errors import DataError

NAMES = "classes.txt"
MOST_LOOKED = 1000  # classes that nobody named; an index beyond is hardly one


def open_yolo(root: Path, split: str | None = None) -> Dataset:
    """A set in YOLO's layout.

    Classes: classes.txt (beside images/ or in labels/), or `names` in data.yaml or another YAML file there; without them 0 to
    the highest index. A picture without a text file is one without boxes, and said. Raises DataError where the folder is not
    laid out so, or the names cannot be used.
    """
    parts = _parts(root)
    for _, labels in parts.values():
        if not labels.is_dir():
            raise missing(root, f"no {relative(labels, root)}/ in it")
    names, source, rows = _names(root, [labels for _, labels in parts.values()])
    notes = {name: notes_below(labels, ".txt") for name, (_, labels) in parts.items()}
    for of_part in notes.values():
        of_part.pop(Path(NAMES).stem, None)
    lines = {path: _lines(path) for of_part in notes.values() for path in of_part.values()}
    classes = len(names) if names is not None else _highest(lines.values()) + 1
    items: list[Boxed] = []
    lone: list[Lone] = []
    what, cure = (
        "no text file of this name in labels/; taken as a picture without boxes",
        "add an empty file if it is so",
    )
    bare = Fault("annotation_missing", what, cure, warning=True)
    seeded = None in parts
    for name in parts if seeded else choose(split, [name for name in parts if name], root):
        pictures, _ = parts[name]
        images, files = Files.below(pictures), notes[name]
        found = match({**images.found, **files}, images, files, root, bare)
        rows += found.rows if images.found else empty(pictures, root)
        lone += found.lone
        held = seeded_split(found.pairs) if name is None else dict.fromkeys(found.pairs, name)
        for stem, (picture, file) in found.pairs.items():
            content = lines[file] if file else []
            if isinstance(content, Fault):
                rows.append((content, relative(file or picture, root)))
                lone.append(Lone(picture))
            else:
                items.append(Boxed(picture, held[stem], _statement(content, classes).stated(file or picture)))
        for stem in files.keys() - images.found.keys():
            problem = lines[files[stem]]
            problems = [problem] if isinstance(problem, Fault) else _statement(problem, classes).problems
            rows += [(one, relative(files[stem], root)) for one in problems]
    made = labels_of(names if names is not None else [f"class {index}" for index in range(classes)])
    data = Dataset(
        "yolo", root, made, tuple(items), gather(rows), tuple(lone), source, looked=names is None,
        seeded=seeded, task="detect",
    )  # fmt: skip
    if split is not None and seeded and items:
        choose(split, ["train", "val"], root)
        return data.only(split)
    return data


def _parts(root: Path) -> dict[str | None, tuple[Path, Path]]:
    """Split (None: to be drawn) → its pictures and its text files."""
    images, labels = root / "images", root / "labels"
    inside = subfolders(images) if images.is_dir() else []
    if "train" in inside and (labels / "train").is_dir():
        return {name: (images / name, labels / name) for name in inside}
    if images.is_dir():
        return {None: (images, labels)}
    splits = [name for name in subfolders(root) if (root / name / "images").is_dir()]
    if not splits:
        raise missing(root, "no images/ and labels/ in it, nor train/images/ and train/labels/")
    return {name: (root / name / "images", root / name / "labels") for name in splits}


def _lines(path: Path) -> list[str] | Fault:
    try:
        return read_lines(path)
    except DataError as error:
        what = str(error).removeprefix(f"{path}: ")
        return Fault("unreadable", what, "write it again: class, centre x, centre y, width, height a line")


def _index(text: str) -> int | None:
    """A class index, which some tools write as 3.0."""
    value = number(text)
    return int(value) if 0 <= value < 2**53 and value % 1 == 0 else None


def _highest(contents: Iterable[list[str] | Fault]) -> int:
    found = (_index(line.split()[0]) for lines in contents if not isinstance(lines, Fault) for line in lines if line)
    return max((index for index in found if index is not None and index < MOST_LOOKED), default=-1)


def _statement(lines: list[str], classes: int) -> Statement:
    made = Statement("line", shares=True)
    for place, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        index = _index(fields[0])
        if len(fields) != 5:
            what = "a line that is not a class and four numbers"
            cure = "write class, centre x, centre y, width, height"
            cure += "; outlines are not read" if len(fields) > 6 else ""
            made.problems.append(invalid(what, f"line {place}, {len(fields)} values", cure))
        elif index is None or index >= classes:
            known = f"classes are 0 to {classes - 1}" if classes else "there are no classes"
            values = () if index is None else (index,)
            what = f"a class that is none; {known}"
            made.problems.append(
                unknown(values, what, f"line {place}, {fields[0][:20]}", "correct it, or name the class")
            )
        else:
            x, y, width, height = (number(value) for value in fields[1:])
            made.add(place, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), index, crowd=False)
    return made


# The names


def _names(root: Path, folders: list[Path]) -> tuple[list[str] | None, str | None, list[tuple[Fault, str]]]:
    """The classes' names, the file that has them, and (fault, file) rows."""
    for path in (folder / NAMES for folder in (root, root / "labels", *folders)):
        if path.is_file():
            names, _ = read_names(path)
            return names, relative(path, root), names_twice(names, relative(path, root))
    files = sorted(
        [*root.glob("[!.]*.yaml"), *root.glob("[!.]*.yml")], key=lambda path: (path.stem != "data", path.name)
    )
    for path in files:
        if found := yaml_names(read_text(path), path):
            return found, relative(path, root), names_twice(found, relative(path, root))
    return None, None, []


_QUOTED = r"""\"(?:[^"\\]|\\.)*\"|'(?:[^']|'')*'"""
_LINE = re.compile(rf"""\s*(?:-|(\d{{1,9}})\s*:)\s+({_QUOTED}|[^\s"'#\[{{].*?)(?:\s+\#.*)?""")
_PART = re.compile(rf"""\s*(?:(\d{{1,9}})\s*:\s)?\s*({_QUOTED}|[^\s"',#\[\]{{}}][^,\[\]{{}}]*?)\s*(?:,|$)""")


def yaml_names(text: str, path: Path) -> list[str] | None:
    """The list under `names` in a YAML file of YOLO's, in any of its four usual forms; None where it has none.

    Not a reader of YAML: anchors, tags and folded text are not known. Raises DataError for what is none of these forms.

    >>> yaml_names("nc: 2\\nnames: [cat, 'big dog']", Path("data.yaml"))
    ['cat', 'big dog']
    >>> yaml_names("names:\\n  0: cat  # a small one\\n  1: dog\\nval: x", Path("data.yaml"))
    ['cat', 'dog']
    """
    lines = [line.rstrip() for line in text.splitlines()]
    start = next((k for k, line in enumerate(lines) if re.match(r"names\s*:(\s|$)", line)), None)
    if start is None:
        return None
    beside = re.sub(r"^#.*", "", lines[start].partition(":")[2].strip())
    below = [line for line in takewhile(_goes_on, lines[start + 1 :]) if not re.fullmatch(r"\s*(#.*)?", line)]
    found = (
        _flow(" ".join([beside, *(re.sub(r"\s#[^'\"]*$", "", line) for line in below)])) if beside else _block(below)
    )
    places = [int(place) for place, _ in found if place is not None]
    numbered = len(places) == len(found) and sorted(places) == list(range(len(places)))
    if numbered:
        found.sort(key=lambda one: int(one[0] or 0))
    if not found or (places and not numbered) or not all(name for _, name in found):
        raise DataError(f"{path}: its names cannot be read: write them into {NAMES}, one a line")
    return [name for _, name in found]


def _goes_on(line: str) -> bool:
    """Whether a line of YAML belongs to the key above it."""
    return not line or line[0] in " \t-#]}"


Named = list[tuple[str | None, str]]  # (the number before a name, the name)


def _block(lines: list[str]) -> Named:
    """A name a line: `- cat` or `0: cat`; empty where a line is neither."""
    matches = [_LINE.fullmatch(line) for line in lines]
    return [(match[1], _unquoted(match[2])) for match in matches if match] if all(matches) else []


def _flow(text: str) -> Named:
    """[cat, dog] or {0: cat, 1: dog}; empty for what is neither."""
    inner = re.fullmatch(r"(?:\[(.*?)|\{(.*?)),?\s*[\]}]\s*(?:#.*)?", text)
    rest, found = (inner[1] or inner[2] or "") if inner else "", []
    while rest.strip():
        match = _PART.match(rest)
        if match is None:
            return []
        found.append((match[1], _unquoted(match[2])))
        rest = rest[match.end() :]
    return found


def _unquoted(text: str) -> str:
    if text[:1] == "'":
        return text[1:-1].replace("''", "'").strip()
    return re.sub(r"\\(.)", r"\1", text[1:-1]).strip() if text[:1] == '"' else text.strip()
