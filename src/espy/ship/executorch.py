"""The deployed graph as an ExecuTorch program: one picture of one size, what XNNPACK knows is computed by it."""

from __future__ import annotations

from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower

from espy.header import Header
from espy.nn.deployed import Deployed
from espy.ship.trace import example, quiet

TOOLS = ("torch", "executorch")


def make(deployed: Deployed, header: Header, size: tuple[int, int] | None) -> bytes:
    """The program of one size."""
    return program(deployed, example(header, size, pictures=1))


def program(module: torch.nn.Module, picture: torch.Tensor) -> bytes:
    """The program of a module that takes such a picture."""
    with quiet(), torch.no_grad():
        exported = torch.export.export(module, (picture,))
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        content: bytes = lowered.to_executorch().buffer
    return content


def save(program: bytes, path: Path, *, scores: bool) -> None:
    """The program as a file; it always gives a segmentation's logits too."""
    path.write_bytes(program)
