"""PIL images as tensors and back, and a place on an image as the model sees it after its preprocessing."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zeroline.errors import InputError

_ORIENTATION = 0x0112  # the EXIF tag, and what undoes each of its values
_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}


def raw_pixels(image: Any) -> Tensor:
    """float32 [height, width, channels] in 0..255."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, -1).float()


def pixels_of(image: Any) -> Tensor:
    """[3, height, width] in 0..1."""
    return raw_pixels(image.convert("RGB")).permute(2, 0, 1) / 255


def byte(pixels: Tensor) -> Tensor:
    """Pixels in 0..1 as uint8, rounded to the nearest level."""
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def picture(levels: Tensor) -> Any:
    """uint8 [3, height, width] as a PIL image."""
    from PIL import Image

    return Image.fromarray(levels.detach().cpu().permute(1, 2, 0).contiguous().numpy())


def eight_bit(image: Any) -> tuple[Any, str]:
    """An image in RGB with 8 bits per channel, and what had to be done to it in words ("" where nothing).

    Transparency is dropped, not laid on a colour: the pixels below it are what models are given. Raises InputError for what is no PIL image.
    """
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise InputError(f"a picture is a PIL image, not {type(image).__name__}")
    if image.mode == "RGB":
        return image, ""
    if image.mode == "F" or image.mode.startswith("I"):
        levels = torch.from_numpy(np.array(image, dtype=np.float64))
        kind, white = "16-bit", 65535.0
        if image.mode == "F":
            kind, white = ("floating-point (0 to 1)", 1.0) if float(levels.amax()) <= 1 else ("floating-point", 255.0)
        scaled = byte((levels / white)[None].expand(3, -1, -1))
        return picture(scaled), f"{kind} grey brought to 8 bits per channel"
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    return image.convert("RGB"), f"{image.mode} converted to RGB" + (", its transparency dropped" if alpha else "")


def upright(image: Any) -> Any:
    """A photograph turned the way its camera says it was held (EXIF orientation), as viewers and transformers' pipelines show it.

    The image itself where it says nothing. A turned image says nothing any more, so that nobody turns it again.
    """
    from PIL import Image

    image.load()  # Pillow turns a TIFF itself, when it is read
    try:
        with warnings.catch_warnings(action="ignore"):
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except (struct.error, SyntaxError, OSError, ValueError, TypeError, LookupError):
        return image  # a spoilt EXIF block says nothing
    if turn is None:
        return image
    found = image.transpose(Image.Transpose[turn])
    found.info = {name: value for name, value in found.info.items() if name == "transparency"}
    return found


def place_seen(preprocess: Callable[[Any], Any], drawn: Any) -> Tensor:
    """Where an image that is white at a place and black elsewhere is white to the model: bool [height, width]."""
    from PIL import Image

    black, white = (_channel_mean(preprocess(Image.new("RGB", drawn.size, grey))) for grey in ("black", "white"))
    return _channel_mean(preprocess(drawn)) > (black + white) / 2


def image_among(inputs: Any) -> tuple[str | None, Tensor]:
    """The image [batch, channels, height, width] among a model's inputs and its name, None where they are one tensor."""
    given = inputs.items() if isinstance(inputs, Mapping) else [(None, inputs)]
    for name, found in given:
        if isinstance(found, Tensor) and found.is_floating_point() and found.ndim == 4:
            return name, found
    raise InputError("the model's preprocessing gives no image [batch, 3, height, width]")


def _channel_mean(inputs: Any) -> Tensor:
    return image_among(inputs)[1][0].mean(0)
