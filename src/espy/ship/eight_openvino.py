"""Int8 for OpenVINO, by NNCF: it finds the ranges, corrects biases, and gives layers back to float as accuracy demands.

NNCF ranks layers by compiling and judging the network once for each, and may rank again after each that went back. Where that
takes too long, blocks go back as they do in the other formats.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import nncf
import onnx
import openvino as ov
from nncf.quantization.advanced_parameters import QuantizationParameters

from espy.errors import EngineError
from espy.run.engines.openvino import OpenVino
from espy.ship import eight
from espy.ship.onnx import append_suppression, graph, layer_of
from espy.ship.openvino import TOOLS
from espy.ship.trace import quiet

logging.getLogger("nncf").setLevel(logging.ERROR)

WITHOUT = ("rebuild_pyramids", "widen_pictures", "fold_norms", "merge_groups", "double_maps")
"""Rewrites that stay undone: OpenVINO computes a PReLU within the int8 convolution before it, and wants it whole."""

NO_OPERATION = ("Parameter", "Constant", "Result")
CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData")
TAKEN_BACK = 12  # layers at most that NNCF may give back to float, one by one, each a run over val
JUDGED = 16  # pictures of val on which it ranks them
CONTROL_S = 600.0  # that one such ranking may take
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}  # OpenVINO's own default on recent processors is bfloat16


class Quantiser:
    """Activations are uint8, weights int8 with a step for each output channel and half the range, as `eight.WEIGHT_BITS` says."""

    tools: tuple[str, ...] = (*TOOLS, "nncf")

    def __init__(self, given: eight.Given) -> None:
        self.given = given
        with quiet(), tempfile.TemporaryDirectory() as folder:
            made = graph(given.deployed(WITHOUT), given.header, given.size, raw=True)
            if given.header.task == "detect":
                append_suppression(made)
            path = Path(folder) / "m.onnx"
            onnx.save(made, path)
            self.float = ov.convert_model(path)
            # OpenVINO fails on int8 maps that are reshaped for means where it does not know of how many pictures
            self._batch(self.float, 1)
        layers = (layer_of(op.get_friendly_name()) for op in self.float.get_ops() if op.get_type_name() in CONVOLUTIONS)
        self.layers = tuple(dict.fromkeys(layer for layer in layers if layer is not None))

    def make(self, kept: Collection[str]) -> ov.Model:
        with quiet():
            return nncf.quantize(self.float, advanced_parameters=_settings(), **self._options(kept))

    def _options(self, kept: Collection[str]) -> dict[str, Any]:
        """NNCF's. Products of matrices stay in float: those of this project are means and resizes."""
        names = [op.get_friendly_name() for op in self.float.get_ops() if op.get_type_name() not in NO_OPERATION]
        inside = {name for name in names if (layer := layer_of(name)) is not None and not eight.among(layer, kept)}
        return {
            "calibration_dataset": nncf.Dataset(self.given.pictures), "subset_size": len(self.given.pictures),
            "preset": nncf.QuantizationPreset.MIXED, "target_device": nncf.TargetDevice.CPU,
            "ignored_scope": nncf.IgnoredScope(
                names=[name for name in names if name not in inside], types=["MatMul"], validate=False
            ),
        }  # fmt: skip

    @staticmethod
    def _batch(model: ov.Model, n: int) -> None:
        """Make the model one of `n` pictures, -1: of any number."""
        shape = model.input().get_partial_shape()
        shape[0] = n
        model.reshape(shape)

    def save(self, made: ov.Model, path: Path) -> None:
        self._batch(made, -1)
        ov.save_model(made, path, compress_to_fp16=False)

    def search(self, kept: Collection[str], opened: eight.Open, judge: eight.Judge) -> tuple[Any, tuple[str, ...]]:
        """By NNCF's own control of accuracy; where that takes too long, in the order that ONNX Runtime's int8 gives."""
        if self._control_s(judge) <= CONTROL_S:
            return self._controlled(kept, judge)
        from espy.ship.eight_onnx import Quantiser as Onnx

        return eight.give_back(self, Onnx(self.given).ranking(kept), kept, opened, judge)

    def _control_s(self, judge: eight.Judge) -> float:
        """Seconds that NNCF ranks, about: for each layer it compiles the network and judges it on some pictures."""
        start = time.monotonic()
        engine = OpenVino.around(_compiled(self.float), "float32", Path("float32"))
        ready = time.monotonic()
        judge(engine, "how long NNCF would rank", [0])
        judged = time.monotonic() - ready
        return len(self.layers) * (ready - start + judged * min(JUDGED, len(judge.val)))

    def _controlled(self, kept: Collection[str], judge: eight.Judge) -> tuple[Any, tuple[str, ...]]:
        """By NNCF's own control of accuracy."""

        def figure(compiled: Any, places: Iterable[int]) -> tuple[float, None]:
            engine = OpenVino.around(compiled, "int8", Path("int8"))
            return judge(engine, "int8, layers in float", list(places)).figure, None

        lost = judge(OpenVino.around(_compiled(self.float), "float32", Path("float32")), "float32").figure
        try:
            with quiet():
                made = nncf.quantize_with_accuracy_control(
                    self.float, validation_dataset=nncf.Dataset(range(len(judge.val))), validation_fn=figure,
                    max_drop=max(0.0, lost - judge.least), drop_type=nncf.DropType.ABSOLUTE,
                    advanced_quantization_parameters=_settings(),
                    advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                        max_num_iterations=TAKEN_BACK, ranking_subset_size=JUDGED
                    ),
                    **self._options(kept),
                )  # fmt: skip
        except RuntimeError as error:
            why = str(error).strip().splitlines()[-1]
            raise EngineError(
                f"NNCF's accuracy control fails on this network: raise --max-drop, or quantise --to onnx ({why})"
            ) from None
        return made, tuple(layer for layer in self.layers if layer not in _in_int8(made))


def _settings() -> Any:
    """Weights of half the range; one step for a whole map: with several, OpenVINO fails on maps that are reshaped for means."""
    return nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE,
        activations_quantization_params=QuantizationParameters(per_channel=False),
    )


def _compiled(model: ov.Model) -> Any:
    return ov.compile_model(model, "CPU", FLOAT32)


def _in_int8(made: ov.Model) -> set[str]:
    """Layers whose input is quantised."""
    found = set()
    for op in made.get_ops():
        if op.get_type_name() in CONVOLUTIONS and op.input_value(0).get_node().get_type_name() == "FakeQuantize":
            found.add(layer_of(op.get_friendly_name()) or "")
    return found
