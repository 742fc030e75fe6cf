"""Weights in eight bits: whole multiples, −127 to 127, of one step for each output channel; vectors in sixteen, as float16.

Rounded once, they are kept exactly wherever they are stored: a quarter of the bytes, and the same float32 when they are read.
"""

from __future__ import annotations

import numpy as np

MOST = 127
STEP_BITS = 16  # significant bits of a step: with seven of a multiple, every product is a float32 exactly


def rounded(weights: np.ndarray) -> np.ndarray:
    """float32 [n, ...] → the nearest weights that eight bits hold, a step for each of the n channels; [n] → the nearest float16,
    unless one is lost among float16's smallest.
    """
    if weights.ndim == 1:
        return weights.astype(np.float16).astype(np.float32) if _normal(weights) else weights
    share, exponent = np.frexp(_largest(weights).astype(np.float64) / MOST)
    step = np.ldexp(np.round(share * 2**STEP_BITS), exponent - STEP_BITS)
    multiples = np.round(np.divide(weights, step, out=np.zeros(weights.shape), where=step > 0))
    return np.asarray(np.clip(multiples, -MOST, MOST) * step, np.float32)


def packed(weights: np.ndarray, error: float = 0.0) -> tuple[np.ndarray, np.ndarray] | None:
    """Multiples, int8 [n, ...], and steps, float32 [n], of weights that eight bits hold; None where they do not, or nothing is won.

    `error`: how far off a weight may be, of the largest in its channel.
    """
    if weights.dtype != np.float32 or weights.ndim < 2 or 2 * (weights.size + 4 * len(weights)) >= weights.nbytes:
        return None
    largest = _largest(weights)
    step = largest / np.float32(MOST)
    with np.errstate(invalid="ignore"):
        multiples = np.round(np.divide(weights, step, out=np.zeros_like(weights), where=step > 0))
        if not (np.abs(multiples * step - weights) <= error * largest).all():
            return None
    return multiples.astype(np.int8), step.reshape(-1)


def unpacked(multiples: np.ndarray, step: np.ndarray) -> np.ndarray:
    """float32 [n, ...]: the weights. Raises ValueError where there is not a step for each channel."""
    if multiples.dtype != np.int8 or step.dtype != np.float32 or step.shape != multiples.shape[:1]:
        raise ValueError("weights in eight bits are int8 [n, ...] with float32 [n] beside them")
    return multiples.astype(np.float32) * step.reshape(-1, *[1] * (multiples.ndim - 1))


def half(vector: np.ndarray) -> np.ndarray:
    """A float32 vector as float16 where that loses nothing, else as it is."""
    if vector.ndim != 1 or vector.dtype != np.float32 or not _normal(vector):
        return vector
    short = vector.astype(np.float16)
    return short if np.array_equal(short.astype(np.float32), vector) else vector


def _normal(vector: np.ndarray) -> bool:
    """Whether every value is 0 or among float16's numbers of full precision."""
    limits, size = np.finfo(np.float16), np.abs(vector)
    return bool(((size == 0) | ((size >= limits.tiny) & (size <= limits.max))).all())


def _largest(weights: np.ndarray) -> np.ndarray:
    """[n, 1, ...]: the largest absolute value of each channel."""
    return np.asarray(np.abs(weights).max(axis=tuple(range(1, weights.ndim)), keepdims=True))
