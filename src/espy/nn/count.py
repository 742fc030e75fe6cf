"""Parameters and multiply-accumulates of a network (docs/networks.md part 5)."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn


def parameters(network: nn.Module) -> int:
    """Trainable numbers; all of them take part in the forward pass."""
    return sum(p.numel() for p in network.parameters())


def macs(network: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulates of convolutions, transposed convolutions and linear layers for one picture of (height, width).

    Counted on the shapes of a forward pass without data, so that any size costs no time and no memory.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d):  # each input pixel meets the whole kernel, before any cropping
            total += inputs[0][0, 0].numel() * module.weight.numel()
        elif isinstance(module, nn.Conv2d):
            total += output[0, 0].numel() * module.weight.numel()
        elif isinstance(module, nn.Linear):
            total += math.prod(output.shape[:-1]) * module.weight.numel()

    ghost = copy.deepcopy(network).eval().to("meta")
    leaves: Any = (nn.ConvTranspose2d, nn.Conv2d, nn.Linear)
    for module in ghost.modules():
        if isinstance(module, leaves):
            module.register_forward_hook(count)
    with torch.no_grad():
        ghost(torch.empty(1, 3, *size, device="meta"))
    return total
