"""The CPU engine built in other ways than it is installed: each once a session, in a folder of its own."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from builds import NATIVE, printed, tool
from espy.machine import available_threads
from programs import Runner

RUNNER = Path(__file__).parent / "runner.cpp"
FLAGS = ("-std=c++17", "-pthread", f"-I{NATIVE / 'include'}")


@pytest.fixture(scope="session")
def engine():
    """The functions of the engine, where it is installed."""
    pytest.importorskip("espy_engine", reason="espy-engine is not installed: build native/")
    from espy.run.engines.native import library

    return library()


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """built(compiler, **options): a folder with `libespy_engine.so` and `runner`, a program of it, made with CMake's options."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if base.name.startswith("popen-") else base) / "native"

    def build(compiler, **options):
        cmake, make, found = tool("cmake"), tool("make"), tool(compiler)
        folder = root / "-".join([compiler, *(value.replace(";", "+") for value in options.values())])
        settings = {"CMAKE_MAKE_PROGRAM": make, "CMAKE_CXX_COMPILER": found, **options}
        sanitize = [f"-fsanitize={options['ESPY_SANITIZE']}"] if "ESPY_SANITIZE" in options else []
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / "runner").exists():  # made last
                set_to = [f"-D{name}={value}" for name, value in settings.items()]
                printed(cmake, "-S", NATIVE, "-B", folder, "-G", "Unix Makefiles", *set_to)
                printed(cmake, "--build", folder, "--parallel", str(available_threads()))
                linked = (f"-L{folder}", "-lespy_engine", "-Wl,-rpath,$ORIGIN")
                printed(found, *FLAGS, "-O1", *sanitize, RUNNER, *linked, "-o", folder / "runner")
        return folder

    return build


@pytest.fixture
def altered(tmp_path):
    """altered(*changes): `runner` with lines of the engine's sources as they are not, (file, old, new), checked builds' checks in.

    Plain C++, or with a target of this processor beside it.
    """

    def build(*changes, target="scalar", optimised="-O1"):
        sources = shutil.copytree(NATIVE / "src", tmp_path / "src")
        for file, old, new in changes:
            text = (sources / file).read_text()
            assert text.count(old) == 1
            (sources / file).write_text(text.replace(old, new))
        also = [] if target == "scalar" else [f"target_{target}"]
        parts = [sources / f"{name}.cpp" for name in ("api", "network", "plan", "workers", "target_scalar", *also)]
        flags = [*FLAGS, optimised, "-ffp-contract=off", "-DESPY_CHECK"] + [
            f"-DESPY_{target.upper()}",
            "-march=native",
        ] * len(also)
        printed(tool("g++"), *flags, RUNNER, *parts, "-o", tmp_path / "runner")
        return tmp_path / "runner"

    return build


@pytest.fixture
def emulated(built):
    """emulated(processor): the command that runs the engine's `runner` on another processor, by qemu-user."""

    def command(processor):
        if processor == "aarch64":
            folder = built("aarch64-linux-gnu-g++", CMAKE_SYSTEM_NAME="Linux", CMAKE_SYSTEM_PROCESSOR=processor)
            return [tool("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu", folder / "runner"]
        return [tool("qemu-x86_64"), "-cpu", processor, built("g++") / "runner"]

    return command


@pytest.fixture(scope="session")
def checked(built):
    """checked(sanitizers): the engine's `runner` with these, which also ends where what lies around a map is not zero."""

    def runner(sanitizers, **options):
        folder = built("g++", ESPY_SANITIZE=sanitizers, CMAKE_BUILD_TYPE="Debug", **options)
        return Runner(folder / "runner", env={**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"})

    return runner


@pytest.fixture
def sanitized(built):
    """sanitized(code, *arguments): what Python code prints that loads the library, sys.argv[1], under both sanitizers."""
    folder = built("g++", ESPY_SANITIZE="address,undefined", CMAKE_BUILD_TYPE="Debug")
    # the C++ library too: the sanitizer looks for its `throw` when it starts, and Python does not have it
    preload = [printed(tool("g++"), f"-print-file-name={name}").strip() for name in ("libasan.so", "libstdc++.so.6")]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preload),
        "PYTHONMALLOC": "malloc",  # Python's own pools hide where an array ends
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }

    def run(code, *arguments):
        return printed(sys.executable, "-c", code, folder / "libespy_engine.so", *arguments, env=environment)

    return run
