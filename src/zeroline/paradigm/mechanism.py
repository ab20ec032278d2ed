"""What the attention of a model does for a target: how much relevance flows along each attention, and what happens without it.

An edge is an attention call, from the streams of its keys to those of its queries. Its relevance is ``sum |r^T Abar|``, what the sweep of
``zl.attention_relevance`` moves along it. Its causal effect is ``f(x) - f(do(o := o0))``: o is the call's output and o0 what it gives
when the sources of its keys are at their baselines; the rest of the pass comes as it comes. The first is read off one pass, the second is an
intervention; whether one predicts the other is their rank correlation. Mechanism interpretation: our reading of Cui, Fan & Chen 2026
(heterogenous attention), whose formulas are not public.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.baseline import BaselineLike
from zeroline.circuit import Edge, Mechanism
from zeroline.errors import UsageError
from zeroline.methods.attention_relevance import Sweep
from zeroline.model import identity
from zeroline.model.absent import absent, as_by_input
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
            the configuration calls mask, else pad.
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
        records = pass_.calls()
        numbers = chosen(records, calls)
        needed = sum(1 + (records[n].heads if heads else 0) for n in numbers)
        if needed > max_evaluations:
            less = f", heads=False ({len(numbers)} cuts)" if heads else ""
            raise UsageError(
                f"{len(numbers)} attentions are {needed} cuts; max_evaluations is {max_evaluations}: name fewer calls{less}, or raise it"
            )
        sweep = Sweep(pass_, records, asked, correction=correction)
        sweep.differentiate(keep=False)
        _, begin = sweep.graph_rule()
        flow = torch.stack([_flow(sweep, call) for call in range(len(records))], 1)
        feeding = [_sources(pass_.graph, call) for call in range(len(records))]
        inputs_known, graph_calls, output, streams = pass_.inputs, list(pass_.graph.calls), pass_.recording.output, pass_.graph.streams
        resolved = asked.resolve(output, labels_of(model))
        edges = tuple(_edge(call, feeding[call.number]) for call in records)
        lanes = tuple((name, stream.tokens) for name, stream in streams.items())
        del output
        cutter = Cutter(model, inputs_known, resolved, graph_calls, sweep.output, replay=suffix)
        everything = tuple(dict.fromkeys(name for names in feeding for name in names))
        values, named = {}, {}
        for name in everything:
            values[name], named[name] = absent(model, inputs_known, name, as_by_input(baseline, name))
        under = {names: cutter.outputs_under(inputs_known.with_values({n: values[n] for n in names})) for names in dict.fromkeys(feeding) if names}
        joint = under[everything][1] if everything in under else cutter.outputs_under(inputs_known.with_values(values))[1]
        whole = torch.full((inputs_known.batch, len(edges)), torch.nan, dtype=torch.float64)
        single = torch.full((inputs_known.batch, len(edges), max(e.heads for e in edges)), torch.nan, dtype=torch.float64)
        done = 0
        for n in numbers:
            each = list(range(records[n].heads)) if heads else []
            if feeding[n]:
                changed = sweep.output.cpu()[:, None] - cutter.cut(n, under[feeding[n]][0][n], [None, *each])
            else:  # nothing that a baseline changes reaches its keys
                changed = torch.zeros(inputs_known.batch, 1 + len(each), dtype=torch.float64)
            whole[:, n], single[:, n, : len(each)] = changed[:, 0], changed[:, 1:]
            done += 1 + len(each)
            if progress is not None:
                progress(done, needed)
        return Mechanism(
            edges=edges,
            streams=lanes,
            relevance=flow,
            effect=whole,
            head_effect=single,
            target=resolved.describe(inputs_known.batch),
            output=sweep.output.cpu(),
            joint=joint,
            baselines=named,
            readout=begin.words,
            evaluations=done,
            forward_passes=cutter.passes + 1,
            execution=tuple(cutter.execution.get(n, "") for n in range(len(edges))),
            settings={"correction": correction, "heads": heads, "calls": [records[n].name for n in numbers]},
            versions=identity.versions(),
            model=f"{identity.model_class(model)}@{identity.weights_hash(model)()}",
        )


def _edge(call: Call, sources: tuple[str, ...]) -> Edge:
    return Edge(call.number, call.name, call.kind, call.queries, call.keys, call.heads, call.feeds_from, sources)


def _flow(sweep: Sweep, call: int) -> Tensor:
    """Relevance that a call moves to its keys, by size: [batch]."""
    batch = sweep.pass_.inputs.batch
    moved = sweep.moved.get(call)
    return torch.zeros(batch, dtype=torch.float64) if moved is None else moved.abs().view(batch, -1).sum(1)


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
