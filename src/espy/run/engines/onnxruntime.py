"""ONNX Runtime on the processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from espy.errors import EngineError, ModelError
from espy.machine import available_threads
from espy.run.engines import LOGITS, OUTPUTS, check_precision, task_of

TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxRuntime:
    """Runs `.onnx` files in float32, quantised ones in int8."""

    name = "onnxruntime"
    version = ort.__version__

    def __init__(self, path: Path, *, threads: int | None, precision: str) -> None:
        check_precision(self.name, precision, ("float32", "int8"))
        self.precision = precision
        self._session = open_session(path, threads)
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
            raise failed(error) from None

    def close(self) -> None:
        self._session = None


def open_session(path: Path, threads: int | None, *, profile: Path | None = None) -> Any:
    """Any `.onnx` file as ONNX Runtime's session, set as for the project's own; `profile`: how its record's name begins.

    Raises ModelError where the file cannot be opened.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_threads()
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # planned for one size, it keeps twice the memory and gains nothing
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")  # leave the cores to reading and writing
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        return ort.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )  # else it prints
    except Exception as error:  # the runtime raises kinds of its own
        raise ModelError(f"{path}: ONNX Runtime cannot open it ({str(error).splitlines()[0][:200]})") from None


def failed(error: Exception) -> EngineError:
    """What a run that failed tells a user."""
    return EngineError(f"ONNX Runtime failed: {str(error).splitlines()[0][:300]}")


def _ports(found: Sequence[Any]) -> dict[str, tuple[str, int]]:
    return {port.name: (TYPES.get(port.type, port.type), len(port.shape)) for port in found}
