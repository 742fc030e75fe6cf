"""Damaged programs and model files: refused in one line or run, and nothing is read or written that is not theirs."""

import json
import os
import random
import signal
import subprocess
import sys
from functools import cache
from itertools import chain
from math import prod
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from espy.errors import EngineError, EspyError
from espy.run.engines import load_engine
from lowered import HEAD, run_program, units_of
from programs import Opened, Program, Runner, Sketch, ends, everything, halved, made, shapes, sized
from samples import noise

posix = pytest.mark.skipif(os.name != "posix", reason="pages and alarms of POSIX")

SECONDS = 5  # that a program may take
EXTREMES = (
    -(2**63),
    -(2**31),
    -1,
    0,
    255,
    256,
    4096,
    65535,
    65536,
    65537,
    2**31 - 1,
    2**31,
    2**32 + 1,
    2**40,
    2**63 - 1,
)
VALUES = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, 0)


@cache
def whole():
    """Programs that are not damaged: two with every kind of unit, and small ones."""

    def sketch():
        return Sketch(2).first(4, sums=1)

    return (
        everything(0), everything(1, ended="SEGMENT2"), everything(2, ended="SCORES"),
        sketch().shown(1), sketch().add("SEGMENT", 0, 1).program(),
        sketch().add("POOL", 0, 2).shown(2), sketch().add("CONV", 2, 0, 0, 2, 6, 3, 2, 1, 2).shown(2),
        sketch().add("EESP", 0, 0, 2, 2, 3, 1, 2, 1, 1, 0).shown(0), sketch().add("EESP", 0, 0, 2, 2, 3, 1, 2, 0, 0, 0).shown(0),
        sketch().add("AFFINE", 1, 0, 2).shown(2),
        sketch().add("POOL", 1, 2).add("DOWN", 0, 2, 3, 2, 2, 3, 1, 3, 1, 0).shown(3),
        sketch().add("ESP", 1, 0, 2, 2, 1, 3, 3, 3, 0, 2, 3, 1).shown(2),
        sketch().add("POOL", 0, 2).add("RESIZE", 2, 0, 3).shown(3),
        sketch().add("POOL", 0, 2).add("MERGE", 0, 2, 3, 4, 2, 3).shown(3),
        sketch().add("PYRAMID", 0, 2, 3, 3, 3, 2, 1, 1, 1, 3).shown(2),
    )  # fmt: skip


def mutated(seed):
    """(program, size, threads), damaged in one to three places."""
    chance = random.Random(seed)
    program = chance.choice(whole())
    units = program.units.tolist()
    for _ in range(chance.choice([1] * 6 + [2, 3])):
        chance.choice([one] * 30 + [swapped, dropped, inserted, cut, extended, reordered, repeated])(units, chance)
    program = Program(np.array(units, np.int64), *weighed(units, program, chance))
    size, threads = chance.choice([(chance.randint(1, 40), chance.randint(1, 40)), (chance.randint(1, 200), 2)]), 1
    if chance.random() < 0.2:
        threads = chance.choice([2, 3])
    if chance.random() < 0.02:
        size = (chance.choice([0, -1, 65537, 2**40, -(2**63)]), size[1])
    if chance.random() < 0.02:
        threads = chance.choice([0, -1, 1025, 2**31 - 1])
    return program, size[:: chance.choice([1, -1])], threads


def one(units, chance):
    at = chance.randrange(len(units))
    if chance.random() < 0.8:  # of what a unit says of itself, behind FIRST
        inside = [k for k, inside in enumerate(insides(units)) if inside]
        at = chance.choice(inside or [at])
    near = units[at] + chance.choice([-2, -1, 1, 2])
    small = chance.randint(0, 7)
    units[at] = chance.choice(
        [near, near, small, small, chance.randint(0, 40), chance.choice(units), chance.choice(EXTREMES)]
    )
    units[at] = min(max(units[at], -(2**63)), 2**63 - 1)


def swapped(units, chance):
    i, j = chance.randrange(len(units)), chance.randrange(len(units))
    units[i], units[j] = units[j], units[i]


def dropped(units, chance):
    if len(units) > 1:
        del units[chance.randrange(len(units))]


def inserted(units, chance):
    units.insert(chance.randrange(len(units)), chance.choice(units))


def cut(units, chance):
    del units[chance.randrange(1, len(units) + 1) :]


def extended(units, chance):
    units += [chance.choice(units) for _ in range(chance.randint(1, 20))]


def split(units):
    """A program's units as lists, where its integers still are such."""
    parts, at = [], HEAD
    while at + 1 < len(units) and units[at + 1] >= 0:
        parts.append(units[at : at + 2 + units[at + 1]])
        at += len(parts[-1])
    return parts


def insides(units):
    """Of each integer whether it is within a unit behind FIRST."""
    parts = split(units)
    return [False] * HEAD + [number > 0 and k > 1 for number, part in enumerate(parts) for k in range(len(part))]


def reordered(units, chance):
    if parts := split(units):
        parts.insert(chance.randrange(len(parts)), parts.pop(chance.randrange(len(parts))))
        units[HEAD:] = chain.from_iterable(parts)


def repeated(units, chance):
    if parts := split(units):
        parts.insert(chance.randrange(len(parts)), chance.choice(parts))
        units[HEAD - 1 :] = [len(parts), *chain.from_iterable(parts)]


def named(units):
    """How many floats the integers name, and what they end in; (None, (0, ())) where they make no sense."""
    nothing = None, (0, ())
    if any(abs(value) > 1 << 17 for value in units) or len(units) < HEAD or not 0 < units[2] < 100:
        return nothing
    channels, halvings, floats = {}, {}, 0
    try:
        for kind, ints in units_of(units):
            floats += sum(prod(shape) for shape in shapes(kind, ints, channels))
            new = made(kind, ints, channels)
            halvings |= {number: halved(kind, ints, halvings) for number in new}
            channels |= new
        classes, maps = ends(kind, ints, channels, halvings)
    except (ArithmeticError, AssertionError, IndexError, KeyError, TypeError, ValueError):
        return nothing
    fit = 0 <= classes <= 256 and all(0 < c < 10_000 and times >= 0 for c, times in maps)
    return floats, (classes, maps) if fit else (0, ())


def weighed(units, program, chance):
    """Weights, mostly as many as the integers name, classes and maps."""
    floats, last = named(units)
    weights = program.weights
    if floats is not None and 0 <= floats < 100_000 and chance.random() < 0.95:
        weights = np.resize(weights, floats)
    elif chance.random() < 0.5:
        weights = np.resize(weights, max(0, len(weights) + chance.randint(-100, 100)))
    weights = weights.copy()
    if chance.random() < 0.2 and len(weights):
        weights[chance.randrange(len(weights))] = chance.choice(VALUES)
    return weights, *last


def refused(error, seed):
    """In one line."""
    assert 0 < len(str(error)) < 400, f"seed {seed}"
    assert "\n" not in str(error), f"seed {seed}"


def answers(runner, seeds, *, right=False):
    """How many of the damaged programs ran; the others were refused. `right`: whether logits are what the integers say."""
    ran = 0
    for seed in seeds:
        program, size, threads = mutated(seed)
        picture = noise(*size, seed) if sized(size) else np.empty(0, np.uint8)
        try:
            mask, scores = runner.answer(program, size, picture, threads)
        except EngineError as error:
            refused(error, seed)
            continue
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from None
        assert mask is None or (mask < program.classes).all(), f"seed {seed}"
        if right and (np.abs(program.weights) < 1e6).all():
            _, wanted = run_program(program.units, program.weights, picture)
            assert np.abs(scores - wanted.numpy()).max() <= program.within * float(wanted.abs().max()), f"seed {seed}"
        ran += 1
    return ran


@pytest.fixture
def installed(engine):
    """Runs programs by the installed library, in a process of its own, where it touches no byte behind an array."""
    import espy_engine

    with Runner(sys.executable, Path(__file__).parent / "runner.py", espy_engine.library(), SECONDS) as runner:
        yield runner


@posix
def test_a_thousand_damaged_programs_are_refused_in_one_line_or_are_what_they_say(installed):
    assert 100 < answers(installed, range(1000), right=True) < 900


@posix
def test_a_step_behind_an_array_ends_the_process_that_runs_damaged_programs():
    code = "import ctypes, runner; ctypes.string_at(runner.Fenced(100).at, {})"
    inside, behind = (
        subprocess.run([sys.executable, "-c", code.format(size)], cwd=Path(__file__).parent, check=False)
        for size in (100, 101)
    )
    assert (inside.returncode, behind.returncode) == (0, -signal.SIGSEGV)


@pytest.mark.native
def test_a_hundred_thousand_damaged_programs_under_sanitizers(checked):
    with checked("address,undefined") as runner:
        ran = answers(runner, range(1000, 101_000))
    assert 10_000 < ran < 90_000


def test_a_picture_whose_maps_no_machine_could_hold_is_refused_by_its_size(engine):
    program = Sketch(0).first(65536).add("SEGMENT", 1, 1).program()
    picture = np.empty((4096, 4096, 3), np.uint8)  # of which nothing is read
    with (
        Opened(engine, Program(program.units, program.weights, 0)) as opened,
        pytest.raises(EngineError, match="a picture of 4096 x 4096 pixels needs more memory than this machine has"),
    ):
        opened.run(picture)


# Model files


def damaged(content, chance):
    """The bytes of a model file with something wrong: mostly in its header, which begins behind the 8 bytes of its length."""
    content = bytearray(content)
    header = int.from_bytes(content[:8], "little")
    for _ in range(chance.choice([1, 1, 2, 8])):
        at = chance.randrange(min(len(content), chance.choice([8, header, header, len(content)])))
        how = chance.randrange(20)
        if how < 12:
            content[at] = chance.choice([chance.randrange(256), *b'0123456789-"[]{},'])
        elif how < 16:
            content[at:at] = content[at : at + chance.randint(1, 9)]
        elif how < 19 and len(content) > 100:
            del content[at : at + chance.randint(1, 9)]
        else:
            del content[1 + chance.randrange(len(content)) :]
    return bytes(content)


def misled(header, chance):
    """A file's header with other values in one or two places."""
    header = json.loads(json.dumps(header))
    for _ in range(chance.choice([1, 2])):
        at, key = header, chance.choice(["spec", "spec", "preprocess", "preprocess", "labels", "task", "sizes"])
        while isinstance(at[key], dict | list) and at[key] and chance.random() < 0.95:
            at = at[key]
            key = chance.choice(list(at)) if isinstance(at, dict) else chance.randrange(len(at))
        value = at[key]
        if isinstance(value, int | float) and chance.random() < 0.7:
            at[key] = chance.choice([value + 1, value - 1, -value, value * 2, value / 3, 1e300, 2**70, value * 1000])
        else:
            at[key] = chance.choice(
                [None, True, False, "", "C", "branch", "cat1", "BGR", "relu", [], {}, [1, 2, 3], 0, 1, 1e-300]
            )
    return json.dumps(header)


def test_a_thousand_damaged_model_files_are_refused_in_one_line_or_run(engine, tiny_espnet, tmp_path):
    native, file = load_engine("native"), tmp_path / "m.safetensors"
    image, content = noise(16, 16)[None], tiny_espnet.read_bytes()
    with safe_open(tiny_espnet, "np") as opened:
        header = json.loads(opened.metadata()["espy"])
    arrays = load_file(tiny_espnet)
    ran = 0
    for seed in range(1000):
        chance = random.Random(seed)
        if seed % 2:
            file.write_bytes(damaged(content, chance))
        else:  # without a checksum, which would tell
            save_file(arrays, file, {"espy": misled(header, chance)})
        try:
            found = native(file, threads=1, precision="float32")
        except EspyError as error:
            refused(error, seed)
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        mask = found.run(image)["mask"]
        assert mask.shape == (1, 16, 16), f"seed {seed}"
        found.close()
        ran += 1
    assert 20 < ran < 480
