"""Where a step's time goes."""

from __future__ import annotations

import time
from itertools import islice

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from espy.data.loader import batches
from espy.learn.loop import Loop, resolve
from espy.learn.processes import make_fabric
from espy.learn.recipe import Recipe
from espy.learn.sets import open_sets
from espy.learn.watch import Watch

STEPS = 6
STAGES = ("forward", "loss", "backward", "optimiser", "average")
"""Parts of a step as `Loop.step` marks them; the rest of it is copying and bookkeeping."""


def profile(recipe: Recipe, *, steps: int = STEPS, operators: int = 12) -> str:
    """A table of the stages of a few steps (milliseconds a step, share) and of the operators that take longest.

    Trains on the recipe's set as `train` does, and keeps nothing.
    """
    sets = open_sets(recipe.data, recipe.network.get("task", "segment"))
    recipe = resolve(recipe, sets)
    fabric = make_fabric(recipe)
    loop = Loop(recipe, sets, fabric, None, Watch())
    loop.samples.keep()
    train = recipe.train
    source = batches(loop.samples, loop.order(steps + 1), workers=max(0, train.workers))
    loop.step(list(islice(source, train.accumulate)))  # allocations and kernels' choices
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if fabric.device.type == "cuda" else [])
    waited, began = 0.0, time.perf_counter()
    with torch_profile(activities=activities) as profiler:
        for _ in range(steps):
            asked = time.perf_counter()
            parts = list(islice(source, train.accumulate))
            waited += time.perf_counter() - asked
            loop.step(parts)
            loop.state.step += 1
    if fabric.device.type == "cuda":
        torch.cuda.synchronize()
    whole = time.perf_counter() - began
    found = {event.key: event for event in profiler.key_averages()}
    rows = [("waiting for pictures", waited)]
    rows += [(name, found[f"espy::{name}"].cpu_time_total / 1e6) for name in STAGES if f"espy::{name}" in found]
    rows.append(("the rest", max(0.0, whole - sum(seconds for _, seconds in rows))))
    h, w = recipe.augment.crop or recipe.data.size
    lines = [
        f"{steps} steps of {train.batch} pictures, height {h}, width {w}, on {fabric.device} with {torch.get_num_threads()} "
        f"threads, {fabric._precision.precision}: {steps * train.batch / whole:.2f} images/s (the profiler's own time within)",
        f"{'stage':<24}{'ms a step':>12}{'share':>9}",
    ]
    lines += [f"{name:<24}{1e3 * s / steps:>12.1f}{s / whole:>9.1%}" for name, s in rows]
    own = sorted((e for e in found.values() if e.key.startswith("aten::")), key=lambda e: -e.self_cpu_time_total)
    lines.append(f"{'operator, its own time':<48}{'ms a step':>12}{'calls':>9}")
    lines += [f"{e.key:<48}{e.self_cpu_time_total / 1e3 / steps:>12.1f}{e.count // steps:>9}" for e in own[:operators]]
    return "\n".join(lines)
