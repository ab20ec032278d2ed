"""Cascading randomisation: copies of a model whose weights are shuffled from the top down (Adebayo et al. 2018, "Sanity Checks").

Holds ``cascade``. The original is never written on: a copy is, stage after stage. Shuffling the entries of every tensor keeps its
scale and loses what it learned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from zeroline.model.blocks import entries_of
from zeroline.model.inputs import Inputs
from zeroline.model.state import untouched

HEAD, STEM = "head", "stem"


def cascade(model: nn.Module, inputs: Any, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """(stage, copy) from the top down: what comes after the blocks, then block by block, then what comes before them.

    In a model of several stacks of blocks (two towers) a stage takes the next block of each. The copy is one and the same object:
    use it before the next stage is asked for.
    """
    changed = copy.deepcopy(model)
    random = torch.Generator().manual_seed(seed)
    named = dict(changed.named_modules())
    for stage, modules in stages(model, inputs):
        with torch.no_grad():
            for name in modules:
                for parameter in named[name].parameters(recurse=False):
                    order = torch.randperm(parameter.numel(), generator=random).to(parameter.device)
                    parameter.copy_(parameter.flatten()[order].view_as(parameter))
        yield stage, changed


def stages(model: nn.Module, inputs: Any) -> list[tuple[str, list[str]]]:
    """Names of the modules (with parameters of their own) of each stage, the top first; every such module is in one of them."""
    order = _order(model, inputs)
    stacks: dict[str, list[str]] = {}
    for entry in sorted(entries_of(model), key=lambda name: order.get(name, len(order))):
        stacks.setdefault(entry.rpartition(".")[0], []).append(entry)
    depth = max(map(len, stacks.values()), default=0)
    owners = [name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None]
    found: dict[str, list[str]] = {HEAD: [], **{_stage(k): [] for k in range(1, depth + 1)}, STEM: []}
    for name in owners:
        block = next(((entries, e) for entries in stacks.values() for e in entries if name == e or name.startswith(f"{e}.")), None)
        if block is not None:
            entries, entry = block
            found[_stage(len(entries) - entries.index(entry))].append(name)
        else:
            found[STEM if _before(name, model.get_submodule(name), stacks, order) else HEAD].append(name)
    return [(stage, modules) for stage, modules in found.items() if modules]


def _stage(number: int) -> str:
    return "last block" if number == 1 else f"block {number} from the end"


def _before(name: str, module: nn.Module, stacks: dict[str, list[str]], order: dict[str, int]) -> bool:
    """Does a module outside the blocks finish before the first block of the stack that it is named with?

    Of those that are named with none of several stacks (what stands beside two towers), embeddings are taken for stem, the rest for head.
    """
    near = max((_common(name, stack) for stack in stacks), default=0)
    own = [entries[0] for stack, entries in stacks.items() if _common(name, stack) == near]
    if len(own) > 1:
        return isinstance(module, nn.Embedding)
    return bool(own) and order.get(name, len(order)) < order.get(own[0], len(order))


def _common(a: str, b: str) -> int:
    count = 0
    for one, two in zip(a.split("."), b.split(".")):
        if one != two:
            break
        count += 1
    return count


def _order(model: nn.Module, inputs: Any) -> dict[str, int]:
    """When each module first finishes in a forward pass."""
    found: dict[str, int] = {}

    def finished(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            found.setdefault(name, len(found))

        return note

    with untouched(model), torch.no_grad(), ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(finished(name)).remove)
        Inputs.of(model, inputs).call(model)
    return found
