"""Engines: what runs a model file. One file each, one protocol for all.

An engine takes uint8 [N, h, w, 3] RGB pictures at the network's size and returns a dict of arrays by name: for segmentation
"mask" uint8 [N, h, w], and on request "scores" float32 [N, C, h, w], the logits, where the file gives them; for classification
"scores" float32 [N, C], probabilities; for detection "detections" float32 [D, 7], as `espy.run.nms` has them. It may be called
from several threads, and never computes in another precision than asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from espy.errors import EngineError, ModelError
from espy.run.nms import detections

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
# OpenVINO's tools and NNCF would report each use to their maker, unasked, by processes of its own; without it they do not


class Engine(Protocol):
    """What the predictor needs of an engine."""

    name: str
    version: str
    precision: str
    task: str

    def __init__(self, path: Path, *, threads: int | None, precision: str) -> None: ...

    def run(self, image: np.ndarray, *, scores: bool = False) -> dict[str, np.ndarray]:
        """uint8 [N, h, w, 3] → what the task gives; `scores`: a segmentation's logits too, if the file has them."""

    def close(self) -> None:
        """Give back what the engine holds; it cannot run any more."""


ENGINES = {
    # name: (module:class, package to install, endings that it opens, what it imports)
    "onnxruntime": ("onnxruntime:OnnxRuntime", "onnxruntime", (".onnx",), "onnxruntime"),
    "openvino": ("openvino:OpenVino", "espy-vision[openvino]", (".onnx", ".xml"), "openvino"),
    "torch": ("torch:Torch", "espy-vision[train]", (".safetensors",), "torch"),
    "native": ("native:Native", "espy-vision[native]", (".safetensors",), "espy_engine"),
    "pt2": ("pt2:Pt2", "espy-vision[train]", (".pt2",), "torch"),
    "executorch": ("executorch:ExecuTorch", "espy-vision[executorch]", (".pte",), "executorch"),
    "ncnn": ("ncnn:Ncnn", "espy-vision[ncnn]", (".param",), "ncnn"),
    "litert": ("litert:LiteRt", "espy-vision[litert]", (".tflite",), "ai_edge_litert"),
}
FORMATS = {
    ".onnx": "onnx",
    ".xml": "openvino",
    ".pt2": "pt2",
    ".pte": "executorch",
    ".param": "ncnn",
    ".tflite": "litert",
}
"""Ending → the name under which `espy export --to` makes such files."""


def installed(name: str) -> bool:
    """Whether what an engine imports is there, which is not imported for it."""
    try:
        return importlib.util.find_spec(ENGINES[name][3]) is not None
    except (ImportError, ValueError):  # something in its place that is no package
        return False


def installed_version(name: str) -> str:
    """The version of what an installed engine imports, which is not imported for it."""
    from importlib import metadata  # slow, and seldom asked

    package = ENGINES[name][3]
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # its distribution has another name
        found = importlib.util.find_spec(package)
        return f"of {Path(found.origin).stat().st_mtime:.0f}" if found and found.origin and found.has_location else ""


def load_engine(name: str) -> type[Engine]:
    """The class of an engine. Raises EngineError with the install line where its package is missing."""
    target, package, *_ = ENGINES[name]
    module, kind = target.split(":")
    try:
        loaded: type[Engine] = getattr(importlib.import_module(f"espy.run.engines.{module}"), kind)
        return loaded
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "espy":
            raise
        raise missing(name, package) from None


def missing(name: str, package: str | None = None) -> EngineError:
    """The error for an engine whose package is not installed."""
    return EngineError(f"engine {name} is not installed: pip install '{package or ENGINES[name][1]}'")


PRECISIONS = ("float32", "bfloat16", "int8")
INPUT = {"image": ("uint8", 4)}
OUTPUTS = {
    # task: name → (type, dimensions)
    "segment": {"mask": ("uint8", 3)},
    "classify": {"scores": ("float32", 2)},
    "detect": {"detections": ("float32", 2)},
}
LOGITS = ("float32", 4)  # of "scores", which a segmentation may give beside its mask

Ports = Mapping[str, tuple[str, int]]


def task_of(path: Path, inputs: Ports, outputs: Ports) -> str:
    """The task of a graph by what it takes and gives, name → (type, dimensions). Raises ModelError for no deployed model."""
    tasks = [
        task for task, wanted in OUTPUTS.items() if all(outputs.get(name) == port for name, port in wanted.items())
    ]
    if dict(inputs) == INPUT and tasks:
        return tasks[0]
    raise ModelError(
        f"{path}: takes {sorted(inputs)} and gives {sorted(outputs)}; a deployed model takes 'image' (uint8 [N, H, W, 3]) and "
        "gives 'mask' (uint8 [N, H, W]), perhaps 'scores' (float32 [N, C, H, W]), or 'scores' (float32 [N, C]), or 'detections' "
        "(float32 [D, 7]): make one with `espy export`"
    )


RAW = {
    # task: what files give that end before suppression, in this order
    "segment": (("mask", ("uint8", 3)), ("scores", LOGITS)),
    "classify": (("scores", ("float32", 2)),),
    "detect": (("scores", ("float32", 3)), ("boxes", ("float32", 3))),
}


def raw_task_of(path: Path, outputs: Sequence[tuple[str, int]]) -> str:
    """The task of a file whose outputs have an order instead of names, (type, dimensions) each."""
    for task, wanted in RAW.items():
        if [port for _, port in wanted] == list(outputs):
            return task
    found = ", ".join(f"{kind} of {rank} dimensions" for kind, rank in outputs)
    raise ModelError(f"{path}: gives {found or 'nothing'}, which no deployed model does: make one with `espy export`")


def finished(task: str, outputs: Sequence[np.ndarray], scores: bool) -> dict[str, np.ndarray]:
    """What an engine returns, of such a file's outputs."""
    found = {name: array for (name, _), array in zip(RAW[task], outputs, strict=True)}
    if task == "detect":
        return {"detections": detections(found["scores"], found["boxes"])}
    if task == "segment" and not scores:
        del found["scores"]
    return found


def one_by_one(run: Callable[[np.ndarray], list[np.ndarray]], image: np.ndarray) -> list[np.ndarray]:
    """Outputs [N, ...] of an engine that sees one picture [1, h, w, 3] at a time, for [N, h, w, 3]."""
    found = [run(image[place : place + 1]) for place in range(len(image))]
    return [np.concatenate(arrays) for arrays in zip(*found, strict=True)]


def check_side(engine: str, image: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise EngineError for pictures [N, h, w, 3] of another size than a file's one picture, `shape` [1, h, w, 3]."""
    if image.shape[1:] != shape[1:]:
        size, one = image.shape[1:3], shape[1:3]
        raise EngineError(
            f"engine {engine}: height {size[0]}, width {size[1]} does not fit: the file takes only height {one[0]}, width {one[1]}"
        )


def check_precision(engine: str, precision: str, known: tuple[str, ...]) -> None:
    """Raise EngineError unless the engine computes in the precision."""
    if precision not in known:
        raise EngineError(f"engine {engine} computes in {' or '.join(known)}, not in {precision!r}")
