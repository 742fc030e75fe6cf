"""The units against their formulas (networks parts 1 to 3), written out in plain numpy, float64, no torch convolution.

Every oracle takes `w`, a module's weights by name as arrays, and the prefix under which its own lie.
"""

from fractions import Fraction
from math import ceil, floor, gcd

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from espy.errors import SpecError
from espy.nn import units
from espy.nn.eesp import EESP, Down
from espy.nn.esp import ESP
from espy.nn.segment import Gate, ImagePyramid, Pyramid

V1_EPS, V2_EPS = 1e-3, 1e-5
QUICK = settings(deadline=None, database=None, max_examples=60)


# The steps of part 1


def conv(x, w, stride=1, dilation=1, groups=1, bias=None):
    """Convolution tap by tap: output pixel p reads input pixel p·stride + tap·dilation − padding, zero outside."""
    n, _, h, width = x.shape
    o, per_group, k, _ = w.shape
    padding = dilation * (k - 1) // 2
    rows, columns = ceil(h / stride), ceil(width / stride)
    y = np.zeros((n, o, rows, columns))
    outputs_per_group = o // groups
    for channel in range(o):
        first = channel // outputs_per_group * per_group
        for source in range(per_group):
            for a in range(k):
                for b in range(k):
                    weight = w[channel, source, a, b]
                    y[:, channel] += weight * shifted(
                        x[:, first + source], a * dilation - padding, b * dilation - padding, stride, rows, columns
                    )
    return y if bias is None else y + bias[:, None, None]


def shifted(plane, down, right, stride, rows, columns):
    """plane[:, r·stride + down, c·stride + right] for every r and c, 0 outside."""
    n, h, w = plane.shape
    out = np.zeros((n, rows, columns))
    for r in range(rows):
        for c in range(columns):
            y, x = r * stride + down, c * stride + right
            if 0 <= y < h and 0 <= x < w:
                out[:, r, c] = plane[:, y, x]
    return out


def per_channel(a):
    return a[:, None, None]


def bn(x, w, at, eps):
    mean, variance = per_channel(w[f"{at}.running_mean"]), per_channel(w[f"{at}.running_var"])
    return (x - mean) / np.sqrt(variance + eps) * per_channel(w[f"{at}.weight"]) + per_channel(w[f"{at}.bias"])


def prelu(x, w, at):
    return np.where(x > 0, x, x * per_channel(w[f"{at}.weight"]))


def relu(x):
    return np.maximum(x, 0)


def ba(x, w, at, eps):
    return prelu(bn(x, w, f"{at}.bn", eps), w, f"{at}.act")


def cba(x, w, at, eps, **how):
    return ba(conv(x, w[f"{at}.conv.weight"], **how), w, at, eps)


def cb(x, w, at, eps, **how):
    return bn(conv(x, w[f"{at}.conv.weight"], **how), w, f"{at}.bn", eps)


def pool(x):
    """Mean of 3×3 windows at stride 2; the divisor is 9 at the border too."""
    n, c, h, w = x.shape
    y = np.zeros((n, c, ceil(h / 2), ceil(w / 2)))
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            y[:, :, i, j] = x[:, :, max(0, 2 * i - 1) : 2 * i + 2, max(0, 2 * j - 1) : 2 * j + 2].sum((2, 3)) / 9
    return y


def up(x, size):
    """Bilinear with aligned corners: output i reads the position i·(in−1)/(out−1)."""

    def weights(inputs, outputs):
        m = np.zeros((outputs, inputs))
        for i in range(outputs):
            position = Fraction(i * (inputs - 1), outputs - 1) if outputs > 1 else Fraction(0)
            low = min(floor(position), inputs - 1)
            m[i, low] += 1 - float(position - low)
            if low + 1 < inputs:
                m[i, low + 1] += float(position - low)
        return m

    return np.einsum("ih,nchw,jw->ncij", weights(x.shape[2], size[0]), x, weights(x.shape[3], size[1]))


def aap(x, size):
    """Adaptive average pooling: the mean of rows ⌊i·in/out⌋ to ⌈(i+1)·in/out⌉, columns alike."""
    n, c, h, w = x.shape
    y = np.zeros((n, c, *size))
    for i in range(size[0]):
        for j in range(size[1]):
            window = x[
                :, :, floor(i * h / size[0]) : ceil((i + 1) * h / size[0]),
                floor(j * w / size[1]) : ceil((j + 1) * w / size[1]),
            ]  # fmt: skip
            y[:, :, i, j] = window.mean((2, 3))
    return y


def fused(t, first, hff=True):
    """u_k = t_k + u_{k−1} for k ≥ first, counted from 1."""
    u = []
    for k, branch in enumerate(t, 1):
        u.append(branch + u[-1] if hff and k >= first else branch)
    return u


# The modules of parts 2 and 3


def esp_merge(x, w, o, branches, stride, hff, residual):
    r = conv(x, w["reduce.weight"], stride)
    t = [conv(r, w[f"branches.{k}.weight"], dilation=2**k) for k in range(branches)]
    y = np.concatenate(fused(t, 3, hff), 1)
    return ba(x + y if residual else y, w, "end", V1_EPS)


def esp_branch(x, w, o, branches, stride, hff, residual):
    uniform = o % branches == 0
    r = conv(x, w["reduce.weight"], stride)
    r1 = r if uniform else conv(x, w["primary.weight"], stride)
    t = [cba(r1 if k == 0 else r, w, f"branches.{k}", V1_EPS, dilation=2**k) for k in range(branches)]
    y = np.concatenate(fused(t, 2 if uniform else 3, hff), 1)
    return x + y if residual else y


def esp_weight_shapes(arrangement, i, o, branches, stride):
    n = o // branches
    first = o - (branches - 1) * n
    k = 3 if stride == 2 and arrangement == "merge" else 1
    shapes = {"reduce.weight": (n, i, k, k)}
    if arrangement == "branch" and first != n:
        shapes["primary.weight"] = (first, i, 1, 1)
    for b in range(branches):
        out = n if b else first
        name = f"branches.{b}.weight" if arrangement == "merge" else f"branches.{b}.conv.weight"
        shapes[name] = (out, n if arrangement == "merge" else out, 3, 3)
    return shapes


def eesp(x, w, at, o, stride, branches, limit, arrangement, hff=True, residual=True, last_act=True):
    extents = sorted(e if e <= limit else 3 for e in range(3, 2 * branches + 2, 2))
    n = o // branches
    bare = arrangement == "seed_literal"
    grouped = {"groups": branches}
    r = conv(x, w[f"{at}reduce.weight"], **grouped) if bare else cba(x, w, f"{at}reduce", V2_EPS, **grouped)
    t = [
        conv(r, w[f"{at}branches.{k}.weight"], stride, (extent - 1) // 2, groups=n) for k, extent in enumerate(extents)
    ]
    u = np.concatenate(fused(t, 2, hff), 1)
    u = ba(u, w, f"{at}fuse", V2_EPS) if arrangement == "authors" else bn(u, w, f"{at}fuse", V2_EPS)
    y = conv(u, w[f"{at}expand.weight"], **grouped) if bare else cb(u, w, f"{at}expand", V2_EPS, **grouped)
    if residual and stride == 1 and x.shape[1] == o:
        y = x + y
    return prelu(y, w, f"{at}act") if last_act else y


def down(x, picture, w, o, branches, limit, arrangement):
    i = x.shape[1]
    inner = eesp(x, w, "eesp.", o - i, 2, branches, limit, arrangement, last_act=False)
    y = np.concatenate([pool(x), inner], 1)
    if picture is not None:
        inside = cb(picture, w, "reinforce.0", V2_EPS)
        inside = prelu(inside, w, "reinforce.0.act") if arrangement == "authors" else relu(inside)
        y = y + cb(inside, w, "reinforce.1", V2_EPS)
    return prelu(y, w, "act")


def pyramid(x, w, scales, last):
    x = cba(x, w, "project", V2_EPS)
    _, p, h, width = x.shape
    parts = []
    for k, scale in enumerate(scales):
        size = max(5, ceil(h * scale)), max(5, ceil(width * scale))
        weight = w[f"stages.{k}.weight"]
        if scale > 1:
            parts.append(aap(conv(up(x, size), weight, groups=p), (h, width)))
        elif scale == 1:
            parts.append(conv(x, weight, groups=p))
        else:
            parts.append(up(conv(aap(x, size), weight, groups=p), (h, width)))
    y = ba(np.concatenate(parts, 1), w, "join", V2_EPS)
    shuffled = np.empty_like(y)
    m = len(scales)
    for a in range(m):
        for c in range(p):
            shuffled[:, c * m + a] = y[:, a * p + c]
    y = cba(shuffled, w, "merge", V2_EPS, groups=p)
    y = conv(y, w["out.weight"], bias=w.get("out.bias"))
    return y if last else ba(y, w, "end", V2_EPS)


def gate(x, w, i, o):
    weight = 1 / (1 + np.exp(-conv(x.mean((2, 3), keepdims=True), w["gate.weight"])))
    return cba(x, w, "expand", V2_EPS, groups=gcd(i, o)) * weight


def image_pyramid(v, w):
    parts, f = [v], v
    for k in range(4):
        f = pool(f)
        parts.append(up(conv(f, w[f"stages.{k}.weight"], groups=v.shape[1]), v.shape[2:]))
    return cba(np.concatenate(parts, 1), w, "project", V2_EPS)


# How they meet


def randomise(module, seed=0):
    """Weights, BN statistics and slopes (some negative) that make every step matter, in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like, low, high):
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for leaf in module.modules():
            if isinstance(leaf, nn.Conv2d):
                leaf.weight.copy_(draw(leaf.weight, -0.7, 0.7))
                if leaf.bias is not None:
                    leaf.bias.copy_(draw(leaf.bias, -1, 1))
            elif isinstance(leaf, nn.BatchNorm2d):
                # small variances let a wrong epsilon show
                for part, low, high in (("weight", -1.5, 1.5), ("bias", -1, 1), ("running_mean", -1, 1)):
                    getattr(leaf, part).copy_(draw(leaf.bias, low, high))
                leaf.running_var.copy_(draw(leaf.bias, 0.01, 1.0))
            elif isinstance(leaf, nn.PReLU):
                leaf.weight.copy_(draw(leaf.weight, -0.5, 0.9))
    return module.eval()


def weights(module):
    return {name: t.numpy().astype(np.float64) for name, t in module.state_dict().items() if t.dim()}


def maps(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(module, *inputs):
    with torch.no_grad():
        return module(*(torch.from_numpy(x) for x in inputs)).numpy()


def assert_equal(ours, oracle, tolerance=1e-4):
    assert ours.shape == oracle.shape
    difference, scale = np.abs(ours - oracle).max(), np.abs(oracle).max()
    assert scale > 0
    assert difference <= tolerance * scale, f"max |difference| {difference:.2e}, largest value {scale:.2e}"


ESP_ORACLES = {"merge": esp_merge, "branch": esp_branch}


@pytest.mark.parametrize("arrangement", ESP_ORACLES)
class TestESP:
    """Both arrangements; 13×19 is large enough that the dilation of 16 reads more than its centre."""

    def check(self, arrangement, i, o, branches, stride=1, hff=True, residual=False, size=(13, 19)):
        module = randomise(
            ESP[arrangement](i, o, stride=stride, branches=branches, hff=hff, residual=residual, eps=V1_EPS)
        )
        w = weights(module)
        convs = {name: a.shape for name, a in w.items() if a.ndim == 4}
        assert convs == esp_weight_shapes(arrangement, i, o, branches, stride)
        x = maps(2, i, *size)
        assert_equal(run(module, x), ESP_ORACLES[arrangement](x, w, o, branches, stride, hff, residual))

    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("branches", [1, 2, 3, 4, 5])
    def test_uniform_split_equals_the_formula(self, arrangement, branches, stride):
        self.check(arrangement, 4, 2 * branches, branches, stride)

    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("branches", [2, 3, 4, 5])
    def test_leftover_channels_go_to_the_first_branch(self, arrangement, branches, stride):
        self.check(arrangement, 4, 2 * branches + branches - 1, branches, stride)

    @pytest.mark.parametrize(("o", "branches"), [(6, 3), (7, 3), (8, 4), (11, 5)])
    def test_without_hff_branches_stay_as_they_are(self, arrangement, o, branches):
        self.check(arrangement, 3, o, branches, hff=False)

    @pytest.mark.parametrize("hff", [True, False])
    @pytest.mark.parametrize(("o", "branches"), [(3, 1), (4, 2), (6, 3), (7, 3), (8, 4), (12, 5)])
    def test_residual_is_added_where_the_arrangement_adds_it(self, arrangement, o, branches, hff):
        self.check(arrangement, o, o, branches, hff=hff, residual=True)

    @pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 4), (34, 35)])
    def test_any_size_is_taken(self, arrangement, size):
        self.check(arrangement, 3, 7, 5, size=size)
        self.check(arrangement, 3, 7, 5, stride=2, size=size)

    def test_residual_is_refused_where_shapes_differ(self, arrangement):
        for choices in ({"i": 4, "o": 8}, {"i": 8, "o": 8, "stride": 2}):
            with pytest.raises(SpecError, match="residual"):
                ESP[arrangement](**choices, branches=4, residual=True)


def test_epsilon_is_1e3_in_espnet_and_1e5_in_espnetv2():
    assert {m.eps for m in ESP["merge"](5, 5).modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert {m.eps for m in ESP["branch"](5, 5).modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    for module in (EESP(16, 16), Down(16, 32), Pyramid(4, 4, 2), Gate(4, 4), ImagePyramid(2)):
        assert {m.eps for m in module.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}


@pytest.mark.parametrize("branches", [1, 2, 3, 5])
@pytest.mark.parametrize("first", [2, 3])
def test_hierarchical_sum_starts_at_the_named_branch(branches, first):
    t = [maps(1, 2, 3, 3, seed=k) for k in range(branches)]
    sums = units.hierarchical_sum([torch.from_numpy(b) for b in t], first)
    for k, u in enumerate(sums, 1):
        terms = t[first - 2 : k] if k >= first else [t[k - 1]]
        np.testing.assert_allclose(u, sum(terms), rtol=1e-6, atol=1e-6)
    assert len(sums) == branches


@pytest.mark.parametrize("arrangement", ["authors", "seed", "seed_literal"])
class TestEESP:
    def check(self, arrangement, i, o, branches=4, limit=9, stride=1, size=(11, 14), **choices):
        module = randomise(
            EESP(i, o, stride=stride, branches=branches, limit=limit, arrangement=arrangement, **choices)
        )
        x = maps(2, i, *size)
        oracle = eesp(x, weights(module), "", o, stride, branches, limit, arrangement, **choices)
        assert_equal(run(module, x), oracle)

    @pytest.mark.parametrize("limit", [3, 5, 7, 9, 13])
    def test_extents_above_the_limit_become_three(self, arrangement, limit):
        self.check(arrangement, 8, 16, limit=limit)

    @pytest.mark.parametrize(("branches", "i", "o"), [(1, 3, 2), (2, 4, 8), (3, 6, 9), (4, 16, 16), (5, 10, 25)])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_any_number_of_branches_equals_the_formula(self, arrangement, branches, i, o, stride):
        self.check(arrangement, i, o, branches=branches, stride=stride)

    @pytest.mark.parametrize("residual", [True, False])
    def test_residual_is_added_where_widths_agree(self, arrangement, residual):
        self.check(arrangement, 16, 16, residual=residual)

    def test_without_hff_branches_stay_as_they_are(self, arrangement):
        self.check(arrangement, 16, 16, hff=False)

    def test_last_activation_can_be_left_out(self, arrangement):
        self.check(arrangement, 8, 16, last_act=False)

    def test_strided_unit_of_equal_widths_adds_nothing_on_a_map_of_one_pixel(self, arrangement):
        self.check(arrangement, 16, 16, stride=2, size=(1, 1))


@pytest.mark.parametrize("arrangement", ["authors", "seed", "seed_literal"])
class TestDown:
    @pytest.mark.parametrize("size", [(12, 16), (9, 13), (1, 1)])
    @pytest.mark.parametrize("reinforce", [True, False])
    def test_pooled_copy_comes_first_and_the_picture_is_added(self, arrangement, reinforce, size):
        module = randomise(Down(8, 24, reinforce=reinforce, limit=7, arrangement=arrangement))
        x, picture = maps(2, 8, *size), maps(2, 3, ceil(size[0] / 2), ceil(size[1] / 2), seed=2)
        if reinforce:
            assert_equal(run(module, x, picture), down(x, picture, weights(module), 24, 4, 7, arrangement))
        else:
            assert_equal(run(module, x), down(x, None, weights(module), 24, 4, 7, arrangement))

    def test_last_activation_of_the_inner_unit_is_not_built(self, arrangement):
        names = Down(8, 24, arrangement=arrangement).state_dict()
        assert not [name for name in names if name.startswith("eesp.act")]


DEFAULT_SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)


class TestPyramid:
    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize("size", [(12, 23), (7, 9), (3, 4), (1, 2), (30, 11), (1, 1)])
    def test_five_scales_equal_the_formula(self, size, last):
        module = randomise(Pyramid(4, 5, 3, last=last))
        assert ("out.bias" in module.state_dict()) == last
        x = maps(2, 4, *size)
        scales = [Fraction(s).limit_denominator(10) for s in DEFAULT_SCALES]
        assert_equal(run(module, x), pyramid(x, weights(module), scales, last))

    def test_other_scales_equal_the_formula(self):
        module = randomise(Pyramid(4, 6, 2, scales=((3, 1), (1, 1), (1, 3))))
        x = maps(1, 4, 17, 20)
        assert_equal(run(module, x), pyramid(x, weights(module), [Fraction(3), Fraction(1), Fraction(1, 3)], False))


@pytest.mark.parametrize(("i", "o"), [(8, 12), (6, 3), (5, 7), (4, 4), (16, 64)])
def test_gate_weighs_a_grouped_convolution_by_the_mean_of_its_input(i, o):
    module = randomise(Gate(i, o))
    x = maps(2, i, 6, 7)
    assert module.expand.conv.groups == gcd(i, o)
    assert_equal(run(module, x), gate(x, weights(module), i, o))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (7, 9), (16, 33), (40, 21)])
def test_image_pyramid_resizes_four_pooled_maps(size):
    module = randomise(ImagePyramid(3))
    v = maps(2, 3, *size)
    assert_equal(run(module, v), image_pyramid(v, weights(module)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("i", "o", "k", "dilation", "groups"), [
    (3, 4, 3, 1, 1), (4, 6, 3, 2, 2), (4, 4, 3, 4, 4), (2, 3, 5, 3, 1), (3, 2, 1, 1, 1), (2, 2, 1, 3, 1),
])  # fmt: skip
def test_conv_is_the_sum_over_taps(i, o, k, dilation, groups, stride):
    module = units.conv(i, o, k, stride, dilation, groups)
    assert module.bias is None
    x = maps(2, i, 9, 12)
    w = module.weight.detach().numpy().astype(np.float64)
    assert_equal(run(module, x), conv(x, w, stride, dilation, groups))


def test_deconv_copies_each_pixel_times_the_kernel():
    module = units.deconv(3, 2)
    assert module.bias is None
    x, w = maps(1, 3, 4, 5), module.weight.detach().numpy()
    y = np.zeros((1, 2, 8, 10))
    for i in range(4):
        for j in range(5):
            y[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = np.einsum("ni,ioab->noab", x[:, :, i, j], w)
    assert_equal(run(module, x), y)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 3), (8, 8), (9, 14)])
def test_pool_divides_by_nine_everywhere(size):
    x = maps(2, 3, *size)
    assert_equal(run(units.pool, x), pool(x))


def test_pool_of_ones_shows_the_zeros_of_the_padding():
    assert_equal(run(units.pool, np.ones((1, 1, 4, 4), np.float32)), np.array([[[[4, 6], [6, 9]]]]) / 9)


@QUICK
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 25), st.integers(1, 25))
def test_resize_aligns_corners(h, w, rows, columns):
    x = maps(1, 2, h, w)
    ours = units.resize(torch.from_numpy(x), (rows, columns)).numpy()
    assert_equal(ours, up(x, (rows, columns)))


@QUICK
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 25), st.integers(1, 25))
def test_adaptive_pool_averages_its_windows(h, w, rows, columns):
    x = maps(1, 2, h, w)
    assert_equal(units.adaptive_pool(torch.from_numpy(x), (rows, columns)).numpy(), aap(x, (rows, columns)))


def test_crop_keeps_the_top_left():
    x = maps(1, 2, 6, 8)
    np.testing.assert_array_equal(units.crop(torch.from_numpy(x), torch.zeros(1, 9, 5, 7)), x[:, :, :5, :7])


# The forms that exporters see


@QUICK
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_averaging_matrices_equal_adaptive_pooling(h, w, rows, columns):
    x = torch.from_numpy(maps(2, 3, h, w))
    ours = units.separable(x, units.averaging_matrix, (rows, columns))
    torch.testing.assert_close(ours, F.adaptive_avg_pool2d(x, (rows, columns)), rtol=1e-5, atol=1e-6)


@QUICK
@given(st.integers(2, 70), st.integers(2, 70))
def test_image_pyramid_for_export_equals_the_plain_one(h, w):
    module = randomise(ImagePyramid(2))
    v = torch.from_numpy(maps(2, 2, h, w))
    with torch.no_grad():
        plain, exported = module._parts(v), module._parts_for_export(v)
    assert len(plain) == len(exported) == 5
    for ours, reference in zip(exported, plain, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
