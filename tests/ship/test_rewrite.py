"""Rewrites are exact: whatever the network, its weights and the picture's size, the logits differ by rounding alone."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from espy import build, load_published
from espy.nn.build import weights_of
from espy.nn.eesp import EESP
from espy.nn.segment import Gate, Pyramid
from espy.ship import rewrite as rewriting
from espy.ship.rewrite import REWRITES, Scale, Sizes, Slopes, fold_norms, merge_groups, regrouped, rewrite
from samples import WEIGHTS, needs, scene

pytestmark = pytest.mark.usefixtures("one_thread")
ERROR = 1e-5  # of the largest value
ANY, BY_32 = "any", {"multiple": 32}

SEGMENTERS = {
    "espnetv2": {"width": 0.5, "classes": 7},
    "espnetv2, wider": {"width": 1.25, "classes": 3},
    "espnetv2, widest": {"width": 2.0, "classes": 3},
    "espnetv2, relu": {"width": 0.5, "classes": 4, "activation": "relu"},
    "espnetv2, silu": {"width": 0.5, "classes": 4, "activation": "silu"},
    "espnetv2, as the article's text has it": {"width": 0.5, "classes": 4, "arrangement": "seed"},
    "espnetv2, to the letter": {"width": 0.5, "classes": 4, "arrangement": "seed_literal"},
    "espnetv2, without the picture": {"width": 0.5, "classes": 4, "reinforce": False},
    "espnetv2, projected": {"width": 0.5, "classes": 4, "projection": 18},
    "espnetv2_first": {"width": 0.5, "classes": 4},
    "espnet": {"alpha2": 1, "alpha3": 1, "classes": 6},
    "espnet, branch": {"alpha2": 1, "alpha3": 1, "classes": 6, "arrangement": "branch", "widths": (16, 20, 30)},
}


def shaken(network, seed=0):
    """The network in eval mode with norms and slopes of all kinds: negative factors, slopes below 0 and above 1."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(
                    torch.randn(module.weight.shape, generator=rng).sign()
                    * (0.5 + torch.rand(module.weight.shape, generator=rng))
                )
                module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=rng))
                module.running_mean.copy_(0.3 * torch.randn(module.bias.shape, generator=rng))
                module.running_var.copy_(0.5 + torch.rand(module.bias.shape, generator=rng))
            elif isinstance(module, nn.PReLU):
                module.weight.copy_(0.25 + 0.5 * torch.randn(module.weight.shape, generator=rng))
            elif isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=rng))
    return network.eval()


@functools.cache
def network_of(name, task="segment"):
    choices = dict(SEGMENTERS[name] if task == "segment" else {"width": 0.5, "classes": 4, "task": task})
    return shaken(build(name.split(",")[0], seed=1, **choices))


def picture(height, width, seed=0):
    return torch.from_numpy(scene(height, width, seed)).permute(2, 0, 1)[None].float() / 64 - 2


def error(one, two):
    """The largest difference, of the largest value."""
    return float((one - two).abs().max() / two.abs().max())


@torch.inference_mode()
def check(network, sizes, height, width, **options):
    x = picture(height, width)
    assert error(rewrite(network, sizes, **options)(x), network(x)) <= ERROR


class TestWholeNetworks:
    @pytest.mark.parametrize("name", SEGMENTERS)
    @pytest.mark.parametrize("size", [(16, 16), (48, 80), (33, 57), (97, 64), (130, 131)])
    def test_of_any_size(self, name, size):
        if name.startswith("espnetv2,") or name == "espnetv2":
            size = tuple(-(-side // 16) * 16 for side in size)  # the plain network takes multiples of 16
        check(network_of(name), ANY, *size)

    @pytest.mark.parametrize("name", SEGMENTERS)
    @pytest.mark.parametrize("size", [(32, 32), (64, 32), (96, 160), (160, 96), (192, 320)])
    def test_of_multiples_of_32_from_the_smallest(self, name, size):
        check(network_of(name), BY_32, *size)

    @pytest.mark.parametrize("name", ["espnetv2", "espnetv2_first", "espnet"])
    @pytest.mark.parametrize("size", [(32, 64), (80, 144), (160, 320), (176, 240)])
    def test_of_one_fixed_size(self, name, size):
        check(network_of(name), [size], *size)

    @pytest.mark.parametrize("side", [64, 96, 320])
    def test_classifiers(self, side):
        check(network_of("espnetv2", "classify"), BY_32, side, side)

    @pytest.mark.parametrize("side", [64, 160, 300, 320])
    @torch.inference_mode()
    def test_detectors(self, side):
        network, x = network_of("espnetv2", "detect"), picture(side, side)
        for found, wanted in zip(rewrite(network, [(side, side)])(x), network(x), strict=True):
            assert error(found, wanted) <= ERROR

    @pytest.mark.parametrize("left_out", [one.__name__ for one in REWRITES])
    def test_with_one_left_out(self, left_out):
        check(network_of("espnetv2"), BY_32, 96, 160, without=(left_out,))

    @pytest.mark.parametrize("alone", [one.__name__ for one in REWRITES])
    def test_each_alone(self, alone):
        check(network_of("espnetv2"), BY_32, 96, 160, without=[o.__name__ for o in REWRITES if o.__name__ != alone])

    def test_a_network_that_is_rewritten_stays_as_it_was(self):
        network = network_of("espnetv2")
        before = {name: tensor.clone() for name, tensor in weights_of(network).items()}
        kinds = [type(module) for module in network.modules()]
        assert rewrite(network, BY_32).spec == network.spec
        assert [type(module) for module in network.modules()] == kinds
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(network).items())

    @needs(WEIGHTS)
    @pytest.mark.parametrize("name", ["espnetv2_seg_s0.5_city_1024x512", "espnet_decoder_p2_q8"])
    @torch.inference_mode()
    def test_published_weights_give_equal_masks(self, name):
        published = load_published(WEIGHTS / f"{name}.pth")
        p = published.preprocess
        x = torch.from_numpy(scene(256, 512)).permute(2, 0, 1)[None].float()
        x = x[:, [2, 1, 0]] if p.order == "BGR" else x
        x = (x * p.scale - torch.tensor(p.mean).view(1, 3, 1, 1)) / torch.tensor(p.std).view(1, 3, 1, 1)
        found, wanted = rewrite(published.network, published.header.sizes)(x), published.network(x)
        assert error(found, wanted) <= ERROR
        assert float((found.argmax(1) == wanted.argmax(1)).float().mean()) >= 0.9999


class TestParts:
    @given(st.lists(st.floats(-2, 3), min_size=1, max_size=20), st.integers(0, 99), st.booleans(), st.booleans())
    @settings(deadline=None)
    def test_slopes_are_a_prelu_of_a_scaled_map(self, slopes, seed, scaled, narrow):
        rng, c = torch.Generator().manual_seed(seed), len(slopes)
        a, x = torch.tensor(slopes), torch.randn(2, c, 5, 6, generator=rng)
        f, g = (torch.randn(c, generator=rng), torch.randn(c, generator=rng)) if scaled else (None, None)
        y = x if f is None else f.view(1, -1, 1, 1) * x + g.view(1, -1, 1, 1)
        with torch.inference_mode():
            found = Slopes(a, f, g, wide=32, narrow=c if narrow else 0)(
                x if narrow else F.pad(x, (0, 0, 0, 0, 0, 32 - c))
            )
        assert torch.allclose(found[:, :c], F.prelu(y, a), atol=1e-5, rtol=1e-5)
        assert not found[:, c:].any()

    @given(
        st.sampled_from([(16, 8, 4), (32, 24, 4), (64, 64, 8), (96, 96, 4), (12, 6, 3)]), st.integers(0, 99), st.data()
    )
    @settings(deadline=None)
    def test_a_grouped_convolution_is_the_same_in_fewer_groups(self, shape, seed, data):
        i, o, g = shape
        fewer = data.draw(st.sampled_from([n for n in range(1, g + 1) if g % n == 0]))
        conv = nn.Conv2d(i, o, 1, groups=g)
        torch.nn.init.normal_(conv.weight, generator=torch.Generator().manual_seed(seed))
        x = torch.randn(1, i, 4, 5)
        with torch.inference_mode():
            assert error(regrouped(conv, fewer)(x), conv(x)) <= ERROR

    def test_groups_are_merged_until_lanes_are_full(self):
        unit = fold_norms(shaken(EESP(32, 96)), Sizes.of(BY_32))
        merged = merge_groups(copy.deepcopy(unit), Sizes.of(BY_32))
        assert unit.reduce[0].groups == unit.expand[0].groups == 4
        assert (merged.reduce[0].groups, merged.expand[0].groups) == (1, 2)  # 32 → 24: none fills lanes; 96 → 96: 48 do
        assert merged.branches[0].groups == 24

    @pytest.mark.parametrize("activation", ["prelu", "relu", "silu"])
    @pytest.mark.parametrize("shape", [(16, 16), (16, 32), (10, 30), (64, 16), (40, 20), (32, 48), (128, 48), (15, 7)])
    @torch.inference_mode()
    def test_a_gate_is_the_same_with_its_outputs_in_their_places(self, shape, activation):
        i, o = shape
        plain = shaken(Gate(i, o, activation=activation))
        x = torch.randn(2, i, 9, 12)
        wanted, order = plain(x), torch.arange(o)
        if o % i == 0:  # i groups of o / i outputs become o / i runs of i
            order = order.view(i, o // i).T.flatten()
            rewriting.reorder(plain.gate, order)
            rewriting.reorder(plain.expand.act, order)
        assert error(rewriting.FastGate(plain)(x), wanted[:, order]) <= ERROR

    @pytest.mark.parametrize("scale", [(2, 1), (3, 2), (1, 1), (1, 2), (1, 4), (1, 10)])
    @pytest.mark.parametrize("size", [(2, 2), (4, 6), (5, 7), (10, 12), (30, 22), (33, 10)])
    @torch.inference_mode()
    def test_every_scale_is_that_of_the_pyramid(self, scale, size):
        plain = shaken(Pyramid(6, 4, 3, scales=(scale,)))
        fast = rewriting.FastPyramid(plain, Sizes.of([size]))
        x = torch.randn(2, 6, *size)
        assert error(fast(x), plain(x)) <= ERROR

    @pytest.mark.parametrize(
        ("scale", "size", "way"),
        [
            ((2, 1), (3, 3), "doubled"), ((2, 1), (2, 8), "matrices"), ((3, 2), (4, 8), "one and a half"),
            ((3, 2), (4, 7), "matrices"), ((3, 2), (2, 8), "matrices"), ((1, 2), (10, 12), "halved"),
            ((1, 2), (8, 12), "matrices"), ((1, 2), (10, 13), "matrices"), ((1, 1), (7, 7), "as it is"),
            ((1, 10), (60, 60), "matrices"),
        ],
    )  # fmt: skip
    def test_the_fast_way_is_taken_where_it_is_exact(self, scale, size, way):
        conv = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        assert Scale(scale, conv, nn.PReLU(3), Sizes.of([size])).way == way

    def test_tiny_weights_become_zero_before_and_after_folding(self):
        network = build("espnetv2", classes=3, width=0.5, seed=0).eval()
        with torch.no_grad():
            network.encoder.level1.conv.weight[0] = 1e-38
            network.encoder.level1.conv.weight[1] = 2e-30
            network.encoder.level1.bn.weight[1] = 0.1
        found = rewrite(network, BY_32).plain.encoder.plain.level1[0].weight
        assert not found[:2].any()
        assert found[2].any()
        kept = rewrite(network, BY_32, without=("flush",)).plain.encoder.plain.level1[0].weight
        assert kept[1].any()


class TestSizes:
    @given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40))
    def test_what_is_known_of_smaller_maps_holds_for_every_picture(self, halvings, down, across):
        for sizes, size in (
            (BY_32, (32 * down, 32 * across)),
            (ANY, (15 + down, 15 + across)),
            ([(7 * down + 9, 8 * across + 8)], None),
        ):
            height, width = size or sizes[0]
            known = Sizes.of(sizes).at(2**halvings)
            h, w = -(-height // 2**halvings), -(-width // 2**halvings)
            assert not known.even or h % 2 == w % 2 == 0
            assert all(min(h, w) >= side for side in range(1, 60) if known.reach(side))
            assert not known.halve(3) or h % 8 == w % 8 == 0
