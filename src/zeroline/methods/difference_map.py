"""Difference Map: gradient x (features of x - features of a reference), nothing rectified or pooled.

``map_p = sum_k df/dA_kp (A_kp - A0_kp)`` with A0 the features of a reference input. The name is that of a method which Cui & Fan 2026
("The Neglected Baseline") analyse; its formula is not public to us, and this is our reading: the first-order rule whose baseline is
explicit and not zero. It is ``gradient_x_input`` with the options of the CAM family.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from zeroline.attribution import Attribution
from zeroline.baseline import BaselineLike
from zeroline.maths.cam import Changes
from zeroline.methods.class_activation import Grid, class_activation
from zeroline.methods.draws import over_draws
from zeroline.site import SiteLike
from zeroline.target import TargetLike


@over_draws
def difference_map(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    site: SiteLike = None,
    baseline: BaselineLike,
    rectify: bool = False,
    normalise: bool = False,
    grid: Grid = None,
    prefix: int | None = None,
) -> Attribution:
    """Difference Map at a convolutional layer, or at patch tokens.

    Args:
        baseline: A0, the features of a reference: ``zl.baseline.of(inputs)``, ``.black()``, ``.mean_of(inputs)``, ...
        model, inputs, target, site, rectify, normalise, grid, prefix: as in ``grad_cam``.

    Returns:
        As ``grad_cam``.

    Raises:
        As ``grad_cam``.
    """
    changes = Changes(rectify=rectify, normalise=normalise)
    return class_activation(
        model, inputs, target=target, site=site, baseline=baseline, method="difference_map", changes=changes, grid=grid, prefix=prefix
    )
