"""`espy check`: all that is wrong with a data set, in one report."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click

from espy.cli import text
from espy.errors import one_line

if TYPE_CHECKING:
    from espy.data.check import Report

MOST_SIZES = 5  # of a set's sizes that are listed
NUMBERS = ("value", "share", "pictures", "boxes")  # columns of numbers
MOST_CLASSES = 32  # found by looking, up to which those between them are listed too


@click.command("check")
@click.argument("data", metavar="KIND:PATH")
@click.option("--split", help="Only this split, such as train or val; all unless given.")
@click.option(
    "--task", help="segment or detect, for a kind that holds both (voc); masks where there are any unless given."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def command(data: str, split: str | None, task: str | None, as_json: bool) -> int:
    """Read every picture of a set with its truth and say all that is wrong with it.

    KIND is, for masks, folder (images/, masks/, classes.txt), camvid, cityscapes or voc; for classes of pictures imagefolder
    (train/CLASS/, val/CLASS/); for boxes voc, coco or yolo. Exit code 0: in order, warnings too; 1: faults.

    Example: espy check folder:photos/
    """
    from espy.data.check import check
    from espy.data.kinds import open_set

    start = time.perf_counter()
    opened = open_set(data, split, task)
    with text.bar(len(opened) + len(opened.lone)) as advance:
        report = check(opened, advance=advance)
    text.say(f"{data}: read in {time.perf_counter() - start:.1f} s")
    if as_json:
        print(json.dumps({"espy": 1, "command": "check", **report.to_dict()}))
    else:
        tell(report)
    return 0 if report.ok else 1


def tell(report: Report) -> None:
    """Print what was found: findings, classes, a line that sums up."""
    from rich.table import Table

    def table(*columns: str) -> Table:
        made = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            made.add_column(column, overflow="fold", justify="right" if column in NUMBERS else "left")
        return made

    if report.findings:
        found = table("", "diagnosis", "what, and where", "cure")
        for finding in report.findings:
            found.add_row(finding.severity, finding.diagnosis, finding.message, finding.cure)
        text.print_table(found)
        print()
    # classes that nobody named and nobody saw would fill the screen
    unseen = len(report.data.labels) <= MOST_CLASSES or not report.data.looked
    every = sum(report.pixels.values())
    if every:
        shares = table("value", "class", "share")
        names = [label.name for label in report.data.labels]
        for value, name in [*enumerate(names), (255, "void, not counted")]:
            pixels = report.pixels.get(value, 0)
            if pixels or (unseen and value < len(names)):
                shares.add_row(str(value), one_line(name), f"{100 * pixels / every:.2f} %")
        text.print_table(shares)
        print()
    if report.pictures:
        counted = {"pictures": report.pictures} | ({"boxes": report.boxes} if report.boxes else {})
        classes = table("value", "class", *counted)
        for value, label in enumerate(report.data.labels):
            if unseen or report.pictures[value]:
                times = (str(column[value]) for column in counted.values())
                classes.add_row(str(value), one_line(label.name), *times)
        text.print_table(classes)
        print()
    print(_summary(report))


def _summary(report: Report) -> str:
    splits = ", ".join(f"{name} {pairs}" for name, pairs in report.data.splits.items())
    sizes = [f"{height} x {width} ({number})" for (height, width), number in report.sizes.items()]
    more = f" and {len(sizes) - MOST_SIZES} more" if len(sizes) > MOST_SIZES else ""
    severities = [finding.severity for finding in report.findings]
    counts = [(severities.count(kind), kind) for kind in ("fault", "warning")]
    verdict = ", ".join(_several(n, kind, f"{kind}s") for n, kind in counts if n) or "in order"
    words = ("pair", "pairs") if report.data.task == "segment" else ("picture", "pictures")
    pairs = _several(len(report.data), *words) + (f" ({splits})" if splits else "")
    heights = f"; height x width {', '.join(sizes[:MOST_SIZES])}{more}" if sizes else ""
    classes = _several(len(report.data.labels), "class", "classes")
    boxes = f", {_several(sum(report.boxes), 'box', 'boxes')}" if report.data.task == "detect" else ""
    return one_line(f"{pairs}, {classes}{boxes}{heights}: {verdict}")


def _several(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
