"""A process that answers: what may end a process, fill its memory or import much is asked of another one.

Both ends of the pipe stand here: `Process` is the one that asks, `serve` the one that answers. An order is a line of JSON, and so
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
import threading
from collections.abc import Callable
from typing import Any

from espy.errors import EngineError, EspyError


def python(target: str, *arguments: str) -> list[str]:
    """The command that calls `module:function` in a fresh Python that finds modules where this one does."""
    module, function = target.split(":")
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import {function}; {function}()"
    return [sys.executable, "-P", "-c", code, *arguments]


class Process:
    """The end that asks. `target`: `module:function` that calls `serve`; `environment`: what stands in its environment beside.

    Raises EngineError where no process can be started.
    """

    def __init__(self, target: str, **environment: str) -> None:
        try:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 (stderr; a pipe could fill up)
            self._child = subprocess.Popen(
                python(target), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
                env={**os.environ, **environment}, process_group=0,  # Ctrl-C reaches the one that asks alone
            )  # fmt: skip
        except OSError as error:
            if hasattr(self, "_said"):
                self._said.close()
            raise EngineError(f"no process can be started: {error.strerror or error}") from None

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._child.pid

    def tell(self, do: str, **order: Any) -> None:
        """Give an order, whose answer is heard later."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead, which is heard then
            self._child.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self._child.stdin.flush()

    def hear(self, within_s: float | None = None) -> dict[str, Any]:
        """The answer to an order. Raises EngineError, one line, where it failed, the process died of it or took too long."""
        assert self._child.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            self._child.kill()

        timer = threading.Timer(within_s or 0, end)
        if within_s is not None:
            timer.start()
        try:
            line = self._child.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise EngineError(f"gave no answer within {within_s:g} s" if late.is_set() else self._death())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer

    def ask(self, do: str, *, within_s: float | None = None, **order: Any) -> dict[str, Any]:
        """`tell` and `hear`."""
        self.tell(do, **order)
        return self.hear(within_s)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._said):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]

    def _death(self) -> str:
        code = self._child.wait()
        killed = signal.Signals(-code).name if code < 0 else ""
        how = f"was killed by {killed}" if killed else f"ended with exit code {code}"
        memory = ": perhaps the memory is full" if killed == "SIGKILL" else ""
        self._said.seek(0)
        last = self._said.read()[-4096:].decode("utf-8", "replace").strip().splitlines()[-1:]
        return f"its process {how}{memory}{''.join(f' ({line})' for line in last)}"


def serve(answer: Callable[..., dict[str, Any]]) -> None:
    """The end that answers: `answer(do, **order)` for every order until the pipe ends, then the process does."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    with contextlib.suppress(BrokenPipeError):  # who asked is gone
        for line in sys.stdin:
            order = json.loads(line)
            try:
                said = answer(order.pop("do"), **order)
            except EspyError as error:
                said = {"error": str(error)}
            except MemoryError:
                said = {"error": "the memory is full"}
            except Exception as error:
                said = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
            print(json.dumps(said), file=answers, flush=True)
    os._exit(0)  # engines may take long to clean up
