"""What the attention of a model does for a target: how much relevance flows along each attention, and what happens without it.

An edge is an attention call, from the streams of its keys to those of its queries. Its relevance is ``sum |r^T Abar|``, what the sweep of
``zl.attention_relevance`` moves along it. Its causal effect is ``f(x) - f(do(o := o0))``: o is the call's output and o0 what it gives
when the sources of its keys are at their baselines; the rest of the pass comes as it comes. The first is read off one pass, the second is an
intervention; whether one predicts the other is their rank correlation. Mechanism interpretation: our reading of Cui, Fan & Chen 2026
(heterogenous attention), whose formulas are not public.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.baseline import BaselineLike
from zeroline.circuit import Edge, Mechanism
from zeroline.errors import InputError, UsageError
from zeroline.methods.attention_relevance import Sweep
from zeroline.model import identity
from zeroline.model.absent import absent, as_by_input, refuse_unknown
from zeroline.model.ask import labels_of
from zeroline.model.cutting import Cutter
from zeroline.model.links import State
from zeroline.model.streams import Graph
from zeroline.model.targets import target_of
from zeroline.model.trace import Call, chosen, followed
from zeroline.target import TargetLike

Progress = Callable[[int, int | None], None]


def mechanism(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    baseline: BaselineLike | Mapping[str, BaselineLike] | None = None,
    calls: Any = "all",
    heads: bool = True,
    correction: str = "positive",
    max_evaluations: int = 4096,
    suffix: bool = True,
    progress: Progress | None = None,
) -> Mechanism:
    """Relevance and causal effect of every attention of a model, whole and head by head.

    Args:
        model, inputs: as in ``zl.trace``; batch first.
        target: class, ``zl.top()``, callable, ...; its class is fixed on x.
        baseline: what a source is when an edge from it is cut: one for all or a dict by input; default zeros for numbers, and for ids the token that
            the configuration calls mask, else pad. It fills that input alone: of ``zl.baseline.of(other)`` too, and masks stay those of x.
        calls: the attentions that are cut: ``"all"``, a number, a name (``"*visual_attention*"``), or a list of these.
        heads: cut every head by itself too.
        correction: of the relevance, as in ``zl.attention_relevance``.
        max_evaluations: cuts per sample at most.
        suffix: run only what comes after a cut (the same numbers, checked on a row of every pass); False runs the whole model.
        progress: called with (cuts done, cuts in all).

    Returns:
        A ``Mechanism``: ``relevance`` [batch, edges], ``effect`` [batch, edges] and ``head_effect`` [batch, edges, heads] in units of the target.
        Neither adds up to anything; the record says how far the effects are from f(x) - f(baselines). A model of one source has edges too;
        the reading says that none is heterogenous.

    Raises:
        UsageError: more cuts than ``max_evaluations``. BaselineError: no baseline is known for ids, or one does not fit.
        NonFiniteError: under the baselines an attention gives NaN (a softmax without keys), or the target does. As ``zl.attention_relevance``.
    """
    asked = target_of(model, inputs, target)
    with followed(model, inputs) as pass_:
        if not pass_.inputs.repeatable:
            raise InputError("cuts are rows of a batch, and an argument hides a batch inside an object (a cache); give tensors")
        refuse_unknown(baseline, pass_.inputs)
        records = pass_.calls()
        numbers = chosen(records, calls)
        _refuse_more_than(max_evaluations, records, numbers, heads)
        sweep = Sweep(pass_, records, asked, correction=correction)
        sweep.differentiate(keep=False)
        _, begin = sweep.graph_rule()
        edges = tuple(Edge(c.number, c.name, c.kind, c.queries, c.keys, c.heads, c.feeds_from, cut=_sources(pass_.graph, c.number)) for c in records)
        sources = [name.partition("#")[0] for name, stream in pass_.graph.streams.items() if stream.is_input]
        blank = {name: absent(model, pass_.inputs, name, as_by_input(baseline, name)) for name in dict.fromkeys(sources)}
        resolved = asked.resolve(pass_.recording.output, labels_of(model))
        shared = frozenset(n for n in range(len(records)) if _shared(pass_.graph, n))
        cutter = Cutter(model, pass_.inputs, resolved, pass_.graph.calls, sweep.output, replay=suffix, shared=shared)
        joint, whole, single = _cut(cutter, edges, numbers, heads, {name: values for name, (values, _) in blank.items()}, progress)
        return Mechanism(
            edges=edges,
            streams=tuple((name, stream.tokens) for name, stream in pass_.graph.streams.items()),
            relevance=torch.stack([_flow(sweep, call) for call in range(len(records))], 1),
            effect=whole,
            head_effect=single,
            target=resolved.describe(pass_.inputs.batch),
            output=sweep.output.cpu(),
            joint=joint,
            baselines={name: words for name, (_, words) in blank.items()},
            readout=begin.words,
            evaluations=_count(edges, numbers, heads),
            forward_passes=cutter.passes + 1,
            execution=tuple(cutter.execution.get(n, "") for n in range(len(edges))),
            settings={"correction": correction, "heads": heads, "calls": [records[n].name for n in numbers]},
            versions=identity.versions(),
            model=f"{identity.model_class(model)}@{identity.weights_hash(model)()}",
        )


def _cut(
    cutter: Cutter, edges: Sequence[Edge], numbers: Sequence[int], heads: bool, blank: Mapping[str, Tensor], progress: Progress | None
) -> tuple[Tensor, Tensor, Tensor]:
    """f with all sources absent [batch], and the effects of cutting edges whole [batch, edges] and by head [batch, edges, heads]."""
    inputs, value = cutter.inputs, cutter.value.cpu()
    under = {
        names: cutter.outputs_under(inputs.with_values({name: blank[name] for name in names})) for names in {edge.cut for edge in edges} if names
    }
    joint = under[tuple(blank)][1] if tuple(blank) in under else cutter.outputs_under(inputs.with_values(blank))[1]
    whole = torch.full((inputs.batch, len(edges)), torch.nan, dtype=torch.float64)
    single = torch.full((inputs.batch, len(edges), max(edge.heads for edge in edges)), torch.nan, dtype=torch.float64)
    done = 0
    for edge in (edges[n] for n in numbers):
        each = list(range(edge.heads)) if heads else []
        if edge.cut:
            found = value[:, None] - cutter.cut(edge.number, under[edge.cut][0][edge.number], [None, *each])
        else:  # nothing that a baseline changes reaches its keys
            found = torch.zeros(inputs.batch, 1 + len(each), dtype=torch.float64)
        whole[:, edge.number], single[:, edge.number, : len(each)] = found[:, 0], found[:, 1:]
        done += 1 + len(each)
        if progress is not None:
            progress(done, _count(edges, numbers, heads))
    return joint, whole, single


def _count(calls: Sequence[Call] | Sequence[Edge], numbers: Sequence[int], heads: bool) -> int:
    """Cuts per sample."""
    return sum(1 + (calls[n].heads if heads else 0) for n in numbers)


def _refuse_more_than(most: int, calls: Sequence[Call], numbers: Sequence[int], heads: bool) -> None:
    needed = _count(calls, numbers, heads)
    if needed > most:
        less = f", heads=False ({len(numbers)} cuts)" if heads else ""
        raise UsageError(f"{len(numbers)} attentions are {needed} cuts; max_evaluations is {most}: name fewer calls{less}, or raise it")


def _flow(sweep: Sweep, call: int) -> Tensor:
    """Relevance that a call moves to its keys, by size: [batch]."""
    batch = sweep.pass_.inputs.batch
    moved = sweep.moved.get(call)
    if moved is None:
        return torch.zeros(batch, dtype=torch.float64)
    return moved.abs().sum().expand(batch) if _shared(sweep.graph, call) else moved.abs().view(batch, -1).sum(1)


def _shared(graph: Graph, call: int) -> bool:
    """Is an attention one for all samples: of an input that has not a row for each?"""
    streams = [graph.streams[name] for part in ("query", "key") for name in graph.states[call][part].own]
    groups = graph.states[call]["query"].layout.groups
    return groups % graph.batch != 0 or any(stream.batch != graph.batch and stream.is_input for stream in streams)


def _sources(graph: Graph, call: int) -> tuple[str, ...]:
    """The model inputs whose absence is an edge's: those whose tokens its keys are; where they are learned, all that reach them through calls."""
    state = graph.states[call]["key"]
    own = [name for name in graph.names(state) if graph.streams[name].is_input]
    found = own or sorted(_reaching(graph, state, {}))
    return tuple(dict.fromkeys(name.partition("#")[0] for name in found))


def _reaching(graph: Graph, state: State, known: dict[int, set[str]]) -> set[str]:
    found = {name for name in state.own if graph.streams[name].is_input}
    for call in state.from_calls:
        if call not in known:
            known[call] = set()
            for part in ("query", "key", "value"):
                known[call] |= _reaching(graph, graph.states[call][part], known)
        found |= known[call]
    return found
