"""How an attention's tensors lie: groups, heads, tokens and width, on however many axes.

Holds ``layout_of``, the rows of a state before they are followed (``state_rows``), and the tagging of axes that may be heads or
groups of their own (``tagged_rows``, ``decided``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from zeroline.model.capture import Operand
from zeroline.model.links import Layout
from zeroline.model.maps import heads_of
from zeroline.model.rows import Axes, Factor, Rows, fresh, permute


def layout_of(operand: Operand, batch: int) -> Layout:
    """Groups and tokens of an operand ordered as [..., heads, tokens, width]."""
    *lead, tokens, _ = operand.shape
    return Layout(math.prod(lead) // heads_of(operand, batch), tokens)


def state_rows(operand: Operand, heads: int) -> Rows:
    """A state's rows, numbered ``group * tokens + token``, at the positions of its tensor."""
    *lead, tokens, width = operand.shape
    axes: list[tuple[Factor, ...]] = []
    for size in reversed(lead):  # heads are the last of the leading axes, or the last part of one
        inner = math.gcd(size, heads)
        axes.insert(0, (*_factor(size // inner, True), *_factor(inner, False)))
        heads //= inner
    rows = fresh((*axes, _factor(tokens, True), _factor(width, False)))
    return permute(rows, [operand.order.index(i) for i in range(len(operand.order))])


def tagged_rows(operand: Operand, batch: int) -> Rows:
    """The same with heads not yet known: every leading axis but the first (or what the batch leaves of the only one) is tagged."""
    shape = operand.shape
    if len(shape) == 3:
        groups, rest = (batch, shape[0] // batch) if shape[0] % batch == 0 else (shape[0], 1)
        axes: Axes = ((*_factor(groups, True), *_factor(rest, False, 0)), _factor(shape[1], True), _factor(shape[2], False))
    else:
        lead = [_factor(n, i == 0, None if i == 0 else i) for i, n in enumerate(shape[:-2])]
        axes = (*lead, _factor(shape[-2], True), _factor(shape[-1], False))
    return permute(fresh(axes), [operand.order.index(i) for i in range(len(operand.order))])


def decided(operand: Operand, alone: Mapping[int, int], batch: int) -> Operand:
    """An operand whose tagged axes in ``alone`` are groups: they go before the heads."""
    lead = len(operand.order) - 2
    if lead == 1:
        return replace(operand, heads=max(1, heads_of(operand, batch) // alone[0]))
    groups = [i for i in range(lead) if i == 0 or i in alone]
    heads = [i for i in range(lead) if i not in groups]
    order = (*(operand.order[i] for i in (*groups, *heads)), *operand.order[lead:])
    return replace(operand, order=order, heads=math.prod(operand.shape[i] for i in heads))


def _factor(size: int, kept: bool, tag: int | None = None) -> tuple[Factor, ...]:
    return (Factor(size, kept, tag=tag),) if size != 1 else ()
