"""Measured from what: a baseline names the features that count as "nothing".

Holds the baseline records. Each says how to fill features of a given shape, and *where*: at the site itself
(``z0`` directly) or at the model's input (``x0``, whose features at the site are ``z0``). A *recipe* is a baseline that
only the running model can fill in (the mean features of a set, other words in a text, an input on which the model has no
opinion): following recipes and running the model on x0 is ``zeroline.model.reference``. No method has a default baseline:
the choice is the user's, and its name is in every record.

======================  ====================================================================
at the site             ``zeros``, ``constant``, ``tensor``, ``mean_of`` a set of inputs
at the input            ``black``, ``mean``, ``blur``, ``noise``, ``of`` another input, ``neutral``
at the input, text      ``mask_token``, ``pad_token``, ``unknown_token``, ``token``; the zero embedding is ``zeros`` at ``embedding:NAME``
several                 ``distribution``: values are averaged over its draws (expected gradients)
======================  ====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from zeroline.errors import BaselineError

At = Literal["site", "input"]


@dataclass(frozen=True)
class Normalisation:
    """What the model's preprocessing did to pixels in [0, 1]: ``(pixels - mean) / std`` per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of(self, pixels: float, like: Tensor) -> Tensor:
        """A uniform image of one grey level in [0, 1], normalised, with the shape of ``like``."""
        if like.ndim < 3 or like.shape[-3] != len(self.mean):
            raise BaselineError(f"an image of {len(self.mean)} channels is asked; the input has shape {tuple(like.shape)}")
        mean, std = (like.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return ((pixels - mean) / std).expand_as(like).clone()


_DRAWS = 8
_MOST_DRAWS = 10_000  # each is a whole question of its own
_EXAMPLES = "e.g. black, zeros, blur(8), constant(0.5), noise(0), mean, neutral(black)"
Fill = Callable[[Tensor, Normalisation | None], Tensor]


@dataclass(frozen=True, eq=False)
class MeanOf:
    """A recipe: the mean, over all samples of all ``members`` (model inputs), of the features at the site or of the inputs."""

    members: tuple[Any, ...]


@dataclass(frozen=True)
class Replaced:
    """A recipe: every token id of the text but those in ``keep`` is ``token``."""

    token: int
    keep: tuple[int, ...]


@dataclass(frozen=True)
class Neutral:
    """A recipe: from ``start``, change an input (pixels within [low, high]) or features until KL(p, uniform) <= ``kl``."""

    start: Baseline
    kl: float
    max_steps: int
    low: float | None
    high: float | None


@dataclass(frozen=True, eq=False)
class Baseline:
    """A named way to make baseline features.

    ``fill(features, normalisation)`` gives a tensor of the same shape as ``features``; the normalisation is None at a
    layer, or where the model does not say what it is. ``inputs`` is set where x0 is known as another complete set of
    model inputs, ``features`` where z0 is (one tensor per place of the site). ``seed`` is set where numbers are drawn,
    ``recipe`` where the running model has to be asked, ``kl`` [batch] where it was asked to be neutral.
    """

    name: str
    at: At
    fill: Fill
    inputs: Any = None
    seed: int | None = None
    recipe: MeanOf | Replaced | Neutral | None = None
    features: tuple[Tensor, ...] = ()
    kl: Tensor | None = None

    def __call__(self, features: Tensor, normalisation: Normalisation | None = None) -> Tensor:
        """Baseline features for ``features``, checked for shape, dtype and finite values."""
        if self.recipe is not None:
            raise BaselineError(f"baseline {self.name!r} is a recipe that needs the model; give it to a method or to zl.audit_baseline")
        return self.checked(self.fill(features, normalisation), features)

    def checked(self, filled: Tensor, features: Tensor) -> Tensor:
        """``filled`` with the shape, dtype and device of ``features``; an error where it does not fit or is not finite."""
        filled = filled.to(features)
        if filled.shape != features.shape:
            try:
                filled = filled.expand_as(features).clone()
            except RuntimeError:
                wanted, found = tuple(features.shape), tuple(filled.shape)
                raise BaselineError(f"baseline {self.name!r} has shape {found}; the features have {wanted}") from None
        if not bool(filled.isfinite().all()):
            raise BaselineError(f"baseline {self.name!r} holds NaN or infinite values")
        return filled


def zeros(*, at: At = "site") -> Baseline:
    """Zeros. For normalised pixels this is a grey image, not a black one: see ``black``."""
    return Baseline(_named("zeros", at), at, lambda features, _: torch.zeros_like(features))


def constant(value: float, *, at: At = "site") -> Baseline:
    """The same number everywhere."""
    return Baseline(_named(f"constant({value:g})", at), at, lambda features, _: torch.full_like(features, value))


def black(mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Baseline:
    """A black image, in the normalisation of the model's own image processor.

    Where the model does not say what that is (a plain module), give ``mean`` and ``std`` of pixels in [0, 1].
    """
    if (mean is None) != (std is None):
        raise BaselineError("black() takes mean and std together, or neither")
    for value in (mean, std):
        if value is not None and not isinstance(value, Sequence):
            raise BaselineError(f"black() was given {value!r}; mean and std are one number per channel, e.g. (0.5, 0.5, 0.5)")
    given = None if mean is None or std is None else Normalisation(tuple(mean), tuple(std))

    def fill(pixels: Tensor, normalisation: Normalisation | None) -> Tensor:
        known = given or normalisation
        if known is None:
            raise BaselineError(
                "black() needs the image processor's normalisation, and the model names none;"
                " give black(mean=..., std=...) of pixels in [0, 1] (mean=(0,0,0), std=(1,1,1) for raw pixels)"
            )
        return known.of(0.0, pixels)

    return Baseline("black", "input", fill)


def mean(*, at: At = "input") -> Baseline:
    """Every channel at its own mean over all positions of the sample.

    Channels are dimension 1 of [batch, channels, height, width] and the last of [batch, tokens, width].
    """

    def fill(features: Tensor, _: Normalisation | None) -> Tensor:
        if features.ndim < 3:
            raise BaselineError(f"a mean over positions needs [batch, channels, ...] or [batch, tokens, width], not {tuple(features.shape)}")
        positions = (1,) if features.ndim == 3 else tuple(range(2, features.ndim))
        return features.mean(positions, keepdim=True).expand_as(features).clone()

    return Baseline("mean" if at == "input" else "mean at the site", at, fill)


def blur(sigma: float = 8.0) -> Baseline:
    """The image behind a Gaussian blur of ``sigma`` pixels (reflected at the border)."""
    if not 0 < sigma < math.inf:
        raise BaselineError(f"blur(sigma={sigma:g}) was asked; sigma must be above 0")

    def fill(pixels: Tensor, _: Normalisation | None) -> Tensor:
        if pixels.ndim != 4:
            raise BaselineError(f"blur needs images [batch, channels, height, width], not {tuple(pixels.shape)}")
        return blurred(pixels, sigma)

    return Baseline(f"blur({sigma:g})", "input", fill)


def noise(seed: int = 0, low: float = 0.0, high: float = 1.0, *, at: At = "input") -> Baseline:
    """Uniform noise from a seed, the same for every sample and batch size.

    At the input of an image model whose normalisation is known, ``low`` and ``high`` are pixel values in
    [0, 1]; elsewhere they are feature values.
    """

    def fill(features: Tensor, normalisation: Normalisation | None) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        drawn = low + (high - low) * torch.rand(features.shape[1:], generator=generator)
        drawn = drawn.to(features)
        if normalisation is not None and at == "input" and features.ndim == 4:
            zero, one = (normalisation.of(v, features[:1])[0] for v in (0.0, 1.0))
            drawn = zero + (one - zero) * drawn
        return drawn.expand_as(features).clone()

    return Baseline(_named(f"noise(seed={seed}, {low:g} to {high:g})", at, "input"), at, fill, seed=seed)


def tensor(values: Tensor, *, at: At = "site", name: str = "given tensor") -> Baseline:
    """These features: the shape of the site's, or of one sample of them."""
    kept = values.detach().clone()
    return Baseline(_named(name, at), at, lambda features, _: kept)


def of(other_inputs: Any, *, name: str = "features of another input") -> Baseline:
    """The features that the model computes at the site for other inputs (same shapes, masks included)."""
    return Baseline(name, "input", lambda features, _: features, inputs=other_inputs)


def mean_of(inputs: Any, *, at: At = "site", name: str = "mean of a set") -> Baseline:
    """The mean over a set of inputs: of their features at the site (default), or of the inputs themselves.

    ``inputs`` is a list of model inputs (each a tensor, tuple or dict, of any batch size), or one batch of them. At the
    site that is ``z0 = mean_i z(x_i)``; where the features are not linear in the input no input need have them.
    """
    members = _members(inputs, "mean_of")
    return Baseline(_named(name, at), at, _asks_the_model, recipe=MeanOf(members))


def token(token_id: int, *, keep: Iterable[int] = (), name: str | None = None) -> Baseline:
    """A text in which every token but those in ``keep`` is ``token_id``; masks and positions stay those of x."""
    recipe = Replaced(int(token_id), tuple(sorted(int(k) for k in keep)))
    return Baseline(name or f"token {int(token_id)} for every word", "input", _asks_the_model, recipe=recipe)


def mask_token(tokenizer: Any) -> Baseline:
    """The text with every word replaced by the tokenizer's mask token; special tokens stay (an unknown token stands for a word)."""
    return _special(tokenizer, "mask")


def pad_token(tokenizer: Any) -> Baseline:
    """The text with every word replaced by the padding token, still attended to: the attention mask is that of x."""
    return _special(tokenizer, "pad")


def unknown_token(tokenizer: Any) -> Baseline:
    """The text with every word replaced by the tokenizer's unknown token; special tokens stay."""
    return _special(tokenizer, "unk")


def neutral(
    start: Baseline, *, kl: float = 0.01, max_steps: int = 500, at: At = "input", low: float | None = None, high: float | None = None
) -> Baseline:
    """An input (or features) on which the model has no opinion: its class distribution p is uniform within ``kl``.

    ``KL(p, uniform) = log K - H(p) <= kl`` in nats, reached from ``start`` by gradient steps on the pixels, which stay within
    [0, 1] (``low`` and ``high`` say the input's range where the model does not say its normalisation), or on the features
    at the site (``at="site"``). The record keeps the KL reached; NotNeutralError where it is not reached in ``max_steps``.
    Our reading of the "clear and reasonable baseline" of Cui & Fan 2026 ("The Neglected Baseline").
    """
    if not isinstance(start, Baseline):
        raise BaselineError(f"neutral(start) begins at a baseline such as zl.baseline.black(), not {type(start).__name__}")
    if not kl > 0 or max_steps < 1:
        raise BaselineError(f"neutral(kl={kl:g}, max_steps={max_steps}) was asked; kl must be above 0 and max_steps 1 or more")
    if (low is None) != (high is None) or (low is not None and high is not None and not low < high):
        raise BaselineError("neutral() takes low and high together, low below high, or neither")
    recipe = Neutral(start, kl, max_steps, low, high)
    return Baseline(_named(f"neutral from {start.name}", at, "input"), at, _asks_the_model, seed=start.seed, recipe=recipe)


@dataclass(frozen=True, eq=False)
class Distribution:
    """Several baselines: a method gives the mean of its values over them, and how far the errors spread."""

    name: str
    draws: tuple[Baseline, ...]
    seed: int | None = None


def distribution(source: Any, *, draws: int | None = None, seed: int = 0, name: str = "the set") -> Distribution:
    """A distribution of baselines, for averages over draws (expected gradients, Erion et al. 2021, equation 5).

    Args:
        source: baselines (a list: all of them, or ``draws`` picked without putting back); a function ``seed -> Baseline``
            (``zl.baseline.noise``); or a set of inputs as in ``mean_of``, of which draws are picked without putting back.
        draws: how many; default all given baselines, else 8 or as many as there are.
        seed: what the choice depends on; the same draws for every sample of a batch.
        name: what a set of inputs is called in records.
    """
    if draws is not None and not 1 <= draws <= _MOST_DRAWS:
        raise BaselineError(f"distribution(draws={draws}) was asked; 1 to {_MOST_DRAWS:,} are possible")
    if callable(source) and not isinstance(source, Baseline):
        made = tuple(source(seed + i) for i in range(draws or _DRAWS))
        if not all(isinstance(b, Baseline) for b in made):
            raise BaselineError("distribution(function) calls function(seed), which must give a baseline such as zl.baseline.noise(seed)")
        return Distribution(f"{len(made)} draws of {made[0].name}, ...", made, seed)
    if isinstance(source, Iterable) and not isinstance(source, (Tensor, Mapping, tuple, list)):
        source = list(source)
    if isinstance(source, Baseline):
        raise BaselineError("a distribution needs several baselines; give a list, a function of a seed, or a set of inputs")
    if isinstance(source, (list, tuple)) and any(isinstance(member, Baseline) for member in source):
        pool: Sequence[Any] = [as_baseline(member) for member in source]
        chosen = _picked(pool, draws or len(pool), seed)
        return Distribution(" | ".join(b.name for b in chosen), tuple(chosen), seed if len(chosen) < len(pool) else None)
    pool = [row for member in _members(source, "distribution") for row in _rows(member)]
    chosen = _picked(range(len(pool)), draws or min(_DRAWS, len(pool)), seed)
    return Distribution(f"{len(chosen)} of {len(pool)} inputs of {name}", tuple(of(pool[i], name=f"input {i} of {name}") for i in chosen), seed)


def _seed(asked: float) -> int:
    if not (asked == int(asked) and 0 <= asked < 2**63):
        raise BaselineError(f"noise({asked:g}) was asked; a seed is a whole number from 0 to 2^63 - 1")
    return int(asked)


def by_name(text: str) -> Baseline:
    """The baseline that a command line means: ``black``, ``zeros``, ``blur(4)``, ``constant(0.5)``, ``noise(7)``, ``neutral(black)``.

    >>> by_name("neutral(blur(4))").name
    'neutral from blur(4)'
    """
    from zeroline.errors import NotFoundError

    makers: dict[str, Callable[..., Baseline]] = {
        "zeros": zeros,
        "black": black,
        "mean": mean,
        "blur": blur,
        "constant": constant,
        "noise": lambda seed=0: noise(_seed(seed)),
    }
    head, _, rest = text.strip().partition("(")
    rest = rest.strip().removesuffix(")")
    if head == "neutral":
        return neutral(by_name(rest or "black"))
    if head not in makers:
        raise NotFoundError.among("baseline", head, [*makers, "neutral", "mean_of", "distribution"], _EXAMPLES)
    try:
        return makers[head](*[float(part) for part in rest.split(",") if part.strip()])
    except (TypeError, ValueError):
        raise BaselineError(f"cannot read the baseline {text!r}; {_EXAMPLES}") from None


BaselineLike = Baseline | Distribution | Tensor


def as_baseline(baseline: BaselineLike) -> Baseline:
    """The baseline that a user's argument means: a tensor is itself, at the site."""
    if isinstance(baseline, Baseline):
        return baseline
    if isinstance(baseline, Tensor):
        return tensor(baseline)
    if isinstance(baseline, Distribution):
        raise BaselineError(f"a distribution ({baseline.name}) is for methods of zl.METHODS, which average over its draws; here give one of .draws")
    raise BaselineError(f"a baseline is a zl.baseline record (zl.baseline.black(), ...) or a tensor, not {type(baseline).__name__}")


def _asks_the_model(features: Tensor, _: Normalisation | None) -> Tensor:
    raise BaselineError("this baseline is a recipe that needs the model")  # Baseline.__call__ says so before


def _members(inputs: Any, who: str) -> tuple[Any, ...]:
    """The members of a set: a list (or another iterable) of inputs, or one batch as the only member."""
    if isinstance(inputs, (Tensor, Mapping, tuple)):
        members: tuple[Any, ...] = (inputs,)
    elif isinstance(inputs, Iterable):
        members = tuple(inputs)
    else:
        raise BaselineError(f"{who} takes a list of inputs, or one batch of them, not {type(inputs).__name__}")
    if not members or not any(_rows(member) for member in members):
        raise BaselineError(f"{who} was asked of an empty set of inputs; give at least one")
    return members


def _rows(inputs: Any) -> list[Any]:
    """A batch of inputs as inputs of one sample each."""
    if isinstance(inputs, Tensor):
        return [inputs[i : i + 1] for i in range(len(inputs))] if inputs.ndim else []
    if isinstance(inputs, Mapping):
        count = next((len(t) for t in inputs.values() if isinstance(t, Tensor) and t.ndim), 0)
        return [{name: _row(value, i, count) for name, value in inputs.items()} for i in range(count)]
    if isinstance(inputs, (tuple, list)):
        count = next((len(t) for t in inputs if isinstance(t, Tensor) and t.ndim), 0)
        return [tuple(_row(value, i, count) for value in inputs) for i in range(count)]
    raise BaselineError(f"inputs are a tensor, a tuple or a dict of them, not {type(inputs).__name__}")


def _row(value: Any, index: int, count: int) -> Any:
    return value[index : index + 1] if isinstance(value, Tensor) and value.ndim and len(value) == count else value


def _picked(pool: Sequence[Any], draws: int, seed: int) -> list[Any]:
    """``draws`` of the pool without putting back, in the pool's order."""
    if draws > len(pool):
        raise BaselineError(f"{draws} draws asked of {len(pool)}; give draws={len(pool)} or fewer, or a larger set")
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:draws]
    return [pool[i] for i in sorted(order.tolist())]


def _special(tokenizer: Any, which: str) -> Baseline:
    """``[MASK]``, ``[PAD]`` or ``[UNK]`` for every word, by the tokenizer's own special tokens."""
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("mask", "pad", "unk")}
    number = special[which]
    if number is None:
        having = ", ".join(name for name, known in special.items() if known is not None) or "none of mask, pad, unk"
        raise BaselineError(f"the tokenizer has no {which} token; it has {having}; zl.baseline.token(id, keep=...) takes any")
    name = f"{getattr(tokenizer, f'{which}_token', which)} for every word"
    unknown = {special["unk"]} - {getattr(tokenizer, f"{one}_token_id", None) for one in ("bos", "eos", "cls", "sep", "pad")}  # a word all the same
    return token(number, keep=[id for id in tokenizer.all_special_ids if id not in unknown], name=name)


def _named(name: str, at: At, usual: At = "site") -> str:
    return name if at == usual else f"{name} at the {at}"


def blurred(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian filter of ``sigma`` over the last two dimensions of [batch, channels, height, width], reflected at the border."""
    return _gaussian(_gaussian(images, sigma, -1), sigma, -2)


def _gaussian(images: Tensor, sigma: float, axis: int) -> Tensor:
    """One-dimensional Gaussian filter along the last or last but one axis, in float32 or better."""
    size = images.shape[axis]
    radius = min(int(4 * sigma + 0.5), size - 1)
    if radius == 0:
        return images
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device="cpu")
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).to(images.device, torch.promote_types(images.dtype, torch.float32))
    moved = images.to(weights.dtype).movedim(axis, -1)
    shape = moved.shape
    index = torch.arange(-radius, size + radius, device=images.device).abs()
    mirrored = size - 1 - (size - 1 - index).abs()
    filtered = torch.nn.functional.conv1d(moved[..., mirrored].reshape(-1, 1, size + 2 * radius), weights.view(1, 1, -1))
    return filtered.reshape(shape).movedim(-1, axis).to(images.dtype)
