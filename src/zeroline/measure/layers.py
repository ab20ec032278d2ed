"""One question at many layers: the same target and baseline, features from early to late.

Holds ``layers``. Our reading of Cui & Fan 2026 ("The Neglected Baseline"): interpretations from features of different layers are all
reasonable, and their differences show how far features are extracted at each. Each site keeps its own record with its own error;
before the site nothing runs again (suffix execution).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from zeroline.baseline import BaselineLike
from zeroline.comparison import Comparison
from zeroline.errors import NotFoundError, RunError, SiteError
from zeroline.methods import METHODS
from zeroline.model.blocks import default_sites
from zeroline.model.inputs import Inputs
from zeroline.model.positions import positions_of
from zeroline.model.reference import settle_sites
from zeroline.relevance import Tokens
from zeroline.site import SiteLike, as_site
from zeroline.target import TargetLike

Progress = Callable[[int, int | None], None]


def layers(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    baseline: BaselineLike,
    sites: Sequence[SiteLike] | None = None,
    method: str = "integrated_gradients",
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Comparison:
    """Attributions of one target from one baseline at several sites.

    Args:
        model, inputs, target, baseline: as in ``zl.gradient_x_input``. A baseline at the input (black, neutral, ...) is one and the same
            at all sites; the recipe of one is followed once.
        sites: default: the input, then every block of the model.
        method: a name of ``zl.METHODS``; **options are its own.
        grid, prefix: how tokens lie, where the model does not say; for display only.
        progress: called with (sites done, in all).

    Returns:
        A ``Comparison`` labelled by site; values keep the shapes of their sites. Where the method fails at a site (features that are
        singular there, say), ``failures`` has the reason.

    Raises:
        The site's error, where the method fails at every site. And as the method.
    """
    if method not in METHODS:
        raise NotFoundError.among("method", method, METHODS, "see `zeroline methods`")
    asked: list[SiteLike] = list(dict.fromkeys(default_sites(model, inputs) if sites is None else sites))
    if not asked:
        raise SiteError("layers was asked of no sites; give names, or leave sites out for the input and every block")
    members, lies, failures = {}, {}, {}
    known = Inputs.of(model, inputs)
    first: RunError | None = None
    for number, (site, at) in enumerate(zip(asked, settle_sites(model, inputs, baseline, asked))):
        label = str(as_site(site))
        try:
            with said_of(label):
                found = METHODS[method](model, inputs, target=target, site=site, baseline=at, **options)
            members[found.site], lies[found.site] = found, lie_of(model, known, found, grid, prefix)
        except RunError as problem:
            first = first or problem
            failures[label] = str(problem)
        if progress:
            progress(number + 1, len(asked))
    if not members and first is not None:
        raise first
    return Comparison(members, lies, failures)


@contextmanager
def said_of(label: str) -> Iterator[None]:
    """Warnings of the block, with the member that they are about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        warnings.warn(f"{label}: {one.message}", one.category, stacklevel=4)


def lie_of(model: nn.Module, inputs: Inputs, found: Any, grid: tuple[int, int] | None, prefix: int | None) -> Tokens:
    """How the values of a record lie. A grid that was given is for sites of tokens; an image has its own."""
    values = next(iter(found.parts.values()))
    if values.ndim == 4:
        grid, prefix = None, None
    return positions_of(model, inputs, values, grid, prefix)
