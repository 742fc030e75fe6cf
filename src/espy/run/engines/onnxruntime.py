"""ONNX Runtime on the processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from espy.errors import EngineError, ModelError
from espy.machine import available_threads
from espy.run.engines import LOGITS, OUTPUTS, check_precision, task_of
from espy.run.shaped import Shape, Shaped

TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxRuntime:
    """Runs `.onnx` files in float32, quantised ones in int8; sessions are `Shaped`."""

    name = "onnxruntime"
    version = ort.__version__

    def __init__(self, path: Path, *, threads: int | None, precision: str) -> None:
        check_precision(self.name, precision, ("float32", "int8"))
        self.precision = precision
        found = open_session(path, threads, optimised=False)
        inputs, outputs = (_ports(ports) for ports in (found.get_inputs(), found.get_outputs()))
        self.task = task_of(path, inputs, outputs)
        self._names = list(OUTPUTS[self.task])
        self._scores = ["scores"] if self.task == "segment" and outputs.get("scores") == LOGITS else []
        sides = found.get_inputs()[0].shape
        self._sessions = Shaped(lambda shape: open_session(path, threads, known=known(sides, shape)))

    def run(self, image: np.ndarray, *, scores: bool = False) -> dict[str, np.ndarray]:
        names = self._names + (self._scores if scores else [])
        session = self._sessions.of(image.shape)
        try:
            return dict(zip(names, session.run(names, {"image": image}), strict=True))
        except Exception as error:
            raise failed(error) from None

    def close(self) -> None:
        self._sessions.close()


def known(sides: Sequence[int | str], shape: Shape | None) -> dict[str, int]:
    """The sides of an input that a graph leaves free, by name, as a shape has them."""
    return {name: side for name, side in zip(sides, shape or (), strict=False) if isinstance(name, str)}


def open_session(
    path: Path,
    threads: int | None,
    *,
    known: Mapping[str, int] | None = None,
    optimised: bool = True,
    profile: Path | None = None,
) -> Any:
    """Any `.onnx` file as ONNX Runtime's session, set as for the project's own.

    `known`: sides that the graph leaves free, by name. `optimised`: or as it is, to be looked at. `profile`: how its record's
    name begins. Raises ModelError where the file cannot be opened.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_threads()
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it keeps twice the memory and gains next to nothing
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")  # leave the cores to reading and writing
    for name, side in (known or {}).items():
        options.add_free_dimension_override_by_name(name, side)
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        return ort.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )  # else it prints
    except Exception as error:  # the runtime raises kinds of its own
        raise ModelError(f"{path}: ONNX Runtime cannot open it ({str(error).splitlines()[0][:200]})") from None


def session_for(path: Path, threads: int | None, shape: Shape, profile: Path | None = None) -> Any:
    """`open_session` for one shape of the first input."""
    sides = open_session(path, 1, optimised=False).get_inputs()[0].shape
    return open_session(path, threads, known=known(sides, shape), profile=profile)


def failed(error: Exception) -> EngineError:
    """What a run that failed tells a user."""
    return EngineError(f"ONNX Runtime failed: {str(error).splitlines()[0][:300]}")


def _ports(found: Sequence[Any]) -> dict[str, tuple[str, int]]:
    return {port.name: (TYPES.get(port.type, port.type), len(port.shape)) for port in found}
