"""Joules as the machine's own counters see them: the processor's (RAPL) and those of NVIDIA GPUs (NVML).

A counter sees all that its part draws, idle current and other work too.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class Counter:
    """A counter of joules that only rises, but for starting again from 0 at `range_j`."""

    source: str
    read: Callable[[], float]
    range_j: float = float("inf")

    def spent(self, before: float, after: float) -> float:
        """Joules between two readings.

        >>> Counter("processor", float, range_j=100.0).spent(90.0, 5.0)
        15.0
        """
        return after - before if after >= before else after - before + self.range_j


class Meter:
    """Several counters, read together."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self.counters = counters
        self._last = [counter.read() for counter in counters]

    def lap(self) -> dict[str, float]:
        """Joules by source since the last lap; nothing where there are no counters."""
        now = [counter.read() for counter in self.counters]
        joules: dict[str, float] = defaultdict(float)
        for counter, before, after in zip(self.counters, self._last, now, strict=True):
            joules[counter.source] += counter.spent(before, after)
        self._last = now
        return dict(joules)


def counters() -> list[Counter]:
    """Those that can be read here."""
    return [*rapl(), *nvml()]


def rapl(root: Path | None = None) -> list[Counter]:
    """One a processor package; empty where there are none or they may not be read (they are the superuser's on most systems).

    Zones inside a package and the platform's, which holds it, would count the same joules again.
    """
    found = []
    for zone in sorted((root or POWERCAP).glob("intel-rapl:*")):  # AMD's too
        with contextlib.suppress(OSError, ValueError):
            if (zone / "name").read_text().startswith("package"):
                range_j = _microjoules(zone / "max_energy_range_uj")
                counter = Counter("processor", lambda path=zone / "energy_uj": _microjoules(path), range_j)  # type: ignore[misc]
                counter.read()
                found.append(counter)
    return found


def _microjoules(path: Path) -> float:
    return int(path.read_text()) / 1e6


def nvml() -> list[Counter]:
    """One a GPU that counts joules, by the driver's own library; empty where there is none."""
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return []
    number = ctypes.c_uint()
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(number)):
        return []
    found = []
    for index in range(number.value):
        device, total = ctypes.c_void_p(), ctypes.c_ulonglong()

        def read(device: ctypes.c_void_p = device, total: ctypes.c_ulonglong = total) -> float:
            if library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(total)):
                raise OSError("NVML gave no energy")
            return total.value / 1e3  # it counts millijoules

        with contextlib.suppress(OSError):
            if not library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
                read()
                found.append(Counter("gpu", read))
    return found
