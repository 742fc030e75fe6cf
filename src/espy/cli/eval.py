"""`espy eval`: how good a model is on a set of pictures with truth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from espy.cli import text
from espy.errors import one_line
from espy.output import shown

if TYPE_CHECKING:
    from espy.data.sets import Dataset
    from espy.evaluation import Evaluation, Measured, Reading

SHEET, MATRIX = "worst.jpg", "confusion.png"
WORDS = {
    "top1": "top-1", "top5": "top-5", "calibration_error": "calibration error", "class_accuracy": "class accuracy",
    "accuracy": "accuracy", "map": "mAP", "ap50": "AP50", "ap75": "AP75", "voc_ap50": "AP50 as Pascal VOC counts",
    "ap50_of": "AP50",
}  # fmt: skip


@click.command("eval")
@click.argument("model")
@click.argument("data", metavar="KIND:PATH")
@click.option("--split", default="val", show_default=True, help="Split of the set.")
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    help="auto: the fastest here; or onnxruntime, openvino, native, torch, pt2, executorch, ncnn, litert.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine; all unless given.")
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    help="auto: the file's own, float32 or int8; bfloat16 where the engine has it.",
)
@click.option("--size", metavar="HxW|native", help="Height x width that the network sees, or native.")
@click.option("--tile", metavar="HxW", help="Overlapping tiles of height x width, for large pictures.")
@click.option("--header", type=click.Path(path_type=Path), help="JSON header for a foreign ONNX file.")
@click.option(
    "--protocol",
    multiple=True,
    help="Another reading beside the standard one: cityscapes, mean-over-images or void-counted.",
)
@click.option("--mapping", metavar="FILE", help="What the model's labels mean in the set: TOML, or cityscapes-camvid.")
@click.option("--flip", is_flag=True, help="See every picture mirrored too and average the probabilities.")
@click.option("--scales", default="1", show_default=True, help="See it at several scales and average, 0.75,1,1.25.")
@click.option(
    "--worst", type=click.IntRange(1), metavar="N", help="Write the N worst pictures as one sheet; needs --out."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the sheet and the confusion matrix.")
@click.option("--force", is_flag=True, help="Overwrite pictures that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def command(
    model: str, data: str, split: str, engine: str, threads: int | None, precision: str, size: str | None,
    tile: str | None, header: Path | None, protocol: tuple[str, ...], mapping: str | None, flip: bool, scales: str,
    worst: int | None, out: Path | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure a model on a set, by its task: mean IoU, accuracies and the IoU of every class, at the masks' own size; top-1,
    top-5 and calibration; average precision of boxes as COCO and Pascal VOC count it.

    KIND is folder, camvid, cityscapes or voc for masks, imagefolder for classes, voc, coco or yolo for boxes. Void is left out of
    the truth. With --out also a picture of the confusion matrix. --flip and --scales need the classes' scores: engine torch, or a
    file of espy export --scores.

    Example: espy eval street cityscapes:cityscapes/ --protocol cityscapes
    """
    from espy.data.kinds import open_set
    from espy.evaluation import Evaluation, check_protocol, evaluate, number
    from espy.output import refuse_existing
    from espy.run.predictor import load

    if worst and out is None:
        raise click.UsageError("--worst writes a picture: name its folder with --out")
    for name in (SHEET, MATRIX) if out and worst else (MATRIX,) if out else ():
        refuse_existing(out / name, force)  # type: ignore[operator]
    loading: dict[str, Any] = {"engine": engine, "threads": threads, "precision": precision, "header": header}
    loading |= {"size": text.parse_size(size), "tile": text.parse_tile(tile), "remark": text.say}
    factors = _parse_scales(scales)
    with load(model, **loading) as loaded:
        if loaded.task != "segment" and (protocol or mapping or flip or factors != (1.0,) or worst):
            given = "--protocol, --mapping, --flip, --scales and --worst are for segmentation"
            raise click.UsageError(f"{given}, this model's task is {loaded.task}: leave them out")
        opened = open_set(data, split, loaded.task)
        for name in protocol:
            check_protocol(name, opened.labels)
        if opened.findings:
            text.say(f"{len(opened.findings)} findings, what they name is left out: see espy check {data}")
        with text.bar(len(opened)) as advance:
            found = evaluate(
                loaded,
                opened,
                split=split,
                mapping=mapping,
                flip=flip,
                scales=factors,
                worst=worst or 0,
                advance=advance,
            )
    readings = {name: found.reading(name) for name in protocol}
    if isinstance(found, Evaluation) and found.unknown:
        text.say(one_line(f"no label of the model means {', '.join(found.unknown)}: IoU 0 where the set has them"))
    files = _write(found, opened, out, force) if out else {}
    if as_json:
        others = {name: {"miou": number(reading.miou), "why": reading.why} for name, reading in readings.items()}
        printed: dict[str, Any] = {"espy": 1, "command": "eval", **found.to_dict()}
        printed |= {"readings": others} if others else {}
        printed |= {"output": files} if files else {}
        print(json.dumps(printed, ensure_ascii=False))
        return
    if isinstance(found, Evaluation):
        _print(found, readings)
    else:
        _print_figures(found)
    for file in files.values():
        print(f"written: {file}")


def _parse_scales(given: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in given.split(","))
    except ValueError:
        raise click.BadParameter(f"--scales are numbers such as 0.75,1,1.25, not {given!r}") from None


def _write(found: Any, data: Dataset, out: Path, force: bool) -> dict[str, str]:
    import numpy as np

    from espy.evaluation import BoxEvaluation, ClassEvaluation
    from espy.measure.sheet import Row, contact_sheet, matrix_picture
    from espy.picture.write import write_picture

    if isinstance(found, BoxEvaluation):
        text.say("boxes have no confusion matrix: nothing is written")
        return {}
    if isinstance(found, ClassEvaluation):
        write_picture(out / MATRIX, matrix_picture(np.pad(found.scores.matrix, (0, 1)), found.labels), force=force)
        return {"confusion": shown(out / MATRIX)}
    files = {"confusion": shown(out / MATRIX)}
    write_picture(out / MATRIX, matrix_picture(found.matrix, found.labels), force=force)
    if found.worst:
        rows = []
        for one in found.worst:
            image, mask = data.read(one.index)
            name = one_line(data.items[one.index].picture.name)
            rows.append(Row(f"{name}: {100 * one.miou:.2f} %", image, found.truth(mask), one.prediction))
        write_picture(out / SHEET, contact_sheet(rows, found.labels), force=force)
        files["worst"] = shown(out / SHEET)
    return files


def _print(found: Evaluation, readings: dict[str, Reading]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class", overflow="fold")
    table.add_column("IoU", justify="right")
    table.add_column("of the truth", justify="right")
    shares = found.shares
    for name, value in found.iou.items():
        table.add_row(one_line(name), _percent(value), _percent(shares[name]))
    text.print_table(table)
    missing = [name for name, value in found.iou.items() if math.isnan(value)]
    if missing:
        print(one_line(f"in neither truth nor prediction, left out of the mean: {', '.join(missing)}"))
    print(
        f"\nmIoU {_percent(found.miou)}, pixel accuracy {_percent(found.pixel_accuracy)}, class accuracy "
        f"{_percent(found.class_accuracy)}\n{found.protocol['images']} pictures of {found.protocol['split']}, "
        f"seen at {_seen(found.protocol)}, compared at the masks' size, void left out"
    )
    for name, reading in readings.items():
        print(f"{name}: mIoU {_percent(reading.miou)}: {reading.why}")


def _print_figures(found: Measured) -> None:
    """The figures of a classifier or a detector, and those of each class."""
    from rich.table import Table

    figures = found.figures()
    for name, values in figures.items():
        if isinstance(values, dict):
            table = Table(box=None, pad_edge=False, header_style="bold")
            table.add_column("class", overflow="fold")
            table.add_column(WORDS[name], justify="right")
            for label, value in values.items():
                table.add_row(one_line(label), _percent(math.nan if value is None else value))
            text.print_table(table)
    said = ", ".join(
        f"{WORDS[name]} {_percent(math.nan if value is None else value)}"
        for name, value in figures.items() if not isinstance(value, dict)
    )  # fmt: skip
    seen = found.protocol["size"] if found.protocol["size"] == "native" else text.describe_size(found.protocol["size"])
    print(f"\n{said}\n{found.protocol['images']} pictures of {found.protocol['split']}, seen at {seen}")


def _seen(protocol: Mapping[str, Any]) -> str:
    seen = protocol["size"] if protocol["size"] == "native" else text.describe_size(tuple(protocol["size"]))
    if protocol["tile"]:
        seen += f" in tiles of {text.describe_size(tuple(protocol['tile']))}, overlap {protocol['overlap']}"
    if protocol["scales"] != [1] or protocol["flip"]:
        scales = ", ".join(f"{scale:g}" for scale in protocol["scales"])
        seen += f", scales {scales}{', flipped too' * protocol['flip']}"
    return seen if protocol["precision"] == "float32" else f"{seen}, in {protocol['precision']}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f} %"
