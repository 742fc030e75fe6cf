"""ncnn on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from espy.errors import EngineError, ModelError
from espy.machine import available_threads
from espy.run.engines import check_precision, finished, missing, one_by_one

IMAGE = "image"  # planes [3, h, w], RGB from 0 to 255
OUTPUTS = {"segment": ("logits",), "classify": ("scores",), "detect": ("scores", "boxes")}
"""Task → the names of what such a graph gives: for one picture, in the order of `finished`, a mask to be made of logits."""
NARROW = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage")


class Ncnn:
    """Runs `.param` and `.bin` files in float32, one picture after the other."""

    name = "ncnn"

    def __init__(self, path: Path, *, threads: int | None, precision: str) -> None:
        try:
            import ncnn
        except ModuleNotFoundError:
            raise missing(self.name) from None
        check_precision(self.name, precision, ("float32",))
        self.precision, self.version, self._ncnn = precision, ncnn.__version__, ncnn
        net = ncnn.Net()
        net.opt.num_threads = threads or available_threads()
        for option in NARROW:
            setattr(net.opt, option, False)
        if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
            raise ModelError(f"{path}: ncnn cannot open it: damaged, or no ncnn model")
        found = set(net.output_names())
        tasks = [task for task, names in OUTPUTS.items() if set(names) == found]
        if not tasks or list(net.input_names()) != [IMAGE]:
            raise ModelError(
                f"{path}: takes {sorted(net.input_names())} and gives {sorted(found)}, which no deployed model does: "
                "make one with `espy export --to ncnn`"
            )
        self.task = tasks[0]
        self._net: Any = net

    def run(self, image: np.ndarray, *, scores: bool = False) -> dict[str, np.ndarray]:
        if self._net is None:
            raise EngineError("the engine is closed")
        return finished(self.task, one_by_one(self._one, image), scores)

    def _one(self, image: np.ndarray) -> list[np.ndarray]:
        (picture,) = np.ascontiguousarray(image)
        height, width, _ = picture.shape
        extractor, mat = self._net.create_extractor(), None
        try:
            pixels = self._ncnn.Mat.from_pixels(picture, self._ncnn.Mat.PixelType.PIXEL_RGB, width, height)
            extractor.input(IMAGE, pixels)
            found = []
            for name in OUTPUTS[self.task]:
                code, mat = extractor.extract(name)
                if code:
                    raise EngineError(f"ncnn failed on height {height}, width {width} (code {code})")
                found.append(np.array(mat)[None])  # a copy: the memory is the extractor's
        finally:
            del extractor, mat  # before the net, whose pools they are from
        return [found[0].argmax(1).astype(np.uint8), *found] if self.task == "segment" else found

    def close(self) -> None:
        self._net = None
