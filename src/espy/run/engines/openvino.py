"""OpenVINO on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from espy.errors import EngineError, ModelError
from espy.run.engines import available_threads, check_precision, no_deployed_model

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVino:
    """Runs `.onnx` files in float32, or in bfloat16 where that is asked for (OpenVINO's own default on recent processors)."""

    name = "openvino"
    version = ov.__version__.split("-")[0]

    def __init__(self, path: Path, *, threads: int | None, precision: str) -> None:
        check_precision(self.name, precision, tuple(PRECISIONS))
        self.precision = precision
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads or available_threads()),
        }
        try:
            self._model = ov.Core().compile_model(str(path), "CPU", settings)
        except Exception as error:  # the runtime raises plain RuntimeError and kinds of its own
            raise ModelError(f"{path}: OpenVINO cannot open it ({str(error).strip().splitlines()[-1][:200]})") from None
        computes = self._model.get_property("INFERENCE_PRECISION_HINT").to_string()
        if computes != PRECISIONS[precision]:  # without bfloat16 instructions the hint is passed over in silence
            raise EngineError(f"engine openvino computes in {computes} on this processor, not in {precision!r}")
        self._check(path)

    def _check(self, path: Path) -> None:
        def ports(found: list[Any]) -> dict[str, tuple[str, int]]:
            """By each of a port's names: that of the file, and of what was fused into it."""
            return {
                name: (p.element_type.get_type_name(), p.partial_shape.rank.get_length())
                for p in found
                for name in p.names
            }

        inputs, outputs = ports(self._model.inputs), ports(self._model.outputs)
        if len(self._model.inputs) != 1 or inputs.get("image") != ("u8", 4) or outputs.get("mask") != ("u8", 3):
            raise ModelError(f"{path}: {no_deployed_model(inputs, outputs)}")
        self._scores = outputs.get("scores") == ("f32", 4)

    def run(self, image: np.ndarray, *, scores: bool = False) -> dict[str, np.ndarray]:
        if self._model is None:
            raise EngineError("the engine is closed")
        try:
            outputs = self._model.create_infer_request().infer([image])
        except Exception as error:
            raise EngineError(f"OpenVINO failed: {str(error).strip().splitlines()[-1][:300]}") from None
        names = ("mask", "scores") if scores and self._scores else ("mask",)
        return {name: np.array(outputs[name]) for name in names}

    def close(self) -> None:
        self._model = None
