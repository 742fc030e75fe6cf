"""Losses over labelled pixels, pictures or priors, as (sum, count) pairs.

A loss is sum / count with a count that depends on the truth alone. So the mean over a batch is the same number however the
batch is divided into parts and processes: add up the counts first, then every part's sum / count.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
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


class Pixels:
    """Segmentation: cross_entropy · CE + dice · Dice, of logits [N, C, H, W] float32 against truth [N, H, W] uint8, 255 void.

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
        logits = logits.float()
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


class Pictures:
    """Classification: cross-entropy of logits [N, C] float32 against what each picture shows, float32 [N, C], shares of classes.

    Mean of −Σ_c w_c·y_c·log p_c over the pictures, divided by the mean of Σ_c w_c·y_c. y: the shares, smoothed as in `Pixels`.
    """

    def __init__(self, *, smoothing: float = 0.0, weights: Tensor | None = None):
        self.smoothing, self.weights = smoothing, weights

    def _shares(self, truth: Tensor) -> Tensor:
        y = truth * (1 - self.smoothing) + self.smoothing / truth.shape[1]
        return y if self.weights is None else y * self.weights

    def counts(self, truth: Tensor) -> Tensor:
        """float32 [1]: what the sum is divided by."""
        weighed = truth if self.weights is None else truth * self.weights
        return weighed.sum()[None]

    def sums(self, logits: Tensor, truth: Tensor) -> Tensor:
        """float32 [1]."""
        return -(self._shares(truth) * logits.float().log_softmax(1)).sum()[None]

    def loss(self, sums: Tensor, counts: Tensor) -> Tensor:
        """The loss; 0 without pictures."""
        return (sums / counts.clamp(min=1e-12)).sum()


class Priors:
    """Detection (SSD): cross-entropy over things and the hardest background, smooth L1 of the offsets of things.

    Of (scores [N, P, 1 + kinds], offsets [N, P, 4]) against what each prior is to learn, [N, P, 5] of `espy.priors.match`. Of each
    picture's background as many priors count as `negatives` times its things, those whose −log p(background) is largest. Both
    sums are divided by the number of things in the batch, at least 1. `boxes`: weight of the second.
    """

    def __init__(self, *, negatives: float = 3.0, boxes: float = 1.0):
        self.negatives, self.boxes = negatives, boxes

    def counts(self, truth: Tensor) -> Tensor:
        """float32 [1]: the things."""
        return (truth[..., 0] > 0).sum().float()[None]

    def sums(self, outputs: tuple[Tensor, Tensor], truth: Tensor) -> Tensor:
        """float32 [2]: of cross-entropy and of smooth L1."""
        scores, offsets = outputs[0].float(), outputs[1].float()
        kinds = truth[..., 0].long()
        things, background = kinds > 0, kinds == 0
        losses = F.cross_entropy(scores.transpose(1, 2), kinds.clamp(min=0), reduction="none")  # [N, P]
        with torch.no_grad():
            hardness = losses.masked_fill(~background, -1.0)  # of background the loss is −log p(background)
            rank = hardness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            most = (self.negatives * things.sum(1, keepdim=True)).floor()
            kept = things | (background & (rank < most))
        away = F.smooth_l1_loss(offsets, truth[..., 1:], reduction="none").sum(2)
        return torch.stack([(losses * kept).sum(), (away * things).sum()])

    def loss(self, sums: Tensor, counts: Tensor) -> Tensor:
        """The loss."""
        return (sums * sums.new_tensor([1.0, self.boxes])).sum() / counts.clamp(min=1).to(sums).sum()


def mixed(
    images: Tensor, truth: Tensor, *, mixup: float, cutmix: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Pictures of a batch mixed with their neighbours', and the classes' shares with them.

    `images` uint8 [N, H, W, 3], `truth` float32 [N, C]. mixup (Zhang et al. 2018): λ·one + (1 − λ)·other, float32; cutmix (Yun et
    al. 2019): a rectangle of share 1 − λ taken from the other, λ then by its pixels; λ ~ Beta(a, a) with a the choice's value.
    Where both are on, one of them by lot; 0 is off.
    """
    choices = [(name, a) for name, a in (("mixup", mixup), ("cutmix", cutmix)) if a > 0]
    if not choices or len(images) < 2:
        return images, truth
    name, a = choices[rng.integers(len(choices))]
    share = float(rng.beta(a, a))
    other = images.roll(1, 0)
    if name == "mixup":
        images = share * images.float() + (1 - share) * other.float()
    else:
        h, w = images.shape[1:3]
        side = (1 - share) ** 0.5
        y, x = rng.integers(h), rng.integers(w)
        top, bottom = max(0, round(y - side * h / 2)), min(h, round(y + side * h / 2))
        left, right = max(0, round(x - side * w / 2)), min(w, round(x + side * w / 2))
        images = images.clone()
        images[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (h * w)
    return images, share * truth + (1 - share) * truth.roll(1, 0)
