"""PyTorch, eager: the plain networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from espy.errors import EngineError, ModelError
from espy.header import read_safetensors
from espy.run.engines import check_precision, missing

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
        from espy.nn.deployed import Deployed

        check_precision(self.name, precision, ("float32",))
        self.precision, self.version, self._torch = precision, torch.__version__.split("+")[0], torch
        if threads:
            torch.set_num_threads(threads)
        header, arrays = read_safetensors(path)
        try:
            network = with_weights(header.spec, arrays)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        self._module: Any = Deployed(network, header.preprocess).eval()

    @classmethod
    def around(cls, module: Deployed) -> Torch:
        """An engine that runs a network in memory, on the device where it lies."""
        import torch

        engine = cls.__new__(cls)
        engine.precision, engine.version, engine._torch = "float32", torch.__version__.split("+")[0], torch
        engine._module = module
        return engine

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        if self._module is None:
            raise EngineError("the engine is closed")
        with self._torch.inference_mode():
            tensor: torch.Tensor = self._torch.from_numpy(np.array(image)).to(self._module.factor.device)
            return {"mask": self._module(tensor)[0].cpu().numpy()}

    def mean_mask(self, views: list[tuple[np.ndarray, bool]], size: tuple[int, int]) -> np.ndarray:
        """uint8 [h, w] of `size`: arg-max of the mean probabilities of views uint8 [*, *, 3], mirrored ones marked."""
        if self._module is None:
            raise EngineError("the engine is closed")
        from espy.nn.units import resize

        total: Any = 0.0
        with self._torch.inference_mode():
            for image, mirrored in views:
                scores = self._module(self._torch.from_numpy(np.array(image[None])).to(self._module.factor.device))[
                    1
                ].softmax(1)
                total = total + resize(scores.flip(3) if mirrored else scores, size, align_corners=False)
            mask: np.ndarray = total.argmax(1)[0].to(self._torch.uint8).cpu().numpy()
        return mask

    def close(self) -> None:
        self._module = None
