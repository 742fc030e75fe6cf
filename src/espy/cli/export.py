"""`espy export`: the deployed graph of a model."""

from __future__ import annotations

from pathlib import Path

import click

from espy.cli import text
from espy.errors import EngineError


@click.command("export")
@click.argument("model")
@click.option("--to", default="onnx", show_default=True, help="onnx, openvino, pt2, executorch, ncnn or litert.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The file to write; beside the model unless given.")
@click.option(
    "--size",
    metavar="HxW",
    help="One fixed height x width; unless given dynamic, or the model's where a format takes one.",
)
@click.option("--scores", is_flag=True, help="Give the logits as a second output.")
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
def command(model: str, to: str, out: Path | None, size: str | None, scores: bool, force: bool) -> int:
    """Write the deployed file (uint8 picture in, uint8 mask out), run it and compare it with torch on real photos.

    Example: espy export street.safetensors --to onnx -o street.onnx
    """
    fixed = text.parse_size(size)
    if fixed == "native":
        raise click.BadParameter("--size is HEIGHTxWIDTH; without it the file takes pictures of any size that fits")
    try:
        from espy.ship.export import ending_of, export
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise EngineError(f"exporting needs {error.name}: pip install 'espy-vision[train]'") from None
    ending = ending_of(to)
    if out is not None and not out.name.endswith(ending):
        raise click.BadParameter(f"{out}: the file is called NAME{ending}")
    if out is None and not Path(model).exists():
        out = Path(f"{model}{ending}")
    text.say(f"exporting {model}; this takes a minute or more")
    report = export(model, to, out, size=fixed, scores=scores, force=force)
    text.say(
        f"compared with torch on {report.pictures} pictures: equal {report.what} {report.equal:.4%} or more, "
        f"largest difference of a score {report.score_error:.1e}; {report.ms:.1f} ms on engine {report.engine} at height "
        f"{report.size[0]}, width {report.size[1]}"
    )
    print(f"{report.path} ({report.bytes / 1e6:.2f} MB)")
    return 0
