"""OpenVINO on the processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from espy.errors import EngineError, ModelError
from espy.machine import available_threads
from espy.run.engines import LOGITS, OUTPUTS, check_precision, task_of

TYPES = {"u8": "uint8", "f32": "float32"}
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # of what a quantised file leaves in float


class OpenVino:
    """Runs `.onnx` and `.xml` files in float32, quantised ones in int8, or in bfloat16 where that is asked for (its own default
    on recent processors).
    """

    name = "openvino"
    version = ov.__version__.split("-")[0]

    def __init__(self, path: Path, *, threads: int | None, precision: str) -> None:
        self._open(path, compile_model(path, threads, precision), precision)

    @classmethod
    def around(cls, model: Any, precision: str, where: Path) -> OpenVino:
        """An engine that runs a compiled model in memory; `where` it comes from, for messages."""
        engine = cls.__new__(cls)
        engine._open(where, model, precision)
        return engine

    def _open(self, path: Path, model: Any, precision: str) -> None:
        self._model, self.precision = model, precision
        inputs, outputs = _ports(self._model.inputs), _ports(self._model.outputs)
        if len(self._model.inputs) == 1 and "image" in inputs:
            inputs = {"image": inputs["image"]}  # its other names are those of what was fused into it
        self.task = task_of(path, inputs, outputs)
        self._names = list(OUTPUTS[self.task])
        self._scores = ["scores"] if self.task == "segment" and outputs.get("scores") == LOGITS else []

    def run(self, image: np.ndarray, *, scores: bool = False) -> dict[str, np.ndarray]:
        if self._model is None:
            raise EngineError("the engine is closed")
        try:
            outputs = self._model.create_infer_request().infer([image])
        except Exception as error:
            raise failed(error) from None
        names = self._names + (self._scores if scores else [])
        return {name: np.array(outputs[name]) for name in names}

    def close(self) -> None:
        self._model = None


def compile_model(path: Path, threads: int | None, precision: str, **settings: str) -> Any:
    """Any `.onnx` file as OpenVINO's compiled model, set as for the project's own, and as `settings` say beside.

    Raises EngineError where it would compute in another precision, ModelError where the file cannot be opened.
    """
    check_precision(OpenVino.name, precision, tuple(PRECISIONS))
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads or available_threads()),
        **settings,
    }
    try:
        model = ov.Core().compile_model(str(path), "CPU", settings)
    except Exception as error:  # the runtime raises plain RuntimeError and kinds of its own
        raise ModelError(f"{path}: OpenVINO cannot open it ({str(error).strip().splitlines()[-1][:200]})") from None
    computes = model.get_property("INFERENCE_PRECISION_HINT").to_string()
    if computes != PRECISIONS[precision]:  # without bfloat16 instructions the hint is passed over in silence
        raise EngineError(f"engine openvino computes in {computes} on this processor, not in {precision!r}")
    return model


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
