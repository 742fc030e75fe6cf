"""The project's own engine: what the others give, from any thread, until it is closed; one line without it."""

import gc
import importlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from random_networks import arrays_of, given_by, random_network
from test_lowering import BGR, RGB, networks

from espy import bundle, load
from espy.errors import EngineError, ModelError
from espy.header import Preprocess, read_safetensors, write_safetensors
from espy.run import choice
from espy.run.choice import candidates
from espy.run.engines import load_engine
from espy.run.engines.torch import Torch
from espy.run.lowering import lower
from espy.spec import make
from samples import PHOTOS, noise, scene

PLAIN = Preprocess((64, 64), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture
def native():
    """The engine's class, where it is installed."""
    pytest.importorskip("espy_engine", reason="espy-engine is not installed: build native/")
    return load_engine("native")


def pictures(n, height, width, seed=0):
    return np.stack([scene(height, width, seed + k) for k in range(n)])


@pytest.fixture
def library(native):
    """The functions of the library."""
    return sys.modules[native.__module__].library()


def written(library, program, picture, room, threads=1, mask=None):
    """The scores, float32 [room], that a run of a program writes; `room` None asks for none. Asserts that nothing failed."""
    scores = None if room is None else np.zeros(max(room, 1), np.float32)
    engine = library.espy_create(
        program.units.ctypes.data, len(program.units), program.weights.ctypes.data, len(program.weights), threads
    )
    assert engine, library.espy_last_error()
    try:
        to = [None if array is None else array.ctypes.data for array in (mask, scores)]
        height, width, _ = picture.shape
        failed = library.espy_run(engine, picture.ctypes.data, height, width, *to, room or 0, None)
        assert not failed, library.espy_last_error().decode()
        return scores
    finally:
        library.espy_destroy(engine)


def alike(engine, reference, image):
    """Whether both give the same masks and logits."""
    one, two = engine.run(image, scores=True), reference.run(image, scores=True)
    assert one["mask"].dtype == np.uint8
    assert one["scores"].dtype == np.float32
    assert one["scores"].shape == two["scores"].shape
    assert np.abs(one["scores"] - two["scores"]).max() <= 1e-4 * np.abs(two["scores"]).max()
    return (one["mask"] == two["mask"]).mean() >= 0.9999


@pytest.mark.parametrize("model", ["tiny_v2", "tiny_espnet"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_masks_and_logits_are_those_of_pytorch_at_any_size_in_any_batch(native, model, threads, request, one_thread):
    path = request.getfixturevalue(model)
    engine, reference = native(path, threads=threads, precision="float32"), Torch(path, threads=1, precision="float32")
    for n, height, width in [(1, 64, 96), (3, 32, 48), (2, 61, 83), (1, 16, 16)]:
        assert alike(engine, reference, pictures(n, height, width, seed=n))


# Classes


def test_probabilities_are_those_of_pytorch_at_any_size_in_any_batch(native, tiny_classifier, one_thread):
    engine, reference = (kind(tiny_classifier, threads=1, precision="float32") for kind in (native, Torch))
    assert engine.task == "classify"
    for n, height, width in [(1, 64, 64), (3, 32, 48), (2, 61, 83), (1, 16, 16)]:
        image = pictures(n, height, width, seed=n)
        one, two = engine.run(image, scores=True)["scores"], reference.run(image)["scores"]
        assert one.dtype == np.float32
        assert one.shape == two.shape == (n, 7)
        assert np.abs(one - two).max() <= 1e-4 * two.max()


def test_the_bundled_classifier_names_photos_as_pytorch_does(native, one_thread):
    with load("imagenette", engine="native", threads=1) as ours, load("imagenette", engine="torch", threads=1) as other:
        assert ours.engine.name == "native"
        for photo in sorted(PHOTOS.glob("*.jpg")):
            one, two = ours(photo), other(photo)
            assert one.top(1)[0][0] == two.top(1)[0][0]
            assert np.abs(one.probabilities - two.probabilities).max() <= 1e-4 * two.probabilities.max()


# Boxes


def same_things(one, two):
    """Whether each of both has one of the same kind within 0.1 px, scored the same; rounding may exchange neighbours."""
    same = (one[:, None, :2] == two[:, :2]).all(2) & (np.abs(one[:, None, 2] - two[:, 2]) <= 1e-4)
    same &= (np.abs(one[:, None, 3:] - two[:, 3:]) < 0.1).all(2)
    return len(one) == len(two) > 0 and same.any(1).all() and same.any(0).all()


def test_things_are_those_of_pytorch_in_any_batch(native, tiny_detector, one_thread):
    engine, reference = (kind(tiny_detector, threads=1, precision="float32") for kind in (native, Torch))
    assert engine.task == "detect"
    for n in (1, 3):
        image = pictures(n, 96, 96, seed=n)
        one, two = engine.run(image)["detections"], reference.run(image)["detections"]
        assert one.dtype == np.float32
        assert set(one[:, 0]) == set(range(n))
        assert same_things(one, two)


def test_the_bundled_detector_finds_in_photos_what_it_finds_on_pytorch(native, one_thread):
    path = bundle.path("bccd", ".safetensors")
    engine, reference = (kind(path, threads=1, precision="float32") for kind in (native, Torch))
    for photo in sorted(PHOTOS.glob("*.jpg")):
        with Image.open(photo) as opened:
            image = np.asarray(opened.convert("RGB").resize((320, 320)))[None]
        assert same_things(engine.run(image)["detections"], reference.run(image)["detections"])


def test_a_detector_sees_pictures_of_its_size_alone(native, tiny_detector):
    engine = native(tiny_detector, threads=1, precision="float32")
    with pytest.raises(EngineError, match="height 64, width 96 does not fit: the file takes only height 96, width 96"):
        engine.run(pictures(1, 64, 96))


# What the library writes, from maps of a few pixels on

SMALL = {"classify": [(16, 16), (17, 40), (33, 31), (64, 96)], "detect": [(16, 16), (33, 33), (95, 95)]}


@pytest.mark.parametrize("task", SMALL)
def test_scores_of_maps_down_to_one_pixel_are_pytorchs_and_the_same_bytes_on_any_threads(library, task, one_thread):
    network = random_network(make("espnetv2", task=task, width=0.5, classes=3), seed=0)
    program = lower(network.spec, arrays_of(network), PLAIN)
    for height, width in SMALL[task]:
        picture = noise(height, width)
        with torch.no_grad():
            wanted = given_by(network, torch.from_numpy(picture)[None].permute(0, 3, 1, 2) / 255).numpy()
        found = [written(library, program, picture, len(wanted), threads) for threads in (1, 2, 3)]
        assert np.abs(found[0] - wanted).max() <= 1e-4 * np.abs(wanted).max()
        assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


def test_scores_that_do_not_fit_their_room_are_refused_before_any_is_written(library, tiny_espnet, tiny_classifier):
    for path, many, mask in [(tiny_espnet, 4 * 32 * 48, np.zeros((32, 48), np.uint8)), (tiny_classifier, 7, None)]:
        header, arrays = read_safetensors(path)
        program, picture = lower(header.spec, arrays, header.preprocess), noise(32, 48)
        assert written(library, program, picture, many, mask=mask).any()
        for room in (many - 1, many + 1, 0, -1):
            with pytest.raises(AssertionError, match=rf"there are {many} scores, and room for {room}"):
                written(library, program, picture, room, mask=mask)


def test_masks_and_scores_are_asked_of_networks_that_give_them(library, tiny_espnet, tiny_classifier):
    programs = []
    for path in (tiny_espnet, tiny_classifier):
        header, arrays = read_safetensors(path)
        programs.append(lower(header.spec, arrays, header.preprocess))
    picture, mask = noise(32, 48), np.zeros((32, 48), np.uint8)
    with pytest.raises(AssertionError, match="no mask to write to"):
        written(library, programs[0], picture, 4 * 32 * 48)
    with pytest.raises(AssertionError, match="this network gives no mask"):
        written(library, programs[1], picture, 7, mask=mask)
    with pytest.raises(AssertionError, match="no scores to write to"):
        written(library, programs[1], picture, None)


def held_against_pytorch(library, examples):
    """Networks of any task and any choices at any size: what the library writes, within 1e-4 of the largest."""

    @settings(max_examples=examples, deadline=None, derandomize=True, phases=[Phase.generate])
    @given(networks, st.integers(16, 70), st.integers(16, 140), st.sampled_from([RGB, BGR]), st.integers(0, 99))
    def holds(spec, height, width, preprocess, seed):
        network, picture = random_network(spec, seed), noise(height, width, seed)
        program = lower(network.spec, arrays_of(network), preprocess)
        x = torch.from_numpy(picture)[None].permute(0, 3, 1, 2)
        x = (x.flip(1) if preprocess.order == "BGR" else x) * preprocess.scale
        x = (x - torch.tensor(preprocess.mean).view(1, 3, 1, 1)) / torch.tensor(preprocess.std).view(1, 3, 1, 1)
        with torch.no_grad():
            wanted = given_by(network, x).numpy()
        mask = np.zeros((height, width), np.uint8) if network.spec.task == "segment" else None
        found = written(library, program, picture, wanted.size, 1 + seed % 3, mask).reshape(wanted.shape)
        assert np.abs(found - wanted).max() <= 1e-4 * (np.abs(wanted).max() or 1.0)
        assert mask is None or np.array_equal(mask, found.argmax(0))

    holds()


def test_any_network_s_scores_are_pytorch_s_at_any_size(library, one_thread):
    held_against_pytorch(library, examples=25)


@pytest.mark.native
def test_any_network_s_scores_are_pytorch_s_for_long(library, one_thread):
    held_against_pytorch(library, examples=1000)


# As an engine


def test_pictures_that_are_no_whole_memory_are_read_as_they_are_seen(native, tiny_espnet):
    engine = native(tiny_espnet, threads=1, precision="float32")
    image = pictures(1, 64, 96)
    turned = image[:, ::-1, ::-1]
    assert np.array_equal(engine.run(turned)["mask"], engine.run(turned.copy())["mask"])
    assert list(engine.run(image)) == ["mask"]


def test_a_bundled_model_opens_by_its_name(native):
    with load("street-small", engine="native", size=(64, 96), threads=1) as model:
        assert (model.engine.name, model.engine.version) == ("native", native.version)
        assert model(scene(75, 130)).mask.shape == (75, 130)


def test_threads_that_bring_sizes_of_their_own_get_their_own_masks(native, tiny_espnet):
    engine = native(tiny_espnet, threads=2, precision="float32")
    images = [pictures(1, *size, seed) for seed, size in enumerate([(64, 96), (61, 83), (32, 48)] * 6)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: engine.run(image)["mask"], images))
    for image, mask in zip(images, together, strict=True):
        assert np.array_equal(mask, engine.run(image)["mask"])


def test_a_closed_engine_says_so_and_may_be_closed_again(native, tiny_espnet):
    engine = native(tiny_espnet, threads=1, precision="float32")
    engine.run(pictures(1, 64, 96))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.run(pictures(1, 64, 96))


@pytest.fixture
def destroyed(native, monkeypatch):
    """The engines that the library was told to destroy."""
    room, handles = sys.modules[native.__module__], []
    monkeypatch.setattr(room, "_destroy", lambda *given, real=room._destroy: (handles.append(given[1]), real(*given)))
    return handles


def test_an_engine_that_is_forgotten_is_destroyed_once(native, destroyed, tiny_espnet):
    engine = native(tiny_espnet, threads=1, precision="float32")
    handle = engine._engine
    del engine
    gc.collect()
    assert destroyed == [handle]
    engine = native(tiny_espnet, threads=1, precision="float32")
    engine.close()
    del engine
    gc.collect()
    assert len(destroyed) == 2


FORKING = """
import os, sys, warnings
from pathlib import Path
import numpy as np
from espy.run.engines import load_engine

engine = load_engine("native")(Path(sys.argv[1]), threads=2, precision="float32")
image = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
before = engine.run(image)["mask"]
warnings.simplefilter("ignore")  # Python warns of forking beside threads
if (child := os.fork()) == 0:
    same = np.array_equal(engine.run(image)["mask"], before)
    engine.close()
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(engine.run(image)["mask"], before)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_the_engine_and_leaves_the_parent_its_own(native, tiny_espnet):
    subprocess.run([sys.executable, "-c", FORKING, str(tiny_espnet)], check=True, timeout=60)


@pytest.mark.parametrize(
    "image",
    [np.zeros((64, 96, 3), np.uint8), np.zeros((1, 64, 96, 4), np.uint8), np.zeros((1, 64, 96, 3), np.float32)],
)
def test_what_are_no_pictures_is_one_line(native, tiny_espnet, image):
    engine = native(tiny_espnet, threads=1, precision="float32")
    with pytest.raises(EngineError, match=r"takes uint8 \[N, height, width, 3\], not"):
        engine.run(image)


def test_what_the_library_says_of_a_failure_is_the_error(native, tiny_espnet):
    engine = native(tiny_espnet, threads=1, precision="float32")
    with pytest.raises(EngineError, match=r"engine native failed: .") as caught:
        engine.run(np.zeros((1, 0, 96, 3), np.uint8))
    assert "\n" not in str(caught.value)
    assert engine.run(pictures(1, 64, 96))["mask"].shape == (1, 64, 96)


def test_another_precision_is_refused(native, tiny_espnet):
    with pytest.raises(EngineError, match="engine native computes in float32 or bfloat16, not in 'int8'"):
        native(tiny_espnet, threads=1, precision="int8")


def test_bfloat16_is_refused_in_one_line_where_the_processor_lacks_it(native, tiny_espnet, monkeypatch):
    monkeypatch.setenv("ESPY_ENGINE_TARGET", "scalar")
    with pytest.raises(EngineError, match=r"engine native cannot open it \(bfloat16 needs a processor with [^\n]*$"):
        native(tiny_espnet, threads=1, precision="bfloat16")


def test_weights_of_another_network_are_named_with_their_file(native, tiny_espnet, tmp_path):
    header, arrays = read_safetensors(tiny_espnet)
    del arrays["up1.weight"]
    write_safetensors(tmp_path / "m.safetensors", header, arrays)
    with pytest.raises(ModelError, match=r"m\.safetensors: up1\.weight is missing"):
        native(tmp_path / "m.safetensors", threads=1, precision="float32")


def test_without_pytorch_plain_weights_open_on_it(native, tiny_espnet, monkeypatch):
    monkeypatch.delenv("ESPY_ENGINE")
    monkeypatch.setattr(choice, "installed", lambda name: name == "native")
    assert list(candidates("m", [tiny_espnet])) == ["native"]


# Without it


@pytest.fixture
def absent(monkeypatch):
    """As where espy-engine is not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "espy_engine"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "espy.run.engines.native", raising=False)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "espy_engine" else find(name, *rest)
    )
    monkeypatch.setitem(sys.modules, "espy_engine", None)


def test_where_it_is_not_installed_it_is_named_with_its_extra(absent, tiny_espnet):
    with pytest.raises(EngineError, match=r"engine native is not installed: pip install 'espy-vision\[native\]'"):
        load(tiny_espnet, engine="native")


def test_auto_passes_over_it_where_it_is_not_installed(absent, tiny_espnet, monkeypatch):
    monkeypatch.delenv("ESPY_ENGINE")
    assert list(candidates("m", [tiny_espnet])) == ["torch"]
    with load(tiny_espnet, threads=1) as model:
        assert model.engine.name == "torch"
        assert model(noise(64, 96)).mask.shape == (64, 96)


def test_it_opens_plain_weights_and_nothing_else(tiny_espnet):
    assert candidates("m", [tiny_espnet], "native") == {"native": tiny_espnet}
    with pytest.raises(EngineError, match=r"m: engine native opens \.safetensors, not \.onnx: give it \.safetensors"):
        candidates("m", [Path("m.onnx")], "native")
