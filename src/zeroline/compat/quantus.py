"""``explain_func`` for Quantus: its metrics call it, zeroline explains.

Holds that one function, with the arguments that Quantus' metrics and ``quantus.evaluate`` pass: model, inputs and targets by name, arrays in
and an array out, and ``explain_func_kwargs``, to which Quantus adds ``device``. Normalising and absolute values are the metric's own
(``normalise``, ``abs``). Quantus itself is not needed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zeroline import baseline as baselines
from zeroline.attribution import Attribution
from zeroline.baseline import BaselineLike
from zeroline.errors import InputError, NotFoundError, SiteError, TargetError, UsageError
from zeroline.maths.grids import as_map
from zeroline.methods import METHODS, NO_MAP, ROUTES, check_options
from zeroline.model.inputs import Inputs
from zeroline.model.positions import positions_of
from zeroline.relevance import Relevance
from zeroline.site import SiteLike
from zeroline.target import logit

Array = NDArray[Any]
POSSIBLE = (*METHODS, *(name for name in ROUTES if name not in NO_MAP))


def explain_func(
    model: nn.Module,
    inputs: Array,
    targets: Array | int,
    *,
    method: str = "integrated_gradients",
    baseline: BaselineLike | Array | float | str | None = None,
    site: SiteLike = None,
    device: str | torch.device | None = None,
    reduce_axes: Sequence[int] = (1,),
    keepdims: bool = True,
    xai_lib_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Array:
    """Values for each input: [batch, 1, height, width] for images (summed over the channels), [batch, features] for rows of a table.

    Args:
        model: takes one floating-point tensor; in evaluation mode. It stays on its device and as it is.
        inputs: [batch, ...]; given to the model in its own dtype.
        targets: class indices [batch], or one for all.
        method: a name of ``zl.METHODS``, or of a route through attentions (``grad_eclip``, ``attention_relevance``, ...).
        baseline: for ``zl.METHODS``, and without a default: a ``zl.baseline`` record, its words (``"zeros"``, ``"blur(8)"``), an array, a number.
        site: as in ``zl.integrated_gradients``; at a layer the map is resampled to the image's size, bilinearly, so that it no longer adds up.
        device: the device that Quantus was told; it must be the model's.
        reduce_axes, keepdims: which axes are summed, of inputs with three dimensions or more; as in ``quantus.explain``, ``()`` for none.
        xai_lib_kwargs: further options of the method, as ``quantus.explain`` has it; the same as ``options``.

    Raises:
        NotFoundError, UsageError: a method, option, device or baseline that does not fit; SiteError where a map has no place on the image.
    """
    if method not in POSSIBLE:
        raise NotFoundError.among("method", str(method), POSSIBLE)
    options = {**(xai_lib_kwargs or {}), **options}
    check_options(method, options, but=("site", "baseline"))
    x = _tensor(model, inputs, device)
    target = logit(_classes(targets, len(x)))
    if method in ROUTES:
        if site is not None or baseline is not None:
            raise UsageError(f"a site and a baseline mean nothing to {method}; they belong to {', '.join(METHODS)}")
        return _resized(ROUTES[method](model, x, target=target, **options), model, x)
    found = METHODS[method](model, x, target=target, site=site, baseline=_baseline(baseline, x), **options)
    if len(found.parts) > 1 or found.values.shape != x.shape or not found.site.startswith("input:"):
        return _resized(found, model, x)
    values: Array = found.values.float().cpu().numpy()
    axes = tuple(reduce_axes)
    if 0 in axes or any(not -x.ndim < axis < x.ndim for axis in axes):
        raise UsageError(f"reduce_axes={axes} was asked of inputs with {x.ndim} dimensions; the batch (0) stays, so 1 to {x.ndim - 1}")
    return values.sum(axis=axes, keepdims=keepdims) if axes and x.ndim > 2 else values


def _tensor(model: nn.Module, inputs: Array, device: str | torch.device | None) -> Tensor:
    if not isinstance(model, nn.Module):
        raise UsageError(f"a model is a torch.nn.Module, not {type(model).__name__}")
    like = next(model.parameters(), torch.zeros(()))
    if device is not None and torch.device(device).type != like.device.type:
        raise InputError(f"device {str(device)!r} was asked and the model is on {like.device}; move it with model.to({str(device)!r})")
    return torch.as_tensor(np.asarray(inputs)).to(like.device, like.dtype)


def _classes(targets: Array | int, count: int) -> list[int]:
    found = np.asarray(targets)
    if found.dtype.kind not in "iu" or found.size not in (1, count):
        what = f"targets of shape {found.shape} and {found.dtype} were given for {count} inputs"
        raise TargetError(f"{what}; give a class index for each, or one for all")
    return [int(one) for one in np.broadcast_to(found.reshape(-1), (count,))]


def _baseline(given: BaselineLike | Array | float | str | None, x: Tensor) -> BaselineLike:
    if given is None:
        raise UsageError(
            "no baseline was given, and there is no default: baseline='zeros', 'blur(8)', ... or a zl.baseline record in explain_func_kwargs"
        )
    if isinstance(given, str):
        return baselines.by_name(given)
    if isinstance(given, (int, float)):
        return baselines.constant(given)
    return baselines.tensor(torch.as_tensor(given).to(x), name="given array") if isinstance(given, np.ndarray) else given


def _resized(found: Attribution | Relevance, model: nn.Module, x: Tensor) -> Array:
    """The map of a record on the image's own grid: [batch, 1, height, width]."""
    if x.ndim != 4:
        raise SiteError(f"values at {getattr(found, 'site', found.method)!r} have no place on inputs of shape {tuple(x.shape)}; leave site out")
    if isinstance(found, Relevance):
        heat = found.grid()
    else:
        lie = positions_of(model, Inputs.of(model, x), found.values)
        heat = as_map(found.values, lie.grid, lie.prefix)
    grown = torch.nn.functional.interpolate(heat[:, None].double(), tuple(x.shape[-2:]), mode="bilinear", align_corners=False)
    maps: Array = grown.float().cpu().numpy()
    return maps
