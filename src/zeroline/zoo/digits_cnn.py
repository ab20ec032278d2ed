"""digits-cnn: a Hugging Face ResNet for photo-digits, the convolutional control beside digits-vit.

Holds the architecture only. Three stages of one basic block, widths 32, 64 and 128: a map of 4 x 4 positions, pooled. Same images,
same labels, same preprocessing as digits-vit; what differs between the two is what they are.
"""

from __future__ import annotations

from typing import Any

from zeroline.zoo.photo_digits import DIGITS


def build() -> Any:
    """A ``transformers.ResNetForImageClassification`` with untrained weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[1, 1, 1],
        layer_type="basic",
        id2label=dict(enumerate(DIGITS)),
        label2id={name: i for i, name in enumerate(DIGITS)},
    )
    return ResNetForImageClassification(config)
