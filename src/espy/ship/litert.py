"""The deployed graph as a LiteRT model: one picture of one size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import litert_torch
import torch

from espy.header import Header
from espy.nn.deployed import Deployed
from espy.ship.trace import example, quiet

TOOLS = ("torch", "litert-torch", "ai-edge-litert")


def make(deployed: Deployed, header: Header, size: tuple[int, int] | None) -> Any:
    """The model of one size. (With sides that vary, the converter keeps those of the example without a word.)"""
    with quiet(), torch.no_grad():
        return litert_torch.convert(deployed, (example(header, size, pictures=1),))


def save(model: Any, path: Path, *, scores: bool) -> None:
    """The model as a file; it always gives a segmentation's logits too."""
    with quiet():
        model.export(str(path))
