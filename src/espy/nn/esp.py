"""The ESP module: reduce, split, transform by K dilated branches, merge, with hierarchical feature fusion.

Source: ESPNet (Mehta et al., ECCV 2018), section 3; the authors' code for `merge`, the article's text for `branch`.
i channels in, o out; n = ⌊o/K⌋ a branch, the first takes what is left, n₁ = o − (K−1)·n. Branch k has dilation 2^(k−1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espy.nn.units import ba, cba, conv, hierarchical_sum
from espy.spec import V1_EPS, check_kernel, esp_split, require


class MergeESP(nn.Module):
    """ESP in the authors' arrangement: [N, i, H, W] → [N, o, ⌈H/stride⌉, ⌈W/stride⌉] (docs/networks.md 2.1).

    One reduction serves all branches (3×3 where it downsamples), the sums start at the third branch, and one batch norm and
    activation end the module, after the residual.
    """

    def __init__(
        self, i: int, o: int, *, stride: int = 1, branches: int = 5, kernel: int = 3, hff: bool = True,
        residual: bool = False, activation: str = "prelu", eps: float = V1_EPS,
    ):  # fmt: skip
        super().__init__()
        n, first = check_esp(i, o, stride, branches, kernel, residual)
        self.hff, self.residual = hff, residual
        self.reduce = conv(i, n, 3 if stride == 2 else 1, stride)
        self.branches = nn.ModuleList(
            conv(n, first if k == 0 else n, kernel, dilation=2**k) for k in range(branches)
        )  # fmt: skip
        self.end = ba(o, eps=eps, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        r = self.reduce(x)
        t = [branch(r) for branch in self.branches]
        u = hierarchical_sum(t, first=3) if self.hff else t
        y = torch.cat(u, 1)
        end: Tensor = self.end(x + y if self.residual else y)
        return end


class BranchESP(nn.Module):
    """ESP as the article's text has it: [N, i, H, W] → [N, o, ⌈H/stride⌉, ⌈W/stride⌉] (docs/networks.md 2.2).

    Strided 1×1 reduction, a batch norm and an activation in each branch, nothing after the residual. Where n₁ ≠ n the first
    branch has a reduction of its own (`primary`) and the sums start one branch later.
    """

    def __init__(
        self, i: int, o: int, *, stride: int = 1, branches: int = 5, kernel: int = 3, hff: bool = True,
        residual: bool = False, activation: str = "prelu", eps: float = V1_EPS,
    ):  # fmt: skip
        super().__init__()
        n, first = check_esp(i, o, stride, branches, kernel, residual)
        self.hff, self.residual, self.uniform = hff, residual, first == n
        self.primary = None if self.uniform else conv(i, first, 1, stride)
        self.reduce = conv(i, n, 1, stride)
        self.branches = nn.ModuleList(
            cba(w, w, kernel, dilation=2**k, eps=eps, activation=activation)
            for k, w in enumerate([first] + [n] * (branches - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        r = self.reduce(x)
        p = r if self.primary is None else self.primary(x)
        t = [branch(p if k == 0 else r) for k, branch in enumerate(self.branches)]
        u = hierarchical_sum(t, first=2 if self.uniform else 3) if self.hff else t
        y = torch.cat(u, 1)
        return x + y if self.residual else y


ESP: dict[str, type[MergeESP] | type[BranchESP]] = {"merge": MergeESP, "branch": BranchESP}


def check_esp(i: int, o: int, stride: int, branches: int, kernel: int, residual: bool) -> tuple[int, int]:
    """The widths (n, n₁), or SpecError for choices that no ESP module has."""
    check_kernel(kernel)
    require(i >= 1, f"an ESP module needs at least 1 input channel, not {i}")
    require(stride in (1, 2), f"stride must be 1 or 2, not {stride}")
    require(
        not residual or (i == o and stride == 1),
        f"a residual needs stride 1 and as many outputs as inputs, not stride {stride}, {i} to {o}",
    )
    return esp_split(o, branches)
