"""Make the bundled models: `python -m espy.ship.bundle [WEIGHTS_FOLDER] [RUN_FOLDER...]`.

From the published weights, and from runs of the recipes in recipes/ (a run's folder is called as its recipe); without a folder the
graphs alone, from the bundled weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np
from torch import nn

from espy import eightbits
from espy import spec as specs
from espy.bundle import FOLDER, NAMES
from espy.evaluation import evaluate
from espy.header import Header, Metric, describe_sizes, read_safetensors, write_safetensors
from espy.learn.loop import header_of
from espy.learn.recipe import read_recipe
from espy.nn.build import with_weights
from espy.nn.count import macs, parameters
from espy.published import load_published
from espy.run.predictor import load
from espy.ship.export import export

SOURCES = {
    # name: the checkpoint's name here (as published in brackets)
    "street": "espnetv2_seg_s2.0_city_1024x512.pth",  # (espnetv2_s_2.0_city_1024x512.pth)
    "street-small": "espnetv2_seg_s0.5_city_1024x512.pth",
    "objects": "espnetv2_seg_s2.0_pascal_384x384.pth",
}
PROJECT = Path(__file__).resolve().parents[3]
RECIPES, RESULTS = PROJECT / "recipes", PROJECT / "docs" / "results"
EIGHT_BITS = ("bccd", "imagenette")  # bundled so: nothing is lost that is measured, and they are a quarter as large
STORED = {False: "float32", True: "float32; weights kept in eight bits"}
PHOTOS = {"street": ("street_city.jpg", "china.jpg"), "objects": ("dog.jpg", "person.jpg")}
"""What the demonstration shows; the shares to expect are those of the torch engine."""

LIMITS = {
    "Cityscapes": "Knows streets of central European cities by day and in fair weather, seen from a car. Elsewhere (night, rain, "
    "indoors, from above) it still names one of its classes for every pixel. It never predicts `background`.",
    "CamVid": "Knows streets of Cambridge seen from a car, by day, a little of dusk; other cities and cameras less well. Trained on 367 "
    "pictures of three drives, and measured on a few seconds of one of them: elsewhere expect less. Every pixel gets one of its classes.",
    "Imagenette": "Knows ten kinds of things that are easily told apart, one a picture, and calls every other picture one of them too: its "
    "probabilities say little of pictures that show none. Trained on 9,469 photos of 128 x 128 pixels.",
    "BCCD": "Knows red cells, white cells and platelets in stained blood smears under one microscope at one magnification; with another "
    "stain or scale expect less. Trained on 205 pictures; no medical device.",
    "Pascal VOC": "Knows 20 kinds of things in everyday photos and calls everything else background. Small or crowded things "
    "are often missed; it does not tell one person from the next.",
}


def make_published(weights: Path) -> None:
    """Write the models of SOURCES, and the shares that the demonstration should find."""
    for name, file in SOURCES.items():
        published = load_published(weights / file)
        origin = (
            f"The weights are those of EdgeNets (`{file.replace('seg_s', 's_')}`), unchanged but for values below 1e-30, which "
            "are set to zero.\nTheir MIT licence stands in `NOTICE.md` beside this file."
        )
        write(name, published.header, published.arrays, origin)
    (FOLDER / "photos" / "expected.json").write_text(json.dumps(expected(), indent=1) + "\n", encoding="utf-8")


def make_trained(run: Path) -> None:
    """Write the model of a run's last weights, with the card of its recipe; the metric is measured on the validation pictures of the
    set that the run was trained on.
    """
    data = read_recipe(run / "recipe.toml").data
    header, arrays = read_safetensors(run / "last.safetensors")
    recipe = read_recipe(RECIPES / f"{run.name}.toml")
    recipe = msgspec.structs.replace(recipe, network=specs.to_dict(header.spec))
    if run.name in EIGHT_BITS:
        arrays = {name: eightbits.rounded(array) for name, array in arrays.items()}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        write_safetensors(weights, header_of(recipe, header.labels), arrays)
        found = evaluate(weights, data.set, split=data.validate, engine="torch")
    (height, width), void = data.size, ", void ignored" if header.task == "segment" else ""
    protocol = f"last of {recipe.train.epochs} epochs, pictures seen at height {height}, width {width}{void}, one scale"
    metric = Metric(found.metric, round(100 * found.figure, 2), f"{recipe.card.data} {data.validate}", protocol)
    origin = (
        f"Trained by `recipes/{run.name}.toml`; the log is `docs/results/{run.name}.jsonl`, the figures with their spread are in "
        "`docs/accuracy.md`."
    )
    write(run.name, header_of(recipe, header.labels, (metric,)), arrays, origin)
    log(run, RESULTS / f"{run.name}.jsonl")


def log(run: Path, path: Path) -> None:
    """A run's log as the project keeps it: where it ran, then its lines of metrics.jsonl."""
    start = json.loads((run / "environment.json").read_text(encoding="utf-8"))["starts"][0]
    facts = {"recipe": f"recipes/{run.name}.toml", "kept": "the last weights", "start": start}
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8")
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{json.dumps(facts)}\n{lines}", encoding="utf-8")


def write(name: str, header: Header, arrays: dict[str, np.ndarray], origin: str) -> None:
    """NAME.safetensors, NAME.onnx and NAME.md."""
    write_safetensors(FOLDER / f"{name}.safetensors", header, arrays, force=True)
    make_graph(name)
    about = card(name, header, with_weights(header.spec, arrays), STORED[name in EIGHT_BITS], origin)
    (FOLDER / f"{name}.md").write_text(about, encoding="utf-8")


def make_graph(name: str) -> None:
    """NAME.onnx, of NAME.safetensors."""
    report = export(FOLDER / f"{name}.safetensors", path=FOLDER / f"{name}.onnx", force=True)
    print(
        f"{name}: {report.bytes / 1e6:.2f} MB, equal {report.what} {report.equal:.4%}, "
        f"largest difference of a score {report.score_error:.1e} on {report.pictures} pictures"
    )


def expected() -> dict[str, dict[str, dict[str, float]]]:
    """Model → photo → label → share, by the torch engine."""
    shares: dict[str, dict[str, dict[str, float]]] = {}
    for name, photos in PHOTOS.items():
        with load(name, engine="torch") as model:
            found = {photo: model(FOLDER / "photos" / photo).shares for photo in photos}
        shares[name] = {p: {label: round(s, 4) for label, s in f.items() if s >= 0.001} for p, f in found.items()}
    return shares


def card(name: str, header: Header, network: nn.Module, stored: str, origin: str) -> str:
    """The card of a model, Markdown."""
    size, preprocess, metric = header.preprocess.size, header.preprocess, header.card.metrics[0]
    counted = macs(network, size)
    operations = f"{counted / 1e9:.2f} billion" if counted >= 1e9 else f"{counted / 1e6:.0f} million"
    classes = ", ".join(label.name for label in header.labels)
    return f"""# {name}

{NAMES[name][0].upper() + NAMES[name][1:]}.

| | |
|---|---|
| network | {header.card.title}: {parameters(network):,} parameters, {operations} multiply-accumulates at height {size[0]}, width {size[1]} |
| classes | {classes} |
| trained on | {header.card.data} |
| accuracy | {metric.value} % {metric.name} on {metric.set} ({metric.protocol}) |
| input | RGB, resized to height {size[0]}, width {size[1]} (bilinear, smoothed when shrinking, whatever the aspect), v / 255, mean {preprocess.mean}, standard deviation {preprocess.std} |
| sizes | {describe_sizes(header.sizes)} |
| precision | {stored} |

**Limits.** {LIMITS[header.card.data]}

**Terms.** {header.card.terms}

{origin}
"""


def main(folders: list[str]) -> None:
    """Make what the folders hold: runs have a metrics.jsonl, weights have not; of none, every graph."""
    for name in [] if folders else NAMES:
        make_graph(name)
    for folder in map(Path, folders):
        (make_trained if (folder / "metrics.jsonl").is_file() else make_published)(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
