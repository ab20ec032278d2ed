"""Links: which row of a state comes from which row of a call's output, or from which position of a source.

Holds the records that the graph is made of (``Link``, ``Layout``, ``State``) and what is done with links: made from rows,
merged where ways meet, spread where a tensor was broadcast. Pure tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zeroline.model.rows import Rows, full, is_identity


@dataclass(frozen=True, eq=False)
class Link:
    """Row ``ids[n]`` of a state comes from ``rows[n]`` of a call's output (or of a source); ``weight`` is its share of a pool."""

    ids: Tensor
    rows: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """Rows of a state: ``groups`` (samples, or windows of samples) times ``tokens``."""

    groups: int
    tokens: int

    @property
    def rows(self) -> int:
        """Rows in all."""
        return self.groups * self.tokens


@dataclass(eq=False)
class State:
    """What a call reads as queries, keys or values: the calls that feed its rows, and the tokens that its rows are.

    ``from_calls`` by number of the call; ``own`` by name of the stream, with rows numbered ``sample * tokens + token``.
    """

    layout: Layout
    from_calls: dict[int, Link] = field(default_factory=dict)
    own: dict[str, Link] = field(default_factory=dict)
    sources: dict[int, Link] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Rows in all."""
        return self.layout.rows


Links = dict[tuple[str, int], Link]


def link_of(rows: Rows, positions: int) -> Link:
    """Ids and positions where there is a row; tokens that are spread share a row's weight."""
    share = math.prod(f.share for axis in rows.axes for f in axis)
    ids = full(rows).flatten()
    if share == 1 and len(ids) == positions and is_identity(ids):
        return Link(ids, torch.arange(positions))
    where = (ids >= 0).nonzero().flatten()
    weight = torch.full((len(where),), 1 / share, dtype=torch.float64) if share > 1 else None
    return Link(ids[where], where, weight)


def merge(found: Links, more: Links) -> None:
    """Add links; a row reached twice from the same place is reached once."""
    for key, link in more.items():
        known = found.get(key)
        if known is None:
            found[key] = link
        elif known is not link and not _same(known, link):
            pairs = torch.cat([torch.stack([known.ids, known.rows]), torch.stack([link.ids, link.rows])], 1)
            unique, inverse = torch.unique(pairs, dim=1, return_inverse=True)
            weight = None
            if known.weight is not None or link.weight is not None:
                both = torch.cat([weights_of(known), weights_of(link)])
                weight = torch.zeros(unique.shape[1], dtype=torch.float64).scatter_reduce(0, inverse, both, "amax")
            found[key] = Link(unique[0], unique[1], weight)


def copied(links: Links, copies: Tensor) -> Links:
    """Links of an operand's positions, each standing for the ``copies`` [n, positions] rows that it was broadcast to."""
    if len(copies) == 1 and is_identity(copies):
        return links
    found: Links = {}
    for key, link in links.items():
        ids = copies[:, link.ids]
        on = ids >= 0
        rows = link.rows.expand(len(copies), -1)[on]
        weight = None if link.weight is None else link.weight.expand(len(copies), -1)[on]
        pairs, inverse = torch.unique(torch.stack([ids[on], rows]), dim=1, return_inverse=True)
        if weight is not None:
            weight = torch.zeros(pairs.shape[1], dtype=torch.float64).scatter_reduce(0, inverse, weight, "amax")
        if pairs.shape[1]:
            found[key] = Link(pairs[0], pairs[1], weight)
    return found


def distinct(numbers: Tensor) -> int:
    """How many different numbers there are."""
    return int(torch.unique(numbers).numel())


def _same(a: Link, b: Link) -> bool:
    return torch.equal(a.ids, b.ids) and torch.equal(a.rows, b.rows) and (a.weight is b.weight or torch.equal(weights_of(a), weights_of(b)))


def weights_of(link: Link) -> Tensor:
    """The shares of a link, ones where it has none."""
    return torch.ones(len(link.ids), dtype=torch.float64) if link.weight is None else link.weight
