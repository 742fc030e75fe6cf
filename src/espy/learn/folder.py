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
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from espy.errors import OutputError
from espy.learn import recipe as recipes
from espy.learn.recipe import Recipe
from espy.output import write_bytes
from espy.picture.write import write_picture
from espy.version import VERSION

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
        self._writer: Any = None
        try:
            self._take(recipe, resume)
        except BaseException:
            self.close()
            raise

    def _take(self, recipe: Recipe, resume: bool) -> None:
        kept = self.path / "recipe.toml"
        if not resume:
            there = [entry.name for entry in self.path.iterdir() if entry.name != LOCK]
            if there:
                raise OutputError(
                    f"{self.path}: holds {sorted(there)[0]} already: continue that run with --resume, or choose another --out"
                )
        elif kept.is_file():
            changed = list(recipes.differences(recipes.read_recipe(kept), recipe))
            if changed:
                raise OutputError(
                    f"{self.path}: the run was started with another recipe ({'; '.join(changed)}): resume it with its own "
                    "recipe.toml, or choose another --out"
                )
        recipes.write_recipe(kept, recipe, force=True)

    def note_environment(self, **facts: Any) -> None:
        """Add where and with what the run goes on to environment.json, one entry a start."""
        path = self.path / "environment.json"
        try:
            starts = json.loads(path.read_text())["starts"]
        except (OSError, ValueError, KeyError, TypeError):
            starts = []
        starts.append(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "espy": VERSION,
                "python": platform.python_version(), "numpy": np.__version__, "system": platform.system(),
                "machine": platform.machine(), "processor": processor(), "cores": os.cpu_count(), **facts,
            }
        )  # fmt: skip
        write_bytes(path, json.dumps({"starts": starts}, indent=1).encode(), force=True)

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last one that a kill cut off is left out."""
        if not self.metrics.is_file():
            return []
        found = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
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
            file.write(json.dumps(line) + "\n")
        for name in line.keys() - {"epoch", "step", "iou"}:
            self.scalar(name, line[name], line["step"])

    def open_events(self, step: int) -> None:
        """Start or go on writing TensorBoard events; those after `step` are taken back."""
        from torch.utils.tensorboard import SummaryWriter

        with self._named(self.events):
            self._writer = SummaryWriter(str(self.events), purge_step=step or None)  # type: ignore[no-untyped-call]

    def scalar(self, name: str, value: float | None, step: int) -> None:
        """A number for TensorBoard."""
        if self._writer is not None and isinstance(value, int | float):
            with self._named(self.events):
                self._writer.add_scalar(name, value, step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        """A picture as pictures/NAME.jpg and for TensorBoard."""
        write_picture(self.path / "pictures" / f"{name}.jpg", image, force=True)
        if self._writer is not None:
            with self._named(self.events):
                self._writer.add_image("predictions", np.asarray(image), step, dataformats="HWC")
                self._writer.flush()

    @contextlib.contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None

    def close(self) -> None:
        """Let another run have the folder."""
        if self._writer is not None:
            with self._named(self.events):
                self._writer.close()
            self._writer = None
        self._lock.release()


def processor() -> str:
    """The processor's name as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
