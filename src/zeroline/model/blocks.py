"""The blocks of a model, in the order in which they run: where an explanation can be asked for, from early to late.

Holds ``blocks_of``, which knows no model: a block is an entry of a list of modules that are themselves made of modules (the layers of
a Transformer, the stages or bottlenecks of a CNN), lists inside such blocks left out. And ``cam_site``, the last block at which
the target has a gradient at more than one position.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zeroline.errors import SiteError
from zeroline.model.inputs import Inputs
from zeroline.model.listing import observed
from zeroline.model.positions import positions_of
from zeroline.model.surgery import capture
from zeroline.target import TargetLike

_LISTS = (nn.ModuleList, nn.Sequential)


def blocks_of(model: nn.Module, inputs: Any) -> list[str]:
    """Sites at the model's blocks, in the order in which they first finish: those that give a tensor with the batch first.

    Of a block that gives several the first (its hidden states). Where no list of composite modules is found, the model's own
    children. Empty where none gives such a tensor.
    """
    seen: dict[str, str] = {}
    for site, _ in observed(model, inputs):
        if "#" not in site and not site.startswith("input:"):
            seen.setdefault(site.split("[")[0], site)
    for names in (entries_of(model), {name for name, _ in model.named_children()}):
        found = [site for name, site in seen.items() if name in names]
        if found:
            return found
    return []


def first_site(model: nn.Module, inputs: Any) -> str:
    """The input as a site: the only floating-point one (or the model's main one), or the embedding of its ids."""
    known = Inputs.of(model, inputs)
    main = getattr(model, "main_input_name", None)
    if not known.floating():
        ids = known.ids()
        return f"embedding:{main if main in ids else next(iter(ids))}"
    return f"input:{known.only_floating(main if main in known.floating() else None)}"


def default_sites(model: nn.Module, inputs: Any) -> list[str]:
    """The input, then every block."""
    return [first_site(model, inputs), *blocks_of(model, inputs)]


def cam_site(model: nn.Module, inputs: Any, target: TargetLike) -> str:
    """The last block with positions at which more than one position has a gradient; a forward and backward pass per block tried.

    At the last block of a Transformer that is read at its class token, only that token has one: a map there would be empty. Where the
    model reads a picture, blocks whose positions lie on its grid go first.
    """
    known, last = Inputs.of(model, inputs), None
    picture = any(t.ndim == 4 for t in known.floating().values())
    for site in reversed(blocks_of(model, inputs)):
        gradient = next(iter(capture(model, inputs, site, target=target).gradients.values()))
        if gradient.ndim in (3, 4) and _felt(gradient) > 1:
            if not picture or positions_of(model, known, gradient).grid is not None:
                return site
            last = last or site
    if last is not None:
        return last
    raise SiteError("no block of this model has positions with a gradient; name a site with a grid: see `zeroline sites MODEL`")


def _felt(gradient: Tensor) -> int:
    """The number of positions at which the gradient is not zero, in the first sample."""
    at = gradient[0].abs().sum(0 if gradient.ndim == 4 else -1)
    return int((at > 0).sum())


def entries_of(model: nn.Module) -> set[str]:
    """Names of the composite entries of the outermost lists of modules; a list of one entry that holds such lists is looked into."""
    found: set[str] = set()

    def visit(name: str, module: nn.Module) -> None:
        for child_name, child in module.named_children():
            full = f"{name}.{child_name}" if name else child_name
            entries = _composite(child)
            if len(entries) > 1 or (entries and not any(_composite(inner) for inner in child.modules() if inner is not child)):
                found.update(f"{full}.{entry}" for entry in entries)
            else:
                visit(full, child)

    visit("", model)
    return found


def _composite(module: nn.Module) -> list[str]:
    """The entries of a list of modules all of which are made of modules; none where it is no such list."""
    entries = list(module.named_children()) if isinstance(module, _LISTS) else []
    return [name for name, _ in entries] if all(next(entry.children(), None) is not None for _, entry in entries) else []
