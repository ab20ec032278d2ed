"""Where relevance starts: the rows of the last attention that a target reads, and how much of each.

Holds ``readout``. The rows are found in the graph (a class token, a pool, an attention-pooling head, a decoder position, a
detection query are all just rows); where a target reads several, their weights are in proportion to the norm of its
gradient there and add up to 1 per stream. One can also be given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zeroline.errors import TargetError, UsageError
from zeroline.maths.propagation import carried
from zeroline.model.maps import name_of
from zeroline.model.streams import Graph, Link, State

Given = int | Tensor | None


@dataclass
class Readout:
    """Row weights by call, token weights by stream (what the target reads without any attention), and words for it."""

    calls: dict[int, Tensor] = field(default_factory=dict)
    streams: dict[str, Tensor] = field(default_factory=dict)
    words: str = ""


def finals(graph: Graph, target: State) -> list[int]:
    """The last call of each stream that the target reads: those whose rows no later one carries on."""
    found: list[int] = []
    covered: set[int] = set()
    for call in sorted(target.from_calls, reverse=True):
        if call not in covered:
            found.append(call)
            covered |= set(graph.states[call]["query"].from_calls)
    return found


def readout(graph: Graph, target: State, gradients: Mapping[int, Tensor], given: Given = None) -> Readout:
    """The start of the reverse sweep for a target's state; ``gradients[i]`` is df/do of call i [groups, heads, rows, width]."""
    if not target.from_calls:
        raise TargetError("no attention reaches the target: it is computed from the inputs without one; choose another target")
    found = Readout()
    covered: set[int] = set()
    covered_streams: set[str] = set()
    words = []
    for call in finals(graph, target):
        if call in covered:
            continue
        state = graph.states[call]["query"]
        link = target.from_calls[call]
        weights = _weights(link, state, gradients.get(call)) if given is None else _given(given, graph, call, target.size)
        _add(found.calls, call, weights)
        words.append(_words(weights, state, name_of(graph.calls[call])))
        for feeding, way in state.from_calls.items():
            reached = target.from_calls.get(feeding)
            if feeding in covered or reached is None:
                continue
            covered.add(feeding)
            size = graph.states[feeding]["query"].size
            _add(found.calls, feeding, _only(carried(way, weights, size), reached.rows, given))
        for name, way in state.own.items():
            reached = target.own.get(name)
            if reached is None:
                continue
            covered_streams.add(name)
            stream = graph.streams[name]
            sent = _only(carried(way, weights, stream.batch * stream.tokens), reached.rows, given)
            found.streams[name] = found.streams[name] + sent if name in found.streams else sent
    for name, way in target.own.items():
        if name not in covered_streams:
            stream = graph.streams[name]
            found.streams[name] = _direct(way, stream.batch * stream.tokens, target.size)
    found.words = " and ".join(words)
    return found


def _weights(link: Link, state: State, gradient: Tensor | None) -> Tensor:
    """Row weights of one call: 1 per sample, shared in proportion to the gradient's norm at the rows that are read."""
    size = torch.ones(len(link.ids), dtype=torch.float64)
    if gradient is not None:
        norms = gradient.double().square().sum((1, 3)).sqrt().cpu().flatten()
        size = norms[link.rows]
        if not bool(size.any()):
            size = torch.ones_like(size)
    samples = int(link.ids.max()) + 1
    total = torch.zeros(samples, dtype=torch.float64).index_add_(0, link.ids, size)
    dead = total == 0
    if bool(dead.any()):
        size = torch.where(dead[link.ids], torch.ones_like(size), size)
        total = torch.zeros(samples, dtype=torch.float64).index_add_(0, link.ids, size)
    return torch.zeros(state.size, dtype=torch.float64).index_add_(0, link.rows, size / total[link.ids])


def _given(given: int | Tensor, graph: Graph, call: int, batch: int) -> Tensor:
    """A readout by hand: a token of the last call's queries, or a weight for each, [tokens] or [batch, tokens]."""
    layout = graph.states[call]["query"].layout
    if isinstance(given, int):
        if not -layout.tokens <= given < layout.tokens:
            raise UsageError(f"readout {given} was asked; {name_of(graph.calls[call])} has {layout.tokens} query tokens")
        row = torch.zeros(layout.tokens, dtype=torch.float64)
        row[given] = 1
        return row.repeat(layout.groups)
    weights = torch.as_tensor(given).double().cpu()
    if weights.shape not in ((layout.tokens,), (layout.groups, layout.tokens)):
        possible = f"({layout.tokens},) or {layout.groups, layout.tokens}"
        raise UsageError(f"a readout of shape {tuple(weights.shape)} was given; {name_of(graph.calls[call])} reads {possible}")
    return weights.expand(layout.groups, -1).flatten()


def _only(r: Tensor, rows: Tensor, given: Given) -> Tensor:
    """Relevance on the rows that the target reaches; a readout given by hand reads what it reads."""
    if given is not None:
        return r
    kept = torch.zeros_like(r)
    kept[rows] = r[rows]
    return kept


def _direct(link: Link, size: int, samples: int) -> Tensor:
    share = torch.ones(len(link.ids), dtype=torch.float64) if link.weight is None else link.weight.double()
    total = torch.zeros(samples, dtype=torch.float64).index_add_(0, link.ids, share)
    return torch.zeros(size, dtype=torch.float64).index_add_(0, link.rows, share / total[link.ids])


def _add(found: dict[int, Tensor], call: int, r: Tensor) -> None:
    found[call] = found[call] + r if call in found else r


def _words(weights: Tensor, state: State, name: str) -> str:
    rows = weights.view(state.layout.groups, state.layout.tokens)[0].nonzero().flatten().tolist()
    if len(rows) == 1:
        return f"token {rows[0]} of {name}"
    return f"{len(rows)} tokens of {name}"
