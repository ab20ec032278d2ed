"""What stands in an input that is not there: each input by itself at a stated baseline, words and pixels alike.

Holds ``absent`` (one input of a model as its baseline fills it), the baseline that goes without saying (``usual``), and ``sources``: the
inputs that a model's attention starts from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zeroline.baseline import Baseline, BaselineLike, Replaced, as_baseline, token, zeros
from zeroline.errors import BaselineError, InputError, NotFoundError
from zeroline.model.capture import in_order
from zeroline.model.inputs import Inputs
from zeroline.model.places import Place
from zeroline.model.reference import other_words, reference_inputs, settled
from zeroline.model.trace import Trace

_NO_MARKERS = ("mask_token_id", "pad_token_id", "unk_token_id")


def usual(model: nn.Module, inputs: Inputs, name: str) -> Baseline:
    """Zeros for numbers; for ids the token that the model's configuration calls mask, else pad; markers that it names stay.

    BERT's configuration names neither a mask token nor [CLS] and [SEP]: its tokenizer does (``zl.baseline.mask_token``). Raises
    BaselineError where it names none: then one must be given.
    """
    if inputs.tensors[name].is_floating_point():
        return zeros()
    config = getattr(model, "config", None)
    parts = [config, *(getattr(config, part, None) for part in ("text_config", "decoder", "encoder"))]
    named = [(a, v) for part in parts if hasattr(part, "__dict__") for a, v in vars(part).items() if a.endswith(("_token_id", "_token_index"))]
    known: dict[str, int] = {a: v for a, v in named if isinstance(v, int) and not isinstance(v, bool)}
    several = [one for a, v in named if a not in _NO_MARKERS and isinstance(v, (list, tuple)) for one in v]
    for which in ("mask_token_id", "pad_token_id"):
        if which in known:
            markers = [*(id for a, id in known.items() if a not in _NO_MARKERS), *several]
            keep = [*markers, *([known["pad_token_id"]] if "pad_token_id" in known else [])]
            what = "word" if markers else "token, markers too"
            return token(known[which], keep=keep, name=f"{which.removesuffix('_id').replace('_', ' ')} {known[which]} for every {what}")
    hint = "give one, e.g. zl.baseline.mask_token(tokenizer) or zl.baseline.token(id)"
    raise BaselineError(f"input {name!r} holds ids, and the model's configuration names no mask or pad token to stand for them; {hint}")


def absent(model: nn.Module, inputs: Inputs, name: str, baseline: BaselineLike | None) -> tuple[Tensor, str]:
    """The input ``name`` as its baseline fills it, of the shape of x, and the baseline's name."""
    if name not in inputs.tensors:
        raise NotFoundError.among("input", name, inputs.tensors)
    known = usual(model, inputs, name) if baseline is None else as_baseline(baseline)
    given = inputs.tensors[name]
    if isinstance(known.recipe, Replaced):
        if given.is_floating_point():
            raise BaselineError(f"baseline {known.name!r} replaces token ids, and input {name!r} holds numbers ({given.dtype})")
        return other_words(model, inputs, name, known.recipe), known.name
    if known.inputs is None and not given.is_floating_point():
        raise BaselineError(
            f"baseline {known.name!r} fills numbers, and input {name!r} holds ids; use zl.baseline.mask_token(tokenizer) or .token(id)"
        )
    places = (Place(input=name),)
    known = settled(model, inputs, known, places)
    if known.features:
        return known.checked(known.features[0], given), known.name
    return reference_inputs(model, inputs, known, places).tensors[name], known.name


@contextmanager
def under_baselines() -> Iterator[None]:
    """A pass with sources at their baselines: what the model itself raises there becomes one clear error."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError) as problem:
        first = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise BaselineError(f"the model does not run with sources at their baselines: {first}; give baselines that it reads") from problem


def sources(model: nn.Module, found: Trace, inputs: Inputs) -> tuple[str, ...]:
    """The model's inputs that a stream starts from, in the order of ``forward``."""
    names = {stream.name.partition("#")[0] for stream in found.streams if stream.is_input}
    return tuple(name for name in in_order(model, inputs) if name in names and name in inputs.tensors)


def refuse_unknown(given: BaselineLike | Mapping[str, BaselineLike] | None, inputs: Inputs) -> None:
    """NotFoundError where a mapping of baselines names no input of the model."""
    for name in given if isinstance(given, Mapping) else ():
        if name not in inputs.tensors:
            raise NotFoundError.among("input", str(name), inputs.tensors, "baseline= names inputs")


def as_by_input(given: BaselineLike | Mapping[str, BaselineLike] | None, name: str) -> BaselineLike | None:
    """The baseline of one input, of one for all or a mapping of them."""
    return given.get(name) if isinstance(given, Mapping) else given


def filled(where: Tensor | None, like: Tensor, name: str) -> Tensor:
    """``where`` as bool of the shape of ``like`` [batch, ...], or of as much of it as is needed to be broadcast over it.

    Over positions of one sample, or of each of a batch; see ``zl.Player``. Raises InputError where it fits no axis.
    """
    sample = tuple(like.shape[1:])
    axes = {2: (0,), 3: (1, 2)}.get(len(sample), tuple(range(len(sample))))  # tokens of features, pixels of an image
    positions = tuple(sample[axis] for axis in axes)
    try:
        own = torch.ones(positions, dtype=torch.bool) if where is None else torch.as_tensor(where)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"player {name!r} has {where!r} for a place; it is bool over the positions {positions}") from None
    if own.dtype != torch.bool:
        raise InputError(f"player {name!r} has a place of {own.dtype}; it is bool: True where the player is")
    fits = [
        kept
        for kept in dict.fromkeys((axes, tuple(range(len(sample)))))
        if tuple(own.shape) in ((shape := tuple(sample[axis] for axis in kept)), (like.shape[0], *shape))
    ]
    if len(fits) == 2:  # as many samples as channels
        raise InputError(f"player {name!r} has a place {tuple(own.shape)}: {like.shape[0]} samples, or one sample's; give {tuple(like.shape)}")
    if not fits:
        raise InputError(f"player {name!r} has a place of shape {tuple(own.shape)}; {like.shape[0]} samples have positions {positions} or {sample}")
    return own.reshape(-1, *(sample[axis] if axis in fits[0] else 1 for axis in range(len(sample))))
