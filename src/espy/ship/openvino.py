"""The deployed graph as OpenVINO's own files, made from the ONNX graph: weights stay float32."""

from __future__ import annotations

from pathlib import Path

import onnx
import openvino as ov

from espy.ship.onnx import TOOLS as ONNX_TOOLS
from espy.ship.onnx import make as make  # the same graph
from espy.ship.onnx import output_chosen

TOOLS = (*ONNX_TOOLS, "openvino")


def save(model: onnx.ModelProto, path: Path, *, scores: bool) -> None:
    """NAME.xml and NAME.bin, without a segmentation's logits unless `scores`."""
    source = path.with_suffix(".onnx")
    source.write_bytes(output_chosen(model, scores).SerializeToString())
    converted = ov.convert_model(source)
    source.unlink()
    ov.save_model(converted, path, compress_to_fp16=False)
