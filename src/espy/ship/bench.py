"""Any number of networks, engines, sizes and threads measured in one run that takes turns: A B C A B C ...

What disturbs a machine for a while disturbs all of them alike, so that their ratios hold where their milliseconds do not. Each
lives in a process of its own (turns.py), waits there while the others run, and is warm before anything counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from espy import bundle
from espy.errors import EngineError, EspyError
from espy.header import Header
from espy.machine import available_threads, stamp
from espy.output import shown
from espy.picture.read import MAX_PIXELS
from espy.process import Process
from espy.run.choice import fastest
from espy.run.engines import ENGINES, load_engine
from espy.run.predictor import check_fits, check_size, header_of, precision_of, resolve
from espy.ship.energy import Meter, counters
from espy.ship.foreign import Foreign, Work, count, open_foreign
from espy.ship.limits import Limits, measure_limits
from espy.ship.turns import ALONE, TARGET, WHOLE

ROUNDS = 20
WARM_UPS = 3
TURN_S = 0.1  # a turn is repeated until it lasts so long: a run of few ms would otherwise always find the caches cold
PICTURE = bundle.FOLDER / "photos" / "street_city.jpg"

LOAD = 0.5  # of the cores, above which the load average at the start is worth a warning
SPREAD = 0.5  # above which a row's times are
WAITED = 0.1  # share of its time that a single thread waited for a core, above which it is

Size = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """What is to be measured: a network in an engine, at (height, width), with so many threads.

    `header` is the model's, None for a `foreign` network. `note`: what is not as it was asked for.
    """

    model: str
    path: Path
    engine: str
    size: Size
    threads: int
    precision: str
    header: Header | None = None
    foreign: Foreign | None = None
    note: str | None = None

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        precision = "" if self.precision == "float32" else f", {self.precision}"
        return f"{self.model}, {self.engine}, {self.size[0]}x{self.size[1]}, {threads}{precision}"


@dataclass(frozen=True)
class Times:
    """Milliseconds over all runs. `spread`: how far the slow ones (95th percentile) are from the fastest, over the median."""

    median: float
    minimum: float
    p95: float
    spread: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Of the seconds of each run.

        >>> Times.of([0.010, 0.012, 0.011]).median
        11.0
        """
        ms = 1e3 * np.array(seconds)
        median, minimum, p95 = float(np.median(ms)), float(ms.min()), float(np.percentile(ms, 95))
        return cls(median, minimum, p95, (p95 - minimum) / median)


@dataclass(frozen=True)
class Timed:
    """`runs` runs, by the wall's clock and in processor time of all threads; `images_s` by the median of the former."""

    runs: int
    wall_ms: Times
    cpu_ms: Times

    @property
    def images_s(self) -> float:
        """Pictures a second, one at a time."""
        return 1e3 / self.wall_ms.median

    def to_dict(self) -> dict[str, Any]:
        """Its entry in the JSON output."""
        return {**asdict(self), "images_s": self.images_s}


@dataclass(frozen=True)
class Row:
    """What was measured of a case. `alone`: the engine, its input prepared. `whole`: file in, result out; None where foreign.

    `peak_bytes`: of its process when the engine alone has run; `bare_bytes`: of the same Python before it imported anything.
    `joules`: for one picture, by source. `operators`: where the time goes, if that was asked.
    """

    case: Case
    version: str
    pid: int
    alone: Timed
    whole: Timed | None
    work: Work
    limits: Limits
    peak_bytes: int
    bare_bytes: int
    joules: dict[str, float]
    operators: tuple[dict[str, Any], ...] = ()

    @property
    def limit_ms(self) -> dict[str, float] | None:
        """What its multiply-adds alone would take, and what its maps need to go through memory.

        None where its work is not counted, and in other precisions than float32, in which the limits are measured.
        """
        work = self.work
        if work.macs is None or work.traffic is None or self.case.precision != "float32":
            return None
        return {"arithmetic": self.limits.arithmetic_ms(work.macs), "memory": self.limits.memory_ms(work.traffic)}

    @property
    def times_limit(self) -> dict[str, float] | None:
        """How many times as long it takes as the longer of the two, by the wall's clock and in processor time of all threads."""
        if self.limit_ms is None:
            return None
        least = max(self.limit_ms.values())
        wall, cpu = self.alone.wall_ms.median, self.alone.cpu_ms.median
        return {"wall": wall / least, "cpu": cpu / least / self.case.threads}

    def to_dict(self) -> dict[str, Any]:
        """Its entry in the JSON output."""
        case, work = self.case, self.work
        return {
            **_what(case), "version": self.version, "pid": self.pid, "note": case.note, "alone": self.alone.to_dict(),
            "whole": self.whole.to_dict() if self.whole else None, "limit_ms": self.limit_ms,
            "times_limit": self.times_limit,
            "parameters": work.parameters, "macs": work.macs, "traffic_bytes": work.traffic,
            "file_bytes": case.path.stat().st_size, "peak_bytes": self.peak_bytes, "bare_bytes": self.bare_bytes,
            "joules": self.joules, **({"operators": list(self.operators)} if self.operators else {}),
        }  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """All of one run: rows in the order of the cases, (case, reason) of those that failed, what spoils the figures."""

    environment: dict[str, Any]
    limits: tuple[Limits, ...]
    rounds: int
    rows: tuple[Row, ...]
    failed: tuple[tuple[Case, str], ...]
    warnings: tuple[str, ...]

    @property
    def stamp(self) -> str:
        """Where and with what it was measured, in one line."""
        at = self.environment
        cores = f"{at['available']} of {at['cores']} cores"
        virtual = ["virtual machine"] if "hypervisor" in at["flags"] else []
        load = [] if at["load"] is None else [f"load {at['load']:.1f}"]
        engines = dict.fromkeys(f"{row.case.engine} {row.version}" for row in self.rows)
        versions = [f"Python {at['python']}", f"NumPy {at['numpy']}", *engines, f"espy {at['espy']}"]
        return ", ".join([at["processor"], *virtual, cores, *load, at["system"], at["machine"], *versions, at["time"]])

    def to_dict(self) -> dict[str, Any]:
        """The object that `espy bench --json` prints."""
        return {
            "espy": 1, "command": "bench", "environment": self.environment, "limits": [asdict(one) for one in self.limits],
            "rounds": self.rounds, "results": [row.to_dict() for row in self.rows],
            "errors": [{**_what(case), "error": reason} for case, reason in self.failed], "warnings": list(self.warnings),
        }  # fmt: skip


def _what(case: Case) -> dict[str, Any]:
    return {
        "model": shown(case.model), "foreign": case.foreign is not None, "engine": case.engine, "size": list(case.size),
        "threads": case.threads, "precision": case.precision,
    }  # fmt: skip


# What is to be measured


def bench(
    models: str | Path | Sequence[str | Path] = "street",
    *,
    engines: Sequence[str] = ("auto",),
    sizes: Sequence[Size | None] = (None,),
    threads: Sequence[int | None] = (None,),
    precision: str = "auto",
    against: Sequence[str | Path] = (),
    rounds: int = ROUNDS,
    profile: bool = False,
) -> Bench:
    """Measure models (bundled names or files) in engines, at sizes (height, width), with threads: every combination.

    None is a model's own size, and all cores. `against`: `.onnx` files of other networks. `rounds`: turns of each. `profile`: list
    operators by time. Raises EspyError for a call that cannot work; what fails on its way is in `.failed`.
    """
    named = [models] if isinstance(models, str | Path) else models
    cases = plan(named, engines=engines, sizes=sizes, threads=threads, precision=precision, against=against)
    return measure(cases, rounds=rounds, profile=profile)


def plan(
    models: Sequence[str | Path],
    *,
    engines: Sequence[str] = ("auto",),
    sizes: Sequence[Size | None] = (None,),
    threads: Sequence[int | None] = (None,),
    precision: str = "auto",
    against: Sequence[str | Path] = (),
    remark: Callable[[str], None] = lambda line: None,
) -> list[Case]:
    """The cases of `bench`, by model, engine, size and threads; `remark` as in `espy.load`.

    Raises EspyError, one line, where one cannot be.
    """
    for size in sizes:
        check_size(size, MAX_PIXELS)
    counts = [check_threads(number) for number in threads]
    cases: list[Case] = []
    for model in models:
        for asked in engines:
            files = resolve(model, asked)
            cases += [_case(model, files, size, n, precision, remark) for size in sizes for n in counts]
    own = cases[0].size if cases else None
    for file in against:
        foreign = open_foreign(Path(file))
        for engine in _of_foreign(foreign, engines):
            for size, note in _sizes_of_foreign(foreign, [size or own for size in sizes]).items():
                computes = "float32" if precision == "auto" else precision
                case = Case(str(file), foreign.path, engine, size, 1, computes, foreign=foreign, note=note)
                cases += [replace(case, threads=n) for n in counts]
    if not cases:
        raise EngineError("nothing to measure: name a model or a foreign network")
    return cases


def _case(
    model: str | Path, files: dict[str, Path], size: Size | None, threads: int, precision: str,
    remark: Callable[[str], None],
) -> Case:  # fmt: skip
    """A model's case in the fastest of the engines that may run it."""
    first = next(iter(files.values()))
    header = header_of(first)
    size = size or header.preprocess.size
    check_fits(header, size, str(first))
    computes = precision_of(header, precision, str(first))
    engine = fastest(files, size, threads, computes, remark)
    load_engine(engine)  # raises where it is not installed
    path = files[engine]
    return Case(str(model), path, engine, size, threads, computes, header=header if path == first else header_of(path))


def check_threads(number: int | None) -> int:
    """How many threads are meant; None: one a core. Raises EngineError for more than cores."""
    cores = available_threads()
    if number is not None and not 1 <= number <= cores:
        raise EngineError(
            f"{number} threads: this process may use {cores} core{'s' * (cores > 1)}, so that more threads would wait for one "
            f"another: ask for 1{f' to {cores}' * (cores > 1)}"
        )
    return number or cores


def _of_foreign(foreign: Foreign, engines: Sequence[str]) -> list[str]:
    """Those of the engines that run it."""
    opens = [name for name, (_, _, endings, _) in ENGINES.items() if ".onnx" in endings]
    found = [opens[0] if engine == "auto" else engine for engine in engines]
    usable = [name for name in dict.fromkeys(found) if name in opens]
    if not usable:
        raise EngineError(
            f"{foreign.path}: a foreign network runs on {' or '.join(opens)}, not on {' or '.join(engines)}"
        )
    for name in usable:
        load_engine(name)
    return usable


def _sizes_of_foreign(foreign: Foreign, asked: Sequence[Size | None]) -> dict[Size, str | None]:
    """Each size at which it runs, once, with a note where no such size was asked for."""
    found: dict[Size, str | None] = {}
    for size in asked:
        if size is None and not foreign.fixed:
            raise EngineError(f"{foreign.path}: takes pictures of any size: give one with --size HEIGHTxWIDTH")
        at = foreign.size(size or (0, 0))
        found[at] = None if size in (None, at) else f"made for height {at[0]}, width {at[1]} alone, and measured there"
    return found


def work_of(case: Case) -> Work:
    """What a case computes for one picture; nothing is known where the packages that count are not installed."""
    if case.foreign is not None:
        return count(case.foreign, case.size)
    assert case.header is not None
    try:
        import torch

        from espy.nn.build import build
        from espy.nn.count import macs, parameters, traffic
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return Work()
    with torch.device("meta"):
        network = build(case.header.spec)
    return Work(parameters(network), macs(network, case.size), traffic(network, case.size))


# Measuring


class _Rival:
    """A case on its way: its process, what it has shown, and the reason why it dropped out."""

    def __init__(self, case: Case) -> None:
        self.case, self.reason = case, ""
        self.process = Process(TARGET)
        self.facts: dict[str, Any] = {}
        self.wall: dict[str, list[float]] = {ALONE: [], WHOLE: []}
        self.cpu: dict[str, list[float]] = {ALONE: [], WHOLE: []}
        self.joules: dict[str, float] = {}
        self.runs = 1  # a turn

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """The answer of its process; nothing, from now on, where it failed."""
        if self.reason:
            return {}
        try:
            return self.process.ask(do, **order)
        except EngineError as error:
            self.reason = str(error)
            self.process.close()
            return {}

    def open(self) -> None:
        case = self.case
        foreign = {k: v for k, v in asdict(case.foreign).items() if k != "path"} if case.foreign else None
        self.facts = self.ask(
            "open", path=str(case.path), engine=case.engine, size=case.size, threads=case.threads, precision=case.precision,
            picture=str(PICTURE), foreign=foreign,
        )  # fmt: skip

    def warm_up(self, what: str) -> None:
        """Run until it is as fast as it gets, and see how many runs make a turn."""
        for took in self.ask("run", what=what, times=WARM_UPS).get("wall", [])[-1:]:
            self.runs = max(1, math.ceil(TURN_S / took))

    def turn(self, what: str, meter: Meter) -> None:
        meter.lap()
        found = self.ask("run", what=what, times=self.runs)
        joules = meter.lap()
        self.wall[what] += found.get("wall", [])
        self.cpu[what] += found.get("cpu", [])
        if what == ALONE:
            self.joules = {source: self.joules.get(source, 0.0) + spent for source, spent in joules.items()}

    def timed(self, what: str) -> Timed | None:
        wall, cpu = self.wall[what], self.cpu[what]
        return Timed(len(wall), Times.of(wall), Times.of(cpu)) if wall else None


def measure(
    cases: Sequence[Case],
    *,
    rounds: int = ROUNDS,
    profile: bool = False,
    advance: Callable[[str], None] = lambda name: None,
) -> Bench:
    """Measure cases in turns. `advance` is called with a case's name after each of the `turns(cases, rounds)` turns."""
    if rounds < 1:
        raise EspyError(f"rounds must be at least 1, not {rounds}")
    environment = stamp()
    limits = {n: measure_limits(n) for n in sorted({case.threads for case in cases})}
    meter = Meter(counters())
    rivals: list[_Rival] = []
    try:
        for case in cases:
            rivals.append(_Rival(case))
            rivals[-1].open()
        for what in (ALONE, WHOLE):
            running = [rival for rival in rivals if what == ALONE or rival.case.foreign is None]
            for rival in running:
                rival.warm_up(what)
                advance(str(rival.case))
            for _ in range(rounds):
                for rival in running:
                    rival.turn(what, meter)
                    advance(str(rival.case))
            if what == ALONE:
                for rival in rivals:
                    rival.facts |= rival.ask("peak")
        if profile:
            for rival in rivals:
                rival.facts |= rival.ask("operators")
    finally:
        for rival in rivals:
            rival.process.close()
    rows = [_row(rival, limits[rival.case.threads]) for rival in rivals if not rival.reason]
    failed = tuple((rival.case, rival.reason) for rival in rivals if rival.reason)
    return Bench(environment, tuple(limits.values()), rounds, tuple(rows), failed, tuple(warnings(environment, rows)))


def turns(cases: Sequence[Case], rounds: int) -> int:
    """How many turns, warm-ups among them, a run has."""
    own = sum(case.foreign is None for case in cases)
    return (len(cases) + own) * (rounds + 1)


def _row(rival: _Rival, limits: Limits) -> Row:
    facts, alone = rival.facts, rival.timed(ALONE)
    assert alone is not None
    joules = {source: total / alone.runs for source, total in rival.joules.items()}
    return Row(
        rival.case, facts["version"], rival.process.pid, alone, rival.timed(WHOLE), work_of(rival.case), limits,
        facts["peak_bytes"], facts["bare_bytes"], joules, tuple(facts.get("operators", ())),
    )  # fmt: skip


def warnings(environment: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """What spoils the figures, one line each."""
    found = []
    load, cores = environment["load"], environment["available"]
    if load is not None and load > LOAD * cores:
        found.append(
            f"the load average was {load:.1f} on {cores} core{'s' * (cores > 1)} before the start: something else runs here; trust "
            "ratios and processor times, not milliseconds"
        )
    for row in rows:
        wall, cpu = row.alone.wall_ms, row.alone.cpu_ms
        waited = 1 - cpu.median / wall.median
        if row.case.threads == 1 and waited > WAITED:
            found.append(f"{row.case}: waited {waited:.0%} of its time for a core that something else had")
        elif wall.spread > SPREAD:
            found.append(f"{row.case}: its times are {wall.spread:.0%} apart: something disturbed them")
    return found
