"""A network as it is deployed: uint8 picture in, uint8 mask out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espy.errors import SpecError
from espy.header import MASK_CLASSES, Preprocess
from espy.nn.units import resize


class Deployed(nn.Module):
    """uint8 [N, H, W, 3] RGB → (mask uint8 [N, H, W], scores float32 [N, classes, H, W]).

    Channel order, scale, mean and standard deviation of `preprocess` are applied here; logits of a coarser network are
    resized to the picture (ESPNet-A, -B, -C: ×8) before the arg-max.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess):
        super().__init__()
        if network.spec.classes > MASK_CLASSES:  # type: ignore[union-attr, operator]
            raise SpecError(f"a mask holds at most {MASK_CLASSES} classes, not {network.spec.classes}")  # type: ignore[union-attr]
        self.network = network
        self.reverse = preprocess.order == "BGR"
        self.register_buffer("factor", torch.tensor([preprocess.scale / s for s in preprocess.std]).view(1, 3, 1, 1))
        shift = [-m / s for m, s in zip(preprocess.mean, preprocess.std, strict=True)]
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1))

    memory_format = torch.contiguous_format

    def scores(self, image: Tensor) -> Tensor:
        """Logits float32 [N, classes, H, W] of the picture's size."""
        x = image.permute(0, 3, 1, 2).float()  # [N, 3, H, W]
        if self.reverse:
            x = x[:, [2, 1, 0]]
        x = (x * self.factor + self.shift).contiguous(memory_format=self.memory_format)
        scores = self.network(x)
        spec = self.network.spec
        if spec.output_stride != 1:  # type: ignore[union-attr]
            scores = resize(scores, (image.shape[1], image.shape[2]), spec.align_corners)  # type: ignore[union-attr, arg-type]
        return scores  # type: ignore[no-any-return]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.scores(image)
        return scores.argmax(1).to(torch.uint8), scores
