"""Captum's classes with zeroline underneath: change the import, keep the call.

Holds ``IntegratedGradients``, ``LayerIntegratedGradients`` and ``InputXGradient``: Captum's constructor and ``attribute`` arguments, their order and
defaults, and its results (a tensor, or a tuple where a tuple came in). The values are Captum's, for its rules and its weights;
``method="adaptive"`` is zeroline's own path. After a call ``.record`` is the ``Attribution``: target, baseline and error with it. Captum itself is
not needed.

Unlike Captum: results hold no graph of the caller's; models that answer at random or mix the samples of a batch, and layers that run twice,
are refused with an error of ``zeroline.errors``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zeroline import baseline as baselines
from zeroline.attribution import Attribution
from zeroline.baseline import Baseline
from zeroline.compat.callables import Around, Forward, Observed, observed, refuse_parallel, tapped
from zeroline.compat.selected import Given, Selected
from zeroline.errors import BaselineError, InputError, NotFoundError, UsageError
from zeroline.methods import gradient_x_input
from zeroline.methods.integrated_gradients import with_mean_gradients
from zeroline.model import identity
from zeroline.model.inputs import Inputs
from zeroline.site import Site

__all__ = ["InputXGradient", "IntegratedGradients", "LayerIntegratedGradients"]

Tensors = Tensor | tuple[Tensor, ...]
Start = Tensor | float | tuple[Tensor | float, ...] | None
Layers = nn.Module | Sequence[nn.Module]
PATHS = {
    "gausslegendre": "gausslegendre",
    "riemann_left": "riemann_left",
    "riemann_middle": "midpoint",
    "riemann_right": "riemann",
    "riemann_trapezoid": "trapezoid",
    "adaptive": "adaptive",
}
_SHORT = "short weights"  # Captum's trapezoid: they add up to (n - 1) / n


class _Explainer:
    """What the three have in common: a callable, and the record of the last call."""

    def __init__(self, forward_func: Forward) -> None:
        refuse_parallel(forward_func)
        self.forward_func = forward_func
        self._record: Attribution | None = None
        self._model: nn.Module | None = None  # kept: the record's hash of the weights is computed when asked for

    @property
    def record(self) -> Attribution:
        """The whole ``zl.Attribution`` of the last call of ``attribute``. Raises UsageError before the first."""
        if self._record is None:
            raise UsageError("there is no record yet: attribute() has not been called, or has not come to an end")
        return self._record

    def _at_inputs(self, arguments: Sequence[Any], count: int) -> tuple[nn.Module, Site]:
        """The callable as a module, and the first ``count`` arguments as a site."""
        function = self.forward_func
        model = self._model = function if isinstance(function, nn.Module) else Around(function, observed(function, arguments).roots)
        names = list(Inputs.of(model, tuple(arguments)).named)[:count]
        sites = tuple(Site("input", name) for name in names)
        return model, sites[0] if len(sites) == 1 else Site("joint", joint=sites)


class IntegratedGradients(_Explainer):
    """Captum's ``IntegratedGradients``: ``(x - x0) * integral of df/dx along the straight path`` (see ``zl.integrated_gradients``).

    ``multiply_by_inputs=False`` gives the integral alone, the mean gradient along the path.
    """

    def __init__(self, forward_func: Forward, multiply_by_inputs: bool = True) -> None:
        super().__init__(forward_func)
        self._multiply_by_inputs = multiply_by_inputs

    @property
    def multiplies_by_inputs(self) -> bool:
        """Does ``attribute`` give the integral times (x - x0)?"""
        return self._multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        """True, as in Captum."""
        return True

    def attribute(
        self,
        inputs: Tensors,
        baselines: Start = None,
        target: Given = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        *,
        tolerance: float = 0.01,
        local_tolerance: float = 0.1,
        max_evaluations: int = 512,
    ) -> Any:
        """Values with the shapes of ``inputs``; with ``return_convergence_delta`` also ``sum(values) - (f(x) - f(x0))``, [batch].

        Args:
            inputs: a tensor [batch, ...] or a tuple of them, the first arguments of ``forward_func``.
            baselines: None (zeros), a number, a tensor of the input's shape or of one sample of it; a tuple of these for a tuple of inputs.
            target: the index of one number in each sample's output; None where the output is one number per sample.
            additional_forward_args: what ``forward_func`` takes after the inputs: one argument, or a tuple of them.
            method: ``gausslegendre``, ``riemann_left``, ``riemann_middle``, ``riemann_right``, ``riemann_trapezoid`` with ``n_steps`` nodes; or
                ``adaptive``, whose nodes follow from ``tolerance``, ``local_tolerance`` and ``max_evaluations``; ``n_steps`` then means nothing.
            internal_batch_size: path points per pass; None measures what fits into memory.

        Raises:
            As ``zl.integrated_gradients``.
        """
        self._record = None
        given, more = _tuple(inputs), _more(additional_forward_args)
        model, site = self._at_inputs((*given, *more), len(given))
        record, means = with_mean_gradients(
            model,
            (*given, *more),
            target=Selected.of(target),
            site=site,
            baseline=_at_site(given, baselines),
            path=_path(method),
            n_steps=n_steps,
            internal_batch_size=internal_batch_size,
            tolerance=tolerance,
            local_tolerance=local_tolerance,
            max_evaluations=max_evaluations,
        )
        self._record, means = _captums(_of(self.forward_func, model, record), means, method)
        found = _values(self._record, means, self._multiply_by_inputs)
        result = found if isinstance(inputs, tuple) else found[0]
        return (result, _delta(self._record, found)) if return_convergence_delta else result


class LayerIntegratedGradients(_Explainer):
    """Captum's ``LayerIntegratedGradients``: the same with a layer's output (or its input) as features, from those of the baseline input.

    ``layer`` is a module, or a list of modules that run in one pass and do not feed each other.
    """

    def __init__(self, forward_func: Forward, layer: Layers, device_ids: list[int] | None = None, multiply_by_inputs: bool = True) -> None:
        super().__init__(forward_func)
        refuse_parallel(forward_func, device_ids)
        layers: list[Any] = list(layer) if isinstance(layer, (list, tuple)) else [layer]
        if not layers or not all(isinstance(one, nn.Module) for one in layers):
            raise UsageError(f"a layer is a module or a list of modules, not {layer!r}")
        self.layer = layer
        self._layers: list[nn.Module] = layers
        self._multiply_by_inputs = multiply_by_inputs

    @property
    def multiplies_by_inputs(self) -> bool:
        """Does ``attribute`` give the integral times (z - z0)?"""
        return self._multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        """True, as in Captum."""
        return True

    def attribute(
        self,
        inputs: Tensors,
        baselines: Start = None,
        target: Given = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: Mapping[str, Any] | None = None,
        *,
        tolerance: float = 0.01,
        local_tolerance: float = 0.1,
        max_evaluations: int = 512,
    ) -> Any:
        """As ``IntegratedGradients.attribute``; values have the shape of the layer's output, or with ``attribute_to_layer_input`` its input.

        A tuple where the layer has several tensors there, a list where a list of layers was given. Inputs may hold ids. The delta is Captum's:
        it compares with f(x0), and at a layer that the rest of the model can do without it is not the error; ``.record.error`` is.

        Raises:
            As ``zl.integrated_gradients``; SiteError where a layer runs twice, never, or gives no real numbers; UsageError for ``grad_kwargs``.
        """
        if grad_kwargs:
            raise UsageError(f"grad_kwargs={dict(grad_kwargs)} was asked; zeroline calls torch.autograd.grad itself: leave it out")
        self._record = None
        given, more = _tuple(inputs), _more(additional_forward_args)
        start = _start(given, baselines)
        x0 = tuple(_filled(x, one) for x, one in zip(given, start))
        with self._at_layers((*given, *more), at_input=attribute_to_layer_input) as (model, site, seen):
            record, means = with_mean_gradients(
                model,
                (*given, *more),
                target=Selected.of(target),
                site=site,
                baseline=_at_input((*x0, *more), start),
                path=_path(method),
                n_steps=n_steps,
                internal_batch_size=internal_batch_size,
                tolerance=tolerance,
                local_tolerance=local_tolerance,
                max_evaluations=max_evaluations,
            )
        if attribute_to_layer_input:
            record = self._renamed(record, model, seen)
        self._record, means = _captums(_of(self.forward_func, model, record), means, method)
        found = _values(self._record, means, self._multiply_by_inputs)
        parts = iter(found)
        each = [tuple(next(parts) for _ in tensors) for tensors in seen.tensors]
        formatted = [one if len(one) > 1 else one[0] for one in each]
        result = formatted if isinstance(self.layer, (list, tuple)) else formatted[0]
        return (result, _delta(self._record, found)) if return_convergence_delta else result

    @contextmanager
    def _at_layers(self, arguments: Sequence[Any], *, at_input: bool) -> Iterator[tuple[nn.Module, Site, Observed]]:
        """The callable as a module and its layers as a site, for the length of the block."""
        function, layers = self.forward_func, self._layers
        seen = observed(function, arguments, layers, at_input=at_input)
        counts = [len(tensors) for tensors in seen.tensors]
        inside = isinstance(function, nn.Module) and set(layers) <= set(function.modules())
        if inside and not at_input:
            model: nn.Module = function  # type: ignore[assignment]
        else:
            model = Around(function, seen.roots, sum(counts) if at_input else 0)
        self._model = model
        if at_input:
            assert isinstance(model, Around)
            sites = [Site("module", module=tap) for tap in model.taps]
            with tapped(model, layers, counts):
                yield model, _joined(sites), seen
            return
        sites = [
            Site("module", output=number if several else None, module=layer)
            for layer, count, several in zip(layers, counts, seen.in_tuple)
            for number in range(count)
        ]
        yield model, _joined(sites), seen

    def _renamed(self, record: Attribution, model: nn.Module, seen: Observed) -> Attribution:
        """The record with the layers' names in the place of the taps'; behind a tap nothing is replayed, so the whole model ran."""
        called = {module: name for name, module in model.named_modules()}
        names = []
        for layer, tensors in zip(self._layers, seen.tensors):
            names += [f"input {number} of {called[layer]}" if len(tensors) > 1 else f"input of {called[layer]}" for number in range(len(tensors))]
        return replace(record, parts=dict(zip(names, record.parts.values())), site=" + ".join(names), execution="full")


class InputXGradient(_Explainer):
    """Captum's ``InputXGradient``: ``x * df/dx``, which is ``zl.gradient_x_input`` from the zero baseline."""

    @property
    def multiplies_by_inputs(self) -> bool:
        """True, as in Captum."""
        return True

    def attribute(self, inputs: Tensors, target: Given = None, additional_forward_args: Any = None) -> Any:
        """Values with the shapes of ``inputs``. The zero baseline is run as well: the record says what the values leave unaccounted for.

        Raises:
            As ``zl.gradient_x_input``.
        """
        self._record = None
        given, more = _tuple(inputs), _more(additional_forward_args)
        model, site = self._at_inputs((*given, *more), len(given))
        record = gradient_x_input(model, (*given, *more), target=Selected.of(target), site=site, baseline=baselines.zeros())
        self._record = _of(self.forward_func, model, record)
        found = tuple(self._record.parts.values())
        return found if isinstance(inputs, tuple) else found[0]


def _tuple(inputs: Any) -> tuple[Tensor, ...]:
    found = inputs if isinstance(inputs, tuple) else (inputs,)
    if not found or not all(isinstance(one, Tensor) for one in found):
        raise InputError(f"inputs are a tensor or a tuple of tensors, not {type(inputs).__name__}")
    return found


def _more(additional: Any) -> tuple[Any, ...]:
    return () if additional is None else additional if isinstance(additional, tuple) else (additional,)


def _start(given: tuple[Tensor, ...], start: Start) -> tuple[Tensor | float, ...]:
    """One baseline per input, checked as Captum checks it."""
    each = (0,) * len(given) if start is None else start if isinstance(start, tuple) else (start,)
    if len(each) != len(given):
        raise BaselineError(f"{len(each)} baselines were given for {len(given)} inputs; give one for each, or None for zeros")
    for one, x in zip(each, given):
        if not isinstance(one, (Tensor, int, float)):
            raise BaselineError(f"a baseline of type {type(one).__name__} was given; possible: a number, a tensor, or None for zeros")
        if isinstance(one, Tensor) and one.shape not in (x.shape, (1, *x.shape[1:])):
            raise BaselineError(f"a baseline of shape {tuple(one.shape)} was given; possible: {tuple(x.shape)}, or one sample {(1, *x.shape[1:])}")
    return each


def _filled(x: Tensor, start: Tensor | float) -> Tensor:
    return start.detach().to(x).expand_as(x) if isinstance(start, Tensor) else torch.full_like(x, start)


def _named(start: tuple[Tensor | float, ...]) -> str:
    names = ["given tensor" if isinstance(one, Tensor) else "zeros" if one == 0 else f"constant({one:g})" for one in start]
    return names[0] if len(set(names)) == 1 else ", ".join(names)


def _at_site(given: tuple[Tensor, ...], start: Start) -> Baseline:
    """x0 as features at the inputs."""
    each = _start(given, start)
    found = tuple(_filled(x, one) for x, one in zip(given, each))
    return Baseline(_named(each), "site", lambda features, _: features, features=found)


def _at_input(arguments: tuple[Any, ...], start: tuple[Tensor | float, ...]) -> Baseline:
    """x0 as other inputs, whose features at the layers are measured from."""
    return baselines.of(arguments, name=f"{_named(start)} at the input")


def _path(method: str) -> str:
    if method not in PATHS:
        raise NotFoundError.among("method", str(method), PATHS)
    return PATHS[method]


def _joined(sites: Sequence[Site]) -> Site:
    return sites[0] if len(sites) == 1 else Site("joint", joint=tuple(sites))


def _of(function: Callable[..., Any], model: nn.Module, record: Attribution) -> Attribution:
    """The record with the model inside a function named, where there is one."""
    if model is function or not isinstance(model, Around):
        return record
    inside = [module for name, module in model.named_children() if name != "taps"]
    if len(inside) == 1:
        return replace(record, model_class=identity.model_class(inside[0]), weights=identity.weights_hash(inside[0]))
    name = str(getattr(function, "__qualname__", type(function).__qualname__))
    return replace(record, model_class=f"function {name} of {', '.join(identity.model_class(m) for m in inside) or 'no module'}")


def _captums(record: Attribution, means: tuple[Tensor, ...], method: str) -> tuple[Attribution, tuple[Tensor, ...]]:
    """Values by Captum's weights: those of its trapezoid rule add up to (n - 1) / n, and the record says what that leaves out."""
    record = replace(record, settings={**record.settings, "method": method})
    if method != "riemann_trapezoid":
        return record, means
    nodes = int(record.settings["n_steps"])
    share = (nodes - 1) / nodes
    scaled = replace(record, parts={name: part * share for name, part in record.parts.items()}, local_error=None, map_error=None)
    budget = {**record.budget, _SHORT: scaled.error - record.error}
    return replace(scaled, budget=budget), tuple(mean * share for mean in means)


def _values(record: Attribution, means: tuple[Tensor, ...], multiply: bool) -> tuple[Tensor, ...]:
    """In float32 or better, which is what Captum gives of half precision."""
    if not multiply:
        return tuple(mean.detach() for mean in means)
    return tuple(part.to(torch.promote_types(part.dtype, torch.float32)) for part in record.parts.values())


def _delta(record: Attribution, values: tuple[Tensor, ...]) -> Tensor:
    """sum(values) - (f(x) - f(x0)), [batch]."""
    assert record.reference_output is not None  # every baseline here is another input
    total = torch.stack([value.to(record.output).flatten(1).sum(1) for value in values]).sum(0)
    return (total - (record.output - record.reference_output)).to(values[0].dtype)
