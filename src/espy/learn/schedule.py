"""The learning rate as a formula of the step; nothing to store."""

from __future__ import annotations

from math import cos, pi


def factor(step: int, steps: int, *, warm_up: int = 0, schedule: str = "cosine", power: float = 0.9) -> float:
    """What the highest rate is multiplied by in step 0, 1, ... of `steps`.

    Rises evenly over `warm_up` steps, reaching 1 at the last of them; then falls from 1 towards 0: `cosine`
    (1 + cos π·t)/2 (Loshchilov and Hutter 2017), or `poly` (1 − t)^power, t = 0..1 the share of the remaining steps done.

    >>> [round(factor(step, 6, warm_up=2), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warm_up:
        return (step + 1) / warm_up
    t = (step - warm_up) / max(1, steps - warm_up)
    return (1 + cos(pi * t)) / 2 if schedule == "cosine" else (1 - t) ** power
