"""Int8 for ExecuTorch: PyTorch's own quantisation, in the form that XNNPACK computes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from espy.ship import eight
from espy.ship.executorch import TOOLS, program
from espy.ship.onnx import WHOLE
from espy.ship.trace import example, quiet

CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)


class Quantiser:
    """Maps are int8 with a zero of their own, weights int8 with a step for each output channel; sums are exact everywhere."""

    tools: tuple[str, ...] = (*TOOLS, "torchao")

    def __init__(self, given: eight.Given) -> None:
        self.given = given
        with quiet(), torch.no_grad():
            self._seen = torch.export.export(
                given.deployed(), (example(given.header, given.size, pictures=1),)
            ).module()
        found = (_layer(node) for node in self._seen.graph.nodes if node.target in CONVOLUTIONS)
        self.layers = tuple(dict.fromkeys(layer for layer in found if layer is not None))

    def make(self, kept: Collection[str]) -> bytes:
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        quantizer.set_filter_function(lambda node: (layer := _layer(node)) is not None and not eight.among(layer, kept))
        with quiet(), torch.no_grad():
            model = prepare_pt2e(self._again(), quantizer)
            for picture in self.given.pictures:
                model(torch.from_numpy(picture))
            model = convert_pt2e(model)
            return program(model, example(self.given.header, self.given.size, pictures=1))

    def _again(self) -> Any:
        """The traced network, which preparing changes."""
        return torch.export.export(self._seen, (example(self.given.header, self.given.size, pictures=1),)).module()

    def save(self, made: bytes, path: Path) -> None:
        path.write_bytes(made)

    def search(self, kept: Collection[str], opened: eight.Open, judge: eight.Judge) -> tuple[Any, tuple[str, ...]]:
        """In the order that ONNX Runtime's int8 gives, which is the same network's."""
        from espy.ship.eight_onnx import Quantiser as Onnx

        return eight.give_back(self, Onnx(self.given).ranking(kept), kept, opened, judge)


def _layer(node: Any) -> str | None:
    """The path of the module that a node of a traced network stands in; None outside of the network."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    inside = [path for path in paths if path.split(".")[0] == "network"]
    return ".".join(part for part in inside[-1].split(".")[1:] if part != "plain") or WHOLE if inside else None
