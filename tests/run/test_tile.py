"""Tiles cover a picture, keep to the grid, and where their overlap covers what the network sees change nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from espy import build, load
from espy.errors import EngineError
from espy.header import Preprocess
from espy.nn.deployed import deploy
from espy.picture.frame import Frame
from espy.run.tile import Tiling, run_tiled, spans
from espy.spec import make
from samples import calibrated, noise, save_model, scene

TILES = st.integers(1, 60).map(lambda k: 8 * k)


@st.composite
def cuts(draw):
    tile = draw(TILES.filter(lambda t: t > 16))
    overlap = draw(st.integers(0, (tile - 1) // 16)) * 16
    return draw(st.integers(1, 3000)), tile, min(overlap, (tile - 1) // 16 * 16)


# Where tiles lie


@given(cuts())
@settings(max_examples=300)
def test_tiles_start_on_the_grid_and_their_kept_parts_cover_each_pixel_once(cut):
    length, tile, overlap = cut
    found = list(spans(length, tile, overlap))
    kept = np.zeros(length, int)
    for start, end, first, last in found:
        assert start % 8 == 0
        assert 0 <= start <= first < last <= end <= length
        assert end - start <= tile
        kept[first:last] += 1
    assert (kept == 1).all()
    assert [f[2] for f in found] == sorted(f[2] for f in found)


@given(cuts())
@settings(max_examples=300)
def test_a_kept_pixel_is_at_least_half_the_overlap_from_an_inner_edge(cut):
    length, tile, overlap = cut
    for start, end, first, last in spans(length, tile, overlap):
        assert start == 0 or first - start >= overlap // 2
        assert end == length or end - last >= overlap // 2


@given(cuts())
@settings(max_examples=300)
def test_no_more_tiles_than_are_needed(cut):
    length, tile, overlap = cut
    found = list(spans(length, tile, overlap))
    if length <= tile:
        assert found == [(0, length, 0, length)]
    else:
        assert len(found) <= -(-(length - tile) // (tile - overlap)) + 2
        assert all(end - start > tile - 8 for start, end, _, _ in found)


@given(st.integers(1, 200), st.integers(1, 300), TILES.filter(lambda t: t > 16), TILES.filter(lambda t: t > 16))
@settings(max_examples=60, deadline=None)
def test_a_network_that_sees_one_pixel_gives_the_untiled_mask(height, width, tile_height, tile_width):
    array = noise(height, width)
    frame = Frame.of(Preprocess((32, 32), multiple=1, resize="native"), (height, width))
    whole = frame.to_network(array)[..., 0]
    found = run_tiled(lambda x: x[..., 0], Image.fromarray(array), frame, Tiling((tile_height, tile_width), 16))
    assert found.shape == whole.shape
    assert np.abs(found.astype(int) - whole).max() <= (0 if whole.shape == (height, width) else 1)


def test_a_network_that_sees_its_neighbours_gives_the_untiled_mask_where_the_overlap_covers_them():
    """A box filter of 17 pixels: exact with an overlap of 16, whatever lies beyond a tile's edge."""

    def blur(x):
        padded = np.pad(x[..., 0].astype(int), ((0, 0), (8, 8), (8, 8)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (17, 17), (1, 2))
        return (windows.sum((-1, -2)) % 251).astype(np.uint8)

    array = noise(150, 203)
    frame = Frame.of(Preprocess((32, 32), multiple=1, resize="native"), (150, 203))
    image = Image.fromarray(array)
    assert np.array_equal(run_tiled(blur, image, frame, Tiling((64, 72), 16)), blur(array[None])[0])
    assert not np.array_equal(run_tiled(blur, image, frame, Tiling((64, 72), 0)), blur(array[None])[0])


# Which tilings there are

SMALL = make("espnet", widths=(8, 16, 24), branches=2, alpha2=1, alpha3=1, classes=4)
V2 = make("espnetv2", width=0.5, classes=5)


@pytest.mark.parametrize(("spec", "tile"), [(SMALL, (288, 304)), (make("espnet", alpha2=1, alpha3=1), (1856, 1856))])
def test_the_overlap_covers_the_receptive_field_where_that_is_no_more_than_half_a_tile(spec, tile):
    overlap = Tiling.of(tile, spec, 1).overlap
    assert spec.receptive_field_px <= overlap < spec.receptive_field_px + 32
    assert overlap % 16 == 0


def test_else_it_is_a_quarter_of_the_tile():
    assert Tiling.of((1024, 2048), make("espnet", alpha2=1, alpha3=1), 1).overlap == 256  # it sees 915 pixels and more
    assert Tiling.of((1024, 1024), V2, 32).overlap == 256


@pytest.mark.parametrize(
    ("tile", "spec", "multiple", "overlap"),
    [
        ((100, 128), SMALL, 1, None), ((128, 100), SMALL, 1, None), ((0, 128), SMALL, 1, None), ((-64, 64), SMALL, 1, None),
        ((4, 4), SMALL, 1, None), ((72, 96), V2, 32, None), ((128, 128), SMALL, 1, 8), ((128, 128), SMALL, 1, -16),
        ((128, 128), SMALL, 1, 128), ((128, 256), SMALL, 1, 144),
    ],
)  # fmt: skip
def test_tiles_and_overlaps_that_do_not_fit_are_refused(tile, spec, multiple, overlap):
    with pytest.raises(EngineError, match="multiple"):
        Tiling.of(tile, spec, multiple, overlap)


def test_a_tile_off_the_grid_is_refused_when_a_model_is_loaded(tiny_onnx):
    with pytest.raises(EngineError, match="multiples of 8"):
        load(tiny_onnx, tile=(100, 128))


# Networks


def is_varied(mask):
    """Whether at least two classes have more than 2 % each: an equal mask then says something."""
    return (np.bincount(mask.ravel()) > 0.02 * mask.size).sum() >= 2


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
@pytest.mark.parametrize("size", [(501, 620), (290, 901), (288, 700), (700, 299)])
def test_a_small_espnet_in_tiles_gives_the_untiled_mask(tiny_espnet, tiny_onnx, engine, size):
    picture = scene(*size, seed=7)
    path = tiny_espnet if engine == "torch" else tiny_onnx
    whole = load(path, engine=engine, size="native")(picture).mask
    with load(path, engine=engine, tile=(288, 296)) as tiled:
        assert tiled.tiling.overlap >= SMALL.receptive_field_px
        found = tiled(picture).mask
    assert is_varied(whole)
    assert np.array_equal(found, whole)


def test_too_small_an_overlap_changes_the_mask(tiny_espnet):
    """Else the tests above would show nothing."""
    picture = scene(501, 620, seed=7)
    whole = load(tiny_espnet, size="native")(picture).mask
    assert not np.array_equal(load(tiny_espnet, tile=(288, 296), overlap=16)(picture).mask, whole)


def test_an_espnet_that_sees_915_pixels_gives_the_untiled_mask_with_the_default_overlap(tmp_path):
    preprocess = Preprocess((512, 1024), multiple=1)
    network = build("espnet", widths=(4, 10, 15), alpha2=1, alpha3=1, classes=5, seed=1)
    assert 915 <= network.spec.receptive_field_px <= 928
    path = save_model(tmp_path / "m.safetensors", calibrated(network, preprocess), preprocess)
    picture = scene(1100, 2100, seed=2)
    whole = load(path, size="native")(picture).mask
    with load(path, tile=(1856, 1856)) as tiled:
        assert tiled.tiling.overlap == 928
        found = tiled(picture).mask
    assert is_varied(whole)
    assert np.array_equal(found, whole)


REACHES = {
    "merge": {}, "merge, 3 branches": {"branches": 3, "widths": (8, 15, 24)}, "kernel 5": {"kernel": 5}, "cat1": {"skip1": "cat1"},
    "merge, 1 branch": {"branches": 1}, "branch": {"arrangement": "branch"},
    "branch, 3 branches": {"arrangement": "branch", "branches": 3},
    "branch, 1 branch": {"arrangement": "branch", "branches": 1, "alpha2": 2},
}  # fmt: skip


@pytest.mark.parametrize("choices", REACHES.values(), ids=REACHES)
def test_half_the_default_overlap_reaches_as_far_as_any_logit_does(choices):
    """By brute force: which rows of the picture have a gradient, for each place of a logit in its 1/8 cell."""
    settled = {"widths": (8, 16, 24), "branches": 2, "alpha2": 1, "alpha3": 1, "classes": 4, "seed": 3, **choices}
    network = build("espnet", **settled).double().eval()
    x = torch.rand(1, 3, 512, 16, dtype=torch.float64, requires_grad=True)
    reach = 0
    for y in range(256, 264):
        (gradient,) = torch.autograd.grad(network(x)[0, :, y].sum(), x)
        rows = torch.nonzero(gradient.abs().sum((0, 1, 3))).ravel()
        reach = max(reach, y - int(rows[0]), int(rows[-1]) - y)
    overlap = Tiling.of((1024, 1024), network.spec, 1).overlap
    assert reach <= overlap // 2
    assert overlap // 2 < reach + 24  # nor is it wasteful


@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_the_networks_without_decoder_give_the_untiled_mask_where_corners_are_not_aligned(variant, tmp_path):
    """Their x8 resize keeps its place in a tile only with `align_corners=False`; aligned corners move it by up to 4 pixels."""
    differs = {}
    for aligned in (False, True):
        preprocess = Preprocess((64, 96), multiple=1)
        network = build(
            "espnet", variant=variant, widths=(8, 16, 24), branches=2, alpha2=1, alpha3=1, classes=4, seed=1,
            align_corners=aligned,
        )  # fmt: skip
        path = save_model(tmp_path / f"{aligned}.safetensors", calibrated(network, preprocess), preprocess)
        picture = scene(504, 704, seed=1)
        whole = load(path, size="native")(picture).mask
        assert is_varied(whole)
        differs[aligned] = (load(path, tile=(288, 296))(picture).mask != whole).mean()
    assert differs[False] == 0
    assert 0 < differs[True] < 0.15


def test_tiles_of_espnetv2_cover_any_picture(tiny_v2):
    for size in ((40, 500), (333, 70), (20, 20)):
        mask = load(tiny_v2, tile=(128, 128))(scene(*size)).mask
        assert mask.shape == size


def test_a_tiled_picture_may_be_resized_too(tiny_espnet):
    picture = scene(500, 700, seed=4)
    whole = load(tiny_espnet, size=(304, 408))(picture).mask
    found = load(tiny_espnet, size=(304, 408), tile=(288, 288))(picture).mask
    assert (found == whole).mean() > 0.995  # tiles are resized within one level


def test_deployed_refuses_what_no_mask_can_hold():
    with pytest.raises(ValueError, match="256"):
        deploy(build("espnet", classes=300, alpha2=1, alpha3=1, variant="C"), Preprocess((64, 96), multiple=1))
