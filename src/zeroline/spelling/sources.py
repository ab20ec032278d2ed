"""What people point at: a model by scheme, an image by path, a baseline or a box in words."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from zeroline import baseline as baselines
from zeroline.baseline import Baseline, Distribution
from zeroline.errors import LoadError, NotFoundError, UsageError
from zeroline.model.inputs import placed
from zeroline.model.loading import Loaded, Sourced, any_from_hub, from_hub, from_open_clip, from_timm
from zeroline.model.pictures import eight_bit, place_seen, raw_pixels, upright
from zeroline.similarity import similarity
from zeroline.spelling.reading import read_target, scale_of
from zeroline.target import Target, detection, top_token, whole_number

_PAIRS = "`zeroline explain`, `layers`, `compare` and `attend` take an image with --text, `zeroline baselines` with several"
_WHOLE = ("1", "L", "P")  # modes that are wholly kept in RGB
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SCHEMES = {
    "zoo": "zoo:NAME, a model that ships with zeroline (no network)",
    "hf": "hf:ID or hf:FOLDER, an image classifier from the Hugging Face hub, its cache, or a folder",
    "timm": "timm:NAME, a timm model with its pretrained weights",
    "open_clip": "open_clip:ARCHITECTURE/PRETRAINED, an open_clip model with weights by tag or from a checkpoint file (with --text)",
}


def load_model(text: str, *, trust_remote_code: bool = False) -> Loaded:
    """``zoo:digits-vit``, ``hf:google/vit-base-patch16-224``, ``hf:./folder``, ``timm:NAME``; no scheme means ``hf:``."""
    _quiet()
    scheme, name = scheme_and_name(text)
    loaders: dict[str, Callable[[str], Loaded]] = {
        "zoo": _from_zoo,
        "hf": lambda n: from_hub(n, trust_remote_code=trust_remote_code),
        "timm": from_timm,
        "open_clip": _no_classifier,
    }
    return loaders[scheme](name)


def load_sourced(text: str, *, trust_remote_code: bool = False) -> Sourced:
    """As ``load_model``, for models of any sources: words, a picture, or both."""
    _quiet()
    scheme, name = scheme_and_name(text)
    if scheme == "hf":
        return any_from_hub(name, trust_remote_code=trust_remote_code)
    if scheme == "zoo":
        return _sourced_from_zoo(name)
    if scheme == "open_clip":
        return from_open_clip(name)
    return sourced(load_model(text))


def sourced(loaded: Loaded) -> Sourced:
    """A model of images alone as one of any sources; a tensor that its preprocessing gives is its input ``x``."""

    def prepare(image: Any, _: str | None) -> Any:
        found = loaded.preprocess(image)
        return found if isinstance(found, Mapping) else {"x": found}

    return Sourced(loaded.name, loaded.model, prepare, loaded.labels)


def sources_of(sourced: Sourced, image: Any | None, text: str | None) -> tuple[Any | None, str | None]:
    """The image and the text that a model reads; an error where one is missing, or given to a model that reads none."""
    for what, given in (("image", image), ("text", text)):
        if given is None and what in sourced.reads:
            raise UsageError(f"{sourced.name!r} reads {' and '.join(sourced.reads)}; give {'an image file' if what == 'image' else '--text'}")
        if given is not None and what not in sourced.reads:
            raise UsageError(f"{sourced.name!r} reads no {what}, only {' and '.join(sourced.reads) or 'what its processor makes'}")
    return image, text


def stand_in(sourced: Sourced, image: Any | None, text: str | None) -> tuple[Any | None, str | None]:
    """What to run a model on where only its structure is asked: what is given, else a test pattern and a few words."""
    picture = pattern() if image is None and "image" in sourced.reads else image
    return sources_of(sourced, picture, "a few words" if text is None and "text" in sourced.reads else text)


def target_for(text: str, sourced: Sourced) -> Target:
    """The target of ``--target``: of a model that writes words, "top" is the token that it would write next; of a dual encoder, a similarity;

    of a detector "top" is its surest detection.
    """
    if sourced.predicts_tokens:
        if text != "top":
            raise UsageError(f"{sourced.name!r} predicts tokens: --target top is possible here; in Python, zl.target.token(id, position)")
        return top_token()
    if sourced.is_dual_encoder:
        return similarity(scale=scale_of(text))
    if sourced.is_detector and text == "top":
        return detection("top")
    return read_target(text, sourced.labels)


def image_only(sourced: Sourced, text: str | None) -> Loaded:
    """The model as one of images alone, with a text held: for masks and baselines that are images."""
    return Loaded(sourced.name, sourced.model, lambda image: sourced.prepare(image, text), sourced.labels)


def question(
    model: str, image: Any, texts: Sequence[str] | None, target: str, *, trust_remote_code: bool = False
) -> tuple[Loaded, Mapping[str, Any] | Tensor, Target]:
    """A model as one of images alone, its inputs and ``--target``; the first of ``texts`` is what it reads with the image.

    A second text is for dual encoders: the target is then the similarity with the first, minus that with the second.
    """
    if not texts:
        loaded = load_model(model, trust_remote_code=trust_remote_code)
        return loaded, loaded.preprocess(image), target_for(target, sourced(loaded))
    known = load_sourced(model, trust_remote_code=trust_remote_code)
    sources_of(known, image, texts[0])
    if len(texts) > (2 if known.is_dual_encoder else 1):
        raise UsageError(f"{len(texts)} texts were given; {known.name!r} takes {'one, or two to contrast' if known.is_dual_encoder else 'one'} here")
    loaded = image_only(known, texts[0])
    return loaded, loaded.preprocess(image), target_of(known, target, *texts)


def texts_as_classes(known: Sourced, texts: Sequence[str]) -> Loaded:
    """A dual encoder as a classifier of pictures over some texts, each the name of its class."""
    if not known.is_dual_encoder:
        raise UsageError(f"{known.name!r} compares no pictures with texts; --text means nothing here")
    if len(set(texts)) < len(texts):
        raise UsageError("the same --text was given twice")
    if len(texts) < 2:
        raise UsageError("one text was given; texts are the classes here: two or more of them")

    def preprocess(image: Any) -> Mapping[str, Any]:
        given = [known.prepare(image, text) for text in texts]
        return {name: _stacked(name, [one[name] for one in given], known.tokenizer) for name in given[0]}

    return Loaded(known.name, known.model, preprocess, {text: number for number, text in enumerate(texts)})


def _stacked(name: str, rows: Sequence[Tensor], tokenizer: Any) -> Tensor:
    """One row per text, padded at the end to the longest; what is floating point is the picture, and the same for all."""
    if rows[0].is_floating_point():
        return rows[0]
    longest = max(row.shape[-1] for row in rows)
    padding = 0 if name.endswith("mask") or tokenizer is None else int(tokenizer.pad_token_id)
    return torch.cat([torch.nn.functional.pad(row, (0, longest - row.shape[-1]), value=padding) for row in rows])


def target_of(known: Sourced, target: str, text: Any, against: str | None = None) -> Target:
    """``--target`` of a model that was given a text: of a dual encoder the similarity with it, minus that with another text."""
    if not known.is_dual_encoder:
        return target_for(target, known)
    scale = scale_of(target)
    if against is None:
        return similarity(scale=scale, names=repr(text))
    return similarity(against=placed(known.model, known.prepare(None, against)), scale=scale, names=(repr(text), repr(against)))


def pattern() -> Any:
    """A colour gradient with stripes: every channel and every position differ."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:256, 0:256]
    return Image.fromarray(np.stack([x, y, (x * 3 + y * 5) % 256], -1).astype(np.uint8))


def scheme_of(text: str) -> str:
    """``zoo``, ``hf``, ``timm`` or ``open_clip``."""
    return scheme_and_name(text)[0]


def scheme_and_name(text: str) -> tuple[str, str]:
    """("hf", "google/vit-base-patch16-224"); an error where the scheme, or a bare name, is none."""
    scheme, colon, name = text.partition(":")
    if not colon or scheme not in SCHEMES:
        if colon and "/" not in scheme and len(scheme) > 1:
            raise NotFoundError.among("model scheme", scheme, SCHEMES, "e.g. zoo:digits-vit")
        if not colon and "/" not in text and not Path(text).exists():
            raise NotFoundError.among("model", text, _examples(), "write zoo:NAME, hf:ID-OR-FOLDER, timm:NAME or open_clip:ARCHITECTURE/PRETRAINED")
        scheme, name = "hf", text
    return scheme, name


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


def _sourced_from_zoo(name: str) -> Sourced:
    from zeroline import zoo

    model, reads = zoo.load(name), zoo.MODELS[name].reads
    tokenizer = zoo.tokenizer(name) if "text" in reads else None
    words = None if tokenizer is None else tokenizer.convert_ids_to_tokens
    return Sourced(name, model, lambda image, text: zoo.preprocess(name, image, text), _zoo_labels(model), reads, words, tokenizer)


def _zoo_labels(model: Any) -> dict[str, int]:
    return {str(label): int(index) for index, label in model.config.id2label.items()}


def _from_zoo(name: str) -> Loaded:
    from zeroline import zoo

    model = zoo.load(name)
    if "text" in zoo.MODELS[name].reads:
        raise UsageError(f"zoo model {name!r} reads text and image; {_PAIRS}")
    return Loaded(name, model, lambda image: zoo.preprocess(name, image), _zoo_labels(model))


def _no_classifier(name: str) -> Loaded:
    raise UsageError(f"open_clip model {name!r} compares an image with a text; {_PAIRS}")


def _examples() -> list[str]:
    from zeroline import zoo

    return [f"zoo:{name}" for name in zoo.MODELS]


def _quiet() -> None:
    """Loading bars and advice of other libraries do not belong between our lines."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    hub_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
