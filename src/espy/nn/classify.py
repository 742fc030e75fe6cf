"""ESPNetv2 for classification.

Source: ESPNetv2 (Mehta et al., CVPR 2019), section 3.3; docs/networks.md 3.7.
"""

from __future__ import annotations

from torch import Tensor, nn

from espy.nn.espnetv2 import Encoder
from espy.nn.units import he_fan_out


class Classifier(nn.Module):
    """[N, 3, H, W] → logits [N, classes]: the mean of the encoder's last maps, through one linear layer.

    In training a share `dropout` of the means is dropped.
    """

    def __init__(self, encoder: Encoder, classes: int, *, dropout: float = 0.2):
        super().__init__()
        self.encoder = encoder
        self.drop = nn.Dropout(dropout)
        self.classifier = nn.Linear(encoder.channels[5], classes)
        he_fan_out(self)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.drop(self.encoder(x)[-1].mean((2, 3))))
        return logits
