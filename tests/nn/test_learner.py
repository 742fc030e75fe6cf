"""A network as it is trained: every convolution's gradients are right in the layout that it is given."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from espy.header import Preprocess
from espy.nn.build import build
from espy.nn.learner import Learner

pytestmark = pytest.mark.usefixtures("one_thread")
NETWORKS = {
    "espnet": ("espnet", {"classes": 11}),
    "espnet-c": ("espnet", {"classes": 20, "variant": "C"}),
    "espnet-branch": ("espnet", {"classes": 11, "arrangement": "branch"}),
    "espnetv2": ("espnetv2", {"classes": 11, "width": 0.5}),
    "espnetv2-first": ("espnetv2_first", {"classes": 11, "width": 0.5}),
}
SIZE = (480, 640)  # oneDNN chooses its kernels by the maps' sizes: smaller ones would hide what these tests hold


def convolutions(learner):
    """One convolution of each kind that the learner holds, and the shape of its input."""
    found, hooks = {}, []

    def seen(module, inputs):
        shape = tuple(inputs[0].shape)
        key = (*shape, module.out_channels, module.kernel_size, module.stride, module.dilation, module.groups)
        found.setdefault(key, (module, shape))

    for module in learner.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_pre_hook(seen))
    with torch.no_grad():
        learner.train()(torch.zeros(2, *SIZE, 3, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return list(found.values())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_gradient_of_a_convolution_is_that_of_float64(name, precision):
    network, choices = NETWORKS[name]
    learner = Learner(build(network, **choices), Preprocess(SIZE), auxiliary=True)
    close = 0.02 if precision == torch.bfloat16 else 1e-4  # of the largest value
    for module, shape in convolutions(learner):
        generator = torch.Generator().manual_seed(0)
        maps = torch.randn(shape, generator=generator).contiguous(memory_format=learner.memory_format).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            out = module(maps)
        given = torch.randn(out.shape, generator=generator)
        got = torch.autograd.grad(out, (maps, module.weight), given.to(out.dtype))
        exact = (maps.detach().double().requires_grad_(), module.weight.detach().double().requires_grad_())
        wanted = torch.autograd.grad(
            nn.functional.conv2d(*exact, None, module.stride, module.padding, module.dilation, module.groups),
            exact, given.double(),
        )  # fmt: skip
        for gradient, truth in zip(got, wanted, strict=True):
            assert (gradient - truth).abs().max() <= close * truth.abs().max(), (module, shape)


def test_the_layout_of_maps_changes_scores_by_rounding_only():
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    scores = []
    for channels_last in (False, True):
        network = build("espnetv2", classes=4, width=0.5, seed=0)
        learner = Learner(network, Preprocess((64, 96)), channels_last=channels_last)
        assert network.encoder.level1.conv.weight.is_contiguous(memory_format=learner.memory_format)
        with torch.no_grad():
            scores.append(learner.train()(images)[0])
    assert torch.allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4 * float(scores[0].abs().max()))


def test_a_narrow_strided_reduction_writes_nowhere_else():
    """Channels-last, of fewer than 16 channels, oneDNN's gradient of it damages memory (its issue 6035) and ends the process."""
    code = """
import torch
from espy.header import Preprocess
from espy.nn.build import build
from espy.nn.learner import Learner
torch.set_num_threads(1)
network = build("espnet", classes=4, arrangement="branch", widths=(8, 32, 40), alpha2=1, alpha3=1)
learner = Learner(network, Preprocess((128, 128))).train()
for _ in range(20):
    learner(torch.zeros(8, 128, 128, 3, dtype=torch.uint8))[0].sum().backward()
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
