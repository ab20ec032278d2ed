"""Several methods on one question: the same input and target, each with the baseline and the site that it stands on.

Holds ``compare`` and the table of what is asked by default. The CAM family is asked at a layer with positions and with the zero
features that its papers take without saying; the others where the user says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from zeroline.baseline import BaselineLike, zeros
from zeroline.comparison import Comparison
from zeroline.errors import UsageError
from zeroline.measure.layers import gathered, lie_of
from zeroline.methods import CAMS, METHODS, require_options
from zeroline.model.blocks import cam_site
from zeroline.model.inputs import Inputs
from zeroline.model.reference import settle
from zeroline.site import SiteLike
from zeroline.target import TargetLike

Progress = Callable[[int, int | None], None]
DEFAULT = ("gradient_x_input", "taylor", "integrated_gradients", "grad_cam", "layer_cam", "odam", "difference_map")
IMPLIED = ("grad_cam", "layer_cam", "odam")  # their papers have z0 = 0


def compare(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    baseline: BaselineLike,
    methods: str | Sequence[str] | Mapping[str, Mapping[str, Any]] = DEFAULT,
    site: SiteLike = None,
    grid_site: SiteLike = None,
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Attributions of one target by several methods, each from its own baseline at its own site.

    Args:
        model, inputs, target: as in ``zl.gradient_x_input``.
        baseline: of every method that does not imply one; Grad-CAM, LayerCAM and ODAM are asked from zero features, as published.
        methods: names of ``zl.METHODS``; or label -> {"method": name, "site": ..., "baseline": ..., and options of the method}, where
            what is left out is as for a name.
        site: of the methods outside the CAM family; default the input.
        grid_site: of the CAM family; default the last block at which the target has a gradient at more than one position.
        grid, prefix: how tokens lie, where the model does not say.
        progress: called with (methods done, in all).

    Returns:
        A ``Comparison`` by label; ``failures`` where a method cannot answer (no second derivative, say).

    Raises:
        The method's error, where every method fails; NotFoundError for a name that is no method.
    """
    if isinstance(methods, str):
        methods = [methods]
    asked = {name: {"method": name} for name in methods} if not isinstance(methods, Mapping) else {k: dict(v) for k, v in methods.items()}
    if not asked:
        raise UsageError("compare was asked of no methods")
    for label, one in asked.items():
        name = one.setdefault("method", label)
        require_options(name, one.keys() - {"method", "site", "baseline"})
    if grid_site is None and any(one["method"] in CAMS and "site" not in one for one in asked.values()):
        grid_site = cam_site(model, inputs, target)
    baseline, known = settle(model, inputs, baseline, site), Inputs.of(model, inputs)
    asks = {}
    for label, one in asked.items():
        name = one.pop("method")
        if name in CAMS:
            one = {"grid": grid, "prefix": prefix, **one}
        given = {"site": grid_site if name in CAMS else site, "baseline": zeros() if name in IMPLIED else baseline, **one}
        asks[label] = partial(METHODS[name], model, inputs, target=target, **given)
    members, failures = gathered(asks, progress)
    lies = {label: lie_of(model, known, found, grid, prefix) for label, found in members.items()}
    return Comparison(members, lies, failures)
