"""What tests that build the CPU engine share."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[1] / "native"
PLACES = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
)  # make test-native installs cmake


def tool(name):
    """Where a program lies; without it the test is skipped."""
    return shutil.which(name, path=PLACES) or pytest.skip(f"{name} is not installed")


def printed(*command, **kwargs):
    """What a command prints; where it fails, so does the test, with all that it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200, **kwargs)
    assert done.returncode == 0, f"{done.args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
