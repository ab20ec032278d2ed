"""Integrated attention: attention maps as the features, a stated baseline map, and a path; so it has an attribution error.

Site: the maps A of the calls chosen, each [batch, heads, queries, keys], moved together from A0 to A(x) while everything
else comes as it comes: ``a = (A - A0) * integral_0^1 df/dA(A0 + t (A - A0)) dt``. With A0 = 0 and one call this is the
attribution of Hao et al. 2021 (AttAttr, "Self-Attention Attribution", equation 1), with an adaptive path and its error stated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.attribution import Attribution
from zeroline.baseline import Baseline, zeros
from zeroline.errors import NotFoundError
from zeroline.methods.integrated_gradients import integrated_gradients
from zeroline.model.ask import labels_of
from zeroline.model.inputs import Inputs
from zeroline.model.state import untouched
from zeroline.model.targets import target_of
from zeroline.model.trace import chosen, trace
from zeroline.site import attention, joint
from zeroline.target import TargetLike

BASELINES = ("zero", "uniform")


def integrated_attention(
    model: nn.Module, inputs: Any, *, target: TargetLike, calls: Any = "all", baseline: str | Baseline | Tensor = "zero", **path: Any
) -> Attribution:
    """Attribution to attention maps: how much of f(x) - f(baseline maps) each attention weight accounts for.

    Args:
        model, inputs, target: as in ``zl.integrated_gradients``.
        calls: the calls whose maps move: ``"all"``, a number, a name, or a list of these (see ``zl.trace``).
        baseline: ``"zero"`` (no attention: the calls give zeros), ``"uniform"`` (equal weights over the keys that a query may
            see), or a baseline at the site.
        **path: options of ``zl.integrated_gradients`` (path, tolerance, max_evaluations, closure, ...).

    Returns:
        An ``Attribution``: ``parts["attention:PATH"]`` [batch, heads, queries, keys], in units of the target; they add up to
        f(x) - f(do(A := A0)) within the record's error. Maps of the calls chosen are computed as map times values, not by a
        fused kernel: the same numbers up to rounding; ``settings["kernel_difference"]`` is how much f(x) moved by it
        (two forward passes more than ``zl.integrated_gradients``: the trace, and that comparison).

    Raises:
        As ``zl.trace`` and ``zl.integrated_gradients``.
    """
    found = trace(model, inputs)
    numbers = chosen(found.calls, calls)
    sites = [attention(found.calls[n].path, call=found.calls[n].index) for n in numbers]
    known = as_baseline(baseline)
    result = integrated_gradients(model, inputs, target=target, site=joint(*sites) if len(sites) > 1 else sites[0], baseline=known, **path)
    bare = _bare(model, inputs, target)
    apart = float((bare.to(result.output) - result.output).abs().max())
    settings = {**result.settings, "calls": [found.calls[n].name for n in numbers], "kernel_difference": apart}
    return replace(result, method="integrated_attention", settings=settings)


def as_baseline(baseline: str | Baseline | Tensor) -> Any:
    """The baseline map that an argument means."""
    if isinstance(baseline, str):
        if baseline not in BASELINES:
            raise NotFoundError.among("baseline map", baseline, BASELINES)
        return zeros() if baseline == "zero" else Baseline("uniform attention", "site", lambda maps, _: uniform(maps))
    return baseline


def uniform(maps: Tensor) -> Tensor:
    """Equal weights over the keys that a query may see: those where the map is above zero (a masked key has exactly zero).

    >>> uniform(torch.tensor([[0.9, 0.1, 0.0]])).tolist()
    [[0.5, 0.5, 0.0]]
    """
    seen = (maps > 0).to(maps)
    return seen / seen.sum(-1, keepdim=True).clamp_min(1)


def _bare(model: nn.Module, inputs: Any, target: TargetLike) -> Tensor:
    with untouched(model), torch.no_grad():
        wanted = Inputs.of(model, inputs)
        output = wanted.call(model)
        return target_of(model, wanted, target).resolve(output, labels_of(model)).read(output, torch.arange(wanted.batch)).double()
