"""Integrated gradients, revised: a stated baseline, any layer, and a path that is refined until the sum is right.

``a = (z - z0) * integral_0^1 g(z0 + t (z - z0)) dt`` (Sundararajan, Taly & Yan 2017, equation 1). The integral is
a weighted sum of gradients at nodes t_k. The default chooses the nodes per sample: it bisects the segments whose
defect ``r_k = f_{k+1} - f_k - (t_{k+1} - t_k)(s_k + s_{k+1}) / 2`` is largest until error and local error are below
their tolerances. Our reading of Cui & Fan 2026 ("The Neglected Baseline"), who revise IG with a clear baseline at
features of any layer and judge by the attribution error; the adaptive path is ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.attribution import Attribution
from zeroline.baseline import BaselineLike
from zeroline.errors import NotConvergedWarning, UsageError
from zeroline.maths.adaptive import Path, Tolerance
from zeroline.maths.closure import discrete_gradient
from zeroline.maths.quadrature import coarse_weights, defects, rule, trapezoid_weights
from zeroline.methods.draws import over_draws
from zeroline.model.ask import ask
from zeroline.model.question import Features, Question
from zeroline.site import SiteLike
from zeroline.target import TargetLike

Progress = Callable[[int, int | None], None]


@over_draws
def integrated_gradients(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    site: SiteLike = None,
    baseline: BaselineLike,
    path: str = "adaptive",
    n_steps: int = 50,
    tolerance: float = 0.01,
    local_tolerance: float = 0.1,
    max_evaluations: int = 512,
    closure: str | None = None,
    internal_batch_size: int | None = None,
    progress: Progress | None = None,
) -> Attribution:
    """Integrated gradients along the straight path from the baseline features to the features.

    Args:
        path: ``"adaptive"`` (trapezoid on nodes chosen per sample), or a fixed rule with ``n_steps`` nodes:
            ``"gausslegendre"``, ``"midpoint"``, ``"trapezoid"``, ``"riemann"`` (the far ends), ``"riemann_left"``.
        tolerance: adaptive: stop when |E| <= tolerance * |D| and ...
        local_tolerance: ... sum |r_k| <= local_tolerance * |D|.
        max_evaluations: adaptive: gradient evaluations per sample at most; a NotConvergedWarning where it ends there.
        closure: ``"discrete_gradient"`` shares out the remaining error; the record keeps the raw error.
        internal_batch_size: path points per pass; None measures what fits into memory.
        progress: called with (evaluations done, evaluations wanted so far).
        model, inputs, target, site, baseline: as in ``gradient_x_input``.

    Returns:
        Values with the shape of z, in units of the target. They add up to f(x) - f(do(z := z0)) within the record's
        error. ``local_error`` and ``map_error`` are known for the adaptive path and the trapezoid rule.

    Raises:
        As ``gradient_x_input``; NonFiniteError names the sample and the path point.
    """
    found, _ = with_mean_gradients(
        model,
        inputs,
        target=target,
        site=site,
        baseline=baseline,
        path=path,
        n_steps=n_steps,
        tolerance=tolerance,
        local_tolerance=local_tolerance,
        max_evaluations=max_evaluations,
        closure=closure,
        internal_batch_size=internal_batch_size,
        progress=progress,
    )
    return found


def with_mean_gradients(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    site: SiteLike,
    baseline: BaselineLike,
    path: str = "adaptive",
    n_steps: int = 50,
    tolerance: float = 0.01,
    local_tolerance: float = 0.1,
    max_evaluations: int = 512,
    closure: str | None = None,
    internal_batch_size: int | None = None,
    progress: Progress | None = None,
) -> tuple[Attribution, Features]:
    """The record of ``integrated_gradients`` and ``sum_k w_k g(z0 + t_k (z - z0))``, the mean gradient along the path that its values hold.

    One tensor per part, with the shape of z, in float32 or better, before ``closure``. Not for a distribution of baselines.
    """
    _check(tolerance, local_tolerance, max_evaluations, closure, internal_batch_size)
    settings: dict[str, Any] = {"path": path}
    if path == "adaptive":
        settings |= {"tolerance": tolerance, "local_tolerance": local_tolerance, "max_evaluations": max_evaluations}
    else:
        nodes, weights = rule(path, n_steps)
        settings |= {"n_steps": n_steps}
    with ask(model, inputs, target=target, site=site, baseline=baseline, replay=True) as question:
        question.rows_per_pass = internal_batch_size
        if path == "adaptive":
            means, figures = _adaptive(question, tolerance, local_tolerance, max_evaluations, progress)
        else:
            means, figures = _fixed(question, nodes, weights, path == "trapezoid", progress)
        parts = _times_step(question, means)
        figures |= {"budget": question.budget("quadrature", parts)}
        if closure:
            parts, closed = _closed(question, parts, closure)
            figures |= closed
        settings |= {"internal_batch_size": question.rows_per_pass}
        return question.answer(parts, method="integrated_gradients", settings=settings, **figures), tuple(means)


def _fixed(question: Question, nodes: Tensor, weights: Tensor, has_ends: bool, progress: Progress | None) -> tuple[list[Tensor], dict[str, Any]]:
    """The same nodes for every sample; gradients are added up as they come, none is kept."""
    batch, count = question.batch, len(nodes)
    samples = torch.arange(batch).repeat_interleave(count)
    index = torch.arange(count).repeat(batch)
    rules = [weights, coarse_weights(nodes)] if has_ends else [weights]
    sums = [[_accumulator(z) for z in question.features] for _ in rules]
    f, slopes = torch.zeros(2, batch, count, dtype=torch.float64)
    done = 0
    for node in question.along(samples, nodes[index]):
        where = index[node.rows]
        f[node.samples, where] = node.values.double().cpu()
        slopes[node.samples, where] = node.slopes.double().cpu()
        for rule_weights, parts in zip(rules, sums):
            _add(parts, node.samples, node.gradients, rule_weights[where])
        done += len(node.rows)
        if progress:
            progress(done, len(samples))
    figures: dict[str, Any] = {"evaluations": torch.full((batch,), count, dtype=torch.int64, device=question.output.device)}
    if has_ends:
        local = torch.stack([defects(nodes, f[b], slopes[b]).abs().sum() for b in range(batch)])
        figures |= {"local_error": local.to(question.output)}
    if has_ends and count > 2:
        figures |= {"map_error": _map_error(*(_times_step(question, parts) for parts in sums))}
    return sums[0], figures


def _adaptive(
    question: Question, tolerance: float, local_tolerance: float, most: int, progress: Progress | None
) -> tuple[list[Tensor], dict[str, Any]]:
    """Each sample refines its own path; one pass serves what all of them want next."""
    limits = Tolerance(tolerance, local_tolerance, most, question.resolution)
    paths = [Path(limits, float(d)) for d in question.output - question.baseline_output]
    kept: list[dict[float, Features]] = [{} for _ in paths]
    done = 0
    while True:
        wanted = [(b, t) for b, path in enumerate(paths) if path.stopped() is None for t in path.wanted()]
        if not wanted:
            break
        samples, t = torch.tensor([b for b, _ in wanted]), torch.tensor([t for _, t in wanted], dtype=torch.float64)
        for node in question.along(samples, t):
            for row, (b, where) in enumerate(zip(node.samples.tolist(), node.t.tolist())):
                paths[b].add(where, float(node.values[row]), float(node.slopes[row]))
                kept[b][where] = tuple(g[row].clone() if len(node.t) > 1 else g[row] for g in node.gradients)
            done += len(node.t)
            if progress:
                progress(done, None)
    means = _weighted(question, paths, kept, trapezoid_weights)
    fine, coarse = (_times_step(question, sums) for sums in (means, _weighted(question, paths, kept, coarse_weights)))
    stopped = tuple(path.stopped() or "rounding floor" for path in paths)
    counts = torch.tensor([len(path.nodes) for path in paths], device=question.output.device)
    _warn(question, paths, stopped, tolerance, local_tolerance, most)
    return means, {
        "evaluations": counts,
        "local_error": torch.stack([path.defects().abs().sum() for path in paths]).to(question.output),
        "map_error": torch.where(counts > 2, _map_error(fine, coarse), torch.nan),
        "stopped": stopped,
    }


def _weighted(
    question: Question, paths: Sequence[Path], kept: Sequence[dict[float, Features]], weights_of: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """sum_k w_k g_k for every sample, per part."""
    sums = [_accumulator(z) for z in question.features]
    for b, path in enumerate(paths):
        weights = weights_of(torch.tensor(path.nodes, dtype=torch.float64)).tolist()
        for t, weight in zip(path.nodes, weights):
            for total, gradient in zip(sums, kept[b][t]):
                total[b].add_(gradient, alpha=weight)
    return sums


def _closed(question: Question, parts: Features, closure: str) -> tuple[Features, dict[str, Any]]:
    """Values with the error shared out, and what the record says of it."""
    before = question.budget("quadrature", parts)
    error = before["quadrature"]
    closed = tuple(discrete_gradient(parts, question.steps, error))
    after = question.budget(closure, closed)[closure]
    return closed, {"closure": closure, "raw_error": error, "budget": {**before, closure: after - error}}


def _accumulator(features: Tensor) -> Tensor:
    """Zeros like the features, in float32 or better: half precision would lose the small terms of a long sum."""
    return torch.zeros_like(features, dtype=torch.promote_types(features.dtype, torch.float32))


def _add(sums: Sequence[Tensor], samples: Tensor, gradients: Features, weights: Tensor) -> None:
    for total, gradient in zip(sums, gradients):
        scaled = gradient.to(total.dtype) * weights.to(total).view(-1, *[1] * (gradient.ndim - 1))
        total.index_add_(0, samples.to(total.device), scaled)


def _times_step(question: Question, sums: Sequence[Tensor]) -> Features:
    return tuple((total * step).to(step.dtype) for total, step in zip(sums, question.steps))


def _map_error(fine: Features, coarse: Features) -> Tensor:
    """|a_fine - a_coarse|_1 / |a_fine|_1 per sample; 0 where both maps are empty."""

    def norm(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([p.double().abs().flatten(1).sum(1) for p in parts]).sum(0)

    apart, size = norm([a - b for a, b in zip(fine, coarse)]), norm(fine)
    return torch.where(size > 0, apart / size.clamp_min(torch.finfo(size.dtype).tiny), apart)


def _check(tolerance: float, local_tolerance: float, most: int, closure: str | None, rows: int | None) -> None:
    for name, value in (("tolerance", tolerance), ("local_tolerance", local_tolerance)):
        if not value > 0:
            raise UsageError(f"{name}={value:g} was asked; it must be above 0")
    if most < 2:
        raise UsageError(f"max_evaluations={most} was asked; a path has two ends, so 2 or more")
    if closure not in (None, "discrete_gradient"):
        raise UsageError(f"closure={closure!r} was asked; None and 'discrete_gradient' are possible")
    if rows is not None and rows < 1:
        raise UsageError(f"internal_batch_size={rows} was asked; 1 or more, or None")


def _warn(question: Question, paths: Sequence[Path], stopped: Sequence[str], tolerance: float, local: float, most: int) -> None:
    late = [b for b, why in enumerate(stopped) if why == "max_evaluations"]
    if late:
        worst = max(late, key=lambda b: abs(paths[b].error()) / max(paths[b].scale, 1e-300))
        path = paths[worst]
        warnings.warn(
            f"{len(late)} of {len(paths)} samples ended at max_evaluations={most}; worst: sample {worst}, error"
            f" {path.error():+.3g}, local error {float(path.defects().abs().sum()):.3g}, difference {path.difference:.3g}"
            f" (asked: {tolerance:g} and {local:g} of the difference)",
            NotConvergedWarning,
            stacklevel=6,  # past with_mean_gradients and over_draws, at the caller
        )
