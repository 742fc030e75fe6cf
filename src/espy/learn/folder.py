"""A run's folder: one run writes it at a time, and every file in it is whole or grows line by line.

recipe.toml       resolved            last.ckpt          to resume from
environment.json  where it ran        best.safetensors   the weights that validated best
metrics.jsonl     a line an epoch     last.safetensors   those of the last epoch
events/           TensorBoard         pictures/          predicted pictures
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image

from espy.errors import OutputError
from espy.learn import recipe as recipes
from espy.learn.events import Events
from espy.learn.recipe import Recipe
from espy.machine import stamp
from espy.output import is_part, write_bytes
from espy.picture.write import write_picture

LOCK = ".lock"


class RunFolder:
    """The folder of a run, locked while it is open. Raises OutputError where it cannot be."""

    def __init__(self, path: Path, recipe: Recipe, *, resume: bool) -> None:
        self.path = path
        self.checkpoint, self.best = path / "last.ckpt", path / "best.safetensors"
        self.last, self.metrics, self.events = path / "last.safetensors", path / "metrics.jsonl", path / "events"
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / LOCK, blocking=False)
            self._lock.acquire()
        except Timeout:
            raise OutputError(f"{path}: another run is writing there: wait for it, or choose another --out") from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
        self._events: Events | None = None
        try:
            with self._named(path):
                self._take(recipe, resume)
        except BaseException:
            self.close()
            raise

    def _take(self, recipe: Recipe, resume: bool) -> None:
        kept = self.path / "recipe.toml"
        there = sorted(entry.name for entry in self.path.iterdir() if entry.name != LOCK and not is_part(entry))
        if there and not kept.is_file():
            (self.path / LOCK).unlink(missing_ok=True)  # nothing of ours stays there
            raise OutputError(f"{self.path}: holds {there[0]} and no recipe.toml, so no run: choose another --out")
        if there and not resume:
            raise OutputError(f"{self.path}: holds a run already: continue it with --resume, or choose another --out")
        if there:
            changed = list(recipes.differences(recipes.read_recipe(kept), recipe))
            if changed:
                raise OutputError(
                    f"{self.path}: the run was started with another recipe ({'; '.join(changed)}): continue it with "
                    f"espy train {kept} --out {self.path} --resume, or choose another --out"
                )
        for path in [*self.path.glob(".*"), *(self.path / "pictures").glob(".*")]:
            if is_part(path):  # a kill left it
                path.unlink()
        recipes.write_recipe(kept, recipe, force=True)

    def note_environment(self, **facts: Any) -> None:
        """Add where and with what the run goes on to environment.json, one entry a start."""
        path = self.path / "environment.json"
        try:
            starts = list(json.loads(path.read_text())["starts"])
        except (OSError, ValueError, KeyError, TypeError):
            starts = []
        starts.append({**stamp(), **facts})
        write_bytes(path, json.dumps({"starts": starts}, indent=1).encode(), force=True)

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last one that a kill cut off is left out."""
        if not self.metrics.is_file():
            return []
        found = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def rewind(self, step: int) -> None:
        """Drop what was written after a step: the run goes on from there."""
        kept = [line for line in self.lines() if line["step"] <= step]
        write_bytes(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode(), force=True)

    def add(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl and its numbers to TensorBoard."""
        with self._named(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint of this step comes next, and must not outlive the line
        numbers = {
            name: line[name] for name in sorted(line.keys() - {"epoch", "step"}) if isinstance(line[name], int | float)
        }
        with self._named(self.events):
            self._record.scalars(numbers, line["step"])

    def open_events(self, step: int) -> None:
        """Start or go on writing TensorBoard events; those after `step` are taken back."""
        with self._named(self.events):
            self._events = Events(self.events, step)

    @property
    def _record(self) -> Events:
        assert self._events is not None, "open_events comes first"
        return self._events

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        """A picture as pictures/NAME.jpg and for TensorBoard."""
        write_picture(self.path / "pictures" / f"{name}.jpg", image, force=True)
        with self._named(self.events):
            self._record.picture("predictions", image, step)

    @contextlib.contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None

    def close(self) -> None:
        """Let another run have the folder."""
        if self._events is not None:
            with contextlib.suppress(OSError):  # where the disk refused a record, that was told
                self._events.close()
            self._events = None
        self._lock.release()
