"""Accuracy against latency as a picture."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espy.errors import EspyError
from espy.header import Metric
from espy.output import write_bytes
from espy.ship.bench import Bench, Case

FORMATS = ("png", "svg")
MARKERS = {"onnxruntime": "o", "openvino": "s", "torch": "^"}


def check_plot(paths: Sequence[Path], cases: Sequence[Case]) -> None:
    """Raise EspyError, one line, where the plot cannot be made: told before hours of measuring, not after."""
    for path in paths:
        if path.suffix[1:] not in FORMATS:
            raise EspyError(f"{path}: a plot is NAME.png or NAME.svg")
    _matplotlib()
    if not any(accuracy(case) for case in cases):
        raise EspyError("nothing to plot: no model's header states an accuracy for the size it is measured at")


def accuracy(case: Case) -> Metric | None:
    """The accuracy that a model's card states; None for a foreign network, and at another size than the card's."""
    header = case.header
    if header is None or not header.card.metrics or header.preprocess.size != case.size:
        return None
    return header.card.metrics[0]


def plot(bench: Bench, path: Path, *, force: bool = False) -> None:
    """Write it, PNG or SVG by the file's ending, with the rows of which `accuracy` is known."""
    shown = [(row, metric) for row in bench.rows if (metric := accuracy(row.case))]
    matplotlib, figure_of = _matplotlib()
    figure = figure_of(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot()
    for row, metric in shown:
        wall = row.alone.wall_ms
        reach = [[wall.median - wall.minimum], [max(0.0, wall.p95 - wall.median)]]
        marker = MARKERS.get(row.case.engine, "o")
        name = f"{row.case}: {metric.name} {metric.value:g} % ({metric.set})"
        axes.errorbar(wall.median, metric.value, xerr=reach, fmt=marker, capsize=3, label=name)
    axes.set_xlabel("ms a picture, the engine alone: median, from the fastest run to the 95th percentile")
    axes.set_ylabel("accuracy as the models' cards state it, %")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    for text in figure.legend(loc="outside upper left", fontsize=8, frameon=False).get_texts():
        text.set_parse_math(False)  # a file's name may hold dollars
    figure.supxlabel(textwrap.fill(bench.stamp, 130), fontsize=7)
    buffer = io.BytesIO()
    kind = path.suffix[1:]
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # letters, not their outlines
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write_bytes(path, buffer.getvalue(), force=force)


def _matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise EspyError(f"--plot needs {error.name}: pip install 'espy-vision[plot]'") from None
    return matplotlib, Figure
