"""`espy bench`: how fast networks are on this machine, measured in turns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from espy.cli import text
from espy.errors import one_line

if TYPE_CHECKING:
    from espy.ship.bench import Bench, Row

OPERATORS = 12  # of each row that are listed


@click.command("bench")
@click.argument("model", nargs=-1)
@click.option(
    "--engine",
    multiple=True,
    default=("auto",),
    show_default="auto",
    help="auto: the fastest here; or onnxruntime, openvino, native, torch, pt2, executorch, ncnn, litert.",
)
@click.option("--size", multiple=True, metavar="HxW", help="Height x width; each model's own unless given.")
@click.option("--threads", multiple=True, type=click.IntRange(1), help="Threads of the engine; all cores unless given.")
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    help="auto: the file's own, float32 or int8; bfloat16 where the engine has it.",
)
@click.option("--rounds", type=click.IntRange(1), help="Turns of each row (20).")
@click.option(
    "--against", multiple=True, type=click.Path(path_type=Path), metavar="PATH.onnx", help="Any other network beside."
)
@click.option("--profile", is_flag=True, help="List the operators that take longest.")
@click.option(
    "--plot", multiple=True, type=click.Path(path_type=Path), metavar="FILE.png|.svg", help="Accuracy, latency."
)
@click.option("--force", is_flag=True, help="Overwrite a plot that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def command(
    model: tuple[str, ...], engine: tuple[str, ...], size: tuple[str, ...], threads: tuple[int, ...], precision: str,
    rounds: int | None, against: tuple[Path, ...], profile: bool, plot: tuple[Path, ...], force: bool, as_json: bool,
) -> int:  # fmt: skip
    """Measure models (bundled names or files) in one run that takes turns, each in a process of its own.

    --engine, --size, --threads, --against and --plot may be given several times; every combination is a row. Exit code 1: some rows
    failed, each with a line on stderr.

    Example: espy bench street street-small --engine onnxruntime --engine openvino --threads 1
    """
    from espy.output import refuse_existing
    from espy.ship import bench

    if not model and not against:
        raise click.UsageError("name a model (espy models lists those bundled), or a foreign network with --against")
    sizes = [text.parse_size(one) for one in size] or [None]
    if "native" in sizes:
        raise click.BadParameter("--size is HEIGHTxWIDTH, such as 512x1024")
    cases = bench.plan(
        model, engines=engine, sizes=sizes, threads=threads or (None,), precision=precision, against=against,  # type: ignore[arg-type]
        remark=text.say,
    )  # fmt: skip
    if plot:
        from espy.ship.plot import check_plot

        check_plot(plot, cases)
        for path in plot:
            refuse_existing(path, force)
    rounds = rounds or bench.ROUNDS
    text.say(f"rows: {len(cases)}, turns of each: {rounds}")
    with text.bar(bench.turns(cases, rounds), "turns", live=False) as advance:
        found = bench.measure(cases, rounds=rounds, profile=profile, advance=advance)
    for case, reason in found.failed:
        text.say(f"espy: {one_line(f'{case}: {reason}')}")
    for warning in found.warnings:
        text.say(f"warning: {one_line(warning)}")
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    elif found.rows:
        tell(found)
    for path in dict.fromkeys(plot):
        _plot(found, path, force)
    return 0 if not found.failed else 1 if found.rows else 2


def tell(found: Bench) -> None:
    """Print the tables: times; what a row computes and takes; operators; then the machine."""
    _table(
        found.rows, "median ms", "x limit", "fastest", "p95", "spread", "CPU ms", "x limit", "images/s", "file to result",
        cells=_times,
    )  # fmt: skip
    sources = list(dict.fromkeys(source for row in found.rows for source in row.joules))
    print()
    _table(
        found.rows, "parameters", "MACs, million", "least ms: arithmetic", "memory", "file, MB", "peak, MB", "above bare",
        *(f"J, {source}" for source in sources), cells=lambda row: _sizes(row, sources),
    )  # fmt: skip
    for row in found.rows:
        if row.operators:
            print()
            print(one_line(str(row.case)))
            _operators(row)
    print()
    for row in found.rows:
        if row.case.note:
            print(one_line(f"{row.case}: {row.case.note}"))
    if any(row.work.macs is None for row in found.rows):
        print("– : not counted (that needs the extra train; some foreign networks cannot be counted)")
    print(f"joules an image: {'one column a source' if sources else 'not readable here'}")
    for limits in found.limits:
        print(f"limits, threads {limits.threads}: {limits.gflops:.1f} GFLOP/s, {limits.gb_s:.1f} GB/s")
    print(one_line(found.stamp))
    print(one_line(f"flags: {' '.join(found.environment['flags']) or 'unknown'}"))


def _table(rows: Sequence[Row], *columns: str, cells: Callable[[Row], list[str]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("network, engine, height x width", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(one_line(str(row.case)), *cells(row))
    text.print_table(table)


def _times(row: Row) -> list[str]:
    wall, cpu, times = row.alone.wall_ms, row.alone.cpu_ms, row.times_limit or {}
    whole = row.whole.images_s if row.whole else None
    return [
        f"{wall.median:.2f}", _number(times.get("wall"), ".1f"), f"{wall.minimum:.2f}", f"{wall.p95:.2f}", f"{wall.spread:.0%}",
        f"{cpu.median:.2f}", _number(times.get("cpu"), ".1f"), f"{row.alone.images_s:.2f}", _number(whole, ".2f"),
    ]  # fmt: skip


def _sizes(row: Row, sources: Sequence[str]) -> list[str]:
    work, least = row.work, row.limit_ms or {}
    return [
        _number(work.parameters, ","), _number(work.macs and work.macs / 1e6, ",.1f"),
        _number(least.get("arithmetic"), ".2f"), _number(least.get("memory"), ".2f"),
        f"{row.case.path.stat().st_size / 1e6:.2f}", f"{row.peak_bytes / 1e6:.0f}",
        f"{(row.peak_bytes - row.bare_bytes) / 1e6:.0f}", *(_number(row.joules.get(source), ".2f") for source in sources),
    ]  # fmt: skip


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _operators(row: Row) -> None:
    from rich.table import Table

    units = "macs" in row.operators[0]  # of the native engine, which are all told
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "unit" if units else "operator",
        "calls",
        "ms",
        "share",
        *(("GMAC/s", "GB/s", "of the limit") if units else ()),
    ):
        table.add_column(column, justify="right" if table.columns else "left")
    for one in row.operators if units else row.operators[:OPERATORS]:
        work = []
        if units:
            least = max(row.limits.arithmetic_ms(one["macs"]), row.limits.memory_ms(one["traffic"]))
            work = [
                f"{one['macs'] / one['ms'] / 1e6:.1f}",
                f"{one['traffic'] / one['ms'] / 1e6:.1f}",
                f"{least / one['ms']:.0%}",
            ]
        table.add_row(one["operator"], f"{one['calls']:g}", f"{one['ms']:.2f}", f"{one['share']:.1%}", *work)
    if (rest := row.operators[OPERATORS:]) and not units:
        table.add_row(
            f"{len(rest)} more", "", f"{sum(o['ms'] for o in rest):.2f}", f"{sum(o['share'] for o in rest):.1%}"
        )
    text.print_table(table)


def _plot(found: Bench, path: Path, force: bool) -> None:
    from espy.ship.plot import accuracy, plot

    left_out = [row for row in found.rows if not accuracy(row.case)]
    if len(left_out) < len(found.rows):
        plot(found, path, force=force)
        text.say(one_line(f"written: {path}"))
    for row in left_out:
        text.say(one_line(f"not in the plot, no accuracy is stated for it: {row.case}"))
