"""``zeroline methods`` and ``zeroline models``: what there is to choose from."""

from __future__ import annotations

import inspect

from rich.table import Table

from zeroline.cli import show
from zeroline.methods import METHODS, ROUTES
from zeroline.spelling.models import SCHEMES

_COMMON = {"model", "inputs", "target", "site", "progress"}


def methods() -> None:
    """List the methods (at a site, and through attentions), what each is, and the arguments of its own."""
    table = Table("method", "what it is", "arguments", box=None, pad_edge=False)
    for name, function in {**METHODS, **ROUTES}.items():
        module = inspect.getmodule(function)
        what = (module.__doc__ or "").strip().splitlines()[0] if module else ""
        own = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.name not in _COMMON and not (p.name == "baseline" and p.default is p.empty)
        ]
        named = [f"{p.name}={p.default!r}" for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
        more = [f"**{p.name}" for p in own if p.kind is inspect.Parameter.VAR_KEYWORD]
        table.add_row(name, what, ", ".join(named + more) or "-")
    show.output.print(table)


def models() -> None:
    """List the models that ship with zeroline, and how to name others."""
    from zeroline import zoo

    table = Table("model", "what it is", box=None, pad_edge=False)
    for name, entry in zoo.MODELS.items():
        table.add_row(f"zoo:{name}", entry.task)
    for form in SCHEMES.values():
        spelled, _, what = form.partition(", ")
        table.add_row(spelled, what)
    show.output.print(table)
