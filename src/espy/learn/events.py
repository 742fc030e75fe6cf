"""What TensorBoard shows of a run: a file a start, each record on disk when the call returns.

TensorBoard's own writer keeps records in memory for two minutes, where a kill loses them, and tells a full disk from a thread
of its own, as a traceback.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

VERSION = "brain.Event:2"  # of the format


class Events:
    """A new file of events in `folder`, behind those of earlier starts; what they tell of steps after `step` is taken back.

    Raises OSError where it cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{time.time_ns()}").open("xb")  # read in the order of their names
        self._records = RecordWriter(self._file)
        self._add(file_version=VERSION)
        self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name."""
        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step=step, summary=Summary(value=found))

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        """An RGB picture."""
        packed = io.BytesIO()
        image.save(packed, "PNG")
        shown = Summary.Image(
            height=image.height, width=image.width, colorspace=3, encoded_image_string=packed.getvalue()
        )
        self._add(step=step, summary=Summary(value=[Summary.Value(tag=name, image=shown)]))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, **what: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **what).SerializeToString())
        self._records.flush()
