"""The EESP unit of ESPNetv2 and its strided form with the picture fed in again.

Source: ESPNetv2 (Mehta et al., CVPR 2019), section 3; docs/networks.md 3.1 to 3.3.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from espy.nn.units import act, ba, bn, cb, cba, conv, hierarchical_sum, pool
from espy.spec import READINGS, V2_EPS, eesp_dilations, eesp_split, require


class EESP(nn.Module):
    """Extremely efficient spatial pyramid: [N, i, H, W] → [N, o, ⌈H/stride⌉, ⌈W/stride⌉].

    Grouped 1×1 reduction to n = o/K, K depth-wise dilated branches, sums from the second branch on, norm and activation,
    grouped 1×1 expansion, residual where stride is 1 and i = o, activation (left out in a down-sampler: `last_act`).
    `limit` is the largest kernel extent of a branch.
    """

    def __init__(
        self, i: int, o: int, *, stride: int = 1, branches: int = 4, limit: int = 9, kernel: int = 3, hff: bool = True,
        residual: bool = True, arrangement: str = "authors", activation: str = "prelu", last_act: bool = True,
        eps: float = V2_EPS,
    ):  # fmt: skip
        super().__init__()
        require(stride in (1, 2), f"stride must be 1 or 2, not {stride}")
        n = eesp_split(i, o, branches)
        reading = READINGS[arrangement]
        self.hff = hff
        self.residual = residual and stride == 1 and i == o
        self.reduce = conv(i, n, 1, groups=branches) if reading.bare else cba(
            i, n, 1, groups=branches, eps=eps, activation=activation)  # fmt: skip
        self.branches = nn.ModuleList(
            conv(n, n, kernel, stride, d, groups=n) for d in eesp_dilations(branches, limit, kernel)
        )
        self.fuse = ba(o, eps=eps, activation=activation) if reading.fuse_act else bn(o, eps)
        self.expand = conv(o, o, 1, groups=branches) if reading.bare else cb(o, o, 1, groups=branches, eps=eps)
        self.act = act(o, activation) if last_act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        r = self.reduce(x)
        t = [branch(r) for branch in self.branches]
        u = hierarchical_sum(t, first=2) if self.hff else t
        y = self.expand(self.fuse(torch.cat(u, 1)))
        end: Tensor = self.act(x + y if self.residual else y)
        return end


class Down(nn.Module):
    """Strided EESP: [N, i, H, W] → [N, o, ⌈H/2⌉, ⌈W/2⌉].

    The pooled input, beside it an EESP of stride 2 with the o − i channels that are missing. `picture` [N, 3, ⌈H/2⌉, ⌈W/2⌉],
    already pooled to the output's size, is projected and added (reinforcement); without it nothing is.
    """

    def __init__(
        self, i: int, o: int, *, reinforce: bool = True, branches: int = 4, limit: int = 9, kernel: int = 3,
        hff: bool = True, arrangement: str = "authors", activation: str = "prelu", reinforce_act: str | None = None,
        eps: float = V2_EPS,
    ):  # fmt: skip
        super().__init__()
        require(o > i, f"a down-sampler needs more outputs than inputs, not {i} to {o}")
        self.eesp = EESP(
            i, o - i, stride=2, branches=branches, limit=limit, kernel=kernel, hff=hff, arrangement=arrangement,
            activation=activation, last_act=False, eps=eps,
        )  # fmt: skip
        inner = partial(cba, eps=eps, activation=reinforce_act or READINGS[arrangement].reinforce_act)
        self.reinforce = nn.Sequential(inner(3, 3, 3), cb(3, o, 1, eps=eps)) if reinforce else None
        self.act = act(o, activation)

    def forward(self, x: Tensor, picture: Tensor | None = None) -> Tensor:
        y = torch.cat([pool(x), self.eesp(x)], 1)
        if self.reinforce is not None:
            y = y + self.reinforce(picture)
        end: Tensor = self.act(y)
        return end
