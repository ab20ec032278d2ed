"""Taylor expansion about z, first and second order.

First order: ``a = (z - z0) * g(z)``, which is gradient x input. Second order subtracts half the curvature along
the step: ``a = (z - z0) * g(z) - 1/2 (z - z0) * H(z)(z - z0)``, with one Hessian-vector product. (Cui & Fan 2026,
"The Neglected Baseline"; our reading: the expansion is taken about x and read off at the baseline.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zeroline.attribution import Attribution
from zeroline.baseline import BaselineLike
from zeroline.errors import GradientError, UsageError
from zeroline.methods.draws import over_draws
from zeroline.methods.gradient_x_input import gradient_x_input
from zeroline.model.ask import ask
from zeroline.model.places import run
from zeroline.model.question import Features, Question, check_gradients
from zeroline.site import SiteLike
from zeroline.target import TargetLike


@over_draws
def taylor(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    site: SiteLike = None,
    baseline: BaselineLike,
    order: int = 2,
) -> Attribution:
    """Taylor expansion of f about the features z, evaluated at the baseline.

    Args:
        order: 1 (gradient x input) or 2. Order 2 runs attention under the math kernel of
            ``scaled_dot_product_attention``, because fused CPU attention has no second derivative; the record's
            settings say so.
        model, inputs, target, site, baseline: as in ``gradient_x_input``.

    Returns:
        Values with the shape of z, in units of the target. At order 2 they add up to f(x) - f(do(z := z0)) where f
        is quadratic in z. ``evaluations`` counts the Hessian-vector product as one.

    Raises:
        GradientError: a part of the model has no second derivative.
        And as ``gradient_x_input``.
    """
    if order == 1:
        first = gradient_x_input(model, inputs, target=target, site=site, baseline=baseline)
        return replace(first, method="taylor", settings={"order": 1})
    if order != 2:
        raise UsageError(f"taylor(order={order}) was asked; 1 and 2 are possible")
    with sdpa_kernel(SDPBackend.MATH), ask(model, inputs, target=target, site=site, baseline=baseline) as question:
        parts = _second_order(question)
        counts = torch.full((question.batch,), 2, dtype=torch.int64, device=question.output.device)
        settings = {"order": 2, "attention_kernel": "math"}
        return question.answer(parts, method="taylor", settings=settings, evaluations=counts, budget=question.budget("truncation", parts))


def _second_order(question: Question) -> Features:
    points = tuple(z.clone().requires_grad_() for z in question.features)
    output = run(question.model, question.inputs, question.places, lambda i, _: points[i].clone())
    value = question.target.read(output, question.everyone())
    if not value.requires_grad:
        question.connected = False
        question.require_gradient()
        return tuple(torch.zeros_like(z) for z in points)
    gradients = torch.autograd.grad(value.sum(), points, create_graph=True, materialize_grads=True)
    slope = torch.stack([(g * d).sum() for g, d in zip(gradients, question.steps)]).sum()
    _require_second_derivatives(slope)
    try:
        linear = not slope.requires_grad
        curved: Features = points if linear else torch.autograd.grad(slope, points, materialize_grads=True)
    except RuntimeError as problem:
        raise GradientError(f"taylor(order=2) needs a second derivative that the model lacks: {problem}") from None
    where = torch.ones(question.batch)
    for found in (gradients, () if linear else curved):
        check_gradients(found, question.everyone(), where)
    bend = 0.0 if linear else 0.5
    return tuple((d * g - bend * d * h).detach() for d, g, h in zip(question.steps, gradients, curved))


def _require_second_derivatives(slope: Tensor) -> None:
    """Raise where a function that was marked as differentiable once stands in the graph: autograd would silently leave it out."""
    waiting, seen = [slope.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().rpartition("::")[2] == "Error":
            raise GradientError("taylor(order=2) needs a second derivative, and a function of the model is marked as differentiable only once")
        waiting += [following for following, _ in node.next_functions]
