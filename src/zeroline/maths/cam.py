"""The CAM family as one first-order rule and the changes that its members make to it.

Holds ``Changes`` (what a member does to the rule, off where it does nothing) and ``stages``: the values after each change, in
one fixed order, so that what each change brings to the sum can be read off. Every member is ``(z - z0) * g`` to begin with:

1. *truncation*: ``a = (z - z0) * g(z)``, first order, nothing changed;
2. *pooling*: g is replaced by its mean over positions, channel by channel;
3. *smoothing*: g is blurred over the grid;
4. *rectification*: negative entries of g are set to zero (``rectify_gradient``), then the values of every position whose sum over
   channels is negative (``rectify``);
5. *normalisation*: values are divided by the largest position of the map.

Values keep the shape of the features, so that a member's map is their sum over channels. Class and register tokens are no
positions: they keep their first-order values. Pure tensors; what each member switches on is said in ``zeroline.methods``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zeroline.baseline import blurred
from zeroline.errors import SiteError, UsageError
from zeroline.maths.grids import channels_last
from zeroline.relevance import Tokens

STAGES = ("truncation", "pooling", "smoothing", "rectification", "normalisation")


@dataclass(frozen=True)
class Changes:
    """What is done to ``(z - z0) * g``; ``smooth`` is the sigma of the blur in positions."""

    pool: bool = False
    smooth: float | None = None
    rectify_gradient: bool = False
    rectify: bool = False
    normalise: bool = False

    def __post_init__(self) -> None:
        if self.smooth is not None and not 0 < self.smooth < math.inf:
            raise UsageError(f"smooth={self.smooth:g} was asked; a sigma above 0, or None for no smoothing")


def stages(step: Tensor, gradient: Tensor, changes: Changes, lie: Tokens) -> dict[str, Tensor]:
    """Values after each of ``STAGES`` (the same as before where it is off): name -> tensor with the shape of ``step``.

    ``step`` z - z0 and ``gradient`` g are [batch, channels, height, width], [batch, height, width, channels] or [batch, tokens, width];
    ``lie`` says which tokens are positions and how they lie. Raises SiteError for features that have no positions, or no grid where one is needed.
    """
    s, laid = _positions(step, lie)
    g, _ = _positions(gradient, lie)
    own = step * gradient
    found = {"truncation": own}
    if changes.pool:
        g = g.mean(tuple(range(2, g.ndim)), keepdim=True).expand_as(g)
    found["pooling"] = _back(s * g, own, lie)
    if changes.smooth is not None:
        if not laid:
            raise SiteError(f"smoothing needs a grid of positions; the site has {step.shape[1]} tokens; give grid=(rows, columns) and prefix")
        g = blurred(g, changes.smooth)
    found["smoothing"] = _back(s * g, own, lie)
    values = s * (g.clamp(min=0) if changes.rectify_gradient else g)
    if changes.rectify:
        values = values * (values.sum(1, keepdim=True) > 0)
    found["rectification"] = rectified = _back(values, own, lie)
    found["normalisation"] = _normalised(rectified, values) if changes.normalise else rectified
    return found


def budget(parts: Sequence[Mapping[str, Tensor]], difference: Tensor) -> dict[str, Tensor]:
    """What each stage adds to the attribution error, [batch] float64 each: they add up to sum(values) - difference."""
    found, before = {}, difference
    for name in STAGES:
        total = torch.stack([part[name].to(difference).flatten(1).sum(1) for part in parts]).sum(0)
        found[name] = total - before
        before = total
    return found


def _normalised(values: Tensor, laid: Tensor) -> Tensor:
    """Values over the largest size on the map of each sample; a map of zeros stays one."""
    largest = laid.sum(1).flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    return values / scale.view(-1, *[1] * (values.ndim - 1))


def _positions(tensor: Tensor, lie: Tokens) -> tuple[Tensor, bool]:
    """[batch, channels, *positions] without class and register tokens, and whether positions lie on a grid."""
    if tensor.ndim == 4:
        return (tensor.movedim(-1, 1) if channels_last(tensor, lie.grid) else tensor), True
    if tensor.ndim != 3:
        raise SiteError(
            f"features of shape {tuple(tensor.shape)} have no positions;"
            " the CAM family needs [batch, channels, height, width] or [batch, tokens, width]"
        )
    patches = tensor[:, lie.prefix :].transpose(1, 2)
    if lie.grid is None:
        return patches, False
    if lie.grid[0] * lie.grid[1] != patches.shape[2]:
        raise SiteError(
            f"a grid of {lie.grid[0]} x {lie.grid[1]} was asked; the site has {patches.shape[2]} tokens after {lie.prefix} that are no patches"
        )
    return patches.reshape(*patches.shape[:2], *lie.grid), True


def _back(values: Tensor, own: Tensor, lie: Tokens) -> Tensor:
    """The shape of the features again, class and register tokens as they were."""
    if own.ndim == 4:
        return values.movedim(1, -1) if channels_last(own, lie.grid) else values
    return torch.cat([own[:, : lie.prefix], values.flatten(2).transpose(1, 2)], 1)
