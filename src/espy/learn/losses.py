"""Losses over labelled pixels, as (sum, count) pairs.

A loss is sum / count with a count that depends on the truth alone. So the mean over a batch is the same number however the
batch is divided into parts and processes: add up the counts first, then every part's sum / count.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from espy.data.masks import VOID

ENET = 1.10
"""The constant of the class weights (the authors' training code, after ENet, section 5.2)."""

DICE_EPS = 1.0  # pixels; keeps the ratio of a class of a few pixels smooth


def frequency_weights(pixels: Sequence[int]) -> list[float]:
    """One weight a class, 1 / ln(1.1 + its share of the labelled pixels), scaled to mean 1.

    >>> [round(w, 3) for w in frequency_weights([90, 10])]
    [0.417, 1.583]
    """
    shares = torch.tensor(pixels, dtype=torch.float64) / max(1, sum(pixels))
    weights = 1 / torch.log(ENET + shares)
    return [float(w) for w in weights / weights.mean()]


class Objective:
    """cross_entropy · CE + dice · Dice, of logits [N, C, H, W] float32 against truth [N, H, W] uint8, 255 void.

    CE: mean of −w_t·Σ_c y_c·log p_c over the labelled pixels, divided by the mean of w_t; with `ohem` < 1 over that share of
    each picture's labelled pixels whose loss is largest (Wu et al. 2016; rounded up), divided by their number alone.
    Dice: 1 − (2·Σ p·y + 1) / (Σ p + Σ y + 1), mean over the classes that a picture holds, then over the pictures.
    `weights`: w, float32 [C]. `smoothing` ε: in CE y is 1 − ε + ε/C at the true class t and ε/C elsewhere.
    """

    def __init__(
        self, *, cross_entropy: float = 1.0, dice: float = 0.0, ohem: float = 1.0, smoothing: float = 0.0,
        weights: Tensor | None = None,
    ):  # fmt: skip
        self.shares = (cross_entropy, dice)
        self.ohem, self.smoothing = ohem, smoothing
        self.weights = None if weights is None else F.pad(weights, (0, VOID + 1 - len(weights)))  # void weighs 0

    def counts(self, truth: Tensor) -> Tensor:
        """float32 [2]: what the sums of CE and Dice are divided by."""
        valid = truth != VOID
        if self.ohem < 1:
            pixels = valid.new_tensor(sum(self._hardest(valid)), dtype=torch.float32)
        elif self.weights is not None:
            pixels = self.weights[truth.long()].sum()
        else:
            pixels = valid.sum()
        return torch.stack([pixels.float(), valid.flatten(1).any(1).sum().float()])

    def sums(self, logits: Tensor, truth: Tensor) -> Tensor:
        """float32 [2]: the sums of CE and Dice, 0 where the loss has no share of them."""
        zero = logits.new_zeros(())
        ce = self._cross_entropy(logits, truth) if self.shares[0] else zero
        return torch.stack([ce, self._dice(logits, truth) if self.shares[1] else zero])

    def loss(self, sums: Tensor, counts: Tensor) -> Tensor:
        """The loss; 0 where no pixel is labelled."""
        return (sums / counts.clamp(min=1e-12).to(sums) * sums.new_tensor(self.shares)).sum()

    def _cross_entropy(self, logits: Tensor, truth: Tensor) -> Tensor:
        # [N, H, W], 0 where void; summed below, as its own sum on CUDA differs from run to run
        losses = F.cross_entropy(
            logits, truth.long(), ignore_index=VOID, label_smoothing=self.smoothing, reduction="none"
        )
        if self.weights is not None:
            losses = losses * self.weights[truth.long()]
        if self.ohem < 1:
            numbers = self._hardest(truth != VOID)
            losses = torch.cat([one.flatten().topk(k).values for one, k in zip(losses, numbers, strict=True)])
        return losses.sum()

    def _hardest(self, valid: Tensor) -> list[int]:
        """How many pixels of each picture count."""
        return [ceil(self.ohem * pixels) for pixels in valid.flatten(1).sum(1).tolist()]

    def _dice(self, logits: Tensor, truth: Tensor) -> Tensor:
        valid = truth != VOID
        p = logits.softmax(1) * valid[:, None]
        y = torch.zeros_like(p).scatter_(1, torch.where(valid, truth, 0).long()[:, None], valid[:, None].to(p))
        overlap, size, there = (p * y).sum((2, 3)), (p + y).sum((2, 3)), y.amax((2, 3))
        of_class = 1 - (2 * overlap + DICE_EPS) / (size + DICE_EPS)  # [N, C]
        return ((of_class * there).sum(1) / there.sum(1).clamp(min=1)).sum()
