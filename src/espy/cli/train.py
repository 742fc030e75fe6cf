"""`espy train`: follow a recipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from espy.cli import text
from espy.errors import EngineError, EspyError
from espy.learn.watch import Progress, Watch
from espy.output import shown

NEEDED = ("torch", "lightning_fabric", "tensorboard", "filelock")


@click.command("train")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run's folder; runs/ and the recipe's name unless given."
)
@click.option("--resume", is_flag=True, help="Go on with the run in that folder.")
@click.option("--show", is_flag=True, help="Print the recipe with every field, its value and meaning; train nothing.")
@click.option("--profile", is_flag=True, help="Train a few steps, say where the time goes, keep nothing.")
def command(recipe: Path, overrides: tuple[str, ...], out: Path | None, resume: bool, show: bool, profile: bool) -> int:
    """Train a network on a set of pictures with masks, as a recipe says.

    The run's folder holds last.ckpt to resume from, best.safetensors to use, metrics.jsonl, TensorBoard events and pictures.
    Exit code 130 or 143: stopped by SIGINT or SIGTERM after a whole step, to be continued with --resume.

    Example: espy train my.toml epochs=50
    """
    call = (recipe, overrides, out, resume, show, profile)
    if not int(os.environ.get("LOCAL_RANK", 0)):
        return _train(*call)
    # Of the processes that torchrun starts on a machine only the first one speaks.
    with (
        Path(os.devnull).open("w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        try:
            return _train(*call)
        except EspyError:
            return 2


def _train(recipe: Path, overrides: tuple[str, ...], out: Path | None, resume: bool, show: bool, profile: bool) -> int:
    from espy.learn import recipe as recipes

    followed = recipes.read_recipe(recipe, overrides)
    if show:
        print(recipes.to_toml(followed, notes=True), end="")
        return 0
    try:
        from espy.learn.loop import train
        from espy.learn.profile import profile as profiled
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        raise EngineError(f"training needs {error.name}: pip install 'espy-vision[train]'") from None
    if profile:
        print(profiled(followed))
        return 0
    folder = out or Path("runs", recipe.stem)
    with _watching() as watch:
        run = train(followed, folder=folder, resume=resume, watch=watch)
    if run.metrics:
        best = f"{run.metric} {100 * run.score:.2f} % at best, " if run.score is not None else ""
        print(f"{best}{shown(run.best)}")
        print(f"deploy it: espy export {shown(run.best)} --to onnx -o MODEL.onnx")
    return 0


@contextlib.contextmanager
def _watching() -> Iterator[Watch]:
    """A live bar on a terminal; in a pipe a line an epoch."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    import rich.progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[figures]}"), bars.TimeElapsedColumn(), bars.TextColumn("{task.fields[left]}"),
    )  # fmt: skip
    with bars.Progress(*columns, console=console) as bar:
        yield _Live(bar)


class _Live(Watch):
    """A bar of steps: epoch, loss, mIoU, images/s, time gone and left."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.line = bar.add_task("reading pictures", total=None, figures="", left="")

    def say(self, line: str) -> None:
        self.bar.console.print(line, markup=False, highlight=False)

    def look(self, name: str) -> None:
        self.bar.update(self.line, advance=1)

    def progress(self, progress: Progress) -> None:
        at = progress
        self.bar.update(
            self.line, description=f"epoch {at.epoch}/{at.epochs}", total=at.steps, completed=at.step, figures=figures(at),
            left=f"left {duration(at.eta_s)}",
        )  # fmt: skip


class _Lines(Watch):
    """A line when an epoch begins and one at the end."""

    def __init__(self) -> None:
        self.epoch = 0

    def say(self, line: str) -> None:
        text.say(line)

    def progress(self, progress: Progress) -> None:
        at = progress
        if at.epoch != self.epoch or at.step == at.steps:
            text.say(
                f"epoch {at.epoch}/{at.epochs}, step {at.step}/{at.steps}, {figures(at)}, left {duration(at.eta_s)}"
            )
            self.epoch = at.epoch


def figures(at: Progress) -> str:
    """Loss, mIoU and speed in words."""
    score = "" if at.score is None else f", {at.metric} {100 * at.score:.2f} %"
    return f"loss {at.loss:.4f}{score}, {at.images_s:.1f} images/s"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss.

    >>> duration(3700)
    '1:01:40'
    """
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
