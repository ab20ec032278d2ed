"""The conformance suite, public: run your own method through the laws that zeroline's methods keep.

>>> from zeroline.methods import gradient_x_input
>>> from zeroline.testing import check_method
>>> len(check_method(gradient_x_input, toys=["linear"]))
17
"""

from __future__ import annotations

from collections.abc import Sequence

from zeroline.errors import NotFoundError
from zeroline.testing.laws import CASE_LAWS, METHOD_LAWS, Case, Method, a_linear_model_gets_its_closed_form
from zeroline.testing.routes import ROUTE_LAWS, ROUTE_TOYS, Route
from zeroline.testing.toys import TOYS, Toy

__all__ = ["ConformanceError", "check_method", "check_route"]


class ConformanceError(AssertionError):
    """A method breaks a law; the message names the law, the toy model and the site."""


def check_method(method: Method, *, tolerance: float | None = None, toys: Sequence[str] | None = None, linear: bool = True) -> list[str]:
    """Run every law on every toy model and site; return what held, raise ConformanceError at the first breach.

    Args:
        method: ``method(model, inputs, *, target, site, baseline) -> Attribution``.
        tolerance: the relative attribution error that the method claims; None where it claims none.
        toys: names of toy models, default all (see ``zeroline.testing.toys.TOYS``).
        linear: does the method claim the closed form ``w * (z - z0)`` on a linear model? Not those that rectify or pool.
    """
    chosen = _chosen(TOYS, toys)
    held = []
    for method_law in METHOD_LAWS:
        if method_law is a_linear_model_gets_its_closed_form and not linear:
            continue
        _try(method_law.__name__, "its own model", lambda law=method_law: law(method))
        held.append(method_law.__name__)
    for toy in chosen:
        for site in toy.sites:
            case = Case(method, toy, site, tolerance)
            for law in CASE_LAWS:
                _try(law.__name__, f"{toy.name} at {site or 'the input'}", lambda law=law, case=case: law(case))
                held.append(f"{law.__name__}: {toy.name} at {site or 'the input'}")
    return held


def check_route(route: Route, *, toys: Sequence[str] | None = None) -> list[str]:
    """Run every law for attention routes on every toy model; return what held, raise ConformanceError at the first breach.

    Args:
        route: ``route(model, inputs, *, target) -> Relevance``.
        toys: names of toy models, default all (see ``zeroline.testing.routes.ROUTE_TOYS``).
    """
    held = []
    for toy in _chosen(ROUTE_TOYS, toys):
        for law in ROUTE_LAWS:
            _try(law.__name__, toy.name, lambda law=law, toy=toy: law(route, toy))
            held.append(f"{law.__name__}: {toy.name}")
    return held


def _chosen(toys: Sequence[Toy], names: Sequence[str] | None) -> list[Toy]:
    """The toys by name, all of them for None; an error for a name that is none."""
    known = [toy.name for toy in toys]
    for asked in names or ():
        if asked not in known:
            raise NotFoundError.among("toy model", asked, known)
    return [toy for toy in toys if names is None or toy.name in names]


def _try(law: str, where: str, check: object) -> None:
    try:
        check()  # type: ignore[operator]
    except AssertionError as breach:
        raise ConformanceError(f"{law.replace('_', ' ')}: broken on {where}{f': {breach}' if str(breach) else ''}") from breach
