"""Grad-CAM (Selvaraju et al. 2017), with its baseline said: channel weights are mean gradients, the map is rectified.

``map_p = ReLU(sum_k alpha_k (A_kp - A0_kp))`` with ``alpha_k = mean_p df/dA_kp`` (their equations 1 and 2, where A0 = 0). Read as
gradient x (features - baseline) with two changes: pooling of the gradient and rectification of the map.
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
def grad_cam(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    site: SiteLike = None,
    baseline: BaselineLike,
    pool: bool = True,
    rectify: bool = True,
    normalise: bool = False,
    grid: Grid = None,
    prefix: int | None = None,
) -> Attribution:
    """Grad-CAM at a convolutional layer, or at patch tokens.

    Args:
        site: features A, [batch, channels, height, width] or [batch, tokens, width] (``zeroline sites MODEL`` lists them).
        baseline: A0; the published method has ``zl.baseline.zeros()``.
        pool: replace the gradient by its mean over positions.
        rectify: set the values of positions with a negative sum to zero.
        normalise: divide by the largest position of the map; the sum then means nothing, and the budget says how much of it.
        grid, prefix: rows and columns of patch tokens, and tokens before them (class, registers), where the model does not say.
        model, inputs, target: as in ``gradient_x_input``.

    Returns:
        Values with the shape of A; their sum over channels is the map. In units of the target. They add up to f(x) - f(do(A := A0))
        on linear models with ``pool`` and ``rectify`` off; else the error says how far off they are and ``budget`` what brought it:
        truncation, pooling, smoothing, rectification, normalisation. Class and register tokens keep first-order values.

    Raises:
        SiteError: features without positions, or a grid that does not fit them.
        And as ``gradient_x_input``.
    """
    changes = Changes(pool=pool, rectify=rectify, normalise=normalise)
    return class_activation(model, inputs, target=target, site=site, baseline=baseline, method="grad_cam", changes=changes, grid=grid, prefix=prefix)
