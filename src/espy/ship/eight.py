"""What quantising to int8 shares between formats: which layers, with which pictures, and what goes back to float.

A layer is called by its module's path in the network, `encoder.level1.0`. What lies outside of the network, the picture's
normalisation before it and arg-max, softmax, boxes behind it, always computes in float.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from espy.data.sets import Dataset
from espy.errors import EspyError
from espy.evaluation import Measured, evaluate
from espy.header import Header
from espy.nn.deployed import Deployed, deploy
from espy.picture.read import MAX_PIXELS
from espy.run.engines import Engine
from espy.run.predictor import Model
from espy.ship.rewrite import QUANTISABLE, rewrite
from espy.spec import nearest

BLOCK = 3  # parts of a path that name a block: of layers that go back to float together
RANKED = 4  # calibration pictures on which blocks are compared
RANKING_S = 180.0  # that comparing them may take
WEIGHT_BITS = 7
"""Weights are −64..64. Without VNNI, x86 processors add two products of a uint8 and an int8 in 16 bits, and cut off what does not
fit; 2 · 255 · 64 fits, so that a file gives the same numbers on every processor."""


Open = Callable[[Any], Engine]
"""What opens what was made."""


@dataclass(frozen=True)
class Given:
    """What is quantised: a plain network, the header of its file, its size or None for many, and pictures uint8 [1, h, w, 3]."""

    network: nn.Module
    header: Header
    size: tuple[int, int] | None
    pictures: Sequence[np.ndarray]

    def deployed(self, without: Collection[str] = ()) -> Deployed:
        """The network as it is deployed, in forms that can be quantised."""
        network = rewrite(self.network, self.header.sizes, without, QUANTISABLE)
        return deploy(network, self.header.preprocess).eval()


@dataclass(frozen=True)
class Judge:
    """Measures engines on the set `val` as `espy eval` does. `mapping`: as `espy.evaluate` takes it. `least`: enough, 0..1."""

    header: Header
    val: Dataset
    mapping: str | Path | None
    progress: Callable[[str, int], AbstractContextManager[Callable[[str], None]]]
    least: float = 0.0

    def __call__(self, engine: Engine, what: str, places: Sequence[int] | None = None) -> Measured:
        """What an engine gives on all of its pictures, or on those at some places; `what` is told while it goes on."""
        model = Model(Path(what), self.header, engine, None, None, MAX_PIXELS)
        data = self.val if places is None else replace(self.val, items=tuple(self.val.items[k] for k in places))
        with self.progress(what, len(data)) as advance:
            found: Measured = evaluate(model, data, split=None, mapping=self.mapping, advance=advance)
        return found


class Quantiser(Protocol):
    """One format's way. `layers`: those that can compute in int8."""

    tools: tuple[str, ...]
    layers: tuple[str, ...]

    def __init__(self, given: Given) -> None: ...

    def make(self, kept: Collection[str]) -> Any:
        """What `save` takes, layers that `kept` names in float."""

    def save(self, made: Any, path: Path) -> None:
        """The file, without its header."""

    def search(self, kept: Collection[str], opened: Open, judge: Judge) -> tuple[Any, tuple[str, ...]]:
        """Give layers back to float until the judge finds enough, or nothing helps: what is made, and all that is in float."""


def among(layer: str, names: Collection[str]) -> bool:
    """Whether a layer is one of those named, or lies in one.

    >>> among("encoder.level1.0", ["encoder.level1"]), among("encoder.level10", ["encoder.level1"])
    (True, False)
    """
    return any(layer == name or layer.startswith(f"{name}.") for name in names)


def check_names(names: Collection[str], layers: Collection[str]) -> None:
    """Raise EspyError for a name that is no layer's, or where nothing is left in int8."""
    paths = {".".join(parts[:k]) for parts in (layer.split(".") for layer in layers) for k in range(1, len(parts) + 1)}
    for name in names:
        if name not in paths:
            raise EspyError(f"no layer {name!r} to keep in float: {nearest(name, sorted(paths))}")
    if all(among(layer, names) for layer in layers):
        raise EspyError("no layer is left to compute in int8: keep fewer in float")


def blocks(layers: Collection[str], kept: Collection[str]) -> list[str]:
    """The blocks that are not in float yet, in the network's order."""
    names = dict.fromkeys(".".join(layer.split(".")[:BLOCK]) for layer in layers)
    return [name for name in names if not among(name, kept)]


def ranked(names: Sequence[str], error: Callable[[str], float], seconds: float = RANKING_S) -> list[str]:
    """Blocks, the most sensitive first. `error`: how far the outputs are from the float network's with one block alone in int8.

    What is not reached in so many `seconds` stays last, in the network's order.
    """
    end, errors = time.monotonic() + seconds, dict.fromkeys(names, 0.0)
    for name in names:
        if time.monotonic() > end:
            break
        errors[name] = error(name)
    return sorted(names, key=lambda name: -errors[name])


def give_back(
    quantiser: Quantiser, order: Sequence[str], kept: Collection[str], opened: Open, judge: Judge
) -> tuple[Any, tuple[str, ...]]:
    """The first 1, 2, 4 ... of the blocks in `order` in float, until the judge finds enough or more than half of them are."""
    number = 1
    while True:
        names = (*kept, *order[:number])
        made = quantiser.make(names)
        engine = opened(made)
        enough = judge(engine, f"int8 but for {len(names)} layers").figure >= judge.least
        engine.close()
        number *= 2
        if enough or number > len(order) // 2:
            return made, names


def difference(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """How far outputs are off: squared differences over squares, summed over all that are no classes."""
    pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if a.dtype == np.float32]
    return float(sum(((a - b) ** 2).sum() / max((b**2).sum(), 1e-12) for a, b in pairs))
