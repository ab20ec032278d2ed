"""Expected gradients: a method's values averaged over draws from a distribution of baselines (Erion et al. 2021).

``a = E_{z0 ~ D} a(z, z0)``, and with it ``sum(a) = f(x) - E f(do(z := z0))`` up to the mean of the draws' errors. Holds ``over_draws``, which
every method of ``METHODS`` is wrapped in: with a single baseline it does nothing. Erion et al. draw one path point per baseline;
here each draw gets the method's own path, so that its error is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

from zeroline.attribution import Attribution
from zeroline.baseline import Distribution

P = ParamSpec("P")


def over_draws(method: Callable[P, Attribution]) -> Callable[P, Attribution]:
    """The method, which given a ``zl.baseline.distribution`` answers with the mean over its draws."""

    @wraps(method)
    def averaged(*args: P.args, **kwargs: P.kwargs) -> Attribution:
        baseline = kwargs.get("baseline")
        if not isinstance(baseline, Distribution):
            return method(*args, **kwargs)
        asked: list[Mapping[str, Any]] = [{**kwargs, "baseline": draw} for draw in baseline.draws]
        return mean_of([method(*args, **one) for one in asked], baseline)

    return averaged


def mean_of(found: Sequence[Attribution], baseline: Distribution) -> Attribution:
    """One record of several draws: means of values and figures, sums of evaluations and passes, the spread of the error."""
    first = found[0]
    figures: dict[str, Any] = {name: _mean([getattr(one, name) for one in found]) for name in _AVERAGED}
    errors = torch.stack([one.error for one in found])
    mean = replace(
        first,
        parts={name: _mean_values([one.parts[name] for one in found]) for name in first.parts},
        baseline=baseline.name,
        evaluations=torch.stack([one.evaluations for one in found]).sum(0),
        forward_passes=sum(one.forward_passes for one in found),
        error_spread=errors.std(0) if len(found) > 1 else torch.zeros_like(errors[0]),
        stopped=tuple(_counted([one.stopped[b] for one in found]) for b in range(len(first.stopped))),
        settings={**first.settings, "draws": len(found)},
        seed=baseline.seed,
        **figures,
    )
    budget = {name: torch.stack([one.budget[name] for one in found]).mean(0) for name in first.budget}
    if budget and first_dtype(mean) != torch.float64:
        budget["rounding"] = mean.error - torch.stack(list(budget.values())).sum(0)  # of the mean values to the features' dtype
    return replace(mean, budget=budget)


def first_dtype(record: Attribution) -> torch.dtype:
    """The dtype of the values."""
    return next(iter(record.parts.values())).dtype


_AVERAGED = ("output", "baseline_output", "reference_output", "local_error", "map_error", "raw_error", "baseline_kl")


def _mean(figures: Sequence[Tensor | None]) -> Tensor | None:
    known = [figure for figure in figures if figure is not None]
    return torch.stack(known).mean(0) if len(known) == len(figures) else None


def _mean_values(values: Sequence[Tensor]) -> Tensor:
    """The mean in float32 or better, in the values' own dtype."""
    fine = torch.promote_types(values[0].dtype, torch.float32)
    total = torch.zeros_like(values[0], dtype=fine)
    for value in values:
        total += value.to(fine)
    return (total / len(values)).to(values[0].dtype)


def _counted(reasons: Sequence[str]) -> str:
    """ "tolerance", or "tolerance (7 draws), max_evaluations (1)"."""
    kinds = list(dict.fromkeys(reasons))
    return kinds[0] if len(kinds) == 1 else ", ".join(f"{kind} ({list(reasons).count(kind)} draws)" for kind in kinds)
