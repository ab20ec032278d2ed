"""Measured from what: a baseline names the features that count as "nothing".

Holds the baseline records. Each says how to fill features of a given shape, and *where*: at the site itself
(``z0`` directly) or at the model's input (``x0``, whose features at the site are ``z0``). Running the model
on x0 is ``zeroline.model.ask``. No method has a default baseline: the choice is the user's, and its
name is in every record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


Fill = Callable[[Tensor, Normalisation | None], Tensor]


@dataclass(frozen=True)
class Baseline:
    """A named way to make baseline features.

    ``fill(features, normalisation)`` gives a tensor of the same shape as ``features``; the normalisation is None at a
    layer, or where the model does not say what it is. ``inputs`` is set for ``of(...)`` only: another complete set of
    model inputs. ``seed`` is set where numbers are drawn.
    """

    name: str
    at: At
    fill: Fill
    inputs: Any = None
    seed: int | None = None

    def __call__(self, features: Tensor, normalisation: Normalisation | None = None) -> Tensor:
        """Baseline features for ``features``, checked for shape, dtype and finite values."""
        filled = self.fill(features, normalisation).to(features)
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
    if not sigma > 0:
        raise BaselineError(f"blur(sigma={sigma:g}) was asked; sigma must be above 0")

    def fill(pixels: Tensor, _: Normalisation | None) -> Tensor:
        if pixels.ndim != 4:
            raise BaselineError(f"blur needs images [batch, channels, height, width], not {tuple(pixels.shape)}")
        return _gaussian(_gaussian(pixels, sigma, -1), sigma, -2)

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


def by_name(text: str) -> Baseline:
    """The baseline that a command line means: ``black``, ``zeros``, ``blur(4)``, ``constant(0.5)``, ``noise(7)``, ``mean``.

    >>> by_name("blur(4)").name
    'blur(4)'
    """
    from zeroline.errors import NotFoundError

    makers: dict[str, Callable[..., Baseline]] = {
        "zeros": zeros,
        "black": black,
        "mean": mean,
        "blur": blur,
        "constant": constant,
        "noise": lambda seed=0: noise(int(seed)),
    }
    head, _, rest = text.strip().partition("(")
    if head not in makers:
        raise NotFoundError.among("baseline", head, makers, "e.g. black, zeros, blur(8), constant(0.5), noise(0), mean")
    try:
        arguments = [float(part) for part in rest.rstrip(")").split(",") if part.strip()]
        return makers[head](*arguments)
    except (TypeError, ValueError):
        raise BaselineError(f"cannot read the baseline {text!r}; e.g. black, zeros, blur(8), constant(0.5), noise(0), mean") from None


BaselineLike = Baseline | Tensor


def as_baseline(baseline: BaselineLike) -> Baseline:
    """The baseline that a user's argument means: a tensor is itself, at the site."""
    if isinstance(baseline, Baseline):
        return baseline
    if isinstance(baseline, Tensor):
        return tensor(baseline)
    raise BaselineError(f"a baseline is a zl.baseline record (zl.baseline.black(), ...) or a tensor, not {type(baseline).__name__}")


def _named(name: str, at: At, usual: At = "site") -> str:
    return name if at == usual else f"{name} at the {at}"


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
