"""The attention rows that a target is read through: the class token's, the end token's, a pooling query's. Shared by the ECLIP methods.

Holds ``Read`` (one call at those rows: queries, keys, values, the map and its gradient) and ``explained``, which runs the model
once under the tracer, backward once, and makes the record from what a method says about each ``Read``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import NotFoundError, UsageError
from zeroline.maths.attention import Maps, per_head
from zeroline.maths.eclip import loosened
from zeroline.maths.propagation import carried
from zeroline.methods.attention_relevance import token_lie
from zeroline.model import identity
from zeroline.model.backward import output_gradients, value_of
from zeroline.model.capture import Seen
from zeroline.model.inputs import Inputs
from zeroline.model.links import Link, State
from zeroline.model.maps import four, name_of, one_head, prescaled
from zeroline.model.output_projections import Projections, projected
from zeroline.model.readout import finals
from zeroline.model.streams import Graph
from zeroline.model.targets import target_of
from zeroline.model.trace import Followed, followed
from zeroline.relevance import Relevance, Substitution
from zeroline.similarity import similarity
from zeroline.target import Target, TargetLike

SIMILARITIES = ("query-key", "projected", "none")
HEADS = ("model", "one")
RELUS = ("sum", "each", "none")
SCALES_OVER = ("shown", "all")


@dataclass(frozen=True, eq=False)
class Rows:
    """Queries of one call: sample ``sample[n]`` is read through query ``row[n]`` of group ``group[n]``."""

    call: int
    sample: Tensor
    group: Tensor
    row: Tensor


@dataclass(frozen=True, eq=False)
class Read:
    """One call at the rows that a target is read through. n rows, K keys, H heads of width D, C = H D.

    ``value`` [n, K, C], ``weight`` dS/do [n, C]; the map ``attention`` and its ``gradient``
    dS/dA [n, H, K]; ``shown`` bool [n, K]: keys that the row may see, learned tokens and the row's own token left out;
    ``loose`` lambda [n, K].
    """

    value: Tensor
    weight: Tensor
    attention: Tensor
    gradient: Tensor
    shown: Tensor
    loose: Tensor


@dataclass(frozen=True)
class Options:
    """The variations between the published files of Grad-ECLIP; the paper's form is the default."""

    layers: int = 1
    similarity: str = "query-key"
    heads: str = "model"
    relu: str = "sum"
    scale_over: str = "shown"

    def check(self) -> None:
        """Raise where an option is none of the possible ones."""
        chosen = (("similarity", SIMILARITIES), ("heads", HEADS), ("relu", RELUS), ("scale_over", SCALES_OVER))
        for name, possible in chosen:
            if getattr(self, name) not in possible:
                raise NotFoundError.among(name, str(getattr(self, name)), possible)
        if isinstance(self.layers, bool) or not isinstance(self.layers, int) or self.layers < 1:
            raise UsageError(f"layers={self.layers!r} was asked; it is a number of last layers, 1 or more")


def explained(
    model: nn.Module,
    inputs: Any,
    target: TargetLike | None,
    method: str,
    evidence: Callable[[Read], Tensor],
    options: Options,
    *,
    settings: Mapping[str, Any],
    substitutes: str | None,
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
) -> Relevance:
    """The record of ``evidence`` [n, K] at the last ``options.layers`` calls of every stream that the target is read from.

    ``substitutes`` says in words what stands for the attention at each of them ("{}" is the call's name); None where the method
    uses the model's own.
    """
    options.check()
    known = target_of(model, inputs, similarity() if target is None else target)
    changed = _one_head_calls(model, inputs, known, options.layers) if options.heads == "one" else frozenset()

    batch = Inputs.of(model, inputs).batch

    def replaced(seen: Seen, output: Tensor) -> Tensor:
        return one_head(seen, batch) if (seen.path, seen.index) in changed else output

    projections = Projections() if options.similarity == "projected" else nullcontext()
    with projections, followed(model, inputs, replaced if changed else None) as pass_:
        value, resolved = value_of(pass_, known)
        rows = read_rows(pass_.graph, value, options.layers)
        output = value.detach().double()
        gradients = output_gradients(pass_, value, [at.call for at in rows])
        del value
        found = {}
        with torch.no_grad():
            for at in rows:
                maps = pass_.maps(at.call, gradients.pop(at.call))
                source = projections if isinstance(projections, Projections) else None
                found[at.call] = _read(pass_, at, maps, options, source)
            sums = {at.call: _at_keys(at, evidence(found[at.call]), pass_.graph) for at in rows}
        by_source, per_call = _by_stream(pass_, rows, sums, options.relu)
        names = {at.call: name_of(pass_.graph.calls[at.call]) for at in rows}
        said = [f"attention of {names[at.call]} at {_which(at)} by {substitutes}" for at in rows] if substitutes else []
        put = [Substitution(names[at.call], at.group, at.row, found[at.call].loose.cpu(), _windows(pass_, at)) for at in rows] if substitutes else []
        said += [f"the heads of {path} as one, for the gradient" for path, _ in sorted(changed)]
        return Relevance(
            by_source=by_source,
            per_call=per_call,
            tokens=token_lie(pass_, by_source, grid, prefix),
            method=method,
            target=resolved.describe(pass_.inputs.batch),
            output=output,
            calls=tuple((c.name, c.kind) for c in pass_.calls()),
            corrected=tuple(sorted(at.call for at in rows)),
            readout=_words(rows, names, pass_.inputs.batch),
            substitutes=tuple(said),
            substituted=tuple(put),
            settings=dict(settings),
            versions=identity.versions(),
            model_class=identity.model_class(model),
            weights=identity.weights_hash(model),
        )


def read_rows(graph: Graph, value: Tensor, layers: int) -> list[Rows]:
    """The rows of the last ``layers`` calls that a target [batch] is read through, per stream, the last call first.

    Of the layer before, the row that the residual carries on to the same query. Raises UsageError where there are fewer.
    """
    found = []
    for final in finals(graph, graph.target(value)):
        state = graph.states[final.call]["query"]
        keys = set(graph.names(graph.states[final.call]["key"]))
        carried_on = {call: _origin(state, link, final.rows) for call, link in state.from_calls.items()}
        same = [c for c, rows in carried_on.items() if bool((rows >= 0).any()) and set(graph.names(graph.states[c]["key"])) == keys]
        earlier = sorted(same, reverse=True)
        if len(earlier) < layers - 1:
            name = name_of(graph.calls[final.call])
            raise UsageError(
                f"layers={layers} was asked; what is read at {name} passed {len(earlier)} such attentions before: 1 to {len(earlier) + 1}"
            )
        found.append(_rows(graph, final.call, final.ids, final.rows))
        for call in earlier[: layers - 1]:
            there = carried_on[call] >= 0
            found.append(_rows(graph, call, final.ids[there], carried_on[call][there]))
    return _once(found)


def _origin(state: State, link: Link, rows: Tensor) -> Tensor:
    """The row of an earlier call that the residual carries on to each of ``rows``; -1 where none does."""
    return torch.full((state.size,), -1).index_copy_(0, link.ids, link.rows)[rows]


def _once(found: list[Rows]) -> list[Rows]:
    """One ``Rows`` per call: where two last attentions share the layer before, it is read at the rows of both."""
    merged: dict[int, Rows] = {}
    for at in found:
        known = merged.get(at.call)
        if known is None:
            merged[at.call] = at
            continue
        both = torch.cat([torch.stack([one.sample, one.group, one.row]) for one in (known, at)], 1)
        merged[at.call] = Rows(at.call, *torch.unique(both, dim=1))
    return list(merged.values())


def _rows(graph: Graph, call: int, sample: Tensor, row: Tensor) -> Rows:
    tokens = graph.states[call]["query"].layout.tokens
    return Rows(call, sample, row // tokens, row % tokens)


def _one_head_calls(model: nn.Module, inputs: Any, target: Target, layers: int) -> frozenset[tuple[str, int]]:
    """The calls whose heads are taken as one, from a pass of their own."""
    with followed(model, inputs) as pass_:
        value, _ = value_of(pass_, target)
        calls = [pass_.graph.calls[at.call] for at in read_rows(pass_.graph, value, layers)]
        return frozenset((call.path, call.index) for call in calls)


def _read(pass_: Followed, at: Rows, maps: Maps, options: Options, projections: Projections | None) -> Read:
    device = maps.query.device
    group, row = at.group.to(device), at.row.to(device)
    rows, where = torch.unique(row, return_inverse=True)
    heads = maps.query.shape[1]

    def merged(tensor: Tensor) -> Tensor:
        return per_head(tensor, heads).transpose(1, 2).flatten(2).to(maps.dtype)

    assert maps.output_gradient is not None
    shown = maps.visible(rows)[group, where] & ~_left_out(pass_.graph, at).to(device)
    attention, gradient = (part[group, :, where] for part in (maps.attention(rows), maps.gradient(rows)))
    if options.similarity == "none":
        loose = shown.to(maps.dtype)
    else:
        alike = (merged(maps.query), merged(maps.key))
        if projections is not None:
            seen = pass_.graph.calls[at.call]
            projection, bias = projections.of(four(seen.output, pass_.inputs.batch), name_of(seen))
            alike = projected(maps, prescaled(seen, maps.query.shape[-1]), projection, bias)
        over = shown if options.scale_over == "shown" else ~_learned(pass_.graph, at.call)[at.group].to(device)
        loose = loosened(alike[0][group, row], alike[1][group], over)
    weight = merged(maps.output_gradient)[group, row]
    return Read(merged(maps.value)[group], weight, attention, gradient, shown, loose * shown)


def _tokens_of_keys(graph: Graph, call: int) -> dict[str, Tensor]:
    """Which token of each stream a key is, by sample: [groups, keys], -1 where it is none."""
    state = graph.states[call]["key"]
    found = {}
    for name, link in state.own.items():
        tokens = torch.full((state.size,), -1).index_copy_(0, link.ids, link.rows)
        found[name] = tokens.view(state.layout.groups, state.layout.tokens)
    return found


def _learned(graph: Graph, call: int) -> Tensor:
    """Keys that are class or register tokens: bool [groups, keys]."""
    layout = graph.states[call]["key"].layout
    learned = torch.zeros(layout.groups, layout.tokens, dtype=torch.bool)
    for name, tokens in _tokens_of_keys(graph, call).items():
        learned |= (tokens >= 0) & (tokens % graph.streams[name].tokens < graph.streams[name].prefix)
    return learned


def _left_out(graph: Graph, at: Rows) -> Tensor:
    """Keys without evidence for each row: learned tokens, and the row's own token: bool [n, keys]."""
    out = _learned(graph, at.call)[at.group]
    query = graph.states[at.call]["query"]
    for name, tokens in _tokens_of_keys(graph, at.call).items():
        link = query.own.get(name)
        if link is not None:
            own = torch.full((query.size,), -2).index_copy_(0, link.ids, link.rows)[at.group * query.layout.tokens + at.row]
            out = out | (tokens[at.group] == own[:, None])
    return out


def _at_keys(at: Rows, evidence: Tensor, graph: Graph) -> Tensor:
    """Evidence [n, K] added up at the rows of the key state, [groups * keys], float64."""
    layout = graph.states[at.call]["key"].layout
    total = torch.zeros(layout.groups, layout.tokens, dtype=torch.float64)
    return total.index_add_(0, at.group, evidence.double().cpu()).flatten()


def _by_stream(pass_: Followed, rows: list[Rows], sums: Mapping[int, Tensor], relu: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Relevance per stream [batch, tokens] and per call and stream [calls, batch, tokens]."""
    graph = pass_.graph
    first = graph.calls[0].output.tensor
    dtype, device = torch.promote_types(first.dtype, torch.float32), first.device
    total: dict[str, Tensor] = {}
    each: dict[str, Tensor] = {}
    for at in rows:
        for name, link in graph.states[at.call]["key"].own.items():
            stream = graph.streams[name]
            moved = carried(link, sums[at.call], stream.batch * stream.tokens)
            moved = moved.clamp(min=0) if relu == "each" else moved
            calls = each.setdefault(name, torch.zeros(len(graph.calls), len(moved), dtype=torch.float64))
            calls[at.call] += moved
    for name, calls in each.items():
        stream = graph.streams[name]
        whole = calls.sum(0)
        total[name] = (whole.clamp(min=0) if relu == "sum" else whole).view(stream.batch, stream.tokens).to(device, dtype)
        each[name] = calls.view(len(calls), stream.batch, stream.tokens).to(device, dtype)
    return total, each


def _windows(pass_: Followed, at: Rows) -> int:
    """Groups (windows) of a call's queries per sample."""
    return max(1, pass_.graph.states[at.call]["query"].layout.groups // pass_.inputs.batch)


def _which(at: Rows) -> str:
    tokens = sorted(set(at.row.tolist()))
    return f"token {tokens[0]}" if len(tokens) == 1 else f"{len(tokens)} tokens"


def _words(rows: list[Rows], names: Mapping[int, str], batch: int) -> tuple[str, ...]:
    """Where each sample is read, in words."""
    lines = []
    for sample in range(batch):
        mine = [(names[at.call], at.row[at.sample == sample].tolist()) for at in rows]
        lines.append(" and ".join(f"token {own[0]} of {name}" if len(own) == 1 else f"{len(own)} tokens of {name}" for name, own in mine if own))
    return tuple(lines)
