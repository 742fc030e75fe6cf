"""Losses against loops over pixels written from their formulas, and what must not change them."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from espy.learn.losses import VOID, Pixels, frequency_weights

CLASSES = 3
QUICK = settings(deadline=None, database=None, max_examples=60)


# The oracle


def log_p(z):
    highest = max(z)
    return z - highest - math.log(sum(math.exp(v - highest) for v in z))


def labelled(logits, truth):
    """(class, its log-probabilities) of every labelled pixel of a picture."""
    _, h, w = logits.shape
    return [(int(truth[i, j]), log_p(logits[:, i, j])) for i in range(h) for j in range(w) if int(truth[i, j]) != VOID]


def cross_entropy(logits, truth, ohem, smoothing, weights):
    """(sum, count) over pictures, pixel by pixel."""
    total, count = 0.0, 0.0
    for picture, mask in zip(logits, truth, strict=True):
        losses, weight = [], 0.0
        for t, logs in labelled(picture, mask):
            y = [(1 - smoothing if c == t else 0) + smoothing / CLASSES for c in range(CLASSES)]
            w = 1.0 if weights is None else weights[t]
            losses.append(-w * sum(a * b for a, b in zip(y, logs, strict=True)))
            weight += w
        if ohem < 1:
            hardest = math.ceil(Fraction(ohem) * len(losses))
            losses, weight = sorted(losses, reverse=True)[:hardest], hardest
        total, count = total + sum(losses), count + weight
    return total, count


def dice(logits, truth):
    total, count = 0.0, 0
    for picture, mask in zip(logits, truth, strict=True):
        pixels = labelled(picture, mask)
        ratios = []
        for c in {t for t, _ in pixels}:
            both = sum(math.exp(logs[c]) for t, logs in pixels if t == c)
            size = sum(math.exp(logs[c]) + (t == c) for t, logs in pixels)
            ratios.append(1 - (2 * both + 1) / (size + 1))
        if ratios:
            total, count = total + sum(ratios) / len(ratios), count + 1
    return total, count


def by_loops(logits, truth, choices):
    ce = cross_entropy(logits, truth, choices["ohem"], choices["smoothing"], choices["weights"])
    parts = zip((choices["cross_entropy"], choices["dice"]), (ce, dice(logits, truth)), strict=True)
    return sum(share * total / count for share, (total, count) in parts if count)


# What is drawn


@st.composite
def batches(draw, least=1, most=3):
    """Logits float64 [N, C, h, w] and truth uint8 [N, h, w] of a few pictures."""
    shape = draw(st.integers(least, most)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    truth = draw(arrays(np.uint8, shape, elements=st.sampled_from([*range(CLASSES), VOID])))
    return scores(shape, draw(st.integers(0, 99))), truth


def scores(shape, seed=0):
    """Random logits for truth of a shape [N, h, w]."""
    return np.random.default_rng(seed).normal(0, 3, (shape[0], CLASSES, *shape[1:]))


def masks(shape, seed=0, values=(*range(CLASSES), VOID)):
    return np.random.default_rng(seed).choice(values, shape).astype(np.uint8)


MIXTURES = st.fixed_dictionaries(
    {
        "cross_entropy": st.sampled_from([0.0, 1.0, 0.7]),
        "dice": st.sampled_from([0.0, 1.0, 0.4]),
        "ohem": st.sampled_from([1.0, 0.5, 0.25, 0.0625]),
        "smoothing": st.sampled_from([0.0, 0.1, 0.5]),
        "weights": st.sampled_from([None, (1.0, 0.5, 3.0), (0.25, 0.0, 2.0)]),
    }
).filter(lambda choices: choices["cross_entropy"] or choices["dice"])

EVERYTHING = {"cross_entropy": 0.7, "dice": 0.4, "ohem": 0.5, "smoothing": 0.1, "weights": (1.0, 0.5, 3.0)}


def objective(choices):
    weights = choices["weights"]
    return Pixels(**{**choices, "weights": None if weights is None else torch.tensor(weights)})


def loss_and_gradient(choices, logits, truth, counts=None):
    """Of a batch as numpy arrays; divided by `counts` where they are another batch's."""
    goal, z, t = objective(choices), torch.tensor(logits, requires_grad=True), torch.from_numpy(truth)
    loss = goal.loss(goal.sums(z, t), goal.counts(t) if counts is None else counts)
    (gradient,) = torch.autograd.grad(loss, z)
    return loss.item(), gradient.numpy()


# Values and gradients


@given(batches(), MIXTURES)
@settings(QUICK, max_examples=150)
def test_every_mixture_is_that_of_loops_over_pixels(batch, choices):
    loss, _ = loss_and_gradient(choices, *batch)
    assert math.isclose(loss, by_loops(*batch, choices), rel_tol=1e-5, abs_tol=1e-6)


@pytest.mark.parametrize(
    "choices",
    [{"weights": None, "smoothing": 0.0}, {"smoothing": 0.0}, {"weights": None}, {"ohem": 1.0}, {"dice": 0.0},
     {"cross_entropy": 0.0}, {}],
    ids=["hard", "weighted hard", "smooth hard", "weighted smooth", "no Dice", "Dice", "everything"],
)  # fmt: skip
def test_gradients_are_the_slopes_of_the_loops(choices):
    choices = {**EVERYTHING, **choices}
    logits, truth = scores((2, 2, 3)), masks((2, 2, 3))
    _, gradient = loss_and_gradient(choices, logits, truth)
    step = 1e-5
    for at in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[at] += step
        down[at] -= step
        slope = (by_loops(up, truth, choices) - by_loops(down, truth, choices)) / (2 * step)
        assert abs(gradient[at] - slope) < 1e-6


def test_float32_logits_give_a_float32_loss_of_the_same_value():
    logits, truth = scores((2, 8, 9)), masks((2, 8, 9))
    goal, z, t = objective(EVERYTHING), torch.tensor(logits, dtype=torch.float32), torch.from_numpy(truth)
    loss = goal.loss(goal.sums(z, t), goal.counts(t))
    assert loss.dtype == torch.float32
    assert math.isclose(loss.item(), by_loops(logits, truth, EVERYTHING), rel_tol=1e-5)


@given(st.integers(1, 40), st.integers(1, 99))
@QUICK
def test_the_hardest_are_never_fewer_than_their_share_nor_one_more_than_needed(pixels, percent):
    counts = Pixels(ohem=percent / 100).counts(torch.zeros(1, 1, pixels, dtype=torch.uint8))
    assert 0 <= counts[0].item() - pixels * percent / 100 < 1 + 1e-9
    assert 1 <= counts[0].item() <= pixels


# Void


@given(batches(), MIXTURES, st.integers(0, 99))
@QUICK
def test_void_pixels_change_neither_loss_nor_gradient(batch, choices, seed):
    logits, truth = batch
    void = np.broadcast_to((truth == VOID)[:, None], logits.shape)
    assume(void.any())
    others = np.where(void, np.random.default_rng(seed).normal(0, 50, logits.shape), logits)
    (loss, gradient), (other_loss, other_gradient) = (loss_and_gradient(choices, z, truth) for z in (logits, others))
    assert loss == other_loss
    assert np.array_equal(gradient, other_gradient)
    assert not gradient[void].any()


@given(MIXTURES)
@QUICK
def test_nothing_labelled_is_a_loss_of_0_and_no_gradient(choices):
    loss, gradient = loss_and_gradient(choices, scores((2, 4, 5)), np.full((2, 4, 5), VOID, np.uint8))
    assert loss == 0
    assert not gradient.any()


@given(batches(), MIXTURES)
@QUICK
def test_a_picture_without_a_label_weighs_nothing_beside_others(batch, choices):
    logits, truth = batch
    loss, gradient = loss_and_gradient(choices, logits, truth)
    more = np.concatenate([truth, np.full_like(truth[:1], VOID)])
    other_loss, other_gradient = loss_and_gradient(choices, np.concatenate([logits, logits[:1]]), more)
    assert math.isclose(other_loss, loss, rel_tol=1e-6)
    assert np.allclose(other_gradient[:-1], gradient)
    assert not other_gradient[-1].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_pixels_of_a_class_without_weight_are_as_void(smoothing):
    logits, truth = scores((2, 4, 5)), masks((2, 4, 5))
    choices = {**EVERYTHING, "weights": (1.0, 0.0, 3.0), "smoothing": smoothing, "ohem": 1.0, "dice": 0.0}
    without = np.where(truth == 1, VOID, truth).astype(np.uint8)
    (loss, gradient), (wanted, slope) = (loss_and_gradient(choices, logits, t) for t in (truth, without))
    assert math.isclose(loss, wanted, rel_tol=1e-6)
    assert np.allclose(gradient, slope)
    loss, gradient = loss_and_gradient(choices, logits, np.full_like(truth, 1))
    assert loss == 0
    assert not gradient.any()


# Sum and count


@given(batches(least=2, most=5), MIXTURES, st.data())
@QUICK
def test_the_loss_of_a_batch_is_that_of_its_parts_however_it_is_divided(batch, choices, data):
    logits, truth = batch
    part_of = np.array([data.draw(st.integers(0, 2)) for _ in truth])
    parts = [part_of == part for part in set(part_of.tolist())]
    goal = objective(choices)
    counts = torch.stack([goal.counts(torch.from_numpy(truth[part])) for part in parts]).sum(0)
    whole, gradient = loss_and_gradient(choices, logits, truth)
    together, slopes = 0.0, np.zeros_like(gradient)
    for part in parts:
        loss, slopes[part] = loss_and_gradient(choices, logits[part], truth[part], counts)
        together += loss
    assert math.isclose(together, whole, rel_tol=1e-5, abs_tol=1e-9)
    assert np.allclose(slopes, gradient, rtol=1e-5, atol=1e-9)


# Weights of classes

PIXELS = st.lists(st.integers(0, 10**9), min_size=1, max_size=20)


@given(PIXELS)
@QUICK
def test_frequency_weights_are_those_of_the_formula(pixels):
    total = max(1, sum(pixels))
    raw = [1 / math.log(1.1 + n / total) for n in pixels]
    mean = sum(raw) / len(raw)
    assert frequency_weights(pixels) == pytest.approx([w / mean for w in raw], rel=1e-9)


@given(PIXELS)
@QUICK
def test_frequency_weights_have_mean_1_and_weigh_the_rarer_class_more(pixels):
    weights = frequency_weights(pixels)
    assert sum(weights) / len(weights) == pytest.approx(1)
    assert all(0 < w < math.inf for w in weights)
    by_number = sorted(zip(pixels, weights, strict=True))
    assert all(rare[1] >= common[1] for rare, common in pairwise(by_number))


@given(PIXELS, st.integers(2, 50))
@QUICK
def test_frequency_weights_depend_on_shares_alone(pixels, times):
    assume(sum(pixels))
    assert frequency_weights([times * n for n in pixels]) == pytest.approx(frequency_weights(pixels))


def test_frequency_weights_without_a_labelled_pixel_are_all_1():
    assert frequency_weights([0, 0, 0]) == pytest.approx([1, 1, 1])
