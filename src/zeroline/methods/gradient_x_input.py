"""Gradient x input: the first-order Taylor expansion about z (Simonyan 2013; Shrikumar 2016).

``a = (z - z0) * df/dz(z)``. With z0 = 0 it is the product that gave the method its name: the zero baseline was
there all along (Cui & Fan 2026, "The Neglected Baseline in Model Interpretation"; our reading of its claim that
gradient methods and Taylor expansion are one family).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zeroline.attribution import Attribution
from zeroline.baseline import BaselineLike
from zeroline.methods.draws import over_draws
from zeroline.model.ask import ask
from zeroline.site import SiteLike
from zeroline.target import TargetLike


@over_draws
def gradient_x_input(model: nn.Module, inputs: Any, *, target: TargetLike, site: SiteLike = None, baseline: BaselineLike) -> Attribution:
    """Step from the baseline times gradient at the features.

    Args:
        model: any module; left as it was.
        inputs: a tensor, a tuple, or a dict passed as keyword arguments; batch first.
        target: class (int or label), ``zl.top()``, ``zl.contrast(a, b)``, ... or a callable of the output.
        site: where the features are (default: the model's floating-point input); z is [batch, ...].
        baseline: ``zl.baseline...`` or a tensor at the site; z0 has the shape of z. With ``zl.baseline.distribution`` the record
            holds means over its draws, and the spread of their errors.

    Returns:
        Values with the shape of z, in units of the target. They add up to f(x) - f(do(z := z0)) where f is linear
        in z; elsewhere the record's error says how far off they are. One gradient evaluation per sample.

    Raises:
        UsageError: a name, shape, site, target or baseline that does not fit.
        NonFiniteError: NaN or infinity in the target or its gradient.
        GradientError: the target changes with the site but has no gradient there.
    """
    with ask(model, inputs, target=target, site=site, baseline=baseline, gradient=True) as question:
        assert question.gradient is not None
        parts = tuple(step * gradient for step, gradient in zip(question.steps, question.gradient))
        ones = torch.ones(question.batch, dtype=torch.int64, device=question.output.device)
        return question.answer(parts, method="gradient_x_input", settings={}, evaluations=ones, budget=question.budget("truncation", parts))
