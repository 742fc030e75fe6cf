"""`espy recipe`: a first recipe for a set of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from espy.cli import text
from espy.cli.check import tell
from espy.errors import DataError, one_line


@click.command("recipe")
@click.argument("data", metavar="KIND:PATH")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The file to write, NAME.toml.")
@click.option(
    "--task", help="segment or detect, for a kind that holds both (voc); masks where there are any unless given."
)
@click.option(
    "--network",
    default="espnetv2",
    show_default=True,
    help="espnetv2, started from bundled weights; for masks also espnetv2_first or espnet, from none.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
def command(data: str, out: Path, task: str | None, network: str, force: bool) -> int:
    """Look at a set of pictures with their truth and write a first recipe for it, with the reasons in words.

    KIND is folder, camvid, cityscapes or voc for masks, imagefolder for classes of pictures, voc, coco or yolo for boxes. A set
    with faults gets none: they are told as by check, with exit code 2.

    Example: espy recipe folder:photos/ -o my.toml
    """
    from espy.data.check import check
    from espy.data.kinds import open_set
    from espy.learn.suggest import commands, suggest
    from espy.output import refuse_existing, shown, write_bytes
    from espy.spec import NETWORKS, nearest

    if out.suffix != ".toml":
        raise click.BadParameter(f"{out}: the file is called NAME.toml")
    if network not in NETWORKS:
        raise click.BadParameter(f"--network {network!r}: {nearest(network, list(NETWORKS))}")
    refuse_existing(out, force)
    opened = open_set(data, task=task)
    if opened.task not in NETWORKS[network]:
        able = " or ".join(name for name, tasks in NETWORKS.items() if opened.task in tasks)
        raise click.BadParameter(
            f"--network {network!r}: has no task {opened.task!r}, which {data} is for: take {able}"
        )
    with text.bar(len(opened) + len(opened.lone)) as advance:
        report = check(opened, advance=advance)
    if not report.ok:
        tell(report)
        raise DataError(f"{data}: has faults, told above: cure them first; no recipe was written")
    suggestion = suggest(report, data, network)
    write_bytes(out, suggestion.to_toml(out).encode(), force=force)
    for title, sentences in (("found", suggestion.found), ("chosen", suggestion.chosen)):
        print(f"{title}:")
        for sentence in sentences:
            print(f"- {one_line(sentence)}")
    print(f"\nwritten: {shown(out)}; it trains, evaluates and deploys with")
    for line in commands(suggestion.recipe, out):
        print(f"  {one_line(line)}")
    return 0
