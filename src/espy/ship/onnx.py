"""The deployed graph as an ONNX file: uint8 picture in, uint8 mask out."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from espy import eightbits
from espy.errors import ModelError
from espy.header import Header
from espy.nn.deployed import Deployed
from espy.run import nms
from espy.ship.trace import example, quiet, varying

TOOLS = ("torch", "onnx", "onnxscript")
OPSET = 20
WHOLE = "network"  # the layer of what the network does itself, between its modules
SCOPES = "pkg.torch.onnx.name_scopes"  # of a node's metadata: the paths of the modules that it stands in, itself last
FOLDED_ERROR = (
    2.0**-21
)  # of a weight in eight bits that was multiplied by a batch norm's factor, relative to the largest
MANY = 256  # values of a constant from which it pays to name its few different ones


def make(deployed: Deployed, header: Header, size: tuple[int, int] | None) -> onnx.ModelProto:
    """The graph without the exporter's notes on where each node came from; a detector's gives what is left of its boxes."""
    model = graph(deployed, header, size)
    if header.task == "detect":
        append_suppression(model)
    return model


def save(model: onnx.ModelProto, path: Path, *, scores: bool) -> None:
    """The graph as a file, without a segmentation's logits unless `scores`."""
    path.write_bytes(output_chosen(model, scores).SerializeToString())


def output_chosen(model: onnx.ModelProto, scores: bool) -> onnx.ModelProto:
    """The model with a segmentation's second output or without it."""
    if scores or len(model.graph.output) == 1:
        return model
    chosen = onnx.ModelProto()
    chosen.CopyFrom(model)
    del chosen.graph.output[1]
    return chosen


def graph(deployed: Deployed, header: Header, size: tuple[int, int] | None, *, raw: bool = False) -> onnx.ModelProto:
    """What the network gives, as a graph, its constants packed. `raw`: they are not, and nodes are called by their layers."""
    with quiet():
        program = torch.onnx.export(
            deployed, (example(header, size),), dynamo=True, dynamic_shapes=(varying(header, size),), input_names=["image"],
            output_names=list(deployed.outputs), opset_version=OPSET, verbose=False,
        )  # fmt: skip
    if program is None:
        raise ModelError("the exporter gave nothing back")
    model: onnx.ModelProto = program.model_proto
    if raw:
        name_by_layers(model.graph)
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "espy", "", ""
    for holder in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info,
                   *model.graph.initializer):  # fmt: skip
        del holder.metadata_props[:]
        holder.doc_string = ""
    del model.graph.value_info[:]
    pool_globally(model.graph)
    if not raw:
        pack(model.graph)
    return model


def pool_globally(graph: onnx.GraphProto) -> None:
    """Means over height and width as the operator of that name, which engines have in their fast layouts."""
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        kept = all(onnx.helper.get_attribute_value(one) == 1 for one in node.attribute if one.name == "keepdims")
        if node.op_type == "ReduceMean" and len(node.input) == 2 and kept:
            axes = known.get(node.input[1])
            if axes is not None and sorted(int(axis) % 4 for axis in axes) == [2, 3]:
                node.op_type = "GlobalAveragePool"
                del node.input[1], node.attribute[:]


def name_by_layers(graph: onnx.GraphProto) -> None:
    """Call each node that computes in the network by its layer's path and what it does: `encoder.level1.0/Conv_3`.

    Paths are those of the plain network: what a rewrite wraps it in, `plain`, is left out.
    """
    for k, node in enumerate(graph.node):
        scopes = ast.literal_eval(next((p.value for p in node.metadata_props if p.key == SCOPES), "[]"))
        path = next((scope for scope in reversed(scopes[:-1]) if scope.split(".")[0] == "network"), None)
        if path is not None:
            layer = ".".join(part for part in path.split(".")[1:] if part != "plain") or WHOLE
            node.name = f"{layer}/{node.op_type}_{k}"


def layer_of(name: str) -> str | None:
    """The layer of a node that is called by it; None for one outside of the network."""
    layer, slash, _ = name.partition("/")
    return layer if slash else None


def pack(graph: onnx.GraphProto) -> None:
    """Keep constants that eight bits hold in eight bits: values[codes], which engines work out when they load the graph.

    Large constants of few values, as priors are; and weights that are multiples of a step for each channel, as which they survive
    a batch norm's factor: multiples[codes] · step. (Int8 weights would make OpenVINO compute in eight bits.)
    """

    def hold(array: np.ndarray, name: str) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    multiples = np.arange(-eightbits.MOST, eightbits.MOST + 1, dtype=np.float32)
    for k, tensor in enumerate(list(graph.initializer)):
        array, name = onnx.numpy_helper.to_array(tensor), tensor.name
        nodes = []
        if pair := eightbits.packed(array, FOLDED_ERROR):
            step = hold(pair[1].reshape(-1, *[1] * (array.ndim - 1)), f"step_{k}")
            codes, values, looked_up = pair[0].astype(np.int16) + eightbits.MOST, "multiples", f"multiple_{k}"
            nodes = [onnx.helper.make_node("Mul", [looked_up, step], [name])]
        elif (
            array.dtype == np.float32
            and array.size >= MANY
            and len(few := np.unique(array)) <= 256
            and few.nbytes < array.size
        ):
            codes, values, looked_up = np.searchsorted(few, array), hold(few, f"values_{k}"), name
        else:
            continue
        graph.initializer.remove(tensor)
        hold(codes.astype(np.uint8), f"codes_{k}")
        nodes = [
            onnx.helper.make_node("Cast", [f"codes_{k}"], [f"place_{k}"], to=onnx.TensorProto.INT32),
            onnx.helper.make_node("Gather", [values, f"place_{k}"], [looked_up]),
            *nodes,
        ]
        for node in reversed(nodes):
            graph.node.insert(0, node)
    if any("multiples" in node.input for node in graph.node):
        hold(multiples, "multiples")


def append_suppression(model: onnx.ModelProto) -> None:
    """Replace the outputs scores [N, kinds, P] and boxes [N, P, 4] by detections [D, 7] (espy.run.nms), in the graph itself."""

    def constant(name: str, value: Any, kind: type) -> str:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, kind), name))
        return name

    def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        model.graph.node.append(onnx.helper.make_node(kind, inputs, outputs, **attributes))

    limits = [constant("most", [nms.MOST], np.int64), constant("overlap", [nms.OVERLAP], np.float32),
              constant("least_score", [nms.LEAST_SCORE], np.float32)]  # fmt: skip
    node("NonMaxSuppression", ["boxes", "scores", *limits], ["kept"])  # [D, 3]: picture, kind, prior
    node("GatherND", ["scores", "kept"], ["kept_scores"])
    node("Split", ["kept"], ["picture", "kind", "prior"], axis=1, num_outputs=3)
    node("Concat", ["picture", "prior"], ["place"], axis=1)
    node("GatherND", ["boxes", "place"], ["kept_boxes"])
    for name in ("picture", "kind"):
        node("Cast", [name], [f"{name}_float"], to=onnx.TensorProto.FLOAT)
    node("Unsqueeze", ["kept_scores", constant("columns", [1], np.int64)], ["score_column"])
    node("Concat", ["picture_float", "kind_float", "score_column", "kept_boxes"], ["unsorted"], axis=1)
    # picture by picture, the best first: scores are at most 1
    node("Mul", ["picture_float", constant("two", 2, np.float32)], ["after"])
    node("Sub", ["score_column", "after"], ["rank"])
    node("Shape", ["rank"], ["count"], start=0, end=1)
    node("TopK", ["rank", "count"], ["ranks", "order_column"], axis=0)
    node("Squeeze", ["order_column", "columns"], ["order"])
    node("Gather", ["unsorted", "order"], ["detections"], axis=0)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("detections", onnx.TensorProto.FLOAT, ["d", 7]))
