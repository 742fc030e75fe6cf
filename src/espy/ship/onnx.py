"""The deployed graph as an ONNX file: uint8 picture in, uint8 mask out, header behind the graph."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from torch import nn
from torch.export import Dim

from espy import bundle, eightbits
from espy.errors import EspyError, ModelError
from espy.header import LARGEST_SIDE, SMALLEST_SIDE, Card, Header, Preprocess, attach_onnx, read_safetensors, size_fits
from espy.labels import plain
from espy.nn.build import with_weights
from espy.nn.deployed import Deployed, deploy
from espy.output import refuse_existing, write_bytes
from espy.picture.frame import Frame
from espy.picture.read import read
from espy.published import Published, load_published
from espy.run import nms
from espy.run.engines.onnxruntime import OnnxRuntime
from espy.run.engines.torch import Torch
from espy.run.predictor import resolve
from espy.ship.rewrite import rewrite

OPSET = 20
EQUAL = 0.999  # least share of equal mask pixels, classes or boxes, on every photo
SCORE_ERROR = 1e-4  # largest difference of logits, relative to the largest logit, or of probabilities
FOLDED_ERROR = (
    2.0**-21
)  # of a weight in eight bits that was multiplied by a batch norm's factor, relative to the largest
MANY = 256  # values of a constant from which it pays to name its few different ones
BOX_ERROR_PX = 0.1  # largest difference of a corner of boxes that count as equal


@dataclass(frozen=True)
class Report:
    """A deployed file and how it compares with the network: the worst over `pictures` (photo, size) pairs.

    `equal`: share of `what` (mask pixels, likeliest classes, detected boxes) that are the same. `score_error`: largest difference
    of a logit, relative to the largest one, or of a probability.
    """

    path: Path
    bytes: int
    pictures: int
    what: str
    equal: float
    score_error: float


def export(
    model: str | Path | Published | nn.Module,
    to: str = "onnx",
    path: str | Path | None = None,
    *,
    size: tuple[int, int] | None = None,
    scores: bool = False,
    force: bool = False,
) -> Report:
    """Write the deployed graph of a model and compare it with the network on real photos.

    `model`: a `.safetensors` file or run folder, a bundled name, a published checkpoint (path or read), or a network built
    by `espy.build`. `path`: the file to write, beside the model unless given. `size`: one fixed (height, width) instead of
    dynamic ones. `scores`: a segmentation's logits as a second output. Raises ModelError, and writes nothing, where a mask differs
    in more than 0.1 % of its pixels, or a logit by more than 1e-4 of the largest; so too for classes and boxes.
    """
    if to != "onnx":
        raise EspyError(f"cannot export to {to!r}: known: onnx")
    if path is not None and Path(path).suffix != ".onnx":
        raise EspyError(f"{path}: the file is called NAME.onnx")
    header, network, origin = _source(model)
    if path is None and origin is None:
        raise EspyError("say where to: export(network, path='model.onnx')")
    target = Path(path) if path is not None else Path(origin or "").with_suffix(".onnx")
    refuse_existing(target, force)
    header = _sized(header, size)
    if scores and header.task != "segment":
        raise EspyError(
            f"scores are a segmentation's second output, this model's task is {header.task}: leave them out"
        )
    deployed = deploy(network, header.preprocess).eval()
    graph = _graph(deploy(rewrite(network, header.sizes), header.preprocess).eval(), header, size)
    if header.task == "detect":
        append_suppression(graph)
    with tempfile.TemporaryDirectory() as folder:
        both = Path(folder) / "both.onnx"
        both.write_bytes(attach_onnx(graph.SerializeToString(), header))
        report = _compare(both, deployed, header, target)
        if header.task == "segment" and not scores:
            del graph.graph.output[1]
            both.write_bytes(attach_onnx(graph.SerializeToString(), header))
            _compare(both, deployed, header, target)  # what is kept is what was compared
        content = both.read_bytes()
    write_bytes(target, content, force=force)
    return replace(report, bytes=len(content))


def _source(model: str | Path | Published | nn.Module) -> tuple[Header, nn.Module, Path | None]:
    """Header, network, and the file it came from."""
    if isinstance(model, Published):
        return model.header, model.network, None
    if isinstance(model, nn.Module):
        spec: Any = getattr(model, "spec", None)
        if spec is None:
            raise EspyError("only networks made by espy.build know their spec")
        preprocess = {
            "segment": Preprocess((512, 1024), multiple=1 if spec.receptive_field_px else 32),
            "classify": Preprocess((224, 224), resize="short"),
            "detect": Preprocess((320, 320)),
        }[spec.task]
        model = copy.deepcopy(model)  # the caller's stays in training mode
        return Header.of(spec, plain(spec.classes), preprocess, Card()), model.eval(), None
    path = Path(model)
    if path.suffix in (".pth", ".pt") and path.is_file():
        published = load_published(path)
        return published.header, published.network, path
    path, _ = resolve(model, "torch")
    header, arrays = read_safetensors(path)
    try:
        network = with_weights(header.spec, arrays)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    return header, network, None if str(model) in bundle.NAMES else path


def _sized(header: Header, size: tuple[int, int] | None) -> Header:
    """The header of the deployed file: a fixed size becomes the one that pictures are brought to."""
    if size is None:
        return header
    multiple = header.preprocess.multiple
    if any(side < SMALLEST_SIDE or side > LARGEST_SIDE or side % multiple for side in size):
        raise EspyError(
            f"height {size[0]}, width {size[1]} does not fit: sides are multiples of {multiple} "
            f"from {max(multiple, SMALLEST_SIDE)} to {LARGEST_SIDE}"
        )
    resize = "short" if header.preprocess.resize == "short" else "stretch"  # none has a size of its own
    preprocess = msgspec.structs.replace(header.preprocess, size=size, resize=resize)
    return msgspec.structs.replace(header, preprocess=preprocess, sizes=[size])


def _graph(deployed: Deployed, header: Header, size: tuple[int, int] | None) -> onnx.ModelProto:
    """The exported model without the exporter's notes on where each node came from."""
    multiple = header.preprocess.multiple
    height, width = size or (4 * multiple, 5 * multiple) if multiple > 1 else size or (64, 96)
    if header.task == "detect":
        height, width = header.preprocess.size  # the priors are of this size
        shapes = {0: Dim("n")}
    elif size is None:
        sides = [multiple * Dim(n, min=1) if multiple > 1 else Dim(n, min=17) for n in ("h", "w")]
        shapes = {0: Dim("n"), 1: sides[0], 2: sides[1]}
    else:
        shapes = {0: Dim("n")}
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployed, (example,), dynamo=True, dynamic_shapes=(shapes,), input_names=["image"],
            output_names=list(deployed.outputs), opset_version=OPSET, verbose=False,
        )  # fmt: skip
    if program is None:
        raise ModelError("the exporter gave nothing back")
    model: onnx.ModelProto = program.model_proto
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "espy", "", ""
    for holder in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info,
                   *model.graph.initializer):  # fmt: skip
        del holder.metadata_props[:]
        holder.doc_string = ""
    del model.graph.value_info[:]
    pack(model.graph)
    return model


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


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter's progress notes and remarks on packages that are not needed, kept off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


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


def _compare(path: Path, deployed: Deployed, header: Header, name: Path) -> Report:
    """Run the file and the network on the bundled photos, at the model's size and another where it takes others."""
    engine = OnnxRuntime(path, threads=None, precision="float32")
    network = Torch.around(deployed)
    size = header.preprocess.size
    sizes = {
        size,
        *(s for s in [(size[0] // 2 // 32 * 32 or 32, size[1] // 4 // 32 * 32 or 32)] if size_fits(header.sizes, s)),
    }
    what, difference = DIFFERENCE[header.task]
    equal, error, pictures = 1.0, 0.0, 0
    for photo in sorted((bundle.FOLDER / "photos").glob("*.jpg")):
        picture = read(photo)
        for network_size in sorted(sizes):
            image = Frame.of(header.preprocess, picture.size, network_size).to_network(picture.image)[None]
            alike, off = difference(engine.run(image, scores=True), network.run(image, scores=True))
            equal, error, pictures = min(equal, alike), max(error, off), pictures + 1
    if pictures == 0:
        raise ModelError(f"{name}: no photos to compare on: the installation is incomplete")
    if not (equal >= EQUAL and error <= SCORE_ERROR):
        raise ModelError(
            f"{name}: not written: the graph differs from the network (equal {what} {equal:.4%}, least "
            f"{EQUAL:.1%}; largest difference of a score {error:.1e}, most {SCORE_ERROR:.0e})"
        )
    return Report(name, path.stat().st_size, pictures, what, equal, error)


Arrays = dict[str, np.ndarray]


def _masks(found: Arrays, wanted: Arrays) -> tuple[float, float]:
    """Share of equal pixels, and the largest difference of a logit where there are any."""
    error = 0.0
    if "scores" in found:
        error = float(np.abs(found["scores"] - wanted["scores"]).max() / np.abs(wanted["scores"]).max())
    return float((found["mask"] == wanted["mask"]).mean()), error


def _classes(found: Arrays, wanted: Arrays) -> tuple[float, float]:
    one, two = found["scores"], wanted["scores"]
    return float((one.argmax(1) == two.argmax(1)).mean()), float(np.abs(one - two).max())


def _boxes(found: Arrays, wanted: Arrays) -> tuple[float, float]:
    """Boxes are equal where one of the same picture and kind lies at the same place, scored the same."""
    one, two = found["detections"], wanted["detections"]
    if not len(one) and not len(two):
        return 1.0, 0.0
    places = np.abs(one[:, None, 3:] - two[None, :, 3:]).max(2) <= BOX_ERROR_PX
    pairs = places & (one[:, None, :2] == two[None, :, :2]).all(2)
    off = np.where(pairs, np.abs(one[:, None, 2] - two[None, :, 2]), np.inf)
    matched = (off <= SCORE_ERROR).any(1).sum() + (off <= SCORE_ERROR).any(0).sum()
    nearest = off.min(1)[pairs.any(1)] if len(two) else np.zeros(0)
    return float(matched / (len(one) + len(two))), float(nearest.max(initial=0.0))


DIFFERENCE = {"segment": ("mask pixels", _masks), "classify": ("classes", _classes), "detect": ("boxes", _boxes)}
