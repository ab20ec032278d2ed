"""Finding a site in a running model, reading its tensor and putting another in its place.

Holds ``Place`` (a site resolved against one model and its inputs), ``resolve``, and ``run``: one forward pass in
which the tensor at each place goes through a function. Capturing and the do-operator are that one primitive with
different functions, so there is one set of hooks to put back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import NotFoundError, SiteError
from zeroline.model.capture import Seen, watched
from zeroline.model.inputs import Inputs
from zeroline.model.maps import maps_of, with_map
from zeroline.site import Site

Transform = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """An input by name, or a module's output by dotted name, call within the pass, and address in its output.

    With ``attention``, the map of the ``call``-th attention that the module computes.
    """

    input: str | None = None
    module: str | None = None
    output: int | str | None = None
    call: int = 0
    attention: bool = False

    def __str__(self) -> str:
        if self.input is not None:
            return f"input:{self.input}"
        if self.attention:
            return str(Site("attention", self.module, call=self.call))
        return str(Site("module", self.module, self.output, self.call))


def resolve(model: nn.Module, inputs: Inputs, site: Site) -> tuple[Place, ...]:
    """The places that ``site`` means in ``model``; exactly one, unless the site is joint."""
    if site.kind == "joint":
        places = tuple(place for part in site.joint for place in resolve(model, inputs, part))
        if len(set(places)) < len(places):
            raise SiteError(f"joint site {site} names the same place twice")
        return places
    if site.kind == "all":
        return tuple(Place(module=name) for name in matching(model, str(site.name)))
    if site.kind == "input":
        return (Place(input=inputs.only_floating(site.name)),)
    if site.kind == "embedding":
        name, call = embedding_of(model, inputs, site.name)
        return (Place(module=name, call=call),)
    if site.kind == "attention":
        return (Place(module=_one_match(model, site.name) if site.name else "", call=site.call, attention=True),)
    if site.module is not None:
        return (Place(module=_name_of(model, site.module), output=site.output, call=site.call),)
    if site.name in inputs.tensors and site.name not in dict(model.named_modules()):
        return (Place(input=inputs.only_floating(site.name)),)
    return (Place(module=_one_match(model, str(site.name)), output=site.output, call=site.call),)


def matching(model: nn.Module, pattern: str) -> list[str]:
    """Names of all modules that match a dotted name with ``*`` and ``?``; an error where none does."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    found = [name for name in names if _match(name, pattern)]
    if not found:
        raise NotFoundError.among("module", pattern, names, "see `zeroline sites MODEL`")
    return found


def run(model: nn.Module, inputs: Inputs, places: tuple[Place, ...], transform: Transform) -> Any:
    """One forward pass; the tensor at ``places[i]`` is replaced by ``transform(i, tensor)`` downstream."""
    reached: set[int] = set()

    def through(i: int, tensor: Tensor) -> Tensor:
        reached.add(i)
        return transform(i, tensor)

    changed = {place.input: through(i, inputs.named[place.input]) for i, place in enumerate(places) if place.input}
    hooks = [_hook(model, place, i, through) for i, place in enumerate(places) if place.module is not None and not place.attention]
    maps = {(place.module, place.call): i for i, place in enumerate(places) if place.attention}
    try:
        asked = inputs.with_values(changed)
        output = _with_maps(model, asked, maps, through) if maps else asked.call(model)
    finally:
        for hook in hooks:
            hook.remove()
    for i, place in enumerate(places):
        if i not in reached:
            again = f" call {place.call} of" if place.call else ""
            raise SiteError(f"the forward pass never reached{again} {str(place)!r}; it runs in another branch, or not at all for these inputs")
    return output


def _with_maps(model: nn.Module, inputs: Inputs, maps: Mapping[tuple[str | None, int], int], through: Transform) -> Any:
    """One pass in which the attention maps of some calls go through the transform, and their values through the result."""

    def replace(seen: Seen, output: Tensor) -> Tensor:
        index = maps.get((seen.path, seen.index))
        if index is None:
            return output
        own = maps_of(seen, inputs.batch).attention()
        if len(own) % inputs.batch == 0:  # windows of a sample stand beside its heads
            own = own.reshape(inputs.batch, -1, *own.shape[-2:])
        put = through(index, own)
        return output if put is own else with_map(seen, put, inputs.batch)

    with watched(model, inputs, graph=False, replace_output=replace) as recording:
        return recording.output


def _hook(model: nn.Module, place: Place, index: int, through: Transform) -> Any:
    calls = 0

    def on_output(module: nn.Module, arguments: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls - 1 != place.call:
            return None
        key = address(place, output)
        return put(output, key, through(index, get(output, key)))

    return model.get_submodule(place.module or "").register_forward_hook(on_output)


def address(place: Place, output: Any) -> int | str | None:
    """Which element of a module's output is meant; None where the output is the tensor itself."""
    if isinstance(output, Tensor):
        if place.output not in (None, 0):
            raise SiteError(f"{place.module!r} gives one tensor; {place} asks for element {place.output!r}")
        return None
    elements = _elements(output)
    tensors = {k: v for k, v in elements.items() if isinstance(v, Tensor) and v.is_floating_point()}
    if place.output is not None:
        if place.output in tensors:
            return place.output
        found = ", ".join(f"{place.module}[{k}]" for k in tensors) or "no floating-point tensor"
        raise SiteError(f"no tensor at {place}; its output has {found}")
    if len(tensors) == 1:
        return next(iter(tensors))
    found = ", ".join(f"{place.module}[{k}] {tuple(v.shape)}" for k, v in tensors.items())
    raise SiteError(f"the output of {place.module!r} is {type(output).__name__} with {len(tensors)} tensors; name one: {found or 'none'}")


def get(output: Any, key: int | str | None) -> Tensor:
    """The tensor at ``key``."""
    return output if key is None else output[key]  # type: ignore[no-any-return]


def put(output: Any, key: int | str | None, tensor: Tensor) -> Any:
    """A copy of ``output`` with the tensor at ``key`` replaced."""
    if key is None:
        return tensor
    if isinstance(output, tuple):
        items = [tensor if i == key else item for i, item in enumerate(output)]
        return output._make(items) if hasattr(output, "_make") else tuple(items)
    changed = copy.copy(output)
    changed[key] = tensor
    return changed


def _elements(output: Any) -> dict[int | str, Any]:
    if isinstance(output, Mapping):
        return dict(output)
    return dict(enumerate(output)) if isinstance(output, (tuple, list)) else {}


def _match(name: str, pattern: str) -> bool:
    """Dotted glob: ``*`` matches within one component only."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _one_match(model: nn.Module, pattern: str) -> str:
    found = matching(model, pattern)
    if len(found) > 1:
        raise SiteError(f"{pattern!r} matches {len(found)} modules ({', '.join(found[:4])}, ...); name one, or write all:{pattern}")
    return found[0]


def _name_of(model: nn.Module, module: nn.Module) -> str:
    for name, candidate in model.named_modules():
        if candidate is module:
            return str(name)
    raise SiteError(f"the module given as site ({type(module).__name__}) is not part of the model")


class _Found(Exception):
    """Ends a forward pass early: the embedding is known."""


def embedding_of(model: nn.Module, inputs: Inputs, asked: str | None) -> tuple[str, int]:
    """Name and call of the ``nn.Embedding`` that looks up the id input ``asked`` (or any id input, the first that is)."""
    ids = inputs.ids()
    if asked is not None and asked not in ids:
        rows = len(inputs.tensors[asked]) if asked in inputs.tensors else None
        if rows not in (None, inputs.batch) and not inputs.tensors[asked].is_floating_point():
            raise SiteError(f"input {asked!r} has {rows} rows for {inputs.batch} samples; a site has a row per sample")
        raise NotFoundError.among("integer input", asked, ids)
    wanted = [ids[asked]] if asked is not None else list(ids.values())
    found: list[tuple[str, int]] = []

    def watch(name: str) -> Callable[..., None]:
        calls = 0

        def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            nonlocal calls
            looked_up = arguments[0] if arguments else None
            if isinstance(looked_up, Tensor) and any(looked_up.shape == t.shape and torch.equal(looked_up, t) for t in wanted):
                found.append((name, calls))
                raise _Found
            calls += 1

        return before

    embeddings = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Embedding)]
    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in embeddings]
    try:
        with torch.no_grad():
            inputs.call(model)
    except _Found:
        return found[0]
    finally:
        for hook in hooks:
            hook.remove()
    raise SiteError(f"no nn.Embedding looks up {asked or 'an integer input'!r}; embeddings: {', '.join(n for n, _ in embeddings) or 'none'}")
