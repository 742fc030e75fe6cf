"""`espy models`: what is bundled."""

from __future__ import annotations

import click


@click.command("models")
@click.argument("name", required=False)
def command(name: str | None) -> int:
    """List the bundled models, or show one's card.

    Example: espy models street
    """
    from espy import bundle
    from espy.header import read_safetensors

    if name is not None:
        print(bundle.path(name, ".md").read_text(encoding="utf-8"), end="")
        return 0
    for model in bundle.models():
        header = read_safetensors(model.safetensors)[0]
        metric = header.card.metrics[0]
        size = header.preprocess.size
        print(f"{model.name:<14}{header.task}, {len(header.labels)} classes, {size[0]}x{size[1]}, "
              f"{metric.name} {metric.value} % ({metric.set}), {model.onnx.stat().st_size / 1e6:.1f} MB")  # fmt: skip
        print(f"{'':<14}{model.about}")
    return 0
