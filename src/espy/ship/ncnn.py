"""The deployed graph as ncnn's own files: float32 weights, one size, whatever is computed in float32.

ncnn takes pictures as planes [3, H, W] and has neither an arg-max of every pixel nor suppression: what is left to do after the
graph, and is told by its outputs' names (`espy.run.engines.ncnn`), the engine does.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pnnx
import torch
from torch import Tensor, nn

from espy.errors import ModelError
from espy.header import Header
from espy.nn.deployed import Deployed
from espy.run.engines.ncnn import IMAGE, OUTPUTS
from espy.ship.trace import example, quiet

TOOLS = ("torch", "pnnx", "ncnn")


class Planes(nn.Module):
    """float32 [1, 3, H, W] RGB from 0 to 255 → what the network computes."""

    def __init__(self, deployed: Deployed):
        super().__init__()
        self.deployed = deployed

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.deployed.reverse:
            x = torch.cat([x[:, 2:], x[:, 1:2], x[:, :1]], 1)
        return self.deployed.computed(x * self.deployed.factor + self.deployed.shift)


def make(deployed: Deployed, header: Header, size: tuple[int, int] | None) -> tuple[str, bytes]:
    """Text of the graph of one size, and its weights."""
    planes = example(header, size, pictures=1).permute(0, 3, 1, 2).float().contiguous()
    with tempfile.TemporaryDirectory() as folder:
        with quiet(), torch.no_grad():
            traced: Any = torch.jit.trace(Planes(deployed).eval(), (planes,), check_trace=False)  # type: ignore[no-untyped-call]
            traced.save(f"{folder}/model.pt")
        shape = ",".join(str(side) for side in planes.shape)
        command = [pnnx.EXEC_PATH, "model.pt", f"inputshape=[{shape}]", "fp16=0"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        graph, weights = Path(folder) / "model.ncnn.param", Path(folder) / "model.ncnn.bin"
        if done.returncode or not graph.is_file():
            said = (done.stderr.strip() or "nothing said").splitlines()[-1]
            raise ModelError(f"pnnx cannot convert the graph (exit code {done.returncode}: {said[:200]})")
        return named(graph.read_text(encoding="utf-8"), header.task), weights.read_bytes()


def named(graph: str, task: str) -> str:
    """The graph with its input and outputs called by what they are, where pnnx counts them."""
    names = {"in0": IMAGE, **{f"out{place}": name for place, name in enumerate(OUTPUTS[task])}}
    lines = [line.split(" ") for line in graph.splitlines()]
    return "\n".join(" ".join(names.get(word, word) for word in words) for words in lines) + "\n"


def save(model: tuple[str, bytes], path: Path, *, scores: bool) -> None:
    """NAME.ncnn.param and NAME.ncnn.bin; it always gives a segmentation's logits, nothing else."""
    path.write_text(model[0], encoding="utf-8")
    path.with_suffix(".bin").write_bytes(model[1])
