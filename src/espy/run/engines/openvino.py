"""OpenVINO on the processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset11

from espy.errors import EngineError, ModelError
from espy.machine import available_threads
from espy.run.engines import LOGITS, OUTPUTS, check_precision, task_of
from espy.run.shaped import Shape, Shaped

TYPES = {"u8": "uint8", "f32": "float32"}
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # of what a quantised file leaves in float


class OpenVino:
    """Runs `.onnx` and `.xml` files in float32, quantised ones in int8, or in bfloat16 where that is asked for (its own default
    on recent processors). Compiled models are `Shaped`.
    """

    name = "openvino"
    version = ov.__version__.split("-")[0]

    def __init__(self, path: Path, *, threads: int | None, precision: str) -> None:
        check_precision(self.name, precision, tuple(PRECISIONS))
        model = read_model(path)
        self._open(path, model, precision, lambda shape: compiled(model, path, threads, precision, shape))

    @classmethod
    def around(cls, model: Any, precision: str, where: Path) -> OpenVino:
        """An engine that runs a compiled model in memory; `where` it comes from, for messages."""
        engine = cls.__new__(cls)
        engine._open(where, model, precision, lambda shape: model)
        return engine

    def _open(self, path: Path, model: Any, precision: str, make: Callable[[Shape | None], Any]) -> None:
        self.precision, self._models = precision, Shaped(make)
        inputs, outputs = _ports(model.inputs), _ports(model.outputs)
        if len(model.inputs) == 1 and "image" in inputs:
            inputs = {"image": inputs["image"]}  # its other names are those of what was fused into it
        self.task = task_of(path, inputs, outputs)
        self._names = list(OUTPUTS[self.task])
        self._scores = ["scores"] if self.task == "segment" and outputs.get("scores") == LOGITS else []

    def run(self, image: np.ndarray, *, scores: bool = False) -> dict[str, np.ndarray]:
        model = self._models.of(image.shape)
        try:
            outputs = model.create_infer_request().infer([image])
        except Exception as error:
            raise failed(error) from None
        names = self._names + (self._scores if scores else [])
        found = {name: np.array(outputs[name]) for name in names}
        if self.task == "segment" and found["mask"].shape != image.shape[:3]:  # it passes over sizes that do not fit
            raise EngineError(f"OpenVINO failed: the graph does not take pictures of shape {list(image.shape)}")
        return found

    def close(self) -> None:
        self._models.close()


def read_model(path: Path) -> Any:
    """Any `.onnx` or `.xml` file as OpenVINO's model. Raises ModelError where it cannot be opened."""
    try:
        model = ov.Core().read_model(path)
        take_any_of_equals(model)
    except Exception as error:  # the runtime raises plain RuntimeError and kinds of its own
        raise unopened(path, error) from None
    return model


def take_any_of_equals(model: Any) -> None:
    """An ArgMax need not look for the first of several largest values, which takes OpenVINO twice as long."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "TopK" and not node.output(0).get_target_inputs():
            said = node.get_attributes()
            values, count = node.input_value(0), node.input_value(1)
            places = opset11.topk(values, count, said["axis"], said["mode"], "none", index_element_type="i32").output(1)
            node.output(1).replace(opset11.convert(places, said["index_element_type"]).output(0))


def compiled(
    model: Any, path: Path, threads: int | None, precision: str, shape: Shape | None = None, **settings: str
) -> Any:
    """A model of `read_model` compiled, set as for the project's own, and as `settings` say beside; for one shape of its first
    input where that is given.

    Raises EngineError where it would compute in another precision, ModelError where it cannot be compiled.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads or available_threads()),
        **settings,
    }
    try:
        if shape is not None:
            model = model.clone()
            model.reshape({model.inputs[0]: list(shape)})
        made = ov.Core().compile_model(model, "CPU", settings)
    except Exception as error:
        raise unopened(path, error) from None
    computes = made.get_property("INFERENCE_PRECISION_HINT").to_string()
    if computes != PRECISIONS[precision]:  # without bfloat16 instructions the hint is passed over in silence
        raise EngineError(f"engine openvino computes in {computes} on this processor, not in {precision!r}")
    return made


def unopened(path: Path, error: Exception) -> ModelError:
    """What a file that cannot be opened tells a user."""
    return ModelError(f"{path}: OpenVINO cannot open it ({str(error).strip().splitlines()[-1][:200]})")


def failed(error: Exception) -> EngineError:
    """What a run that failed tells a user."""
    return EngineError(f"OpenVINO failed: {str(error).strip().splitlines()[-1][:300]}")


def _ports(found: Sequence[Any]) -> dict[str, tuple[str, int]]:
    """By each of a port's names: that of the file, and of what was fused into it."""
    return {
        name: (TYPES.get(kind := port.element_type.get_type_name(), kind), port.partial_shape.rank.get_length())
        for port in found
        for name in port.names
    }
