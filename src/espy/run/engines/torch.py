"""PyTorch, eager: the plain networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from espy.errors import EngineError, ModelError
from espy.header import read_safetensors
from espy.run.engines import check_precision, missing
from espy.run.nms import detections

if TYPE_CHECKING:
    import torch

    from espy.nn.deployed import Deployed


class Torch:
    """Runs `.safetensors` files in float32. The number of threads holds for the whole process, as PyTorch has it."""

    name = "torch"

    def __init__(self, path: Path, *, threads: int | None, precision: str) -> None:
        try:
            import torch
        except ModuleNotFoundError:
            raise missing(self.name) from None
        from espy.nn.build import with_weights
        from espy.nn.deployed import deploy

        check_precision(self.name, precision, ("float32",))
        self.precision, self.version, self._torch = precision, torch.__version__.split("+")[0], torch
        if threads:
            torch.set_num_threads(threads)
        header, arrays = read_safetensors(path)
        try:
            network = with_weights(header.spec, arrays)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        self._module: Any = deploy(network, header.preprocess).eval()
        self.task: str = header.task

    @classmethod
    def around(cls, module: Deployed) -> Torch:
        """An engine that runs a network in memory, on the device where it lies."""
        import torch

        engine = cls.__new__(cls)
        engine.precision, engine.version, engine._torch = "float32", torch.__version__.split("+")[0], torch
        engine._module = module
        engine.task = module.network.spec.task  # type: ignore[union-attr, assignment]
        return engine

    def run(self, image: np.ndarray, *, scores: bool = False) -> dict[str, np.ndarray]:
        if self._module is None:
            raise EngineError("the engine is closed")
        with self._torch.inference_mode():
            tensor: torch.Tensor = self._torch.from_numpy(np.array(image)).to(self._module.factor.device)
            outputs = dict(zip(self._module.outputs, self._module(tensor), strict=True))
            if self.task == "segment" and not scores:
                del outputs["scores"]
            found = {name: output.cpu().numpy() for name, output in outputs.items()}
        return {"detections": detections(found["scores"], found["boxes"])} if self.task == "detect" else found

    def close(self) -> None:
        self._module = None
