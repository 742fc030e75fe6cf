"""The SSD detector on ESPNetv2's encoder.

Source: SSD (Liu et al., ECCV 2016) as the authors' EdgeNets code has it; docs/networks.md 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from espy.nn.espnetv2 import Encoder
from espy.nn.segment import Pyramid
from espy.nn.units import cba, conv, up, xavier
from espy.priors import PER_CELL
from espy.spec import DETECTOR_SCALES, DETECTOR_WIDTHS, V2_EPS


class Detector(nn.Module):
    """[N, 3, S, S] → (scores [N, P, 1 + classes], boxes [N, P, 4]) of the P priors of `espy.priors` for size S.

    Scores are logits, the background first; boxes are offsets from their priors, as `espy.priors.encode` writes them. Six maps,
    from 1/8 to a single cell, are mixed from the top down by pyramids before each is read.
    """

    def __init__(self, encoder: Encoder, classes: int, *, activation: str = "prelu", eps: float = V2_EPS):
        super().__init__()
        style: dict[str, Any] = {"activation": activation, "eps": eps}
        _, _, c3, c4, _, c5 = encoder.channels
        c6, c7, c8 = DETECTOR_WIDTHS
        self.encoder = encoder
        self.extra6 = nn.Sequential(cba(c5, c5, 3, stride=2, groups=c5, **style), cba(c5, c6, 1, **style))
        self.extra7 = nn.Sequential(cba(c6, c6, 3, stride=2, groups=c6, **style), cba(c6, c7, 1, **style))
        self.extra8 = nn.Sequential(conv(c7, c8, 1), nn.ReLU())
        self.mix6 = Pyramid(c7 + c6, c6, c6 // 5, scales=DETECTOR_SCALES[:2], **style)
        self.mix5 = Pyramid(c6 + c5, c5, c5 // 5, scales=DETECTOR_SCALES[:3], **style)
        self.mix4 = Pyramid(c5 + c4, c4, c4 // 5, scales=DETECTOR_SCALES, **style)
        self.mix3 = Pyramid(c4 + c3, c3, c3 // 5, scales=DETECTOR_SCALES, **style)
        self.heads = nn.ModuleList(Head(c, classes) for c in (c3, c4, c5, c6, c7, c8))
        xavier(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, _, f3, f4, f5 = self.encoder(x)  # 1/8, 1/16, 1/32
        f6 = self.extra6(f5)  # 1/64
        f7 = self.extra7(f6)  # 1/128
        f8 = self.extra8(f7.mean((2, 3), keepdim=True))
        g6 = self.mix6(torch.cat([up(f7, f6), f6], 1))
        g5 = self.mix5(torch.cat([up(g6, f5), f5], 1))
        g4 = self.mix4(torch.cat([up(g5, f4), f4], 1))
        g3 = self.mix3(torch.cat([up(g4, f3), f3], 1))
        read = [head(maps) for head, maps in zip(self.heads, (g3, g4, g5, g6, f7, f8), strict=True)]
        return torch.cat([scores for _, scores in read], 1), torch.cat([boxes for boxes, _ in read], 1)


class Head(nn.Module):
    """[N, c, h, w] → boxes [N, h·w·6, 4] and scores [N, h·w·6, 1 + classes], cell by cell."""

    def __init__(self, c: int, classes: int):
        super().__init__()
        self.box = nn.Conv2d(c, PER_CELL * 4, 1)
        self.score = nn.Conv2d(c, PER_CELL * (1 + classes), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n = x.shape[0]
        boxes, scores = (
            y.permute(0, 2, 3, 1).reshape(n, -1, y.shape[1] // PER_CELL) for y in (self.box(x), self.score(x))
        )
        return boxes, scores
