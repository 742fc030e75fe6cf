"""Which engine runs a model: the one that is asked for or, for `auto`, the fastest of those installed, by measuring once.

Where several installed engines open a model, each runs it in a process of its own, in turns, on a picture of the size that
matters. What was found is kept in a file of the user's cache, one for each question (processor, model, size, threads, precision,
versions), so that nothing is measured twice and processes that write at once cannot spoil each other's. A file that does not
hold the answer to its question is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from PIL import Image

from espy import bundle
from espy.errors import EngineError, OutputError
from espy.machine import available_threads, flags, load_average, processor
from espy.output import is_part, shown, writing
from espy.run.engines import ENGINES, FORMATS, installed, installed_version, load_engine
from espy.spec import nearest
from espy.version import VERSION

if TYPE_CHECKING:
    from espy.process import Process

AUTO = "auto"
ENGINE, CACHE = "ESPY_ENGINE", "ESPY_CACHE"
"""What the environment may name: the engine that stands for `auto`, the folder of the cache."""

ROUNDS = 5
TURN_S = 0.1  # a turn is repeated until it lasts so long: a run of few ms would otherwise always find the caches cold
ENOUGH_S = 1.0  # of turns for each engine; after that no round begins, but for the second
OPEN_S, RUN_S = 60.0, 60.0  # the most that opening with a first run, and a turn, may take; else the engine is left out
KEPT = 256  # files in the cache

NAME = 32  # letters of a file's name, of the checksum of what was asked

PLACES = {
    # system: the variable that names the user's cache, where it is without
    "linux": ("XDG_CACHE_HOME", ".cache"),
    "darwin": ("", "Library/Caches"),
    "win32": ("LOCALAPPDATA", "AppData/Local"),
}

TARGET = "espy.run.choice:main"
PICTURE = bundle.FOLDER / "photos" / "street_city.jpg"


class Trial(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an engine showed: the fastest of its runs, the median and how many; or the reason why it was left out."""

    file: str
    ms: float = 0.0
    median_ms: float = 0.0
    runs: int = 0
    left_out: str = ""


class Kept(msgspec.Struct, frozen=True):
    """A file of the cache: what was asked, the fastest engine, what each showed, when, and the machine's load meanwhile."""

    asked: dict[str, Any]
    engine: str
    trials: dict[str, Trial]
    time: str
    load: float | None


def candidates(model: str | Path, files: Sequence[Path], engine: str = AUTO) -> dict[str, Path]:
    """The engines that may run a model, each with the one of its `files` that it opens: one, where that is asked for.

    For `auto` all that are installed; where none is, the first that could be. Raises EngineError, with the cure, where none can.
    """
    opens = {
        name: next(file for file in files if file.suffix in endings)
        for name, (_, _, endings, _) in ENGINES.items() if any(file.suffix in endings for file in files)
    }  # fmt: skip
    found = " and ".join(file.suffix for file in files)
    if engine == AUTO:
        if not opens:
            known = f"give .safetensors or {', '.join(FORMATS)}"
            raise EngineError(f"{model}: no engine opens {found or 'a file without ending'}: {known}")
        named = os.environ.get(ENGINE) or AUTO
        if named not in (AUTO, *ENGINES):
            raise EngineError(f"{ENGINE} names an unknown engine, {named!r}: {nearest(named, list(ENGINES))}")
        if named not in opens:
            return {name: file for name, file in opens.items() if installed(name)} or dict([next(iter(opens.items()))])
        engine = named
    if engine not in ENGINES:
        raise EngineError(f"unknown engine {engine!r}: {nearest(engine, list(ENGINES))}")
    if engine not in opens:
        endings = ENGINES[engine][2]
        cure = f"give it {' or '.join(endings)}"
        if any(file.suffix == ".safetensors" for file in files):
            cure = f"export it first: espy export {model} --to {FORMATS[endings[0]]}"
        raise EngineError(f"{model}: engine {engine} opens {' or '.join(endings)}, not {found}: {cure}")
    return {engine: opens[engine]}


def fastest(
    files: Mapping[str, Path],
    size: tuple[int, int],
    threads: int | None,
    precision: str,
    remark: Callable[[str], None] = lambda line: None,
) -> str:
    """The fastest of several engines, each with its file, on one picture of (height, width): measured now or before.

    The first where none can run. `remark` is called with a line where it takes time.
    """
    first, *others = files
    if not others or getattr(sys, "frozen", False) or not sys.executable:  # a frozen program starts itself, no Python
        return first
    asked = _question(files, size, threads, precision)
    path = _place(asked)
    if kept := _read(path, asked, files):
        return kept.engine
    names = f"{', '.join([first, *others[:-1]])} and {others[-1]}"
    remark(f"measuring {names} for height {size[0]}, width {size[1]}: takes some seconds, once")
    now, load = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), load_average()
    try:
        trials = measure(files, size, threads, precision)
    except EngineError as error:
        remark(f"cannot measure, so {first} runs it: {error}")
        return first
    engine = _best(trials)
    if not engine:
        return first  # which says itself what is wrong
    try:
        _keep(path, Kept(asked, engine, trials, now, load))
    except OutputError as error:
        remark(f"{engine} is the fastest; this is measured again next time: {error}")
    return engine


def _best(trials: Mapping[str, Trial]) -> str:
    """The engine of the fastest run; empty where none ran."""
    ran = {name: trial.ms for name, trial in trials.items() if trial.runs}
    return min(ran, key=ran.__getitem__, default="")


# The cache


def cache_folder() -> Path | None:
    """Where this user's programs keep what they can find again: what ESPY_CACHE names, or `espy` where the system has such files.

    None where it has no place for them.
    """
    if given := os.environ.get(CACHE):
        return Path(given)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    variable, usual = PLACES.get(sys.platform, PLACES["linux"])
    named = Path(os.environ.get(variable, ""))
    return (named if named.is_absolute() else home / usual) / "espy"


def _question(files: Mapping[str, Path], size: tuple[int, int], threads: int | None, precision: str) -> dict[str, Any]:
    """All that the answer depends on, as it reads back from JSON."""
    return {
        "processor": processor(), "flags": flags(), "cores": available_threads(), "threads": threads, "precision": precision,
        "size": list(size), "sha256": {shown(file.name): _checksum(file) for file in dict.fromkeys(files.values())},
        "versions": {"espy": VERSION, **{name: installed_version(name) for name in files}},
    }  # fmt: skip


def _checksum(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:  # every engine will say so
        return str(error)


def _place(asked: dict[str, Any]) -> Path | None:
    """The file that holds the answer, or will."""
    folder, name = cache_folder(), hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()[:NAME]
    return folder / "engines" / f"{name}.json" if folder else None


def _read(path: Path | None, asked: dict[str, Any], files: Mapping[str, Path]) -> Kept | None:
    """What was kept; None where that is no file, half of one, or anything else than the answer to what is asked."""
    try:
        if path is None or not path.is_file():
            return None
        kept = msgspec.json.decode(path.read_bytes(), type=Kept)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    sound = (
        kept.asked == asked and kept.trials.keys() == files.keys() and kept.engine and kept.engine == _best(kept.trials)
    )
    return kept if sound else None


def _keep(path: Path | None, kept: Kept) -> None:
    """Write it, and drop the oldest of more than `KEPT` files. Raises OutputError where it cannot be written."""
    if path is None:
        raise OutputError(f"no folder for it is known: name one in {CACHE}")
    with writing(path, force=True) as file:
        file.write(msgspec.json.format(msgspec.json.encode(kept), indent=1))
    with contextlib.suppress(OSError):  # another process is at it too
        mine = [*path.parent.glob("[0-9a-f]" * NAME + ".json"), *filter(is_part, path.parent.iterdir())]
        for old in sorted(mine, key=lambda one: one.stat().st_mtime_ns)[:-KEPT]:
            old.unlink()


# Measuring


def measure(files: Mapping[str, Path], size: tuple[int, int], threads: int | None, precision: str) -> dict[str, Trial]:
    """What each engine shows with its file on one picture of (height, width).

    They open at the same time and run in turns, as `espy bench` has it. Raises EngineError where no process can be started.
    """
    from espy.process import Process  # seldom needed, and slow to import

    processes: dict[str, Process] = {}
    ms: dict[str, list[float]] = {name: [] for name in files}
    left_out: dict[str, str] = {}

    def each(step: Callable[[str, Process], object]) -> None:
        for name, process in processes.items():
            try:
                if name not in left_out:
                    step(name, process)
            except EngineError as error:
                left_out[name] = str(error)

    def begin(name: str, process: Process) -> None:
        order = {"size": size, "threads": threads, "precision": precision}
        process.tell("open", engine=name, file=str(files[name]), **order)

    def turn(name: str, process: Process) -> None:
        ms[name] += process.ask("run", within_s=RUN_S, seconds=TURN_S)["ms"]

    try:
        for name in files:
            processes[name] = Process(TARGET, **{ENGINE: name})
        each(begin)
        each(lambda name, process: process.hear(OPEN_S))
        began = time.monotonic()
        for number in range(ROUNDS):
            if number > 1 and time.monotonic() - began > ENOUGH_S * len(files):
                break
            each(turn)
    finally:
        for process in processes.values():
            process.close()
    return {
        name: Trial(shown(file), left_out=left_out[name])
        if name in left_out
        else Trial(shown(file), min(ms[name]), float(np.median(ms[name])), len(ms[name]))
        for name, file in files.items()
    }


def main() -> None:
    """In an engine's process: opens its file with a photo of the size, runs once, then as long as it is told to."""
    from espy.process import serve

    run: Callable[[], Any] | None = None

    def answer(do: str, **order: Any) -> dict[str, Any]:
        nonlocal run
        if do == "open":
            run = _opened(**order)
            run()
            return {}
        if run is None:
            raise EngineError("nothing is open")
        return {"ms": _timed(run, order["seconds"])}

    serve(answer)


def _opened(engine: str, file: str, size: tuple[int, int], threads: int | None, precision: str) -> Callable[[], Any]:
    height, width = size
    with Image.open(PICTURE) as photo:
        image = np.asarray(photo.convert("RGB").resize((width, height)))[None]
    running = load_engine(engine)(Path(file), threads=threads, precision=precision)
    return lambda: running.run(image)


def _timed(run: Callable[[], Any], seconds: float) -> list[float]:
    """Milliseconds of runs, one at least, for so many seconds."""
    began, ms = time.perf_counter(), list[float]()
    while not ms or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run()
        ms.append(1e3 * (time.perf_counter() - start))
    return ms
