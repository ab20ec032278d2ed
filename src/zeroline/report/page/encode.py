"""Bytes for a page: pictures as data addresses, numbers as base64, long JSON texts cut with a word about it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from zeroline.report.figure import Picture
from zeroline.report.page.parts import Shown, Values

LARGEST = 1024  # pixels along a side
_LOSSLESS = 200_000  # bytes up to which a picture stays a PNG
_ITEMS, _LETTERS = 200, 2_000


def picture(shown: Picture, caption: str, alt: str) -> Shown:
    """A picture in 0..1; brought down to 1,024 pixels along a side, and to a JPEG where a PNG would be large."""
    from PIL import Image

    image = Image.fromarray((np.clip(shown, 0, 1) * 255).round().astype(np.uint8))
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST))
        caption = f"{caption} (brought down to {image.width} x {image.height})" if caption else caption
    kept, kind = _bytes(image, "PNG"), "png"
    if len(kept) > _LOSSLESS:
        kept, kind = _bytes(image, "JPEG", quality=90), "jpeg"
    return Shown(address(kept, kind), caption, alt, image.width, image.height)


def figure(drawn: Any, alt: str) -> Shown:
    """A ``matplotlib.figure.Figure`` as a PNG with a palette where that loses nothing to see."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    from PIL import Image

    for text in drawn.findobj(Text):
        text.set_parse_math(False)  # a dollar in a user's words is a dollar
    opened = io.BytesIO()
    FigureCanvasAgg(drawn).print_figure(opened, format="png", metadata={"Software": "zeroline"})
    kept = opened.getvalue()
    with Image.open(opened) as image:
        width, height = image.size
    return Shown(address(kept, "png"), "", alt, width, height)


def address(content: bytes, kind: str) -> str:
    """``data:image/png;base64,...``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def numbers(values: Values) -> str:
    """float32, little endian, base64."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


def text_of(record: Mapping[str, Any]) -> str:
    """A record as indented JSON; long lists and texts are cut, and say so."""
    return json.dumps(_shortened(record), indent=2, ensure_ascii=False)


def _shortened(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {str(key): _shortened(one) for key, one in list(value.items())[:_ITEMS]}
        return {**kept, "...": f"{len(value) - _ITEMS} more"} if len(value) > _ITEMS else kept
    if isinstance(value, (list, tuple)):
        kept_items = [_shortened(one) for one in value[:_ITEMS]]
        return [*kept_items, f"... {len(value) - _ITEMS:,} more, in the saved record"] if len(value) > _ITEMS else kept_items
    if isinstance(value, str) and len(value) > _LETTERS:
        return f"{value[:_LETTERS]}... {len(value) - _LETTERS:,} more letters"
    return value


def _bytes(image: Any, form: str, **options: Any) -> bytes:
    opened = io.BytesIO()
    image.save(opened, form, **options)
    return opened.getvalue()
