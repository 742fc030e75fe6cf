"""From a spec to a network, the one place where specs are unpacked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from espy import spec as specs
from espy.nn import espnet, segment
from espy.nn.espnetv2 import Encoder
from espy.spec import Spec


def build(network: str | Spec | dict[str, Any], *, seed: int | None = None, **choices: Any) -> nn.Module:
    """A network with fresh weights, in training mode, from a name and choices, a spec or a spec's JSON form.

    Input: pictures [N, 3, H, W] float32, any H and W ≥ 16, normalised as the model's `preprocess` says. Output: logits
    [N, classes, H, W] (ESPNet-A, -B, -C: at 1/8). With `seed` the weights depend on nothing else and the global generator
    is left as it was. `network.spec` is what was built. Raises SpecError, one line, for choices that do not fit.

    >>> network = build("espnetv2", classes=11, width=0.5, seed=0)
    >>> network.spec.pyramid_width
    5
    """
    if isinstance(network, str):
        spec = specs.make(network, **choices)
    else:
        spec = specs.from_dict({**(network if isinstance(network, dict) else specs.to_dict(network)), **choices})
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        module = _construct(spec)
    module.spec = spec  # type: ignore[assignment]
    return module


def _construct(spec: Spec) -> nn.Module:
    unit = {"arrangement": spec.arrangement, "branches": spec.branches, "kernel": spec.kernel, "hff": spec.hff,
            "activation": spec.activation}  # fmt: skip
    if isinstance(spec, specs.ESPNet):
        encoder = espnet.Encoder(
            spec.classes, shares=spec.shares, reinforced=spec.reinforced, alpha2=spec.alpha2, alpha3=spec.alpha3,
            residual=spec.residual, widths=spec.widths, **unit,
        )  # fmt: skip
        if spec.variant != "full":
            return encoder
        return espnet.ESPNet(encoder, spec.classes, skip1=spec.skip1, projection=spec.projection, **unit)
    pyramids = Encoder(spec.width, residual=spec.residual, reinforce=spec.reinforce, **unit)
    if isinstance(spec, specs.ESPNetv2First):
        return segment.ESPNetv2First(pyramids, spec.classes, dropout=0.1 if spec.width <= 0.5 else 0.2, **unit)
    return segment.ESPNetv2(
        pyramids, spec.classes, base=spec.base, pyramid_width=spec.pyramid_width, activation=spec.activation
    )
