"""What exporters are shown of a network: an example, and which of its sides vary."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from espy.header import Header


def example(header: Header, size: tuple[int, int] | None, pictures: int = 2) -> Tensor:
    """uint8 [N, H, W, 3] of zeros: of `size`, or of one that the header's `sizes` allows."""
    multiple = header.preprocess.multiple
    height, width = size or (4 * multiple, 5 * multiple) if multiple > 1 else size or (64, 96)
    if header.task == "detect":
        height, width = header.preprocess.size  # the priors are of this size
    return torch.zeros(pictures, height, width, 3, dtype=torch.uint8)


def varying(header: Header, size: tuple[int, int] | None) -> dict[int, Any]:
    """Dimension of the example → how it varies: the number of pictures always, the sides unless there is one size alone."""
    shapes: dict[int, Any] = {0: Dim("n")}
    if header.task != "detect" and size is None:
        multiple = header.preprocess.multiple
        shapes |= {
            place: multiple * Dim(name, min=1) if multiple > 1 else Dim(name, min=17)
            for place, name in ((1, "h"), (2, "w"))
        }
    return shapes


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters' progress notes, warnings and remarks on packages that are not needed, kept off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
