"""Looking for an input, or features, on which a classifier has no opinion.

Holds ``descend``: gradient steps on KL(uniform, p), which has a gradient wherever the model is sure of itself, until
KL(p, uniform) = log K - H(p), the number that is stated, is small enough. Each sample goes its own way (Adam works element by
element) and stops by itself, so a batch gives what its samples give.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zeroline.baseline import Neutral
from zeroline.errors import BaselineError, NotNeutralError, TargetError
from zeroline.model.inputs import Inputs
from zeroline.model.places import Place, run
from zeroline.target import class_scores

Features = tuple[Tensor, ...]
Bounds = tuple[Tensor, Tensor]
_STEP = 0.005  # of the range of the input, or of the root mean square of the features: too small to be seen in one step
_MOMENTS = (0.9, 0.999)  # Kingma & Ba 2015, their defaults


def divergence(scores: Tensor) -> Tensor:
    """KL(p, uniform) = log K - H(p) of p = softmax(scores) [batch, K], in nats: [batch], 0 where the model has no opinion.

    >>> divergence(torch.zeros(1, 4)).tolist()
    [0.0]
    """
    logs = scores.double().log_softmax(-1)
    return ((logs.exp() * logs).sum(-1) + math.log(scores.shape[-1])).clamp_min(0)


def require_classes(scores: Tensor, what: str) -> None:
    """Raise where there is no distribution over classes to be uniform."""
    if scores.shape[-1] < 2:
        raise BaselineError(f"{what} needs a distribution over two classes or more; the model has {scores.shape[-1]} score")


def descend(
    model: nn.Module, inputs: Inputs, places: tuple[Place, ...], start: Features, bounds: Bounds | None, recipe: Neutral
) -> tuple[Features, Tensor]:
    """Features at ``places`` with KL(p, uniform) <= ``recipe.kl`` for every sample, and the KL reached [batch], float64.

    ``bounds`` keep the (only) place's values within a range. Raises NotNeutralError with the KL reached where
    ``recipe.max_steps`` are not enough, or where no gradient leads away from the start.
    """
    points = start if bounds is None else tuple(z.clamp(*bounds) for z in start)
    sizes = _sizes(points, bounds)
    first, second = ([torch.zeros_like(z) for z in points] for _ in range(2))
    why = f"after {recipe.max_steps} steps"
    for step in range(1, recipe.max_steps + 2):
        kl, gradients = _ask(model, inputs, places, points)
        waiting = kl > recipe.kl
        if not bool(waiting.any()):
            return points, kl
        stuck = torch.stack([(g == 0).flatten(1).all(1) for g in gradients]).all(0)
        if bool((stuck & waiting.to(stuck.device)).any()):
            why = "and the gradient is zero there: start from another baseline"
            break
        if step > recipe.max_steps:
            break
        points = tuple(_moved(z, g, m, v, size, step, waiting, bounds) for z, g, m, v, size in zip(points, gradients, first, second, sizes))
    worst = int(kl.argmax())
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
    except TargetError as problem:
        raise BaselineError(f"neutral() needs class scores [batch, classes]: {problem}") from None
    require_classes(scores, "neutral()")
    loss = -scores.log_softmax(-1).mean(-1) - math.log(scores.shape[-1])
    found = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    return divergence(scores.detach()), tuple(torch.zeros_like(z) if g is None else g for g, z in zip(found, leaves))


def _sizes(points: Features, bounds: Bounds | None) -> list[Tensor]:
    """The length of a step: a share of the input's range, or of the features' root mean square per sample (1 where they are zero)."""
    if bounds is not None:
        return [_STEP * (bounds[1] - bounds[0])]
    sizes = []
    for z in points:
        size = z.flatten(1).square().mean(1).sqrt()
        sizes.append(_STEP * torch.where(size > 0, size, torch.ones_like(size)).view(-1, *[1] * (z.ndim - 1)))
    return sizes


def _moved(z: Tensor, g: Tensor, m: Tensor, v: Tensor, size: Tensor, step: int, waiting: Tensor, bounds: Bounds | None) -> Tensor:
    """One Adam step for the samples that wait; the moments are written in place."""
    b1, b2 = _MOMENTS
    m.mul_(b1).add_(g, alpha=1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    change = size * (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + torch.finfo(z.dtype).tiny)
    moved = z - change if bounds is None else (z - change).clamp(*bounds)
    return torch.where(waiting.to(z.device).view(-1, *[1] * (z.ndim - 1)), moved, z).detach()
