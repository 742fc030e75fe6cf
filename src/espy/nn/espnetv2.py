"""ESPNetv2's encoder, shared by its tasks.

Source: ESPNetv2 (Mehta et al., CVPR 2019), table 1; docs/networks.md 3.4.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from espy.nn.eesp import EESP, Down
from espy.nn.units import V2_EPS, cba, pool
from espy.spec import DOWN_LIMITS, REPEAT_LIMITS, REPEATS, encoder_widths


class Encoder(nn.Module):
    """Levels 1 to 4: [N, 3, H, W] → (o₁, o₂, o₃, o₄) at 1/2, 1/4, 1/8, 1/16 with c₁..c₄ channels.

    Level 1 is a strided convolution, each further one a down-sampler that takes the pooled picture in again, then repeats.
    """

    def __init__(
        self, width: float, *, arrangement: str = "authors", branches: int = 4, kernel: int = 3, hff: bool = True,
        residual: bool = True, reinforce: bool = True, activation: str = "prelu", eps: float = V2_EPS,
    ):  # fmt: skip
        super().__init__()
        choices: dict[str, Any] = {"arrangement": arrangement, "branches": branches, "kernel": kernel, "hff": hff}
        down: Any = partial(Down, reinforce=reinforce, activation=activation, eps=eps, **choices)
        eesp: Any = partial(EESP, residual=residual, activation=activation, eps=eps, **choices)
        self.reinforce = reinforce
        self.channels = encoder_widths(width)
        c1, c2, c3, c4 = self.channels[:4]

        self.level1 = cba(3, c1, 3, stride=2, eps=eps, activation=activation)
        self.down2 = down(c1, c2, limit=DOWN_LIMITS[0])
        self.down3 = down(c2, c3, limit=DOWN_LIMITS[1])
        self.level3 = nn.Sequential(*(eesp(c3, c3, limit=REPEAT_LIMITS[1]) for _ in range(REPEATS[1])))
        self.down4 = down(c3, c4, limit=DOWN_LIMITS[2])
        self.level4 = nn.Sequential(*(eesp(c4, c4, limit=REPEAT_LIMITS[2]) for _ in range(REPEATS[2])))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        p2 = p3 = p4 = None
        if self.reinforce:
            p2 = pool(pool(x))  # the picture at 1/4, 1/8, 1/16
            p3 = pool(p2)
            p4 = pool(p3)
        o1 = self.level1(x)  # 1/2
        o2 = self.down2(o1, p2)  # 1/4
        o3 = self.level3(self.down3(o2, p3))  # 1/8
        o4 = self.level4(self.down4(o3, p4))  # 1/16
        return o1, o2, o3, o4
