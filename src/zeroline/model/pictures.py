"""PIL images as tensors, and a place on an image as the model sees it after its preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zeroline.errors import InputError


def raw_pixels(image: Any) -> Tensor:
    """float32 [height, width, channels] in 0..255."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, -1).float()


def pixels_of(image: Any) -> Tensor:
    """[3, height, width] in 0..1."""
    return raw_pixels(image.convert("RGB")).permute(2, 0, 1) / 255


def place_seen(preprocess: Callable[[Any], Any], drawn: Any) -> Tensor:
    """Where an image that is white at a place and black elsewhere is white to the model: bool [height, width]."""
    from PIL import Image

    black, white = (_channel_mean(preprocess(Image.new("RGB", drawn.size, grey))) for grey in ("black", "white"))
    return _channel_mean(preprocess(drawn)) > (black + white) / 2


def _channel_mean(inputs: Any) -> Tensor:
    given = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    found = next((t for t in given if isinstance(t, Tensor) and t.is_floating_point() and t.ndim == 4), None)
    if found is None:
        raise InputError("the model's preprocessing gives no image [batch, 3, height, width]")
    return found[0].mean(0)
