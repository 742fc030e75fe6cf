"""Any `.onnx` file that takes one picture, to be measured beside the project's own: its one input, and what it computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from espy.errors import EngineError, ModelError

if TYPE_CHECKING:
    import onnx

TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16"}
CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Foreign:
    """The one input of a network of another make: its `name`, type, and shape, None where it takes any.

    `layout`: NCHW or NHWC. `height`, `width`: pixels, None where it takes any.
    """

    path: Path
    name: str
    type: str
    layout: str
    channels: int
    height: int | None
    width: int | None

    def size(self, asked: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) at which it runs where another is asked of it."""
        return self.height or asked[0], self.width or asked[1]

    @property
    def fixed(self) -> bool:
        """Whether it takes one size alone."""
        return self.height is not None and self.width is not None

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Of its input for one picture of (height, width)."""
        return (1, self.channels, *size) if self.layout == "NCHW" else (1, *size, self.channels)

    def feed(self, picture: Image.Image, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """A picture as its input: whole numbers 0 to 255, or floats 0 to 1."""
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[self.channels]
        resized = picture.convert(mode).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        array = np.asarray(resized).reshape(1, *size, self.channels)
        if self.layout == "NCHW":
            array = array.transpose(0, 3, 1, 2)
        array = array if self.type == "uint8" else (array / 255).astype(self.type)
        return {self.name: np.ascontiguousarray(array)}

    def runner(self, engine: str, threads: int, precision: str, feed: dict[str, np.ndarray]) -> Callable[[], Any]:
        """What runs it once, all of its outputs, in an engine that is set as for the project's own."""
        if engine == "onnxruntime":
            from espy.run.engines import check_precision
            from espy.run.engines import onnxruntime as ort

            check_precision(engine, precision, ("float32",))
            session = ort.session_for(self.path, threads, feed[self.name].shape)
            return _telling(lambda: session.run(None, feed), ort.failed)
        from espy.run.engines import openvino as ov

        picture = feed[self.name]
        model = ov.compiled(ov.read_model(self.path), self.path, threads, precision, picture.shape)
        return _telling(lambda: model.create_infer_request().infer([picture]).values(), ov.failed)


def _telling(run: Callable[[], Any], failed: Callable[[Exception], EngineError]) -> Callable[[], Any]:
    def told() -> Any:
        try:
            return run()
        except Exception as error:
            raise failed(error) from None

    return told


def open_foreign(path: Path) -> Foreign:
    """Read what a network takes. Raises ModelError, one line, where that is not one picture."""
    from espy.run.engines.onnxruntime import open_session

    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    if path.suffix != ".onnx":
        raise ModelError(f"{path}: a foreign network is an .onnx file")
    inputs = open_session(path, 1).get_inputs()
    if len(inputs) != 1:
        names = ", ".join(port.name for port in inputs)
        raise ModelError(f"{path}: has {len(inputs)} inputs ({names}): only networks of one picture can be measured")
    (port,) = inputs
    if port.type not in TYPES:
        raise ModelError(f"{path}: takes {port.type}: a picture is uint8, float32 or float16")
    shape = [side if isinstance(side, int) and side > 0 else None for side in port.shape]
    said = [side or "any" for side in shape]
    if len(shape) != 4:
        raise ModelError(f"{path}: takes {said}: a picture has four dimensions, [N, C, H, W] or [N, H, W, C]")
    if shape[0] not in (1, None):
        raise ModelError(f"{path}: takes {shape[0]} pictures at once: export it for one")
    for layout, place in (("NCHW", 1), ("NHWC", 3)):
        if (channels := shape[place]) in CHANNELS:
            height, width = (side for k, side in enumerate(shape) if k not in (0, place))
            return Foreign(path, port.name, TYPES[port.type], layout, channels, height, width)  # type: ignore[arg-type]
    raise ModelError(f"{path}: takes {said}: neither the second nor the last dimension is 1, 3 or 4 channels")


# What it computes


@dataclass(frozen=True)
class Work:
    """Of a network for one picture; None where it cannot be counted.

    `traffic`: bytes of the float32 maps into and out of the layers that multiply.
    """

    parameters: int | None = None
    macs: int | None = None
    traffic: int | None = None


MULTIPLIES = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
ALSO = {
    "Einsum", "LSTM", "GRU", "RNN", "Attention", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DeformConv",
    "If", "Loop", "Scan",
}  # fmt: skip
"""What multiplies or may, and is not counted: a network that has one gets no number rather than too small a one."""


def count(foreign: Foreign, size: tuple[int, int]) -> Work:
    """Parameters, multiply-accumulates and traffic of the graph as it stands in the file; needs the package onnx.

    Parameters are all numbers that the file holds as floats or in 8 bits, those of normalisation among them.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        return Work()
    model = onnx.load(foreign.path, load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    kinds = onnx.TensorProto
    numbers = {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE, kinds.INT8, kinds.UINT8}
    constants = [
        a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"
    ]
    parameters = sum(math.prod(t.dims) for t in [*tensors.values(), *constants] if t.data_type in numbers)
    if any(node.op_type in ALSO or node.domain not in ("", "ai.onnx") for node in model.graph.node):
        return Work(parameters)
    layers = [node for node in model.graph.node if node.op_type in MULTIPLIES]
    shapes = _shapes(model, foreign, size)
    try:
        macs = sum(_macs(node, shapes) for node in layers)
        maps = [name for node in layers for name in (*node.input[:2], node.output[0]) if name not in tensors]
        return Work(parameters, macs, sum(4 * math.prod(shapes[name]) for name in maps))
    except KeyError:  # a shape that depends on what the picture shows
        return Work(parameters)


def _macs(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    first, second, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(out) * first[-2 if turned else -1]


def _shapes(model: onnx.ModelProto, foreign: Foreign, size: tuple[int, int]) -> dict[str, list[int]]:
    """Name → shape of what is known without running it."""
    import onnx

    port = next(port for port in model.graph.input if port.name == foreign.name)
    for dimension, side in zip(port.type.tensor_type.shape.dim, foreign.shape(size), strict=True):
        dimension.dim_value = side
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")  # the names of sizes, which would stand in the way of numbers
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            shapes[value.name] = [d.dim_value for d in kind.shape.dim]
    return shapes
