"""The distribution espy-engine: its version, what it is without a compiler, and how it is built otherwise."""

import importlib.util
import os
import platform
import shutil
import subprocess

import numpy as np
import pytest

from builds import NATIVE, printed, tool
from espy.errors import EngineError
from espy.header import Preprocess
from espy.nn.build import build, weights_of
from espy.priors import priors
from espy.run.lowering import lower
from espy.version import VERSION
from lowered import run_program
from programs import Program, Runner, everything
from samples import noise


def opened(path):
    """The module of a file, under a name of its own."""
    spec = importlib.util.spec_from_file_location("opened", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_engine_has_the_version_of_espy():
    assert opened(NATIVE / "espy_engine" / "__init__.py").__version__ == VERSION


def test_both_distributions_have_the_same_licence():
    assert (NATIVE / "LICENSE").read_bytes() == (NATIVE.parent / "LICENSE").read_bytes()


def test_the_library_lies_beside_the_package_and_its_absence_is_told(tmp_path):
    package = opened(shutil.copy(NATIVE / "espy_engine" / "__init__.py", tmp_path))
    with pytest.raises(ImportError, match=r"no C\+\+ compiler: install one"):
        package.library()
    (tmp_path / "libespy_engine.so").touch()
    assert package.library() == tmp_path / "libespy_engine.so"


@pytest.mark.native
def test_without_a_compiler_the_package_is_made_without_a_library(tmp_path):
    environment = {**os.environ, "CXX": str(tmp_path / "none")}
    cmake = tool("cmake")
    said = subprocess.run(
        [cmake, "-S", NATIVE, "-B", tmp_path], env=environment, capture_output=True, text=True, check=True
    )
    assert "no C++ compiler was found" in said.stderr
    printed(cmake, "--build", tmp_path)
    printed(cmake, "--install", tmp_path, "--prefix", tmp_path / "installed")
    assert not list(tmp_path.rglob("libespy_engine.*"))


REFUSED = """
import ctypes, pathlib, sys
assert all(name in pathlib.Path(sys.argv[1]).read_bytes() for name in (b"__asan_init", b"__ubsan_handle"))
engine = ctypes.CDLL(sys.argv[1])
engine.espy_create.restype = ctypes.c_void_p
engine.espy_last_error.restype = ctypes.c_char_p
assert engine.espy_create((ctypes.c_int64 * 9)(-1), 9, (ctypes.c_float * 1)(), 1, 1) is None
print(engine.espy_last_error().decode())
engine.espy_destroy(None)
"""


@pytest.mark.native
def test_sanitizers_find_nothing_in_a_network_that_is_refused(sanitized):
    assert sanitized(REFUSED).strip()


RUN = """
import ctypes, pathlib, sys
import numpy as np
engine = ctypes.CDLL(sys.argv[1])
engine.espy_create.restype = ctypes.c_void_p
engine.espy_last_error.restype = ctypes.c_char_p
units, weights = np.load(sys.argv[2]), np.load(sys.argv[3])
height, width, masks, floats = map(int, sys.argv[4:])
picture, mask, scores = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8), np.zeros(floats, np.float32)
at, count = lambda array: ctypes.c_void_p(array.ctypes.data), ctypes.c_int64
for threads in (1, 3):
    made = engine.espy_create(at(units), count(len(units)), at(weights), count(len(weights)), threads)
    made, size, mask_at = ctypes.c_void_p(made), (count(height), count(width)), at(mask) if masks else None
    failed = engine.espy_run(made, at(picture), *size, mask_at, at(scores), count(floats), None)
    assert not failed, engine.espy_last_error()
    engine.espy_destroy(made)
print(np.isfinite(scores).all())
"""


@pytest.mark.native
@pytest.mark.parametrize(
    ("task", "height", "width", "floats"),
    [
        ("segment", 61, 83, 3 * 61 * 83), ("segment", 16, 16, 3 * 16 * 16), ("classify", 61, 83, 3), ("classify", 16, 16, 3),
        ("detect", 95, 95, 8 * len(priors(95))), ("detect", 16, 16, 8 * len(priors(16))),
    ],
)  # fmt: skip
def test_sanitizers_find_nothing_in_a_network_that_runs(sanitized, tmp_path, task, height, width, floats):
    network = build("espnetv2", task=task, width=0.5, classes=3, seed=0)
    arrays = {name: tensor.numpy() for name, tensor in weights_of(network).items()}
    program = lower(network.spec, arrays, Preprocess((96, 96)))
    np.save(tmp_path / "units.npy", program.units)
    np.save(tmp_path / "weights.npy", program.weights)
    files = tmp_path / "units.npy", tmp_path / "weights.npy"
    assert sanitized(RUN, *files, *map(str, (height, width, int(task == "segment"), floats))).strip() == "True"


@pytest.mark.native
def test_sanitizers_see_a_read_behind_an_array_of_pythons(sanitized):
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        sanitized("import ctypes; ctypes.memmove((ctypes.c_int64 * 10)(), (ctypes.c_int64 * 9)(), 80)")


@pytest.mark.native
@pytest.mark.parametrize(
    "processor",
    [
        "aarch64",
        *(
            pytest.param(name, marks=pytest.mark.skipif(platform.machine() != "x86_64", reason="no x86-64 machine"))
            for name in ("Nehalem", "max")  # without AVX; with AVX2, all that qemu has
        ),
    ],
)
def test_a_processor_with_fewer_instructions_runs_the_library(emulated, processor):
    program, picture = everything(0), noise(33, 47)
    _, wanted = run_program(program.units, program.weights, picture)
    with Runner(*emulated(processor)) as runner:
        _, scores = runner.run(program, picture, 2)
        assert np.abs(scores - wanted.numpy()).max() <= 1e-4 * float(wanted.abs().max())
        with pytest.raises(EngineError, match="the description ends before the number of units"):
            runner.run(Program(program.units[:2], program.weights, 0), picture)
