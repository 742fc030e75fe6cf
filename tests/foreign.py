"""Small networks of another make, as ONNX files."""

import numpy as np
import onnx
from onnx import TensorProto, helper

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
}


def weights(name, *shape):
    return onnx.numpy_helper.from_array(np.random.default_rng(0).random(shape, np.float32) - 0.5, name)


def save(path, inputs, nodes, initializers=()):
    """Writes a graph whose output is "out". `inputs`: name → (type, shape)."""
    ports = [helper.make_tensor_value_info(name, TYPES[kind], shape) for name, (kind, shape) in inputs.items()]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "foreign", ports, [out], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def convolution(path, kind="float32", shape=(1, 3, "h", "w"), **others):
    """A 3x3 convolution of 3 to 4 channels, of a picture [N, C, H, W] or [N, H, W, C]."""
    first = helper.make_node("Cast", ["picture"], ["float"], to=TensorProto.FLOAT)
    turned = helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2] if shape[3] == 3 else [0, 1, 2, 3])
    conv = helper.make_node("Conv", ["planes", "w"], ["out"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return save(path, {"picture": (kind, shape), **others}, [first, turned, conv], [weights("w", 4, 3, 3, 3)])


def layers(path, height="h", width="w"):
    """A convolution of stride 2 with bias, a transposed one, a pooling and a linear layer."""
    nodes = [
        helper.make_node(
            "Conv", ["picture", "w", "b"], ["half"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        helper.make_node("ConvTranspose", ["half", "v"], ["full"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["full"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "u"], ["out"], transB=1),
    ]
    tensors = [weights("w", 4, 3, 3, 3), weights("b", 4), weights("v", 4, 2, 2, 2), weights("u", 5, 2)]
    return save(path, {"picture": ("float32", (1, 3, height, width))}, nodes, tensors)


def failing(path):
    """A network that opens and cannot run: it makes seven equal parts of four planes, as only the picture tells it."""
    shape = onnx.numpy_helper.from_array(np.array([7, -1], np.float32), "shape")
    nodes = [
        helper.make_node("Conv", ["picture", "w"], ["planes"], kernel_shape=[1, 1]),
        helper.make_node("ReduceMax", ["picture"], ["brightest"], keepdims=0),
        helper.make_node("Ceil", ["brightest"], ["one"]),
        helper.make_node("Mul", ["shape", "one"], ["parts"]),
        helper.make_node("Cast", ["parts"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["planes", "whole"], ["out"]),
    ]
    return save(path, {"picture": ("float32", (1, 3, "h", "w"))}, nodes, [weights("w", 4, 3, 1, 1), shape])
