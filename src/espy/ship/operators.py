"""Where an engine's time goes, operator by operator, as its own profiler says."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from espy.errors import EngineError

RUNS = 5


def find(
    engine: str, path: Path, threads: int, precision: str, feed: dict[str, np.ndarray], run: Callable[[], Any]
) -> list[dict[str, Any]]:
    """Each kind of operator with its `calls` a run, `ms` a run and `share` of all, the longest first.

    The profilers themselves take time, so that sums are above what a run takes without. Of the native engine: its units, by kind
    and what they make, with the `macs` and the `traffic` (bytes) of all calls.
    """
    if engine == "native":
        return _of_native(path, threads, feed)
    if engine == "onnxruntime":
        nodes = _of_onnxruntime(path, threads, feed)
    elif engine == "openvino":
        nodes = _of_openvino(path, threads, precision, feed)
    elif engine in ("torch", "pt2"):
        nodes = _of_torch(run)
    else:
        raise EngineError(f"engine {engine} does not tell its operators: leave out --profile")
    calls: dict[str, float] = defaultdict(float)
    total: dict[str, float] = defaultdict(float)
    for kind, times, ms in nodes:
        calls[kind] += times
        total[kind] += ms
    return _longest_first([{"operator": kind, "calls": calls[kind], "ms": total[kind]} for kind in total])


def _longest_first(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    whole = sum(one["ms"] for one in found) or 1.0
    return [one | {"share": one["ms"] / whole} for one in sorted(found, key=lambda one: -one["ms"])]


Node = tuple[str, float, float]  # kind of operator, calls a run, milliseconds a run


def _of_onnxruntime(path: Path, threads: int, feed: dict[str, np.ndarray]) -> list[Node]:
    from espy.run.engines.onnxruntime import session_for

    ms: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        session = session_for(path, threads, next(iter(feed.values())).shape, profile=Path(folder) / "run")
        for _ in range(RUNS):
            session.run(None, feed)
        for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                ms[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    # the median, which the first, cold run hardly moves
    return [(kind, len(each) / RUNS, statistics.median(each) * len(each) / RUNS) for (kind, _), each in ms.items()]


def _of_openvino(path: Path, threads: int, precision: str, feed: dict[str, np.ndarray]) -> list[Node]:
    from espy.run.engines.openvino import compiled, read_model

    picture = next(iter(feed.values()))
    model = compiled(read_model(path), path, threads, precision, picture.shape, PERF_COUNT="YES")
    request = model.create_infer_request()

    def means(runs: int) -> Any:
        for _ in range(runs):
            request.infer([picture])
        return request.get_profiling_info()  # of each node the mean over all runs so far

    first, all_of_them = means(1), means(RUNS)
    return [
        (node.node_type, 1.0, max(0.0, 1e3 * ((RUNS + 1) * node.real_time - cold.real_time).total_seconds() / RUNS))
        for cold, node in zip(first, all_of_them, strict=True)
        if node.status == node.Status.EXECUTED
    ]


def _of_torch(run: Callable[[], Any]) -> list[Node]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(RUNS):
            run()
    own = [event for event in profiler.key_averages() if event.key.startswith("aten::")]
    return [(event.key, event.count / RUNS, event.self_cpu_time_total / 1e3 / RUNS) for event in own]


def _of_native(path: Path, threads: int, feed: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    from espy.run.engines.native import Native
    from espy.run.units import stages_of

    engine, picture = Native(path, threads=threads, precision="float32"), next(iter(feed.values()))
    stages = stages_of(engine.program.units, *picture.shape[1:3])
    runs = np.zeros((1 + RUNS, sum(len(places) for _, places in stages)))
    for seconds in runs:
        engine.run(picture, seconds=seconds)
    engine.close()
    found: dict[str, dict[str, Any]] = {}
    each = 1e3 * np.median(runs[1:], axis=0)
    for unit, places in stages:
        ms = each[places].sum()
        name = f"{unit.kind} {unit.made}"
        one = found.setdefault(name, {"operator": name, "calls": 0.0, "ms": 0.0, "macs": 0, "traffic": 0})
        for key, value in (("calls", 1.0), ("ms", float(ms)), ("macs", unit.macs), ("traffic", unit.traffic)):
            one[key] += value
    return _longest_first(list(found.values()))
