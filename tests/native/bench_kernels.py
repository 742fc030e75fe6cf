"""Each kind of unit of the CPU engine alone, at sizes of real networks: `make bench MEASURES=kernels`.

A kind's benchmark has the name of its test in test_kernels.py. One thread; the time is the engine's own. More than the limit
is reached by small maps, as memory's is that of maps which lie in no cache, and by a 3x3 that Winograd's form takes half of the
counted multiply-adds.
"""

from espy.run.units import stages_of
from espy.ship.limits import measure_limits
from programs import Opened, Sketch
from samples import noise

SCALES = (5, 2, 1, 3, 2, 1, 1, 1, 2, 1, 10)  # 2, 1.5, 1, 0.5 and 0.1
# kind: (sides of the picture, channels of FIRST's map 0 at half of them, the units behind it, the measured one last)
BENCHMARKS = {
    # ESPNetv2, s = 2.0, 512 x 1024
    "FIRST": (512, 1024, 32, []),
    "POOL": (512, 1024, 3, [("POOL", 1, 2)]),
    "EESP": (128, 256, 256, [("EESP", 0, 0, 64, 4, 3, 1, 2, 3, 4, 1, 1, 0)]),
    "DOWN": (512, 1024, 32, [("POOL", 1, 2), ("DOWN", 0, 2, 3, 24, 4, 3, 1, 2, 3, 4, 1, 1)]),
    "MERGE": (512, 1024, 32, [("POOL", 0, 2), ("MERGE", 0, 2, 3, 32, 32, 10)]),
    "PYRAMID": (256, 512, 10, [("PYRAMID", 0, 2, 32, *SCALES)]),
    "PYRAMID + SEGMENT": (512, 1024, 10, [("PYRAMID", 0, 2, 20, *SCALES), ("SEGMENT", 2, 1)]),
    "SEGMENT": (512, 1024, 20, [("SEGMENT", 0, 1)]),
    # ESPNet, 512 x 1024
    "CONV": (512, 1024, 36, [("CONV", 1, 0, 2, 20, 3, 1, 1, 1)]),
    "ESP": (128, 256, 128, [("ESP", 1, 0, 2, 25, 28, 5, 3, 3, 1, 1, 1, 0)]),
    "AFFINE": (256, 512, 131, [("AFFINE", 1, 0, 2)]),
    "UP2": (512, 1024, 20, [("POOL", 0, 2), ("UP2", 2, 0, 3, 20)]),
    "SEGMENT2": (512, 1024, 20, [("SEGMENT2", 0, 20)]),
    # a classifier of 224 x 224, and detectors of 320 x 320
    "MEAN": (14, 14, 1024, [("MEAN", 0, 2)]),
    "RESIZE": (20, 20, 204, [("POOL", 0, 2), ("RESIZE", 2, 0, 3)]),
    "SCORES": (80, 80, 48, [("SCORES", 1, 0)]),
}


def sketched(kind):
    """A kind's program, which ends in the mask or in scores, and the sides of its picture."""
    height, width, channels, units = BENCHMARKS[kind]
    sketch = Sketch(0).first(channels, sums=1)
    for unit in units:
        sketch.add(*unit)
    ended = kind == "SCORES" or "SEGMENT" in kind
    return sketch.program() if ended else sketch.shown(1), (height, width)


def measured(functions, kind, runs):
    """The unit, as espy.run.units counts it, and its fewest seconds of several runs."""
    program, size = sketched(kind)
    picture = noise(*size)
    unit, places = [stage for stage in stages_of(program.units, *size) if stage[0].kind == kind][-1]
    with Opened(functions, program) as engine:
        return unit, min(engine.seconds(picture)[places].sum() for _ in range(runs))


def bench(functions, runs=30):
    """A line for each: milliseconds, what it computes and moves a second, and the least time for that as a share of its own."""
    limits = measure_limits(1)
    for kind in BENCHMARKS:
        unit, seconds = measured(functions, kind, runs)
        ms = 1e3 * seconds
        share = max(limits.arithmetic_ms(unit.macs), limits.memory_ms(unit.traffic)) / ms
        print(
            f"kernels: {kind}: {unit.made}: {ms:.3f} ms, {unit.macs / ms / 1e6:.1f} GMAC/s, {unit.traffic / ms / 1e6:.1f} GB/s, "
            f"{share:.0%} of the limit",
            flush=True,
        )
    print(f"kernels: limits: {limits.gflops / 2:.1f} GMAC/s, {limits.gb_s:.1f} GB/s")
