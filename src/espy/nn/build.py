"""From a spec to a network, the one place where specs are unpacked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from espy import spec as specs
from espy.errors import ModelError
from espy.nn import espnet, segment
from espy.nn.classify import Classifier
from espy.nn.detect import Detector
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
    unit: dict[str, Any] = {"arrangement": spec.arrangement, "branches": spec.branches, "kernel": spec.kernel, "hff": spec.hff,
            "activation": spec.activation}  # fmt: skip
    if isinstance(spec, specs.ESPNet):
        encoder = espnet.Encoder(
            spec.classes, shares=spec.shares, reinforced=spec.reinforced, alpha2=spec.alpha2, alpha3=spec.alpha3,
            residual=spec.residual, widths=spec.widths, **unit,
        )  # fmt: skip
        if spec.variant != "full":
            return encoder
        return espnet.ESPNet(encoder, spec.classes, skip1=spec.skip1, projection=spec.projection, **unit)
    pyramids = Encoder(
        spec.width, levels=4 if spec.task == "segment" else 5, reinforce5=spec.task == "detect", residual=spec.residual,
        reinforce=spec.reinforce, **unit,
    )  # fmt: skip
    if isinstance(spec, specs.ESPNetv2Classifier):
        return Classifier(pyramids, spec.classes)
    if isinstance(spec, specs.ESPNetv2Detector):
        return Detector(pyramids, spec.classes, activation=spec.activation)
    if isinstance(spec, specs.ESPNetv2First):
        return segment.ESPNetv2First(pyramids, spec.classes, dropout=0.1 if spec.width <= 0.5 else 0.2, **unit)
    return segment.ESPNetv2(
        pyramids, spec.classes, base=spec.base, pyramid_width=spec.pyramid_width, activation=spec.activation
    )


def with_weights(spec: Spec, arrays: dict[str, np.ndarray]) -> nn.Module:
    """The network of a spec with the given weights (by our names), in eval mode. Raises ModelError where they do not fit."""
    with torch.device("meta"):
        network = build(spec)
    expected = weights_of(network)
    for name in expected.keys() | arrays.keys():
        if name not in arrays or name not in expected or expected[name].shape != arrays[name].shape:
            what = "missing" if name not in arrays else "strange" if name not in expected else "of another shape"
            raise ModelError(f"{name} is {what}: the weights do not belong to the network of the header")
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = torch.tensor(0)
    network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, strict=False)
    return network.eval()


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """A network's weights by name: its state without the counters that only training with momentum None reads."""
    return {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
