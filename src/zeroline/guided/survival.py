"""What ordinary handling does to a picture: a JPEG, a shift by a pixel, a change of scale. A rewritten class often does not outlive it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

JPEG_QUALITY = 90
SCALE = 0.95


def jpeg(image: Any) -> Any:
    """Saved as JPEG of quality 90 and read again."""
    from PIL import Image

    kept = io.BytesIO()
    image.save(kept, format="JPEG", quality=JPEG_QUALITY)
    return Image.open(kept).convert("RGB")


def shifted(image: Any) -> Any:
    """One pixel to the right; the leftmost column stays where it was, too."""
    found = image.copy()
    found.paste(image, (1, 0))
    return found


def rescaled(image: Any) -> Any:
    """5 % smaller, by a bicubic filter."""
    from PIL import Image

    return image.resize([max(1, round(SCALE * side)) for side in image.size], Image.Resampling.BICUBIC)


HANDLINGS: dict[str, Callable[[Any], Any]] = {"JPEG 90": jpeg, "one-pixel shift": shifted, "5 % rescale": rescaled}
