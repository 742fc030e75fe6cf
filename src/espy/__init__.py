"""ESPNet and ESPNetv2: understand pictures on ordinary processors.

>>> import espy
>>> model = espy.load("street")
>>> model.labels[0].name
'road'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from espy.version import VERSION as __version__

if TYPE_CHECKING:
    from espy.bundle import models as models
    from espy.errors import EspyError as EspyError
    from espy.evaluation import evaluate as evaluate
    from espy.learn.loop import train as train
    from espy.nn.build import build as build
    from espy.published import load_published as load_published
    from espy.run.predictor import load as load
    from espy.ship.bench import bench as bench
    from espy.ship.export import export as export
    from espy.ship.quantize import quantize as quantize

_PUBLIC = {
    "EspyError": "espy.errors",
    "bench": "espy.ship.bench",
    "build": "espy.nn.build",
    "evaluate": "espy.evaluation",
    "export": "espy.ship.export",
    "load": "espy.run.predictor",
    "load_published": "espy.published",
    "models": "espy.bundle",
    "quantize": "espy.ship.quantize",
    "train": "espy.learn.loop",
}

__all__ = [
    "EspyError",
    "__version__",
    "bench",
    "build",
    "evaluate",
    "export",
    "load",
    "load_published",
    "models",
    "quantize",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import espy` itself costs next to nothing and needs no torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'espy' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "onnx", "onnxscript", "lightning_fabric", "tensorboard", "filelock"):
            raise
        from espy.errors import EngineError

        raise EngineError(f"espy.{name} needs {error.name}: pip install 'espy-vision[train]'") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
