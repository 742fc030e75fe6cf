"""Overlays, masks and legends that people look at."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from espy.labels import CITYSCAPES, VOC, Label, plain
from espy.picture.draw import colour_mask, draw_legend, overlay, shares, side_by_side
from espy.picture.write import write_mask, write_picture
from samples import noise, scene

LABELS = (Label("void", (0, 0, 0)), Label("red", (255, 0, 0)), Label("teal", (0, 100, 101)))


def test_a_mask_is_shown_in_its_labels_colours():
    mask = noise(20, 30, channels=0) % 20
    image = colour_mask(mask, CITYSCAPES)
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), mask)
    colours = np.array([label.colour for label in CITYSCAPES], np.uint8)
    assert np.array_equal(np.asarray(image.convert("RGB")), colours[mask])


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_an_overlay_blends_each_pixel_with_its_labels_colour(alpha):
    array, mask = noise(30, 40), noise(30, 40, seed=1, channels=0) % 3
    found = np.asarray(overlay(Image.fromarray(array), mask, LABELS, alpha=alpha, legend=False)).astype(int)
    colours = np.array([label.colour for label in LABELS])[mask]
    expected = np.where((mask == 0)[..., None], array, (1 - alpha) * array + alpha * colours)
    assert np.abs(found - expected).max() <= 1.5  # weights are 1/255
    assert np.array_equal(found[mask == 0], array[mask == 0])


def test_black_labels_leave_the_picture_as_it_is():
    array = noise(100, 150)
    found = overlay(Image.fromarray(array), np.zeros((100, 150), np.uint8), VOC, legend=False)
    assert np.array_equal(np.asarray(found), array)


def test_an_overlay_of_more_rows_than_a_strip_has_no_seams():
    image, mask = (
        Image.fromarray(scene(1200, 50)),
        np.repeat(np.arange(1200) // 400, 50).reshape(1200, 50).astype(np.uint8),
    )
    found = np.asarray(overlay(image, mask, LABELS, legend=False)).astype(float)
    colours = np.array([label.colour for label in LABELS])[mask]
    expected = np.where((mask == 0)[..., None], np.asarray(image), (np.asarray(image) + colours) / 2)
    assert np.abs(found - expected).max() <= 1.5


def test_drawing_leaves_the_picture_and_the_mask_alone():
    array, mask = noise(200, 300), noise(200, 300, channels=0) % 20
    image, before = Image.fromarray(array), mask.copy()
    overlay(image, mask, CITYSCAPES)
    assert np.array_equal(np.asarray(image), array)
    assert np.array_equal(mask, before)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 2000), (2000, 3), (40, 40), (300, 400), (61, 97), (3000, 4000)])
def test_an_overlay_has_the_pictures_size(size):
    mask = np.broadcast_to(np.arange(size[1]) * 20 // size[1], size).astype(np.uint8)
    found = overlay(Image.fromarray(scene(*size)), mask, CITYSCAPES)
    assert found.size == size[::-1]
    assert found.mode == "RGB"


def legend_rows(size, labels, part):
    """Where a legend changed a white picture: (rows, columns)."""
    image = Image.new("RGB", size[::-1], (255, 255, 255))
    draw_legend(image, labels, part)
    changed = (np.asarray(image) != 255).any(-1)
    return np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))


@pytest.mark.parametrize("size", [(300, 400), (3000, 4000), (225, 400), (1080, 1920)])
def test_a_legend_is_a_band_at_the_bottom_that_leaves_most_of_the_picture(size):
    rows, _ = legend_rows(size, CITYSCAPES, {label.name: 0.05 for label in CITYSCAPES})
    assert rows[-1] == size[0] - 1
    assert len(rows) == rows[-1] - rows[0] + 1 <= 0.4 * size[0] + 1


@pytest.mark.parametrize("size", [(300, 400), (3000, 4000)])
def test_a_legend_shows_a_square_in_the_colour_of_each_class_it_names(size):
    part = {label.name: 0.0 for label in CITYSCAPES} | {"car": 0.6, "sky": 0.4}
    image = Image.new("RGB", size[::-1], (255, 255, 255))
    draw_legend(image, CITYSCAPES, part)
    array = np.asarray(image)
    for colour, shown in (((0, 0, 142), True), ((70, 130, 180), True), ((128, 64, 128), False)):  # car, sky, no road
        assert (array == colour).all(-1).any() == shown


@pytest.mark.parametrize(("width", "least"), [(400, 9), (4000, 45)])
def test_letters_grow_with_the_picture_and_stay_readable(width, least):
    """The height of the legend's white letters, in pixels."""
    image = Image.new("RGB", (width, width * 3 // 4))
    draw_legend(image, (Label("Hill", (0, 0, 0)), Label("x", (0, 0, 0))), {"Hill": 1.0, "x": 0.0})
    size = max(12, round(0.02 * width))
    letters = np.asarray(image)[:, round(2.2 * size) : round(4 * size)].max(-1) > 200
    rows = np.flatnonzero(letters.any(1))
    assert rows[-1] - rows[0] + 1 >= least


@given(st.integers(1, 400), st.integers(1, 400), st.integers(2, 256), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_any_size_and_number_of_classes_is_drawn_within_the_picture(height, width, classes, seed):
    mask = (noise(height, width, seed=seed, channels=0).astype(int) % classes).astype(np.uint8)
    labels = plain(classes)
    image = Image.fromarray(noise(height, width, seed=seed))
    assert overlay(image, mask, labels).size == (width, height)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 20)))
def test_shares_are_the_counts_of_numpy_and_sum_to_one(mask):
    found = shares(mask, VOC)
    assert list(found) == [label.name for label in VOC]
    counts = np.bincount(mask.ravel(), minlength=21) / mask.size
    assert np.allclose(list(found.values()), counts)
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (30, 30), (10, 100)])
def test_side_by_side_holds_both_pictures_whole(size):
    left, right = noise(*size), noise(*size, seed=1)
    found = np.asarray(side_by_side(Image.fromarray(left), Image.fromarray(right)))
    axis = 0 if found.shape[0] == 2 * size[0] else 1
    assert np.array_equal(found, np.concatenate([left, right], axis))
    assert (axis == 0) == (size[1] > 1.5 * size[0])


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.integers(0, 19)))
@settings(max_examples=30, deadline=None)
def test_a_mask_file_holds_the_class_indices_and_the_labels_colours(tmp_path_factory, mask):
    path = tmp_path_factory.mktemp("mask") / "m.png"
    write_mask(path, mask, CITYSCAPES)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "P"
        assert image.size == mask.shape[::-1]
        assert np.array_equal(np.asarray(image), mask)
        palette = np.reshape(image.getpalette(), (-1, 3))[:20]
    assert palette.tolist() == [list(label.colour) for label in CITYSCAPES]


def test_masks_of_two_classes_and_of_256_keep_their_indices(tmp_path):
    for classes in (2, 3, 16, 17, 256):
        mask = (np.arange(256).reshape(16, 16) % classes).astype(np.uint8)
        write_mask(tmp_path / f"{classes}.png", mask, plain(classes))
        with Image.open(tmp_path / f"{classes}.png") as image:
            assert np.array_equal(np.asarray(image), mask)


@pytest.mark.parametrize(
    ("ending", "kind"), [(".jpg", "JPEG"), (".jpeg", "JPEG"), (".JPG", "JPEG"), (".png", "PNG"), (".webp", "WEBP")]
)
def test_a_picture_is_written_in_the_format_of_its_ending(tmp_path, ending, kind):
    path = tmp_path / f"p{ending}"
    write_picture(path, Image.fromarray(scene(40, 60)))
    with Image.open(path) as image:
        assert image.format == kind
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - scene(40, 60)).mean() < 8


def test_what_a_file_said_of_itself_does_not_turn_its_overlay():
    from espy.picture.read import read

    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        out, again = io.BytesIO(), io.BytesIO()
        Image.fromarray(scene(24, 40)).save(out, kind, exif=exif)
        image = overlay(read(out.getvalue()).image, np.zeros((40, 24), np.uint8), LABELS)
        for target in ("JPEG", "PNG", "WEBP"):
            again.seek(0)
            again.truncate()
            image.save(again, target)
            assert read(again.getvalue()).size == (40, 24), (kind, target)
