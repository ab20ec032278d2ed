"""Models by scheme: ``zoo:digits-vit``, ``hf:google/vit-base-patch16-224``, ``timm:NAME``, ``open_clip:NAME/WEIGHTS``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zeroline.errors import NotFoundError, UsageError
from zeroline.model.loading import Loaded, Sourced, any_from_hub, from_hub, from_open_clip, from_timm

SCHEMES = {
    "zoo": "zoo:NAME, a model that ships with zeroline (no network)",
    "hf": "hf:ID or hf:FOLDER, an image classifier from the Hugging Face hub, its cache, or a folder",
    "timm": "timm:NAME, a timm model with its pretrained weights",
    "open_clip": "open_clip:ARCHITECTURE/PRETRAINED, an open_clip model with weights by tag or from a checkpoint file (with --text)",
}
_PAIRS = "`zeroline explain`, `layers`, `compare` and `attend` take an image with --text, `zeroline baselines` with several"


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


def _from_zoo(name: str) -> Loaded:
    from zeroline import zoo

    model = zoo.load(name)
    if "text" in zoo.MODELS[name].reads:
        raise UsageError(f"zoo model {name!r} reads text and image; {_PAIRS}")
    return Loaded(name, model, lambda image: zoo.preprocess(name, image), _zoo_labels(model))


def _sourced_from_zoo(name: str) -> Sourced:
    from zeroline import zoo

    model, reads = zoo.load(name), zoo.MODELS[name].reads
    tokenizer = zoo.tokenizer(name) if "text" in reads else None
    words = None if tokenizer is None else tokenizer.convert_ids_to_tokens
    return Sourced(name, model, lambda image, text: zoo.preprocess(name, image, text), _zoo_labels(model), reads, words, tokenizer)


def _zoo_labels(model: Any) -> dict[str, int]:
    return {str(label): int(index) for index, label in model.config.id2label.items()}


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
