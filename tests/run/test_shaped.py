"""What ONNX Runtime and OpenVINO run: made for the shape that comes, then for all; right whatever comes, from any thread."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest

from espy import build, export
from espy.errors import EngineError, ModelError
from espy.run.engines import load_engine
from espy.run.engines import openvino as openvino_room
from espy.run.shaped import Shaped
from samples import scene

SHAPES = [(1, 64, 96), (1, 64, 96), (2, 64, 96), (1, 96, 64), (3, 32, 32), (1, 64, 96)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "m.onnx"
    export(build("espnetv2", classes=4, width=0.5, seed=3), path=path, scores=True)
    return path


@pytest.fixture(params=["onnxruntime", "openvino"])
def opened(request, file):
    return load_engine(request.param)(file, threads=1, precision="float32")


def pictures(shape, seed=0):
    return np.stack([scene(*shape[1:], seed + k) for k in range(shape[0])])


def test_every_shape_gives_what_a_session_for_all_gives(opened, file):
    plain = ort.InferenceSession(file)
    for seed, shape in enumerate(SHAPES):
        image = pictures(shape, seed)
        found, (mask, scores) = opened.run(image, scores=True), plain.run(["mask", "scores"], {"image": image})
        assert np.abs(found["scores"] - scores).max() <= 1e-5 * np.abs(scores).max()
        assert (found["mask"] == mask).mean() >= 0.9999


def test_one_shape_is_made_for_and_a_second_one_makes_for_all(opened):
    (shaped,) = (part for part in vars(opened).values() if isinstance(part, Shaped))
    made, make = [], shaped._make
    shaped._make = lambda shape: made.append(shape) or make(shape)
    assert made == []  # nothing before it is known what comes
    for shape in [(1, 64, 96)] * 3:
        opened.run(pictures(shape))
    assert made == [(1, 64, 96, 3)]
    for shape in [(1, 96, 64), (1, 64, 96), (2, 32, 32)]:
        opened.run(pictures(shape))
    assert made[1:] == [None]


def test_threads_that_bring_shapes_of_their_own_get_their_own_results(opened):
    images = [pictures(shape, seed) for seed, shape in enumerate(SHAPES * 4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: opened.run(image)["mask"], images))
    for image, mask in zip(images, together, strict=True):
        assert (mask == opened.run(image)["mask"]).mean() >= 0.9999


def test_a_shape_that_the_file_does_not_take_is_one_line_and_the_next_picture_is_right(opened):
    for wrong in (
        np.zeros((1, 40, 96, 3), np.uint8),
        np.zeros((1, 64, 96, 4), np.uint8),
        np.zeros((64, 96, 3), np.uint8),
    ):
        with pytest.raises(EngineError) as caught:
            opened.run(wrong)
        assert "\n" not in str(caught.value)
    assert opened.run(pictures((1, 64, 96)))["mask"].shape == (1, 64, 96)


def test_a_closed_engine_says_so(opened):
    opened.run(pictures((1, 64, 96)))
    opened.close()
    with pytest.raises(EngineError, match="closed"):
        opened.run(pictures((1, 64, 96)))


def test_what_cannot_be_made_for_a_shape_is_made_for_all_and_tried_again_if_that_fails():
    made = []

    def make(shape):
        made.append(shape)
        if shape is not None or len(made) < 3:
            raise ModelError("not so")
        return "for all"

    shaped = Shaped(make)
    with pytest.raises(ModelError):
        shaped.of((1, 2))
    assert shaped.of((1, 2)) == shaped.of((3, 4)) == "for all"
    assert made == [(1, 2), None, None]


@pytest.mark.parametrize("kinds", [2, 3, 11, 20, 200])
def test_openvino_takes_a_largest_of_equals(kinds, tmp_path):
    """The places that it finds are those of a largest value, whatever is equal."""
    onnx = pytest.importorskip("onnx")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", float32, [1, kinds, 40, 50])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT64, None)],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    model = openvino_room.read_model(tmp_path / "m.onnx")
    assert not any(node.get_attributes().get("stable") for node in model.get_ops() if node.get_type_name() == "TopK")
    run = openvino_room.compiled(model, tmp_path / "m.onnx", 1, "float32")
    for values in (2, 5, 1000):
        x = np.random.default_rng(values).integers(0, values, (1, kinds, 40, 50)).astype(np.float32)
        (places,) = run([x]).values()
        assert places.dtype == np.int64
        assert (np.take_along_axis(x, places[:, None], 1) == x.max(1, keepdims=True)).all()
