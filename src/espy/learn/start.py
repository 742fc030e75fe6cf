"""Starting weights: a model of other classes, taken as far as it fits, with what was taken and what was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from espy import spec as specs
from espy.errors import ModelError
from espy.header import Header, read_safetensors
from espy.labels import Label, find
from espy.measure.mapping import table
from espy.nn.build import build, weights_of
from espy.published import load_published
from espy.run.predictor import resolve
from espy.spec import ESPNet, ESPNetv2, Spec

ENCODER = "encoder."
MORE_CLASSES = 10  # what a width that follows the number of classes is told by


@dataclass(frozen=True)
class Taken:
    """What a network started with: tensors `whole`, those whose rows follow the classes (`by_class`), and `fresh` ones.

    `classes`: class → the source's label whose row it got, or None. `unused`: tensors of the source that have no place.
    `hint`: what to choose so that less is fresh.
    """

    source: str
    whole: tuple[str, ...]
    by_class: tuple[str, ...]
    fresh: dict[str, str]
    unused: tuple[str, ...]
    classes: dict[str, str | None] = field(default_factory=dict)
    hint: str = ""

    def lines(self) -> list[str]:
        """The report in words."""
        said = [f"{self.source}: {len(self.whole)} tensors taken as they are"]
        if self.by_class:
            rows = ", ".join(f"{name} <- {source or 'fresh'}" for name, source in self.classes.items())
            said.append(f"taken class by class: {', '.join(self.by_class)}: {rows}")
        for (module, why), names in _grouped(self.fresh).items():
            said.append(f"fresh: {module} ({len(names)} {'tensor' if len(names) == 1 else 'tensors'}: {why})")
        if self.hint:
            said[-1] += f"; {self.hint}"
        if self.unused:
            said.append(f"not used: {', '.join(self.unused)}")
        return said


def _grouped(fresh: Mapping[str, str]) -> dict[tuple[str, str], list[str]]:
    """(first part of the name, first reason) → names."""
    modules: dict[str, list[str]] = {}
    for name in fresh:
        modules.setdefault(name.partition(".")[0], []).append(name)
    return {(module, f"{names[0]} is {fresh[names[0]]}"): names for module, names in modules.items()}


def read_source(init: str) -> tuple[Header, dict[str, np.ndarray]]:
    """Header and weights of a bundled name, model file, published checkpoint or run folder. Raises ModelError."""
    if Path(init).suffix in (".pth", ".pt", ".tar"):
        published = load_published(init)
        return published.header, published.arrays
    path = resolve(init, "torch")["torch"]
    return read_safetensors(path)


def start(network: nn.Module, labels: Sequence[Label], init: str, mapping: Mapping[str, str] | None = None) -> Taken:
    """Copy what fits of `init` into the network.

    A tensor is taken where its shape agrees but for dimensions that follow the number of classes; of those, class by
    class: the row of the first of the source's labels that means the class (by `mapping`, else by equal names). With as
    many classes as the source only the logits' own rows change places: maps before them fit as they are, whatever the
    classes mean. A source of ESPNet-A, -B or -C is the encoder of the full network (the authors' second stage). A source of
    another task gives its encoder; a detector of other kinds gives all but its scores. Raises ModelError where the networks have
    next to nothing in common.
    """
    header, arrays = read_source(init)
    spec: Spec = network.spec  # type: ignore[assignment]
    within = "encoder." if _is_encoder(header.spec) and not _is_encoder(spec) else ""
    arrays = {within + name: array for name, array in arrays.items()}
    rows = class_rows(header.labels, labels, mapping)
    ours: dict[str, tuple[int, ...]]
    ours = theirs = {}
    if spec.task != header.spec.task:
        arrays = {name: array for name, array in arrays.items() if name.startswith(ENCODER)}
    elif spec.task == "detect":
        if rows != list(range(len(header.labels))):
            arrays = {name: array for name, array in arrays.items() if ".score." not in name}
    elif spec.classes == header.spec.classes:
        ours = theirs = {} if rows == list(range(len(labels))) else logit_dimensions(network)
    else:
        ours = class_dimensions(spec)
        theirs = {within + name: dimensions for name, dimensions in class_dimensions(header.spec).items()}
    weights = weights_of(network)
    whole, by_class, fresh = [], [], {}
    with torch.no_grad():
        for name, tensor in weights.items():
            if name not in arrays:
                fresh[name] = "not in the source"
                continue
            source = torch.from_numpy(np.array(arrays[name])).to(tensor.dtype)
            dimensions = ours.get(name, ())
            if tensor.shape == source.shape and not dimensions:
                tensor.copy_(source)
                whole.append(name)
            elif dimensions and dimensions == theirs.get(name) and _fits(tensor, source, dimensions):
                _take_rows(tensor, source, dimensions, rows)
                by_class.append(name)
            else:
                fresh[name] = f"{_shape(source)} there, {_shape(tensor)} here"
    expected = [name for name in weights if name.startswith(ENCODER)] if spec.task != header.spec.task else weights
    if len(whole) < len(expected) / 2:
        raise ModelError(
            f"{init}: {len(whole)} of this network's {len(expected)} tensors fit: it holds {_named(header.spec)}, this is "
            f"{_named(spec)}: choose the same network and width, or leave init empty"
        )
    classes = {
        label.name: header.labels[row].name if row >= 0 else None for label, row in zip(labels, rows, strict=True)
    }
    unused = tuple(name for name in arrays if name not in weights)
    return Taken(
        init, tuple(whole), tuple(by_class), fresh, unused, classes if by_class else {}, _hint(spec, header.spec)
    )


def _is_encoder(spec: Spec) -> bool:
    return isinstance(spec, ESPNet) and spec.variant != "full"


def _named(spec: Spec) -> str:
    """A network in a few words."""
    size = f"variant {spec.variant}, widths {spec.widths}" if isinstance(spec, ESPNet) else f"width {spec.width}"
    return f"{specs.to_dict(spec)['network']} ({size})"


def _hint(spec: Spec, source: Spec) -> str:
    if (
        isinstance(spec, ESPNetv2) and isinstance(source, ESPNetv2) and spec.projection is None
        and spec.pyramid_width != source.pyramid_width
    ):  # fmt: skip
        return f"network.projection = {source.pyramid_width} would take the decoder too"
    return ""


def class_rows(source: Sequence[Label], labels: Sequence[Label], mapping: Mapping[str, str] | None) -> list[int]:
    """For each of `labels` the place of the first source label that means it, -1 where none does."""
    if mapping is None:
        rows = (find(label.name, source) for label in labels)
        return [-1 if row is None else row for row in rows]
    meant = table(source, labels, mapping)[: len(source)]
    return [int(np.argmax(meant == place)) if (meant == place).any() else -1 for place in range(len(labels))]


def logit_dimensions(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Tensor name → its dimension along which the logits' classes lie: weight and bias of the last layer."""
    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    name, last = [(n, m) for n, m in network.named_modules() if isinstance(m, kinds)][-1]
    return {f"{name}.weight": (1 if isinstance(last, nn.ConvTranspose2d) else 0,), f"{name}.bias": (0,)}


def class_dimensions(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Tensor name → its dimensions that are as long as there are classes, and would be with more of them."""
    if isinstance(spec, ESPNetv2):
        spec = msgspec.structs.replace(spec, projection=spec.pyramid_width)
    more = msgspec.structs.replace(spec, classes=spec.classes + MORE_CLASSES)
    with torch.device("meta"):
        one, two = weights_of(build(spec)), weights_of(build(more))
    found = {}
    for name in one.keys() & two.keys():  # an ESP whose width divides evenly has fewer tensors
        sides = [
            d for d, (n, m) in enumerate(zip(one[name].shape, two[name].shape, strict=True))
            if n == spec.classes and m == more.classes
        ]  # fmt: skip
        if sides:
            found[name] = tuple(sides)
    return found


def _fits(tensor: torch.Tensor, source: torch.Tensor, dimensions: tuple[int, ...]) -> bool:
    return tensor.dim() == source.dim() and all(
        d in dimensions or tensor.shape[d] == source.shape[d] for d in range(tensor.dim())
    )


def _take_rows(tensor: torch.Tensor, source: torch.Tensor, dimensions: tuple[int, ...], rows: list[int]) -> None:
    """tensor[..., k, ...] ← source[..., rows[k], ...] in every class dimension, where all rows are known."""
    known = [place for place, row in enumerate(rows) if row >= 0]
    here = [known if d in dimensions else list(range(n)) for d, n in enumerate(tensor.shape)]
    there = [[rows[k] for k in known] if d in dimensions else list(range(n)) for d, n in enumerate(tensor.shape)]
    tensor[np.ix_(*here)] = source[np.ix_(*there)]


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
