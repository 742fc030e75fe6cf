"""`espy predict`: pictures in, overlays, masks and JSON out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from espy.cli import text
from espy.output import shown

STAGES = ("decode", "prepare", "engine", "finish", "write")


@click.command("predict")
@click.argument("source", nargs=-1, required=True)
@click.option("--model", default="street", show_default=True, help="Bundled name (espy models) or a model file.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="Folder for the results."
)
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
@click.option("--overlap", type=click.IntRange(0), help="Pixels that tiles share; chosen by the network unless given.")
@click.option("--view", default="overlay", show_default=True, help="overlay, mask (no picture beside it) or side.")
@click.option("--score", type=click.FloatRange(0, 1), help="Boxes that score no more are left out (0.3).")
@click.option("--header", type=click.Path(path_type=Path), help="JSON header for a foreign ONNX file.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Pictures that run together.")
@click.option("--max-pixels", type=click.IntRange(1), help="Largest picture to read, in pixels (100000000).")
@click.option("--profile", is_flag=True, help="Show where the time goes.")
@click.option("--force", is_flag=True, help="Overwrite results that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def command(
    source: tuple[str, ...], model: str, out: Path, engine: str, threads: int | None, precision: str, size: str | None,
    tile: str | None, overlap: int | None, view: str, score: float | None, header: Path | None, batch: int, max_pixels: int | None,
    profile: bool, force: bool, as_json: bool,
) -> int:  # fmt: skip
    """Say what a picture shows: a class for every pixel, the likeliest classes, or boxes around things, by the model.

    Writes STEM.overlay.jpg, STEM.json and, for a segmentation, STEM.mask.png (palette PNG of class indices) for every picture.

    Example: espy predict photos/ --model street --out out/
    """
    from espy.picture.read import MAX_PIXELS
    from espy.run import files
    from espy.run.predictor import load
    from espy.spec import nearest

    known = list(dict.fromkeys(name for views in files.VIEWS.values() for name in views))
    if view not in known:
        raise click.BadParameter(f"--view {view!r}: {nearest(view, known)}")
    network_size, tiles = text.parse_size(size), text.parse_tile(tile)
    tasks = files.find(source, out)
    loaded = load(
        model, engine=engine, threads=threads, precision=precision, size=network_size, tile=tiles, overlap=overlap,
        header=header, max_pixels=max_pixels or MAX_PIXELS, remark=text.say,
    )  # fmt: skip
    with loaded:
        if view not in files.VIEWS[loaded.task]:
            raise click.BadParameter(
                f"--view {view!r}: a model of task {loaded.task} has {', '.join(files.VIEWS[loaded.task])}"
            )
        if score is not None and loaded.task != "detect":
            raise click.BadParameter(f"--score is for boxes, this model's task is {loaded.task}: leave it out")
        files.check_outputs(tasks, out, view, loaded.task, force)
        _say_what_runs(loaded)
        results: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        with text.bar(len(tasks)) as advance:
            for done in files.predict(loaded, tasks, out, view=view, score=score, force=force, batch=batch):
                advance(shown(Path(done.task.source).name))
                (results if done.error is None else errors).append(done.to_dict())
    for result in results:
        if "note" in result:
            text.say(f"{result['source']}: {result['note']}")
    for error in errors:
        text.say(f"espy: {error['error']}")
    if as_json:
        print(json.dumps({"espy": 1, "command": "predict", "results": results, "errors": errors}, ensure_ascii=False))
    elif results:
        _table(results, out)
    if profile:
        _profile(results)
    return 0 if not errors else 1 if results else 2


def _say_what_runs(model: Any) -> None:
    size: Any = model.size or (model.preprocess.size if model.preprocess.resize != "native" else "native")
    at = "the picture's own size" if size == "native" else text.describe_size(size)
    tiles = (
        f", tiles of {text.describe_size(model.tiling.tile)}, overlap {model.tiling.overlap}" if model.tiling else ""
    )
    text.say(
        f"{model.path.stem} on {model.engine.name} {model.engine.version}, {model.engine.precision}, at {at}{tiles}"
    )


def _table(results: list[dict[str, Any]], out: Path) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("height x width", justify="right", no_wrap=True)
    table.add_column("ms", justify="right")
    table.add_column("found", overflow="fold")
    for result in results:
        ms = sum(result["timing"].values())
        table.add_row(
            result["source"],
            f"{result['size'][0]} x {result['size'][1]}",
            f"{ms:.0f}",
            text.main_facts(result),
        )
    text.print_table(table)
    print(f"{len(results)} done, in {out}/")


def _profile(results: list[dict[str, Any]]) -> None:
    """Where the time goes: milliseconds of one core's wall time a stage; stages of different pictures overlap."""
    totals = {stage: sum(result["timing"][stage] for result in results) for stage in STAGES}
    everything = sum(totals.values()) or 1.0
    text.say(f"{'stage':<8} {'total ms':>10} {'a picture':>10} {'share':>7}")
    for stage, ms in totals.items():
        text.say(f"{stage:<8} {ms:>10.1f} {ms / max(1, len(results)):>10.1f} {ms / everything:>6.1%}")
