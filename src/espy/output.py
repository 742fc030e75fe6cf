"""How files are written: whole or not at all, and never over another one unasked."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from espy.errors import OutputError

PART, ENDING = ".espy-", ".part"  # what a file is called until it is whole


@contextlib.contextmanager
def writing(path: str | Path, *, force: bool = False) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` when the block ends well and vanishes when it does not.

    Folders are made. Raises OutputError where `path` exists and `force` is not given, or cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, writing(Path(folder) / "a") as file:
    ...     _ = file.write(b"whole")
    """
    path = Path(path)
    part = path.with_name(f"{PART}{secrets.token_hex(8)}{ENDING}")
    try:
        refuse_existing(path, force)
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(part, path, force)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def is_part(path: Path) -> bool:
    """Whether this is half a file, which stays where the process that wrote it was killed.

    >>> is_part(Path("out/.espy-0f3a.part")), is_part(Path("out/a.part"))
    (True, False)
    """
    return path.name.startswith(PART) and path.name.endswith(ENDING)


def refuse_existing(path: Path, force: bool) -> None:
    """Raise OutputError where something stands at `path` and may not be replaced."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, a file was to be written there: choose another output")
    if not force and path.exists():
        raise OutputError(f"{path}: exists already and is kept: choose another output, or overwrite it with --force")


def _publish(part: Path, path: Path, force: bool) -> None:
    if force:
        part.replace(path)
        return
    try:
        os.link(part, path)  # fails where another process was faster; replacing would not
    except FileExistsError:
        raise OutputError(f"{path}: exists already and is kept: another process wrote it") from None
    except OSError:  # a file system without hard links
        part.replace(path)


def shown(path: str | Path) -> str:
    """A path as text that any file or terminal takes: bytes of a name that are no Unicode become a sign for it."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def write_bytes(path: str | Path, data: bytes, *, force: bool = False) -> None:
    """`data` as the file `path`, by `writing`."""
    with writing(path, force=force) as file:
        file.write(data)
