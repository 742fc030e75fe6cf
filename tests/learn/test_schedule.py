"""The rate of every step against torch's own schedulers, which get there step by step."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, PolynomialLR, SequentialLR

from espy.learn.schedule import factor

KINDS = st.sampled_from(["cosine", "poly"])
RUNS = st.integers(1, 400).flatmap(lambda steps: st.tuples(st.just(steps), st.integers(0, 2 * steps)))
"""Steps of a run, and of its warm-up: none, part of it, or more than there are."""


def factors(steps, **choices):
    return [factor(step, steps, **choices) for step in range(steps)]


def of_torch(steps, make):
    """What a scheduler of torch makes of rate 1."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The epoch parameter in", UserWarning)  # SequentialLR gives it itself
        scheduler, rates = make(optimiser), []
        for _ in range(steps):
            rates.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            scheduler.step()
    return rates


def falling(optimiser, steps, schedule, power):
    if schedule == "cosine":
        return CosineAnnealingLR(optimiser, T_max=steps)
    return PolynomialLR(optimiser, total_iters=steps, power=power)


@pytest.mark.parametrize(("schedule", "power"), [("cosine", 1.0), ("poly", 0.9), ("poly", 1.0), ("poly", 2.0)])
@pytest.mark.parametrize("steps", [1, 2, 7, 60])
class TestOfTorch:
    def test_without_warm_up_the_rate_falls_as_torchs(self, schedule, power, steps):
        theirs = of_torch(steps, lambda optimiser: falling(optimiser, steps, schedule, power))
        assert factors(steps, schedule=schedule, power=power) == pytest.approx(theirs, abs=1e-9)

    @pytest.mark.parametrize("warm_up", [1, 2, 5])
    def test_after_a_warm_up_the_rate_is_that_of_a_linear_one_and_then_the_falling_one(
        self, schedule, power, steps, warm_up
    ):
        total = warm_up + steps

        def make(optimiser):
            rising = (
                LinearLR(optimiser, start_factor=1 / warm_up, end_factor=1.0, total_iters=warm_up - 1)
                if warm_up > 1
                else ConstantLR(optimiser, factor=1.0)
            )
            return SequentialLR(optimiser, [rising, falling(optimiser, steps, schedule, power)], [warm_up])

        found = factors(total, warm_up=warm_up, schedule=schedule, power=power)
        assert found == pytest.approx(of_torch(total, make), abs=1e-9)


@given(RUNS, KINDS, st.floats(0.1, 4))
@settings(deadline=None, database=None)
def test_no_step_has_rate_0_or_more_than_the_highest(run, schedule, power):
    steps, warm_up = run
    assert all(0 < f <= 1 for f in factors(steps, warm_up=warm_up, schedule=schedule, power=power))


@given(RUNS, KINDS)
@settings(deadline=None, database=None)
def test_the_rate_rises_to_the_last_step_of_the_warm_up_and_never_after(run, schedule):
    steps, warm_up = run
    found = factors(steps, warm_up=warm_up, schedule=schedule)
    rising, falling = found[:warm_up], found[warm_up:]
    assert rising == sorted(set(rising))
    assert falling == sorted(falling, reverse=True)
    if falling:
        assert falling[0] == max(found) == 1


@given(RUNS, KINDS)
@settings(deadline=None, database=None)
def test_a_warm_up_longer_than_the_run_is_cut_off_by_its_end(run, schedule):
    steps, warm_up = run
    longer = warm_up + steps
    assert factors(steps, warm_up=longer, schedule=schedule) == [(step + 1) / longer for step in range(steps)]
