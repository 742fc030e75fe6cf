"""`espy quantize`: the deployed file of a model in int8."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from espy.cli import text
from espy.errors import EngineError


@click.command("quantize")
@click.argument("model")
@click.argument("data", metavar="KIND:PATH")
@click.option("--to", default="onnx", show_default=True, help="onnx, openvino or executorch.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The file to write; NAME.int8.ENDING unless given.")
@click.option("--pictures", type=int, default=100, show_default=True, help="Pictures of train that show the ranges.")
@click.option("--max-drop", type=float, default=0.5, show_default=True, help="Points of the metric that may be lost.")
@click.option("--allow-slower", is_flag=True, help="Write it even if int8 takes longer than float32 here.")
@click.option(
    "--keep-float", multiple=True, metavar="NAME", help="A layer, or a part of the network, to keep in float."
)
@click.option("--mapping", metavar="FILE", help="What the model's labels mean in the set, as for espy eval.")
@click.option("--size", metavar="HxW", help="One fixed height x width; unless given as for espy export.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine; all unless given.")
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
def command(
    model: str, data: str, to: str, out: Path | None, pictures: int, max_drop: float, allow_slower: bool,
    keep_float: tuple[str, ...], mapping: str | None, size: str | None, threads: int | None, force: bool,
) -> int:  # fmt: skip
    """Write the deployed file in int8, measured against the float one: on val, and in milliseconds.

    KIND:PATH is a set as espy eval takes it. Pictures of its train show which values occur, its val says what int8 costs. Where
    more than --max-drop points of mIoU, top-1 or AP50 are lost, the most sensitive layers go back to float. Nothing is written
    where that is not enough, or where int8 is slower than float32 on this machine.

    Example: espy quantize runs/mine imagefolder:photos/ -o mine.int8.onnx
    """
    fixed = text.parse_size(size)
    if fixed == "native":
        raise click.BadParameter("--size is HEIGHTxWIDTH; without it the file takes pictures of any size that fits")
    try:
        from espy.ship.export import ending_of
        from espy.ship.quantize import SUFFIX, describe, quantize
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "onnx", "onnxscript"):
            raise
        raise EngineError(f"quantising needs {error.name}: pip install 'espy-vision[train]'") from None
    ending = ending_of(to)
    if out is None and not Path(model).exists():
        out = Path(f"{model}{SUFFIX}{ending}")
    report = quantize(
        model, to, out, calibrate=data, pictures=pictures, max_drop=max_drop, allow_slower=allow_slower,
        keep_float=keep_float, mapping=mapping, size=fixed, threads=threads, force=force, progress=_progress,
    )  # fmt: skip
    found = report.quantized
    assert found is not None
    before, after = found.bytes
    print(
        f"{describe(found)} ({found.ratio:.2f} times, {report.threads} thread{'s' * (report.threads > 1)}, {report.engine}); "
        f"{before / 1e6:.2f} MB in float32, {after / 1e6:.2f} in int8"
    )
    print(f"{found.layers} layers in int8; in float: {', '.join(found.kept) or 'none of them'}")
    print(f"{report.path} ({report.bytes / 1e6:.2f} MB)")
    return 0


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    text.say(f"{what}: {total}")
    with text.bar(total) as advance:
        yield advance
