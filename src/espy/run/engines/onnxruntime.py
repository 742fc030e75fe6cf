"""ONNX Runtime on the processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from espy.errors import EngineError, ModelError
from espy.run.engines import available_threads, check_precision, no_deployed_model


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
        self._check(path)

    def _check(self, path: Path) -> None:
        inputs = {i.name: (i.type, len(i.shape)) for i in self._session.get_inputs()}
        outputs = {o.name: (o.type, len(o.shape)) for o in self._session.get_outputs()}
        if inputs != {"image": ("tensor(uint8)", 4)} or outputs.get("mask") != ("tensor(uint8)", 3):
            raise ModelError(f"{path}: {no_deployed_model(inputs, outputs)}")
        self._scores = outputs.get("scores") == ("tensor(float)", 4)

    def run(self, image: np.ndarray, *, scores: bool = False) -> dict[str, np.ndarray]:
        if self._session is None:
            raise EngineError("the engine is closed")
        names = ["mask", "scores"] if scores and self._scores else ["mask"]
        try:
            return dict(zip(names, self._session.run(names, {"image": image}), strict=True))
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed: {str(error).splitlines()[0][:300]}") from None

    def close(self) -> None:
        self._session = None
