"""Reads the reference cases and applies their weights: layers in the order in which they run, kind and shape checked."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from espy import spec as specs
from espy.nn.build import build
from espy.nn.eesp import EESP, Down
from espy.nn.esp import ESP

SHARED = Path(__file__).resolve().parents[2] / "shared"
PARITY = Path(os.environ.get("ESPY_PARITY") or SHARED / "parity")
WEIGHTS = Path(os.environ.get("ESPY_WEIGHTS") or SHARED / "weights")


def read_spec(path):
    with np.load(path) as case:
        return json.loads(str(case["spec"]))


def files():
    return [path for path in sorted(PARITY.glob("*.npz")) if read_spec(path)["net"] != "priors"]


def module_of(s):
    if s["net"] == "esp":
        return ESP[s["arrangement"]](
            s["cin"], s["cout"], stride=s.get("stride", 1), branches=s.get("k", 5), hff=s.get("hff", True),
            residual=s.get("residual", False), eps=s["bn_eps"])  # fmt: skip
    if s["net"] == "eesp":
        return EESP(
            s["cin"], s["cout"], stride=s.get("stride", 1), branches=s.get("k", 4), limit=s["r_lim"],
            hff=s.get("hff", True), residual=s.get("residual", True), arrangement=s.get("arrangement", "authors"),
            eps=s["bn_eps"])  # fmt: skip
    if s["net"] == "eesp_down":
        return Down(
            s["cin"], s["cout"], reinforce=s.get("reinforce", True), branches=s.get("k", 4), limit=s["r_lim"],
            arrangement=s.get("arrangement", "authors"), reinforce_act=s.get("reinforce_act"), eps=s["bn_eps"])  # fmt: skip
    return build(spec_of(s))


def spec_of(s):
    """Our spec of a whole network's case."""
    if s["net"] == "espnet":
        names = {"k": "branches", **{n: n for n in ("variant", "classes", "alpha2", "alpha3", "arrangement", "skip1", "hff",
                 "residual")}}  # fmt: skip
        return specs.make("espnet", **{ours: s[theirs] for theirs, ours in names.items() if theirs in s})
    network = "espnetv2_first" if s["net"] == "espnetv2_seg_old" else "espnetv2"
    choices = {k: s[k] for k in ("classes", "base", "arrangement") if k in s}
    if task := {"espnetv2_cls": "classify", "espnetv2_ssd": "detect"}.get(s["net"]):
        choices["task"] = task
    if s["net"] == "espnetv2_ssd":
        choices["classes"] -= 1  # the file counts the background
    return specs.make(network, width=s["s"], **choices)


def slots(module):
    """(kind, tensor) of every leaf in the order of application."""
    for leaf in module.modules():
        if isinstance(leaf, nn.Conv2d | nn.ConvTranspose2d):
            name = "deconv" if isinstance(leaf, nn.ConvTranspose2d) else "conv"
            yield f"{name}.weight", leaf.weight
            if leaf.bias is not None:
                yield f"{name}.bias", leaf.bias
        elif isinstance(leaf, nn.Linear):
            yield from (("linear.weight", leaf.weight), ("linear.bias", leaf.bias))
        elif isinstance(leaf, nn.BatchNorm2d):
            for part in ("weight", "bias", "running_mean", "running_var"):
                yield f"bn.{part}", getattr(leaf, part)
        elif isinstance(leaf, nn.PReLU):
            yield "prelu.weight", leaf.weight


def apply_weights(module, case):
    count = len(case["w_kind"])
    targets = list(slots(module))
    assert len(targets) == count, f"{count} tensors in the file, {len(targets)} in the network"
    for index, (kind, target) in enumerate(targets):
        label = f"w_{index:04d} ({case['w_label'][index]})"
        array = torch.from_numpy(case[f"w_{index:04d}"].copy())
        assert str(case["w_kind"][index]) == kind, (
            f"{label}: {case['w_kind'][index]} in the file, {kind} in the network"
        )
        assert array.shape == target.shape, f"{label}: {tuple(array.shape)} in the file, {tuple(target.shape)}"
        with torch.no_grad():
            target.copy_(array)
