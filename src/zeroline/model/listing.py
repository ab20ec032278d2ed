"""What can be a site: every module that gives a tensor with the batch first, its shape, and whether it is a cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import ZerolineError
from zeroline.model.ask import ask
from zeroline.model.inputs import Inputs
from zeroline.model.places import matching
from zeroline.model.state import untouched
from zeroline.target import TargetLike


@dataclass(frozen=True)
class Listed:
    """One possible site, spelled as ``--site`` takes it."""

    site: str
    kind: str
    shape: tuple[int, ...]
    is_cut: bool | None


def sites(
    model: nn.Module, inputs: Any, *, target: TargetLike = "top", match: str | None = None, progress: Callable[[int, int], None] | None = None
) -> Iterator[Listed]:
    """What can be a site: the floating-point inputs, then the modules in the order in which they finish.

    ``match`` narrows the modules by dotted name (``"encoder.layer.*"``). Each is tested for being a cut, which takes a
    few forward passes; hence an iterator, and ``progress(done, in all)``.
    """
    from zeroline.baseline import zeros

    found = dict(observed(model, inputs))
    if match is not None:
        kept = set(matching(model, match))
        found = {site: what for site, what in found.items() if site.split("[")[0].split("#")[0] in kept}
    for number, (site, (kind, shape)) in enumerate(found.items()):
        try:
            with ask(model, inputs, target=target, site=site, baseline=zeros()) as question:
                cut = question.is_cut
        except (ZerolineError, RuntimeError, ValueError, LookupError):
            cut = None
        if progress:
            progress(number + 1, len(found))
        yield Listed(site, kind, shape, cut)


def observed(model: nn.Module, inputs: Any) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """(spelling, (module class, shape)) of every tensor that could be a site in one forward pass."""
    seen: dict[str, tuple[str, tuple[int, ...]]] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def after(module: nn.Module, arguments: Any, output: Any) -> None:
            call = counts[name] = counts.get(name, -1) + 1
            suffix = f"#{call}" if call else ""
            elements = [("", output)] if isinstance(output, Tensor) else [(f"[{k}]", v) for k, v in _items(output)]
            tensors = [(k, v) for k, v in elements if isinstance(v, Tensor) and v.is_floating_point()]
            for key, tensor in tensors:
                if tensor.ndim and tensor.shape[0] == wanted.batch:
                    spelled = f"{name}{key if len(tensors) > 1 else ''}{suffix}"
                    seen[spelled] = (type(module).__name__, tuple(tensor.shape))

        return after

    with untouched(model), torch.no_grad():
        wanted = Inputs.of(model, inputs)
        hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
        try:
            wanted.call(model)
        finally:
            for hook in hooks:
                hook.remove()
    for name, tensor in wanted.floating().items():
        yield f"input:{name}", ("input", tuple(tensor.shape))
    yield from seen.items()


def _items(output: Any) -> list[tuple[Any, Any]]:
    if isinstance(output, dict):
        return list(output.items())
    return list(enumerate(output)) if isinstance(output, (tuple, list)) else []
