"""What the machine can do at most, measured: multiply-adds and bytes a second with so many threads.

Without a compiler, NumPy's matrix product in float32 stands for a bare loop of fused multiply-adds: it comes close to one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from espy.errors import EngineError
from espy.process import python

SIDE = 768  # of the matrices: large enough for full speed, short enough to fit between two interruptions
COPY_BYTES = 128 << 20  # beyond most caches
SECONDS = 0.5  # that each is repeated for; the shortest run counts
VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
"""By which the libraries behind NumPy take their number of threads, once, when it is imported: one, as the products are spread."""


@dataclass(frozen=True)
class Limits:
    """10⁹ float32 operations a second (a multiply-add is two) and 10⁹ bytes a second (read and written) with `threads`."""

    threads: int
    gflops: float
    gb_s: float

    def arithmetic_ms(self, macs: int) -> float:
        """Milliseconds that so many multiply-accumulates take at least.

        >>> Limits(1, gflops=100.0, gb_s=10.0).arithmetic_ms(1_000_000_000)
        20.0
        """
        return 2 * macs / self.gflops / 1e6

    def memory_ms(self, size: int) -> float:
        """Milliseconds that so many bytes take at least through memory.

        >>> Limits(1, gflops=100.0, gb_s=10.0).memory_ms(200_000_000)
        20.0
        """
        return size / self.gb_s / 1e6


def measure_limits(threads: int) -> Limits:
    """The limits of this machine with so many threads, measured in a process of its own; takes about a second."""
    environment = {**os.environ, **dict.fromkeys(VARIABLES, "1")}
    call = python("espy.ship.limits:main", str(threads))
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"the machine's limits cannot be measured: {(done.stderr.splitlines() or ['?'])[-1]}")
    return Limits(threads, **json.loads(done.stdout))


def main() -> None:
    """In that process: the number of threads as its argument, figures as JSON on stdout."""
    import numpy as np

    threads = int(sys.argv[1])
    a, b = np.random.default_rng(0).random((2, SIDE, SIDE), np.float32)
    products = [np.empty_like(a) for _ in range(threads)]  # one for each: no thread waits for another
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.zeros_like(source)
    parts = [slice(k * COPY_BYTES // threads, (k + 1) * COPY_BYTES // threads) for k in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        multiplied = shortest(threads, lambda: list(pool.map(lambda product: np.matmul(a, b, out=product), products)))
        copied = shortest(threads, lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), parts)))
    print(json.dumps({"gflops": threads * 2 * SIDE**3 / multiplied / 1e9, "gb_s": 2 * COPY_BYTES / copied / 1e9}))


def shortest(threads: int, run: Callable[[], object], seconds: float = SECONDS) -> float:
    """Seconds of the shortest of several runs. On a busy machine no run has its cores to itself: then processor time, shared
    among the threads, is shorter than wall time, and counts.
    """
    run()
    found, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or found == float("inf"):
        began, busy = time.perf_counter(), time.process_time()
        run()
        found = min(found, time.perf_counter() - began, (time.process_time() - busy) / threads)
    return found
