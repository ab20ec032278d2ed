"""The methods: one paper, one file. ``METHODS`` and ``ROUTES`` are the tables that the command line and the tests go through.

``METHODS`` give an ``Attribution`` at a site from a baseline; ``ROUTES`` go through a model's attentions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from zeroline.attribution import Attribution
from zeroline.errors import NotFoundError
from zeroline.methods.attention_eclip import attention_eclip
from zeroline.methods.attention_relevance import attention_relevance
from zeroline.methods.attention_transfer import attention_transfer
from zeroline.methods.difference_map import difference_map
from zeroline.methods.grad_cam import grad_cam
from zeroline.methods.grad_eclip import grad_eclip
from zeroline.methods.gradient_x_input import gradient_x_input
from zeroline.methods.integrated_attention import integrated_attention
from zeroline.methods.integrated_gradients import integrated_gradients
from zeroline.methods.layer_cam import layer_cam
from zeroline.methods.odam import odam
from zeroline.methods.rollout import rollout
from zeroline.methods.taylor import taylor

METHODS: dict[str, Callable[..., Attribution]] = {
    "difference_map": difference_map,
    "grad_cam": grad_cam,
    "gradient_x_input": gradient_x_input,
    "integrated_gradients": integrated_gradients,
    "layer_cam": layer_cam,
    "odam": odam,
    "taylor": taylor,
}


def method_named(name: str) -> Callable[..., Attribution]:
    """The method of ``METHODS``; an error with the nearest names where there is none."""
    if name not in METHODS:
        why = f"{name} goes through attentions and has no attribution error" if name in ROUTES else "see `zeroline methods`"
        raise NotFoundError.among("method", str(name), METHODS, why)
    return METHODS[name]


def options_of(name: str) -> tuple[str, ...]:
    """The options of a method or route of its own, those that it passes on included."""
    passed_on: dict[str, tuple[Callable[..., Any], frozenset[str]]] = {
        "rollout": (attention_relevance, frozenset({"correction"})),
        "integrated_attention": (integrated_gradients, frozenset({"site"})),
    }
    function = METHODS.get(name) or ROUTES[name]
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    if name in passed_on:
        further, but = passed_on[name]
        known += [p for p in inspect.signature(further).parameters if p not in but]
    return tuple(dict.fromkeys(p for p in known if p not in ("model", "inputs", "target")))


def check_options(name: str, options: Iterable[str], but: tuple[str, ...] = ()) -> None:
    """Raise where a method or route does not take an option; ``but`` are options that are said elsewhere."""
    possible = [option for option in options_of(name) if option not in but]
    for option in options:
        if option not in possible:
            raise NotFoundError.among(f"option of {name}", option, possible)


def require_options(method: str, options: Iterable[str]) -> None:
    """Raise where there is no such method in ``METHODS``, or it does not take an option; its site and baseline are said elsewhere."""
    method_named(method)
    check_options(method, options, but=("site", "baseline"))


# members of METHODS that read a site as positions of a map
CAMS = ("difference_map", "grad_cam", "layer_cam", "odam")

ROUTES: dict[str, Callable[..., Any]] = {
    "attention_eclip": attention_eclip,
    "attention_relevance": attention_relevance,
    "attention_transfer": attention_transfer,
    "grad_eclip": grad_eclip,
    "integrated_attention": integrated_attention,
    "rollout": rollout,
}
# members of ROUTES whose result is no map of one question: a curve over depth, and maps of maps
NO_MAP = ("attention_transfer", "integrated_attention")

__all__ = [
    "CAMS",
    "METHODS",
    "NO_MAP",
    "ROUTES",
    "attention_eclip",
    "attention_relevance",
    "attention_transfer",
    "difference_map",
    "grad_cam",
    "grad_eclip",
    "gradient_x_input",
    "integrated_attention",
    "integrated_gradients",
    "layer_cam",
    "odam",
    "rollout",
    "taylor",
]
