"""photo-digits: coloured handwritten digits pasted on crops of real photographs, with the truth about each.

Holds the generator of the zoo's data. It exists because a heat map can only be checked where it is
known what the answer depends on: every object comes with class, colour, box and mask. It trains nothing
and loads no model. Needs scikit-learn (digits) and scikit-image (photographs): ``pip install zeroline[zoo]``.

Train and test share neither a digit image nor a photograph.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SIDE = 64
COLOURS = {
    "red": (230, 30, 30),
    "green": (30, 190, 50),
    "blue": (40, 60, 230),
    "yellow": (240, 220, 30),
    "magenta": (230, 40, 220),
    "cyan": (40, 220, 230),
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Split = Literal["train", "test"]

# package, file: see zoo/LICENSES.md for photographers and licences
PHOTOGRAPHS: dict[Split, tuple[tuple[str, str], ...]] = {
    "train": (
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/rocket.jpg"),
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("skimage", "data/grass.png"),
        ("skimage", "data/brick.png"),
        ("sklearn", "datasets/images/china.jpg"),
    ),
    "test": (
        ("skimage", "data/coffee.png"),
        ("skimage", "data/gravel.png"),
        ("sklearn", "datasets/images/flower.jpg"),
    ),
}
_SIZES = (24, 28, 32)
_HELD_OUT = 6  # every sixth digit image belongs to the test split


@dataclass(frozen=True)
class Digit:
    """One object: ``box`` is (left, top, right, bottom) in pixels, ``mask`` a bool array [64, 64]."""

    digit: int
    colour: str
    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """One image, uint8 [64, 64, 3], and the objects in it."""

    pixels: NDArray[np.uint8]
    objects: tuple[Digit, ...]

    @property
    def caption(self) -> str:
        """\"a red seven and a blue one\": colours and classes in the order of placing."""
        return " and ".join(f"a {o.colour} {DIGITS[o.digit]}" for o in self.objects)


class PhotoDigits:
    """Draws scenes from a seed. ``photographs`` narrows the split's own list (by file stem)."""

    def __init__(self, split: Split, seed: int, photographs: tuple[str, ...] | None = None) -> None:
        self._random = np.random.default_rng(seed)
        self._glyphs, self._labels = _glyphs(split)
        files = [f for f in PHOTOGRAPHS[split] if photographs is None or Path(f[1]).stem in photographs]
        self._photographs = [crop for file in files for crop in _photograph(*file)]

    def scene(self, count: int) -> Scene:
        """One image with ``count`` objects of different classes and colours that do not overlap much.

        Fifty tries to place them: about one scene in thirty with two asked holds one.
        """
        pixels = self._background()
        colours = self._random.permutation(list(COLOURS))
        objects: list[Digit] = []
        centres: list[tuple[float, float, int]] = []
        for _ in range(50):
            if len(objects) == count:
                break
            size = int(self._random.choice(_SIZES))
            index = int(self._random.integers(len(self._labels)))
            top, left = self._random.integers(0, SIDE - size + 1, 2)
            centre = (top + size / 2, left + size / 2, size)
            digit = int(self._labels[index])
            if any(o.digit == digit for o in objects) or any(_overlap(centre, c) for c in centres):
                continue
            colour = str(colours[len(objects)])
            objects.append(_paste(pixels, self._glyphs[size][index], top, left, digit, colour))
            centres.append(centre)
        return Scene(pixels.clip(0, 255).astype(np.uint8), tuple(objects))

    def _background(self) -> NDArray[np.float32]:
        photograph = self._photographs[self._random.integers(len(self._photographs))]
        top = self._random.integers(photograph.shape[0] - SIDE)
        left = self._random.integers(photograph.shape[1] - SIDE)
        crop = photograph[top : top + SIDE, left : left + SIDE].copy()
        crop = crop * 0.6 + 40 if self._random.random() < 0.5 else crop * 0.8 + 20
        return crop[:, ::-1].copy() if self._random.random() < 0.5 else crop


def _glyphs(split: Split) -> tuple[dict[int, NDArray[np.float32]], NDArray[np.int64]]:
    """Handwritten digits of the split, resized: {size: [n, size, size] in [0, 1]}, and their classes."""
    import torch
    from sklearn.datasets import load_digits

    data = load_digits()
    held_out = np.arange(len(data.target)) % _HELD_OUT == 0
    chosen = ~held_out if split == "train" else held_out
    images = torch.tensor(data.images[chosen] / 16.0, dtype=torch.float32)[:, None]

    def resized(size: int) -> NDArray[np.float32]:
        big = torch.nn.functional.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)
        return np.asarray(big.clamp(0, 1)[:, 0].numpy() ** 0.7)  # a softer pen: strokes survive resizing

    return {size: resized(size) for size in _SIZES}, data.target[chosen]


def _photograph(package: str, file: str) -> list[NDArray[np.float32]]:
    """The photograph at two widths (160 and 280 pixels), float32 [height, width, 3] in 0..255."""
    from importlib.resources import files

    from PIL import Image

    with Image.open(str(files(package) / file)) as opened:
        image = opened.convert("RGB")
    scaled = (image.resize((w, max(SIDE + 1, image.height * w // image.width)), Image.Resampling.BICUBIC) for w in (160, 280))
    return [np.asarray(s, dtype=np.float32) for s in scaled]


def _overlap(a: tuple[float, float, int], b: tuple[float, float, int]) -> bool:
    reach = (a[2] + b[2]) / 2 * 0.8
    return abs(a[0] - b[0]) < reach and abs(a[1] - b[1]) < reach


def _paste(pixels: NDArray[np.float32], glyph: NDArray[np.float32], top: int, left: int, digit: int, colour: str) -> Digit:
    """Blend the glyph into ``pixels`` in place; return the object with its true box and mask."""
    size = glyph.shape[0]
    ink = glyph[..., None]
    window = pixels[top : top + size, left : left + size]
    window[:] = window * (1 - ink) + np.array(COLOURS[colour], dtype=np.float32) * ink
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top : top + size, left : left + size] = glyph > 0.3
    rows, columns = np.where(mask)
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return Digit(digit, colour, box, mask)
