"""The steps that every network of the family is made of (shorthand of docs/networks.md part 1).

Maps are [N, C, H, W]. Convolutions have no bias and are zero-padded so that stride 1 keeps the size and stride 2 halves it,
rounded up. Layers are registered in the order in which they run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(i: int, o: int, k: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    """k×k convolution, no bias, padding d·(k−1)/2."""
    return nn.Conv2d(i, o, k, stride, dilation * (k - 1) // 2, dilation, groups, bias=False)


def deconv(i: int, o: int) -> nn.ConvTranspose2d:
    """Transposed 2×2 convolution of stride 2, no bias: doubles the size."""
    return nn.ConvTranspose2d(i, o, 2, stride=2, bias=False)


def bn(c: int, eps: float) -> nn.BatchNorm2d:
    """Batch norm, affine."""
    return nn.BatchNorm2d(c, eps=eps)


def act(c: int, activation: str) -> nn.Module:
    """The activation by name; PReLU has one slope a channel, 0.25 at first."""
    if activation == "prelu":
        return nn.PReLU(c)
    return {"relu": nn.ReLU, "silu": nn.SiLU}[activation]()


def cb(i: int, o: int, k: int, *, stride: int = 1, groups: int = 1, eps: float) -> nn.Sequential:
    """Convolution, batch norm."""
    return nn.Sequential(OrderedDict(conv=conv(i, o, k, stride, groups=groups), bn=bn(o, eps)))


def ba(c: int, *, eps: float, activation: str) -> nn.Sequential:
    """Batch norm, activation."""
    return nn.Sequential(OrderedDict(bn=bn(c, eps), act=act(c, activation)))


def cba(
    i: int, o: int, k: int, *, stride: int = 1, dilation: int = 1, groups: int = 1, eps: float, activation: str
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    return nn.Sequential(
        OrderedDict(conv=conv(i, o, k, stride, dilation, groups), bn=bn(o, eps), act=act(o, activation))
    )


def hierarchical_sum(branches: list[Tensor], first: int) -> list[Tensor]:
    """Hierarchical feature fusion: u_k = t_k + u_{k−1} from branch `first` on (counted from 1), the others as they are."""
    sums = branches[: first - 1]
    for branch in branches[first - 1 :]:
        sums.append(branch + sums[-1])
    return sums


def pool(x: Tensor) -> Tensor:
    """Average of 3×3 at stride 2; the zeros of the padding count (the divisor is always 9)."""
    return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=True)


def up(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear resize to the height and width of `like`, corners aligned."""
    return resize(x, (like.shape[-2], like.shape[-1]))


def resize(x: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    """Bilinear resize to (height, width)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def crop(x: Tensor, like: Tensor) -> Tensor:
    """The top left part of x at the height and width of `like`: a doubled map has a row too much beside an odd-sized partner.

    As padding by a negative amount: a slice would make exporters prove that 2·⌈n/2⌉ ≥ n, which they cannot.
    """
    return F.pad(x, (0, like.shape[-1] - x.shape[-1], 0, like.shape[-2] - x.shape[-2]))


def adaptive_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling to (height, width).

    Exporters unroll the framework's operator for one size, so under export it is two products with averaging matrices.
    """
    if torch.compiler.is_exporting():
        return separable(x, averaging_matrix, size)
    return F.adaptive_avg_pool2d(x, size)


def separable(x: Tensor, matrix: Callable[[int, int, Tensor], Tensor], size: tuple[int, int]) -> Tensor:
    """Mₕ · x · M_wᵀ on every plane, with M = matrix(inputs, outputs, like) of [outputs, inputs]."""
    n, c, h, w = x.shape
    rows = matrix(h, size[0], x).expand(n * c, size[0], h)
    columns = matrix(w, size[1], x).transpose(0, 1).expand(n * c, w, size[1])
    planes = x.reshape(n * c, h, w)
    return torch.bmm(torch.bmm(rows, planes), columns).reshape(n, c, size[0], size[1])


def averaging_matrix(inputs: int, outputs: int, like: Tensor) -> Tensor:
    """Row i averages the window from ⌊i·in/out⌋ to ⌈(i+1)·in/out⌉, as adaptive pooling does."""
    i, position = matrix_cells(inputs, outputs, like)
    start = i * inputs // outputs
    end = ((i + 1) * inputs + outputs - 1) // outputs
    inside = ((position >= start) & (position < end)).to(like.dtype)
    return inside / (end - start).to(like.dtype)


def matrix_cells(inputs: int, outputs: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every cell of an [outputs, inputs] matrix."""
    i = torch.arange(outputs, device=like.device).unsqueeze(1).expand(outputs, inputs)
    position = torch.arange(inputs, device=like.device).unsqueeze(0).expand(outputs, inputs)
    return i, position


def he_fan_out(network: nn.Module) -> None:
    """ESPNetv2's initialisation: convolutions normal with std √(2 / (o·k²)), batch norm 1 and 0 (docs/networks.md part 1)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            k = module.kernel_size[0]
            nn.init.normal_(module.weight, std=(2.0 / (module.out_channels * k * k)) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def xavier(network: nn.Module) -> None:
    """The detector's initialisation: convolutions Xavier-uniform, their biases 0 (docs/networks.md part 1)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
