"""Which tokens are patches, and how they lie on the picture, read from the model's configuration."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def patch_grid(model: nn.Module, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of patch tokens for an image of (height, width), or None where the model has no patches."""
    config = getattr(model, "config", None)
    config = getattr(config, "vision_config", config)
    patch = getattr(config, "patch_size", None)
    if patch is None:
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch is None:
        return None
    high, wide = (patch, patch) if not isinstance(patch, Sequence) else tuple(patch)
    return image_size[0] // high, image_size[1] // wide
