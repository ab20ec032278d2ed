"""ODAM (Zhao & Chan 2023), with its baseline said: gradient x features of one detection, element by element.

``map_p = ReLU(sum_k Phi(df/dA)_kp (A_kp - A0_kp))`` with Phi an optional Gaussian smoothing of the gradient (their section 3.1, where
A0 = 0). f is an attribute of one detection: its class score (``zl.target.detection``) or a coordinate of its box
(``zl.target.box``); any target will do. Read as gradient x (features - baseline) with smoothing and rectification.
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
def odam(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    site: SiteLike = None,
    baseline: BaselineLike,
    smooth: float | None = None,
    rectify: bool = True,
    normalise: bool = False,
    grid: Grid = None,
    prefix: int | None = None,
) -> Attribution:
    """ODAM at a convolutional layer, or at patch tokens.

    Args:
        smooth: sigma, in positions, of a Gaussian blur of the gradient; None for none.
        model, inputs, target, site, baseline, rectify, normalise, grid, prefix: as in ``grad_cam``.

    Returns:
        As ``grad_cam``.

    Raises:
        TargetError: no detection at that index, or a model that gives none.
        And as ``grad_cam``.
    """
    changes = Changes(smooth=smooth, rectify=rectify, normalise=normalise)
    return class_activation(model, inputs, target=target, site=site, baseline=baseline, method="odam", changes=changes, grid=grid, prefix=prefix)
