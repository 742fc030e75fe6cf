"""The project's own engine on the processor: native/, a library of four C functions."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import espy_engine
import numpy as np

from espy.errors import EngineError, ModelError
from espy.header import read_safetensors
from espy.machine import available_threads
from espy.priors import decode, priors
from espy.run.engines import check_precision, check_side
from espy.run.lowering import PRECISIONS, lower
from espy.run.nms import detections


class Native:
    """Runs `.safetensors` files, one picture after the other, in float32, or in bfloat16 where that is asked for."""

    name = "native"
    version = espy_engine.__version__

    def __init__(self, path: Path, *, threads: int | None, precision: str) -> None:
        check_precision(self.name, precision, PRECISIONS)
        self.precision = precision
        header, arrays = read_safetensors(path)
        try:
            program = lower(header.spec, arrays, header.preprocess, precision)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        self.program = program
        self.task, self._classes = header.task, header.spec.classes
        self._side = header.preprocess.size[0]
        self._priors = priors(self._side) if self.task == "detect" else None
        self._library = library()
        self._engine = self._library.espy_create(
            program.units.ctypes.data, len(program.units), program.weights.ctypes.data, len(program.weights),
            min(threads or available_threads(), available_threads()),
        )  # fmt: skip
        if not self._engine:
            raise EngineError(f"{path}: engine native cannot open it ({_last_error(self._library)})")
        self._end = weakref.finalize(self, _destroy, self._library, self._engine)
        self._end.atexit = False  # a thread may still be in a run then; what the process holds goes with it
        self._alone = threading.Lock()  # nothing is closed while it runs
        _open.add(self)

    def run(
        self, image: np.ndarray, *, scores: bool = False, seconds: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """`seconds`: float64, one for each unit of the program, in which the time of the last picture's is written."""
        if image.dtype != np.uint8 or image.ndim != 4 or image.shape[3] != 3:
            raise EngineError(f"engine native takes uint8 [N, height, width, 3], not {image.dtype} {list(image.shape)}")
        if self._priors is not None:
            check_side(self.name, image, (1, self._side, self._side, 3))
        image = np.ascontiguousarray(image)
        n, height, width, _ = image.shape
        mask = np.empty((n, height, width), np.uint8) if self.task == "segment" else None
        logits = np.empty((n, *self._logits(height, width)), np.float32) if mask is None or scores else None
        with self._alone:
            if not self._end.alive:
                raise EngineError("the engine is closed")
            for k in range(n):
                if self._library.espy_run(
                    self._engine, image[k].ctypes.data, height, width, _at(mask, k), _at(logits, k),
                    0 if logits is None else logits[k].size, None if seconds is None else seconds.ctypes.data,
                ):  # fmt: skip
                    raise EngineError(f"engine native failed: {_last_error(self._library)}")
        return self._finished(mask, logits)

    def _logits(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of what a picture's scores are in the library."""
        if self._priors is not None:
            return len(self._priors), 4 + 1 + self._classes
        return (self._classes, height, width) if self.task == "segment" else (self._classes,)

    def _finished(self, mask: np.ndarray | None, logits: np.ndarray | None) -> dict[str, np.ndarray]:
        if logits is None or mask is not None:
            return {name: array for name, array in (("mask", mask), ("scores", logits)) if array is not None}
        if self._priors is None:
            return {"scores": softmax(logits)}
        boxes = np.stack([self._side * decode(one[:, :4], self._priors) for one in logits])
        of_kinds = np.ascontiguousarray(logits[..., 4:].swapaxes(1, 2))
        return {"detections": detections(softmax(of_kinds)[:, 1:], boxes)}

    def close(self) -> None:
        with self._alone:
            self._end()


@cache
def library() -> Any:
    """The functions of native/include/espy_engine.h. Raises EngineError where the library cannot be loaded."""
    try:
        path = espy_engine.library()
    except ImportError as error:
        raise EngineError(f"engine native: {error}") from None
    try:
        loaded = ctypes.CDLL(str(path))
        create, run, destroy, why = (
            getattr(loaded, f"espy_{name}") for name in ("create", "run", "destroy", "last_error")
        )
    except (OSError, AttributeError) as error:
        raise EngineError(f"{path}: cannot be loaded ({error}): install espy-engine again") from None
    address, count = ctypes.c_void_p, ctypes.c_int64
    create.restype, create.argtypes = address, (address, count, address, count, ctypes.c_int32)
    run.restype, run.argtypes = ctypes.c_int32, (address, address, count, count, address, address, count, address)
    destroy.restype, destroy.argtypes = None, (address,)
    why.restype, why.argtypes = ctypes.c_char_p, ()
    return loaded


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N, classes, ...] of logits."""
    grown = np.exp(logits - logits.max(1, keepdims=True))
    found: np.ndarray = grown / grown.sum(1, keepdims=True)
    return found


def _at(arrays: np.ndarray | None, k: int) -> int | None:
    """Where the k-th of several arrays lies."""
    return None if arrays is None else arrays[k].ctypes.data


def _last_error(loaded: Any) -> str:
    """Why this thread's last call failed."""
    return (loaded.espy_last_error() or b"").decode("utf-8", "replace")


def _destroy(loaded: Any, engine: int) -> None:
    loaded.espy_destroy(engine)


_open: weakref.WeakSet[Native] = weakref.WeakSet()


def _forked() -> None:
    """In a forked child: no thread is there that would end a run that another was in."""
    for engine in _open:
        engine._alone = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
