"""Int8 for ONNX Runtime: the deployed graph with QuantizeLinear and DequantizeLinear around what computes in eight bits."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from espy.run.engines.onnxruntime import open_session
from espy.ship import eight
from espy.ship.onnx import TOOLS, append_suppression, graph, layer_of, output_chosen
from espy.ship.trace import quiet

TYPES = (
    "Conv",
    "Gemm",
    "Add",
    "Relu",
    "Concat",
    "AveragePool",
    "DepthToSpace",
)  # what the engine has in eight bits, and fast


class Quantiser:
    """Activations are uint8 with a zero of their own, weights int8 with a step for each output channel."""

    tools: tuple[str, ...] = (*TOOLS, "onnxruntime")

    def __init__(self, given: eight.Given) -> None:
        self.given = given
        self.float = graph(given.deployed(), given.header, given.size, raw=True)
        found = {node.name: layer for node in self.float.graph.node if (layer := _quantisable(node))}
        self.nodes = found
        self.layers = tuple(dict.fromkeys(found.values()))
        self._ranges = self._calibrated()

    def _calibrated(self) -> Any:
        """The least and largest value of every map in a picture, each the mean over the pictures: a rare outlier would cost all
        others their resolution.
        """
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder) / "float.onnx"
            onnx.save(self.float, path)
            calibrator = create_calibrator(
                path, list(TYPES), augmented_model_path=str(Path(folder) / "seen.onnx"),
                calibrate_method=CalibrationMethod.MinMax, extra_options={"symmetric": False, "moving_average": True},
            )  # fmt: skip
            calibrator.collect_data(_Feed(self.given.pictures))
            return calibrator.compute_data()

    def make(self, kept: Collection[str]) -> onnx.ModelProto:
        model = self._raw([name for name, layer in self.nodes.items() if not eight.among(layer, kept)])
        if self.given.header.task == "detect":
            append_suppression(model)
        return model

    def _raw(self, nodes: list[str]) -> onnx.ModelProto:
        """The graph with these nodes in int8."""
        with quiet():
            quantizer = QDQQuantizer(
                copy.deepcopy(self.float), per_channel=True, reduce_range=eight.WEIGHT_BITS == 7,
                weight_qType=QuantType.QInt8, activation_qType=QuantType.QUInt8, tensors_range=self._ranges,
                nodes_to_quantize=nodes, nodes_to_exclude=[], op_types_to_quantize=list(TYPES), extra_options={},
            )  # fmt: skip
            quantizer.quantize_model()
        model: onnx.ModelProto = quantizer.model.model
        model.producer_name, model.producer_version = "espy", ""
        del model.metadata_props[:]
        del model.graph.value_info[:]
        return model

    def save(self, made: onnx.ModelProto, path: Path) -> None:
        path.write_bytes(output_chosen(made, scores=False).SerializeToString())

    def search(self, kept: Collection[str], opened: eight.Open, judge: eight.Judge) -> tuple[Any, tuple[str, ...]]:
        return eight.give_back(self, self.ranking(kept), kept, opened, judge)

    def ranking(self, kept: Collection[str]) -> list[str]:
        """Blocks that are not in float, the most sensitive first."""
        pictures = self.given.pictures[: eight.RANKED]

        def outputs(model: onnx.ModelProto) -> list[list[np.ndarray]]:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "m.onnx"
                onnx.save(model, path)
                session = open_session(path, None)
            return [session.run(None, {"image": picture}) for picture in pictures]

        wanted = outputs(self.float)

        def error(block: str) -> float:
            found = outputs(self._raw([name for name, layer in self.nodes.items() if eight.among(layer, [block])]))
            return sum(eight.difference(one, right) for one, right in zip(found, wanted, strict=True))

        return eight.ranked(eight.blocks(self.layers, kept), error)


def _quantisable(node: onnx.NodeProto) -> str | None:
    """The layer of a node that can compute in int8."""
    return layer_of(node.name) if node.op_type in TYPES else None


class _Feed:
    """Pictures as ONNX Runtime's calibration wants them."""

    def __init__(self, pictures: Any) -> None:
        self._left = iter(pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        picture = next(self._left, None)
        return None if picture is None else {"image": picture}
