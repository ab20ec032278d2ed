"""One question at many layers: the same target and baseline, features from early to late.

Holds ``layers``. Our reading of Cui & Fan 2026 ("The Neglected Baseline"): interpretations from features of different layers are all
reasonable, and their differences show how far features are extracted at each. Each site keeps its own record with its own error;
before the site nothing runs again (suffix execution).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from zeroline.attribution import Attribution
from zeroline.baseline import Baseline, BaselineLike, Distribution
from zeroline.comparison import Comparison
from zeroline.errors import InputError, RunError, SiteError, UsageError
from zeroline.methods import CAMS, METHODS, require_options
from zeroline.model.blocks import default_sites
from zeroline.model.inputs import Inputs
from zeroline.model.places import resolve
from zeroline.model.positions import positions_of
from zeroline.model.reference import reference_inputs, settle_sites
from zeroline.model.shared import sharing
from zeroline.model.state import untouched
from zeroline.model.surgery import capture
from zeroline.relevance import Tokens
from zeroline.site import Site, SiteLike, as_site, joint
from zeroline.target import TargetLike

Progress = Callable[[int, int | None], None]


def layers(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    baseline: BaselineLike,
    sites: Sequence[SiteLike] | SiteLike = None,
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
        sites: default: the input, then every block of the model that the baseline reaches (where a picture is replaced, a text's blocks stay
            as they are: nothing to explain there).
        method: a name of ``zl.METHODS``; **options are its own.
        grid, prefix: how tokens lie, where the model does not say: for display, and for methods of the CAM family.
        progress: called with (sites done, in all).

    Returns:
        A ``Comparison`` labelled by site; values keep the shapes of their sites. Where the method fails at a site (features that are
        singular there, say), ``failures`` has the reason.

    Raises:
        The site's error, where the method fails at every site. And as the method.
    """
    require_options(method, options)
    given = [sites] if isinstance(sites, (str, Site, nn.Module)) else sites
    asked: list[SiteLike] = list(dict.fromkeys(default_sites(model, inputs) if given is None else given))
    if not asked:
        raise SiteError("layers was asked of no sites; give names, or leave sites out for the input and every block")
    known, settled = Inputs.of(model, inputs), settle_sites(model, inputs, baseline, asked)
    if given is None:
        kept = reached(model, known, asked, settled[0])
        asked, settled = [asked[number] for number in kept], [settled[number] for number in kept]
    if method in CAMS:
        options = {"grid": grid, "prefix": prefix, **options}
    with untouched(model):
        labels = [" + ".join(map(str, resolve(model, known, as_site(site)))) for site in asked]
    ask = partial(METHODS[method], model, inputs, target=target, **options)
    with sharing(model):
        asks = {label: partial(ask, site=site, baseline=at) for label, site, at in zip(labels, asked, settled)}
        members, failures = gathered(asks, progress)
    lies = {site: lie_of(model, known, one, grid, prefix) for site, one in members.items()}
    if grid is not None and all(lie.grid != tuple(grid) for lie in lies.values()):
        raise InputError(f"a grid of {grid[0]} x {grid[1]} with {prefix or 'no'} prefix tokens given fits no site: {', '.join(lies)}")
    return Comparison(members, lies, failures)


def reached(model: nn.Module, inputs: Inputs, sites: Sequence[SiteLike], baseline: Baseline | Distribution) -> list[int]:
    """The numbers of those sites whose features a baseline at the input changes; all, where it changes none of them. Two forward passes."""
    every = list(range(len(sites)))
    one = baseline.draws[0] if isinstance(baseline, Distribution) else baseline
    if one.at != "input" or len(sites) == 1:
        return every
    there = joint(*map(as_site, sites))
    with untouched(model):
        other = reference_inputs(model, inputs, one, resolve(model, inputs, as_site(sites[0])))
    features, baselines = (capture(model, given, there).features for given in (inputs, other))
    changed = [number for number, (z, z0) in enumerate(zip(features.values(), baselines.values())) if not torch.equal(z, z0)]
    return changed or every


def gathered(asks: Mapping[str, Callable[[], Attribution]], progress: Progress | None) -> tuple[dict[str, Attribution], dict[str, str]]:
    """The answers by label, and why others failed; warnings say which label they are about. The first error, where all fail."""
    found: dict[str, Attribution] = {}
    failures: dict[str, str] = {}
    first: RunError | None = None
    for number, (label, ask) in enumerate(asks.items()):
        try:
            with said_of(label):
                found[label] = ask()
        except RunError as problem:
            first = first or problem
            failures[label] = str(problem)
        if progress:
            progress(number + 1, len(asks))
    if first is not None and not found:
        raise first
    return found, failures


@contextmanager
def said_of(label: str) -> Iterator[None]:
    """Warnings of the block, with the member that they are about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            kept = list(caught)
    for one in kept:
        warnings.warn(f"{label}: {one.message}", one.category, stacklevel=5)


def lie_of(model: nn.Module, inputs: Inputs, found: Attribution, grid: tuple[int, int] | None, prefix: int | None) -> Tokens:
    """How the values of a record lie. A grid that was given is for sites of so many tokens; others have their own."""
    values = next(iter(found.parts.values()))
    if values.ndim == 3 and (grid is not None or prefix is not None):
        try:
            return positions_of(model, inputs, values, grid, prefix)
        except UsageError:
            pass  # a grid is given for one kind of site; this is another
    return positions_of(model, inputs, values)
