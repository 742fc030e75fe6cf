"""Parameters, multiply-accumulates and memory traffic of a network (docs/networks.md part 5)."""

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
    """Multiply-accumulates of convolutions, transposed convolutions and linear layers for one picture of (height, width)."""
    total = 0
    for layer, x, out in _layers(network, size):
        if isinstance(layer, nn.ConvTranspose2d):  # each input pixel meets the whole kernel, before any cropping
            total += x[0, 0].numel() * layer.weight.numel()
        elif isinstance(layer, nn.Conv2d):
            total += out[0, 0].numel() * layer.weight.numel()
        elif isinstance(layer, nn.Linear):
            total += math.prod(out.shape[:-1]) * layer.weight.numel()
    return total


def traffic(network: nn.Module, size: tuple[int, int]) -> int:
    """Bytes of the float32 maps that go into and come out of the same layers, for one picture of (height, width).

    So much goes through memory where all else is fused into these layers and no map stays in a cache.
    """
    return sum(4 * (x.numel() + out.numel()) for _, x, out in _layers(network, size))


def _layers(network: nn.Module, size: tuple[int, int]) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """The layers that multiply, each with its input and output, of a forward pass without data: any size costs nothing."""
    found: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((module, inputs[0], output))

    ghost = copy.deepcopy(network).eval().to("meta")
    leaves: Any = (nn.ConvTranspose2d, nn.Conv2d, nn.Linear)
    for module in ghost.modules():
        if isinstance(module, leaves):
            module.register_forward_hook(note)
    with torch.no_grad():
        ghost(torch.empty(1, 3, *size, device="meta"))
    return found
