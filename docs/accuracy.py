"""Measure what docs/accuracy.md states and write it: `make accuracy`; `--check` compares the file with the figures below.

Names of models measure their rows alone and leave the others as they stand (`python docs/accuracy.py camvid`).

Sets are read from `data/` and published checkpoints from `weights/` in the folder that ESPY_SHARED names, by default
`shared` beside the checkout. The commands that the file shows are those that are run.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espy import cli
from measure import machine

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "accuracy.md"
SHARED = Path(os.environ.get("ESPY_SHARED") or ROOT.parent / "shared")
TOLERANCE = 0.1  # percentage points between what is measured and what was stated before
READING = "void-counted"
CAMVID, IMAGENETTE, BCCD = "camvid:camvid/", "imagefolder:imagenette128/", "voc:bccd/"
FIGURES = {"miou": "mIoU", "top1": "top-1", "ap50": "AP50"}  # of a validation, by task


@dataclass(frozen=True)
class Row:
    """A model and how it is seen. `stated`: its figures in percent as known before, in the order of the table; None: not known.

    `commands`: what makes the model's file, if it is none of the bundled ones. `options`: of `espy eval`. `data`: the set.
    """

    name: str
    model: str
    options: str = ""
    stated: tuple[float | None, float | None] = (None, None)
    commands: tuple[str, ...] = ()
    data: str = CAMVID

    @property
    def call(self) -> str:
        """The command that measures it."""
        reading = [f"--protocol {READING}"] if self.data == CAMVID else []
        return " ".join(["espy eval", self.model, self.data, *self.options.split(), *reading])


MAPPED = "--mapping cityscapes-camvid"
PUBLISHED = "espnet_decoder_p2_q8_camvid"
ROWS = (
    Row(
        "ESPNet as published for CamVid, converted", f"{PUBLISHED}.safetensors", stated=(70.10, 68.68),
        commands=(f"espy convert weights/{PUBLISHED}.pth -o {PUBLISHED}.safetensors",),
    ),
    Row("`street`, labels mapped", "street", f"{MAPPED} --size 512x1024", (63.70, 61.48)),
    Row("`street`, labels mapped", "street", f"{MAPPED} --size 480x640", (59.17, None)),
    Row("`street`, labels mapped", "street", f"{MAPPED} --size native", (55.53, None)),
    Row("`camvid`", "camvid"),
    Row("`camvid`", "camvid", "--size 480x640"),
    Row("`camvid`", "camvid", "--size native"),
)  # fmt: skip
OTHERS = (
    Row("`imagenette`, Imagenette val", "imagenette", data=IMAGENETTE),
    Row("`bccd`, BCCD val", "bccd", data=BCCD),
    Row("`bccd`, BCCD test", "bccd", "--split test", data=BCCD),
)
SHOWN = {
    "top1": "top-1",
    "top5": "top-5",
    "calibration_error": "calibration error",
    "ap50": "AP50",
    "map": "mAP",
    "ap75": "AP75",
}


def measured(row: Row) -> dict[str, Any]:
    """What `espy eval --json` prints, run in the folder to stand in."""
    for command in (*row.commands, f"{row.call} --json"):
        print(command, file=sys.stderr)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = cli.run(shlex.split(command)[1:])
        if code:
            sys.exit(f"{command}: exit code {code}")
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def figures(found: dict[str, Any]) -> tuple[float, ...]:
    """mIoU and that with void counted, in percent; of other tasks the figure of the task."""
    if "miou" not in found:
        return (100 * next(found[key] for key in FIGURES if key in found),)
    return 100 * found["miou"], 100 * found["readings"][READING]["miou"]


def line(row: Row, found: dict[str, Any]) -> str:
    """A line of its table."""
    protocol = found["protocol"]
    if row in OTHERS:
        said = ", ".join(f"{name} {100 * found[key]:.2f}" for key, name in SHOWN.items() if key in found)
        return f"| {row.name} | {protocol['images']} | {protocol['engine']} | {said} |"
    size = protocol["size"] if protocol["size"] == "native" else "{} x {}".format(*protocol["size"])
    stated = ", ".join("–" if value is None else f"{value:.2f}" for value in row.stated)
    cells = [row.name, size, protocol["engine"], *(f"{value:.2f}" for value in figures(found)), stated]
    return f"| {' | '.join(cells)} |"


def trained() -> list[str]:
    """What the logs in docs/results/ say of the runs: validations in their order, and their spread."""
    said = []
    for log in sorted((ROOT / "docs" / "results").glob("*.jsonl")):
        run, *epochs = (json.loads(text) for text in log.read_text(encoding="utf-8").splitlines())
        key = next(key for key in FIGURES if key in epochs[-1])
        looks = ", ".join(f"{100 * one[key]:.2f} after {one['epoch']}" for one in epochs if one.get(key) is not None)
        start, last = run["start"], epochs[-1]
        said.append(
            f"- [`{run['recipe']}`](../{run['recipe']}), {last['epoch']} epochs on {start['processor']}, {start['cores']} cores, "
            f"torch {start['torch']}, {start['precision']}, {last['images_s']:.1f} images/s beside other work: "
            f"{FIGURES[key]} in validation {looks} epochs; kept: {run['kept']} ([log](results/{log.name}))."
        )
    return said


def document(lines: list[str], stamp: str) -> str:
    """The whole file."""
    commands = [command for row in (*ROWS, *OTHERS) for command in (*row.commands, row.call)]
    return "\n".join(
        [
            "# Accuracy, measured",
            "",
            "mIoU in percent over CamVid val (101 pictures, masks of 360 x 480, 11 classes), "
            "as [evaluate.md](evaluate.md) says: void left out of the truth, and beside it the reading that counts it. "
            f"Stated: both figures as known before this measurement; `make accuracy`, which wrote this file, fails where they are "
            f"more than {TOLERANCE} points apart.",
            "",
            "| model | seen at (height x width) | engine | mIoU | void counted | stated |",
            "|---|---|---|--:|--:|--:|",
            *lines[: len(ROWS)],
            "",
            "Classes and boxes, in percent, as [evaluate.md](evaluate.md) says; nothing was chosen by BCCD's test pictures:",
            "",
            "| model, pictures | number | engine | |",
            "|---|--:|---|---|",
            *lines[len(ROWS) :],
            "",
            f"Machine: {stamp}.",
            "",
            "## Commands",
            "",
            "In a folder that holds the sets and, for published checkpoints, `weights/`:",
            "",
            "```sh",
            *dict.fromkeys(commands),
            "```",
            "",
            "## Runs",
            "",
            "Of the recipes in `recipes/`. One run each, so the spread is that between validations of a run, not between runs; "
            "CamVid's val is a few seconds of a drive that train shares, and says little of other streets.",
            "",
            *trained(),
            "",
        ]
    )


def off(row: Row, values: tuple[float, ...]) -> list[str]:
    """What of a row is not what was stated."""
    return [
        f"{row.call}: {value:.2f} where {stated:.2f} is stated"
        for value, stated in zip(values, row.stated, strict=False)
        if stated is not None and not abs(value - stated) <= TOLERANCE
    ]


def check(text: str) -> list[str]:
    """What docs/accuracy.md lacks or says otherwise than ROWS; nothing is measured."""
    table = re.findall(r"^\| (.+) \| .+ \| .+ \| ([\d.]+) \| ([\d.]+) \| .+ \|$", text, re.MULTILINE)
    others = re.findall(r"^\| (.+) \| \d+ \| \w+ \| .+ \|$", text, re.MULTILINE)
    if [name for name, *_ in table] + others != [row.name for row in (*ROWS, *OTHERS)]:
        return ["its tables have other rows than docs/accuracy.py: run `make accuracy`"]
    wrong = [f"lacks {row.call}" for row in (*ROWS, *OTHERS) if f"{row.call}\n" not in text]
    for row, (_, *values) in zip(ROWS, table, strict=True):
        wrong += off(row, tuple(map(float, values)))
    return wrong


def standing(found: dict[Row, Any]) -> list[str]:
    """For each row its line in the file as it is; new rows, all of them just measured, have none."""
    table = re.findall(r"^\| (?!model).+\|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    rows = (*ROWS, *OTHERS)
    if len(table) == len(rows):
        return table
    left = iter(table)
    return ["" if row in found else next(left) for row in rows]


def main(arguments: list[str]) -> int:
    """Measure and write the file, or check it; 1 where a figure is not what was stated."""
    rows = (*ROWS, *OTHERS)
    if "--check" in arguments:
        wrong = check(DOCUMENT.read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for data in (CAMVID, IMAGENETTE, BCCD):
                name = data.partition(":")[2].rstrip("/")
                Path(name).symlink_to(SHARED / "data" / name)
            Path("weights").symlink_to(SHARED / "weights")
            found = {row: measured(row) for row in rows if not arguments or row.model in arguments}
        if not found:
            sys.exit(
                f"no row of {', '.join(arguments)}: there are {', '.join(dict.fromkeys(row.model for row in rows))}"
            )
        lines = [
            line(row, found[row]) if row in found else stood for row, stood in zip(rows, standing(found), strict=True)
        ]
        DOCUMENT.write_text(document(lines, machine()), encoding="utf-8")
        print("\n".join(line(row, one) for row, one in found.items()))
        wrong = [problem for row, one in found.items() for problem in off(row, figures(one))]
    for problem in wrong:
        print(f"docs/accuracy.md: {problem}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
