"""Suffix execution: only the part of the model after the site runs again.

Along a path at a layer, everything before the layer gives the same answer at every point. Modules that finish
before the site are recorded once and replayed; code between modules runs as usual. What makes that sound:

- outputs are copied when recorded and again when replayed (an in-place operation may write on them);
- the batch dimension of each recorded tensor is found by comparing its shapes at two batch sizes;
- ``ask.py`` compares one path point with a full run, and runs the whole model where they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zeroline.model.places import Place

Key = tuple[str, int]  # module, call within the pass
Shapes = dict[Key, tuple[torch.Size | None, ...]]
Axes = dict[Key, tuple[int | None, ...]]
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


class Unsound(Exception):
    """Replaying would not give what the model gives; the message says why."""


class Prefix:
    """What the modules before the site gave, in one forward pass on the caller's batch.

    ``known`` outputs, of an earlier pass on the same inputs, are taken up instead of running the module; new ones are put in.
    """

    def __init__(self, model: nn.Module, places: tuple[Place, ...], known: dict[Key, Any] | None = None) -> None:
        self.modules = [] if any(place.input for place in places) else _before(model, places)
        self.model = model
        self.outputs: dict[Key, Any] = {}
        self.known = {} if known is None else known
        self.axes: Axes | None = None
        self._reached = False

    def reached(self) -> None:
        """The pass has come to the (first) site: what finishes from now on is suffix."""
        self._reached = True

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within the block, keep copies of the outputs of modules that finish before the site."""

        def keep(key: Key, forward: Callable[..., Any]) -> Callable[..., Any]:
            def recording(*args: Any, **kwargs: Any) -> Any:
                if not self._reached and key in self.known:
                    self.outputs[key] = self.known[key]
                    return pytree.tree_map(_copied, self.known[key])
                output = forward(*args, **kwargs)
                if not self._reached:
                    self.outputs[key] = self.known[key] = pytree.tree_map(_copied, output)
                return output

            return recording

        with self._patched(keep):
            yield

    @contextmanager
    def measured(self, shapes: Shapes, modules: list[tuple[str, nn.Module]] | None = None) -> Iterator[None]:
        """Within the block, note the shapes of what every module (or ``modules``) gives, at another batch size."""

        def note(key: Key, forward: Callable[..., Any]) -> Callable[..., Any]:
            def measuring(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                shapes[key] = shapes_of(output)
                return output

            return measuring

        everything = [(name, module) for name, module in self.model.named_modules() if name and not isinstance(module, torch.jit.ScriptModule)]
        with self._patched(note, everything if modules is None else modules):
            yield

    def find_axes(self, shapes: Shapes, batch: int, other: int) -> Axes:
        """Which dimension of each recorded tensor is the batch, from its shapes at two batch sizes."""
        return {key: batch_axes(key[0], shapes_of(output), shapes.get(key, ()), batch, other) for key, output in self.outputs.items()}

    @contextmanager
    def replayed(self, samples: Tensor) -> Iterator[None]:
        """Within the block, modules before the site return what they gave for ``samples``."""

        def replay(key: Key, forward: Callable[..., Any]) -> Callable[..., Any]:
            def replaying(*args: Any, **kwargs: Any) -> Any:
                if self._reached or key not in self.outputs:
                    return forward(*args, **kwargs)
                return self._rows(key, samples)

            return replaying

        with self._patched(replay):
            yield

    def _rows(self, key: Key, samples: Tensor) -> Any:
        assert self.axes is not None
        leaves, structure = pytree.tree_flatten(self.outputs[key])
        chosen = [
            leaf.clone() if axis is None else leaf.index_select(axis, samples.to(leaf.device)) if isinstance(leaf, Tensor) else leaf
            for leaf, axis in ((v, a) if isinstance(v, Tensor) else (v, 0) for v, a in zip(leaves, self.axes[key]))
        ]
        return pytree.tree_unflatten(chosen, structure)

    @contextmanager
    def _patched(
        self, wrap: Callable[[Key, Callable[..., Any]], Callable[..., Any]], modules: list[tuple[str, nn.Module]] | None = None
    ) -> Iterator[None]:
        """Put ``wrap(key, forward)`` in the place of each module's forward, counting calls; undo on exit."""
        self._reached = False
        modules = self.modules if modules is None else modules
        originals = [(module, module.__dict__.get("forward")) for _, module in modules]
        try:
            for name, module in modules:
                module.forward = _counting(name, module.forward, wrap)
            yield
        finally:
            for module, original in originals:
                if original is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = original


def _counting(name: str, forward: Callable[..., Any], wrap: Callable[[Key, Callable[..., Any]], Callable[..., Any]]) -> Callable[..., Any]:
    calls = 0

    @wraps(forward)  # a model may look at its modules' signatures
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        key = (name, calls)
        calls += 1
        return wrap(key, forward)(*args, **kwargs)

    return counted


def _before(model: nn.Module, places: tuple[Place, ...]) -> list[tuple[str, nn.Module]]:
    """The largest modules that do not contain a site: the sites themselves and the siblings of their ancestors."""
    # an attention is inside its module, as a site below it would be
    sites = [f"{place.module}.attention".lstrip(".") if place.attention else place.module or "" for place in places]
    inside = {".".join(site.split(".")[:depth]) for site in sites for depth in range(len(site.split(".")))}
    inside.discard("")
    found: list[tuple[str, nn.Module]] = []

    def visit(prefix: str, module: nn.Module) -> None:
        for child_name, child in module.named_children():
            name = f"{prefix}.{child_name}" if prefix else child_name
            if name in inside or isinstance(child, (nn.ModuleList, nn.ModuleDict)):
                visit(name, child)
            elif not isinstance(child, torch.jit.ScriptModule):
                found.append((name, child))

    visit("", model)
    unique = {id(module): (name, module) for name, module in reversed(found)}
    holders = {id(model.get_submodule(name)) for name in inside}
    return [pair for key, pair in unique.items() if key not in holders]


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    if isinstance(leaf, _PLAIN):
        return leaf
    raise Unsound(f"a module before the site returns {type(leaf).__name__}")


def shapes_of(output: Any) -> tuple[torch.Size | None, ...]:
    """The shapes of all tensors in an output, None for what is none."""
    return tuple(leaf.shape if isinstance(leaf, Tensor) else None for leaf in pytree.tree_leaves(output))


def batch_axes(
    name: str, shapes: tuple[torch.Size | None, ...], others: tuple[torch.Size | None, ...], batch: int, other: int
) -> tuple[int | None, ...]:
    """Which dimension of each tensor of an output is the batch, from its shapes at two batch sizes; Unsound where samples mix."""
    if len(shapes) != len(others):
        raise Unsound(f"{name!r} gives another number of tensors at another batch size")
    axes: list[int | None] = []
    for shape, longer in zip(shapes, others):
        if shape is None or longer is None or shape == longer:
            axes.append(None)
            continue
        moved = [d for d, (a, b) in enumerate(zip(shape, longer)) if a != b]
        if len(shape) != len(longer) or len(moved) != 1 or (shape[moved[0]], longer[moved[0]]) != (batch, other):
            raise Unsound(f"{name!r} mixes samples: {tuple(shape)} at batch {batch}, {tuple(longer)} at batch {other}")
        axes.append(moved[0])
    return tuple(axes)
