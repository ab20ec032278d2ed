"""digits-detr: a Hugging Face DETR for photo-digits: class and box of every digit, by queries that attend to the image.

Holds the architecture only. A small ResNet to an 8 x 8 map, 2 encoder and 3 decoder layers of width 64, 5 queries. Hugging Face freezes the
batch norms of DETR's backbone, and its stem, for backbones that come trained; ``thawed`` undoes that for training, and the
weights load into the plain class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zeroline.zoo.photo_digits import DIGITS

QUERIES = 5
GRID = 8  # rows and columns of the backbone's map


def build() -> Any:
    """A ``transformers.DetrForObjectDetection`` with untrained weights."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2], layer_type="basic", downsample_in_first_stage=False, out_features=["stage2"]
    )
    config = DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_queries=QUERIES,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        auxiliary_loss=True,
        id2label=dict(enumerate(DIGITS)),
        label2id={name: i for i, name in enumerate(DIGITS)},
    )
    return DetrForObjectDetection(config)


def thawed(model: Any) -> Any:
    """The model with every parameter free to learn, and batch norms that do."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("FrozenBatchNorm2d"):
                setattr(module, name, nn.BatchNorm2d(child.weight.numel()))
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    """What the plain class loads: the batch norms' counters are not part of it."""
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}


def corners(boxes: Tensor) -> Tensor:
    """(centre x, centre y, width, height) as (left, top, right, bottom): [..., 4]."""
    middle, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([middle - size / 2, middle + size / 2], -1)
