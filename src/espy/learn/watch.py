"""What a run tells those who look on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a run is. `loss`: mean over the epoch so far; `score`: the `metric` of the last validation, None before one."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    metric: str
    score: float | None
    images_s: float
    eta_s: float


class Watch:
    """Who looks on; this one does not."""

    def say(self, line: str) -> None:
        """A remark."""

    def look(self, name: str) -> None:
        """A picture was checked or decoded."""

    def progress(self, progress: Progress) -> None:
        """A step was done."""
