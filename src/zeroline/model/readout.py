"""Where relevance starts: the rows of the last attention that a target reads, and how much of each.

Holds ``readout``. The rows are found in the graph (a class token, a pool, an attention-pooling head, a decoder position, a
detection query are all just rows); where a target reads several, their weights are in proportion to the norm of its
gradient there and add up to 1 per stream. One can also be given.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zeroline.errors import TargetError, UsageError
from zeroline.maths.propagation import carried
from zeroline.model.links import Link, State
from zeroline.model.maps import name_of
from zeroline.model.streams import Graph

Given = Any  # None, a token number, or weights per token


@dataclass
class Readout:
    """Row weights by call, token weights by stream (what the target reads without any attention), and words for each sample."""

    calls: dict[int, Tensor] = field(default_factory=dict)
    streams: dict[str, Tensor] = field(default_factory=dict)
    words: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Final:
    """Rows of a call that a target reads and that no later call carries on: for sample ``ids[n]``, row ``rows[n]``."""

    call: int
    ids: Tensor
    rows: Tensor


def finals(graph: Graph, target: State) -> list[Final]:
    """Where a target reads, the last call first: one group of rows per stream that it reads."""
    found: list[Final] = []
    covered: dict[int, Tensor] = {}
    for call in sorted(target.from_calls, reverse=True):
        state, link = graph.states[call]["query"], target.from_calls[call]
        known = covered.setdefault(call, torch.zeros(state.size, dtype=torch.bool))
        free = ~known[link.rows]
        if not bool(free.any()):
            continue
        found.append(Final(call, link.ids[free], link.rows[free]))
        read = torch.zeros(state.size, dtype=torch.bool)
        read[found[-1].rows] = True
        for feeding, way in state.from_calls.items():
            size = graph.states[feeding]["query"].size
            covered.setdefault(feeding, torch.zeros(size, dtype=torch.bool))[way.rows[read[way.ids]]] = True
    return found


def readout(graph: Graph, target: State, gradients: Mapping[int, Tensor], given: Given = None) -> Readout:
    """The start of the reverse sweep for a target's state; ``gradients[i]`` is df/do of call i [groups, heads, rows, width]."""
    if not target.from_calls:
        raise TargetError("no attention reaches the target: it is computed from the inputs without one; choose another target")
    found = Readout()
    sizes = {name: stream.batch * stream.tokens for name, stream in graph.streams.items()}
    taken: dict[object, Tensor] = {}
    words: list[list[str]] = [[] for _ in range(target.size)]
    ends = finals(graph, target)
    if given is not None and len(ends) > 1:
        read = ", ".join(name_of(graph.calls[final.call]) for final in ends)
        raise UsageError(f"a readout was given, and the target reads {len(ends)} streams (at {read}); it can be given where it reads one")
    for final in ends:
        state = graph.states[final.call]["query"]
        weights = _weights(final, state, gradients.get(final.call)) if given is None else _given(given, graph, final.call)
        _add(found.calls, final.call, weights)
        for sample, said in enumerate(words):
            said += _words(final, weights, state, name_of(graph.calls[final.call]), sample)
        residual = any(call in target.from_calls for call in state.from_calls) or any(name in target.own for name in state.own)
        everything = given is not None and residual
        for feeding, way in state.from_calls.items():
            if everything or feeding in target.from_calls:
                reached = None if everything else target.from_calls[feeding].rows
                sent = carried(way, weights, graph.states[feeding]["query"].size)
                _add(found.calls, feeding, _new(sent, reached, taken, feeding))
        for name, way in state.own.items():
            if everything or name in target.own:
                reached = None if everything else target.own[name].rows
                sent = _new(carried(way, weights, sizes[name]), reached, taken, name)
                found.streams[name] = found.streams[name] + sent if name in found.streams else sent
    for name, way in target.own.items():
        if name not in found.streams and given is None:
            found.streams[name] = _direct(way, sizes[name], target.size)
    found.words = tuple(" and ".join(said) for said in words)
    return found


def _new(sent: Tensor, reached: Tensor | None, taken: dict[object, Tensor], key: object) -> Tensor:
    """Relevance on the rows that the target reaches, each counted for the first final that carries it."""
    known = taken.setdefault(key, torch.zeros(len(sent), dtype=torch.bool))
    keep = ~known
    if reached is not None:
        read = torch.zeros(len(sent), dtype=torch.bool)
        read[reached] = True
        keep = keep & read
    taken[key] = known | (sent != 0)
    return sent * keep


def _weights(final: Final, state: State, gradient: Tensor | None) -> Tensor:
    """Row weights of one call: 1 per sample, shared in proportion to the gradient's norm at the rows that are read."""
    size = torch.ones(len(final.ids), dtype=torch.float64)
    if gradient is not None:
        size = gradient.double().square().sum((1, 3)).sqrt().cpu().flatten()[final.rows]
    samples = int(final.ids.max()) + 1
    total = torch.zeros(samples, dtype=torch.float64).index_add_(0, final.ids, size)
    size = torch.where((total == 0)[final.ids], torch.ones_like(size), size)  # no gradient at all: equal shares
    total = torch.zeros(samples, dtype=torch.float64).index_add_(0, final.ids, size)
    return torch.zeros(state.size, dtype=torch.float64).index_add_(0, final.rows, size / total[final.ids])


def _given(given: Any, graph: Graph, call: int) -> Tensor:
    """A readout by hand: a token of the last call's queries, or a weight for each, [tokens] or [batch, tokens]."""
    layout, name = graph.states[call]["query"].layout, name_of(graph.calls[call])
    possible = f"a token number, or weights ({layout.tokens},) or ({layout.groups}, {layout.tokens})"
    if hasattr(given, "__index__") and not isinstance(given, (bool, Tensor)):
        row = operator.index(given)
        if not -layout.tokens <= row < layout.tokens:
            raise UsageError(f"readout {row} was asked; {name} has {layout.tokens} query tokens")
        weights = torch.zeros(layout.tokens, dtype=torch.float64)
        weights[row] = 1
    else:
        try:
            weights = torch.as_tensor(given).double().cpu()
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(f"readout {given!r} was given; {name} reads {possible}") from None
    if isinstance(given, bool) or weights.shape not in ((layout.tokens,), (layout.groups, layout.tokens)):
        raise UsageError(f"a readout of shape {tuple(weights.shape)} was given; {name} reads {possible}")
    if not bool(weights.isfinite().all()):
        raise UsageError("the readout holds NaN or infinity")
    return weights.expand(layout.groups, -1).flatten()


def _direct(link: Link, size: int, samples: int) -> Tensor:
    share = torch.ones(len(link.ids), dtype=torch.float64) if link.weight is None else link.weight.double()
    total = torch.zeros(samples, dtype=torch.float64).index_add_(0, link.ids, share)
    return torch.zeros(size, dtype=torch.float64).index_add_(0, link.rows, share / total[link.ids])


def _add(found: dict[int, Tensor], call: int, r: Tensor) -> None:
    found[call] = found[call] + r if call in found else r


def _words(final: Final, weights: Tensor, state: State, name: str, sample: int) -> list[str]:
    """Where one sample is read: "token 0 of encoder.layer.3", or how many tokens."""
    mine = final.rows[final.ids == sample]
    rows = [row for row in mine.tolist() if float(weights[row])] or weights.nonzero().flatten().tolist()
    if not len(mine):
        return []
    where = f"token {rows[0] % state.layout.tokens}" if len(rows) == 1 else f"{len(rows)} tokens"
    return [f"{where} of {name}"]
