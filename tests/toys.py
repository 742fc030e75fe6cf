"""Engines of known speed, for `.toy` files: such a file says, as JSON, what each of them does with it.

{"swift": {"ms": 2}, "slow": {"ms": 30, "fails": "opening"}}; every opening is noted in NAME.log beside it.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from espy.errors import EngineError
from espy.header import Card, Header, Preprocess
from espy.labels import plain
from espy.run import choice
from espy.run.engines import ENGINES
from espy.spec import make

SIZE = (32, 48)


def header():
    """A segmentation's, 5 classes at 32x48."""
    network = make("espnet", widths=(8, 16, 24), branches=2, alpha2=1, alpha3=1, classes=5)
    return Header.of(network, plain(5), Preprocess(SIZE, multiple=1), Card())


class Toy:
    version, task = "1", "segment"

    def __init__(self, path, *, threads, precision):
        self.does, self.precision = json.loads(Path(path).read_text())[self.name], precision
        with Path(path).with_suffix(".log").open("a") as log:
            log.write(f"{self.name} {os.getpid()} {os.environ.get('ESPY_ENGINE')} {threads} {precision}\n")
        if self.does.get("fails") == "opening":
            raise EngineError("cannot open it")
        self.runs = 0

    def run(self, image, *, scores=False):
        self.runs += 1
        fails = self.does.get("fails")
        if fails == "hanging" and self.runs > 1:
            time.sleep(60)
        if fails == "dying" and self.runs > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if fails == "raising":
            raise RuntimeError("out of order\nsecond line")
        print("a library that prints")
        time.sleep(self.does["ms"] / 1e3)
        return {"mask": np.zeros(image.shape[:3], np.uint8)}

    def close(self):
        pass


class Steady(Toy):
    name = "steady"


class Swift(Toy):
    name = "swift"


class Slow(Toy):
    name = "slow"


ROWS = {
    kind.name: (f"toys:{kind.__name__}", f"the-{kind.name}-toy", (".toy",), "toys") for kind in (Steady, Swift, Slow)
}
HERE = "espy.run.engines.toys"


def install():
    """Put them among the engines of this process."""
    ENGINES.update(ROWS)
    sys.modules[HERE] = sys.modules[__name__]


def main():
    """What answers in a process that measures."""
    install()
    choice.main()
