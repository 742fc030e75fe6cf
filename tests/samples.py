"""Where the shared data lies, and small pictures and models made here for what must not depend on it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from espy import bundle
from espy.header import Header, write_safetensors
from espy.labels import plain
from espy.nn.build import weights_of

SHARED = Path(os.environ.get("ESPY_SHARED") or Path(__file__).resolve().parents[2] / "shared")
BADINPUT = SHARED / "data" / "badinput"
STREETS = SHARED / "data" / "photos"
MASKS = SHARED / "parity" / "masks"
WEIGHTS = Path(os.environ.get("ESPY_WEIGHTS") or SHARED / "weights")
PHOTOS = bundle.FOLDER / "photos"

PHOTO = PHOTOS / "dog.jpg"


def needs(folder):
    """Skips where a shared folder is not there, and says which."""
    return pytest.mark.skipif(
        not folder.is_dir(), reason=f"no {folder}: set ESPY_SHARED to the folder of the shared data"
    )


def noise(height, width, seed=0, channels=3):
    """Random uint8 pixels."""
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def scene(height, width, seed=0):
    """Smooth random uint8 [H, W, 3]: what a photo is to a resizer or an encoder."""
    coarse = noise(max(2, height // 24), max(2, width // 24), seed)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def calibrated(network, preprocess, seed=0):
    """The network in eval mode, its batch norms fitted to smooth pictures, so that its classes vary over a picture."""
    batch = torch.from_numpy(np.stack([scene(160, 224, seed + k) for k in range(2)]))
    x = batch.permute(0, 3, 1, 2).float() * preprocess.scale
    x = (x - torch.tensor(preprocess.mean).view(1, 3, 1, 1)) / torch.tensor(preprocess.std).view(1, 3, 1, 1)
    network.train()
    with torch.no_grad():
        for _ in range(8):
            network(x)
    return network.eval()


def save_model(path, network, preprocess, labels=None):
    """A `.safetensors` model file of a network."""
    labels = labels or plain(network.spec.classes)
    sizes = "any" if preprocess.multiple == 1 else {"multiple": 32}
    if network.spec.task == "detect":
        sizes = [preprocess.size]
    header = Header(network.spec.task, network.spec, labels, preprocess, sizes)
    write_safetensors(path, header, {name: t.detach().numpy() for name, t in weights_of(network).items()})
    return path


def attempt(kind, call, *arguments, **keywords):
    """(what a call gives, None), or (None, the message of an error of this kind)."""
    try:
        return call(*arguments, **keywords), None
    except kind as error:
        return None, str(error)


class Outcome:
    """What a command line left: exit code, stdout, stderr."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __repr__(self):
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def one_line(outcome, code=2):
    """The message of a call that cannot work: one line on stderr, no traceback, nothing on stdout."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("espy: ")
    assert outcome.err.count("\n") == 1, outcome
    assert "a fault of espy" not in outcome.err
    return outcome.err
