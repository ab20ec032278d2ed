"""What is seen beside a record, taken from its model and inputs; and pages of records.

Holds ``write_report``, users' way to a page, and the functions that make a ``Seen``: the picture as the model saw it, back from its tensor; the
baseline's; tokens as text; how values lie. The command line and the web page use the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zeroline.attribution import Attribution
from zeroline.baseline import Baseline, BaselineLike, Distribution, Normalisation
from zeroline.errors import BaselineError, InputError
from zeroline.model import normalisation
from zeroline.model.families import patch_grid
from zeroline.model.inputs import Inputs
from zeroline.model.loading import Sourced
from zeroline.model.positions import positions_of
from zeroline.model.reference import reference_inputs
from zeroline.relevance import Relevance
from zeroline.report import figure, page
from zeroline.seen import BASELINE, IMAGE, Seen

_NO_WORDS = ("mask", "type", "position")  # whole numbers that are no tokens


def write_report(
    path: str | Path,
    *records: Any,
    model: nn.Module | None = None,
    inputs: Any = None,
    baseline: BaselineLike | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
) -> None:
    """One self-contained HTML page of records of any kind: the question in words, maps to look into, errors, tables.

    Args:
        path: the file to write; a temporary name first, then renamed.
        records: of one model and one input each, a chapter each.
        model, inputs: to show what the model saw: pictures are brought back from the inputs. Without them the page has words and tables alone.
        baseline: that of an attribution, to show what counts as nothing.
        words: input -> its tokens as text, for models that read words.

    Raises:
        UsageError: there is no such folder; SiteError or InputError: the inputs do not fit the record.
    """
    chapters = []
    for record in records:
        seen = Seen() if model is None else around(record, model, inputs, baseline, words)
        chapters.append(page.chapter(record, seen))
    page.save(chapters, path, title)


def around(
    record: Any,
    model: nn.Module,
    inputs: Any,
    baseline: BaselineLike | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
    *,
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
) -> Seen:
    """What is seen beside a record: pictures, words, and how an attribution's values lie (``grid`` and ``prefix`` go before what the model says)."""
    texts = {name: tuple(map(str, one)) for name, one in (words or {}).items()}
    if isinstance(record, Relevance):
        streams = [name for name in record.by_source if isinstance(inputs, Mapping) and name in inputs]
        pictures = {name: picture_of(model, inputs[name]) for name in streams}
        return Seen(levels({**pictures, IMAGE: picture_among(model, inputs)}), {name: texts[name] for name in texts if name in record.by_source})
    shown = picture_among(model, inputs)
    if not isinstance(record, Attribution):
        return Seen(levels({IMAGE: shown}), texts)
    if shown is None:
        return Seen(words=texts)
    if grid is None and prefix is None:
        lie = positions_of(model, Inputs.of(model, inputs), figure.picture_part(record))
        grid, prefix = (lie.grid, lie.prefix) if lie.grid is not None else (None, None)
    elif grid is None:
        grid = patch_grid(model, shown.shape[:2])
    nothing = baseline_picture(model, inputs, baseline, record.site) if isinstance(baseline, (Baseline, Distribution)) else None
    return Seen(levels({IMAGE: shown, BASELINE: nothing}), texts, grid, prefix)


def levels(pictures: Mapping[str, figure.Picture | None]) -> dict[str, Tensor]:
    """Pictures in 0..1 as whole levels, those that are there."""
    known = {name: picture for name, picture in pictures.items() if picture is not None}
    return {name: torch.from_numpy((np.clip(picture, 0, 1) * 255).round().astype(np.uint8)) for name, picture in known.items()}


def picture_of(model: Any, given: Any) -> figure.Picture | None:
    """An input of a model back as a picture in [0, 1], where it is one."""
    image = _image_tensor([given])
    return None if image is None else _unnormalised(image, normalisation.of(model))


def picture_among(model: Any, inputs: Any) -> figure.Picture | None:
    """The model's own view of the photograph: the first input that is a picture, back in [0, 1]."""
    image = _image_tensor(inputs)
    return None if image is None else _unnormalised(image, normalisation.of(model))


def baseline_picture(model: nn.Module, inputs: Any, baseline: Baseline | Distribution, site: str = "input:") -> figure.Picture | None:
    """The baseline as a picture, where it is one (features at a layer are not; of a distribution, the mean over its draws)."""
    if isinstance(baseline, Distribution):
        seen = [baseline_picture(model, inputs, draw, site) for draw in baseline.draws]
        known = [one for one in seen if one is not None]
        return np.mean(known, axis=0, dtype=np.float32) if len(known) == len(seen) else None
    if baseline.at != "input" and not site.startswith("input:"):
        return None
    try:
        image = _image_tensor(reference_inputs(model, Inputs.of(model, inputs), baseline).named)
    except (BaselineError, InputError):
        return None
    return None if image is None else _unnormalised(image, normalisation.of(model))


def words_of(sourced: Sourced, inputs: Any) -> dict[str, tuple[str, ...]]:
    """Tokens as text, of the inputs that are ids."""
    if sourced.words is None or not isinstance(inputs, Mapping):
        return {}
    plain = {name: given for name, given in inputs.items() if not any(part in name for part in _NO_WORDS)}
    ids = {name: given for name, given in plain.items() if isinstance(given, Tensor) and not given.is_floating_point() and given.ndim == 2}
    return {name: tuple(str(word) for word in sourced.words(given[0].tolist())) for name, given in ids.items()}


def beside(record: Any, sourced: Sourced, inputs: Any, baseline: BaselineLike | None = None, photograph: Any | None = None) -> Seen:
    """``around`` for a model with its tokenizer; the ``photograph`` (PIL) where the inputs hold no picture but what was made of it."""
    seen = around(record, sourced.model, inputs, baseline, words_of(sourced, inputs))
    if seen.image is not None or photograph is None:
        return seen
    levels_of = torch.from_numpy(np.array(photograph.convert("RGB"), dtype=np.uint8))
    return replace(seen, pictures={**seen.pictures, IMAGE: levels_of})


def _image_tensor(inputs: Any) -> Tensor | None:
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs or ())
    return next((t for t in tensors if isinstance(t, Tensor) and t.is_floating_point() and t.ndim == 4 and t.shape[1] in (1, 3)), None)


def _unnormalised(image: Tensor, known: Normalisation | None) -> figure.Picture:
    pixels = image[0].detach().float().cpu()
    if known is not None and len(known.mean) == len(pixels):
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (known.mean, known.std))
        pixels = pixels * std + mean
    else:
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp_min(1e-12)
    return np.asarray(pixels.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).numpy())
