"""The CPU engine of espy, a shared library: espy loads it as its engine `native`."""

from pathlib import Path

__version__ = "0.1.0"


def library() -> Path:
    """The shared library; `espy_engine.h` describes it. Raises ImportError where it was installed without a C++ compiler."""
    for path in Path(__file__).parent.glob("libespy_engine.*"):
        return path
    raise ImportError(
        "espy-engine was installed without its library, as there was no C++ compiler: install one, then espy-engine again"
    )
