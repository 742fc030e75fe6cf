"""A network in a process of its own, which runs when it is told to and else waits, idle, on a pipe.

Both ends of the pipe stand here: `Process` is the one that asks, `main` the one that answers. An order is a line of JSON, and so
is the answer, or `{"error": one line}`. The process ends when the pipe does, so none outlives the one that asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from espy.errors import EngineError, EspyError

ALONE, WHOLE = "alone", "whole"
"""What can be run: the engine alone, the picture prepared; or all of it, from a picture's file to its result."""

STATUS = Path("/proc/self/status")


def python(target: str, *arguments: str) -> list[str]:
    """The command that calls `module:function` in a fresh Python that finds modules where this one does."""
    module, function = target.split(":")
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import {function}; {function}()"
    return [sys.executable, "-P", "-c", code, *arguments]


class Process:
    """The end that asks."""

    def __init__(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (stderr; a pipe could fill up)
        self._child = subprocess.Popen(
            python("espy.ship.turns:main"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
            process_group=0,  # Ctrl-C reaches the one that asks alone
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._child.pid

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """The answer to an order. Raises EngineError, one line, where it failed or the process died of it."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineError(self._death())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process, whatever it does."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._said):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]

    def _death(self) -> str:
        code = self._child.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        memory = ": perhaps the memory is full" if code == -signal.SIGKILL else ""
        self._said.seek(0)
        last = self._said.read()[-4096:].decode("utf-8", "replace").strip().splitlines()[-1:]
        return f"its process {how}{memory}{''.join(f' ({line})' for line in last)}"


def main() -> None:
    """The end that answers."""
    bare = peak_bytes()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    with contextlib.suppress(BrokenPipeError):  # who asked is gone
        _serve(answers, bare)
    os._exit(0)  # engines may take long to clean up


def _serve(answers: Any, bare: int) -> None:
    network = None
    for line in sys.stdin:
        order = json.loads(line)
        do = order.pop("do")
        try:
            if do == "open":
                network = Network(**order)
                answer: Any = {"version": network.version, "bare_bytes": bare}
            elif network is None:
                raise EngineError("nothing is open")
            elif do == "run":
                answer = timed(network.runs[order["what"]], order["times"])
            elif do == "peak":
                answer = {"peak_bytes": peak_bytes()}
            elif do == "operators":
                answer = {"operators": network.operators()}
            else:
                raise EngineError(f"unknown order {do!r}")
        except EspyError as error:
            answer = {"error": str(error)}
        except MemoryError:
            answer = {"error": "the memory is full"}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        print(json.dumps(answer), file=answers, flush=True)


class Network:
    """A network that is open in an engine, with a picture: what `runs` there are, each by its name."""

    def __init__(
        self, path: str, engine: str, size: list[int], threads: int, precision: str, picture: str,
        foreign: dict[str, Any] | None,
    ) -> None:  # fmt: skip
        from espy.picture.frame import Frame
        from espy.picture.read import read
        from espy.run.engines import load_engine
        from espy.run.predictor import load
        from espy.ship.foreign import Foreign

        self.path, self.engine, self.threads, self.precision = Path(path), engine, threads, precision
        self.version = ""
        self.runs: dict[str, Callable[[], Any]]
        height, width = size
        image = read(picture)
        if foreign is not None:
            other = Foreign(path=self.path, **foreign)
            self.feed = other.feed(image.image, (height, width))
            self.runs = {ALONE: other.runner(engine, threads, precision, self.feed)}
            self.version = load_engine(engine).version
            return
        model = load(path, engine=engine, threads=threads, precision=precision, size=(height, width))
        frame = Frame.of(model.preprocess, image.size, (height, width))
        self.feed = {"image": frame.to_network(image.image)[None]}
        self.version = model.engine.version
        self.runs = {ALONE: lambda: model.engine.run(self.feed["image"]), WHOLE: lambda: model(picture)}

    def operators(self) -> list[dict[str, Any]]:
        """Where the engine's time goes."""
        from espy.ship import operators

        return operators.find(self.engine, self.path, self.threads, self.precision, self.feed, self.runs[ALONE])


def timed(run: Callable[[], Any], times: int) -> dict[str, list[float]]:
    """Seconds of wall and of processor time, of all threads, of each of several runs."""
    wall, cpu = [], []
    for _ in range(times):
        began, busy = time.perf_counter(), time.process_time()
        run()
        cpu.append(time.process_time() - busy)
        wall.append(time.perf_counter() - began)
    return {"wall": wall, "cpu": cpu}


def peak_bytes() -> int:
    """The most memory that this process held at once."""
    try:  # not `ru_maxrss`, which on Linux counts in the process that started this one
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10
    except (OSError, StopIteration):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10
