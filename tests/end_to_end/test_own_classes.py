"""The README's way from a folder of pictures and masks to a deployed file, walked as it stands there."""

import json
import shlex
from pathlib import Path

from test_readme import blocks

from trees import shapes

SMALL = ("network.widths=[8,16,24]", "network.branches=2", "network.alpha2=1", "network.alpha3=1")
SHORT = ("epochs=20", "rate=0.01", "ema=0.9", "validate.every=10", "train.threads=1")
"""What makes it seconds: another network, fields given in the call, as the README says that they can be."""

VERBS = ["check", "recipe", "train", "eval", "export"]


def commands():
    """The block of the README that holds these verbs, line by line."""
    (block,) = [b for b in blocks("README.md", "sh") if "espy recipe" in b]
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines()]


def test_five_lines_lead_from_a_folder_to_a_deployed_file_that_knows_its_classes(espy):
    shapes(Path("photos"))
    extra = {"recipe": ("--network", "espnet"), "train": SMALL + SHORT}
    called = []
    for verb, *arguments in commands():
        outcome = espy(verb, *arguments, *extra.get(verb, ()))
        assert outcome.code == 0, outcome
        called.append(verb)
    assert called == VERBS
    outcome = espy("eval", "my.onnx", "folder:photos/", "--engine", "onnxruntime", "--json")
    assert outcome.code == 0, outcome
    found = json.loads(outcome.out)
    assert found["miou"] > 0.8
    assert list(found["iou"]) == ["background", "disc", "box"]
    assert espy("predict", "photos/images/shape 1.jpg", "--model", "my.onnx", "--out", "out/").code == 0
    assert Path("out/shape 1.overlay.jpg").is_file()
