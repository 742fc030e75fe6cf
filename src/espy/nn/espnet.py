"""ESPNet: variants A, B and C, and the full network with its light decoder.

Source: ESPNet (Mehta et al., ECCV 2018), figure 4; docs/networks.md 2.3. x is the picture [N, 3, H, W]; every stride rounds up.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from espy.nn import units
from espy.nn.esp import ESP
from espy.nn.units import bn, conv, crop, deconv, pool
from espy.spec import V1_EPS


class Encoder(nn.Module):
    """ESPNet-A, -B and -C: [N, 3, H, W] → logits [N, classes, ⌈H/8⌉, ⌈W/8⌉].

    `shares` concatenates the first and last output of levels 2 and 3 (B, C); `reinforced` the pooled picture at levels 1
    and 2 (C). α₂ and α₃ stride-1 modules follow the strided one of their level.
    """

    def __init__(
        self, classes: int, *, shares: bool, reinforced: bool, alpha2: int, alpha3: int, arrangement: str = "merge",
        branches: int = 5, kernel: int = 3, hff: bool = True, residual: bool = True, activation: str = "prelu",
        widths: tuple[int, int, int] = (16, 64, 128), eps: float = V1_EPS,
    ):  # fmt: skip
        super().__init__()
        self.shares, self.reinforced = shares, reinforced
        w1, w2, w3 = widths
        picture = 3 if reinforced else 0
        ba = partial(units.ba, eps=eps, activation=activation)
        esp = partial(ESP[arrangement], branches=branches, kernel=kernel, hff=hff, activation=activation, eps=eps)

        self.stem = units.cba(3, w1, 3, stride=2, eps=eps, activation=activation)
        self.c0, self.c1 = w1, w1 + picture
        self.join1 = ba(self.c1) if reinforced else nn.Identity()
        self.down2 = esp(self.c1, w2, stride=2)
        self.level2 = nn.Sequential(*(esp(w2, w2, residual=residual) for _ in range(alpha2)))
        self.c2 = 2 * w2 + picture if shares else w2
        self.join2 = ba(self.c2) if shares else nn.Identity()
        self.down3 = esp(self.c2, w3, stride=2)
        self.level3 = nn.Sequential(*(esp(w3, w3, residual=residual) for _ in range(alpha3)))
        self.c3 = 2 * w3 if shares else w3
        self.join3 = ba(self.c3) if shares else nn.Identity()
        self.classifier = conv(self.c3, classes, 1)

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(e₀, z₁) at 1/2, z₂ at 1/4, z₃ at 1/8."""
        e0 = self.stem(x)  # 1/2
        half = pool(x) if self.reinforced else None
        z1 = self.join1(e0 if half is None else torch.cat([e0, half], 1))
        d2 = self.down2(z1)  # 1/4
        y2 = self.level2(d2)
        parts = [y2, d2] if self.shares else [y2]
        z2 = self.join2(torch.cat(parts if half is None else [*parts, pool(half)], 1))
        d3 = self.down3(z2)  # 1/8
        y3 = self.level3(d3)
        z3 = self.join3(torch.cat([d3, y3], 1) if self.shares else y3)
        return e0, z1, z2, z3

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.levels(x)[-1])
        return logits


class ESPNet(nn.Module):
    """The full network: [N, 3, H, W] → logits [N, classes, H, W].

    Below five classes the decoder's ESP has as many branches as classes. Where a doubled map is larger than its partner
    (sizes that are no multiples of 8) it is cropped at the right and the bottom.
    """

    def __init__(
        self, encoder: Encoder, classes: int, *, skip1: str = "stem", projection: int | None = None,
        arrangement: str = "merge", branches: int = 5, kernel: int = 3, hff: bool = True, activation: str = "prelu",
        eps: float = V1_EPS,
    ):  # fmt: skip
        super().__init__()
        self.skip1 = skip1
        c, p = classes, projection or classes
        ba = partial(units.ba, eps=eps, activation=activation)
        esp = partial(
            ESP[arrangement], branches=min(branches, c), kernel=kernel, hff=hff, activation=activation, eps=eps
        )

        self.encoder = encoder
        self.norm3 = bn(c, eps)
        self.up3 = deconv(c, c)
        self.project2 = conv(encoder.c2, p, 1)
        self.fuse = nn.Sequential(ba(p + c), esp(p + c, c))
        self.up2 = deconv(c, c)
        self.join_up2 = ba(c)
        m = encoder.c1 if skip1 == "cat1" else encoder.c0
        self.refine = units.cba(m + c, c, 3, eps=eps, activation=activation)
        self.up1 = deconv(c, c)

    def forward(self, x: Tensor) -> Tensor:
        e0, z1, z2, z3 = self.encoder.levels(x)
        skip = e0 if self.skip1 == "stem" else z1
        c3 = self.norm3(self.encoder.classifier(z3))  # 1/8
        a = crop(self.up3(c3), z2)  # 1/4
        b = self.project2(z2)
        f = self.fuse(torch.cat([b, a], 1))
        g = self.join_up2(crop(self.up2(f), skip))  # 1/2
        h = self.refine(torch.cat([g, skip], 1))
        return crop(self.up1(h), x)  # 1/1
