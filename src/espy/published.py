"""The authors' checkpoints: which network a file holds, whose tensors are whose, how its pictures are prepared.

No torch: files are read by `espy.torchfile`, and every network's tensors are listed here as (the authors' name, ours,
shape), so that a file is accepted only if it holds exactly the tensors of the network it looks like.
Source: docs/networks.md part 6.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from espy import labels as label_sets
from espy import spec as specs
from espy.errors import EngineError, ModelError, SpecError
from espy.header import SMALLEST_SIDE, Card, Header, Metric, Preprocess
from espy.labels import Label
from espy.priors import PER_CELL
from espy.spec import REPEATS, WIDTHS, Spec, encoder_widths, esp_split
from espy.torchfile import read_tensors

if TYPE_CHECKING:
    from torch import nn

TINY = 1e-30
"""Weights below this in magnitude become zero: they change no logit, and many processors are slow on what follows."""

Rows = Iterator[tuple[str, str, tuple[int, ...]]]


@dataclass(frozen=True)
class Report:
    """What was read: how many tensors, which were ignored and why, how many tiny weights were found and set to zero."""

    read: int
    ignored: dict[str, str]
    tiny: int
    subnormal: int
    flushed: bool


@dataclass(frozen=True)
class Published:
    """A published checkpoint, read: `arrays` by our names, float32."""

    spec: Spec
    labels: tuple[Label, ...]
    preprocess: Preprocess
    arrays: dict[str, np.ndarray] = field(repr=False)
    report: Report
    card: Card

    @property
    def header(self) -> Header:
        """The header that a model file made of this checkpoint carries."""
        return Header.of(self.spec, self.labels, self.preprocess, self.card)

    @cached_property
    def network(self) -> nn.Module:
        """The network with these weights, in eval mode (torch; built on first use)."""
        try:
            from espy.nn.build import with_weights
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise EngineError("building the network needs PyTorch: pip install 'espy-vision[train]'") from None
        return with_weights(self.spec, self.arrays)


def load_published(path: str | Path, flush: bool = True) -> Published:
    """Read a published checkpoint: ESPNet, ESPNet-C, or ESPNetv2 for segmentation, classification or detection.

    `flush` sets weights below 1e-30 to zero; the logits stay bit-identical. Raises ModelError, one line that says what was
    found, for anything that is not exactly such a file.
    """
    found = {_strip(key, "module."): array for key, array in read_tensors(path).items()}
    spec = recognise(found, path)
    arrays, ignored = _match(found, spec, path)
    tiny = {name: (np.abs(a) < TINY) & (a != 0) for name, a in arrays.items()}
    smallest = np.finfo(np.float32).tiny
    report = Report(
        read=len(arrays),
        ignored=ignored,
        tiny=sum(int(t.sum()) for t in tiny.values()),
        subnormal=sum(int(((np.abs(a) < smallest) & (a != 0)).sum()) for a in arrays.values()),
        flushed=flush,
    )
    if flush:
        arrays = {name: np.where(tiny[name], np.float32(0), a) for name, a in arrays.items()}
    labels = _labels(spec)
    preprocess = _preprocess(spec, Path(path).name)
    return Published(spec, labels, preprocess, arrays, report, _card(spec, preprocess))


def _strip(key: str, prefix: str) -> str:
    return key[len(prefix) :] if key.startswith(prefix) else key


# Which network


def recognise(found: dict[str, np.ndarray], path: str | Path) -> Spec:
    """The spec of the network whose tensors these are, by their names and shapes (docs/networks.md 6.2)."""
    try:
        if any(key.startswith(("loc_layers.", "cls_layers.")) for key in found):
            return specs.make(
                "espnetv2",
                task="detect",
                width=_width(found, "base_net.basenet."),
                classes=len(found["cls_layers.0.weight"]) // PER_CELL - 1,  # the background comes with the network
            )
        if any(key.startswith("bu_dec_l1.") for key in found):
            return specs.make(
                "espnetv2",
                width=_width(found, "base_net."),
                classes=len(found["bu_dec_l4.merge_layer.3.weight"]),
                base=len(found["bu_dec_l1.merge_layer.3.weight"]) // 4,
            )
        if any(key.startswith("pspMod.") for key in found):
            return specs.make(
                "espnetv2_first", width=_width(found, "net."), classes=len(found["project_l1.1.conv.weight"])
            )
        full = "up_l3.0.weight" in found
        if full or "level3_0.c1.conv.weight" in found:
            return _recognise_espnet(found, full)
        linear = found.get("classifier.weight")
        if linear is not None and linear.ndim == 2 and any(key.startswith("level5_0.") for key in found):
            return specs.make("espnetv2", task="classify", width=_width(found, ""), classes=len(linear))
    except (KeyError, TypeError, IndexError, SpecError) as error:
        what = error.args[0] if error.args else error
        raise ModelError(
            f"{path}: looks like a network of this family but is not ({what!s}): tensors of another network, or a changed one"
        ) from None
    names = ", ".join(list(found)[:3])
    raise ModelError(f"{path}: {len(found)} tensors of another network ({names}, ...); ESPNet and ESPNetv2 are read")


def _width(found: dict[str, np.ndarray], prefix: str) -> float:
    key = f"{prefix}level2_0.act.weight"
    if key not in found:
        raise KeyError(f"its encoder has no {key}")
    channels = {encoder_widths(s)[1]: s for s in WIDTHS}
    return channels[len(found[key])]


def _recognise_espnet(found: dict[str, np.ndarray], full: bool) -> Spec:
    prefix = "encoder." if full else ""

    def depth(level: str) -> int:
        return len({m[1] for key in found if (m := re.match(rf"{re.escape(prefix)}{level}\.(\d+)\.", key))})

    classes = len(found[f"{prefix}classifier.conv.weight"])
    choices = {"classes": classes, "alpha2": depth("level2"), "alpha3": depth("level3")}
    if not full:
        return specs.make("espnet", variant="C", **choices)
    inputs = found["conv.conv.weight"].shape[1] - classes
    return specs.make("espnet", variant="full", skip1={16: "stem", 19: "cat1"}[inputs], **choices)


# Whose tensors are whose: rows of (the authors' name, ours, shape)


def layout(spec: Spec) -> Rows:
    """Every tensor of a published network's checkpoint."""
    if isinstance(spec, specs.ESPNet):
        return _espnet(spec)
    if isinstance(spec, specs.ESPNetv2First):
        return _espnetv2_first(spec)
    if isinstance(spec, specs.ESPNetv2Classifier):
        return _classifier(spec)
    if isinstance(spec, specs.ESPNetv2Detector):
        return _detector(spec)
    assert isinstance(spec, specs.ESPNetv2)
    return _espnetv2(spec)


def _conv(theirs: str, ours: str, *shape: int) -> Rows:
    yield f"{theirs}.weight", f"{ours}.weight", shape


def _bn(theirs: str, ours: str, c: int) -> Rows:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{theirs}.{part}", f"{ours}.{part}", (c,)


def _act(theirs: str, ours: str, c: int) -> Rows:
    yield f"{theirs}.weight", f"{ours}.weight", (c,)


def _ba(theirs: str, ours: str, c: int, parts: tuple[str, str] = ("bn", "act")) -> Rows:
    yield from _bn(f"{theirs}.{parts[0]}", f"{ours}.bn", c)
    yield from _act(f"{theirs}.{parts[1]}", f"{ours}.act", c)


def _cba(theirs: str, ours: str, *shape: int, parts: tuple[str, str, str] = ("conv", "bn", "act")) -> Rows:
    yield from _conv(f"{theirs}.{parts[0]}", f"{ours}.conv", *shape)
    yield from _ba(theirs, ours, shape[0], parts[1:])


CBR = ("cbr.0", "cbr.1", "cbr.2")


def _esp(theirs: str, ours: str, i: int, o: int, down: bool = False, branches: int = 5) -> Rows:
    n, first = esp_split(o, branches)
    k = 3 if down else 1
    yield from _conv(f"{theirs}.c1.conv", f"{ours}.reduce", n, i, k, k)
    for branch in range(branches):
        out = n if branch else first
        yield from _conv(f"{theirs}.d{2**branch}.conv", f"{ours}.branches.{branch}", out, n, 3, 3)
    yield from _ba(theirs if down else f"{theirs}.bn", f"{ours}.end", o)


def _espnet(spec: specs.ESPNet) -> Rows:
    c, full = spec.classes, spec.variant == "full"
    t, u = ("encoder.", "encoder.") if full else ("", "")
    yield from _cba(f"{t}level1", f"{u}stem", 16, 3, 3, 3)
    yield from _ba(f"{t}b1", f"{u}join1", 19)
    yield from _esp(f"{t}level2_0", f"{u}down2", 19, 64, down=True)
    for k in range(spec.alpha2):
        yield from _esp(f"{t}level2.{k}", f"{u}level2.{k}", 64, 64)
    yield from _ba(f"{t}b2", f"{u}join2", 131)
    yield from _esp(f"{t}level3_0", f"{u}down3", 131, 128, down=True)
    for k in range(spec.alpha3):
        yield from _esp(f"{t}level3.{k}", f"{u}level3.{k}", 128, 128)
    yield from _ba(f"{t}b3", f"{u}join3", 256)
    yield from _conv(f"{t}classifier.conv", f"{u}classifier", c, 256, 1, 1)
    if full:
        yield from _bn("br", "norm3", c)
        yield from _conv("up_l3.0", "up3", c, c, 2, 2)
        yield from _conv("level3_C.conv", "project2", c, 131, 1, 1)
        yield from _ba("combine_l2_l3.0", "fuse.0", 2 * c)
        yield from _esp("combine_l2_l3.1", "fuse.1", 2 * c, c)
        yield from _conv("up_l2.0", "up2", c, c, 2, 2)
        yield from _ba("up_l2.1", "join_up2", c)
        yield from _cba("conv", "refine", c, c + (16 if spec.skip1 == "stem" else 19), 3, 3)
        yield from _conv("classifier", "up1", c, c, 2, 2)


def _eesp(theirs: str, ours: str, i: int, o: int, last_act: bool = True) -> Rows:
    n = o // 4
    yield from _cba(f"{theirs}.proj_1x1", f"{ours}.reduce", n, i // 4, 1, 1)
    for k in range(4):
        yield from _conv(f"{theirs}.spp_dw.{k}.conv", f"{ours}.branches.{k}", n, 1, 3, 3)
    yield from _ba(f"{theirs}.br_after_cat", f"{ours}.fuse", o)
    yield from _conv(f"{theirs}.conv_1x1_exp.conv", f"{ours}.expand.conv", o, n, 1, 1)
    yield from _bn(f"{theirs}.conv_1x1_exp.bn", f"{ours}.expand.bn", o)
    if last_act:
        yield from _act(f"{theirs}.module_act", f"{ours}.act", o)


def _encoder(theirs: str, width: float, levels: int = 4, reinforce5: bool = True) -> Rows:
    c = encoder_widths(width)
    yield from _cba(f"{theirs}level1", "encoder.level1", c[0], 3, 3, 3)
    for level in range(2, levels + 1):
        i, o = c[level - 2], c[level - 1]
        down, ours = f"{theirs}level{level}_0", f"encoder.down{level}"
        yield from _eesp(f"{down}.eesp", f"{ours}.eesp", i, o - i, last_act=False)
        if level < 5 or reinforce5:
            yield from _cba(f"{down}.inp_reinf.0", f"{ours}.reinforce.0", 3, 3, 3, 3)
            yield from _conv(f"{down}.inp_reinf.1.conv", f"{ours}.reinforce.1.conv", o, 3, 1, 1)
            yield from _bn(f"{down}.inp_reinf.1.bn", f"{ours}.reinforce.1.bn", o)
        yield from _act(f"{down}.act", f"{ours}.act", o)
        for k in range(REPEATS[level - 2]):
            yield from _eesp(f"{theirs}level{level}.{k}", f"encoder.level{level}.{k}", o, o)
    if levels == 5:
        yield from _cba(f"{theirs}level5.3", "encoder.level5.3", c[4], 1, 3, 3)
        yield from _cba(f"{theirs}level5.4", "encoder.level5.4", c[5], c[4] // 4, 1, 1)


def _pyramid(theirs: str, ours: str, i: int, o: int, p: int, scales: int = 5, last: bool = False) -> Rows:
    yield from _cba(f"{theirs}.projection_layer", f"{ours}.project", p, i, 1, 1, parts=CBR)
    for k in range(scales):
        yield from _conv(f"{theirs}.stages.{k}", f"{ours}.stages.{k}", p, 1, 3, 3)
    yield from _ba(f"{theirs}.merge_layer.0", f"{ours}.join", scales * p, ("br.0", "br.1"))
    yield from _cba(f"{theirs}.merge_layer.2", f"{ours}.merge", p, scales, 3, 3, parts=CBR)
    yield from _conv(f"{theirs}.merge_layer.3", f"{ours}.out", o, p, 1, 1)
    if last:
        yield f"{theirs}.merge_layer.3.bias", f"{ours}.out.bias", (o,)
    else:
        yield from _ba(f"{theirs}.br", f"{ours}.end", o, ("br.0", "br.1"))


def _espnetv2(spec: specs.ESPNetv2) -> Rows:
    c1, c2, c3, c4 = encoder_widths(spec.width)[:4]
    d1, d2, d3, p = 4 * spec.base, 3 * spec.base, 2 * spec.base, spec.pyramid_width
    yield from _encoder("base_net.", spec.width)
    yield from _pyramid("bu_dec_l1", "pyramid1", c4, d1, p)
    for step, i, o, after in ((2, c3, d1, d2), (3, c2, d2, d3), (4, c1, d3, spec.classes)):
        gate = f"merge_enc_dec_l{step}"
        yield from _conv(f"{gate}.wt_layer.1", f"gate{step}.gate", o, i, 1, 1)
        yield from _cba(f"{gate}.expansion_layer", f"gate{step}.expand", o, i // gcd(i, o), 3, 3, parts=CBR)
        yield from _ba(f"bu_br_l{step}", f"join{step}", o, ("0", "1"))
        yield from _pyramid(f"bu_dec_l{step}", f"pyramid{step}", o, after, p, last=step == 4)


def _espnetv2_first(spec: specs.ESPNetv2First) -> Rows:
    c1, c2, c3, c4 = encoder_widths(spec.width)[:4]
    c = spec.classes
    yield from _encoder("net.", spec.width)
    yield from _cba("proj_L4_C", "reduce4", c3, c4, 1, 1)
    yield from _eesp("pspMod.0", "eesp", 2 * c3, c3)
    for k in range(4):
        yield from _conv(f"pspMod.1.stages.{k}.conv", f"pyramid.stages.{k}", c3, 1, 3, 3)
    yield from _cba("pspMod.1.project", "pyramid.project", c3, 5 * c3, 1, 1)
    yield from _conv("project_l3.1.conv", "classify3", c, c3, 1, 1)
    yield from _ba("act_l3", "join3", c)
    yield from _cba("project_l2", "classify2", c, c2 + c, 1, 1)
    yield from _conv("project_l1.1.conv", "classify1", c, c1 + c, 1, 1)


def _linear(theirs: str, ours: str, *shape: int) -> Rows:
    yield from _conv(theirs, ours, *shape)
    yield f"{theirs}.bias", f"{ours}.bias", shape[:1]


def _classifier(spec: specs.ESPNetv2Classifier) -> Rows:
    yield from _encoder("", spec.width, levels=5, reinforce5=False)
    yield from _linear("classifier", "classifier", spec.classes, encoder_widths(spec.width)[5])


def _detector(spec: specs.ESPNetv2Detector) -> Rows:
    _, _, c3, c4, _, c5 = encoder_widths(spec.width)  # of the maps read, F₃ to F₈
    c6, c7, c8 = 512, 256, 128
    yield from _encoder("base_net.basenet.", spec.width, levels=5)
    for level, i, o in ((6, c5, c6), (7, c6, c7)):
        yield from _cba(f"base_net.extra_level{level}.layer.0", f"extra{level}.0", i, 1, 3, 3, parts=CBR)
        yield from _cba(f"base_net.extra_level{level}.layer.1", f"extra{level}.1", o, i, 1, 1, parts=CBR)
    yield from _conv("base_net.extra_level8.1", "extra8.0", c8, c7, 1, 1)
    for theirs, ours, above, o, scales in (
        ("bu_3x3_5x5", "mix6", c7, c6, 2), ("bu_5x5_10x10", "mix5", c6, c5, 3),
        ("bu_10x10_19x19", "mix4", c5, c4, 4), ("bu_19x19_38x38", "mix3", c4, c3, 4),
    ):  # fmt: skip
        yield from _pyramid(f"base_net.{theirs}", ours, above + o, o, o // 5, scales)
    for k, i in enumerate((c3, c4, c5, c6, c7, c8)):
        yield from _linear(f"loc_layers.{k}", f"heads.{k}.box", PER_CELL * 4, i, 1, 1)
        yield from _linear(f"cls_layers.{k}", f"heads.{k}.score", PER_CELL * (1 + spec.classes), i, 1, 1)


def _unused(key: str, spec: Spec) -> str | None:
    """Why a tensor of a checkpoint is left out; None for one that has no business there."""
    if key.endswith(".num_batches_tracked"):
        return "a training counter"
    if key.endswith("_0.eesp.module_act.weight"):
        return "created by the authors' code and never used"
    if isinstance(spec, specs.ESPNetv2Classifier) and key.startswith("level5_0.inp_reinf."):
        return "created by the authors' code, which feeds no picture in at level 5"
    if isinstance(spec, specs.ESPNetv2Detector) and key.startswith("base_net.basenet.classifier."):
        return "the base network's own classifier, which the detector does not use"
    return None


def _match(found: dict[str, np.ndarray], spec: Spec, path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays by our names, and what was left out with the reason; ModelError where the file holds more or less."""
    arrays: dict[str, np.ndarray] = {}
    ignored: dict[str, str] = {}
    rest = dict(found)
    missing = []
    for theirs, ours, shape in layout(spec):
        array = rest.pop(theirs, None)
        if array is None:
            missing.append(theirs)
        elif array.shape != shape or array.dtype != np.float32:
            raise ModelError(
                f"{path}: {theirs} is {array.dtype} {list(array.shape)}, {describe(spec)} has float32 {list(shape)}: "
                "tensors of another network, or a changed one"
            )
        else:
            arrays[ours] = np.ascontiguousarray(array)
    for key in list(rest):
        if reason := _unused(key, spec):
            ignored[key] = reason
            del rest[key]
    if missing or rest:
        strange = f"{len(rest)} strange ones (first: {next(iter(rest))})" if rest else "no strange ones"
        lacking = f"{len(missing)} tensors missing (first: {missing[0]})" if missing else "no tensors missing"
        raise ModelError(f"{path}: looks like {describe(spec)} but has {lacking} and {strange}: another network")
    for ours, array in arrays.items():
        if not np.isfinite(array).all():
            raise ModelError(f"{path}: {ours} holds values that are not finite: the file is damaged")
    return arrays, ignored


# Labels, preparation, card


def describe(spec: Spec) -> str:
    """A network in a few words, for people."""
    if isinstance(spec, specs.ESPNet):
        name = "ESPNet" if spec.variant == "full" else f"ESPNet-{spec.variant}"
        return f"{name} (alpha2 {spec.alpha2}, alpha3 {spec.alpha3}, {spec.classes} classes)"
    if isinstance(spec, specs.ESPNetv2Detector):
        return f"ESPNetv2 SSD (s = {spec.width}, {spec.classes} kinds)"
    name = {"classify": "ESPNetv2 classifier", "segment": "ESPNetv2"}[spec.task]
    version = ", first version" if isinstance(spec, specs.ESPNetv2First) else ""
    return f"{name}{version} (s = {spec.width}, {spec.classes} classes)"


# (task, classes): the set that a published network of so many was trained on; ImageNet's names came with no file
DATA = {
    ("segment", 20): "Cityscapes", ("segment", 12): "CamVid", ("segment", 21): "Pascal VOC",
    ("classify", 1000): "ImageNet", ("detect", 20): "Pascal VOC", ("detect", 80): "COCO",
}  # fmt: skip
LABELS = {
    ("segment", 20): label_sets.CITYSCAPES, ("segment", 12): label_sets.CAMVID, ("segment", 21): label_sets.VOC,
    ("detect", 20): label_sets.VOC[1:], ("detect", 80): label_sets.COCO,
}  # fmt: skip


def _labels(spec: Spec) -> tuple[Label, ...]:
    return LABELS.get((spec.task, spec.classes)) or label_sets.plain(spec.classes)


def _named_size(name: str) -> tuple[int, int] | None:
    """The (height, width) that a file's name states: `..._WIDTHxHEIGHT`."""
    named = re.search(r"_(\d{2,4})x(\d{2,4})(?!\d)", name)
    size = (int(named[2]), int(named[1])) if named else (0, 0)
    return size if min(size) >= SMALLEST_SIDE else None


def _preprocess(spec: Spec, name: str) -> Preprocess:
    """The authors' own preparation (docs/networks.md 6.4); the size by the file's name where it has one, else by family."""
    size = _named_size(name)
    if isinstance(spec, specs.ESPNetv2Detector):
        side = size[0] if size and size[0] == size[1] else 300
        return Preprocess(size=(side, side), filter="plain", multiple=1)
    if isinstance(spec, specs.ESPNetv2Classifier):
        size = size or (224, 224)
        return Preprocess(size=size, resize="short", crop=0.875, multiple=_multiple(size))
    size = size or {21: (384, 384), 12: (360, 480)}.get(spec.classes, (512, 1024))
    if isinstance(spec, specs.ESPNetv2):
        return Preprocess(size=size, multiple=_multiple(size))
    camvid = spec.classes == 12
    mean = (110.3310, 108.4089, 105.0332) if camvid else (72.3923111, 82.90893555, 73.15840149)
    std = (72.1257, 72.6907, 69.9043) if camvid else (45.3192215, 46.15289307, 44.91483307)
    return Preprocess(
        size=size, order="BGR", scale=1.0, mean=mean, std=tuple(255 * s for s in std),  # type: ignore[arg-type]
        filter="plain", resize="native" if camvid else "stretch",
        multiple=1 if isinstance(spec, specs.ESPNet) else 32,
    )  # fmt: skip


def _multiple(size: tuple[int, int]) -> int:
    return 32 if size[0] % 32 == size[1] % 32 == 0 else 1


REPORTED = {
    ("espnetv2", 20): ("mIoU", {0.5: 53.9, 1.0: 60.1, 1.5: 63.8, 2.0: 66.4}, "Cityscapes val, 1024x512"),
    ("espnetv2", 21): ("mIoU", {0.5: 47.18, 1.0: 60.22, 1.5: 63.67, 2.0: 67.01}, "Pascal VOC 2012 val, 384x384"),
}
TERMS = {
    "Cityscapes": "Trained on Cityscapes, whose terms allow non-commercial use",
    "CamVid": "Trained on CamVid, which is provided for research",
    "ImageNet": "Trained on ImageNet, whose terms allow non-commercial research and education",
    "COCO": "Trained on COCO, whose pictures come from Flickr and keep its terms",
    "Pascal VOC": "Trained on Pascal VOC 2012, whose pictures come from Flickr and keep its terms",
}


def _card(spec: Spec, preprocess: Preprocess) -> Card:
    data = DATA.get((spec.task, spec.classes), "unknown")
    metrics: list[Metric] = []
    if isinstance(spec, specs.ESPNet):
        if spec.variant == "full" and data == "Cityscapes" and spec.alpha3 == 8:
            metrics.append(Metric("mIoU", 60.3, "Cityscapes test", "reported by the authors"))
        if spec.variant == "full" and data == "CamVid":
            metrics.append(Metric("mIoU", 55.64, "CamVid test", "reported by the authors, 11 classes"))
    elif isinstance(spec, specs.ESPNetv2) and (row := REPORTED.get(("espnetv2", spec.classes))):
        size = (384, 384) if spec.classes == 21 else (512, 1024)
        if spec.width in row[1] and preprocess.size == size:
            metrics.append(Metric(row[0], row[1][spec.width], row[2], "reported by the authors"))
    terms = TERMS.get(data, "Trained on data unknown here")
    return Card(
        title=describe(spec),
        data=data,
        terms=f"Weights: MIT, Copyright (c) 2018-2021 Sachin Mehta. {terms}.",
        metrics=tuple(metrics),
    )
