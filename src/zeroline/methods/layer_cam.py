"""LayerCAM (Jiang et al. 2021), with its baseline said: every element is weighed by its own positive gradient.

``map_p = ReLU(sum_k ReLU(df/dA_kp) (A_kp - A0_kp))`` (their equations 5 to 7, where A0 = 0). Read as gradient x (features - baseline)
with one change, rectification: of the gradient, then of the map (which changes nothing where A - A0 is not negative).
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
def layer_cam(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    site: SiteLike = None,
    baseline: BaselineLike,
    rectify_gradient: bool = True,
    rectify: bool = True,
    normalise: bool = False,
    grid: Grid = None,
    prefix: int | None = None,
) -> Attribution:
    """LayerCAM at a convolutional layer, or at patch tokens.

    Args:
        rectify_gradient: set negative entries of the gradient to zero.
        model, inputs, target, site, baseline, rectify, normalise, grid, prefix: as in ``grad_cam``.

    Returns:
        As ``grad_cam``.

    Raises:
        As ``grad_cam``.
    """
    changes = Changes(rectify_gradient=rectify_gradient, rectify=rectify, normalise=normalise)
    return class_activation(model, inputs, target=target, site=site, baseline=baseline, method="layer_cam", changes=changes, grid=grid, prefix=prefix)
