"""Each family learns: a few pictures by heart, with every option and head."""

import math

import pytest

import espy
from espy.header import read_safetensors
from espy.nn.build import weights_of
from runs import ESPNET, ESPNETV2, STILL, recipe
from trees import clear_shapes

pytestmark = pytest.mark.usefixtures("one_thread")
HEART = {
    "espnet": ({"network": "espnet", "widths": [16, 32, 64], "branches": 4, "alpha2": 1, "alpha3": 2}, 50, 2, 0.03),
    "espnetv2": (ESPNETV2, 55, 4, 0.02),
}
"""Network, epochs, batch, rate; mIoU 97 on two seeds, 6 s and 14 s of one core."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return clear_shapes(tmp_path_factory.mktemp("shapes"), split="train")


@pytest.mark.parametrize("family", HEART)
def test_eight_pictures_are_learnt_by_heart(tmp_path, photos, family):
    network, epochs, batch, rate = HEART[family]
    path = recipe(
        tmp_path / "r.toml", photos, network, data={"size": [64, 96], "validate": "train"}, augment=STILL,
        train={"epochs": epochs, "batch": batch, "rate": rate, "ema": 0.9}, validate={"every": epochs, "pictures": 0},
    )  # fmt: skip
    run = espy.train(path, folder=tmp_path / "run")
    (measured,) = (line for line in run.metrics if "miou" in line)
    assert measured["miou"] > 0.95
    assert min(measured["iou"].values()) > 0.9
    assert run.metrics[-1]["loss"] < 0.2 * run.metrics[0]["loss"]


EVERYTHING = {
    "loss": {"dice": 0.5, "ohem": 0.3, "smoothing": 0.1, "class_weights": "frequency", "auxiliary": 0.4},
    "augment": {"crop": [48, 64], "scale": [0.5, 2.0], "stretch": 1.5, "rotate": 20.0, "flip": 0.5, "hue": 20.0},
    "train": {"epochs": 1, "batch": 4, "accumulate": 2, "schedule": "poly", "clip": 0.5, "ema": 0.5, "rate": 0.01},
}


@pytest.mark.parametrize(
    "network",
    [
        {**ESPNET, "variant": "A"}, {**ESPNET, "variant": "B"}, {**ESPNET, "variant": "C"}, ESPNET,
        {**ESPNET, "arrangement": "branch", "skip1": "cat1", "projection": 3, "activation": "silu"},
        ESPNETV2, {**ESPNETV2, "reinforce": False, "activation": "relu"},
        {"network": "espnetv2_first", "width": 0.5},
    ],
    ids=lambda n: "-".join(str(n.get(k)) for k in ("network", "variant", "arrangement", "activation") if k in n),
)  # fmt: skip
def test_every_network_takes_two_steps_with_every_option_and_every_tensor_moves(tmp_path, photos, network):
    path = recipe(
        tmp_path / "r.toml", photos, network, data={"size": [64, 96], "validate": "train"},
        validate={"pictures": 1}, **EVERYTHING,
    )  # fmt: skip
    run = espy.train(path, folder=tmp_path / "run")
    assert [line["step"] for line in run.metrics] == [2]
    assert math.isfinite(run.metrics[0]["loss"])
    assert len(list((run.folder / "pictures").iterdir())) == 1
    header, arrays = read_safetensors(run.folder / "last.safetensors")
    fresh = weights_of(espy.build(header.spec, seed=0))
    assert arrays.keys() == fresh.keys()  # the auxiliary head is not kept
    still = [name for name, tensor in fresh.items() if (arrays[name] == tensor.numpy()).all()]
    assert still == []
