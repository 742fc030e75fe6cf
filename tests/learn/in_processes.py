"""What each process of test_processes.py does: the cases in order, and a file of what came of them."""

import contextlib
import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from espy import EspyError, cli, train
from espy.learn.watch import Watch

RANK = int(os.environ.get("RANK", 0))


class Recorder(Watch):
    """The loss after every step, as the epoch's mean so far, and something done at one of them."""

    def __init__(self, at=0, act=lambda: None):
        self.losses, self.at, self.act = [], at, act

    def progress(self, progress):
        self.losses.append(progress.loss)
        if progress.step == self.at:
            self.act()


class Faulty(Watch):
    """Another machine's pictures are damaged."""

    def look(self, name):
        raise EspyError(f"{name}: damaged")


def followed(recipe, folder, watch=None, **options):
    """What became of a run."""
    watch = watch or Recorder()
    try:
        run = train(recipe, folder=folder, watch=watch, **options)
    except EspyError as error:
        return {"error": str(error)}
    except SystemExit as end:
        return {"code": end.code}
    return {"losses": getattr(watch, "losses", []), "lines": len(run.metrics)}


def commanded(*arguments):
    """What a command line left, in one process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(list(arguments))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def watch_writes(found):
    """Notes in `found` every file and folder that this process makes, changes or takes away below where it stands."""
    here = Path.cwd()

    def hook(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            writes = set(mode or "") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR)
        elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"):
            path, writes = arguments[0], True
        else:
            return
        if writes and not isinstance(path, int) and Path(os.fsdecode(path)).absolute().is_relative_to(here):
            found.append(os.fsdecode(path))

    sys.addaudithook(hook)


def cases():
    """Name and result of every case."""
    stop = Recorder(3, lambda: os.kill(os.getpid(), signal.SIGTERM) if RANK == 1 else None)
    spoil = Recorder(1, lambda: Path("spoilt/best.safetensors").mkdir() if RANK == 0 else None)
    yield "whole", followed("r.toml", "whole")
    yield "refused", followed("r.toml", "whole")
    yield "stopped", followed("r.toml", "stopped", stop)
    yield "resumed", followed("r.toml", "stopped", resume=True)
    with mock.patch("espy.learn.loop.time", SimpleNamespace(monotonic=lambda: time.monotonic() * (1 + 1000 * RANK))):
        yield "clocks", followed("r.toml", "clocks", save_minutes=0.01)
    yield "one faulty", followed("r.toml", "faulty", Faulty() if RANK == 1 else None)
    yield "spoilt", followed("r.toml", "spoilt", spoil)
    yield "not finite", followed("r.toml", "infinite", rate=1e30, clip=0.0)
    yield "no init", followed("r.toml", "lacking", init="nowhere")
    yield "command", commanded("train", "r.toml", "--out", "commanded")
    yield "taken", commanded("train", "r.toml", "--out", "whole")
    yield "other recipe", commanded("train", "r.toml", "rate=0.5", "--out", "whole", "--resume")
    yield "unknown field", commanded("train", "r.toml", "epoch=3", "--out", "unknown")
    yield "no set", commanded("train", "r.toml", "set=folder:none", "--out", "unknown")
    yield "profile", commanded("train", "r.toml", "--profile")


if __name__ == "__main__" and sys.argv[1] == "train":
    cli.main()
elif __name__ == "__main__":
    written: list[str] = []
    watch_writes(written)
    results = dict(cases()) | {"written": written[:]}
    Path(sys.argv[1], f"{RANK}.json").write_text(json.dumps(results))
