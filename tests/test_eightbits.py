"""Weights in eight bits: rounded to the nearest, and kept exactly from then on."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from espy import eightbits, export, load
from espy.errors import ModelError
from espy.header import KEY, read_safetensors, to_json, write_safetensors
from espy.priors import priors
from espy.ship.onnx import pack
from samples import scene

SHAPES = st.sampled_from([(1, 9), (4, 3, 3, 3), (7, 16), (3, 1, 5, 5), (2, 40)])


def weights(shape, seed, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


@given(SHAPES, st.integers(0, 9999), st.sampled_from([1e-30, 1e-6, 1.0, 3e4]))
def test_every_weight_becomes_the_nearest_multiple_of_its_channels_step(shape, seed, scale):
    given_, found = weights(shape, seed, scale), eightbits.rounded(weights(shape, seed, scale))
    for before, after in zip(given_, found, strict=True):
        step = np.abs(before).max().astype(np.float64) / 127
        allowed = np.arange(-127, 128) * step
        nearest = np.abs(before.reshape(-1, 1) - allowed).min(1)
        assert (np.abs(after - before).reshape(-1) <= nearest + 1e-4 * step * 127).all()
        assert len(np.unique(after)) <= 255


@given(SHAPES, st.integers(0, 9999), st.sampled_from([1e-30, 1e-6, 1.0, 3e4]))
def test_rounded_weights_are_packed_and_unpacked_to_the_same_bits(shape, seed, scale):
    found = eightbits.rounded(weights(shape, seed, scale))
    codes, step = eightbits.packed(found)
    assert codes.dtype == np.int8
    assert np.array_equal(eightbits.unpacked(codes, step), found)
    assert np.array_equal(eightbits.rounded(found), found)


@given(SHAPES, st.integers(0, 9999), st.floats(0.01, 100))
def test_a_channels_factor_keeps_them_packable(shape, seed, factor):
    factors = np.linspace(factor, -factor, shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    found = eightbits.rounded(weights(shape, seed)) * factors
    codes, step = eightbits.packed(found, error=2.0**-21)
    largest = np.abs(found).max(axis=tuple(range(1, found.ndim)), keepdims=True)
    assert (np.abs(eightbits.unpacked(codes, step) - found) <= 2.0**-21 * largest).all()


@pytest.mark.parametrize(
    "array",
    [
        weights((8, 16), 0), weights((8, 16), 0).astype(np.float64), np.arange(100, dtype=np.int64).reshape(4, 25),
        np.ones(500, np.float32), np.ones((64, 1, 1, 1), np.float32), np.full((2, 9), np.nan, np.float32),
        np.full((2, 9), np.inf, np.float32),
    ],
    ids=["not rounded", "float64", "integers", "a vector", "one a channel", "nan", "inf"],
)  # fmt: skip
def test_what_eight_bits_do_not_hold_or_win_nothing_by_is_left_alone(array):
    assert eightbits.packed(array) is None


@given(st.integers(1, 40), st.integers(0, 9999), st.sampled_from([1e-9, 1e-3, 1.0, 1e3, 1e6]))
def test_vectors_become_float16_where_that_keeps_three_digits_of_every_value(length, seed, scale):
    vector = np.append(weights(length, seed, scale), np.float32(0))
    found = eightbits.rounded(vector)
    assert (np.abs(found - vector) <= 2.0**-11 * np.abs(vector)).all()
    size = np.abs(vector[vector != 0])
    kept = size.min() >= 2.0**-14 and size.max() <= 65504
    assert (eightbits.half(found).dtype == np.float16) == kept
    assert np.array_equal(eightbits.half(found).astype(np.float32), found)


def test_channels_of_zeros_stay_zero():
    zeros = np.zeros((3, 30), np.float32)
    codes, step = eightbits.packed(eightbits.rounded(zeros))
    assert np.array_equal(eightbits.unpacked(codes, step), zeros)


# In files


@pytest.fixture(scope="module")
def in_eight_bits(tiny_espnet):
    """Header and weights of a tiny network, rounded."""
    header, arrays = read_safetensors(tiny_espnet)
    return header, {name: eightbits.rounded(array) for name, array in arrays.items()}


def test_a_model_file_keeps_them_in_eight_bits_and_gives_back_every_bit(in_eight_bits, tmp_path):
    header, arrays = in_eight_bits
    write_safetensors(tmp_path / "m.safetensors", header, arrays)
    stored = load_file(tmp_path / "m.safetensors")
    assert sum(array.dtype == np.int8 for array in stored.values()) > 10
    again, found = read_safetensors(tmp_path / "m.safetensors")
    assert again == header
    assert found.keys() == arrays.keys()
    assert all(found[name].dtype == np.float32 and np.array_equal(found[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("damage", ["no multiples", "a step too many", "other numbers"])
def test_steps_that_belong_to_nothing_are_a_damaged_file(in_eight_bits, tmp_path, damage):
    header, arrays = in_eight_bits
    path = tmp_path / "m.safetensors"
    write_safetensors(path, header, arrays)
    stored = load_file(path)
    name = next(name for name, array in stored.items() if array.dtype == np.int8)
    if damage == "no multiples":
        del stored[name]
    elif damage == "a step too many":
        stored[f"{name}:step"] = np.append(stored[f"{name}:step"], np.float32(1))
    else:
        stored[name] = stored[name].astype(np.int16)
    save_file(stored, path, {KEY: to_json(header)})
    with pytest.raises(ModelError, match="damaged or truncated"):
        read_safetensors(path)


def test_a_deployed_file_keeps_them_too_and_is_the_same_network(in_eight_bits, tmp_path):
    header, arrays = in_eight_bits
    write_safetensors(tmp_path / "m.safetensors", header, arrays)
    report = export(tmp_path / "m.safetensors", scores=True)
    assert report.equal >= 0.999
    graph = onnx.load(tmp_path / "m.onnx").graph
    kinds = [t.data_type for t in graph.initializer if t.name.startswith("codes_")]
    assert len(kinds) > 10
    assert set(kinds) == {onnx.TensorProto.UINT8}
    image = scene(64, 96)
    masks = {}
    for engine, file in (("onnxruntime", "m.onnx"), ("openvino", "m.onnx"), ("torch", "m.safetensors")):
        with load(tmp_path / file, engine=engine) as model:
            masks[engine] = model.engine.run(image[None], scores=True)["scores"]
    largest = np.abs(masks["torch"]).max()
    assert np.abs(masks["onnxruntime"] - masks["torch"]).max() <= 1e-4 * largest
    assert np.abs(masks["openvino"] - masks["torch"]).max() <= 1e-3 * largest


def test_priors_take_a_byte_a_value():
    constant = priors(320)
    tensor, helper = onnx.TensorProto, onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "priors"], ["y"])], "g", [helper.make_tensor_value_info("x", tensor.FLOAT, [1])],
        [helper.make_tensor_value_info("y", tensor.FLOAT, None)], [onnx.numpy_helper.from_array(constant, "priors")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    pack(model.graph)
    assert len(model.SerializeToString()) < constant.nbytes / 3
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert np.array_equal(session.run(None, {"x": np.zeros(1, np.float32)})[0], constant)
