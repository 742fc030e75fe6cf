"""From a network and its weights to what the native engine takes: units as integers, what they name as floats.

The form of both is that of native/include/espy_engine.h; maps, names and fractions of the picture's size are those of `espy.nn`.
Batch norms are folded, in float64, into the convolution before them or into a factor and a shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

import numpy as np

from espy.errors import EngineError, ModelError
from espy.header import MASK_CLASSES, Preprocess
from espy.priors import PER_CELL
from espy.spec import (
    DETECTOR_SCALES,
    DETECTOR_WIDTHS,
    DOWN_LIMITS,
    READINGS,
    REPEAT_LIMITS,
    REPEATS,
    SCALES,
    V1_EPS,
    V2_EPS,
    ESPNet,
    ESPNetv2,
    ESPNetv2Classifier,
    ESPNetv2Detector,
    ESPNetv2First,
    Spec,
    eesp_dilations,
    eesp_split,
    encoder_widths,
    esp_split,
)

FORMAT = 3
PRECISIONS = ("float32", "bfloat16")
FIRST, POOL, CONV, EESP, DOWN, ESP, AFFINE, RESIZE, UP2, MERGE, PYRAMID, SEGMENT, SEGMENT2, MEAN, SCORES = range(1, 16)
NONE = -1  # in place of a map
LEAST = (
    1e-30  # a smaller weight is 0: it changes no result, and processors take a hundred times as long for subnormal ones
)


@dataclass(frozen=True)
class Program:
    """A network as the native engine takes it: `units` int64 [n], `weights` float32 [m].

    Its scores are logits: of a segmentation [classes, height, width], of a classification [classes]; of a detection, for each
    prior, the offsets of its box (4), then the logits of the background and of each kind of thing.
    """

    units: np.ndarray
    weights: np.ndarray


class Conv(NamedTuple):
    """A convolution and what follows it: PReLU(w * x + bias)."""

    w: np.ndarray
    bias: np.ndarray
    slope: np.ndarray


class Norm(NamedTuple):
    """A batch norm and what follows it: PReLU(scale · x + shift)."""

    scale: np.ndarray
    shift: np.ndarray
    slope: np.ndarray


def lower(spec: Spec, arrays: dict[str, np.ndarray], preprocess: Preprocess, precision: str = "float32") -> Program:
    """The program of a network, its weights by our names, for pictures that are prepared as `preprocess` says.

    Raises EngineError for what the engine does not run, ModelError where the weights do not belong to the network.
    """
    if spec.activation == "silu":
        raise EngineError("engine native has no activation silu: take engine torch or onnxruntime")
    if spec.task == "segment" and spec.classes > MASK_CLASSES:
        raise EngineError(f"a mask holds at most {MASK_CLASSES} classes, not {spec.classes}")
    weights, units = Weights(spec, arrays, turned=preprocess.order == "BGR"), Units()
    with np.errstate(all="ignore"):  # what is not finite is refused at the end
        match spec:
            case ESPNet():
                _ESPNet(spec, weights, units).forward(preprocess)
            case ESPNetv2():
                _ESPNetv2(spec, weights, units).forward(preprocess)
            case ESPNetv2First():
                _ESPNetv2First(spec, weights, units).forward(preprocess)
            case ESPNetv2Classifier():
                _Classifier(spec, weights, units).forward(preprocess)
            case ESPNetv2Detector():
                _Detector(spec, weights, units).forward(preprocess)
        weights.all_taken()
        return Program(units.integers(precision), units.floats())


# Weights


class Weights:
    """The arrays of a network, each taken once, by its shape, in float64; modules as `espy.nn.units` names them.

    `turned`: for a network that wants BGR, the same one that takes RGB. Wherever it reads the picture or maps that hold it, in
    the last three channels, these three are exchanged.
    """

    def __init__(self, spec: Spec, arrays: dict[str, np.ndarray], *, turned: bool) -> None:
        self._left = dict(arrays)
        self._eps = V1_EPS if isinstance(spec, ESPNet) else V2_EPS
        self._activation = spec.activation
        self._turned = tuple(reading_the_picture(spec)) if turned else ()

    def take(self, name: str, *shape: int) -> np.ndarray:
        array = self._left.pop(name, None)
        if array is None or array.shape != shape:
            what = "missing" if array is None else "of another shape"
            raise ModelError(f"{name} is {what}: the weights do not belong to the network of the header")
        if name.startswith(self._turned):
            axis = min(1, array.ndim - 1)  # a convolution's inputs, a norm's channels
            c = shape[axis]
            array = array.take([*range(c - 3), c - 1, c - 2, c - 3], axis)
        return array.astype(np.float64)

    def all_taken(self) -> None:
        """Raises ModelError for an array that no unit names."""
        for name in self._left:
            raise ModelError(f"{name} is strange: the weights do not belong to the network of the header")

    def bn(self, name: str, c: int) -> Norm:
        weight, bias, mean, var = (
            self.take(f"{name}.{part}", c) for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(var + self._eps)
        return Norm(scale, bias - mean * scale, np.ones(c))

    def act(self, name: str, c: int, activation: str | None = None) -> np.ndarray:
        """The slopes of PReLU, 0 for ReLU, which has no weights."""
        return self.take(f"{name}.weight", c) if (activation or self._activation) == "prelu" else np.zeros(c)

    def ba(self, name: str, c: int) -> Norm:
        return self.bn(f"{name}.bn", c)._replace(slope=self.act(f"{name}.act", c))

    def conv(self, name: str, i: int, o: int, k: int, groups: int = 1, *, bias: bool = False) -> Conv:
        weight = self.take(f"{name}.weight", o, i // groups, k, k)
        return Conv(weight, self.take(f"{name}.bias", o) if bias else np.zeros(o), np.ones(o))

    def linear(self, name: str, i: int, o: int) -> Conv:
        """On maps of one pixel."""
        return Conv(self.take(f"{name}.weight", o, i)[:, :, None, None], self.take(f"{name}.bias", o), np.ones(o))

    def cb(self, name: str, i: int, o: int, k: int, groups: int = 1) -> Conv:
        return folded(self.conv(f"{name}.conv", i, o, k, groups), self.bn(f"{name}.bn", o))

    def cba(self, name: str, i: int, o: int, k: int, groups: int = 1, activation: str | None = None) -> Conv:
        return self.cb(name, i, o, k, groups)._replace(slope=self.act(f"{name}.act", o, activation))

    def deconv(self, name: str, i: int, o: int) -> Conv:
        return Conv(self.take(f"{name}.weight", i, o, 2, 2), np.zeros(o), np.ones(o))


def identity(c: int) -> Norm:
    """What leaves c channels as they are."""
    return Norm(np.ones(c), np.zeros(c), np.ones(c))


def folded(conv: Conv, norm: Norm, axis: int = 0) -> Conv:
    """A convolution without activation and the norm behind it, as one; `axis` of w is the outputs'."""
    along = [1] * conv.w.ndim
    along[axis] = -1
    return Conv(conv.w * norm.scale.reshape(along), conv.bias * norm.scale + norm.shift, norm.slope)


def reading_the_picture(spec: Spec) -> list[str]:
    """How the names of weights begin that read the picture, or maps whose last three channels are the picture's."""
    if not isinstance(spec, ESPNet):
        return ["encoder.level1.conv.", *(f"encoder.down{level}.reinforce.0.conv." for level in (2, 3, 4, 5))]
    at = "encoder." if spec.variant == "full" else ""
    names = [f"{at}stem.conv."]
    if spec.reinforced:
        names += [f"{at}join{level}." for level in (1, 2)]
        names += [f"{at}down{level}.{part}." for level in (2, 3) for part in ("reduce", "primary")]
        names += ["project2."] + (["refine.conv."] if spec.skip1 == "cat1" else [])
    return names


# Units


class Units:
    """Numbers maps and appends units, a method a kind; `channels` of the maps by number."""

    def __init__(self) -> None:
        self.channels: list[int] = []
        self._units: list[tuple[int, list[int]]] = []
        self._floats: list[np.ndarray] = []
        self._made: dict[int, list[int]] = {}  # map: the integers of the unit that last wrote it

    def integers(self, precision: str) -> np.ndarray:
        flat = [FORMAT, PRECISIONS.index(precision), len(self._units)]
        for kind, integers in self._units:
            flat += [kind, len(integers), *integers]
        return np.array(flat, np.int64)

    def floats(self) -> np.ndarray:
        """Raises ModelError where one is not finite."""
        weights = np.concatenate([array.ravel() for array in self._floats]).astype(np.float32)
        if not np.isfinite(weights).all():
            raise ModelError("weights that are not finite numbers: the file is damaged, or its training failed")
        weights[np.abs(weights) < LEAST] = 0
        return weights

    def _new(self, channels: int) -> int:
        self.channels.append(channels)
        return len(self.channels) - 1

    def _add(self, kind: int, integers: list[int], *floats: np.ndarray, out: int | None = None) -> None:
        self._units.append((kind, integers))
        self._floats += floats
        if out is not None:
            self._made[out] = integers

    def width(self, inputs: Sequence[int]) -> int:
        """The channels of several maps together."""
        return sum(self.channels[x] for x in inputs)

    def first(self, conv: Conv, preprocess: Preprocess, *, pooled: bool) -> tuple[int, int]:
        """The first convolution at 1/2 and, where `pooled`, the picture beside it."""
        std, mean = np.array(preprocess.std), np.array(preprocess.mean)
        rgb = slice(None, None, -1 if preprocess.order == "BGR" else 1)
        out, half = self._new(len(conv.w)), self._new(3) if pooled else NONE
        self._add(FIRST, [out, half, len(conv.w), 0], (preprocess.scale / std)[rgb], (-mean / std)[rgb], *conv, out=out)
        return out, half

    def pool(self, x: int) -> int:
        out = self._new(self.channels[x])
        self._add(POOL, [x, out])
        return out

    def conv(self, inputs: Sequence[int], conv: Conv, *, stride: int = 1) -> int:
        """Without dilation; the groups follow from the widths."""
        o, each, k, _ = conv.w.shape
        out = self._new(o)
        self._add(CONV, [len(inputs), *inputs, out, o, k, 1, stride, self.width(inputs) // each], *conv)
        return out

    def eesp(
        self, x: int, reduce: Conv, dilations: Sequence[int], branches: np.ndarray, fuse: Norm, expand: Conv, *, hff: bool,
        residual: bool,
    ) -> int:  # fmt: skip
        """Writes over its input where it can: what is repeated at one width is read by the next repetition alone."""
        n, o, k = len(reduce.w), len(expand.w), branches.shape[-1]
        out = x if self.channels[x] == o else self._new(o)
        integers = [x, out, n, len(dilations), k, *dilations, int(hff), int(residual), 0]
        self._add(EESP, integers, *reduce, branches, *fuse, *expand, out=out)
        return out

    def down(
        self, x: int, picture: int, reduce: Conv, dilations: Sequence[int], branches: np.ndarray, fuse: Norm, expand: np.ndarray,
        end: Conv, *, hff: bool,
    ) -> int:  # fmt: skip
        """`end`: the picture's projection, the joined bias, the last slope."""
        n, k = len(reduce.w), branches.shape[-1]
        out = self._new(len(end.bias))
        integers = [x, picture, out, n, len(dilations), k, *dilations, int(hff), 0]
        self._add(DOWN, integers, *reduce, branches, *fuse, expand, *end, out=out)
        return out

    def esp(
        self, inputs: Sequence[int], reduce: np.ndarray, primary: np.ndarray | None, branches: Sequence[Conv], end: Norm, *,
        hff: int, residual: bool, stride: int,
    ) -> int:  # fmt: skip
        out = self._new(len(end.scale))
        first, k = branches[0].w.shape[0], branches[0].w.shape[-1]
        integers = [
            len(inputs), *inputs, out, len(reduce), first, len(branches), k, hff, int(residual), stride, reduce.shape[-1],
            int(primary is not None),
        ]  # fmt: skip
        entry = [reduce] if primary is None else [reduce, primary]
        ws, biases, slopes = zip(*branches, strict=True)
        self._add(ESP, integers, *entry, *ws, *biases, *slopes, *end)
        return out

    def affine(self, inputs: Sequence[int], norm: Norm) -> int:
        out = self._new(self.width(inputs))
        self._add(AFFINE, [len(inputs), *inputs, out], *norm)
        return out

    def join(self, inputs: Sequence[int]) -> int:
        """The maps as one."""
        return self.affine(inputs, identity(self.width(inputs)))

    def resize(self, x: int, like: int) -> int:
        out = self._new(self.channels[x])
        self._add(RESIZE, [x, like, out])
        return out

    def up2(self, x: int, like: int, deconv: Conv) -> int:
        out = self._new(deconv.w.shape[1])
        self._add(UP2, [x, like, out, deconv.w.shape[1]], *deconv)
        return out

    def merge(self, skip: int, coarse: int, expand: Conv, gate: np.ndarray, join: Norm, project: Conv) -> int:
        self._made[skip][-1] = 1  # `sums`, of every kind that makes one the last
        out = self._new(len(project.w))
        o, each = expand.w.shape[:2]
        groups = self.channels[skip] // each
        self._add(MERGE, [skip, coarse, out, o, groups, len(project.w)], *expand, gate, *join, *project)
        return out

    def pyramid(
        self, x: int, scales: Sequence[tuple[int, int]], stages: np.ndarray, join: Norm, merge: Conv, end: Conv
    ) -> int:
        out = self._new(len(end.w))
        sizes = [side for scale in scales for side in scale]
        self._add(PYRAMID, [x, out, len(end.w), len(scales), *sizes], stages, *join, *merge, *end)
        return out

    def segment(self, x: int, *, align: bool) -> None:
        self._add(SEGMENT, [x, int(align)])

    def segment2(self, x: int, w: np.ndarray) -> None:
        self._add(SEGMENT2, [x, w.shape[1]], w)

    def mean(self, x: int) -> int:
        out = self._new(self.channels[x])
        self._add(MEAN, [x, out])
        return out

    def scores(self, inputs: Sequence[int]) -> None:
        self._add(SCORES, [len(inputs), *inputs])


# ESPNetv2


@dataclass(frozen=True)
class _Pyramids:
    """What the networks on this encoder share: it, its units, and the pyramids of decoders."""

    spec: ESPNetv2 | ESPNetv2First | ESPNetv2Classifier | ESPNetv2Detector
    w: Weights
    u: Units

    def encoder(self, preprocess: Preprocess) -> tuple[int, int, int, int, int]:
        """o₁ to o₄ at 1/2 to 1/16, and the picture at 1/16, where it is fed in."""
        u, reinforced = self.u, self.spec.reinforce
        c1, c2, c3, c4, *_ = encoder_widths(self.spec.width)
        o1, half = u.first(self.w.cba("encoder.level1", 3, c1, 3), preprocess, pooled=reinforced)  # 1/2
        p2 = u.pool(half) if reinforced else NONE  # the picture at 1/4, 1/8, 1/16
        p3 = u.pool(p2) if reinforced else NONE
        p4 = u.pool(p3) if reinforced else NONE
        o2 = self.down(o1, p2, 2, c2)  # 1/4
        o3 = self.repeated(self.down(o2, p3, 3, c3), 3)  # 1/8
        o4 = self.repeated(self.down(o3, p4, 4, c4), 4)  # 1/16
        return o1, o2, o3, o4, p4

    def level5(self, o4: int, picture: int) -> int:
        """o₅ at 1/32; `picture` at 1/32, or none."""
        w, (*_, c5, c6) = self.w, encoder_widths(self.spec.width)
        x = self.repeated(self.down(o4, picture, 5, c5), 5)
        for number, o, k, groups in ((REPEATS[3], c5, 3, c5), (REPEATS[3] + 1, c6, 1, 4)):
            x = self.u.conv([x], w.cba(f"encoder.level5.{number}", c5, o, k, groups))
        return x

    def repeated(self, x: int, level: int) -> int:
        for number in range(REPEATS[level - 2]):
            x = self.eesp(x, f"encoder.level{level}.{number}", self.u.channels[x], REPEAT_LIMITS[level - 2])
        return x

    def eesp(self, x: int, at: str, o: int, limit: int) -> int:
        i = self.u.channels[x]
        reduce, dilations, stages, fuse, expand = self.parts(at, i, o, limit)
        expand = expand._replace(slope=self.w.act(f"{at}.act", o))
        residual = self.spec.residual and i == o
        return self.u.eesp(x, reduce, dilations, stages, fuse, expand, hff=self.spec.hff, residual=residual)

    def parts(self, at: str, i: int, o: int, limit: int) -> tuple[Conv, tuple[int, ...], np.ndarray, Norm, Conv]:
        """Of an EESP: reduction, dilations, depth-wise branches, the norm behind them, expansion without activation."""
        w, branches, k = self.w, self.spec.branches, self.spec.kernel
        n, reading = eesp_split(i, o, branches), READINGS[self.spec.arrangement]
        reduce = (w.conv if reading.bare else w.cba)(f"{at}.reduce", i, n, 1, branches)
        stages = np.stack([w.take(f"{at}.branches.{j}.weight", n, 1, k, k) for j in range(branches)])
        fuse = (w.ba if reading.fuse_act else w.bn)(f"{at}.fuse", o)
        expand = (w.conv if reading.bare else w.cb)(f"{at}.expand", o, o, 1, branches)
        return reduce, eesp_dilations(branches, limit, k), stages, fuse, expand

    def down(self, x: int, picture: int, level: int, o: int) -> int:
        w, at, i = self.w, f"encoder.down{level}", self.u.channels[x]
        reduce, dilations, stages, fuse, expand = self.parts(f"{at}.eesp", i, o - i, DOWN_LIMITS[level - 2])
        bias = np.concatenate([np.zeros(i), expand.bias])  # of the pooled input, of the EESP beside it
        project = np.empty(0)
        if picture != NONE:
            style = READINGS[self.spec.arrangement].reinforce_act
            picture = self.u.conv([picture], w.cba(f"{at}.reinforce.0", 3, 3, 3, activation=style))
            project, outer, _ = w.cb(f"{at}.reinforce.1", 3, o, 1)
            bias = bias + outer
        end = Conv(project, bias, w.act(f"{at}.act", o))
        return self.u.down(x, picture, reduce, dilations, stages, fuse, expand.w, end, hff=self.spec.hff)

    def pyramid(
        self, at: str, x: int, o: int, scales: Sequence[tuple[int, int]] = SCALES, *, last: bool = False
    ) -> int:
        """Behind its projection."""
        w, p, m = self.w, self.u.channels[x], len(scales)
        stages = np.stack([w.take(f"{at}.stages.{j}.weight", p, 1, 3, 3) for j in range(m)])
        join, merge = w.ba(f"{at}.join", m * p), w.cba(f"{at}.merge", m * p, p, 3, p)
        out = w.conv(f"{at}.out", p, o, 1, bias=last)
        return self.u.pyramid(x, scales, stages, join, merge, out if last else folded(out, w.ba(f"{at}.end", o)))


@dataclass(frozen=True)
class _ESPNetv2(_Pyramids):
    spec: ESPNetv2

    def forward(self, preprocess: Preprocess) -> None:
        o1, o2, o3, o4, _ = self.encoder(preprocess)
        d1, d2, d3 = 4 * self.spec.base, 3 * self.spec.base, 2 * self.spec.base
        y = self.u.conv([o4], self.projection(1, self.u.channels[o4]))
        y = self.pyramid("pyramid1", y, d1)  # 1/16
        y = self.pyramid("pyramid2", self.merge(2, o3, y), d2)  # 1/8
        y = self.pyramid("pyramid3", self.merge(3, o2, y), d3)  # 1/4
        y = self.pyramid("pyramid4", self.merge(4, o1, y), self.spec.classes, last=True)  # 1/2
        self.u.segment(y, align=True)

    def projection(self, number: int, i: int) -> Conv:
        return self.w.cba(f"pyramid{number}.project", i, self.spec.pyramid_width, 1)

    def merge(self, number: int, skip: int, coarse: int) -> int:
        """The gated skip, what is coarser added to it, and the projection of the pyramid that follows."""
        w, i, o = self.w, self.u.channels[skip], self.u.channels[coarse]
        expand = w.cba(f"gate{number}.expand", i, o, 3, gcd(i, o))
        gate = w.take(f"gate{number}.gate.weight", o, i, 1, 1)
        return self.u.merge(skip, coarse, expand, gate, w.ba(f"join{number}", o), self.projection(number, o))


@dataclass(frozen=True)
class _ESPNetv2First(_Pyramids):
    spec: ESPNetv2First

    def forward(self, preprocess: Preprocess) -> None:
        u, w, c = self.u, self.w, self.spec.classes
        o1, o2, o3, o4, _ = self.encoder(preprocess)
        c1, c2, c3, c4 = (u.channels[o] for o in (o1, o2, o3, o4))
        r4 = u.conv([o4], w.cba("reduce4", c4, c3, 1))
        m = u.join([o3, u.resize(r4, o3)])  # 1/8
        v = self.image_pyramid(self.eesp(m, "eesp", c3, limit=7))
        q3 = u.conv([v], folded(w.conv("classify3", c3, c, 1), w.ba("join3", c)))
        q2 = u.conv([o2, u.resize(q3, o2)], w.cba("classify2", c2 + c, c, 1))  # 1/4
        q1 = u.conv([o1, u.resize(q2, o1)], w.conv("classify1", c1 + c, c, 1))  # 1/2
        u.segment(q1, align=True)

    def image_pyramid(self, v: int, steps: int = 4) -> int:
        u, w, c = self.u, self.w, self.u.channels[v]
        parts, f = [v], v
        for number in range(steps):
            f = u.pool(f)
            parts.append(u.resize(u.conv([f], w.conv(f"pyramid.stages.{number}", c, c, 3, c)), v))
        return u.conv(parts, w.cba("pyramid.project", c * (steps + 1), c, 1))


@dataclass(frozen=True)
class _Classifier(_Pyramids):
    spec: ESPNetv2Classifier

    def forward(self, preprocess: Preprocess) -> None:
        *_, o4, _ = self.encoder(preprocess)
        mean = self.u.mean(self.level5(o4, NONE))
        self.u.scores([self.u.conv([mean], self.w.linear("classifier", self.u.channels[mean], self.spec.classes))])


@dataclass(frozen=True)
class _Detector(_Pyramids):
    spec: ESPNetv2Detector

    def forward(self, preprocess: Preprocess) -> None:
        u, w = self.u, self.w
        c6, c7, c8 = DETECTOR_WIDTHS
        _, _, f3, f4, picture = self.encoder(preprocess)  # 1/8, 1/16
        f5 = self.level5(f4, picture if picture == NONE else u.pool(picture))  # 1/32
        f6 = self.extra("extra6", f5, c6)  # 1/64
        f7 = self.extra("extra7", f6, c7)  # 1/128
        f8 = u.conv([u.mean(f7)], w.conv("extra8.0", c7, c8, 1)._replace(slope=np.zeros(c8)))
        maps = [f7, f8]
        for number, f in ((6, f6), (5, f5), (4, f4), (3, f3)):
            maps.insert(0, self.mix(f"mix{number}", maps[0], f, DETECTOR_SCALES[: 8 - number]))
        u.scores([u.conv([x], self.head(f"heads.{number}", u.channels[x])) for number, x in enumerate(maps)])

    def extra(self, at: str, x: int, o: int) -> int:
        i = self.u.channels[x]
        x = self.u.conv([x], self.w.cba(f"{at}.0", i, i, 3, i), stride=2)
        return self.u.conv([x], self.w.cba(f"{at}.1", i, o, 1))

    def mix(self, at: str, coarse: int, x: int, scales: Sequence[tuple[int, int]]) -> int:
        """The projection of the resized map beside x, each its part: a resize of few channels is that of many, projected."""
        u, c, o = self.u, self.u.channels[coarse], self.u.channels[x]
        p = o // 5
        w, bias, slope = self.w.cba(f"{at}.project", c + o, p, 1)
        part = u.resize(u.conv([coarse], Conv(w[:, :c], np.zeros(p), np.ones(p))), x)
        joined = np.concatenate([np.eye(p)[:, :, None, None], w[:, c:]], 1)
        return self.pyramid(at, u.conv([part, x], Conv(joined, bias, slope)), o, scales)

    def head(self, at: str, i: int) -> Conv:
        """What a cell says of each of its priors: box, then classes."""
        parts = [
            self.w.conv(f"{at}.{name}", i, PER_CELL * each, 1, bias=True)
            for name, each in (("box", 4), ("score", 1 + self.spec.classes))
        ]
        w, bias, slope = (
            np.concatenate([array.reshape(PER_CELL, -1, *array.shape[1:]) for array in arrays], 1)
            for arrays in zip(*parts, strict=True)
        )
        return Conv(w.reshape(-1, i, 1, 1), bias.ravel(), slope.ravel())


# ESPNet


@dataclass(frozen=True)
class _ESPNet:
    spec: ESPNet
    w: Weights
    u: Units

    def forward(self, preprocess: Preprocess) -> None:
        spec, u, w, c = self.spec, self.u, self.w, self.spec.classes
        if spec.variant != "full":
            *_, z3 = self.levels("", preprocess)
            logits = u.conv([z3], w.conv("classifier", u.channels[z3], c, 1))
            u.segment(logits, align=spec.align_corners)
            return
        e0, z1, z2, z3 = self.levels("encoder.", preprocess)
        skip = e0 if spec.skip1 == "stem" else z1
        c3 = u.conv([z3], folded(w.conv("encoder.classifier", u.channels[z3], c, 1), w.bn("norm3", c)))  # 1/8
        p = spec.projection or c
        fuse = w.ba("fuse.0", p + c)  # of b and a as one; each is made with its part
        of_b, of_a = Norm(*(part[:p] for part in fuse)), Norm(*(part[p:] for part in fuse))
        a = u.up2(c3, z2, folded(w.deconv("up3", c, c), of_a, axis=1))  # 1/4
        b = u.conv([z2], folded(w.conv("project2", u.channels[z2], p, 1), of_b))
        f = self.esp([b, a], "fuse.1", c, branches=min(spec.branches, c))
        g = u.up2(f, skip, folded(w.deconv("up2", c, c), w.ba("join_up2", c), axis=1))  # 1/2
        h = u.conv([g, skip], w.cba("refine", c + u.channels[skip], c, 3))
        u.segment2(h, w.deconv("up1", c, c).w)  # 1/1

    def levels(self, at: str, preprocess: Preprocess) -> tuple[int, int, int, int]:
        """(e₀, z₁) at 1/2, z₂ at 1/4, z₃ at 1/8."""
        spec, u, w = self.spec, self.u, self.w
        w1, w2, w3 = spec.widths
        e0, half = u.first(w.cba(f"{at}stem", 3, w1, 3), preprocess, pooled=spec.reinforced)  # 1/2
        z1 = self.join([e0, half], f"{at}join1") if spec.reinforced else e0
        d2 = self.esp([z1], f"{at}down2", w2, stride=2)  # 1/4
        y2 = self.repeated(d2, f"{at}level2", spec.alpha2)
        quarter = [u.pool(half)] if spec.reinforced else []
        z2 = self.join([y2, d2, *quarter], f"{at}join2") if spec.shares else y2
        d3 = self.esp([z2], f"{at}down3", w3, stride=2)  # 1/8
        y3 = self.repeated(d3, f"{at}level3", spec.alpha3)
        z3 = self.join([d3, y3], f"{at}join3") if spec.shares else y3
        return e0, z1, z2, z3

    def join(self, parts: list[int], at: str) -> int:
        return self.u.affine(parts, self.w.ba(at, self.u.width(parts)))

    def repeated(self, x: int, at: str, times: int) -> int:
        for number in range(times):
            x = self.esp([x], f"{at}.{number}", self.u.channels[x], residual=self.spec.residual)
        return x

    def esp(
        self, inputs: list[int], at: str, o: int, *, stride: int = 1, residual: bool = False, branches: int | None = None
    ) -> int:  # fmt: skip
        spec, w, i, k = self.spec, self.w, self.u.width(inputs), branches or self.spec.branches
        n, first = esp_split(o, k)
        widths, primary = [first] + [n] * (k - 1), None
        if spec.arrangement == "merge":
            reduce = w.conv(f"{at}.reduce", i, n, 3 if stride == 2 else 1).w
            stages = [w.conv(f"{at}.branches.{j}", n, width, spec.kernel) for j, width in enumerate(widths)]
            end, summed_from = w.ba(f"{at}.end", o), 3
        else:
            reduce = w.conv(f"{at}.reduce", i, n, 1).w
            stages = [w.cba(f"{at}.branches.{j}", width, width, spec.kernel) for j, width in enumerate(widths)]
            end, summed_from = identity(o), 2
            if first != n:
                primary, summed_from = w.conv(f"{at}.primary", i, first, 1).w, 3
        hff = summed_from if spec.hff else 0
        return self.u.esp(inputs, reduce, primary, stages, end, hff=hff, residual=residual, stride=stride)
