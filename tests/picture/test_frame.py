"""What a network sees of a picture, and the way back to the picture's own pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from espy.errors import EspyError
from espy.header import Preprocess
from espy.picture.frame import Frame, native_size
from samples import noise, scene

SIDES = st.integers(1, 3000)
CROPS = st.sampled_from([1.0, 0.875, 0.5])
NETWORK = st.tuples(st.integers(16, 1500), st.integers(16, 1500))


def preprocess(size=(64, 96), **changes):
    return Preprocess(size, **changes)


@st.composite
def frames(draw, resizes=("stretch", "short", "native"), side=SIDES):
    resize = draw(st.sampled_from(resizes))
    size = draw(NETWORK)
    picture = (draw(side), draw(side))
    given = draw(st.sampled_from([None, None, (48, 80), "native"]))
    multiple = draw(st.sampled_from([1, 8, 32]))
    crop = draw(CROPS) if resize == "short" else 1.0
    return Frame.of(Preprocess(size, resize=resize, multiple=multiple, crop=crop), picture, given)


# Sizes


@given(SIDES, SIDES, st.sampled_from([1, 2, 8, 16, 32, 64, 100]))
def test_a_native_size_is_the_pictures_rounded_down_to_the_multiple_and_at_least_32(height, width, multiple):
    for side, native in zip((height, width), native_size((height, width), multiple), strict=True):
        assert native % multiple == 0
        assert native >= 32
        if side >= max(32, multiple):
            assert side - multiple < native <= max(side, -(-32 // multiple) * multiple)
        else:
            assert native - multiple < 32


def test_the_size_is_the_preparations_unless_another_is_given():
    p = preprocess((64, 96))
    assert Frame.of(p, (500, 700)).network == (64, 96)
    assert Frame.of(p, (500, 700), (128, 160)).network == (128, 160)
    assert Frame.of(p, (500, 700), "native").network == (480, 672)
    assert Frame.of(preprocess(resize="native", multiple=1), (500, 701)).network == (500, 701)
    assert Frame.of(preprocess(resize="native"), (500, 701), (64, 64)).network == (64, 64)


def test_short_keeps_the_aspect_and_crops_the_middle():
    frame = Frame.of(preprocess((100, 100), resize="short"), (200, 500))
    assert frame.box == (150, 0, 350, 200)
    tall = Frame.of(preprocess((100, 100), resize="short"), (500, 200))
    assert tall.box == (0, 150, 200, 350)


@given(SIDES, SIDES, NETWORK, CROPS)
def test_short_shows_the_largest_middle_part_of_the_networks_aspect_or_a_share_of_it(height, width, size, crop):
    frame = Frame.of(Preprocess(size, resize="short", crop=crop), (height, width))
    left, top, right, bottom = frame.box
    assert right - left == pytest.approx((bottom - top) * size[1] / size[0])
    assert left == pytest.approx(width - right, abs=1e-6)
    assert top == pytest.approx(height - bottom, abs=1e-6)
    assert max((right - left) / width, (bottom - top) / height) == pytest.approx(crop)


@pytest.mark.parametrize("picture", [(512, 512), (512, 768), (768, 512), (256, 512), (1024, 1536)])
def test_short_at_seven_eighths_is_a_resize_to_256_and_a_centre_crop_of_224(picture):
    """As classifiers of ImageNet are fed; exact where the resized long side is a whole, even number of pixels."""
    image = Image.fromarray(noise(*picture))
    scale = min(picture) / 256
    h, w = (int(side / scale) for side in picture)
    left, top = (w - 224) // 2, (h - 224) // 2
    expected = image.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    found = Frame.of(preprocess((224, 224), resize="short", crop=0.875), picture).to_network(image)
    assert np.array_equal(found, np.asarray(expected))


# Back


@given(frames(), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_a_box_comes_back_to_its_place_within_half_a_pixel(frame, corners):
    left, top, right, bottom = frame.box
    h, w = frame.network
    x = left + (right - left) * np.sort(corners[:2])
    y = top + (bottom - top) * np.sort(corners[2:])
    box = np.array([x[0], y[0], x[1], y[1]])
    across, down = w / (right - left), h / (bottom - top)
    seen = (box - [left, top, left, top]) * [across, down, across, down]
    back = frame.boxes_back(seen[None])
    assert back.dtype == np.float32
    assert back.shape == (1, 4)
    assert np.abs(back[0] - box).max() < 0.5


def test_no_boxes_come_back_as_no_boxes():
    assert Frame.of(preprocess(), (30, 40)).boxes_back(np.zeros((0, 4))).shape == (0, 4)


def test_boxes_that_reach_over_the_edge_are_clipped_to_the_picture():
    back = Frame.of(preprocess((100, 100)), (50, 200)).boxes_back(np.array([[-10, -10, 120, 120]]))
    assert back.tolist() == [[0, 0, 200, 50]]


@given(frames(resizes=("stretch", "native"), side=st.integers(1, 400)), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_mask_comes_back_as_pillows_nearest_neighbour(frame, seed):
    mask = noise(*frame.network, seed=seed, channels=0)
    back = frame.mask_back(mask)
    expected = Image.fromarray(mask).resize(frame.picture[::-1], Image.Resampling.NEAREST)
    assert back.dtype == np.uint8
    assert np.array_equal(back, np.asarray(expected))


@given(st.integers(1, 150), st.integers(1, 150), CROPS, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_cropped_mask_comes_back_under_each_pixels_centre(height, width, crop, seed):
    frame = Frame.of(preprocess((32, 48), resize="short", crop=crop), (height, width))
    mask = noise(32, 48, seed=seed, channels=0)
    back = frame.mask_back(mask)
    left, top, right, bottom = frame.box
    assert back.shape == (height, width)
    for y in range(0, height, 7):
        for x in range(0, width, 5):
            v = (y + 0.5 - top) * 32 / (bottom - top)
            u = (x + 0.5 - left) * 48 / (right - left)
            if abs(v - round(v)) > 1e-9 and abs(u - round(u)) > 1e-9:  # not on the line between two pixels
                assert back[y, x] == mask[min(max(int(np.floor(v)), 0), 31), min(max(int(np.floor(u)), 0), 47)]


# To the network


def two_taps(array, size, box):
    """Bilinear between the two nearest pixel centres a direction, edge pixels repeated; float64."""

    def along(array, outputs, start, end):
        inputs = array.shape[0]
        place = start + (np.arange(outputs) + 0.5) * (end - start) / outputs - 0.5
        low = np.floor(place)
        part = (place - low).reshape(-1, *[1] * (array.ndim - 1))
        below, above = (np.clip(low + k, 0, inputs - 1).astype(int) for k in (0, 1))
        return array[below] * (1 - part) + array[above] * part

    left, top, right, bottom = box
    rows = along(array.astype(np.float64), size[0], top, bottom)
    return along(rows.swapaxes(0, 1), size[1], left, right).swapaxes(0, 1)


@given(
    st.sampled_from(["stretch", "short"]), st.integers(1, 200), st.integers(1, 200),
    st.tuples(st.integers(16, 160), st.integers(16, 160)), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_plain_is_two_tap_bilinear_within_one_level(resize, height, width, size, seed):
    array = noise(height, width, seed=seed)
    frame = Frame.of(Preprocess(size, resize=resize, filter="plain", multiple=1), (height, width))
    found = frame.to_network(array)
    assert found.shape == (*size, 3)
    assert found.dtype == np.uint8
    assert np.abs(found - np.rint(two_taps(array, size, frame.box))).max() <= 1


def test_plain_at_half_size_is_exactly_the_rounded_mean_of_two_by_two():
    array = noise(128, 192)
    blocks = array.reshape(64, 2, 96, 2, 3).astype(int).sum((1, 3))
    found = Frame.of(preprocess(filter="plain"), (128, 192)).to_network(array)
    assert np.array_equal(found, (blocks + 2) // 4)


@given(
    st.integers(1, 300), st.integers(1, 300), st.tuples(st.integers(16, 200), st.integers(16, 200)), st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_antialias_is_pillows_bilinear(height, width, size, seed):
    image = Image.fromarray(noise(height, width, seed=seed))
    frame = Frame.of(Preprocess(size, multiple=1), (height, width))
    expected = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
    assert np.array_equal(frame.to_network(image), expected)
    assert np.array_equal(frame.to_network(np.asarray(image)), expected)


@pytest.mark.parametrize("kind", ["antialias", "plain"])
def test_a_picture_of_the_networks_size_is_left_as_it_is(kind):
    array = noise(64, 96)
    assert np.array_equal(Frame.of(preprocess(filter=kind), (64, 96)).to_network(array), array)


@given(
    st.sampled_from(["antialias", "plain"]), st.sampled_from(["stretch", "short"]), st.integers(1, 400), st.integers(1, 400),
    st.tuples(st.integers(16, 300), st.integers(16, 300)), st.data(),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_a_part_sees_the_same_pixels_as_the_whole_within_one_level_a_rounding(kind, resize, height, width, size, data):
    array = scene(height, width, seed=height)
    frame = Frame.of(Preprocess(size, resize=resize, filter=kind, multiple=1), (height, width))
    whole = frame.to_network(array).astype(int)
    top, bottom = sorted(data.draw(st.lists(st.integers(0, size[0]), min_size=2, max_size=2, unique=True)))
    left, right = sorted(data.draw(st.lists(st.integers(0, size[1]), min_size=2, max_size=2, unique=True)))
    part = frame.part(top, left, bottom, right).to_network(Image.fromarray(array))
    assert part.shape == (bottom - top, right - left, 3)
    roundings = 2 if kind == "antialias" else 1  # Pillow rounds after each of its two passes
    assert np.abs(part - whole[top:bottom, left:right]).max() <= roundings


@given(st.integers(1, 100_000), st.integers(16, 40_000), st.data())
def test_a_parts_box_never_leaves_the_picture(side, network, data):
    frame = Frame.of(Preprocess((32, 32), multiple=1), (1, side), (32, network))
    start = data.draw(st.integers(0, network - 1))
    part = frame.part(0, start, 32, network)
    assert np.float32(part.box[2]) <= np.float32(side)  # Pillow computes boxes in float32


def test_a_picture_of_another_size_than_the_frames_is_refused():
    with pytest.raises(EspyError, match="frame for"):
        Frame.of(preprocess(), (30, 40)).to_network(noise(40, 30))
