"""ESPNetv2 for segmentation: the published network with pyramid pooling, and the first published version.

Source: the authors' EdgeNets code (docs/networks.md 3.5) and the older ESPNetv2 code (docs/networks.md 3.6).
"""

from __future__ import annotations

from functools import partial
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espy.nn import units
from espy.nn.eesp import EESP
from espy.nn.espnetv2 import Encoder
from espy.nn.units import adaptive_pool, conv, he_fan_out, matrix_cells, pool, resize, separable, up
from espy.spec import SCALES, V2_EPS

SMALLEST = 5  # least height and width of a scaled map


class Pyramid(nn.Module):
    """Efficient pyramid pooling: [N, i, H, W] → [N, o, H, W].

    Projected to P channels, seen at several scales by a depth-wise 3×3 each, joined, shuffled so that the copies of a
    channel are neighbours, merged by a grouped 3×3. `last`: the output convolution has a bias and nothing after it.
    """

    def __init__(
        self, i: int, o: int, width: int, *, scales: tuple[tuple[int, int], ...] = SCALES, last: bool = False,
        activation: str = "prelu", eps: float = V2_EPS,
    ):  # fmt: skip
        super().__init__()
        cba = partial(units.cba, eps=eps, activation=activation)
        self.scales = scales
        self.project = cba(i, width, 1)
        self.stages = nn.ModuleList(conv(width, width, 3, groups=width) for _ in scales)
        self.join = units.ba(width * len(scales), eps=eps, activation=activation)
        self.merge = cba(width * len(scales), width, 3, groups=width)
        self.out = nn.Conv2d(width, o, 1, bias=last)
        self.end = nn.Identity() if last else units.ba(o, eps=eps, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        n, c, h, w = x.shape
        parts = []
        for (a, b), stage in zip(self.scales, self.stages, strict=True):
            size = (scaled(h, a, b), scaled(w, a, b))
            if a > b:
                parts.append(adaptive_pool(stage(resize(x, size)), (h, w)))
            elif a < b:
                parts.append(resize(stage(adaptive_pool(x, size)), (h, w)))
            else:
                parts.append(stage(x))
        y = self.join(torch.cat(parts, 1))  # [N, m·P, H, W]: scale by scale
        y = y.reshape(n, len(parts), c, h, w).transpose(1, 2).reshape(n, c * len(parts), h, w)  # channel by channel
        end: Tensor = self.end(self.out(self.merge(y)))
        return end


def scaled(n: int, a: int, b: int) -> int:
    """⌈n·a/b⌉, at least 5; a whole number that exporters can trace."""
    if isinstance(n, Tensor):  # in a trace, which is of one size
        n = int(n)
    size: int = torch.sym_max(SMALLEST, (n * a + b - 1) // b)  # type: ignore[no-untyped-call]
    return size


class Gate(nn.Module):
    """Efficient skip: [N, i, H, W] → [N, o, H, W], a grouped 3×3 weighed by a gate on the mean of its input."""

    def __init__(self, i: int, o: int, *, activation: str = "prelu", eps: float = V2_EPS):
        super().__init__()
        self.gate = conv(i, o, 1)
        self.expand = units.cba(i, o, 3, groups=gcd(i, o), activation=activation, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        y: Tensor = self.expand(x) * weight
        return y


class ESPNetv2(nn.Module):
    """The published segmentation network: [N, 3, H, W] → logits [N, classes, H, W].

    `base` B gives the decoder's widths 4B, 3B, 2B; its pyramids work at `pyramid_width` P channels. Each step adds a gated
    skip to the resized map and looks at the sum at five scales.
    """

    def __init__(
        self, encoder: Encoder, classes: int, *, base: int, pyramid_width: int, activation: str = "prelu",
        eps: float = V2_EPS,
    ):  # fmt: skip
        super().__init__()
        style: dict[str, Any] = {"activation": activation, "eps": eps}
        c1, c2, c3, c4 = encoder.channels[:4]
        d1, d2, d3 = 4 * base, 3 * base, 2 * base
        self.encoder = encoder
        self.pyramid1 = Pyramid(c4, d1, pyramid_width, **style)
        self.gate2, self.join2 = Gate(c3, d1, **style), units.ba(d1, **style)
        self.pyramid2 = Pyramid(d1, d2, pyramid_width, **style)
        self.gate3, self.join3 = Gate(c2, d2, **style), units.ba(d2, **style)
        self.pyramid3 = Pyramid(d2, d3, pyramid_width, **style)
        self.gate4, self.join4 = Gate(c1, d3, **style), units.ba(d3, **style)
        self.pyramid4 = Pyramid(d3, classes, pyramid_width, last=True, **style)
        he_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        o1, o2, o3, o4 = self.encoder(x)
        y = self.pyramid1(o4)  # 1/16
        y = self.pyramid2(self.join2(self.gate2(o3) + up(y, o3)))  # 1/8
        y = self.pyramid3(self.join3(self.gate3(o2) + up(y, o2)))  # 1/4
        y = self.pyramid4(self.join4(self.gate4(o1) + up(y, o1)))  # 1/2
        return up(y, x)


class ImagePyramid(nn.Module):
    """The first version's pyramid: [N, c, H, W] → [N, c, H, W], maps pooled 1 to 4 times, each resized back."""

    def __init__(self, c: int, *, steps: int = 4, activation: str = "prelu", eps: float = V2_EPS):
        super().__init__()
        self.stages = nn.ModuleList(conv(c, c, 3, groups=c) for _ in range(steps))
        self.project = units.cba(c * (steps + 1), c, 1, activation=activation, eps=eps)

    def forward(self, v: Tensor) -> Tensor:
        parts = self._parts_for_export(v) if torch.compiler.is_exporting() else self._parts(v)
        y: Tensor = self.project(torch.cat(parts, 1))
        return y

    def _parts(self, v: Tensor) -> list[Tensor]:
        parts, f = [v], v
        for stage in self.stages:
            f = pool(f)
            parts.append(up(stage(f), v))
        return parts

    def _parts_for_export(self, v: Tensor) -> list[Tensor]:
        """The same with a margin of one zero row and column on every map.

        The smallest maps may be of one pixel, and exporters fix a graph to such sizes; with the margin none has size 1.
        """
        size = v.shape[-2:]
        parts, f = [v], F.pad(v, (0, 1, 0, 1))
        for stage in self.stages:
            f = separable(f, pooling_with_margin, (f.shape[-2] // 2 + 1, f.shape[-1] // 2 + 1))
            parts.append(separable(stage(f), resizing_from_margin, (size[0], size[1])))
        return parts


def pooling_with_margin(inputs: int, outputs: int, like: Tensor) -> Tensor:
    """[outputs, inputs]: `pool` along one side; the last input and output are the margin, and stay zero."""
    i, position = matrix_cells(inputs, outputs, like)
    near = ((position - 2 * i).abs() <= 1) & (i < outputs - 1) & (position < inputs - 1)
    return near.to(like.dtype) / 3


def resizing_from_margin(inputs: int, outputs: int, like: Tensor) -> Tensor:
    """[outputs, inputs]: bilinear resize with aligned corners along one side; the last input is the margin."""
    i, position = matrix_cells(inputs, outputs, like)
    distance = (position * (outputs - 1) - i * (inputs - 2)).abs().to(like.dtype) / (outputs - 1)
    return (1 - distance).clamp(min=0) * (position < inputs - 1)


class ESPNetv2First(nn.Module):
    """The first published segmentation network: [N, 3, H, W] → logits [N, classes, H, W].

    Channels are dropped before the two class convolutions in training (`dropout`; the authors: 0.1 at s = 0.5, else 0.2).
    """

    def __init__(
        self, encoder: Encoder, classes: int, *, branches: int = 4, kernel: int = 3, hff: bool = True,
        arrangement: str = "authors", activation: str = "prelu", dropout: float = 0.2, eps: float = V2_EPS,
    ):  # fmt: skip
        super().__init__()
        cba = partial(units.cba, activation=activation, eps=eps)
        c1, c2, c3, c4 = encoder.channels[:4]
        self.encoder = encoder
        self.reduce4 = cba(c4, c3, 1)
        self.eesp = EESP(
            2 * c3, c3, limit=7, branches=branches, kernel=kernel, hff=hff, arrangement=arrangement,
            activation=activation, eps=eps,
        )  # fmt: skip
        self.pyramid = ImagePyramid(c3, activation=activation, eps=eps)
        self.drop = nn.Dropout2d(dropout)
        self.classify3 = conv(c3, classes, 1)
        self.join3 = units.ba(classes, activation=activation, eps=eps)
        self.classify2 = cba(c2 + classes, classes, 1)
        self.classify1 = conv(c1 + classes, classes, 1)
        he_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        o1, o2, o3, o4 = self.encoder(x)
        m = torch.cat([o3, up(self.reduce4(o4), o3)], 1)  # 1/8
        w = self.pyramid(self.eesp(m))
        q3 = self.join3(self.classify3(self.drop(w)))
        q2 = self.classify2(torch.cat([o2, up(q3, o2)], 1))  # 1/4
        q1 = self.classify1(self.drop(torch.cat([o1, up(q2, o1)], 1)))  # 1/2
        return up(q1, x)
