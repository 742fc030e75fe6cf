"""A mask is read as the indices that were meant, or refused with a diagnosis; never as something else."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from espy.data.cityscapes import LABEL_IDS
from espy.data.findings import DIAGNOSES
from espy.data.masks import Coding, FileError, read_mask
from espy.labels import CITYSCAPES
from trees import mask, save

THREE = Coding.plain(3)
MASK = mask()


def fault_of(path, coding=THREE):
    with pytest.raises(FileError) as caught:
        read_mask(path, coding)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.fault.diagnosis in DIAGNOSES
    assert not caught.value.fault.warning
    return caught.value.fault


def palette(array, colours=256):
    image = Image.fromarray(array)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 3 * colours, np.uint8).tobytes())
    return image


def png(width, height, bits, colour_type, rows, colours=None):
    """A PNG written chunk by chunk: Pillow writes no grey of 2 and 4 bits, and no colours of 16."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    table = chunk(b"PLTE", colours) if colours else b""
    return b"\x89PNG\r\n\x1a\n" + head + table + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# Read as they are


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}), ("a.bmp", {}), ("a.tif", {}), ("a.tif", {"compression": "tiff_lzw"}), ("a.pgm", {}),
        ("a.png", {"optimize": True}),
    ],
    ids=str,
)  # fmt: skip
def test_grey_masks_of_lossless_formats_hold_the_index(tmp_path, name, options):
    found = read_mask(save(tmp_path / name, MASK, **options), THREE)
    assert found.indices.dtype == np.uint8
    assert np.array_equal(found.indices, MASK)
    assert found.notes == ()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_palette_masks_hold_the_index_whatever_its_colour(tmp_path, name):
    assert np.array_equal(read_mask(save(tmp_path / name, palette(MASK)), THREE).indices, MASK)


def test_a_palette_with_gaps_and_transparency_changes_nothing(tmp_path):
    gaps = np.where(MASK == 2, 200, MASK).astype(np.uint8)
    save(tmp_path / "a.png", palette(gaps), transparency=0)
    coding = Coding((0, 1, 200))
    assert np.array_equal(read_mask(tmp_path / "a.png", coding).indices, MASK)
    assert fault_of(tmp_path / "a.png").values == (200,)


def test_greys_of_a_palette_that_may_be_the_classes_are_not_guessed(tmp_path):
    """What a program that shrinks PNGs makes of the grey mask 0, 2, 255: a palette of three, numbered anew."""
    numbered = Image.fromarray(np.arange(3, dtype=np.uint8).reshape(1, 3))
    numbered.putpalette([0, 0, 0, 2, 2, 2, 255, 255, 255])
    assert fault_of(save(tmp_path / "a.png", numbered)).diagnosis == "rgb_mask"
    numbered.putpalette([0, 0, 0, 127, 127, 127, 255, 255, 255])  # made to be seen: 127 is no class
    assert read_mask(save(tmp_path / "a.png", numbered), THREE).indices.tolist() == [[0, 1, 2]]
    two = Image.fromarray(np.arange(2, dtype=np.uint8).reshape(1, 2))
    two.putpalette([0, 0, 0, 255, 255, 255])
    assert read_mask(save(tmp_path / "a.png", two), THREE).indices.tolist() == [[0, 1]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("colours", [False, True], ids=["grey", "palette"])
def test_masks_of_few_bits_hold_the_index(tmp_path, bits, colours):
    values = np.random.default_rng(0).integers(0, min(2**bits, 200), (5, 16), np.uint8)
    rows = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(5, -1)
    body = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    table = np.random.default_rng(1).integers(0, 256, 3 * 2**bits, np.uint8).tobytes() if colours else None
    (tmp_path / "a.png").write_bytes(png(16, 5, bits, 3 if colours else 0, body, table))
    assert np.array_equal(read_mask(tmp_path / "a.png", Coding.plain(200)).indices, values)


@pytest.mark.parametrize("highest", [2, 7, 100, 254, 255])
def test_pgm_masks_of_any_highest_value_hold_the_index(tmp_path, highest):
    values = np.random.default_rng(0).integers(0, highest + 1, (5, 16), np.uint8)
    (tmp_path / "a.pgm").write_bytes(b"P5 16 5 %d\n" % highest + values.tobytes())
    assert np.array_equal(read_mask(tmp_path / "a.pgm", Coding.plain(255)).indices, values)


def test_a_mask_is_turned_by_its_own_exif_as_pictures_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.png", MASK, exif=exif)
    assert np.array_equal(read_mask(tmp_path / "a.png", THREE).indices, np.rot90(MASK, -1))
    save(tmp_path / "b.png", Image.fromarray(MASK.astype(np.uint16)), exif=exif)
    assert np.array_equal(read_mask(tmp_path / "b.png", THREE).indices, np.rot90(MASK, -1))


# Read, and said


@pytest.mark.parametrize(
    ("diagnosis", "name", "image"),
    [
        ("mask_16bit", "a.png", Image.fromarray(MASK.astype(np.uint16))),
        ("mask_16bit", "a.tif", Image.fromarray(MASK.astype(np.uint16))),
        ("mask_16bit", "a.tif", Image.fromarray(MASK.astype(np.int32))),
        ("float_mask", "a.tif", Image.fromarray(MASK.astype(np.float32))),
        ("alpha_mask", "a.png", Image.fromarray(np.dstack([MASK, np.full_like(MASK, 255)]))),
        ("rgb_mask", "a.png", Image.fromarray(np.dstack([MASK] * 3))),
        ("rgb_mask", "a.png", Image.fromarray(np.dstack([MASK] * 3 + [np.full_like(MASK, 255)]))),
    ],
    ids=["16 bits", "16-bit TIFF", "32 bits", "float", "alpha", "RGB", "RGBA"],
)
def test_what_loses_nothing_is_read_with_a_note(tmp_path, diagnosis, name, image):
    found = read_mask(save(tmp_path / name, image), THREE)
    assert np.array_equal(found.indices, MASK)
    assert [(note.diagnosis, note.warning) for note in found.notes] == [(diagnosis, True)]


def test_a_lossless_webp_has_its_index_in_three_channels(tmp_path):
    path = save(tmp_path / "a.webp", MASK, lossless=True, exact=True)
    assert np.array_equal(read_mask(path, THREE).indices, MASK)
    exif = Image.Exif()
    exif[0x010E] = "makes the file an extended one"
    path = save(tmp_path / "b.webp", MASK, lossless=True, exact=True, exif=exif)
    assert np.array_equal(read_mask(path, THREE).indices, MASK)


# Refused


@pytest.mark.parametrize(
    ("diagnosis", "name", "array", "options"),
    [
        ("lossy_mask", "a.jpg", MASK, {}),
        ("lossy_mask", "a.png", MASK, {"format": "JPEG"}),
        ("lossy_mask", "a.webp", MASK, {}),
        ("lossy_mask", "a.avif", MASK, {}),
        ("lossy_mask", "a.gif", MASK, {}),
        ("lossy_mask", "a.tif", MASK, {"compression": "jpeg"}),
        ("rgb_mask", "a.png", np.dstack([MASK, MASK, MASK + 1]), {}),
        ("alpha_mask", "a.png", np.dstack([MASK, MASK]), {}),
        ("value_out_of_range", "a.png", MASK.astype(np.uint16) * 257, {}),
        ("value_out_of_range", "a.tif", -MASK.astype(np.int32), {}),
        ("float_mask", "a.tif", MASK.astype(np.float32) / 2, {}),
        ("float_mask", "a.tif", np.full((4, 4), np.nan, np.float32), {}),
        ("float_mask", "a.tif", np.full((4, 4), 1e30, np.float32), {}),
    ],
    ids=["JPEG", "JPEG named PNG", "WebP", "AVIF", "GIF", "JPEG in TIFF", "colours", "transparent", "16 bits", "negative",
         "halves", "NaN", "huge"],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_by_name(tmp_path, diagnosis, name, array, options):
    assert fault_of(save(tmp_path / name, array, **options)).diagnosis == diagnosis


def test_16_bits_in_each_of_three_channels_are_refused(tmp_path):
    """Pillow reads the upper bytes alone: small indices would all become 0."""
    row = b"\0" + np.array([[1, 1, 1], [2, 2, 2]], ">u2").tobytes()
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, row))
    assert fault_of(tmp_path / "a.png").diagnosis == "mask_16bit"


def test_a_mask_of_several_frames_is_refused(tmp_path):
    frames = [Image.fromarray(mask(seed=k)) for k in range(2)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert "2 frames" in fault_of(tmp_path / "a.tif").what


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"<html>", b"\x89PNG\r\n\x1a\nrest"], ids=repr)
def test_files_that_are_no_pictures_are_unreadable(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert fault_of(tmp_path / "a.png").diagnosis == "unreadable"


def test_a_missing_file_a_folder_and_a_cut_file_are_unreadable(tmp_path):
    (tmp_path / "folder.png").mkdir()
    data = save(tmp_path / "a.png", mask(200, 200)).read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for name in ("none.png", "folder.png", "cut.png"):
        assert fault_of(tmp_path / name).diagnosis == "unreadable"


# Values


def meaning(value, coding):
    """Class, 255 for void, None for neither: from the definition."""
    if value in coding.classes:
        return coding.classes.index(value)
    return 255 if value in coding.void else None


CODINGS = [THREE, Coding.plain(255), LABEL_IDS, Coding((7, 0, 200), frozenset({1, 255}))]


@pytest.mark.parametrize("coding", CODINGS, ids=["3 classes", "255 classes", "labelIds", "any"])
@given(array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)), wide=st.booleans())
@settings(max_examples=60)
def test_every_value_is_mapped_right_or_reported(tmp_path_factory, coding, array, wide):
    path = save(tmp_path_factory.mktemp("m") / "a.png", array.astype(np.uint16) if wide else array)
    wanted = [[meaning(value, coding) for value in row] for row in array.tolist()]
    odd = {v for v in array.ravel().tolist() if meaning(v, coding) is None}
    if odd:
        fault = fault_of(path, coding)
        assert fault.diagnosis == "value_out_of_range"
        assert set(fault.values) == odd
    else:
        assert read_mask(path, coding).indices.tolist() == wanted


def test_cityscapes_ids_are_those_of_its_own_table():
    """helpers/labels.py of cityscapesScripts: name, id, trainId."""
    published = {
        "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
        "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
        "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
    }  # fmt: skip
    assert LABEL_IDS.classes == tuple(published[label.name] for label in CITYSCAPES[:19])
    assert LABEL_IDS.void == {0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255}
