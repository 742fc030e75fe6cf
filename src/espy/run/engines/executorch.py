"""ExecuTorch on the processor, with XNNPACK."""

from __future__ import annotations

import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from executorch.extension.pybindings.portable_lib import _threadpool_get_thread_count, _unsafe_reset_threadpool
from executorch.runtime import Runtime

from espy.errors import EngineError, ModelError
from espy.machine import available_threads
from espy.run.engines import check_precision, check_side, finished, one_by_one, raw_task_of

TYPES = {0: "uint8", 6: "float32"}  # of ATen's scalar types


class ExecuTorch:
    """Runs `.pte` programs in float32, quantised ones in int8, one picture after the other.

    The number of threads holds for the whole process.
    """

    name = "executorch"
    version = version("executorch")

    def __init__(self, path: Path, *, threads: int | None, precision: str) -> None:
        check_precision(self.name, precision, ("float32", "int8"))
        self.precision = precision
        if _threadpool_get_thread_count() != (threads := threads or available_threads()):
            _unsafe_reset_threadpool(threads)
        try:
            method = Runtime.get().load_program(path).load_method("forward")
            told = method.metadata
            outputs = [told.output_tensor_meta(k) for k in range(told.num_outputs())]
            self._shape = tuple(told.input_tensor_meta(0).sizes())
        except Exception as error:  # the runtime raises plain RuntimeError and kinds of its own
            raise ModelError(f"{path}: ExecuTorch cannot open it ({_first_line(error)})") from None
        self.task = raw_task_of(path, [(TYPES.get(out.dtype(), "another type"), len(out.sizes())) for out in outputs])
        self._method: Any = method
        self._alone = threading.Lock()  # a method's memory is planned for one run

    def run(self, image: np.ndarray, *, scores: bool = False) -> dict[str, np.ndarray]:
        if self._method is None:
            raise EngineError("the engine is closed")
        check_side(self.name, image, self._shape)
        return finished(self.task, one_by_one(self._one, image), scores)

    def _one(self, image: np.ndarray) -> list[np.ndarray]:
        import torch  # the runtime takes and gives tensors

        try:
            with self._alone:
                return [np.array(output) for output in self._method.execute([torch.from_numpy(np.array(image))])]
        except Exception as error:
            raise EngineError(f"ExecuTorch failed: {_first_line(error)}") from None

    def close(self) -> None:
        self._method = None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
