"""From a model to a deployed file of any format: made, run on real photos, and kept only if it gives what the network gives."""

from __future__ import annotations

import copy
import importlib
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec
import numpy as np
from torch import nn

from espy import bundle
from espy.errors import EngineError, EspyError, ModelError
from espy.header import (
    LARGEST_SIDE,
    SMALLEST_SIDE,
    Card,
    Export,
    Header,
    Preprocess,
    attach,
    parts,
    read_header,
    read_safetensors,
    size_fits,
)
from espy.labels import plain
from espy.machine import available_threads, processor
from espy.nn.build import with_weights
from espy.nn.deployed import deploy
from espy.output import refuse_existing, write_bytes
from espy.picture.frame import Frame
from espy.picture.read import read
from espy.published import Published, load_published
from espy.run.engines import Engine, load_engine
from espy.run.engines.torch import Torch
from espy.run.predictor import resolve
from espy.ship.rewrite import rewrite
from espy.ship.trace import quiet
from espy.spec import nearest

FORMATS = {
    # name, and module of this room: (ending, engine that it is run with, extras to install, one size alone, logits may be left out)
    "onnx": (".onnx", "onnxruntime", "train", False, True),
    "openvino": (".xml", "openvino", "train,openvino", False, True),
    "pt2": (".pt2", "pt2", "train", False, False),
    "executorch": (".pte", "executorch", "train,executorch", True, False),
    "ncnn": (".ncnn.param", "ncnn", "train,ncnn", True, False),
    "litert": (".tflite", "litert", "train,litert-export", True, False),
}
EQUAL = 0.999  # least share of equal mask pixels, classes or boxes, on every photo
SCORE_ERROR = 1e-4  # largest difference of logits, relative to the largest logit, or of probabilities
BOX_ERROR_PX = 0.1  # largest difference of a corner of boxes that count as equal
TIMED = 5  # runs of which `ms` is the median


class Report(Export, frozen=True, kw_only=True):
    """A deployed file and how it compares with the network; `bytes` are those of all its files."""

    path: Path


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
    by `espy.build`. `to`: `onnx`, `openvino`, `pt2`, `executorch`, `ncnn` or `litert`. `path`: the file to write, beside the model
    unless given. `size`: one fixed (height, width) instead of dynamic ones; formats of one size take the model's unless given.
    `scores`: a segmentation's logits as a second output. Raises EngineError where the format's tools are not installed, ModelError,
    and writes nothing, where a mask differs in more than 0.1 % of its pixels, or a logit by more than 1e-4 of the largest; so too
    for classes and boxes.
    """
    job = begin(model, to, path, size=size, force=force)
    header, room = job.header, job.room
    if scores and header.task != "segment":
        raise EspyError(
            f"scores are a segmentation's second output, this model's task is {header.task}: leave them out"
        )
    made = room.make(deploy(rewrite(job.network, header.sizes), header.preprocess).eval(), header, job.size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / job.target.name
        room.save(made, file, scores=True)
        found = kept(compare(job, file), job.target)
        if header.task == "segment" and FORMATS[to][4] and not scores:
            room.save(made, file, scores=False)
            found |= {"equal": kept(compare(job, file), job.target)["equal"]}  # what is kept is what was compared
        return finish(job, file, Export(to, versions(room), **found))


class Job(NamedTuple):
    """A file that is to be made: `network` is the plain one, `header` what the file will say, of `size` or of all sizes."""

    to: str
    room: ModuleType
    runs: type[Engine]
    header: Header
    network: nn.Module
    size: tuple[int, int] | None
    target: Path
    force: bool


def begin(
    model: str | Path | Published | nn.Module,
    to: str,
    path: str | Path | None,
    *,
    size: tuple[int, int] | None,
    force: bool,
    suffix: str = "",
) -> Job:
    """What `export` and `quantize` need of their arguments. `suffix`: of the file's name where it lies beside the model.

    Raises EspyError, before anything is built, where a tool is missing, the model is none, or the file cannot be written.
    """
    ending = ending_of(to)
    if path is not None and not Path(path).name.endswith(ending):
        raise EspyError(f"{path}: the file is called NAME{ending}")
    with quiet():
        room, runs = _room(to), load_engine(FORMATS[to][1])
    header, network, origin = source(model)
    if path is None and origin is None:
        raise EspyError(f"say where to: path='model{suffix}{ending}'")
    beside = origin.with_name(f"{origin.stem}{suffix}{ending}") if origin else Path()
    target = Path(path) if path is not None else beside
    for part in parts(target):
        refuse_existing(part, force)
    if size is None and FORMATS[to][3]:
        size = header.preprocess.size
    return Job(to, room, runs, _sized(header, size), network, size, target, force)


def versions(room: ModuleType) -> dict[str, str]:
    """Package → version of what makes a format."""
    return {name: version(name) for name in room.TOOLS}


def finish(job: Job, file: Path, said: Export) -> Report:
    """Give a file its header, read that back, and write it where it was to be."""
    attach(file, msgspec.structs.replace(job.header, export=said))
    read_header(file)  # raises where it is not read back
    contents = [(part, file.with_name(part.name).read_bytes()) for part in parts(job.target)]
    for part, content in contents:
        write_bytes(part, content, force=job.force)
    total = sum(len(content) for _, content in contents)
    return Report(
        **{field: getattr(said, field) for field in said.__struct_fields__} | {"bytes": total}, path=job.target
    )


def ending_of(to: str) -> str:
    """How files of a format are called. Raises EspyError for none that is known."""
    if to not in FORMATS:
        raise EspyError(f"cannot export to {to!r}: {nearest(to, list(FORMATS))}")
    return FORMATS[to][0]


def _room(to: str) -> ModuleType:
    """The module that makes a format. Raises EngineError with the install line where a tool is missing."""
    try:
        return importlib.import_module(f"espy.ship.{to}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("espy"):
            raise
        raise EngineError(
            f"exporting to {to} needs {error.name}: pip install 'espy-vision[{FORMATS[to][2]}]'"
        ) from None


def source(model: str | Path | Published | nn.Module) -> tuple[Header, nn.Module, Path | None]:
    """Header, network, and the file it came from; of a bundled model and a network none."""
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
    path = resolve(model, "torch")["torch"]
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


def compare(job: Job, path: Path, precision: str = "float32") -> dict[str, Any]:
    """Run a file and the network on the bundled photos, at the model's size and another where it takes others."""
    threads, header = available_threads(), job.header
    engine = job.runs(path, threads=threads, precision=precision)
    network = Torch.around(deploy(job.network, header.preprocess).eval())
    size = header.preprocess.size
    sizes = {
        size,
        *(s for s in [(size[0] // 2 // 32 * 32 or 32, size[1] // 4 // 32 * 32 or 32)] if size_fits(header.sizes, s)),
    }
    what, difference = DIFFERENCE[header.task]
    equal, error, pictures, ms = 1.0, 0.0, 0, 0.0
    for photo in sorted((bundle.FOLDER / "photos").glob("*.jpg")):
        picture = read(photo)
        for network_size in sorted(sizes):
            image = Frame.of(header.preprocess, picture.size, network_size).to_network(picture.image)[None]
            alike, off = difference(engine.run(image, scores=True), network.run(image, scores=True))
            equal, error, pictures = min(equal, alike), max(error, off), pictures + 1
            if network_size == size and not ms:
                ms = _median_ms(engine, image)
    bytes_ = sum(part.stat().st_size for part in parts(path) if part.is_file())
    engine.close()
    if pictures == 0:
        raise ModelError(f"{job.target}: no photos to compare on: the installation is incomplete")
    return {
        "pictures": pictures, "what": what, "equal": equal, "score_error": error, "bytes": bytes_, "ms": ms, "size": size,
        "engine": engine.name, "threads": threads, "processor": processor(),
    }  # fmt: skip


def kept(found: dict[str, Any], name: Path) -> dict[str, Any]:
    """What was compared. Raises ModelError where it differs in more than rounding."""
    what, equal, error = found["what"], found["equal"], found["score_error"]
    if not (equal >= EQUAL and error <= SCORE_ERROR):
        raise ModelError(
            f"{name}: not written: the graph differs from the network (equal {what} {equal:.4%}, least "
            f"{EQUAL:.1%}; largest difference of a score {error:.1e}, most {SCORE_ERROR:.0e})"
        )
    return found


def _median_ms(engine: Engine, image: np.ndarray) -> float:
    """Milliseconds of a run; it has run before."""
    took = []
    for _ in range(TIMED):
        start = time.perf_counter()
        engine.run(image)
        took.append(1e3 * (time.perf_counter() - start))
    return round(float(np.median(took)), 3)


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
