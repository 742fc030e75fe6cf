"""LiteRT on the processor, with XNNPACK."""

from __future__ import annotations

import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from espy.errors import EngineError, ModelError
from espy.machine import available_threads
from espy.run.engines import check_precision, check_side, finished, one_by_one, raw_task_of


class LiteRt:
    """Runs `.tflite` models in float32, one picture after the other."""

    name = "litert"
    version = version("ai-edge-litert")

    def __init__(self, path: Path, *, threads: int | None, precision: str) -> None:
        check_precision(self.name, precision, ("float32",))
        self.precision = precision
        try:
            interpreter = Interpreter(str(path), num_threads=threads or available_threads())
            interpreter.allocate_tensors()
            (self._input,) = interpreter.get_input_details()
            outputs = sorted(interpreter.get_output_details(), key=lambda output: output["name"])  # ..._0, ..._1
        except Exception as error:  # the runtime raises plain ValueError and RuntimeError
            raise ModelError(f"{path}: LiteRT cannot open it ({_first_line(error)})") from None
        self.task = raw_task_of(path, [(np.dtype(out["dtype"]).name, len(out["shape"])) for out in outputs])
        self._shape, self._outputs = tuple(self._input["shape"]), [out["index"] for out in outputs]
        self._interpreter: Any = interpreter
        self._alone = threading.Lock()  # its tensors are those of one run

    def run(self, image: np.ndarray, *, scores: bool = False) -> dict[str, np.ndarray]:
        if self._interpreter is None:
            raise EngineError("the engine is closed")
        check_side(self.name, image, self._shape)
        return finished(self.task, one_by_one(self._one, image), scores)

    def _one(self, image: np.ndarray) -> list[np.ndarray]:
        try:
            with self._alone:
                self._interpreter.set_tensor(self._input["index"], image)
                self._interpreter.invoke()
                return [self._interpreter.get_tensor(index) for index in self._outputs]  # copies
        except Exception as error:
            raise EngineError(f"LiteRT failed: {_first_line(error)}") from None

    def close(self) -> None:
        self._interpreter = None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
