"""Relevance over the graph of attentions: R_h = I + sum over the calls i that reach h of Abar_i R_{v_i}.

Holds the reverse sweep (one row of R, by vector-matrix products from the output back), the full matrices (for attention
transfer and for Chefer's bi-modal rule), and nothing about models: a graph is states with links, a call is a function.
Sums run in float64 on the CPU; they are short beside the maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from zeroline.errors import UsageError

Vectors = dict[int, Tensor]


class Link(Protocol):
    """Row ``ids[n]`` of a state comes from ``rows[n]`` of something, with a share ``weight[n]`` (None: 1)."""

    @property
    def ids(self) -> Tensor: ...
    @property
    def rows(self) -> Tensor: ...
    @property
    def weight(self) -> Tensor | None: ...


class State(Protocol):
    """Rows, by the calls that feed them and by the streams whose tokens they are."""

    @property
    def size(self) -> int: ...
    @property
    def from_calls(self) -> Mapping[int, Link]: ...
    @property
    def own(self) -> Mapping[str, Link]: ...


def carried(link: Link, r: Tensor, size: int) -> Tensor:
    """A vector over a state's rows [..., rows], along a link: [..., size] over what the rows come from."""
    sent = r[..., link.ids]
    if link.weight is not None:
        sent = sent * link.weight
    return torch.zeros(*r.shape[:-1], size, dtype=r.dtype).index_add_(-1, link.rows, sent)


def reverse(
    values: Sequence[State],
    rows: Sequence[int],
    streams: Mapping[str, int],
    start: Vectors,
    source: dict[str, Tensor],
    step: Callable[[int, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Relevance of every stream's tokens for one readout.

    ``values[i]`` is the value state of call i, ``rows[i]`` the size of its output, ``start`` the readout's rows by call,
    ``source`` what the readout takes from streams directly, ``step(i, r)`` gives r^T Abar_i. A call's incoming rows are
    summed over all states that it feeds before it is multiplied, once, in reverse order of execution.
    """
    incoming: Vectors = dict(start)
    found = {name: torch.zeros(size, dtype=torch.float64) for name, size in streams.items()}
    for name, r in source.items():
        found[name] += r
    for call in reversed(range(len(values))):
        if call not in incoming:
            continue
        r = incoming.pop(call)
        if not bool(r.any()):
            continue
        moved = step(call, r)
        for feeding, link in values[call].from_calls.items():
            sent = carried(link, moved, rows[feeding])
            incoming[feeding] = incoming[feeding] + sent if feeding in incoming else sent
        for name, link in values[call].own.items():
            found[name] += carried(link, moved, streams[name])
    return found


Matrices = dict[str, Tensor]


def identity(state: State, streams: Mapping[str, int]) -> Matrices:
    """I: each row of a state has relevance 1 for its own token. {stream: [rows, tokens]}."""
    return {name: _dense(link, state.size, streams[name]) for name, link in state.own.items()}


def gathered(state: State, added: Sequence[Matrices], streams: Mapping[str, int]) -> Matrices:
    """R of a state: identity plus what the calls that feed it added, row by row."""
    total = identity(state, streams)
    for call, link in state.from_calls.items():
        for name, matrix in added[call].items():
            sent = matrix[link.rows] if link.weight is None else matrix[link.rows] * link.weight[:, None]
            part = torch.zeros(state.size, matrix.shape[1], dtype=torch.float64).index_add_(0, link.ids, sent)
            total[name] = total[name] + part if name in total else part
    return total


def without_identity_normalised(r: Tensor, name: str = "") -> Tensor:
    """Rbar = Rhat / S + I with Rhat = R - I and S its row sums (Chefer 2021, equations 8 and 9).

    A row without relevance (S = 0), where the published formula is 0 / 0, keeps the identity alone.
    """
    if r.shape[0] != r.shape[1]:
        raise UsageError(f"rule 'chefer-bimodal' needs a square relevance of {name!r} by itself; found {tuple(r.shape)}; use rule='graph'")
    eye = torch.eye(len(r), dtype=r.dtype)
    rest = r - eye
    sums = rest.sum(1, keepdim=True)
    return torch.where(sums != 0, rest / torch.where(sums == 0, torch.ones_like(sums), sums), torch.zeros_like(rest)) + eye


def bimodal(own: str, other: str, abar: Tensor, query: Matrices, value: Matrices) -> Matrices:
    """What a call from stream s over stream q adds (Chefer 2021, equations 10 and 11).

    R_sq += Rbar_ss^T Abar Rbar_qq and R_ss += Abar R_qs; streams beside the two follow the graph rule.
    """
    added = {name: abar @ matrix for name, matrix in value.items() if name not in (own, other)}
    added[other] = without_identity_normalised(query[own], own).T @ abar @ without_identity_normalised(value[other], other)
    if own in value:
        added[own] = abar @ value[own]
    return added


def _dense(link: Link, rows: int, columns: int) -> Tensor:
    matrix = torch.zeros(rows, columns, dtype=torch.float64)
    weight = torch.ones(len(link.ids), dtype=torch.float64) if link.weight is None else link.weight.double()
    return matrix.index_put_((link.ids, link.rows), weight, accumulate=True)


def through(
    values: Sequence[State],
    rows: Sequence[int],
    size: int,
    columns: str,
    passing: Sequence[Tensor],
    start: Vectors,
    step: Callable[[int, Tensor], Tensor],
) -> dict[int, Tensor]:
    """The relevance of a stream's tokens by the last token of others that it passed on its way: {call: [tokens passed, tokens reached]}.

    A path of relevance goes from the readout back to a token of ``columns`` (of ``size`` tokens), from a call's query row to a key row and on.
    ``passing[i][row]`` is the number of the token that a query row of call i stands for, -1 where it stands for none of those that count. Each path
    is booked for the last such row that it leaves, and for the call at which it leaves it; paths that pass none are under -1, [1, size].
    Added up over all, the columns are those of ``reverse`` (without what the readout takes from the stream directly). ``step(i, r)`` gives
    r Abar_i for r [n, rows].
    """
    count = max((int(one.max()) + 1 for one in passing if len(one)), default=0)
    incoming: dict[int, dict[int, Tensor]] = {call: {-1: r[None]} for call, r in start.items()}
    found: dict[int, Tensor] = {-1: torch.zeros(1, size, dtype=torch.float64)}
    for call in reversed(range(len(values))):
        blocks = incoming.pop(call, {})
        here = passing[call] >= 0
        if blocks and bool(here.any()):
            arriving = torch.stack([block.sum(0) for block in blocks.values()]).sum(0)
            blocks = {origin: block * ~here for origin, block in blocks.items()}
            own = torch.zeros(count, len(here), dtype=torch.float64)
            own[passing[call][here], here.nonzero()[:, 0]] = arriving[here]
            blocks[call] = own
        for origin, block in blocks.items():
            if not bool(block.any()):
                continue
            moved = step(call, block)
            for feeding, link in values[call].from_calls.items():
                waiting = incoming.setdefault(feeding, {})
                sent = carried(link, moved, rows[feeding])
                waiting[origin] = waiting[origin] + sent if origin in waiting else sent
            if columns in values[call].own:
                sent = carried(values[call].own[columns], moved, size)
                found[origin] = found[origin] + sent if origin in found else sent
    return found
