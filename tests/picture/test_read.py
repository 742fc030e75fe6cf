"""Pictures are read whole, upright and right, whatever their format, or refused in one line that names them."""

import io
import json
import shutil
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from espy.errors import PictureError
from espy.picture.read import MAX_PIXELS, read
from samples import BADINPUT, PHOTO, attempt, needs, noise, scene

LOSSY = (".jpg", ".jpeg", ".jp2", ".avif", ".gif", "")  # and palettes: means within 6, as the manifest says


def manifest():
    return json.loads((BADINPUT / "manifest.json").read_text("utf-8"))["files"] if BADINPUT.is_dir() else []


def entries(*verdicts):
    return [pytest.param(entry, id=entry["file"]) for entry in manifest() if entry["expect"] in verdicts]


def read_silently(source, **keywords):
    """A picture, and no warning on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return read(source, **keywords)
        finally:
            assert [str(w.message) for w in caught] == []


def refusal(source, **keywords):
    """The message with which a source is refused; one line."""
    with pytest.raises(PictureError) as caught:
        read_silently(source, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The shared folder of unusual and broken files


def check_content(entry, picture):
    """What the manifest says of the pixels."""
    array = picture.array
    assert array.dtype == np.uint8
    assert array.shape == (*entry["upright_size"][::-1], 3)
    mean = array.reshape(-1, 3).mean(0)
    tolerance = 6 if Path(entry["file"]).suffix.lower() in LOSSY or entry.get("mode") == "P" else 3
    for key in ("mean_rgb", "mean_rgb_without_alpha"):
        if key in entry:
            assert np.abs(mean - entry[key]).max() <= tolerance
    if "mean_grey_8bit" in entry:
        assert np.abs(mean - entry["mean_grey_8bit"]).max() <= 1
    if "upright_equals" in entry:
        with Image.open(BADINPUT / entry["upright_equals"]) as reference:
            difference = np.abs(array.astype(int) - np.asarray(reference.convert("RGB")))
        assert difference.mean() < entry["mean_abs_difference_below"]
    if entry.get("frames", 1) > 1:
        assert f"first of {entry['frames']}" in picture.note
    else:
        assert picture.note is None


@needs(BADINPUT)
@pytest.mark.parametrize("entry", entries("read"))
def test_a_fine_file_is_read_right(entry):
    check_content(entry, read_silently(BADINPUT / entry["file"]))


@needs(BADINPUT)
@pytest.mark.parametrize("entry", entries("refuse"))
def test_a_broken_file_is_refused_by_name_in_one_line(entry):
    path = BADINPUT / entry["file"]
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert len(message) > len(f"{path}: ") + 10  # a reason
    if entry["file"].startswith("bomb_"):
        assert "--max-pixels" in message


@needs(BADINPUT)
@pytest.mark.parametrize("entry", entries("read_or_refuse"))
def test_a_rare_file_is_read_right_or_refused(entry):
    path = BADINPUT / entry["file"]
    picture, message = attempt(PictureError, read_silently, path)
    if picture is None:
        assert message.startswith(f"{path}: ")
    else:
        check_content(entry, picture)


@needs(BADINPUT)
@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("html.jpg", "HTML"), ("picture.svg", "SVG"), ("lfs_pointer.jpg", "LFS"), ("zero_byte.jpg", "empty"),
        ("zeros.jpg", "zero bytes"), ("folder.jpg", "folder"), ("truncated.jpg", "truncated"), ("bad_crc.png", "damaged"),
        ("float32_nan.tif", "not numbers"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_was_found(file, says):
    assert says in refusal(BADINPUT / file)


@needs(BADINPUT)
def test_content_decides_not_the_name():
    with Image.open(BADINPUT / "png_named.jpg") as image:
        assert image.format == "PNG"
        assert np.array_equal(read(BADINPUT / "png_named.jpg").array, np.asarray(image.convert("RGB")))


@needs(BADINPUT)
def test_one_bit_becomes_black_and_white():
    assert set(np.unique(read(BADINPUT / "bilevel.png").array)) == {0, 255}


# Any picture, any lossless format, any orientation

# EXIF 2.3, tag 0x0112: which side of the upright picture the stored row 0 and the stored column 0 are
SIDES = {
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


def upright(stored, orientation):
    row, column = SIDES[orientation]
    if row in ("left", "right"):
        stored, row, column = stored.swapaxes(0, 1), column, row
    if row == "bottom":
        stored = stored[::-1]
    return stored[:, ::-1] if column == "right" else stored


FORMATS = {
    "PNG": ("L", "RGB", "RGBA", "P", "1", "LA", "I;16"),
    "TIFF": ("L", "RGB", "RGBA", "P", "1", "LA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("L", "RGB", "P", "1"),
}
CASES = [(kind, mode) for kind, modes in FORMATS.items() for mode in modes]
SHAPES = {"RGB": (3,), "RGBA": (4,), "LA": (2,)}


@st.composite
def pictures(draw, mode):
    """(pixels as stored in the file, palette or None)."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    kind = {"I;16": np.uint16, "1": np.bool_}.get(mode, np.uint8)
    array = draw(hnp.arrays(kind, (height, width, *SHAPES.get(mode, ()))))
    palette = draw(hnp.arrays(np.uint8, (256, 3))) if mode == "P" else None
    return array, palette


def as_rgb(array, mode, palette):
    """uint8 [H, W, 3] of stored pixels, by the contract: alpha dropped, 16 bits scaled to 8."""
    if mode == "P":
        return palette[array]
    if mode == "I;16":
        array = np.rint(array / 257).astype(np.uint8)
    elif mode == "1":
        array = np.where(array, 255, 0).astype(np.uint8)
    elif mode in ("LA", "RGBA"):
        array = array[..., :-1]
    return np.broadcast_to(array.reshape(*array.shape[:2], -1), (*array.shape[:2], 3))


def encode(array, mode, palette, kind, orientation):
    image = Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette.tobytes())
    assert image.mode == mode
    options = {}
    if kind == "WEBP":
        options = {"lossless": True, "exact": True}
    if kind != "BMP":
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(("kind", "mode"), CASES, ids=[f"{kind} {mode}" for kind, mode in CASES])
@given(data=st.data())
@settings(max_examples=25)
def test_a_picture_saved_without_loss_is_read_back_exactly_in_every_orientation(kind, mode, data):
    array, palette = data.draw(pictures(mode))
    orientation = data.draw(st.integers(1, 8)) if kind != "BMP" else 1
    picture = read_silently(encode(array, mode, palette, kind, orientation))
    expected = upright(as_rgb(array, mode, palette), orientation)
    assert picture.size == expected.shape[:2]
    assert np.array_equal(picture.array, expected)
    assert picture.image.mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_lossy_formats_stand_upright_too(kind, orientation):
    stored = scene(64, 96, seed=3)
    data = encode(stored, "RGB", None, kind, orientation)
    expected = upright(stored, orientation)
    found = read_silently(data).array
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 8


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_16_bit_tiffs_of_either_byte_order_are_scaled(byte_order):
    values = np.arange(0, 65536, 257 * 3, dtype=np.uint16).reshape(1, -1)
    tags = {256: values.size, 257: 1, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 2 * values.size}
    start = 8 + 2 * values.size
    entries = b"".join(struct.pack(f"{byte_order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = (b"II*\0" if byte_order == "<" else b"MM\0*") + struct.pack(f"{byte_order}I", start)
    data += values.astype(f"{byte_order}u2").tobytes() + struct.pack(f"{byte_order}H", len(tags)) + entries + b"\0" * 4
    assert np.array_equal(read_silently(data).array[0, :, 0], np.arange(0, 256, 3))


def test_grey_with_a_transparent_value_keeps_its_grey():
    out = io.BytesIO()
    Image.fromarray(noise(5, 7, channels=0)).save(out, "PNG", transparency=int(noise(5, 7, channels=0)[0, 0]))
    assert np.array_equal(read_silently(out.getvalue()).array[..., 1], noise(5, 7, channels=0))


# What may be given


@pytest.mark.parametrize(
    "given_as",
    [str, Path, Path.read_bytes, lambda p: bytearray(p.read_bytes()), lambda p: memoryview(p.read_bytes()),
     lambda p: io.BytesIO(p.read_bytes()), lambda p: p.open("rb"), Image.open, lambda p: noise(21, 34)],
    ids=["str", "Path", "bytes", "bytearray", "memoryview", "BytesIO", "file", "PIL image", "array"],
)  # fmt: skip
def test_a_picture_is_the_same_however_it_is_given(tmp_path, given_as):
    path = tmp_path / "p.png"
    Image.fromarray(noise(21, 34)).save(path)
    source = given_as(path)
    picture = read_silently(source)
    assert np.array_equal(picture.array, noise(21, 34))
    if hasattr(source, "close"):
        source.close()


def test_a_file_of_a_web_upload_is_read_from_where_it_stands():
    data = encode(noise(4, 6), "RGB", None, "PNG", 1)
    file = io.BytesIO(b"form header" + data)
    file.seek(len(b"form header"))
    assert np.array_equal(read(file).array, noise(4, 6))


def test_grey_arrays_become_three_equal_channels():
    grey = noise(9, 5, channels=0)
    assert np.array_equal(read(grey).array, np.dstack([grey] * 3))


def test_strided_and_flipped_arrays_are_read_as_they_look():
    array = noise(20, 30)
    for view in (array[::2, ::3], array[::-1], array[:, :, ::-1], array.swapaxes(0, 1), np.asfortranarray(array)):
        assert np.array_equal(read(view).array, view)


def test_an_array_that_changes_later_does_not_change_the_picture():
    array = noise(6, 6)
    picture = read(array)
    before = array.copy()
    array[:] = 0
    assert np.array_equal(picture.array, before)


def test_a_pillow_image_that_changes_later_does_not_change_the_picture():

    image = Image.fromarray(noise(6, 6))
    picture = read(image)
    image.paste((0, 0, 0), (0, 0, 6, 6))
    assert np.array_equal(picture.array, noise(6, 6))


def test_a_pillow_image_given_stays_as_it_is():
    data = encode(noise(4, 6), "RGB", None, "PNG", 6)
    image = Image.open(io.BytesIO(data))
    assert read(image).size == (6, 4)
    assert image.size == (6, 4)  # width, height: as stored
    assert np.array_equal(np.asarray(image), noise(4, 6))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"]
)
def test_pillow_images_of_every_mode_are_read(mode):
    picture = read_silently(Image.new(mode, (7, 3)))
    assert picture.array.shape == (3, 7, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 3)), np.zeros((4, 4, 3), np.uint16), np.zeros((4, 4), bool),
        np.zeros((4, 4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 1), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8), np.zeros(4, np.uint8), np.zeros((), np.uint8), np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.uint8), np.array([None]),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)  # fmt: skip
def test_arrays_that_are_no_pictures_are_refused(array):
    assert "array" in refusal(array)


def test_a_file_opened_as_text_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with (tmp_path / "a.txt").open() as file:
        assert "'rb'" in refusal(file)
    assert "'rb'" in refusal(io.StringIO("hello"))


@pytest.mark.parametrize("source", [None, 3, 2.5, ["a.jpg"]], ids=repr)
def test_things_that_are_no_pictures_are_refused(source):
    assert type(source).__name__ in refusal(source)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    assert refusal(tmp_path / "none.jpg") == f"{tmp_path}/none.jpg: no such file"
    assert refusal(tmp_path).startswith(f"{tmp_path}: is a folder")


@pytest.mark.parametrize("name", ["a\0b.jpg", "x" * 5000 + ".jpg"], ids=["zero byte", "5000 letters"])
def test_names_that_no_file_can_have_are_refused(name):
    with pytest.raises(PictureError):
        read(name)


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert refusal(tmp_path / "loop.jpg").startswith(f"{tmp_path}/loop.jpg: ")


# Cut and damaged files


def encoded(kind, **options):
    out = io.BytesIO()
    Image.fromarray(scene(48, 64, seed=1)).save(out, kind, **options)
    return out.getvalue()


ENCODED = {
    "JPEG": ("JPEG", {}), "progressive JPEG": ("JPEG", {"progressive": True}), "PNG": ("PNG", {}),
    "WebP": ("WEBP", {}), "lossless WebP": ("WEBP", {"lossless": True}), "BMP": ("BMP", {}), "GIF": ("GIF", {}),
    "TIFF": ("TIFF", {}), "LZW TIFF": ("TIFF", {"compression": "tiff_lzw"}), "PPM": ("PPM", {}), "AVIF": ("AVIF", {}),
    "JPEG 2000": ("JPEG2000", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODED)
def test_a_cut_file_is_never_a_wrong_picture(name):
    data = encoded(ENCODED[name][0], **ENCODED[name][1])
    whole = read(data).array
    refused = 0
    for length in np.linspace(0, len(data) - 1, 30).astype(int):
        try:
            found = read_silently(data[:length]).array
        except PictureError:
            refused += 1
            continue
        assert np.array_equal(found, whole), f"{length} of {len(data)} bytes"
    assert refused >= 20


def test_a_cut_file_stays_refused_where_a_program_lets_pillow_pad_files(monkeypatch):
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # many training scripts set it
    data = encoded("JPEG")
    refusal(data[: len(data) // 2])


def test_a_png_with_any_damaged_byte_is_refused_or_whole():

    data = encoded("PNG")
    whole = read(data).array
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(data), 60):
        changed = bytearray(data)
        changed[place] ^= int(generator.integers(1, 256))
        try:
            found = read_silently(bytes(changed)).array
        except PictureError:
            continue
        assert np.array_equal(found, whole), f"byte {place}"


# Large pictures


def one_bit_png(width, height):
    """A white PNG of 1 bit a pixel, made without holding it."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(1)
    row = b"\0" + b"\xff" * (-(-width // 8))
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_of_95_megapixels_is_read_without_a_warning():
    picture = read_silently(one_bit_png(9500, 10000))
    assert picture.size == (10000, 9500)
    assert picture.image.getpixel((9499, 9999)) == (255, 255, 255)


def test_a_picture_of_exactly_the_limit_is_read_and_one_above_is_refused():
    assert MAX_PIXELS == 100_000_000
    data = one_bit_png(100, 30)
    assert read(data, max_pixels=3000).size == (30, 100)
    message = refusal(data, max_pixels=2999)
    assert "--max-pixels" in message
    assert "100x30" in message
    assert "--max-pixels" in refusal(noise(5, 5), max_pixels=24)
    assert "--max-pixels" in refusal(Image.new("RGB", (5, 5)), max_pixels=24)
    assert "--max-pixels" in refusal(one_bit_png(10000, 10001))


def test_a_higher_limit_lets_a_larger_picture_through_than_pillow_would():
    data = one_bit_png(20000, 9500)  # 190 megapixels: an error in Pillow
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    with pytest.raises(PictureError, match="damaged or truncated"):
        read_silently(
            data[:-200], max_pixels=200_000_000
        )  # accepted in size, then found cut: without decoding it whole


def test_reading_leaves_pillows_own_limit_alone():
    limit = Image.MAX_IMAGE_PIXELS
    assert limit
    data = encoded("PNG")

    def look(k):
        with pytest.raises(PictureError) if k % 3 == 0 else warnings.catch_warnings():
            read(data[:40] if k % 3 == 0 else data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(look, range(48)))
    assert limit == Image.MAX_IMAGE_PIXELS


# Several at once


def test_eight_threads_read_what_one_reads(tmp_path):
    files = []
    for k in range(12):
        kind, mode = [("PNG", "RGB"), ("WEBP", "RGBA"), ("TIFF", "L"), ("PNG", "I;16")][k % 4]
        array = noise(40 + k, 30, seed=k, channels={"RGB": 3, "RGBA": 4}.get(mode, 0))
        array = array.astype(np.uint16) * 257 if mode == "I;16" else array
        files.append((encode(array, mode, None, kind, k % 8 + 1), upright(as_rgb(array, mode, None), k % 8 + 1)))
    start = threading.Barrier(8)

    def work(k):
        start.wait()
        for turn in range(20):
            data, expected = files[(k + turn) % len(files)]
            assert np.array_equal(read(data).array, expected)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, k) for k in range(8)]:
            future.result()


@pytest.mark.skipif(BADINPUT.is_dir(), reason="the shared folder is there and says more")
def test_without_the_shared_folder_a_generated_one_is_judged_the_same(tmp_path):
    shutil.copy(PHOTO, tmp_path / "noextension")
    assert read(tmp_path / "noextension").size == (576, 768)
    for name, content in {"html.jpg": b"<html>", "zero.jpg": b"", "cut.jpg": PHOTO.read_bytes()[:9000]}.items():
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path / name).startswith(f"{tmp_path / name}: ")
