"""The command line, run in this process."""

import contextlib
import io
import signal

import pytest
import torch

from espy import cli
from samples import Outcome


@pytest.fixture
def espy(tmp_path, monkeypatch):
    """Runs a command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    terminate, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()

    def run(*arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run([str(a) for a in arguments])
        return Outcome(code, out.getvalue(), err.getvalue())

    yield run
    signal.signal(signal.SIGTERM, terminate)
    torch.set_num_threads(threads)
