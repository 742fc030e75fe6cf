"""Networks of another make: what they take, what they are fed, what they compute."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import foreign
from espy.errors import ModelError
from espy.ship.foreign import Work, count, open_foreign
from samples import attempt, scene

ONE_PIXEL = Image.fromarray(np.array([[[255, 0, 51]]], np.uint8))


@pytest.mark.parametrize(
    ("kind", "shape", "layout", "size"),
    [
        ("float32", (1, 3, "h", "w"), "NCHW", (40, 56)),
        ("float32", ("n", 3, 32, 48), "NCHW", (32, 48)),
        ("float32", (1, 3, "h", 48), "NCHW", (40, 48)),
        ("uint8", (1, "h", "w", 3), "NHWC", (40, 56)),
        ("float16", (1, 32, 48, 3), "NHWC", (32, 48)),
    ],
    ids=str,
)
def test_any_network_of_one_picture_is_read_fed_and_run(tmp_path, kind, shape, layout, size):
    network = open_foreign(foreign.convolution(tmp_path / "a.onnx", kind, shape))
    assert (network.name, network.type, network.layout) == ("picture", kind, layout)
    assert network.size((40, 56)) == size
    assert network.fixed == ("h" not in shape)
    feed = network.feed(Image.fromarray(scene(100, 120)), size)
    assert feed["picture"].dtype == kind
    for engine in ("onnxruntime", "openvino"):
        (out,) = network.runner(engine, 1, "float32", feed)()
        assert out.shape == (1, 4, *size)


def test_a_picture_is_fed_as_it_is_stretched_to_the_size(tmp_path):
    """One pixel of red, green and blue fills any size."""
    planes = open_foreign(foreign.convolution(tmp_path / "a.onnx")).feed(ONE_PIXEL, (2, 5))["picture"]
    assert planes.shape == (1, 3, 2, 5)
    assert np.array_equal(planes[0, :, 1, 4], np.array([1, 0, 0.2], np.float32))
    pixels = open_foreign(foreign.convolution(tmp_path / "b.onnx", "uint8", (1, "h", "w", 3))).feed(ONE_PIXEL, (2, 5))
    assert np.array_equal(pixels["picture"], np.full((1, 2, 5, 3), [255, 0, 51], np.uint8))


def refused(path):
    _, message = attempt(ModelError, open_foreign, path)
    assert message is not None
    assert message.startswith(f"{path}: ")
    return message


def test_what_is_no_network_of_one_picture_is_refused_in_one_line(tmp_path):
    path = tmp_path / "a.onnx"
    assert "no such file" in refused(path)
    path.write_bytes(b"no network")
    assert "ONNX Runtime cannot open it" in refused(path)
    assert "an .onnx file" in refused(foreign.convolution(tmp_path / "a.pb"))
    assert "2 inputs (picture, mask)" in refused(foreign.convolution(path, mask=("float32", (1, 1, "h", "w"))))
    assert "takes tensor(int64)" in refused(foreign.convolution(path, "int64"))
    assert "takes 8 pictures at once" in refused(foreign.convolution(path, shape=(8, 3, "h", "w")))
    assert "takes [1, 5, 'any', 'any']: neither" in refused(
        foreign.save(path, {"picture": ("float32", (1, 5, "h", "w"))}, [helper.make_node("Relu", ["picture"], ["out"])])
    )
    assert "four dimensions" in refused(
        foreign.save(path, {"picture": ("float32", (3, "h", "w"))}, [helper.make_node("Relu", ["picture"], ["out"])])
    )


# What it computes


@pytest.mark.parametrize("sides", [("h", "w"), (8, 10)], ids=str)
def test_work_is_counted_as_loops_would_do_it(tmp_path, sides):
    network = open_foreign(foreign.layers(tmp_path / "a.onnx", *sides))
    convolution = (4 * 4 * 5) * (3 * 3 * 3)  # outputs, each a sum over inputs x kernel
    transposed = (4 * 4 * 5) * (2 * 2 * 2)  # inputs, each spread over outputs x kernel
    linear = 5 * 2
    maps = (3 * 8 * 10 + 4 * 4 * 5) + (4 * 4 * 5 + 2 * 8 * 10) + (2 + 5)
    held = 4 * 3 * 9 + 4 + 4 * 2 * 4 + 5 * 2
    assert count(network, (8, 10)) == Work(held, convolution + transposed + linear, 4 * maps)


def test_a_network_that_cannot_be_counted_whole_gets_no_count(tmp_path):
    """A custom operator may multiply too; a shape may depend on what the picture shows."""
    path = foreign.layers(tmp_path / "a.onnx")
    network, model = open_foreign(path), onnx.load(path)
    model.graph.node.append(helper.make_node("Einsum", ["out", "out"], ["square"], equation="nc,nd->cd"))
    onnx.save(model, path)
    assert count(network, (8, 10)) == Work(parameters=154)
    nodes = [
        helper.make_node("NonZero", ["picture"], ["places"]),
        helper.make_node("Cast", ["places"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["w", "floats"], ["out"]),
    ]
    path = foreign.save(path, {"picture": ("float32", (1, 3, "h", "w"))}, nodes, [foreign.weights("w", 2, 4)])
    assert count(open_foreign(path), (8, 10)) == Work(parameters=8)
