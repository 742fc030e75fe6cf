"""The average of the weights against torch's AveragedModel, and what it must leave alone."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from espy import build
from espy.learn.average import Average

DECAY = 0.8


def network(seed=0):
    return build("espnet", widths=(8, 16, 24), branches=2, alpha2=1, alpha3=1, classes=3, seed=seed)


def floats(module):
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


def counters(module):
    return {name: tensor for name, tensor in module.state_dict().items() if not tensor.is_floating_point()}


def wander(module, seed):
    """Other weights, statistics and counters, as a step leaves them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in floats(module).values():
            tensor.add_(torch.rand(tensor.shape, generator=generator))
        for tensor in counters(module).values():
            tensor.add_(1)


def warmed_up(steps):
    """The decay after 1, 2, ... steps while the average is young."""
    return min(DECAY, (1 + steps) / (10 + steps))


def test_weights_and_buffers_are_those_of_torchs_averaged_model_once_it_decays_by_the_same():
    module = network()
    ours = Average(module, DECAY)
    theirs = AveragedModel(module, avg_fn=lambda a, w, n: warmed_up(n) * a + (1 - warmed_up(n)) * w, use_buffers=True)
    theirs.update_parameters(module)  # the first one copies
    for step in range(1, 50):
        wander(module, step)
        ours.update(module, step)
        theirs.update_parameters(module)
    wanted = floats(theirs.module)
    assert wanted.keys() == floats(ours.network).keys()
    assert any("running_var" in name for name in wanted)
    for name, tensor in floats(ours.network).items():
        assert torch.allclose(tensor, wanted[name], rtol=1e-5), name


def test_the_decay_rises_with_the_steps_up_to_its_own():
    """Of a weight that was 0 and is 1 from then on, 1 - a is the product of the decays so far."""
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    average = Average(module, DECAY)
    torch.nn.init.ones_(module.weight)
    left, decays = 1.0, []
    for step in range(1, 60):
        average.update(module, step)
        now = 1 - average.network.weight.item()
        decays.append(now / left)
        left = now
        if left < 1e-3:  # too few digits are left to divide
            break
    assert decays[:3] == pytest.approx([2 / 11, 3 / 12, 4 / 13], rel=1e-3)
    assert decays == sorted(decays)


@pytest.mark.parametrize(("steps", "decay"), [(34, 35 / 44), (35, DECAY), (10_000, DECAY)])
def test_the_decay_is_the_recipes_from_the_step_on_where_it_is_the_smaller(steps, decay):
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    average = Average(module, DECAY)
    torch.nn.init.ones_(module.weight)
    average.update(module, steps)
    assert average.network.weight.item() == pytest.approx(1 - decay)


def test_decay_0_is_the_weights_themselves():
    module = network()
    average = Average(module, 0.0)
    for step in range(1, 4):
        wander(module, step)
        average.update(module, step)
        for name, tensor in module.state_dict().items():
            assert torch.equal(average.network.state_dict()[name], tensor), name


def test_counters_are_copied_not_averaged():
    module = network()
    average = Average(module, DECAY)
    assert counters(module)
    for step in range(1, 4):
        wander(module, step)
        average.update(module, step)
    assert {int(tensor) for tensor in counters(average.network).values()} == {3}


def test_the_average_stays_in_eval_mode_and_has_no_gradients_while_the_network_trains():
    module = network().train()
    average = Average(module, DECAY)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.randn(2, 3, 32, 48)).sum().backward()
    optimiser.step()
    average.update(module, 1)
    assert not any(part.training for part in average.network.modules())
    assert not any(p.requires_grad or p.grad is not None for p in average.network.parameters())
    assert all(part.training for part in module.modules())
    assert all(p.requires_grad and p.grad is not None for p in module.parameters())


def test_the_network_is_neither_changed_nor_shared():
    module = network()
    average = Average(module, DECAY)
    before = {name: tensor.clone() for name, tensor in average.network.state_dict().items()}
    wander(module, 1)
    for name, tensor in average.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    now = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    average.update(module, 1)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, now[name]), name


def test_how_maps_lie_in_memory_is_kept():
    module = network().to(memory_format=torch.channels_last)
    average = Average(module, DECAY)
    average.update(module, 1)
    for name, tensor in module.state_dict().items():
        assert average.network.state_dict()[name].stride() == tensor.stride(), name
