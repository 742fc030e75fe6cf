"""The CPU engine built in other ways than it is installed: each once a session, in a folder of its own."""

import os
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from builds import NATIVE, printed, tool
from espy.machine import available_threads

RUNNER = Path(__file__).parent / "runner.cpp"
FLAGS = ("-std=c++17", "-O1", f"-I{NATIVE / 'include'}", "-Wl,-rpath,$ORIGIN")


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
                printed(found, *FLAGS, *sanitize, RUNNER, f"-L{folder}", "-lespy_engine", "-o", folder / "runner")
        return folder

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
