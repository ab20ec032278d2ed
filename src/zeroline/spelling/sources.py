"""What people point at: an image by path, a baseline, a mask or a box in words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from zeroline import baseline as baselines
from zeroline.baseline import Baseline, Distribution
from zeroline.errors import LoadError, NotFoundError, UsageError
from zeroline.model.loading import Loaded
from zeroline.model.pictures import eight_bit, place_seen, raw_pixels, upright
from zeroline.target import whole_number

_WHOLE = ("1", "L", "P")  # modes that are wholly kept in RGB
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def open_image(path: Path) -> Any:
    """A PIL image in RGB with 8 bits per channel, read completely; a note on standard error where that lost something."""
    opened = open_as_is(path)
    found, note = eight_bit(opened)
    if note and (opened.mode not in _WHOLE or "transparency" in opened.info):
        print(f"note: {path.name}: {note}", file=sys.stderr)
    return found


def open_as_is(path: Path) -> Any:
    """A PIL image in the mode of its file, read completely and upright; a note on standard error where it was turned for that."""
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*.png")) if path.parent.is_dir() else []
        raise NotFoundError.among("image file", str(path), near) if near else NotFoundError(f"no image file {str(path)!r}")
    if path.is_dir():
        raise NotFoundError(f"{str(path)!r} is a folder; give one image file")
    stored = read_image(path, str(path))
    found = upright(stored)
    if found is not stored:
        print(f"note: {path.name}: turned upright, as its EXIF orientation says", file=sys.stderr)
    return found


def read_image(file: Path | BinaryIO, called: str) -> Any:
    """A PIL image as its file stores it, read completely; ``called`` names it in the error."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as problem:
        unknown = isinstance(problem, UnidentifiedImageError) and not isinstance(file, Path)  # it would name an object in memory
        raise LoadError(f"cannot read {called!r} as an image: {'no format that Pillow knows' if unknown else problem}") from None


def is_input(site: str | None) -> bool:
    """Does ``--site`` mean the model's input?"""
    return site is None or site == "input" or site.startswith("input:")


def read_baseline(text: str, loaded: Loaded, *, at_input: bool = True) -> Baseline | Distribution:
    """A baseline as a command line spells it, sets of images in a folder included: ``mean_of(FOLDER)``, ``distribution(FOLDER, 8)``.

    ``distribution(noise, 8)`` draws noise. The mean is that of the images themselves at the input, of their features at a layer.
    """
    head, _, rest = text.strip().partition("(")
    if head not in ("mean_of", "distribution"):
        return baselines.by_name(text)
    source, comma, count = rest.strip().removesuffix(")").partition(",")
    draws, source = whole_number(count), source.strip()
    if not rest.strip().endswith(")") or not source or (comma and (draws is None or head == "mean_of")):
        raise UsageError(f"cannot read {text!r}; write mean_of(FOLDER), distribution(FOLDER, 8) or distribution(noise, 8)")
    if head == "distribution" and source == "noise":
        return baselines.distribution(baselines.noise, draws=draws)
    members = [loaded.preprocess(open_image(path)) for path in image_files(Path(source))]
    if head == "distribution":
        return baselines.distribution(members, draws=draws, name=Path(source).resolve().name)
    return baselines.mean_of(members, at="input" if at_input else "site", name=f"mean of {len(members)} in {Path(source).resolve().name}")


def split(text: str) -> list[str]:
    """``"black, distribution(photos, 8)"`` at the commas outside brackets."""
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += letter
    return [part.strip() for part in (*parts, current) if part.strip()]


def open_mask(loaded: Loaded, mask: Path | None, box: str | None, image: Any) -> Tensor | None:
    """Where the object is, as the model sees it (bool [height, width]): a mask image (white), or a box in the image's pixels."""
    drawn = _drawn(mask, box, image)
    if drawn is None:
        return None
    inside = place_seen(loaded.preprocess, drawn)
    if not bool(inside.any()):
        raise UsageError("the mask or box holds no pixel that the model sees")
    return inside


def place_on(mask: Path | None, box: str | None, image: Any) -> Tensor | None:
    """A mask or box as bool [height, width] in the image's own pixels."""
    drawn = _drawn(mask, box, image)
    return None if drawn is None else raw_pixels(drawn.convert("L"))[..., 0] > 127


def _drawn(mask: Path | None, box: str | None, image: Any) -> Any | None:
    """A mask image, or a box in white on black, of the image's size."""
    if mask is not None and box is not None:
        raise UsageError("--mask and --box were both given; give one")
    if mask is not None:
        drawn: Any = open_image(mask)
        if drawn.size != image.size:
            raise UsageError(f"the mask {str(mask)!r} is {drawn.width} x {drawn.height}; the image is {image.width} x {image.height}")
        return drawn
    return None if box is None else drawn_box(box, image, "--box")


def drawn_box(box: str, image: Any, called: str = "the box") -> Any:
    """LEFT,TOP,RIGHT,BOTTOM in white on black, of the image's size; errors name what could not be read as it is ``called``."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = read_box(box, image, f"cannot read {called} {box!r}; write LEFT,TOP,RIGHT,BOTTOM in pixels", f"the box {box}")
    drawn = Image.new("RGB", image.size)
    ImageDraw.Draw(drawn).rectangle((left, top, right - 1, bottom - 1), fill="white")
    return drawn


def read_box(text: str, image: Any, unreadable: str, called: str) -> tuple[int, int, int, int]:
    """``LEFT,TOP,RIGHT,BOTTOM`` in an image's pixels; where it is none the error says ``unreadable``, where it is outside it is ``called`` so."""
    sides = [number for part in text.split(",") if (number := whole_number(part)) is not None]
    if len(sides) != 4 or text.count(",") != 3:
        raise UsageError(unreadable)
    left, top, right, bottom = sides
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise UsageError(f"{called} is not within the image of {image.width} x {image.height}")
    return left, top, right, bottom


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name."""
    if not folder.is_dir():
        raise NotFoundError(f"no folder {str(folder)!r}; a set of images is a folder of image files")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"the folder {str(folder)!r} holds no image ({', '.join(SUFFIXES)}): an empty set has no mean and nothing to draw")
    return found
