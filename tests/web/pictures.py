"""Files that are pictures, or say that they are: for the page's limits, its requests and its uploads."""

from __future__ import annotations

import io
import struct
import zlib
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

SAMPLES = files("zeroline.zoo") / "samples"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
HTML = b"<!doctype html><img src=x onerror=alert(1)>"


def noise(height: int = 24, width: int = 40, seed: int = 0) -> Any:
    """A picture whose every pixel differs."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image: Any, kind: str = "PNG", **how: Any) -> bytes:
    """A picture as a file."""
    content = io.BytesIO()
    image.save(content, kind, **how)
    return content.getvalue()


def sample(number: int = 0) -> bytes:
    """A sample of the zoo as its file."""
    return (SAMPLES / f"{number:02d}.png").read_bytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def claiming(width: int, height: int, *more: bytes, content: bytes = b"") -> bytes:
    """A PNG of a few bytes that says how large it is."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(more) + chunk(b"IDAT", zlib.compress(content or b"\x00")) + chunk(b"IEND", b"")


def bomb(width: int, height: int) -> bytes:
    """A whole PNG: black, 1 bit per pixel, packed a thousandfold."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + rows.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def larger_inside(width: int, height: int) -> bytes:
    """A GIF of 1 x 1 whose only frame says that it is larger."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"
