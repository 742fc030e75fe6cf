"""ONNX Runtime on the processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from espy.errors import EngineError, ModelError
from espy.run.engines import LOGITS, OUTPUTS, available_threads, check_precision, task_of

TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxRuntime:
    """Runs `.onnx` files in float32."""

    name = "onnxruntime"
    version = ort.__version__

    def __init__(self, path: Path, *, threads: int | None, precision: str) -> None:
        check_precision(self.name, precision, ("float32",))
        self.precision = precision
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or available_threads()
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # planned for one size, it keeps twice the memory and gains nothing
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")  # leave the cores to reading and writing
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises kinds of its own
            raise ModelError(f"{path}: ONNX Runtime cannot open it ({str(error).splitlines()[0][:200]})") from None
        inputs, outputs = (_ports(found) for found in (self._session.get_inputs(), self._session.get_outputs()))
        self.task = task_of(path, inputs, outputs)
        self._names = list(OUTPUTS[self.task])
        self._scores = ["scores"] if self.task == "segment" and outputs.get("scores") == LOGITS else []

    def run(self, image: np.ndarray, *, scores: bool = False) -> dict[str, np.ndarray]:
        if self._session is None:
            raise EngineError("the engine is closed")
        names = self._names + (self._scores if scores else [])
        try:
            return dict(zip(names, self._session.run(names, {"image": image}), strict=True))
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed: {str(error).splitlines()[0][:300]}") from None

    def close(self) -> None:
        self._session = None


def _ports(found: Sequence[Any]) -> dict[str, tuple[str, int]]:
    return {port.name: (TYPES.get(port.type, port.type), len(port.shape)) for port in found}
