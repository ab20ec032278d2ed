"""Looking for an input, or features, on which a classifier has no opinion.

Holds ``descend``: gradient steps on KL(uniform, p), which has a gradient wherever the model is sure of itself, until
KL(p, uniform) = log K - H(p), the number that is stated, is small enough. Each sample goes its own way (Adam works element by
element) and stops by itself, so a batch gives what its samples give, up to rounding; the search may amplify rounding into another
neutral input of the same KL (in float64 the two agree).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zeroline.baseline import Neutral
from zeroline.errors import BaselineError, NotNeutralError, TargetError
from zeroline.model.inputs import Inputs
from zeroline.model.places import Place, run
from zeroline.target import class_scores

Features = tuple[Tensor, ...]
Bounds = tuple[Tensor, Tensor]
Progress = Callable[[int, int | None], None]
_STEP = 0.005  # of the range of the input, or of the root mean square of the features: too small to be seen in one step
_FLOOR = 1e-2  # of a sample's root mean square gradient: Adam's epsilon
_MOMENTS = (0.9, 0.999)  # Kingma & Ba 2015, their defaults


def divergence(scores: Tensor) -> Tensor:
    """KL(p, uniform) = log K - H(p) of p = softmax(scores) [batch, K], in nats: [batch], 0 where the model has no opinion.

    >>> divergence(torch.zeros(1, 4)).tolist()
    [0.0]
    """
    logs = scores.cpu().double().log_softmax(-1)
    return ((logs.exp() * logs).sum(-1) + math.log(scores.shape[-1])).clamp_min(0)


def require_classes(scores: Tensor, what: str) -> None:
    """Raise where there is no distribution over classes to be uniform."""
    if scores.shape[-1] < 2:
        raise BaselineError(f"{what} needs a distribution over two classes or more; the model has {scores.shape[-1]} score")


def descend(
    model: nn.Module,
    inputs: Inputs,
    places: tuple[Place, ...],
    start: Features,
    bounds: Sequence[Bounds] | None,
    recipe: Neutral,
    progress: Progress | None = None,
) -> tuple[Features, Tensor]:
    """Features at ``places`` with KL(p, uniform) <= ``recipe.kl`` for every sample, and the KL reached [batch], float64.

    ``bounds``, one pair per place, keep values within a range. Points and moments are kept in float32 or better and rounded for each
    pass, so that the KL is that of the features as they are returned. Raises NotNeutralError with the KL reached where
    ``recipe.max_steps`` are not enough, or where no gradient leads away from the start.
    """
    limits: Sequence[Bounds | None] = [None] * len(start) if bounds is None else bounds
    fine = [z.to(torch.promote_types(z.dtype, torch.float32)) for z in start]
    fine = [z if limit is None else z.clamp(*limit) for z, limit in zip(fine, limits)]
    sizes = [_size(z, limit) for z, limit in zip(fine, limits)]
    first, second = ([torch.zeros_like(z) for z in fine] for _ in range(2))
    why, step = f"after {recipe.max_steps} steps", 0
    while True:
        points = tuple(z.to(like.dtype) for z, like in zip(fine, start))
        kl, gradients = _ask(model, inputs, places, points)
        waiting = kl > recipe.kl
        if not bool(waiting.any()):
            return points, kl
        stuck = waiting & torch.stack([(g == 0).flatten(1).all(1).cpu() for g in gradients]).all(0)
        if bool(stuck.any()):
            why, waiting = "and the gradient is zero there: start from another baseline", stuck
            break
        if step == recipe.max_steps:
            break
        step += 1
        if progress:
            progress(step, recipe.max_steps)
        moving = zip(fine, gradients, first, second, sizes, limits)
        fine = [_moved(z, g.to(z), m, v, size, step, waiting, limit) for z, g, m, v, size, limit in moving]
    worst = int(torch.where(waiting, kl, -torch.ones_like(kl)).argmax())
    raise NotNeutralError(
        f"no neutral baseline from {recipe.start.name!r} {why}: KL from uniform is {float(kl[worst]):.3g} nats for sample {worst}"
        f" (asked: {recipe.kl:g}); start elsewhere, allow more steps, or ask for less",
        kl.tolist(),
    )


def _ask(model: nn.Module, inputs: Inputs, places: tuple[Place, ...], points: Features) -> tuple[Tensor, Features]:
    """KL(p, uniform) and the gradient of KL(uniform, p), per sample."""
    leaves = tuple(z.detach().requires_grad_() for z in points)
    output = run(model, inputs, places, lambda i, _: leaves[i].clone())
    try:
        scores = class_scores(output)
    except TargetError:
        raise BaselineError("neutral() needs class scores [batch, classes], and the model's output has none") from None
    require_classes(scores, "neutral()")
    loss = -scores.log_softmax(-1).mean(-1) - math.log(scores.shape[-1])
    found = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    return divergence(scores.detach()), tuple(torch.zeros_like(z) if g is None else g for g, z in zip(found, leaves))


def _size(z: Tensor, limit: Bounds | None) -> Tensor:
    """The length of a step: a share of the input's range, or of the features' root mean square per sample (1 where they are zero)."""
    if limit is not None:
        return _STEP * (limit[1] - limit[0])
    size = _mean_square(z).sqrt()
    return _STEP * torch.where(size > 0, size, torch.ones_like(size))


def _moved(z: Tensor, g: Tensor, m: Tensor, v: Tensor, size: Tensor, step: int, waiting: Tensor, limit: Bounds | None) -> Tensor:
    """One Adam step for the samples that wait; the moments are written in place.

    Adam's epsilon is a share of the sample's own root mean square gradient: elements whose gradient is rounding stay where they are.
    """
    b1, b2 = _MOMENTS
    m.mul_(b1).add_(g, alpha=1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    spread = (v / (1 - b2**step)).sqrt()
    floor = _FLOOR * _mean_square(spread).sqrt() + torch.finfo(z.dtype).tiny
    moved = z - size * (m / (1 - b1**step)) / (spread + floor)
    moved = moved if limit is None else moved.clamp(*limit)
    return torch.where(waiting.to(z.device).view(-1, *[1] * (z.ndim - 1)), moved, z).detach()


def _mean_square(z: Tensor) -> Tensor:
    """Per sample, with the dimensions of z."""
    return z.flatten(1).square().mean(1).view(-1, *[1] * (z.ndim - 1))
