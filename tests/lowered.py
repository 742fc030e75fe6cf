"""An interpreter of the native engine's programs, read off native/include/espy_engine.h alone, in plain torch.

Slow, in float64, no tricks: what the engine's units are held against. Maps are [channels, height, width] by number.
"""

from math import prod

import torch
import torch.nn.functional as F

FORMAT, HEAD = 3, 3  # the integers before the units: the format, the precision, how many units there are
PRECISIONS = ("float32", "bfloat16")
KINDS = (
    "FIRST", "POOL", "CONV", "EESP", "DOWN", "ESP", "AFFINE", "RESIZE", "UP2", "MERGE", "PYRAMID", "SEGMENT", "SEGMENT2",
    "MEAN", "SCORES",
)  # fmt: skip
PICTURE, MASK, SCORES, PRECISION = "picture", "mask", "scores", "precision"
"""Among the maps: the picture, uint8 [height, width, 3] RGB; the mask, uint8 [height, width]; the logits it was made of, or the
scores of a program without a mask; and the precision."""


def units_of(program_units):
    """[(kind, its integers)] of a program's integers."""
    values = [int(value) for value in program_units]
    assert values[0] == FORMAT
    units, at = [], HEAD
    for _ in range(values[2]):
        kind, count = values[at : at + 2]
        units.append((KINDS[kind - 1], values[at + 2 : at + 2 + count]))
        at += 2 + count
    assert at == len(values)
    return units


def run_program(program_units, weights, picture):
    """(mask uint8 [height, width], logits float64 [classes, height, width]) of a picture, uint8 [height, width, 3].

    Of a program without a mask: (None, scores float64 [n]).
    """
    maps, at = {PICTURE: torch.as_tensor(picture), PRECISION: PRECISIONS[program_units[1]]}, 0
    for kind, ints in units_of(program_units):
        need = count_floats(kind, ints, maps)
        assert at + need <= len(weights)
        maps |= run_unit(kind, ints, weights[at : at + need], maps)
        at += need
    assert at == len(weights)
    return maps.get(MASK), maps[SCORES]


def count_floats(kind, ints, maps):
    """How many floats a unit names."""
    return sum(prod(shape) for shape in shapes_of(kind, ints, maps))


def run_unit(kind, ints, floats, maps):
    """What a unit writes, {number: map}, of the maps that it reads and its floats [n]."""
    parts, at = [], 0
    floats = torch.as_tensor(floats, dtype=torch.float64)
    for shape in shapes_of(kind, ints, maps):
        parts.append(floats[at : at + prod(shape)].reshape(shape))
        at += prod(shape)
    assert at == len(floats)
    written = UNITS[kind](ints, parts, maps)
    assert all(torch.isfinite(one).all() for one in written.values())
    return written


def shapes_of(kind, ints, maps):
    """The shapes of a unit's floats, in their order."""

    def channels(*numbers):
        return sum(maps[number].shape[0] for number in numbers)

    if kind == "FIRST":
        co = ints[2]
        return [(3,), (3,), (co, 3, 3, 3), (co,), (co,)]
    if kind == "CONV":
        (n, *inputs), (_, co, k, _, _, g) = ints[: 1 + ints[0]], ints[1 + ints[0] :]
        assert len(inputs) == n
        return [(co, channels(*inputs) // g, k, k), (co,), (co,)]
    if kind in ("EESP", "DOWN"):
        n, many, k = ints[2:5] if kind == "EESP" else ints[3:6]
        ci, o = channels(ints[0]), many * n
        shared = [(n, ci // many), (n,), (n,), (many, n, k, k), (o,), (o,), (o,), (o, n)]
        if kind == "EESP":
            return [*shared, (o,), (o,)]
        picture = [] if ints[1] == -1 else [(ci + o, 3)]
        return [*shared, *picture, (ci + o,), (ci + o,)]
    if kind == "ESP":
        ci = channels(*ints[1 : 1 + ints[0]])
        _, w, w1, many, k, _, _, _, kr, primary = ints[1 + ints[0] :]
        co = w1 + (many - 1) * w
        entry = [(w, ci, kr, kr)] + ([(w1, ci, kr, kr)] if primary else [])
        return [*entry, (w1, w1 if primary else w, k, k), *[(w, w, k, k)] * (many - 1), *[(co,)] * 5]
    if kind == "AFFINE":
        return [(channels(*ints[1 : 1 + ints[0]]),)] * 3
    if kind == "UP2":
        co = ints[3]
        return [(channels(ints[0]), co, 2, 2), (co,), (co,)]
    if kind == "MERGE":
        ci, (co, g, p) = channels(ints[0]), ints[3:]
        return [(co, ci // g, 3, 3), (co,), (co,), (co, ci), (co,), (co,), (co,), (p, co), (p,), (p,)]
    if kind == "PYRAMID":
        p, (co, m) = channels(ints[0]), ints[2:4]
        return [(m, p, 3, 3), (m * p,), (m * p,), (m * p,), (p, m, 3, 3), (p,), (p,), (co, p), (co,), (co,)]
    if kind == "SEGMENT2":
        return [(channels(ints[0]), ints[1], 2, 2)]
    return []  # POOL, RESIZE, SEGMENT, MEAN, SCORES


# Steps


def wide(v):
    """[c] beside [c, h, w]."""
    return v[:, None, None]


def prelu(x, slope):
    return x.clamp(min=0) + wide(slope) * x.clamp(max=0)


def conv(x, w, bias=None, stride=1, dilation=1, groups=1):
    """Zeros around, so that stride 1 keeps the size."""
    return F.conv2d(x[None], w, bias, stride, dilation * (w.shape[-1] // 2), dilation, groups)[0]


def near(x, maps):
    """What a convolution in the program's precision takes in place of a map or of weights."""
    return x.float().bfloat16().double() if maps.get(PRECISION) == "bfloat16" else x


def dense(maps, x, w, *args, **kwargs):
    return conv(near(x, maps), near(w, maps), *args, **kwargs)


def dense_one_by_one(maps, x, w, bias=None, groups=1):
    return dense(maps, x, w[:, :, None, None], bias, groups=groups)


def pool(x):
    """The mean of 3x3 at stride 2 as a convolution: zeros around count."""
    c = x.shape[0]
    return conv(x, x.new_full((c, 1, 3, 3), 1 / 9), stride=2, groups=c)


def bilinear(x, size, align=True):
    return F.interpolate(x[None], size=size, mode="bilinear", align_corners=align)[0]


def averaged(x, size):
    """Over the windows from the rounded down to the rounded up ends of equal shares."""
    return F.adaptive_avg_pool2d(x[None], size)[0]


def doubled(x, w, size):
    """Each pixel becomes 2x2; cut to the size."""
    return F.conv_transpose2d(x[None], w, stride=2)[0][:, : size[0], : size[1]]


def joined(ints, maps):
    """The inputs that stand first in a unit's integers as one map, and the integers behind them."""
    n = ints[0]
    return torch.cat([maps[number] for number in ints[1 : 1 + n]]), ints[1 + n :]


def size_of(x):
    return tuple(x.shape[-2:])


# Units


def first(ints, parts, maps):
    out, pooled, co, _ = ints
    factor, shift, w, bias, slope = parts
    assert len(w) == co
    x = maps[PICTURE].permute(2, 0, 1).double() * wide(factor) + wide(shift)
    written = {out: prelu(dense(maps, x, w, bias, stride=2), slope)}
    return written if pooled == -1 else {**written, pooled: pool(x)}


def pooling(ints, parts, maps):
    return {ints[1]: pool(maps[ints[0]])}


def convolution(ints, parts, maps):
    x, (out, _, _, dilation, stride, groups) = joined(ints, maps)
    w, bias, slope = parts
    return {out: prelu(dense(maps, x, w, bias, stride, dilation, groups), slope)}


def pyramid_of_eesp(maps, x, many, dilations, hff, parts, stride):
    """u of an EESP."""
    w, bias, slope, stages, scale, shift, end = parts
    r = prelu(dense_one_by_one(maps, x, w, bias, groups=many), slope)
    branches = []
    for d, stage in zip(dilations, stages, strict=True):
        branch = conv(r, stage[:, None], stride=stride, dilation=d, groups=len(stage))
        branches.append(branch + branches[-1] if hff and branches else branch)
    return prelu(wide(scale) * torch.cat(branches) + wide(shift), end)


def eesp(ints, parts, maps):
    number, out, _, many, _, *rest = ints
    dilations, (hff, residual, _) = rest[:many], rest[many:]
    x = maps[number]
    u = pyramid_of_eesp(maps, x, many, dilations, hff, parts[:7], stride=1)
    w, bias, slope = parts[7:]
    y = dense_one_by_one(maps, u, w, bias, groups=many)
    return {out: prelu(y + x if residual else y, slope)}


def down(ints, parts, maps):
    number, picture, out, _, many, _, *rest = ints
    dilations, (hff, _) = rest[:many], rest[many:]
    x = maps[number]
    u = pyramid_of_eesp(maps, x, many, dilations, hff, parts[:7], stride=2)
    y = torch.cat([pool(x), dense_one_by_one(maps, u, parts[7], groups=many)])
    if picture != -1:
        p, w = maps[picture], parts[8]
        y = y + torch.cat([conv(p, w[: len(x), :, None, None]), dense_one_by_one(maps, p, w[len(x) :])])
    bias, slope = parts[-2:]
    return {out: prelu(y + wide(bias), slope)}


def esp(ints, parts, maps):
    x, (out, _, _, many, _, hff, residual, stride, _, primary) = joined(ints, maps)
    r = dense(maps, x, parts[0], stride=stride)
    p = dense(maps, x, parts[1], stride=stride) if primary else r
    stages = parts[1 + primary : 1 + primary + many]
    branches = torch.cat([dense(maps, r if j else p, w, dilation=2**j) for j, w in enumerate(stages)])
    bias, slope, scale, shift, end = parts[1 + primary + many :]
    t = list(prelu(branches + wide(bias), slope).split([len(w) for w in stages]))
    for j in range(1, many):
        if hff and j + 1 >= hff:
            t[j] = t[j] + t[j - 1]
    y = torch.cat(t)
    return {out: prelu(wide(scale) * (y + x if residual else y) + wide(shift), end)}


def affine(ints, parts, maps):
    x, (out,) = joined(ints, maps)
    scale, shift, slope = parts
    return {out: prelu(wide(scale) * x + wide(shift), slope)}


def resizing(ints, parts, maps):
    number, like, out = ints
    return {out: bilinear(maps[number], size_of(maps[like]))}


def up2(ints, parts, maps):
    number, like, out, _ = ints
    w, bias, slope = parts
    y = doubled(near(maps[number], maps), near(w, maps), size_of(maps[like]))
    return {out: prelu(y + wide(bias), slope)}


def merge(ints, parts, maps):
    number, coarse, out, _, groups, _ = ints
    w, bias, slope, gate, scale, shift, between, project, at, end = parts
    skip = maps[number]
    weight = torch.sigmoid(gate @ skip.mean((1, 2)))
    e = prelu(conv(skip, w, bias, groups=groups), slope) * wide(weight) + bilinear(maps[coarse], size_of(skip))
    return {out: prelu(dense_one_by_one(maps, prelu(wide(scale) * e + wide(shift), between), project, at), end)}


def pyramid(ints, parts, maps):
    number, out, _, m, *sides = ints
    stages, scale, shift, slope, w, bias, middle, project, at, end = parts
    x = maps[number]
    (p, *size), seen = x.shape, []
    for a, b, stage in zip(sides[::2], sides[1::2], stages, strict=True):
        other = [max(5, -(-side * a // b)) for side in size]
        there, back = (averaged, bilinear) if a < b else (bilinear, averaged) if a > b else (bilinear, bilinear)
        if a == b:
            other = size  # a map as it is, however small
        seen.append(back(conv(there(x, other), stage[:, None], groups=p), size))
    y = prelu(wide(scale) * torch.cat(seen) + wide(shift), slope)
    y = y.reshape(m, p, *size).transpose(0, 1).reshape(p * m, *size)
    return {out: prelu(dense_one_by_one(maps, prelu(conv(y, w, bias, groups=p), middle), project, at), end)}


def decided(logits):
    return {SCORES: logits, MASK: logits.argmax(0).to(torch.uint8)}


def segment(ints, parts, maps):
    return decided(bilinear(maps[ints[0]], tuple(maps[PICTURE].shape[:2]), align=bool(ints[1])))


def segment2(ints, parts, maps):
    return decided(doubled(near(maps[ints[0]], maps), near(parts[0], maps), tuple(maps[PICTURE].shape[:2])))


def mean(ints, parts, maps):
    return {ints[1]: maps[ints[0]].mean((1, 2), keepdim=True)}


def scores(ints, parts, maps):
    return {SCORES: torch.cat([maps[number].permute(1, 2, 0).reshape(-1) for number in ints[1 : 1 + ints[0]]])}


UNITS = dict(
    zip(
        KINDS,
        (
            first, pooling, convolution, eesp, down, esp, affine, resizing, up2, merge, pyramid, segment, segment2, mean,
            scores,
        ),
        strict=True,
    )
)  # fmt: skip
