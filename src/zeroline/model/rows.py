"""Where the rows of a tensor come from: token positions, and what reshapes, slices and broadcasts do to them.

Holds ``Rows``: which row of a state each position of a tensor belongs to, or none. An axis of a tensor is a product of
*factors*; a factor is kept (positions along it belong to different rows) or spread (they all belong to the same: features,
heads). Everything here is pure; which operation does what is ``operations``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NONE = -1
_MOST_LAYERS = 64  # heads
Shape = tuple[int, ...]


class Mixes(Exception):
    """An operation mixes rows, or is not known: its name."""


@dataclass(frozen=True)
class Factor:
    """A factor of an axis: its size, and whether positions along it are told apart.

    A spread factor may be ``live`` at some positions only: a row of x[:, 0] is position 0 of that axis of x, no other.
    """

    size: int
    kept: bool
    live: tuple[int, ...] | None = None
    tag: int | None = None  # an axis that may be heads: see ``streams.Graph._decide``

    @property
    def share(self) -> int:
        """How many positions one row has along it."""
        return 1 if self.kept else self.size if self.live is None else len(self.live)


Axes = tuple[tuple[Factor, ...], ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """``ids``: int64, one dimension per kept factor in order; the state's row at each position, or -1."""

    axes: Axes
    ids: Tensor

    @property
    def shape(self) -> Shape:
        """The shape of the tensor."""
        return tuple(math.prod(f.size for f in axis) for axis in self.axes)

    def kept_of(self, axis: int) -> int:
        """How many kept factors an axis has."""
        return sum(f.kept for f in self.axes[axis])

    def first_kept(self, axis: int) -> int:
        """The dimension of ``ids`` where an axis' kept factors begin."""
        return sum(self.kept_of(a) for a in range(axis))


def fresh(axes: Axes) -> Rows:
    """Every kept position is its own row, numbered in order."""
    sizes = [f.size for axis in axes for f in axis if f.kept]
    return Rows(axes, torch.arange(math.prod(sizes)).reshape(sizes))


def whole(shape: Sequence[int], kept: Sequence[bool]) -> Axes:
    """One factor per axis."""
    return tuple((Factor(size, keep),) if size != 1 or keep else () for size, keep in zip(shape, kept))


def is_identity(ids: Tensor) -> bool:
    """Are the ids 0, 1, 2, ... in order?"""
    return bool((ids.flatten() == torch.arange(ids.numel())).all())


# --- what operations do to rows -----------------------------------------------------------------------------------


def reshape(rows: Rows, target: Shape) -> Rows:
    """The rows of a tensor that was reshaped from ``target``: factors are cut where the new axes begin."""
    if rows.shape == target:
        return rows
    waiting = [f for axis in rows.axes for f in axis if f.size != 1]
    axes: list[tuple[Factor, ...]] = []
    for size in target:
        axis: list[Factor] = []
        room = size
        while room > 1:
            factor = waiting.pop(0)
            if factor.size > room:
                if factor.size % room or factor.live is not None:
                    return _every_position(rows, target)
                waiting.insert(0, Factor(factor.size // room, factor.kept, tag=factor.tag))
                factor = Factor(room, factor.kept, tag=factor.tag)
            elif room % factor.size:
                return _every_position(rows, target)
            axis.append(factor)
            room //= factor.size
        axes.append(tuple(axis))
    return Rows(tuple(axes), rows.ids.reshape([f.size for axis in axes for f in axis if f.kept]))


def _every_position(rows: Rows, target: Shape) -> Rows:
    """Where factors and new axes do not divide each other: every position told apart."""
    return Rows(tuple((Factor(n, True),) for n in target), full(rows).reshape(target))


def full(rows: Rows) -> Tensor:
    """``ids`` for every position of the tensor."""
    factors = [f for axis in rows.axes for f in axis]
    ids = rows.ids.reshape([f.size if f.kept else 1 for f in factors]).expand([f.size for f in factors])
    return _only_live(ids, factors, 0).reshape(rows.shape)


def _only_live(ids: Tensor, factors: Sequence[Factor], first: int) -> Tensor:
    """-1 at the positions where a factor is not live; dimension ``first + i`` of ids is ``factors[i]``."""
    for dimension, factor in enumerate(factors, first):
        if factor.live is not None:
            live = torch.zeros(factor.size, dtype=torch.bool)
            live[list(factor.live)] = True
            ids = ids.where(live.view(-1, *[1] * (ids.ndim - dimension - 1)), NONE)
    return ids


def permute(rows: Rows, dims: Sequence[int]) -> Rows:
    """The rows of x where ``dims`` tells which axis of the tensor each axis of x is."""
    order = [rows.first_kept(d) + i for d in dims for i in range(rows.kept_of(d))]
    return Rows(tuple(rows.axes[d] for d in dims), rows.ids.permute(order))


def merged(rows: Rows, axis: int) -> Rows:
    """The same with one kept factor for the whole axis."""
    factors = rows.axes[axis]
    if len(factors) == 1 and factors[0].kept:
        return rows
    start, count = rows.first_kept(axis), rows.kept_of(axis)
    before, after = rows.ids.shape[:start], rows.ids.shape[start + count :]
    view = rows.ids.reshape(*before, *[f.size if f.kept else 1 for f in factors], *after)
    size = math.prod(f.size for f in factors)
    ids = _only_live(view.expand(*before, *[f.size for f in factors], *after), factors, start)
    return with_axis(rows, axis, (Factor(size, True),), ids.reshape(*before, size, *after))


def place(rows: Rows, axis: int, size: int, index: Tensor) -> Rows:
    """The rows of x where the tensor is ``x.index_select(axis, index)``; axis has ``size`` positions in x."""
    factors = rows.axes[axis]
    if len(factors) > 1 and not any(f.kept or f.live is not None for f in factors):
        factors = (Factor(math.prod(f.size for f in factors), False),)
    if len(factors) <= 1 and not any(f.kept for f in factors):
        live = index if not factors or factors[0].live is None else index[list(factors[0].live)]
        part = None if len(live) == size else tuple(live.tolist())
        return with_axis(rows, axis, (Factor(size, False, part, factors[0].tag if factors else None),) if size != 1 else (), rows.ids)
    rows = merged(rows, axis)
    where = rows.first_kept(axis)
    shape = list(rows.ids.shape)
    shape[where] = size
    ids = torch.full(shape, NONE).index_copy(where, index, rows.ids)
    return with_axis(rows, axis, (Factor(size, True),), ids)


def insert(rows: Rows, axis: int, factors: tuple[Factor, ...] = ()) -> Rows:
    """A new axis of spread factors (or of size 1)."""
    return Rows((*rows.axes[:axis], factors, *rows.axes[axis:]), rows.ids)


def remove(rows: Rows, axis: int) -> Rows:
    """Without an axis of size 1."""
    start, count = rows.first_kept(axis), rows.kept_of(axis)
    ids = rows.ids.reshape((*rows.ids.shape[:start], *rows.ids.shape[start + count :]))
    return Rows((*rows.axes[:axis], *rows.axes[axis + 1 :]), ids)


def spread(rows: Rows, axis: int, size: int | None = None, op: str = "", copies: bool = False) -> list[Rows]:
    """The rows where all positions along an axis go into each other (or into ``size`` others): the axis holds features.

    Different rows along it mean that they are mixed (Mixes, with the name ``op``), unless they are ``copies`` of one
    position: then each makes a layer.
    """
    factors = rows.axes[axis]
    size = math.prod(f.size for f in factors) if size is None else size
    after = (Factor(size, False),) if size != 1 else ()
    count = rows.kept_of(axis)
    if not count:
        return [with_axis(rows, axis, after, rows.ids)]
    start = rows.first_kept(axis)
    ids = rows.ids.flatten(start, start + count - 1)
    most = ids.amax(start)
    least = torch.where(ids < 0, torch.iinfo(torch.int64).max, ids).amin(start)
    if bool(((most < 0) | (most == least)).all()):
        return [with_axis(rows, axis, after, most)]
    if not copies or ids.shape[start] > _MOST_LAYERS:
        raise Mixes(op)
    return [with_axis(rows, axis, after, layer) for layer in ids.unbind(start) if bool((layer >= 0).any())]


def unbroadcast(rows: Rows, shape: Shape) -> tuple[Rows, Tensor]:
    """The rows of an operand of ``shape`` that was broadcast to the tensor's shape.

    A position of the operand stands for several of the tensor, which may belong to different rows. So the operand's
    positions are numbered anew, and the second result, [copies, positions], has the ids that each stands for.
    """
    extra = len(rows.axes) - len(shape)
    broadcast = [axis for axis in range(len(rows.axes)) if axis < extra or (shape[axis - extra] == 1 and rows.shape[axis] != 1)]
    first = [rows.first_kept(axis) + i for axis in broadcast for i in range(rows.kept_of(axis))]
    rest = [d for d in range(rows.ids.ndim) if d not in first]
    table = rows.ids.permute((*first, *rest)).reshape(-1, math.prod(rows.ids.shape[d] for d in rest))
    axes = tuple(() if axis in broadcast else factors for axis, factors in enumerate(rows.axes))[extra:]
    live = (table >= 0).any(0)
    numbers = torch.arange(table.shape[1]).where(live, NONE)
    return Rows(axes, numbers.reshape([f.size for factors in axes for f in factors if f.kept])), table


def masked(rows: Rows, taken: Tensor) -> Rows:
    """The same with no row where ``taken`` (Boolean, broadcast to the shape) is nowhere true."""
    taken = taken.reshape((1,) * (len(rows.axes) - taken.ndim) + taken.shape)
    for axis in range(len(rows.axes)):
        if rows.kept_of(axis) and taken.shape[axis] != 1:
            rows = merged(rows, axis)
        elif taken.shape[axis] != 1:
            taken = taken.any(axis, keepdim=True)
    for axis in reversed(range(len(rows.axes))):
        if not rows.kept_of(axis):
            taken = taken.squeeze(axis)
        elif taken.shape[axis] == 1:  # the same along the axis, in as many dimensions as it has factors
            taken = taken.reshape(*taken.shape[:axis], *[1] * rows.kept_of(axis), *taken.shape[axis + 1 :])
    return Rows(rows.axes, rows.ids.where(taken, NONE))


def with_axis(rows: Rows, axis: int, factors: tuple[Factor, ...], ids: Tensor) -> Rows:
    return Rows((*rows.axes[:axis], factors, *rows.axes[axis + 1 :]), ids)


def narrow(rows: Rows, axis: int, start: int, size: int) -> Rows | None:
    """The rows along a part of an axis; None where there are none."""
    factors = rows.axes[axis]
    if not any(f.kept for f in factors) and all(f.live is None for f in factors):
        return with_axis(rows, axis, (Factor(size, False),) if size != 1 else (), rows.ids)
    if len(factors) == 1 and factors[0].live is not None:
        live = tuple(i - start for i in factors[0].live if start <= i < start + size)
        kept = with_axis(rows, axis, (Factor(size, False, None if len(live) == size else live),) if size != 1 else (), rows.ids)
        return kept if live else None
    rows = merged(rows, axis)
    part = with_axis(rows, axis, (Factor(size, True),), rows.ids.narrow(rows.first_kept(axis), start, size))
    return part if bool((part.ids >= 0).any()) else None


def folded(ids: Tensor) -> Rows:
    """Rows from ids at every position; axes along which they are all equal are spread."""
    axes: list[tuple[Factor, ...]] = []
    for axis, size in enumerate(ids.shape):
        first = ids.narrow(axis, 0, 1)
        equal = size > 1 and bool((ids == first).all())
        axes.append((Factor(size, not equal),) if size != 1 else ())
        ids = first if equal else ids
    return Rows(tuple(axes), ids.reshape([f.size for axis in axes for f in axis if f.kept]))
