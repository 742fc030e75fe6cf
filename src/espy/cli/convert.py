"""`espy convert`: a published checkpoint as a model file."""

from __future__ import annotations

from pathlib import Path

import click

from espy.cli import text


@click.command("convert")
@click.argument("published", type=click.Path(path_type=Path), metavar="PUBLISHED.pth")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="The .safetensors file; beside the checkpoint unless given."
)
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
def command(published: Path, out: Path | None, force: bool) -> int:
    """Read the authors' checkpoint and write a self-describing model file. Needs no torch, runs no pickle.

    Example: espy convert espnetv2_s_2.0_city_1024x512.pth -o street.safetensors
    """
    from espy.header import write_safetensors
    from espy.output import refuse_existing
    from espy.published import load_published

    target = out or published.with_suffix(".safetensors")
    if target.suffix != ".safetensors":
        raise click.BadParameter(f"{target}: the file is called NAME.safetensors")
    refuse_existing(target, force)
    model = load_published(published)
    write_safetensors(target, model.header, model.arrays, force=force)
    report, prepared = model.report, model.preprocess
    size = text.describe_size(prepared.size)
    if prepared.resize == "native":
        size = "the picture's own size"
    elif prepared.resize == "short":
        size += f" of the middle ({prepared.crop:.1%} of the short side)"
    text.say(f"{model.card.title}, {model.card.data}: {report.read} tensors read, {len(report.ignored)} left out, "
             f"{report.tiny} tiny weights set to zero ({report.subnormal} of them subnormal)")  # fmt: skip
    text.say(f"pictures: {prepared.order}, {size}, {prepared.filter} resize")
    print(target)
    return 0
