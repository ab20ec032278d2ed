"""Deletion and insertion curves (Petsiuk et al. 2018): f as positions are taken away, or put in, in the order of a map.

They test marginal effects on inputs that the model never saw (half a picture on a black ground), not whether values add up to a
difference; Cui & Fan 2026 ("The Neglected Baseline") reject them for that. They are here so that both can be read side by side, and
the baseline that stands for "taken away" is named, as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.baseline import BaselineLike
from zeroline.errors import UsageError
from zeroline.model.ask import ask
from zeroline.model.question import Question
from zeroline.site import SiteLike
from zeroline.target import TargetLike


@dataclass(frozen=True, eq=False)
class Curves:
    """``deletion`` and ``insertion`` [batch, steps + 1]: f with 0, 1/steps, ... all positions replaced (put in), float64."""

    deletion: Tensor
    insertion: Tensor
    baseline: str
    target: tuple[str, ...]

    def area(self, which: str) -> Tensor:
        """Mean of a curve as a share of the way from f(baseline) to f(x), [batch]: low is good for deletion, high for insertion.

        NaN where f(x) is f(baseline): there is no way.
        """
        curve: Tensor = getattr(self, which)
        low, high = self.insertion[:, 0], self.deletion[:, 0]
        return (torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1) - low) / (high - low)

    def __repr__(self) -> str:
        found = ", ".join(f"{which} {float(self.area(which)[0]):.3f}" for which in ("deletion", "insertion"))
        return f"Deletion and insertion of the {self.target[0]} against {self.baseline}: areas {found} (share of the difference)"


def deletion_insertion(
    model: nn.Module, inputs: Any, maps: Tensor, *, target: TargetLike, site: SiteLike = None, baseline: BaselineLike, steps: int = 16
) -> Curves:
    """f along the order of a map, most important positions first.

    Args:
        model, inputs, target, site, baseline: as in ``zl.gradient_x_input``; positions of the site are replaced by those of the baseline.
        maps: [batch, rows, columns] for sites [batch, channels, height, width] (each entry stands for a cell of the picture), or
            [batch, tokens] for [batch, tokens, width]. Ties keep their order in the map.
        steps: points of the curve after the first; each replaces as many positions.

    Returns:
        ``Curves``. ``area("deletion")`` is how much of the difference is left on average.

    Raises:
        UsageError: a map that does not fit the site.
    """
    with ask(model, inputs, target=target, site=site, baseline=baseline) as question:
        if len(question.features) != 1:
            raise UsageError("deletion and insertion need one site, not a joint one")
        if steps < 1:
            raise UsageError(f"steps={steps} was asked; 1 or more")
        if not bool(maps.isfinite().all()):
            raise UsageError("the maps hold NaN or infinity: they have no order")
        order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
        place = _placed(rank.view(maps.shape).to(question.features[0].device), question.features[0])
        deleted, inserted = [], []
        for step in range(steps + 1):
            taken = place < round(step * order.shape[1] / steps)
            deleted.append(_value(question, taken))
            inserted.append(_value(question, ~taken))
        target_words = question.target.describe(question.batch)
        return Curves(torch.stack(deleted, 1), torch.stack(inserted, 1), question.baseline.name, target_words)


def _value(question: Question, taken: Tensor) -> Tensor:
    """f with the positions in ``taken`` from the baseline, the others from x."""
    z, z0 = question.features[0], question.baseline_features[0]
    return question.forward(question.inputs, question.everyone(), (torch.where(taken, z0, z),))[0]


def _placed(rank: Tensor, features: Tensor) -> Tensor:
    """The rank of every element of the features, broadcastable over channels or width."""
    if features.ndim == 4 and rank.ndim == 3 and len(rank) == len(features):
        rows = torch.arange(features.shape[2], device=rank.device) * rank.shape[1] // features.shape[2]
        columns = torch.arange(features.shape[3], device=rank.device) * rank.shape[2] // features.shape[3]
        return rank[:, None, rows][..., columns]
    if features.ndim == 3 and rank.shape == features.shape[:2]:
        return rank[..., None]
    raise UsageError(f"a map {tuple(rank.shape)} does not fit features {tuple(features.shape)}; give [batch, rows, columns], or [batch, tokens]")
