"""The deployed graph as PyTorch's exported program: the archive that torch.export reads, arrays and a graph without pickles."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from espy.header import Header
from espy.nn.deployed import Deployed
from espy.ship.trace import example, quiet, varying

TOOLS = ("torch",)


def make(deployed: Deployed, header: Header, size: tuple[int, int] | None) -> ExportedProgram:
    """The program, its number of pictures free, its sides as `size` says."""
    with quiet(), torch.no_grad():
        program = torch.export.export(deployed, (example(header, size),), dynamic_shapes=(varying(header, size),))
    for parameter in program.parameters():
        parameter.requires_grad_(False)
    for node in program.graph.nodes:  # which lines of which files it comes from
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    program._example_inputs = None  # they would be kept, pickled
    return program


def save(program: ExportedProgram, path: Path, *, scores: bool) -> None:
    """The program as a file; it always gives a segmentation's logits too."""
    inner = path.with_name("model.pt2")  # its name becomes that of a folder inside
    with quiet():
        torch.export.save(program, inner)
    inner.rename(path)
