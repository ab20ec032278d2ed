"""digits-vit: a Hugging Face ViT for photo-digits, with a convolutional stem in place of its patch layer.

Holds the architecture only. 4 layers, width 64, 4 heads, 64 patch tokens (8 x 8) and a class token.
The stem (three strided convolutions, Xiao et al. 2021, "Early Convolutions Help Transformers See Better")
is what made training take minutes; everything after it is transformers' own code.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from zeroline.zoo.photo_digits import DIGITS, SIDE

PATCH = 8
MEAN = STD = 0.5  # of pixels in [0, 1]


class Stem(nn.Module):
    """[batch, 3, 64, 64] -> [batch, width, 8, 8]. Hugging Face reads the dtype off ``weight``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = (3, 16, 32, 64)
        layers: list[nn.Module] = []
        for inner, outer in pairwise(channels):
            layers += [nn.Conv2d(inner, outer, 3, 2, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.projection = nn.Conv2d(channels[-1], width, 1)

    @property
    def weight(self) -> Tensor:
        return self.projection.weight

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.projection(self.convolutions(pixels))
        return features


def build() -> Any:
    """A ``transformers.ViTForImageClassification`` with untrained weights."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(DIGITS)),
        label2id={name: i for i, name in enumerate(DIGITS)},
    )
    model = ViTForImageClassification(config)
    model.vit.embeddings.patch_embeddings.projection = Stem(config.hidden_size)
    return model
