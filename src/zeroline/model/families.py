"""How image tokens lie, family by family: a table, for where the forward pass itself does not show it.

The tracer reads class and register tokens and the patch grid off the running model. Where it cannot (a model called on
embeddings, patches cut out before the model), the model's own configuration says it: ``Family`` names the attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Family:
    """Class, distillation and register tokens before the patches: a number, plus an attribute of the configuration."""

    prefix: int = 1
    registers: str | None = None
    image: str = "image_size"
    patch: str = "patch_size"


# by ``config.model_type``; a vision tower inside a larger model has its own type
FAMILIES: dict[str, Family] = {
    "beit": Family(),
    "blip_vision_model": Family(),
    "blip_2_vision_model": Family(),
    "clip_vision_model": Family(),
    "data2vec-vision": Family(),
    "deit": Family(prefix=2),
    "dinov2": Family(),
    "dinov2_with_registers": Family(registers="num_register_tokens"),
    "dinov3_vit": Family(registers="num_register_tokens"),
    "ijepa": Family(prefix=0),
    "lxmert": Family(prefix=0),  # where regions are the cells of a grid and the configuration says so, as digits-vqa's does
    "siglip_vision_model": Family(prefix=0),
    "vilt": Family(),
    "vit": Family(),
    "vit_mae": Family(),
    "vit_msn": Family(),
    "vivit": Family(),
    "yolos": Family(),
}


@dataclass(frozen=True)
class Patches:
    """Tokens of an image: ``prefix`` learned ones, then rows x columns of patches."""

    prefix: int
    grid: tuple[int, int]


def patches_of(model: nn.Module, tokens: int, image_size: tuple[int, int] | None = None) -> Patches | None:
    """What the configuration says about ``tokens`` image tokens; None where it is not in the table or does not fit.

    ``image_size`` (height, width) of the picture at hand goes before the configuration's own.
    """
    for config in _configurations(model):
        family = FAMILIES.get(str(getattr(config, "model_type", "")))
        if family is None or not hasattr(config, family.image):
            continue
        height, width = image_size or _pair(getattr(config, family.image))
        high, wide = _pair(getattr(config, family.patch))
        prefix = family.prefix + (int(getattr(config, family.registers)) if family.registers else 0)
        found = Patches(prefix, (height // high, width // wide))
        if found.prefix + found.grid[0] * found.grid[1] == tokens:
            return found
    return None


def patch_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of a patch in pixels, where the model (or its patch embedding, as in timm) says so."""
    for owner in (*_configurations(model), getattr(model, "patch_embed", None)):
        found = getattr(owner, "patch_size", None)
        if found is not None:
            return _pair(found)
    return None


def patch_grid(model: nn.Module, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of patch tokens for an image of (height, width), or None where the model has no patches."""
    patch = patch_size(model)
    return None if patch is None else (image_size[0] // patch[0], image_size[1] // patch[1])


def _configurations(model: nn.Module) -> list[Any]:
    config = getattr(model, "config", None)
    return [c for c in (getattr(config, "vision_config", None), getattr(config, "encoder", None), config) if c is not None]


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = list(size)[-2:]
    return int(height), int(width)
