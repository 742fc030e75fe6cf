"""A network as it is trained: deployed preprocessing before it, an auxiliary head beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from espy.header import Preprocess
from espy.nn import espnet
from espy.nn.deployed import Deployed, logits
from espy.nn.units import resize


class Learner(Deployed):
    """uint8 [N, H, W, 3] RGB → a tuple of what is learnt: the network's own output, then the auxiliary head's.

    Segmentation: logits float32 [N, classes, H, W]; the head is a 1×1 convolution of the encoder's deepest maps, resized to
    the picture; it exists in training alone. Classification: logits [N, classes]. Detection: (scores, offsets) of every prior.
    `channels_last`: maps lie in memory as [N, H, W, C]. Not on processors: there oneDNN 3.12 (PyTorch 2.13) computes the
    gradient of a dilated convolution's weights in bfloat16 from memory that was never written, and that of a narrow strided
    1×1 convolution writes past its end (tests/nn/test_learner.py).
    """

    def __init__(
        self, network: nn.Module, preprocess: Preprocess, *, auxiliary: bool = False, channels_last: bool = False
    ):
        super().__init__(network, preprocess)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.segments = network.spec.task == "segment"  # type: ignore[union-attr]
        self.head: nn.Conv2d | None = None
        if auxiliary and self.segments:
            _, channels = deepest(network)
            self.head = nn.Conv2d(channels, network.spec.classes, 1)  # type: ignore[union-attr, arg-type]
        self.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> tuple[Any, ...]:
        x = self.normalised(image)
        if not self.segments:
            return (self.network(x),)
        if self.head is None or not self.training:
            return (logits(self.network, x),)
        module, _ = deepest(self.network)
        maps: list[Tensor] = []
        with module.register_forward_hook(lambda module, inputs, output: maps.append(output)):
            scores = logits(self.network, x)
        return scores, resize(self.head(maps[0]), (image.shape[1], image.shape[2]), align_corners=False)


def deepest(network: nn.Module) -> tuple[nn.Module, int]:
    """The module whose output is the encoder's deepest maps, and their channels."""
    if isinstance(network, espnet.ESPNet):
        return deepest(network.encoder)
    if isinstance(network, espnet.Encoder):
        return network.join3, network.c3
    encoder = network.encoder
    return encoder.level4, encoder.channels[3]  # type: ignore[union-attr, return-value, index]
