"""The losses of classification and detection, against loops, other libraries' and the slopes of both."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from espy.learn.losses import Pictures, Priors, mixed

QUICK = settings(max_examples=60, deadline=None)


# Classification


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 7), st.sampled_from([0.0, 0.1, 0.4]), st.booleans())
@QUICK
def test_of_classes_it_is_torchs_cross_entropy(seed, pictures, classes, smoothing, weighted):
    torch.manual_seed(seed)
    logits, truth = torch.randn(pictures, classes), torch.randint(classes, (pictures,))
    weights = torch.rand(classes) + 0.1 if weighted else None
    goal = Pictures(smoothing=smoothing, weights=weights)
    shares = nn.functional.one_hot(truth, classes).float()
    loss = goal.loss(goal.sums(logits, shares), goal.counts(shares))
    expected = nn.functional.cross_entropy(logits, truth, weight=weights, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_of_shares_it_is_the_mean_of_both_classes_losses():
    torch.manual_seed(0)
    logits, one, two = torch.randn(4, 5), torch.tensor([0, 1, 2, 3]), torch.tensor([4, 4, 0, 3])
    shares = 0.3 * nn.functional.one_hot(one, 5) + 0.7 * nn.functional.one_hot(two, 5)
    goal = Pictures()
    loss = goal.loss(goal.sums(logits, shares), goal.counts(shares))
    losses = [nn.functional.cross_entropy(logits, truth) for truth in (one, two)]
    assert loss.item() == pytest.approx((0.3 * losses[0] + 0.7 * losses[1]).item(), rel=1e-5)


def test_a_batch_in_parts_is_the_batch():
    torch.manual_seed(1)
    logits, shares = torch.randn(6, 4), torch.rand(6, 4).softmax(1)
    goal = Pictures(smoothing=0.1, weights=torch.tensor([1.0, 2.0, 0.5, 1.0]))
    counts = goal.counts(shares[:2]) + goal.counts(shares[2:])
    parts = sum(goal.loss(goal.sums(logits[s], shares[s]), counts) for s in (slice(0, 2), slice(2, 6)))
    assert parts.item() == pytest.approx(goal.loss(goal.sums(logits, shares), goal.counts(shares)).item(), rel=1e-5)


# Mixing pictures


@pytest.mark.parametrize("choice", ["mixup", "cutmix"])
def test_shares_of_a_mixture_are_shares_of_its_pixels(choice):
    """Picture k is all of value 10·k and class k, so a pixel tells where it is from."""
    pictures = (10 * torch.arange(5, dtype=torch.uint8))[:, None, None, None].expand(5, 16, 24, 3).clone()
    truth = torch.eye(5)
    shares = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        images, found = mixed(
            pictures, truth, mixup=0.8 * (choice == "mixup"), cutmix=0.8 * (choice == "cutmix"), rng=rng
        )
        assert torch.allclose(found.sum(1), torch.ones(5), atol=1e-6)
        for k in range(5):
            expected = found[k] @ (10.0 * torch.arange(5))
            assert images[k].float().mean().item() == pytest.approx(expected.item(), abs=1e-3)
            assert set(found[k].nonzero()[:, 0].tolist()) <= {k, (k - 1) % 5}
        if choice == "cutmix":
            assert set(images.unique().tolist()) <= set(range(0, 50, 10))  # no pixel is a blend
        shares.add(round(found[0, 0].item(), 4))
    assert len(shares) > 10
    assert (pictures == (10 * torch.arange(5))[:, None, None, None]).all()  # the batch itself is left as it was


def test_nothing_is_mixed_unasked_and_no_picture_with_itself():
    images, truth, rng = torch.zeros(3, 8, 8, 3, dtype=torch.uint8), torch.eye(3), np.random.default_rng(0)
    assert mixed(images, truth, mixup=0, cutmix=0, rng=rng)[1] is truth
    assert mixed(images[:1], truth[:1], mixup=1, cutmix=1, rng=rng)[1].equal(truth[:1])


# Detection


def by_loops(scores, offsets, truth, negatives, weight):
    """Networks 4: hard negatives per picture by −log softmax of background; sums divided by the positives, at least 1."""
    classification = location = 0.0
    things = 0
    for s, o, t in zip(scores, offsets, truth, strict=True):
        logs = s - np.log(np.exp(s - s.max(1, keepdims=True)).sum(1, keepdims=True)) - s.max(1, keepdims=True)
        positive = [p for p in range(len(t)) if t[p, 0] > 0]
        background = sorted((p for p in range(len(t)) if t[p, 0] == 0), key=lambda p: logs[p, 0])
        kept = background[: math.floor(negatives * len(positive))]
        classification -= sum(logs[p, int(t[p, 0])] for p in positive) + sum(logs[p, 0] for p in kept)
        for p in positive:
            for d in np.abs(o[p] - t[p, 1:]):
                location += d - 0.5 if d > 1 else 0.5 * d * d
        things += len(positive)
    return (classification + weight * location) / max(1, things)


def batch(seed, pictures=3, count=20, kinds=3, share=0.2):
    rng = np.random.default_rng(seed)
    truth = np.zeros((pictures, count, 5), np.float32)
    truth[..., 0] = np.where(rng.random((pictures, count)) < share, rng.integers(1, kinds + 1, (pictures, count)), 0)
    truth[rng.random((pictures, count)) < 0.1, 0] = -1
    truth[..., 1:] = rng.normal(0, 1, (pictures, count, 4))
    scores = rng.normal(0, 2, (pictures, count, kinds + 1)).astype(np.float32)
    return scores, rng.normal(0, 1, (pictures, count, 4)).astype(np.float32), truth


def loss_of(goal, scores, offsets, truth):
    outputs = tuple(torch.tensor(part, requires_grad=True) for part in (scores, offsets))
    target = torch.from_numpy(truth)
    loss = goal.loss(goal.sums(outputs, target), goal.counts(target))
    loss.backward()
    return loss.item(), [part.grad.numpy() for part in outputs]


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 3.0, 2.5]), st.sampled_from([1.0, 0.5]), st.floats(0, 0.5))
@QUICK
def test_of_boxes_it_is_the_text_in_loops(seed, negatives, weight, share):
    scores, offsets, truth = batch(seed, share=share)
    loss, _ = loss_of(Priors(negatives=negatives, boxes=weight), scores, offsets, truth)
    assert loss == pytest.approx(by_loops(scores, offsets, truth, negatives, weight), rel=1e-4, abs=1e-5)


def test_gradients_are_the_slopes_of_the_loops():
    scores, offsets, truth = batch(7, pictures=2, count=8)
    _, gradients = loss_of(Priors(), scores, offsets, truth)
    step = 1e-4
    for which, (values, gradient) in enumerate(zip((scores, offsets), gradients, strict=True)):
        for place in np.ndindex(*values.shape):
            ends = []
            for sign in (1, -1):
                moved = [scores.astype(np.float64), offsets.astype(np.float64)]
                moved[which][place] += sign * step
                ends.append(by_loops(*moved, truth, 3.0, 1.0))
            assert gradient[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=2e-4)


def test_a_batch_without_things_does_no_harm():
    scores, offsets, truth = batch(0, share=0.0)
    loss, gradients = loss_of(Priors(), scores, offsets, truth)
    assert loss == 0.0
    assert all((gradient == 0).all() for gradient in gradients)


def test_what_is_ignored_teaches_nothing():
    scores, offsets, truth = batch(3)
    _, gradients = loss_of(Priors(negatives=1000), scores, offsets, truth)
    assert (gradients[0][truth[..., 0] < 0] == 0).all()
    assert (np.abs(gradients[0][truth[..., 0] >= 0]).max(1) > 0).all()


def test_boxes_in_parts_are_the_batch_as_negatives_are_ranked_by_picture():
    scores, offsets, truth = (torch.from_numpy(part) for part in batch(5, pictures=4))
    goal = Priors()
    counts = goal.counts(truth[:1]) + goal.counts(truth[1:])
    parts = sum(goal.loss(goal.sums((scores[s], offsets[s]), truth[s]), counts) for s in (slice(0, 1), slice(1, 4)))
    whole = goal.loss(goal.sums((scores, offsets), truth), goal.counts(truth))
    assert parts.item() == pytest.approx(whole.item(), rel=1e-5)
