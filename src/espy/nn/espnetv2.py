"""ESPNetv2's encoder, shared by its tasks.

Source: ESPNetv2 (Mehta et al., CVPR 2019), table 1; docs/networks.md 3.4.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from espy.nn.eesp import EESP, Down
from espy.nn.units import cba, pool
from espy.spec import DOWN_LIMITS, REPEAT_LIMITS, REPEATS, V2_EPS, encoder_widths


class Encoder(nn.Module):
    """Levels 1 to 4: [N, 3, H, W] → (o₁, o₂, o₃, o₄) at 1/2, 1/4, 1/8, 1/16 with c₁..c₄ channels.

    Level 1 is a strided convolution, each further one a down-sampler that takes the pooled picture in again, then repeats.
    With `levels` 5 also o₅ at 1/32 with c₆ channels; there the picture comes in only where `reinforce5` says so.
    """

    def __init__(
        self, width: float, *, levels: int = 4, reinforce5: bool = True, arrangement: str = "authors", branches: int = 4,
        kernel: int = 3, hff: bool = True, residual: bool = True, reinforce: bool = True, activation: str = "prelu",
        eps: float = V2_EPS,
    ):  # fmt: skip
        super().__init__()
        choices: dict[str, Any] = {"arrangement": arrangement, "branches": branches, "kernel": kernel, "hff": hff}
        down: Any = partial(Down, activation=activation, eps=eps, **choices)
        eesp: Any = partial(EESP, residual=residual, activation=activation, eps=eps, **choices)
        self.reinforce = reinforce
        self.channels = encoder_widths(width)
        c1, c2, c3, c4, c5, c6 = self.channels

        self.level1 = cba(3, c1, 3, stride=2, eps=eps, activation=activation)
        self.down2 = down(c1, c2, limit=DOWN_LIMITS[0], reinforce=reinforce)
        self.down3 = down(c2, c3, limit=DOWN_LIMITS[1], reinforce=reinforce)
        self.level3 = nn.Sequential(*(eesp(c3, c3, limit=REPEAT_LIMITS[1]) for _ in range(REPEATS[1])))
        self.down4 = down(c3, c4, limit=DOWN_LIMITS[2], reinforce=reinforce)
        self.level4 = nn.Sequential(*(eesp(c4, c4, limit=REPEAT_LIMITS[2]) for _ in range(REPEATS[2])))
        if levels == 5:
            self.down5 = down(c4, c5, limit=DOWN_LIMITS[3], reinforce=reinforce and reinforce5)
            self.level5 = nn.Sequential(
                *(eesp(c5, c5, limit=REPEAT_LIMITS[3]) for _ in range(REPEATS[3])),
                cba(c5, c5, 3, groups=c5, eps=eps, activation=activation),
                cba(c5, c6, 1, groups=4, eps=eps, activation=activation),
            )
        self.levels = levels

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        p2 = p3 = p4 = None
        if self.reinforce:
            p2 = pool(pool(x))  # the picture at 1/4, 1/8, 1/16
            p3 = pool(p2)
            p4 = pool(p3)
        o1 = self.level1(x)  # 1/2
        o2 = self.down2(o1, p2)  # 1/4
        o3 = self.level3(self.down3(o2, p3))  # 1/8
        o4 = self.level4(self.down4(o3, p4))  # 1/16
        if self.levels == 4:
            return o1, o2, o3, o4
        p5 = pool(p4) if p4 is not None and self.down5.reinforce is not None else None
        return o1, o2, o3, o4, self.level5(self.down5(o4, p5))  # 1/32
