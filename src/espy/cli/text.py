"""What several verbs share: sizes in words, remarks, the progress bar."""

from __future__ import annotations

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from espy.picture.frame import Size


def say(message: str) -> None:
    """A remark on stderr."""
    print(message, file=sys.stderr)


@contextlib.contextmanager
def bar(total: int, unit: str = "images", *, live: bool = True) -> Iterator[Callable[[str], None]]:
    """A bar (files, images/s, time left) on a terminal, nothing in a pipe. Call what it gives with each file's name.

    `live`: it moves between the calls too, which takes a little of a core.
    """
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """How many a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f} {unit}/s" if task.speed else "")

    name_column = TextColumn("{task.description}", markup=False)  # file names may hold brackets
    columns = (name_column, BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=live) as progress:
        line = progress.add_task("pictures", total=total)
        yield lambda name: progress.update(line, advance=1, description=name[-30:], refresh=not live)


def print_table(table: Table, width: int = 160) -> None:
    """A table on stdout, as wide as the terminal, or as `width` in a pipe. Brackets in names are no markup."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False).print(table)


def parse_size(text: str | None, option: str = "--size") -> Size:
    """`512x1024` as (height, width); `native` as it is."""
    if text is None or text == "native":
        return text  # type: ignore[return-value]
    match = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", text.strip())
    if not match or 0 in (int(match[1]), int(match[2])):
        raise click.BadParameter(f"{option} is HEIGHTxWIDTH, such as 512x1024, not {text!r}")
    return int(match[1]), int(match[2])


def parse_tile(text: str | None) -> tuple[int, int] | None:
    """`1024x2048` as (height, width)."""
    size = parse_size(text, "--tile")
    if size == "native":
        raise click.BadParameter("--tile is HEIGHTxWIDTH, such as 1024x2048")
    return size


def describe_size(size: tuple[int, int]) -> str:
    """(height, width) in words."""
    return f"height {size[0]}, width {size[1]}"


def main_shares(shares: dict[str, float], most: int = 5) -> str:
    """The largest shares in words."""
    largest = sorted(shares.items(), key=lambda item: -item[1])[:most]
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in largest if share >= 0.005)


def main_facts(result: dict[str, Any]) -> str:
    """What was found in a picture, in words, of its entry in the JSON output."""
    if result["task"] == "segment":
        return main_shares(result["shares"])
    if result["task"] == "classify":
        return main_shares({one["label"]: one["probability"] for one in result["top"]})
    counts = Counter(one["label"] for one in result["boxes"])
    return ", ".join(f"{times} x {name}" for name, times in counts.most_common()) or "nothing"
