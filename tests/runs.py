"""Recipes of runs that take a second: tiny networks, small pictures, one thread, nothing left to chance."""

import json
from pathlib import Path

ESPNET = {"network": "espnet", "widths": [8, 16, 24], "branches": 2, "alpha2": 1, "alpha3": 1}
ESPNETV2 = {"network": "espnetv2", "width": 0.5}
STILL = {"scale": [1.0, 1.0], "flip": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
"""Pictures as they are."""


def recipe(path, pictures, network=ESPNET, *, data=(), train=(), **sections):
    """A recipe's file for a set of 32x48 pictures; sections given are added to it."""
    tables = {
        "network": network,
        "data": {"set": f"folder:{pictures}", "size": [32, 48], "multiple": 1, **dict(data)},
        "train": {"epochs": 2, "batch": 2, "threads": 1, "precision": "float32", "device": "cpu", **dict(train)},
        **sections,
    }
    lines = [f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in t.items()) for name, t in tables.items()]
    Path(path).write_text("\n".join(lines))
    return Path(path)
