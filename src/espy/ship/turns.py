"""A network in a process of its own, which runs when it is told to and else waits, idle (espy.process)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from espy.errors import EngineError
from espy.process import serve

TARGET = "espy.ship.turns:main"
ALONE, WHOLE = "alone", "whole"
"""What can be run: the engine alone, the picture prepared; or all of it, from a picture's file to its result."""

STATUS = Path("/proc/self/status")


def main() -> None:
    """The end that answers."""
    bare = peak_bytes()
    network: Network | None = None

    def answer(do: str, **order: Any) -> dict[str, Any]:
        nonlocal network
        if do == "open":
            network = Network(**order)
            return {"version": network.version, "bare_bytes": bare}
        if network is None:
            raise EngineError("nothing is open")
        if do == "run":
            return timed(network.runs[order["what"]], order["times"])
        if do == "peak":
            return {"peak_bytes": peak_bytes()}
        if do == "operators":
            return {"operators": network.operators()}
        raise EngineError(f"unknown order {do!r}")

    serve(answer)


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
