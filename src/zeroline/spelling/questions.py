"""What a model of any sources is asked: the image and texts that it reads, and the target that ``--target`` means to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zeroline.errors import UsageError
from zeroline.model.inputs import placed
from zeroline.model.loading import Loaded, Sourced
from zeroline.similarity import similarity
from zeroline.spelling.models import load_model, load_sourced, sourced
from zeroline.spelling.reading import read_target, scale_of
from zeroline.target import Target, detection, top_token


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


def pattern() -> Any:
    """A colour gradient with stripes: every channel and every position differ."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:256, 0:256]
    return Image.fromarray(np.stack([x, y, (x * 3 + y * 5) % 256], -1).astype(np.uint8))


def image_only(sourced: Sourced, text: str | None) -> Loaded:
    """The model as one of images alone, with a text held: for masks and baselines that are images."""
    return Loaded(sourced.name, sourced.model, lambda image: sourced.prepare(image, text), sourced.labels)


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


def target_of(known: Sourced, target: str, text: Any, against: str | None = None) -> Target:
    """``--target`` of a model that was given a text: of a dual encoder the similarity with it, minus that with another text."""
    if not known.is_dual_encoder:
        return target_for(target, known)
    scale = scale_of(target)
    if against is None:
        return similarity(scale=scale, names=repr(text))
    return similarity(against=placed(known.model, known.prepare(None, against)), scale=scale, names=(repr(text), repr(against)))


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
        words = [known.prepare(None, text) for text in texts]
        return {**known.prepare(image, texts[0]), **{name: _stacked(name, [one[name] for one in words], known.tokenizer) for name in words[0]}}

    return Loaded(known.name, known.model, preprocess, {text: number for number, text in enumerate(texts)})


def _stacked(name: str, rows: Sequence[Tensor], tokenizer: Any) -> Tensor:
    """One row per text, padded at the end to the longest."""
    longest = max(row.shape[-1] for row in rows)
    padding = 0 if name.endswith("mask") or tokenizer is None else int(tokenizer.pad_token_id)
    return torch.cat([torch.nn.functional.pad(row, (0, longest - row.shape[-1]), value=padding) for row in rows])
