"""A function around a model, as a module: Captum explains any callable, zeroline follows modules.

Holds ``Around``, a module whose forward pass is a function, and ``observed``, one pass that finds the modules that the function calls and what
given layers give. Nothing is found by reading code: a module counts when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from zeroline.errors import SiteError, UsageError
from zeroline.model.state import refuse_training

Forward = Callable[..., Any]


class Around(nn.Module):
    """``forward(*arguments)`` is ``function(*arguments)``; ``modules`` are those that it calls, ``taps`` where layers' inputs come by."""

    def __init__(self, function: Forward, modules: Sequence[nn.Module], taps: int = 0) -> None:
        super().__init__()
        self._function = (function,)  # in a tuple: a function that is a module is registered once, among the modules
        for number, module in enumerate(modules):
            self.add_module("model" if len(modules) == 1 else f"model{number}", module)
        self.taps = nn.ModuleList(nn.Identity() for _ in range(taps)).eval()
        self.training = any(module.training for module in modules)

    def forward(self, *arguments: Any) -> Any:
        return self._function[0](*arguments)


@dataclass(frozen=True)
class Observed:
    """One pass of a function: the outermost modules that it called, and the tensors at each layer in the order of the layers."""

    roots: tuple[nn.Module, ...]
    tensors: tuple[tuple[Tensor, ...], ...]
    in_tuple: tuple[bool, ...]


def observed(function: Forward, arguments: Sequence[Any], layers: Sequence[nn.Module] = (), *, at_input: bool = False) -> Observed:
    """Run the function once. Random numbers that it draws are given back.

    Raises SiteError where a layer is not called, is called more than once, or has something other than real tensors there;
    ModelStateError where a module that is called would answer at random.
    """
    roots: list[nn.Module] = []
    known: set[nn.Module] = set()
    calls: list[list[Any]] = [[] for _ in layers]

    def called(module: nn.Module, _: Any) -> None:
        if module not in known:
            refuse_training(module)
            roots.append(module)
            known.update(module.modules())

    def keep(number: int) -> Callable[..., None]:
        return lambda module, given, output=None: calls[number].append(given if at_input else output)

    devices = sorted({t.device.index or 0 for t in arguments if isinstance(t, Tensor) and t.device.type == "cuda"})
    hooks = [register_module_forward_pre_hook(called)]
    try:
        for number, layer in enumerate(layers):
            hooks.append(layer.register_forward_pre_hook(keep(number)) if at_input else layer.register_forward_hook(keep(number)))
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            function(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
    outermost = [root for root in roots if not any(root in set(other.modules()) for other in roots if other is not root)]
    found = [_once(layer, seen, at_input) for layer, seen in zip(layers, calls)]
    return Observed(tuple(outermost), tuple(tensors for tensors, _ in found), tuple(several for _, several in found))


def _once(layer: nn.Module, seen: list[Any], at_input: bool) -> tuple[tuple[Tensor, ...], bool]:
    """The tensors at a layer that is called once, and whether they came in a tuple."""
    name = type(layer).__name__
    if len(seen) != 1:
        what = f"the layer {name} is called {len(seen)} times in one forward pass"
        hint = "Captum would put the same features into all of them; zl.site.module(layer, call=...) names one" if seen else "it must be called once"
        raise SiteError(f"{what}; {hint}")
    several = isinstance(seen[0], (tuple, list))
    tensors = tuple(seen[0]) if several else (seen[0],)
    if not tensors or not all(isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in tensors):
        kinds = ", ".join(str(t.dtype) if isinstance(t, Tensor) else type(t).__name__ for t in tensors) or "nothing"
        side = "takes, by position," if at_input else "gives"
        raise SiteError(f"the layer {name} {side} {kinds}; features are tensors of real numbers; zl.site names one of several")
    return tensors, several


@contextmanager
def tapped(model: Around, layers: Sequence[nn.Module], counts: Sequence[int]) -> Iterator[None]:
    """Within the block, the inputs of each layer come by ``model.taps``, one for each of its ``counts`` tensors, on their way."""

    def through(taps: Sequence[nn.Module]) -> Callable[..., Any]:
        return lambda module, given: tuple(tap(tensor) for tap, tensor in zip(taps, given))

    taps = iter(model.taps)
    hooks = []
    try:
        for layer, count in zip(layers, counts):
            hooks.append(layer.register_forward_pre_hook(through([next(taps) for _ in range(count)])))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def refuse_parallel(forward_func: Any, device_ids: Sequence[int] | None = None) -> None:
    """Raise where the passes would be spread over several devices, or where there is nothing to call."""
    if not callable(forward_func):
        raise UsageError(f"forward_func is a module or a function of tensors, not {type(forward_func).__name__}")
    if isinstance(forward_func, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or (device_ids is not None and len(device_ids) > 1):
        raise UsageError("a model spread over several devices was given; zeroline explains the module inside, on one device: give model.module")
