"""Make the bundled models from the published weights: `python -m espy.ship.bundle WEIGHTS_FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from espy.bundle import FOLDER, NAMES
from espy.header import describe_sizes, write_safetensors
from espy.nn.count import macs, parameters
from espy.published import Published, load_published
from espy.run.predictor import load
from espy.ship.onnx import export

SOURCES = {
    # name: the checkpoint's name here (as published in brackets)
    "street": "espnetv2_seg_s2.0_city_1024x512.pth",  # (espnetv2_s_2.0_city_1024x512.pth)
    "street-small": "espnetv2_seg_s0.5_city_1024x512.pth",
    "objects": "espnetv2_seg_s2.0_pascal_384x384.pth",
}
PHOTOS = {"street": ("street_city.jpg", "china.jpg"), "objects": ("dog.jpg", "person.jpg")}
"""What the demonstration shows; the shares to expect are those of the torch engine."""

LIMITS = {
    "Cityscapes": "Knows streets of central European cities by day and in fair weather, seen from a car. Elsewhere (night, rain, "
    "indoors, from above) it still names one of its classes for every pixel. It never predicts `background`.",
    "Pascal VOC": "Knows 20 kinds of things in everyday photos and calls everything else background. Small or crowded things "
    "are often missed; it does not tell one person from the next.",
}


def make(weights: Path) -> None:
    """Write NAME.safetensors, NAME.onnx and NAME.md of every bundled model."""
    for name, file in SOURCES.items():
        published = load_published(weights / file)
        write_safetensors(FOLDER / f"{name}.safetensors", published.header, published.arrays, force=True)
        report = export(FOLDER / f"{name}.safetensors", path=FOLDER / f"{name}.onnx", force=True)
        (FOLDER / f"{name}.md").write_text(card(name, published), encoding="utf-8")
        print(
            f"{name}: {report.bytes / 1e6:.2f} MB, equal mask pixels {report.mask_equal:.4%}, "
            f"largest difference of a logit {report.score_error:.1e} on {report.pictures} pictures"
        )
    (FOLDER / "photos" / "expected.json").write_text(json.dumps(expected(), indent=1) + "\n", encoding="utf-8")


def expected() -> dict[str, dict[str, dict[str, float]]]:
    """Model → photo → label → share, by the torch engine."""
    shares: dict[str, dict[str, dict[str, float]]] = {}
    for name, photos in PHOTOS.items():
        with load(name, engine="torch") as model:
            found = {photo: model(FOLDER / "photos" / photo).shares for photo in photos}
        shares[name] = {p: {label: round(s, 4) for label, s in f.items() if s >= 0.001} for p, f in found.items()}
    return shares


def card(name: str, published: Published) -> str:
    """The card of a model, Markdown."""
    size = published.preprocess.size
    network, header = published.network, published.header
    metric = published.card.metrics[0]
    classes = ", ".join(label.name for label in published.labels)
    return f"""# {name}

{NAMES[name].capitalize()}.

| | |
|---|---|
| network | {published.card.title}: {parameters(network):,} parameters, {macs(network, size) / 1e9:.2f} billion multiply-accumulates at height {size[0]}, width {size[1]} |
| classes | {classes} |
| trained on | {published.card.data} |
| accuracy | {metric.value} % {metric.name} on {metric.set} ({metric.protocol}) |
| input | RGB, resized to height {size[0]}, width {size[1]} (bilinear, smoothed when shrinking, whatever the aspect), v / 255, mean {published.preprocess.mean}, standard deviation {published.preprocess.std} |
| sizes | {describe_sizes(header.sizes)} |
| precision | float32 |

**Limits.** {LIMITS[published.card.data]}

**Terms.** {published.card.terms}

The weights are those of EdgeNets (`{SOURCES[name].replace("seg_s", "s_")}`), unchanged but for values below 1e-30, which are set to zero.
Their MIT licence stands in `NOTICE.md` beside this file.
"""


if __name__ == "__main__":
    make(Path(sys.argv[1]))
