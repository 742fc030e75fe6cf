"""Exact rewrites: the same function of the picture in operators that stock engines run fast.

Each takes apart what its formula allows and puts it together again; the result differs by float32 rounding alone. The plain
networks stay in `espy.nn`; what is here is deployed. It is made for ONNX Runtime, whose fast layout holds channels in lanes of 16;
what each rewrite is worth is in docs/performance.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espy.header import SMALLEST_SIDE
from espy.nn.espnetv2 import Encoder
from espy.nn.segment import ESPNetv2, Gate, Pyramid, scaled
from espy.nn.units import adaptive_pool, pool, resize

SUBNORMAL = 1e-30  # weights below become 0: what is multiplied by them is lost, but some processors take a hundred times as long
LANES = 16


Rewrite = Callable[[nn.Module, "Sizes"], nn.Module]


class Sizes(NamedTuple):
    """What is known of a map's (height, width): multiples of `step`, from `least` on; one size alone where both are equal and
    `fixed`.
    """

    step: tuple[int, int]
    least: tuple[int, int]
    fixed: bool = False

    @classmethod
    def of(cls, sizes: Any) -> Sizes:
        """A header's `sizes`."""
        if sizes == "any":
            return cls((1, 1), (SMALLEST_SIDE, SMALLEST_SIDE))
        if isinstance(sizes, dict):
            return cls((sizes["multiple"],) * 2, (sizes["multiple"],) * 2)
        (one,) = sizes
        return cls(tuple(one), tuple(one), fixed=True)

    def at(self, stride: int) -> Sizes:
        """Of the maps at 1/stride, whose sides are rounded up."""
        least = (-(-self.least[0] // stride), -(-self.least[1] // stride))
        step = tuple(side // stride if side % stride == 0 else 1 for side in self.step)
        return Sizes(least if self.fixed else (step[0], step[1]), least, self.fixed)

    @property
    def even(self) -> bool:
        """Whether both sides are even."""
        return all(side % 2 == 0 for side in self.step)

    def halve(self, times: int) -> bool:
        """Whether both sides can be halved so often without rounding."""
        return all(side % 2**times == 0 for side in self.step)

    def reach(self, side: int) -> bool:
        """Whether no side is less."""
        return min(self.least) >= side


# Numbers


def flush(network: nn.Module, sizes: Sizes) -> nn.Module:
    """w → 0 where |w| < 1e-30."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor[tensor.abs() < SUBNORMAL] = 0
    return network


def scale_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Batch norm as f·x + g: float64 [c] each."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    f = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    return f, norm.bias.double() - f * mean.double()


def convolution(like: nn.Conv2d, weight: Tensor, bias: Tensor | None, **other: Any) -> nn.Conv2d:
    """A convolution of these weights [o, i / groups, k, k]; kernel, stride and so on as `like` has them unless given."""
    groups = other.pop("groups", like.groups)
    choices = {"stride": like.stride, "padding": like.padding, "dilation": like.dilation, **other}
    conv = nn.Conv2d(
        weight.shape[1] * groups, len(weight), tuple(weight.shape[2:]), groups=groups, bias=bias is not None, **choices  # type: ignore[arg-type]
    )  # fmt: skip
    conv.weight = nn.Parameter(weight.detach().float().contiguous(), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().float().contiguous(), requires_grad=False)
    return conv


def depthwise(f: Tensor, g: Tensor | None) -> nn.Conv2d:
    """f·x + g, channel by channel."""
    return convolution(nn.Conv2d(1, 1, 1), f.view(-1, 1, 1, 1), g, groups=len(f))


def padded(values: Tensor, length: int) -> Tensor:
    """Zeros behind, up to `length` in the first dimension."""
    return F.pad(values, (0, 0) * (values.dim() - 1) + (0, length - len(values)))


def lanes(channels: int) -> int:
    """The next multiple of LANES."""
    return -(-channels // LANES) * LANES


def widened(conv: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    """The convolution, dense or depth-wise, with channels of zeros up to `inputs` and `outputs`."""
    weight = padded(conv.weight, outputs)
    if conv.groups == 1:
        weight = padded(weight.transpose(0, 1), inputs).transpose(0, 1)
    bias = None if conv.bias is None else padded(conv.bias, outputs)
    return convolution(conv, weight, bias, groups=1 if conv.groups == 1 else outputs)


# Norms and activations


class Slopes(nn.Module):
    """prelu(f·x + g), slope a, as relu((1−a)(f·x + g)) + a(f·x + g): two depth-wise 1×1, relu and sum parts of them.

    Where a > 1 the first counts negatively, by a third product. From `narrow` channels that lie in no lanes the 1×1 are dense.
    """

    def __init__(
        self, slope: Tensor, f: Tensor | None = None, g: Tensor | None = None, *, wide: int = 0, narrow: int = 0
    ):
        super().__init__()
        c = wide or len(slope)
        a = padded(slope.detach().double(), c)
        f = padded(torch.ones(len(slope)).double() if f is None else f, c)
        products = [((1 - a).abs() * f, None if g is None else (1 - a).abs() * padded(g, c)),
                    (a * f, None if g is None else a * padded(g, c))]  # fmt: skip
        if narrow:
            like = nn.Conv2d(1, 1, 1)
            self.bent, self.straight = (
                convolution(like, torch.diag(w)[:, :narrow, None, None], torch.zeros(c) if b is None else b)
                for w, b in products
            )
        else:
            self.bent, self.straight = (depthwise(w, b) for w, b in products)
        self.sign = depthwise(torch.sign(1 - a), None) if (a > 1).any() else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.sign(F.relu(self.bent(x))) + self.straight(x)
        return y


def activated(
    act: nn.Module, norm: tuple[Tensor, Tensor] | None = None, *, wide: int = 0, narrow: int = 0
) -> nn.Module:
    """An activation of f·x + g, `norm`, in `wide` channels; the other activations than PReLU leave zeros zeros too."""
    if isinstance(act, nn.PReLU):
        return Slopes(act.weight, *(norm or ()), wide=wide, narrow=narrow)
    if norm is None and not narrow:
        return act
    c = len(norm[0]) if norm else narrow
    f, g = norm or (torch.ones(c), torch.zeros(c))
    f, g = padded(f, wide or c), padded(g, wide or c)
    if narrow:
        return nn.Sequential(convolution(nn.Conv2d(1, 1, 1), torch.diag(f)[:, :narrow, None, None], g), act)
    return nn.Sequential(depthwise(f, g), act)


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Batch norm behind a convolution, in its weights and a bias."""
    f, g = scale_shift(norm)
    return convolution(conv, f.view(-1, 1, 1, 1) * conv.weight, g if conv.bias is None else f * conv.bias + g)


def fold_norms(network: nn.Module, sizes: Sizes) -> nn.Module:
    """Every batch norm into the convolution before it or the activation behind it; every PReLU as `Slopes`."""
    if isinstance(network, nn.PReLU):
        return activated(network)
    if isinstance(network, nn.BatchNorm2d):
        return depthwise(*scale_shift(network))
    steps = list(network) if isinstance(network, nn.Sequential) else []
    if len(steps) >= 2 and isinstance(steps[0], nn.Conv2d) and isinstance(steps[1], nn.BatchNorm2d):
        return nn.Sequential(folded(steps[0], steps[1]), *(fold_norms(step, sizes) for step in steps[2:]))
    if len(steps) == 2 and isinstance(steps[0], nn.BatchNorm2d):
        return activated(steps[1], scale_shift(steps[0]))
    for name, child in network.named_children():
        setattr(network, name, fold_norms(child, sizes))
    return network


# Pyramids


class FastPyramid(nn.Module):
    """A `Pyramid` without adaptive pooling, shuffle and concatenation, its channels padded with zeros to full lanes.

    Averaging and bilinear resizing commute with the norm behind them, as their weights sum to 1, so that it folds into each
    scale's 3×3. The grouped 3×3 over the joined scales is the sum of a depth-wise 3×3 of each. How a scale is seen: `Scale`.
    """

    def __init__(self, plain: Pyramid, sizes: Sizes):
        super().__init__()
        project, merge, parts = plain.project, plain.merge, len(plain.scales)
        c = len(project.conv.weight)  # type: ignore[union-attr, arg-type]
        wide = lanes(c)
        conv = folded(project.conv, project.bn)  # type: ignore[arg-type]
        self.project = nn.Sequential(widened(conv, conv.in_channels, wide), activated(project.act, wide=wide))  # type: ignore[arg-type]
        f, g = scale_shift(plain.join.bn)  # type: ignore[arg-type]
        merge_f, merge_g = scale_shift(merge.bn)  # type: ignore[arg-type]
        kernels = (merge_f.view(-1, 1, 1, 1) * merge.conv.weight).view(c, parts, 1, 3, 3)  # type: ignore[operator, union-attr]
        self.scales, self.merges = nn.ModuleList(), nn.ModuleList()
        for k, (scale, stage) in enumerate(zip(plain.scales, plain.stages, strict=True)):
            part = slice(k * c, (k + 1) * c)
            seen = convolution(stage, f[part].view(-1, 1, 1, 1) * stage.weight, g[part])  # type: ignore[arg-type, operator]
            act = plain.join.act
            if isinstance(act, nn.PReLU):
                slopes, act = act.weight[part], nn.PReLU(c)
                act.weight = nn.Parameter(slopes, requires_grad=False)
            self.scales.append(Scale(scale, seen, act, sizes))  # type: ignore[arg-type]
            bias = padded(merge_g, wide) if k == 0 else None
            self.merges.append(convolution(merge.conv, padded(kernels[:, k], wide), bias, groups=wide))  # type: ignore[arg-type]
        self.merged = activated(merge.act, wide=wide)  # type: ignore[arg-type]
        self.out = widened(plain.out, wide, plain.out.out_channels)
        self.end = fold_norms(plain.end, sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        parts = [merge(scale(x)) for scale, merge in zip(self.scales, self.merges, strict=True)]
        end: Tensor = self.end(self.out(self.merged(reduce(torch.add, parts))))
        return end


class Scale(nn.Module):
    """One scale of a pyramid and the activation behind it: [N, wide, H, W] → [N, wide, H, W].

    At 2 the 3×3 and the mean of 2×2 are one 4×4 of stride 2. At 3/2 the windows of the mean repeat every three pixels: 3×3 and
    mean are one 5×5 of stride 3 that gives the pixels of a 2×2 block, moved into place. At 1/2 the windows are 2×2. Where the
    size is odd, or below what a scaled map has at least, the means are products with averaging matrices.
    """

    def __init__(self, scale: tuple[int, int], seen: nn.Conv2d, act: nn.Module, sizes: Sizes):
        super().__init__()
        self.scale, self.channels = scale, len(seen.weight)
        wide = lanes(self.channels)
        self.way = "as it is" if scale == (1, 1) else "matrices"
        self.seen = widened(seen, wide, wide)
        self.act = activated(act, wide=wide)
        if scale == (2, 1) and sizes.reach(3):
            self.way, self.seen = "doubled", halving(self.seen)
        elif scale == (3, 2) and sizes.even and sizes.reach(4):
            self.way, self.seen = "one and a half", thirding(seen)
            self.act = activated(act, wide=wide, narrow=self.channels)
        elif scale == (1, 2) and sizes.even and sizes.reach(10):
            self.way = "halved"

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        y: Tensor = self.act(self._seen(x, h, w))
        return y

    def _seen(self, x: Tensor, h: int, w: int) -> Tensor:
        seen, (a, b) = self.seen, self.scale
        if self.way == "as it is":
            return seen(x)  # type: ignore[no-any-return]
        if self.way == "doubled":
            return seen(doubled(x))  # type: ignore[no-any-return]
        if self.way == "halved":
            return doubled(seen(F.avg_pool2d(x, 2)))
        if self.way == "one and a half":
            planes = resize(x[:, : self.channels], (3 * h // 2, 3 * w // 2))  # engines resize them outside of lanes
            return F.pixel_shuffle(seen(planes), 2)
        size = (scaled(h, a, b), scaled(w, a, b))
        return adaptive_pool(seen(resize(x, size)), (h, w)) if a > b else resize(seen(adaptive_pool(x, size)), (h, w))


def doubled(x: Tensor) -> Tensor:
    """Bilinear resize to twice the height and width, corners aligned; a graph states the factor and need not work out sizes."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


def means(weight: Tensor, y: int, x: int) -> Tensor:
    """[c, 1, 3, 3] → [c, 1, 5, 5]: the mean of the kernel at four neighbouring places, the first of them (y, x)."""
    places = [(y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)]
    return torch.stack([F.pad(weight, (j, 2 - j, i, 2 - i)) for i, j in places]).mean(0)


def halving(conv: nn.Conv2d) -> nn.Conv2d:
    """A depth-wise 3×3 and the mean of 2×2 behind it."""
    return convolution(conv, means(conv.weight, 0, 0)[..., :4, :4], conv.bias, stride=2)


def thirding(conv: nn.Conv2d) -> nn.Conv2d:
    """A depth-wise 3×3 and adaptive pooling from 3n to 2n pixels a side behind it: output 4p + 2y + x is pixel (y, x) of plane p.

    Of three pixels the first mean takes the first two, the second the last two. Dense: it starts from planes in no lanes.
    """
    c = len(conv.weight)
    weight = torch.zeros(c, 4, c, 5, 5)
    for k in range(4):
        weight[range(c), k, range(c)] = means(conv.weight, *divmod(k, 2)).detach()[:, 0]
    assert conv.bias is not None
    return convolution(conv, weight.view(4 * c, c, 5, 5), conv.bias.repeat_interleave(4), stride=3, padding=1, groups=1)


STRIDES = {"pyramid1": 16, "pyramid2": 8, "pyramid3": 4, "pyramid4": 2, "mix6": 64, "mix5": 32, "mix4": 16, "mix3": 8}
"""Where a pyramid stands in its network: name → 1 / size."""


def rebuild_pyramids(network: nn.Module, sizes: Sizes) -> nn.Module:
    """Every `Pyramid` as `FastPyramid`."""
    for name, child in network.named_children():
        if isinstance(child, Pyramid):
            setattr(network, name, FastPyramid(child, sizes.at(STRIDES[name])))
    return network


# Gates


class FastGate(nn.Module):
    """A `Gate` that weighs before its activation: w·prelu(z) = prelu(w·z), as w > 0. So z leaves its lanes, if ever, once.

    A grouped 3×3 is what `spread` or `gathered` make of it, where they can.
    """

    def __init__(self, plain: Gate):
        super().__init__()
        conv = folded(plain.expand.conv, plain.expand.bn)  # type: ignore[arg-type]
        i, o, g = conv.in_channels, conv.out_channels, conv.groups
        self.gate: nn.Module = plain.gate
        self.act: nn.Module = plain.expand.act  # type: ignore[assignment]
        self.early = isinstance(self.act, (nn.PReLU, nn.ReLU))  # the others bend elsewhere than at 0
        self.expand = spread(conv) if g == i < o else gathered(conv) if g == o < i else conv

    def forward(self, x: Tensor) -> Tensor:
        weight, z = torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))), self.expand(x)
        y: Tensor = self.act(weight * z) if self.early else weight * self.act(z)
        return y


class Spread(nn.Module):
    """Convolutions of the same map, joined."""

    def __init__(self, convs: list[nn.Conv2d]):
        super().__init__()
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x) for conv in self.convs], 1)


def places(conv: nn.Conv2d) -> Tensor:
    """Where the outputs of a depth-wise convolution of several a channel go: first all first ones, then all second ones."""
    return torch.arange(conv.out_channels).view(conv.groups, -1).T.flatten()


def spread(conv: nn.Conv2d) -> Spread:
    """Several outputs a channel as that many depth-wise convolutions, the outputs in `places`."""
    assert conv.bias is not None
    rows = places(conv).view(-1, conv.groups)
    return Spread([convolution(conv, conv.weight[k], conv.bias[k]) for k in rows])


def gathered(conv: nn.Conv2d) -> nn.Sequential:
    """Several inputs an output as a depth-wise convolution and the sums of its channels."""
    i, o = conv.in_channels, conv.out_channels
    each = convolution(conv, conv.weight.reshape(i, 1, *conv.kernel_size), None, groups=i)
    return nn.Sequential(each, convolution(nn.Conv2d(1, 1, 1), torch.ones(o, i // o, 1, 1), conv.bias, groups=o))


def weigh_first(network: nn.Module, sizes: Sizes) -> nn.Module:
    """Every `Gate` of `ESPNetv2` as `FastGate`; what it is added to, and reads the sum, in the order of its channels."""
    if isinstance(network, ESPNetv2):
        for k in (2, 3, 4):
            gate, join = getattr(network, f"gate{k}"), getattr(network, f"join{k}")
            before, behind = getattr(network, f"pyramid{k - 1}"), getattr(network, f"pyramid{k}")
            conv = gate.expand.conv
            if conv.groups == conv.in_channels < conv.out_channels:
                order = places(conv)
                for step in (gate.gate, gate.expand.act, join, before.out, before.end):
                    reorder(step, order)
                behind.project.conv.weight = nn.Parameter(behind.project.conv.weight[:, order], requires_grad=False)
            setattr(network, f"gate{k}", FastGate(gate))
    return network


def reorder(module: nn.Module, order: Tensor) -> None:
    """Give a convolution, norm or activation its output channels in another order."""
    for part in module.modules():
        for values in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if values.dim() and len(values) == len(order):
                values.data = values.data[order]


# Layout


def merge_groups(network: nn.Module, sizes: Sizes) -> nn.Module:
    """Grouped 1×1 convolutions in as many groups as fill lanes, zeros between what was apart: more products in fewer steps."""
    for name, child in network.named_children():
        merge_groups(child, sizes)
        if isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1) and 1 < child.groups < child.in_channels:
            i, o, g = child.in_channels, child.out_channels, child.groups
            full = (n for n in range(g, 0, -1) if g % n == 0 and i // n % LANES == o // n % LANES == 0)
            setattr(network, name, regrouped(child, next(full, 1)))
    return network


def regrouped(conv: nn.Conv2d, groups: int) -> nn.Conv2d:
    """The same convolution in fewer groups."""
    i, o, g = conv.in_channels, conv.out_channels, conv.groups
    weight = torch.zeros(o, i // groups, *conv.kernel_size)
    for k in range(g):
        rows, at = slice(k * o // g, (k + 1) * o // g), k % (g // groups) * (i // g)
        weight[rows, at : at + i // g] = conv.weight[rows].detach()
    return convolution(conv, weight, conv.bias, groups=groups)


class FastEncoder(nn.Module):
    """ESPNetv2's `Encoder` with the pooled picture in full lanes, all but three of zeros: a convolution pools it first."""

    def __init__(self, plain: Encoder):
        super().__init__()
        self.plain = plain
        ninth = torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 3, 3) / 9
        self.picture = convolution(nn.Conv2d(1, 1, 1), padded(ninth, LANES), None, stride=2, padding=1)
        for down in (module for name, module in plain.named_children() if name.startswith("down")):
            if down.reinforce is not None:
                inner, outer = down.reinforce  # type: ignore[misc]
                conv, conv2 = folded(inner.conv, inner.bn), folded(outer.conv, outer.bn)
                down.reinforce = nn.Sequential(
                    widened(conv, LANES, LANES), activated(inner.act, wide=LANES), widened(conv2, LANES, conv2.out_channels)
                )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        net = self.plain
        p2 = pool(self.picture(x))  # the picture at 1/4, 1/8, 1/16
        p3 = pool(p2)
        p4 = pool(p3)
        o1 = net.level1(x)
        o2 = net.down2(o1, p2)
        o3 = net.level3(net.down3(o2, p3))
        o4 = net.level4(net.down4(o3, p4))
        if net.levels == 4:
            return o1, o2, o3, o4
        p5 = pool(p4) if net.down5.reinforce is not None else None
        return o1, o2, o3, o4, net.level5(net.down5(o4, p5))


def widen_pictures(network: nn.Module, sizes: Sizes) -> nn.Module:
    """ESPNetv2's encoder as `FastEncoder`, where it takes the picture in again."""
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, Encoder) and encoder.reinforce:
        network.encoder = FastEncoder(encoder)
    return network


class FastESPNetv2(nn.Module):
    """`ESPNetv2` where every map is twice as large as the one below it."""

    def __init__(self, plain: ESPNetv2):
        super().__init__()
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        net = self.plain
        o1, o2, o3, o4 = net.encoder(x)
        y = net.pyramid1(o4)  # 1/16
        y = net.pyramid2(net.join2(net.gate2(o3) + doubled(y)))  # 1/8
        y = net.pyramid3(net.join3(net.gate3(o2) + doubled(y)))  # 1/4
        y = net.pyramid4(net.join4(net.gate4(o1) + doubled(y)))  # 1/2
        return doubled(y)


def double_maps(network: nn.Module, sizes: Sizes) -> nn.Module:
    """`ESPNetv2` as `FastESPNetv2`, where sides are multiples of 16."""
    return FastESPNetv2(network) if isinstance(network, ESPNetv2) and sizes.halve(4) else network


# For arithmetic in eight bits


class Shuffled(nn.Module):
    """A transposed convolution whose windows do not overlap, kernel k and stride k, as a 1×1 and a pixel shuffle: exactly the same
    products, by an operator that engines have in eight bits; each pixel of the k×k block has weights of its own step.
    """

    def __init__(self, plain: nn.ConvTranspose2d):
        super().__init__()
        i, o, k = plain.in_channels, plain.out_channels, plain.kernel_size[0]
        weight = plain.weight.permute(1, 2, 3, 0).reshape(o * k * k, i, 1, 1)
        bias = None if plain.bias is None else plain.bias.repeat_interleave(k * k)
        self.k, self.conv = k, convolution(nn.Conv2d(1, 1, 1), weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), self.k)


def shuffle_transposed(network: nn.Module, sizes: Sizes) -> nn.Module:
    """Every transposed convolution whose windows do not overlap as `Shuffled`."""
    for name, child in network.named_children():
        shuffle_transposed(child, sizes)
        if isinstance(child, nn.ConvTranspose2d) and apart(child):
            setattr(network, name, Shuffled(child))
    return network


def apart(conv: nn.ConvTranspose2d) -> bool:
    """Whether each output pixel comes of one input pixel."""
    k = conv.kernel_size[0]
    plain = (conv.padding, conv.output_padding, conv.dilation, conv.groups) == ((0, 0), (0, 0), (1, 1), 1)
    return plain and conv.kernel_size == conv.stride == (k, k)


QUANTISABLE = (shuffle_transposed,)
"""Rewrites that only arithmetic in eight bits wants; in float32 they are no faster."""

REWRITES = (flush, weigh_first, rebuild_pyramids, widen_pictures, fold_norms, merge_groups, double_maps)
"""In their order; each takes a network and what is known of its pictures' sizes, and gives the network."""


def rewrite(network: nn.Module, sizes: Any, without: Collection[str] = (), also: Sequence[Rewrite] = ()) -> nn.Module:
    """A rewritten copy of a network, in eval mode, for pictures of a header's `sizes`; the network stays as it is.

    `without`: names of rewrites to leave out, to see what each is worth. `also`: others to do behind them.
    """
    known, spec = Sizes.of(sizes), network.spec
    network = copy.deepcopy(network).eval()
    with torch.no_grad():
        for one in (*REWRITES, *also):
            if one.__name__ not in without:
                network = one(network, known)
        if "flush" not in without:
            flush(network, known)  # folding makes new ones
    network.spec = spec  # type: ignore[assignment]
    return network
