"""Programs of the CPU engine: made here unit by unit with random weights, and run by its C functions."""

import struct
import subprocess
import tempfile
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from types import SimpleNamespace

import numpy as np

from espy.errors import EngineError
from espy.header import read_safetensors
from espy.run.lowering import lower
from lowered import FORMAT, KINDS, PRECISIONS, shapes_of


@dataclass(frozen=True)
class Program:
    """`units` int64, `weights` float32, and what it ends in: its mask's classes, or (channels, halvings) of each map of scores."""

    units: np.ndarray
    weights: np.ndarray
    classes: int
    maps: tuple = ()

    def shape(self, size):
        """Of the scores for a picture of a size."""
        if self.maps:
            return (sum(c * prod(-(-side // 2**times) for side in size) for c, times in self.maps),)
        return (self.classes, *size)

    @property
    def within(self):
        """How near what the engine finds is to what the header says, as a part of the largest value."""
        return (1e-4, 2**-7)[self.units[1]]  # what lies between two bfloat16, which are so far apart, may become either

    def computed_in(self, precision):
        units = self.units.copy()
        units[1] = PRECISIONS.index(precision)
        return replace(self, units=units)


class Opened:
    """An engine of a program, until the block ends; EngineError with the library's line where it is refused."""

    def __init__(self, functions, program, threads=1):
        self._functions, self._program = functions, program
        units, weights = program.units, program.weights
        self._engine = functions.espy_create(units.ctypes.data, len(units), weights.ctypes.data, len(weights), threads)
        if not self._engine:
            raise EngineError(functions.espy_last_error().decode())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._functions.espy_destroy(self._engine)

    def run(self, picture):
        """(mask [h, w] or None, scores) of a picture [h, w, 3]."""
        size, program = picture.shape[:2], self._program
        mask = None if program.maps else np.full(size, 255, np.uint8)
        scores = np.full(program.shape(size), np.nan, np.float32)
        self._run(picture, mask, scores, None)
        return mask, scores

    def seconds(self, picture):
        """How long each unit takes, where a program with a mask gives that alone: float64 [units]."""
        size, program = picture.shape[:2], self._program
        mask = None if program.maps else np.empty(size, np.uint8)
        scores = np.empty(program.shape(size), np.float32) if program.maps else None
        found = np.empty(int(program.units[2]))
        self._run(picture, mask, scores, found)
        return found

    def _run(self, picture, mask, scores, seconds):
        room = 0 if scores is None else scores.size
        mask, scores, seconds = (None if one is None else one.ctypes.data for one in (mask, scores, seconds))
        if self._functions.espy_run(self._engine, picture.ctypes.data, *picture.shape[:2], mask, scores, room, seconds):
            raise EngineError(self._functions.espy_last_error().decode())


def run(functions, program, picture, threads=1):
    with Opened(functions, program, threads) as engine:
        return engine.run(picture)


def of_file(path):
    """The program of a segmentation network's model file."""
    header, arrays = read_safetensors(path)
    program = lower(header.spec, arrays, header.preprocess)
    return Program(program.units, program.weights, header.spec.classes)


def made(kind, ints, channels):
    """The channels of the maps that a unit makes, of those of the maps that it reads."""
    if kind == "FIRST":
        out, pooled, co, _ = ints
        return {out: co} if pooled == -1 else {out: co, pooled: 3}
    if kind in ("CONV", "AFFINE", "ESP"):
        inputs, (out, *rest) = ints[1 : 1 + ints[0]], ints[1 + ints[0] :]
        if kind == "ESP":
            return {out: rest[1] + (rest[2] - 1) * rest[0]}
        return {out: rest[0] if kind == "CONV" else sum(channels[x] for x in inputs)}
    return {
        "POOL": lambda: {ints[1]: channels[ints[0]]},
        "EESP": lambda: {ints[1]: ints[2] * ints[3]},
        "DOWN": lambda: {ints[2]: channels[ints[0]] + ints[3] * ints[4]},
        "RESIZE": lambda: {ints[2]: channels[ints[0]]},
        "UP2": lambda: {ints[2]: ints[3]},
        "MERGE": lambda: {ints[2]: ints[5]},
        "PYRAMID": lambda: {ints[1]: ints[2]},
        "MEAN": lambda: {ints[1]: channels[ints[0]]},
        "SEGMENT": dict,
        "SEGMENT2": dict,
        "SCORES": dict,
    }[kind]()


ONE_PIXEL = 99  # halvings


def halved(kind, ints, halvings):
    """How often what a unit makes is halved of the picture, of those of the maps that it reads."""
    if kind in ("FIRST", "MEAN"):
        return 1 if kind == "FIRST" else ONE_PIXEL
    if kind in ("CONV", "AFFINE", "ESP"):
        n = ints[0]
        stride = {"CONV": lambda: ints[n + 5], "ESP": lambda: ints[n + 8], "AFFINE": lambda: 1}[kind]()
        return halvings[ints[1]] + stride - 1
    like = ints[1] if kind in ("RESIZE", "UP2") else ints[0]
    return halvings[like] + (kind in ("POOL", "DOWN"))


def ends(kind, ints, channels, halvings):
    """(classes, maps) of a program that ends in this unit."""
    if kind == "SCORES":
        return 0, tuple((channels[x], halvings[x]) for x in ints[1 : 1 + ints[0]])
    return channels[ints[0]] if kind == "SEGMENT" else ints[1], ()


def shapes(kind, ints, channels):
    """Of a unit's floats, by the interpreter of the engine's header."""
    return shapes_of(kind, ints, {number: SimpleNamespace(shape=(c,)) for number, c in channels.items()})


class Sketch:
    """A program that grows. `channels` of its maps by number; weights are drawn so that maps stay near one in size."""

    def __init__(self, seed):
        self.channels, self._halvings, self._units, self._floats = {}, {}, [], []
        self._random = np.random.default_rng(seed)

    def add(self, kind, *ints, floats=None):
        """A unit; floats that are not given are drawn."""
        floats = [self._drawn(s) for s in shapes(kind, ints, self.channels)] if floats is None else floats
        self._floats += [np.ravel(part) for part in floats]
        self._units.append([KINDS.index(kind) + 1, len(ints), *ints])
        new = made(kind, ints, self.channels)
        self.channels |= new
        self._halvings |= {number: halved(kind, ints, self._halvings) for number in new}
        return self

    def _drawn(self, shape):
        if len(shape) == 1:
            return self._random.uniform(-1, 1.5, shape)
        return self._random.normal(0, 1 / np.sqrt(prod(shape[1:])), shape)

    def first(self, co, *, sums=0):
        """Maps 0, and 1, the pooled picture, both at 1/2."""
        rest = [self._drawn((co, 3, 3, 3)), self._drawn((co,)), self._drawn((co,))]
        return self.add("FIRST", 0, 1, co, sums, floats=[[1 / 60] * 3, [-2.0] * 3, *rest])

    def shown(self, *numbers):
        """The program whose scores are these maps."""
        return self.add("SCORES", len(numbers), *numbers).program()

    def program(self):
        kind, _, *ints = self._units[-1]
        units = np.array([FORMAT, 0, len(self._units), *chain.from_iterable(self._units)], np.int64)
        weights = np.concatenate(self._floats).astype(np.float32)
        return Program(units, weights, *ends(KINDS[kind - 1], ints, self.channels, self._halvings))


def everything(seed, *, ended="SEGMENT"):
    """A program with a unit of each kind but those that end others."""
    s = Sketch(seed).first(4, sums=1).add("POOL", 1, 2).add("EESP", 0, 0, 2, 2, 3, 1, 2, 1, 1, 1)
    s.add("DOWN", 0, 2, 3, 2, 2, 3, 1, 3, 1, 0).add("CONV", 2, 3, 2, 4, 6, 3, 2, 1, 1).add(
        "CONV", 1, 4, 5, 4, 3, 1, 2, 2
    )
    s.add("ESP", 1, 4, 4, 1, 2, 5, 3, 3, 1, 1, 1, 0).add("RESIZE", 5, 4, 6).add("AFFINE", 2, 4, 6, 7)
    s.add("MERGE", 0, 7, 8, 10, 2, 3).add("PYRAMID", 8, 9, 4, 5, 2, 1, 3, 2, 1, 1, 1, 2, 1, 10)
    s.add("UP2", 4, 9, 10, 3).add("AFFINE", 2, 9, 10, 11)
    last = {"SEGMENT": (11, 1), "SEGMENT2": (11, 5), "SCORES": (4, 11, 12, 0, 5)}
    return s.add("MEAN", 11, 12).add(ended, *last[ended]).program()


def sized(size):
    """Whether a picture can be of this size."""
    return all(1 <= side <= 65536 for side in size)


class Runner:
    """Another process that runs programs: tests/native/runner.cpp or runner.py.

    Raises EngineError where the engine refuses one, AssertionError with all that the process said where it ends.
    """

    def __init__(self, *command, **kwargs):
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, **kwargs
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)
        self._said.close()

    def run(self, program, picture, threads=1):
        return self.answer(program, picture.shape[:2], picture, threads)

    def answer(self, program, size, picture, threads):
        """As `run`, for a picture of any size that it is said to have."""
        shape, masked = program.shape(size), not program.maps
        head = (
            len(program.units),
            len(program.weights),
            *size,
            threads,
            masked,
            max(0, prod(shape)) if sized(size) else 0,
        )
        try:
            self._process.stdin.write(struct.pack("7q", *head))
            for array in (program.units, program.weights, picture):
                self._process.stdin.write(array.tobytes())
            self._process.stdin.flush()
            (length,) = struct.unpack("q", self._read(8))
        except BrokenPipeError:
            self._ended()
        if length:
            raise EngineError(self._read(length).decode())
        mask = np.frombuffer(self._read(prod(size)), np.uint8).reshape(size) if masked else None
        return mask, np.frombuffer(self._read(4 * prod(shape)), np.float32).reshape(shape)

    def _read(self, count):
        found = self._process.stdout.read(count)
        return found if len(found) == count else self._ended()

    def _ended(self):
        code = self._process.wait(60)
        self._said.seek(0)
        raise AssertionError(f"the process ended with {code}:\n{self._said.read().decode(errors='replace')}")
