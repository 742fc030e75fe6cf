"""PyTorch's exported programs."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from espy.errors import EngineError, ModelError
from espy.run.engines import check_precision, finished, missing, raw_task_of

TYPES = {"torch.uint8": "uint8", "torch.float32": "float32"}
PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/\w+\.json|extra/\w+"
    r"|data/weights/(weight_\d+|\w+_config\.json)|data/constants/(tensor_\d+|\w+_config\.json)"
)
"""What an archive of plain arrays and one graph consists of; PyTorch unpickles what else there may be."""


class Pt2:
    """Runs `.pt2` archives in float32. The number of threads holds for the whole process, as PyTorch has it."""

    name = "pt2"

    def __init__(self, path: Path, *, threads: int | None, precision: str) -> None:
        try:
            import torch
        except ModuleNotFoundError:
            raise missing(self.name) from None
        check_precision(self.name, precision, ("float32",))
        self.precision, self.version, self._torch = precision, torch.__version__.split("+")[0], torch
        if threads:
            torch.set_num_threads(threads)
        refuse_pickles(path)
        try:
            program = torch.export.load(path)
        except Exception as error:  # PyTorch raises kinds of its own
            raise ModelError(f"{path}: PyTorch cannot open it ({_first_line(error)})") from None
        self.task = raw_task_of(path, _outputs(program))
        self._module: Any = program.module()

    def run(self, image: np.ndarray, *, scores: bool = False) -> dict[str, np.ndarray]:
        if self._module is None:
            raise EngineError("the engine is closed")
        try:
            with self._torch.inference_mode():
                outputs = self._module(self._torch.from_numpy(np.array(image)))
        except Exception as error:
            raise EngineError(f"PyTorch failed: {_first_line(error)}") from None
        return finished(self.task, [output.numpy() for output in outputs], scores)

    def close(self) -> None:
        self._module = None


def refuse_pickles(path: Path) -> None:
    """Raise ModelError for an archive that PyTorch would unpickle a part of: that runs whatever the file says."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            configs = [
                json.loads(archive.read(info)) for name, info in entries.items() if name.endswith("_config.json")
            ]
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        raise ModelError(f"{path}: damaged or truncated, or no .pt2 archive") from None
    foreign = [name for name, info in entries.items() if not PLAIN.fullmatch(name) and info.file_size]
    pickled = [config for config in configs if '"use_pickle": true' in json.dumps(config)]
    if foreign or pickled or "archive_format" not in entries:
        raise ModelError(
            f"{path}: holds more than arrays and a graph ({foreign[0] if foreign else 'pickled arrays'}), which is not opened: "
            "make one with `espy export --to pt2`"
        )


def _outputs(program: Any) -> list[tuple[str, int]]:
    """(type, dimensions) of what a program gives."""
    (node,) = [node for node in program.graph.nodes if node.op == "output"]
    values = [argument.meta["val"] for argument in node.args[0] if hasattr(argument, "meta")]
    return [(TYPES.get(str(value.dtype), str(value.dtype)), value.dim()) for value in values]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
