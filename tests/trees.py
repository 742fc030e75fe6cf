"""Small sets made on the spot, each with its truth."""

from pathlib import Path

import numpy as np
from PIL import Image

from samples import scene


def save(path, array, **options):
    """An array as a picture file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)
    return path


def mask(height=24, width=32, values=(0, 1, 2, 255), seed=0):
    """Random values, each at least once."""
    array = np.random.default_rng(seed).choice(np.array(values, np.uint8), (height, width))
    array.flat[: len(values)] = values
    return array


def folder(root, pairs=4, classes="background\ndisc\nbox\n", images="images", masks="masks", **keywords):
    """A set of kind `folder`; gives its masks by stem."""
    truth = {}
    for k in range(pairs):
        truth[f"p{k}"] = mask(seed=k, **keywords)
        save(root / images / f"p{k}.jpg", scene(*truth[f"p{k}"].shape, seed=k))
        save(root / masks / f"p{k}.png", truth[f"p{k}"])
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    return truth


def counts(masks):
    """Value -> how often it occurs, without the code under test."""
    values, times = np.unique(np.concatenate([m.ravel() for m in masks]), return_counts=True)
    return dict(zip(values.tolist(), times.tolist(), strict=True))
