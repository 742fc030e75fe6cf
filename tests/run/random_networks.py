"""Networks whose weights nobody trained, and what they say of a picture: what lowered programs are held against."""

import torch
from torch import nn

from espy.nn.build import build, weights_of
from espy.nn.deployed import logits


def random_network(spec, seed):
    """In eval mode, with norms and slopes as training may leave them."""
    network = build(spec, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)

    def drawn(low, high, like):
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(drawn(0.5, 1.5, module.weight) * drawn(-1, 4, module.weight).sign())
                module.bias.copy_(drawn(-0.5, 0.5, module.bias))
                module.running_mean.copy_(drawn(-0.5, 0.5, module.running_mean))
                module.running_var.copy_(drawn(0.25, 2, module.running_var))
            elif isinstance(module, nn.PReLU):
                module.weight.copy_(drawn(-0.5, 1.2, module.weight))
            elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.copy_(drawn(-0.5, 0.5, module.bias))
    return network


def arrays_of(network):
    return {name: tensor.numpy() for name, tensor in weights_of(network).items()}


def given_by(network, x):
    """What a network of any task says of one picture, in the order in which its program writes scores."""
    if network.spec.task == "segment":
        return logits(network, x)[0]
    if network.spec.task == "classify":
        return network(x)[0]
    scores, boxes = network(x)
    return torch.cat([boxes[0], scores[0]], 1).flatten()
