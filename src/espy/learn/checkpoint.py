"""A checkpoint: tensors and a state in one file, whole or not there.

Safetensors with the state as JSON among its metadata and a checksum over both; nothing is unpickled. The file is written
beside, flushed to disk and renamed, so that a kill at any moment leaves the last whole one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from espy.errors import ModelError
from espy.header import digest, in_order
from espy.output import write_bytes

KEY, SUM = "espy_run", "espy_sha256"
FORMAT = 1


def write(path: Path, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Replace the checkpoint at `path`. Raises OutputError, the old one kept, where the disk is full or refuses."""
    text = json.dumps({"format": FORMAT, **state}, sort_keys=True)
    arrays = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    write_bytes(path, in_order(save(arrays, {KEY: text, SUM: digest(text, arrays)})), force=True)


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and state of a checkpoint. Raises ModelError, one line, where it is damaged or no checkpoint."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise ModelError(f"{path}: no checkpoint of a run: give --resume the run's own folder")
            state = json.loads(metadata[KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"{path}: damaged or truncated ({reason}): put back a copy, or start anew") from None
    if metadata.get(SUM) != digest(metadata[KEY], arrays):
        raise ModelError(f"{path}: damaged: its content does not match its checksum; put back a copy, or start anew")
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise ModelError(f"{path}: format {found!r} is unknown, this version reads {FORMAT}")
    return arrays, state
