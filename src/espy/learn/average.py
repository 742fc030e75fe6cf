"""The exponential moving average of a network's weights: what is validated and kept."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """a ← d·a + (1 − d)·w after every step, of weights and batch norm statistics alike; `network` holds a.

    d is `decay`, but (1 + n) / (10 + n) after n steps where that is smaller, so that the weights at the start are soon
    forgotten. Decay 0: the weights themselves.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, steps: int) -> None:
        """Take in the weights after `steps` steps (1 after the first)."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        mine, theirs = self.network.state_dict(), network.state_dict()
        floats = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([mine[n] for n in floats], [theirs[n] for n in floats], 1 - decay)
        for name in mine.keys() - set(floats):
            mine[name].copy_(theirs[name])
