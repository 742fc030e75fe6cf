"""The machine that a figure was measured on."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from espy.version import VERSION

CPUINFO = Path("/proc/cpuinfo")
FLAGS = re.compile(r"avx\w*|amx\w*|fma|f16c|sse4_2|neon|asimd\w*|sve\w*|bf16|i8mm|hypervisor")
"""Of a processor's flags those that decide how fast networks run, and whether it is a virtual machine's."""


def processor() -> str:
    """The processor's name as the system says it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def flags() -> list[str]:
    """What the processor can do of `FLAGS`, sorted; nothing where the system does not say."""
    said = (_cpuinfo("flags") or _cpuinfo("Features")).split()  # x86, Arm
    return sorted(flag for flag in said if FLAGS.fullmatch(flag))


def available_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> float | None:
    """Processes that ran or wanted to, on average over the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def stamp() -> dict[str, Any]:
    """Where and with what something is measured: time, versions, processor, its flags, cores, load."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "espy": VERSION, "python": platform.python_version(),
        "numpy": np.__version__, "system": platform.system(), "kernel": platform.release(), "machine": platform.machine(),
        "processor": processor(), "flags": flags(), "cores": os.cpu_count(), "available": available_threads(),
        "load": load_average(),
    }  # fmt: skip


def _cpuinfo(key: str) -> str:
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key), "")
