"""Masks of real photos: those of PyTorch on the same weights, at the models' sizes, at odd ones, at small and at large ones."""

import numpy as np
import pytest
from PIL import Image

import espy
from espy import bundle, load_published
from espy.errors import EngineError
from espy.header import read_safetensors, write_safetensors
from espy.run.engines import load_engine
from espy.run.engines.torch import Torch
from samples import PHOTOS, SHARED, STREETS, WEIGHTS, needs

EQUAL = 0.9999  # of the pixels
NEAR = 0.98  # of them in bfloat16: where two classes are about as likely it decides otherwise
POINTS = 0.003  # of mIoU that bfloat16 may lose
CAMVID = SHARED / "data" / "camvid" / "val"
BUNDLED = ("street", "street-small", "camvid")
PUBLISHED = ("espnet_decoder_p2_q8.pth", "espnetv2_seg_s1.0_city_1024x512.pth", "espnetv2old_seg_s0.5_city.pth")


def photo(path, size):
    """[1, h, w, 3]"""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))[None]


def equal(path, images):
    """Of each image, which part of its mask is that of PyTorch."""
    native = load_engine("native")(path, threads=2, precision="float32")
    torch = Torch(path, threads=None, precision="float32")
    found = [float((native.run(image)["mask"] == torch.run(image)["mask"]).mean()) for image in images]
    native.close()
    return found


def own_size(path):
    return read_safetensors(path)[0].preprocess.size


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """published(name): an authors' checkpoint as a model file."""

    def converted(name):
        path = WEIGHTS / name
        if not path.is_file():
            pytest.skip(f"no {path}: set ESPY_SHARED to the folder of the shared data")
        found = load_published(path)
        file = tmp_path_factory.mktemp("published") / f"{name}.safetensors"
        write_safetensors(file, found.header, found.arrays)
        return file

    return converted


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_s_mask_of_a_photo_is_pytorch_s(engine, name):
    path = bundle.path(name, ".safetensors")
    assert min(equal(path, [photo(PHOTOS / "street_city.jpg", own_size(path))])) >= EQUAL


def opened(path, precision):
    try:
        return load_engine("native")(path, threads=2, precision=precision)
    except EngineError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", BUNDLED)
def test_in_bfloat16_it_is_nearly_that_of_float32(engine, name):
    path = bundle.path(name, ".safetensors")
    one, other = (opened(path, precision) for precision in ("bfloat16", "float32"))
    image = photo(PHOTOS / "street_city.jpg", own_size(path))
    assert NEAR <= (one.run(image)["mask"] == other.run(image)["mask"]).mean() < 1


@pytest.mark.parametrize("size", [(333, 517), (16, 16), (17, 31), (1, 1), (3, 200)])
@pytest.mark.parametrize("name", ["street-small", "camvid"])
def test_so_it_is_at_odd_sizes_and_at_small_ones(engine, name, size):
    path = bundle.path(name, ".safetensors")
    pictures = [photo(PHOTOS / file, size) for file in ("street_city.jpg", "dog.jpg", "china.jpg")]
    assert min(equal(path, pictures)) >= EQUAL


def test_an_authors_espnet_s_mask_of_a_photo_is_pytorch_s(engine, published):
    assert min(equal(published(PUBLISHED[0]), [photo(PHOTOS / "street_city.jpg", (256, 512))])) >= EQUAL


# All of them

pictures = sorted([*PHOTOS.glob("*.jpg"), *STREETS.glob("*.[jp][pn]g"), *sorted(CAMVID.glob("*.webp"))[:6]])


@pytest.mark.native
@needs(SHARED)
@pytest.mark.parametrize("name", [*BUNDLED, "objects", *PUBLISHED])
def test_masks_of_all_photos_are_pytorch_s(engine, published, name):
    path = published(name) if name in PUBLISHED else bundle.path(name, ".safetensors")
    found = equal(path, [photo(one, own_size(path)) for one in pictures])
    print(name, len(found), f"photos, {min(found):.6f} at least, {np.mean(found):.6f} on average")
    assert min(found) >= EQUAL


@pytest.mark.native
@needs(CAMVID)
def test_bfloat16_costs_no_miou_on_camvid(engine):
    path = bundle.path("camvid", ".safetensors")
    opened(path, "bfloat16").close()
    lower, full = (
        espy.evaluate(
            espy.load(path, engine="native", precision=precision), f"camvid:{CAMVID.parent}", split="val"
        ).figure
        for precision in ("bfloat16", "float32")
    )
    print(f"bfloat16 {lower:.4f}, float32 {full:.4f}")
    assert lower >= full - POINTS


@pytest.mark.native
@pytest.mark.parametrize("name", ["street", "street-small"])
def test_so_it_is_of_a_large_photo(engine, name):
    path = bundle.path(name, ".safetensors")
    assert min(equal(path, [photo(PHOTOS / "street_city.jpg", size) for size in [(1024, 2048), (719, 1279)]])) >= EQUAL
