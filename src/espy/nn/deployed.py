"""Networks as they are deployed: uint8 picture in; a mask, probabilities or boxes out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espy.errors import SpecError
from espy.header import MASK_CLASSES, Preprocess
from espy.nn.units import resize
from espy.priors import CENTRE, SIZE, priors


class Deployed(nn.Module):
    """A network behind its preparation of pictures; what it gives is named in `outputs`, one class a task below.

    Channel order, scale, mean and standard deviation of `preprocess` are applied here.
    """

    outputs: tuple[str, ...] = ()
    memory_format = torch.contiguous_format
    factor: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess):
        super().__init__()
        self.network = network
        self.reverse = preprocess.order == "BGR"
        self.register_buffer("factor", torch.tensor([preprocess.scale / s for s in preprocess.std]).view(1, 3, 1, 1))
        shift = [-m / s for m, s in zip(preprocess.mean, preprocess.std, strict=True)]
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1))

    def normalised(self, image: Tensor) -> Tensor:
        """float32 [N, 3, H, W] of uint8 [N, H, W, 3] RGB, as the network takes it."""
        x = image.permute(0, 3, 1, 2).float()
        if self.reverse:
            x = x[:, [2, 1, 0]]
        return (x * self.factor + self.shift).contiguous(memory_format=self.memory_format)

    def computed(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the network says of a prepared picture, float32 as all that it computes with."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.computed(self.normalised(image))


class Segmenting(Deployed):
    """uint8 [N, H, W, 3] RGB → (mask uint8 [N, H, W], scores float32 [N, classes, H, W])."""

    outputs = ("mask", "scores")

    def __init__(self, network: nn.Module, preprocess: Preprocess):
        super().__init__(network, preprocess)
        if network.spec.classes > MASK_CLASSES:  # type: ignore[union-attr, operator]
            raise SpecError(f"a mask holds at most {MASK_CLASSES} classes, not {network.spec.classes}")  # type: ignore[union-attr]

    def computed(self, x: Tensor) -> tuple[Tensor, ...]:
        return (logits(self.network, x),)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (scores,) = super().forward(image)
        return scores.argmax(1).to(torch.uint8), scores


def logits(network: nn.Module, x: Tensor) -> Tensor:
    """A segmentation network's logits [N, classes, H, W] of the picture's size; ESPNet-A, -B and -C give them at 1/8."""
    scores: Tensor = network(x)
    spec = network.spec
    if spec.output_stride != 1:  # type: ignore[union-attr]
        scores = resize(scores, (x.shape[2], x.shape[3]), spec.align_corners)  # type: ignore[union-attr, arg-type]
    return scores


class Classifying(Deployed):
    """uint8 [N, H, W, 3] RGB → probabilities, float32 [N, classes]."""

    outputs = ("scores",)

    def computed(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.network(x).softmax(1),)


class Detecting(Deployed):
    """uint8 [N, S, S, 3] RGB → probabilities float32 [N, kinds, P], boxes float32 [N, P, 4], of every prior.

    Boxes are corners in the network's pixels, not clipped. What is left of them, and in which order, `espy.run.nms` decides;
    in a deployed file the graph does.
    """

    outputs = ("scores", "boxes")
    priors: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess):
        super().__init__(network, preprocess)
        side, other = preprocess.size
        if side != other:
            raise SpecError(f"a detector sees square pictures, not height {side}, width {other}")
        self.side = side
        self.register_buffer("priors", torch.from_numpy(priors(side)), persistent=False)

    def computed(self, x: Tensor) -> tuple[Tensor, ...]:
        scores, offsets = self.network(x)
        centre = self.priors[:, :2] + CENTRE * offsets[..., :2] * self.priors[:, 2:]
        half = self.priors[:, 2:] * (SIZE * offsets[..., 2:]).exp() / 2
        boxes = self.side * torch.cat([centre - half, centre + half], 2)
        return scores.softmax(2)[..., 1:].transpose(1, 2).contiguous(), boxes


TASKS: dict[str, type[Deployed]] = {"segment": Segmenting, "classify": Classifying, "detect": Detecting}


def deploy(network: nn.Module, preprocess: Preprocess) -> Deployed:
    """A network made by `espy.nn.build`, as its task is deployed."""
    task: str = network.spec.task  # type: ignore[union-attr, assignment]
    return TASKS[task](network, preprocess)
