"""Many pictures from files, folders, globs and standard input into an output folder, reading and writing beside the engine."""

from __future__ import annotations

import glob
import json
import os
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from espy.errors import EspyError, OutputError
from espy.output import refuse_existing, shown, write_bytes
from espy.picture.read import ENDINGS, Source
from espy.picture.write import write_mask, write_picture
from espy.run.predictor import Model, large
from espy.run.result import Detections, Result, Segmentation

WRITERS = 2
WAITING = 3  # results that may wait for a writer; more would fill the memory behind a slow disk
VIEWS = {"segment": ("overlay", "mask", "side"), "classify": ("overlay", "side"), "detect": ("overlay", "side")}


@dataclass(frozen=True)
class Task:
    """A picture to read and the stem of its output files, relative to the output folder."""

    source: str
    stem: Path

    @property
    def content(self) -> Source:
        """What the reader is given."""
        return sys.stdin.buffer if self.source == "-" else self.source


@dataclass(frozen=True)
class Done:
    """A picture that is finished: its result and files, or the error that kept it from them."""

    task: Task
    result: Result | None = None
    output: dict[str, str] = field(default_factory=dict)
    write_ms: float = 0.0
    error: EspyError | None = None

    def to_dict(self) -> dict[str, Any]:
        """The picture's entry in the JSON output."""
        if self.result is None:
            return {"source": shown(self.task.source), "error": str(self.error)}
        data = self.result.to_dict()
        timing = {**data.pop("timing"), "write": round(self.write_ms, 3)}
        return {"source": shown(self.task.source), "output": self.output, **data, "timing": timing}


# Which pictures


def find(sources: Sequence[str], out: Path) -> list[Task]:
    """The pictures of files, folders (searched whole, hidden files and the output folder left out), globs and `-`.

    Raises EspyError where a folder or pattern holds none.
    """
    found: list[tuple[str, Path]] = []
    for source in sources:
        path = Path(source)
        if not source:
            raise EspyError("an empty name was given as a picture: is a variable of the shell not set?")
        if source == "-":
            found.append(("-", Path("stdin")))
        elif os.path.isdir(path):  # noqa: PTH112 (a name too long for the disk is no folder, not an error)
            inside = [(str(p), p.relative_to(path)) for p in _pictures_in(path, out)]
            if not inside:
                raise EspyError(f"{source}: no pictures in this folder ({', '.join(sorted(ENDINGS))})")
            found += inside
        elif not os.path.lexists(path) and re.search(r"[*?\[]", source):
            root = _fixed_part(source)
            named = (Path(name) for name in glob.glob(source, recursive=True))
            matches = sorted(p for p in named if p.is_file() and not _is_result(p, root, out))
            if not matches:
                raise EspyError(f"{source}: no file matches this pattern")
            found += [(str(p), p.relative_to(root)) for p in matches]
        else:
            found.append((source, Path(path.name)))
    unique = {os.path.realpath(source) if source != "-" else "-": (source, name) for source, name in found[::-1]}
    return name_outputs(list(unique.values())[::-1])


def _pictures_in(folder: Path, out: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in ENDINGS and not hidden and path.is_file() and not _is_result(path, folder, out):
            yield path


def _is_result(path: Path, folder: Path, out: Path) -> bool:
    """Whether a file found in a folder lies in the output folder somewhere below it."""
    kept, root = Path(os.path.realpath(out)), Path(os.path.realpath(folder))
    return root in kept.parents and kept in Path(os.path.realpath(path)).parents


def _fixed_part(pattern: str) -> Path:
    """The folders of a pattern before its first wildcard."""
    parts = Path(pattern).parts
    return Path(*takewhile(lambda part: not re.search(r"[*?\[]", part), parts[:-1]))


def name_outputs(found: list[tuple[str, Path]]) -> list[Task]:
    """Stems without ending; those that would meet keep their ending, those that still would get a number.

    >>> [str(task.stem) for task in name_outputs([("a/p.jpg", Path("p.jpg")), ("b/p.png", Path("p.png"))])]
    ['p.jpg', 'p.png']
    """
    stems = [name.with_suffix("") if name.suffix else name for _, name in found]
    count = Counter(str(stem).lower() for stem in stems)
    stems = [name if count[str(stem).lower()] > 1 else stem for (_, name), stem in zip(found, stems, strict=True)]
    taken: set[str] = set()
    tasks = []
    for (source, _), stem in zip(found, stems, strict=True):
        number, unique = 1, stem
        while str(unique).lower() in taken:
            number += 1
            unique = stem.with_name(f"{stem.name}-{number}")
        taken.add(str(unique).lower())
        tasks.append(Task(source, unique))
    return tasks


# Predict and write


def outputs(task: Task, out: Path, view: str, kind: str) -> dict[str, Path]:
    """The files that a picture's result is written to; `kind`: the model's task."""
    files = {} if view == "mask" else {view: f".{view}.jpg"}
    if kind == "segment":
        files["mask"] = ".mask.png"
    files["json"] = ".json"
    base = out / task.stem
    return {name: base.with_name(base.name + ending) for name, ending in files.items()}


def check_outputs(tasks: Iterable[Task], out: Path, view: str, kind: str, force: bool) -> None:
    """Raise OutputError where a result would land on a file that exists, or on one of the pictures themselves."""
    tasks = list(tasks)
    pictures = {os.path.realpath(task.source) for task in tasks if task.source != "-"}
    files = [path for task in tasks for path in outputs(task, out, view, kind).values()]
    for path in files:
        if os.path.realpath(path) in pictures:
            raise OutputError(f"{path}: is one of the pictures to read: choose another --out")
    standing = [path for path in files if os.path.lexists(path)]
    if standing and not force:
        more = f" and {len(standing) - 1} more" if len(standing) > 1 else ""
        verb = "exist" if more else "exists"
        raise OutputError(f"{standing[0]}{more} {verb} already: choose another --out, or overwrite with --force")
    for path in standing:
        refuse_existing(path, force)


def predict(
    model: Model, tasks: Sequence[Task], out: Path, *, view: str = "overlay", score: float | None = None, force: bool = False,
    batch: int = 1,
) -> Iterator[Done]:  # fmt: skip
    """Every picture's result, written, in the order of the tasks; a picture that fails stops nothing.

    `score`: boxes that score no more are neither drawn nor told.
    """
    writing: deque[Future[Done]] = deque()
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="espy-write") as pool:
        try:
            items = model.map((task.content for task in tasks), batch)
            for task, item in zip(tasks, items, strict=True):
                if item.result is None:
                    writing.append(pool.submit(Done, task, error=item.error))
                else:
                    result = item.result
                    if isinstance(result, Detections) and score is not None:
                        result = replace(result, min_score=score)
                    files = outputs(task, out, view, model.task)
                    writing.append(pool.submit(_write, task, result, files, view, force))
                most = 0 if item.result is not None and large(item.result) else WAITING
                while writing and (len(writing) > most or writing[0].done()):
                    yield writing.popleft().result()
            while writing:
                yield writing.popleft().result()
        finally:
            for future in writing:
                future.cancel()


def _write(task: Task, result: Result, files: dict[str, Path], view: str, force: bool) -> Done:
    start = time.perf_counter()
    try:
        if isinstance(result, Segmentation):
            write_mask(files["mask"], result.mask, result.labels, force=force)
        if view in files and view != "mask":
            # drawn on the picture itself where nobody sees it again: a copy of a large one is dear
            drawn = result.drawn(in_place=True) if view == "overlay" else result.view(view)
            write_picture(files[view], drawn, force=force)
        ms = 1e3 * (time.perf_counter() - start)
        done = Done(task, result, {kind: shown(path) for kind, path in files.items()}, ms)
        text = json.dumps(done.to_dict(), ensure_ascii=False, indent=1)
        write_bytes(files["json"], text.encode() + b"\n", force=force)
    except EspyError as error:
        return Done(task, error=error)
    return done
