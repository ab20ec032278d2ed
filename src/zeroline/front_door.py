"""One call for one question: a pipeline or a model by name, an image or a text, and the words of the command line or objects.

Holds ``explain`` and ``load``, users' ``zl.explain`` and ``zl.load``. Both only translate: models come from ``spelling.models``, what is computed is
a function of ``zl.METHODS`` or ``zl.ROUTES``, and its record is what comes back. Nothing is drawn, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zeroline import baseline as baselines
from zeroline.attribution import Attribution
from zeroline.baseline import Baseline, BaselineLike
from zeroline.errors import BaselineError, InputError, NotFoundError, UsageError
from zeroline.methods import METHODS, NO_MAP, ROUTES, check_options
from zeroline.model.inputs import placed
from zeroline.model.loading import Loaded, Sourced, from_pipeline
from zeroline.model.normalisation import told
from zeroline.model.pictures import eight_bit, upright
from zeroline.paradigm.players import missing_word
from zeroline.relevance import Relevance
from zeroline.site import SiteLike, as_site
from zeroline.spelling.models import load_sourced, sourced
from zeroline.spelling.questions import image_only, sources_of, target_of
from zeroline.spelling.sources import is_input, open_image, read_baseline
from zeroline.target import TargetLike

Text = str | tuple[str, str] | list[str]
_WORDS: dict[str, Callable[[Any], Baseline]] = {
    "mask": baselines.mask_token,
    "unknown": baselines.unknown_token,
    "pad": baselines.pad_token,
}


def load(name: str, *, trust_remote_code: bool = False) -> Sourced:
    """The model that the command line means by ``--model``: ``zoo:NAME``, ``hf:ID-OR-FOLDER``, ``timm:NAME``, ``open_clip:ARCHITECTURE/PRETRAINED``.

    Returns:
        ``.model``, ``.prepare(image, text)`` for its inputs (None for what it does not read), ``.labels``, ``.reads``.

    Raises:
        NotFoundError: no such scheme or name; LoadError: weights that cannot be read, or a package that is missing.
    """
    return load_sourced(name, trust_remote_code=trust_remote_code)


def explain(
    model: Any,
    inputs: Any,
    *,
    method: str = "integrated_gradients",
    target: TargetLike = "top",
    site: SiteLike = None,
    baseline: BaselineLike | str | None = None,
    text: Text | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Attribution | Relevance:
    """What one prediction is based on.

    Args:
        model: a Hugging Face pipeline, a name as on the command line (``"zoo:digits-vit"``), or what ``zl.load`` gives. It stays on its device.
        inputs: a PIL image or the path of one; of a model that reads only text, the text, or a pair of texts for a cross-encoder.
        method: a name of ``zl.METHODS`` (an ``Attribution``), or of a route through attentions such as ``"attention_relevance"`` (a ``Relevance``).
        target: a target, or the command line's words: ``"top"``, a class, ``"nine - four"``, ``"detection 3"``; of a dual encoder ``"cosine"``
            (what "top" means there) or ``"logit"``.
        site: where the features are; None is the input, and of a model that reads only text its token embedding.
        baseline: a ``zl.baseline`` record or its words, for texts also ``"mask"``, ``"unknown"`` and ``"pad"``. None is ``black`` for an image, for
            a text the tokenizer's mask token (or unknown, or padding token) in every word's place. The record names it.
        text: what a model of images and text reads with the image. A dual encoder also takes a list of two: why the first rather than the second.
        options: of the method, as in ``zl.integrated_gradients`` and its like: ``tolerance=0.001``, ``path="midpoint"``, ``grid=(7, 7)``.

    Returns:
        The method's record.

    Raises:
        UsageError: what was asked is not possible for this model, with what is; LoadError: a model or an image that cannot be read.
    """
    _check(method, options, site, baseline)
    known = _model(model, trust_remote_code)
    image, words, second = _sources(known, inputs, text)
    given = placed(known.model, known.prepare(image, words))
    asked = _target(known, target, words, second)
    found: Attribution | Relevance
    if method in ROUTES:
        found = ROUTES[method](known.model, given, target=asked, **options)
    else:
        where = "embedding" if site is None and "image" not in known.reads else site
        start = _baseline(known, baseline, words, where)
        with told(known.model, known.normalisation):
            found = METHODS[method](known.model, given, target=asked, site=where, baseline=start, **options)
    # a model that was loaded for this question is gone after it, and its hash with it
    return replace(found, weights=found.model_id.rpartition("@")[2]) if isinstance(model, str) else found


def _check(method: str, options: Mapping[str, Any], site: SiteLike, baseline: Any) -> None:
    possible = (*METHODS, *(name for name in ROUTES if name not in NO_MAP))
    if method not in possible:
        why = f"{method} gives no map of one question; use zl.{method}" if method in NO_MAP else "see zl.METHODS and zl.ROUTES"
        raise NotFoundError.among("method", str(method), possible, why)
    check_options(method, options, but=("site", "baseline"))
    if method in ROUTES and (site is not None or baseline is not None):
        what = "a site" if site is not None else "a baseline"
        raise UsageError(f"{what} means nothing to {method}, which goes through attentions; it belongs to {', '.join(METHODS)}")


def _model(model: Any, trust_remote_code: bool) -> Sourced:
    if isinstance(model, str):
        return load(model, trust_remote_code=trust_remote_code)
    if isinstance(model, Sourced):
        return model
    return sourced(model) if isinstance(model, Loaded) else from_pipeline(model)


def _sources(known: Sourced, inputs: Any, text: Text | None) -> tuple[Any, Any, str | None]:
    """The image, the text, and the text that a dual encoder's is compared with."""
    second = None
    if "image" not in known.reads:
        image, words = None, inputs
        if text is not None:
            raise UsageError(f"{known.name!r} reads only text: give the text, or a pair of texts, as inputs and leave text= out")
        if not isinstance(words, str) and not (isinstance(words, tuple) and all(isinstance(one, str) for one in words) and len(words) == 2):
            raise InputError(f"{known.name!r} reads text: a string or a pair of strings, not {type(words).__name__}")
    else:
        image, words = _image(inputs), text
    if isinstance(words, list):
        if not known.is_dual_encoder or not 1 <= len(words) <= 2:
            raise UsageError(
                f"{len(words)} texts were given; a list of two is for a model that compares an image with a text: the first, minus the second"
            )
        words, second = words[0], words[1] if len(words) == 2 else None
    return (*sources_of(known, image, words), second)


def _image(given: Any) -> Any:
    """A PIL image in RGB and upright, from a path where one is given."""
    from PIL import Image

    if isinstance(given, (str, Path)):
        return open_image(Path(given))
    if not isinstance(given, Image.Image):
        raise InputError(f"an image is a PIL image or the path of one, not {type(given).__name__}")
    return eight_bit(upright(given))[0]


def _target(known: Sourced, target: TargetLike, words: Any, second: str | None) -> TargetLike:
    if not isinstance(target, str):
        if second is not None:
            raise UsageError("a second text and a target were given; zl.similarity(against=...) says both")
        return target
    return target_of(known, target, words, second)


def _baseline(known: Sourced, baseline: BaselineLike | str | None, words: Any, site: SiteLike) -> BaselineLike:
    reads_images = "image" in known.reads and as_site(site).kind != "embedding"
    if baseline is None:
        return baselines.black() if reads_images else missing_word(known.tokenizer)
    if not isinstance(baseline, str):
        return baseline
    if baseline in _WORDS:
        if known.tokenizer is None or reads_images:
            raise BaselineError(f"baseline {baseline!r} replaces words, and the features here are an image's; e.g. black, blur(8), zeros")
        return _WORDS[baseline](known.tokenizer)
    loaded = image_only(known, words)
    there = replace(loaded, preprocess=lambda image: placed(known.model, loaded.preprocess(image)))
    return read_baseline(baseline, there, at_input=is_input(str(as_site(site))))
