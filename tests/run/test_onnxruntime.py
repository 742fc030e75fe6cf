"""The session of ONNX Runtime: made for the shape that comes, then for all; right results whatever comes, from any thread."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest

from espy import build, export
from espy.errors import EngineError
from espy.run.engines import onnxruntime as room
from espy.run.engines.onnxruntime import OnnxRuntime
from samples import scene

SHAPES = [(1, 64, 96), (1, 64, 96), (2, 64, 96), (1, 96, 64), (3, 32, 32), (1, 64, 96)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "m.onnx"
    export(build("espnetv2", classes=4, width=0.5, seed=3), path=path, scores=True)
    return path


def pictures(shape, seed=0):
    return np.stack([scene(*shape[1:], seed + k) for k in range(shape[0])])


@pytest.fixture
def opened(monkeypatch):
    """What each session was made for, in order."""
    made, plain = [], room.open_session

    def noted(path, threads, **options):
        if options.get("optimised", True):
            made.append(options.get("known"))
        return plain(path, threads, **options)

    monkeypatch.setattr(room, "open_session", noted)
    return made


def test_every_shape_gives_what_a_session_for_all_gives(file):
    engine, plain = OnnxRuntime(file, threads=1, precision="float32"), ort.InferenceSession(file)
    for seed, shape in enumerate(SHAPES):
        image = pictures(shape, seed)
        found, (mask, scores) = engine.run(image, scores=True), plain.run(["mask", "scores"], {"image": image})
        assert np.abs(found["scores"] - scores).max() <= 1e-5 * np.abs(scores).max()
        assert (found["mask"] == mask).mean() >= 0.9999


def test_one_shape_has_a_session_of_its_own_and_a_second_one_makes_it_one_for_all(file, opened):
    engine = OnnxRuntime(file, threads=1, precision="float32")
    assert opened == []  # none before it is known what comes
    for shape in [(1, 64, 96)] * 3:
        engine.run(pictures(shape))
    assert [sorted(known.values()) for known in opened] == [[1, 64, 96]]
    for shape in [(1, 96, 64), (1, 64, 96), (2, 32, 32)]:
        engine.run(pictures(shape))
    assert opened[1:] == [{}]


def test_threads_that_bring_shapes_of_their_own_get_their_own_results(file):
    engine = OnnxRuntime(file, threads=1, precision="float32")
    images = [pictures(shape, seed) for seed, shape in enumerate(SHAPES * 4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: engine.run(image)["mask"], images))
    for image, mask in zip(images, together, strict=True):
        assert (mask == engine.run(image)["mask"]).mean() >= 0.9999


def test_a_shape_that_the_file_does_not_take_is_one_line_and_the_next_picture_is_right(file):
    engine = OnnxRuntime(file, threads=1, precision="float32")
    for wrong in (
        np.zeros((1, 40, 96, 3), np.uint8),
        np.zeros((1, 64, 96, 4), np.uint8),
        np.zeros((64, 96, 3), np.uint8),
    ):
        with pytest.raises(EngineError) as caught:
            engine.run(wrong)
        assert "\n" not in str(caught.value)
    assert engine.run(pictures((1, 64, 96)))["mask"].shape == (1, 64, 96)


def test_a_closed_engine_says_so(file):
    engine = OnnxRuntime(file, threads=1, precision="float32")
    engine.run(pictures((1, 64, 96)))
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(pictures((1, 64, 96)))
