"""Eight bits: a model's deployed file in int8, kept only if it is as good as the float one within a limit, and faster."""

from __future__ import annotations

import importlib
import math
import tempfile
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from torch import nn

from espy.data.kinds import open_set
from espy.data.sets import Dataset
from espy.errors import DataError, EngineError, EspyError, ModelError
from espy.header import Export, Header, Quantized, attach, parts
from espy.nn.deployed import deploy
from espy.output import shown
from espy.picture.frame import Frame
from espy.published import Published
from espy.run.engines import Engine
from espy.ship import eight
from espy.ship.bench import Case, Row, check_threads, measure, turns
from espy.ship.export import FORMATS, Job, Report, begin, compare, finish
from espy.ship.rewrite import rewrite
from espy.ship.trace import quiet
from espy.spec import nearest

WAYS = {
    # format: (module that quantises, extras to install)
    "onnx": ("eight_onnx", "train"),
    "openvino": ("eight_openvino", "train,openvino,quantize"),
    "executorch": ("eight_executorch", "train,executorch,quantize"),
}
SUFFIX = ".int8"  # of the file's name, unless one is given
PICTURES = 100  # of train, from which ranges are read
LEAST = 16  # different pictures, with something on them, below which ranges mean nothing
MAX_DROP = 0.5  # points of a hundred
FLAT = 4  # levels of 255 between darkest and brightest, up to which a picture is of one colour
SEED = 0  # of the choice of pictures
ROUNDS = 20  # turns of either file

Progress = Callable[[str, int], AbstractContextManager[Callable[[str], None]]]


def quantize(
    model: str | Path | Published | nn.Module,
    to: str = "onnx",
    path: str | Path | None = None,
    *,
    calibrate: str,
    pictures: int = PICTURES,
    max_drop: float = MAX_DROP,
    allow_slower: bool = False,
    keep_float: Collection[str] = (),
    mapping: str | Path | None = None,
    size: tuple[int, int] | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress = lambda what, total: nullcontext(lambda name: None),
) -> Report:
    """Write a model's deployed file in int8 (`onnx`, `openvino`, `executorch`), and say what that costs and brings.

    `model`, `path`, `size`, `force`: as `espy.export` takes them; the file is NAME.int8.ENDING unless given. `calibrate`:
    `KIND:PATH`, whose `train` gives so many `pictures`, from which the ranges of the maps are read, and on whose `val` the float
    file and the int8 file are measured as `espy.evaluate` does, `mapping` as there. Where more than `max_drop` points are lost,
    layers go back to float, the most sensitive first; `keep_float` names layers, or what holds them, that are there from the
    start. Both files run in turns here, with `threads` (all unless given). `progress`: called with what comes, and how much.

    Raises EspyError, one line, and writes nothing, where a tool is missing, the pictures say nothing of the ranges, more than
    `max_drop` points are lost all the same, or, unless `allow_slower`, int8 takes longer than float32.
    """
    if not 0 <= max_drop <= 100:
        raise EspyError(f"max_drop is 0 to 100 points, not {max_drop:g}")
    if pictures < LEAST:
        raise EspyError(f"{pictures} calibration pictures are too few: take at least {LEAST}")
    if to not in WAYS:
        raise EspyError(f"cannot quantise to {to!r}: {nearest(to, list(WAYS))}")
    threads, quantiser = check_threads(threads), _quantiser(to)
    job = begin(model, to, path, size=size, force=force, suffix=SUFFIX)
    data = open_set(calibrate, None, job.header.task)
    train, val = data.only("train"), data.only("val")
    with progress("calibration pictures", min(pictures, len(train))) as advance:
        seen = chosen(train, job.header, pictures, advance)
    judge = eight.Judge(job.header, val, mapping, progress)
    way = quantiser(eight.Given(job.network, job.header, job.size, seen))
    eight.check_names(keep_float, way.layers)
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(job, way, judge, _stated(data), len(seen), threads, Path(folder))
        kept = tuple(dict.fromkeys(keep_float))
        made = way.make(kept)
        said = trial(made, kept)
        found = _quantized(said)
        if found.drop > max_drop and (allow_slower or found.ratio <= 1):
            made, kept = way.search(kept, trial.opened, replace(judge, least=found.float32 - max_drop / 100))
            said = trial(made, kept)
            found = _quantized(said)
        refuse(found, max_drop, allow_slower, job)
        way.save(made, trial.file)  # anew: it has a header already
        return finish(job, trial.file, said)


class Trial:
    """The float file, measured once, and what is made in int8 beside it: called with that, it measures it too."""

    def __init__(
        self, job: Job, way: eight.Quantiser, judge: eight.Judge, data: str, calibrated: int, threads: int, folder: Path
    ) -> None:
        self._job, self._way, self._judge, self._threads = job, way, judge, threads
        self._data, self._calibrated = data, calibrated
        self._plain, self.file = (folder / name / job.target.name for name in ("float32", "int8"))
        for file in (self._plain, self.file):
            file.parent.mkdir()
        header = job.header
        job.room.save(job.room.make(deploy(rewrite(job.network, header.sizes), header.preprocess).eval(), header, job.size),
                      self._plain, scores=False)  # fmt: skip
        self._plain_bytes = _bytes(self._plain)
        attach(self._plain, header)
        with closing(self._open(self._plain, "float32")) as engine:
            self._before = judge(engine, "float32")

    def _open(self, file: Path, precision: str) -> Engine:
        return self._job.runs(file, threads=self._threads, precision=precision)

    def opened(self, made: Any) -> Engine:
        """The engine of what was made."""
        self._way.save(made, self.file)
        return self._open(self.file, "int8")

    def __call__(self, made: Any, kept: tuple[str, ...]) -> Export:
        """What the header says of it."""
        with closing(self.opened(made)) as engine:
            after = self._judge(engine, "int8")
        found = compare(self._job, self.file, "int8")
        said = Export(self._job.to, _tools(self._way), **{**found, "threads": self._threads}, precision="int8")
        attach(self.file, msgspec.structs.replace(self._job.header, export=said))
        float32, int8 = (row.alone.wall_ms for row in self._race())
        drop = 100 * (self._before.figure - after.figure)
        quantized = Quantized(
            data=self._data, calibrated=self._calibrated, images=len(self._judge.val), metric=after.metric,
            float32=self._before.figure, int8=after.figure, drop=drop,
            layers=sum(not eight.among(layer, kept) for layer in self._way.layers), kept=kept,
            bytes=(self._plain_bytes, found["bytes"]), median_ms=(float32.median, int8.median),
            least_ms=(float32.minimum, int8.minimum), ratio=int8.median / float32.median,
        )  # fmt: skip
        return msgspec.structs.replace(said, ms=int8.median, quantized=quantized)

    def _race(self) -> tuple[Row, ...]:
        """Both files in turns, each in a process of its own."""
        header, engine = self._job.header, FORMATS[self._job.to][1]
        files = {"float32": self._plain, "int8": self.file}
        cases = [
            Case(name, file, engine, header.preprocess.size, self._threads, name, header=header)
            for name, file in files.items()
        ]
        with self._judge.progress("speed, in turns", turns(cases, ROUNDS)) as advance:
            measured = measure(cases, rounds=ROUNDS, advance=advance)
        for case, reason in measured.failed:
            raise EngineError(f"{case}: {reason}")
        return measured.rows


def refuse(found: Quantized, max_drop: float, allow_slower: bool, job: Job) -> None:
    """Raise ModelError, one line, for a file that loses too much or gains no time."""
    said = f"{job.target}: not written: {describe(found)}"
    if not allow_slower and not found.ratio <= 1:
        raise ModelError(
            f"{said}; int8 takes {found.ratio:.2f} times as long here: use the float file, or write this one with --allow-slower"
        )
    if not found.drop <= max_drop:
        least = math.ceil(10 * found.drop) / 10
        kept = f" ({', '.join(found.kept)} are)" if found.kept else ""
        raise ModelError(
            f"{said}; {found.drop:.2f} points are lost, at most {max_drop:g} may be: allow more with --max-drop {least:g}, or keep "
            f"more layers in float{kept} with --keep-float NAME"
        )


def describe(found: Quantized) -> str:
    """Metric and times of both files, in words."""
    return (
        f"{found.metric} on val {100 * found.float32:.2f} in float32, {100 * found.int8:.2f} in int8; {found.median_ms[0]:.2f} ms "
        f"in float32, {found.median_ms[1]:.2f} in int8"
    )


def chosen(
    train: Dataset, header: Header, number: int, advance: Callable[[str], None] = lambda name: None
) -> list[np.ndarray]:
    """So many pictures of train, uint8 [1, h, w, 3], as the network sees them; always the same.

    Raises DataError where fewer than LEAST of them are different and show something: ranges would be of what never comes.
    """
    found: dict[bytes, np.ndarray] = {}
    places = np.random.default_rng(SEED).permutation(len(train))[:number]
    for place in places:
        image, _ = train.read(int(place))
        frame = Frame.of(header.preprocess, (image.height, image.width), None)
        picture = frame.to_network(image)[None]
        if np.ptp(picture, axis=(0, 1, 2)).max() > FLAT:
            found[picture.tobytes()] = picture
        advance(train.items[place].picture.name)
    if len(found) < LEAST:
        raise DataError(
            f"{train.root}: of {len(places)} calibration pictures {len(found)} differ and show something (others are of one "
            "colour, or the same again), too few to know what the network's maps hold: take at least "
            f"{LEAST}, best {PICTURES}, such as it will see"
        )
    return list(found.values())


def _quantiser(to: str) -> type[eight.Quantiser]:
    """The class that quantises a format. Raises EngineError with the install line where a tool is missing."""
    module, extras = WAYS[to]
    try:
        with quiet():
            found: type[eight.Quantiser] = importlib.import_module(f"espy.ship.{module}").Quantiser
        return found
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("espy"):
            raise
        raise EngineError(f"quantising to {to} needs {error.name}: pip install 'espy-vision[{extras}]'") from None


def _tools(way: eight.Quantiser) -> dict[str, str]:
    return {name: version(name) for name in way.tools}


def _quantized(said: Export) -> Quantized:
    assert said.quantized is not None
    return said.quantized


def _stated(data: Dataset) -> str:
    """A set by its kind and its folder's name; where that lies is nobody's business."""
    return shown(Path(f"{data.kind}:{data.root.resolve().name}"))


def _bytes(file: Path) -> int:
    """Those of all files of a model, without a header that stands beside."""
    return sum(part.stat().st_size for part in parts(file) if part.is_file())
