"""Attention relevance over the graph of a model: gradient-corrected attention, through every stream, from fused kernels.

``R_h = I + sum_i Abar_i R_{v_i}`` over the calls i that reach a state h, with ``Abar = mean_heads C(dA, A)`` and the
correction C one of ``none`` A, ``positive`` (dA*A)+, ``negative`` (-dA*A)+, ``absolute`` |dA*A|, ``signed`` dA*A. On one
stream of self-attention with the positive correction this is Chefer, Gur & Wolf 2021 ("Generic Attention-model
Explainability", equations 5 and 6); self-, cross- and co-attention, encoder-decoder, Q-Former and Perceiver are the same
rule on other graphs. Corrections, complete and incomplete coverage: our reading of Cui, Fan & Chen 2026 ("guided attention"),
whose formulas are not public. The gradient of a map is dO v^T, so no map is stored and fused kernels stay on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import InputError, NotFoundError, TargetError
from zeroline.maths.attention import CORRECTIONS, FUSIONS, correction_of, fused, vector_times
from zeroline.maths.propagation import Matrices, bimodal, carried, gathered, reverse
from zeroline.model import identity
from zeroline.model.backward import output_gradients, value_of
from zeroline.model.families import patches_of
from zeroline.model.links import State
from zeroline.model.readout import Given, Readout, finals, readout
from zeroline.model.streams import Stream
from zeroline.model.targets import target_of
from zeroline.model.trace import HETEROGENOUS, Call, Followed, chosen, followed
from zeroline.relevance import Relevance, Tokens, laid
from zeroline.target import Target, TargetLike

RULES = ("graph", "chefer-bimodal")
COVERAGES = ("complete", "incomplete")
Guide = Any  # weights per token (tensor, array, list), or a mapping of them by stream


def attention_relevance(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike | Mapping[str, TargetLike],
    correction: str = "positive",
    calls: Any = "all",
    coverage: str = "complete",
    guide: Guide | None = None,
    rule: str = "graph",
    head_fusion: str = "mean",
    readout: Given = None,
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
) -> Any:
    """Relevance of every source token for a target, over the model's own graph of attentions.

    Args:
        model, inputs: as in ``zl.trace``: any module, unmodified; batch first.
        target: class, ``zl.top()``, ``zl.contrast(a, b)``, callable, ...; a dict of several gives a dict of records from one
            forward pass.
        correction: ``"positive"``, ``"absolute"``, ``"negative"``, ``"signed"`` or ``"none"`` (then it is rollout).
        calls: the calls that are corrected: ``"all"``, a number, a name (``"*encoder_attn*"``), a slice or a list of these.
        coverage: ``"complete"``: only the calls named take part, each corrected (the rest pass tokens on as they are);
            ``"incomplete"``: the calls named are corrected, the others take part with their raw attention; with
            ``calls="all"`` those named are then the last ones that the target reads.
        guide: weights for key tokens, multiplied onto the corrected attention: [tokens] or [batch, tokens] of the one
            source, or its patches ([patches], [rows, columns], with or without a batch axis), or a dict of these by stream.
        rule: ``"graph"``, by vector-matrix products from the output back; or ``"chefer-bimodal"`` (Chefer 2021, equations
            10 and 11), which needs full matrices: memory grows with the square of batch times tokens.
        head_fusion: ``"mean"`` or ``"max"`` over heads.
        readout: None finds it (class token, pool, pooling head, position, query); or a token number, or weights [tokens] or
            [batch, tokens], of the last call that the target reads (of a target that reads one stream).
        grid, prefix: rows and columns of the image tokens, and how many learned tokens stand before them, where the
            model does not say.

    Returns:
        A ``Relevance``: ``by_source[stream]`` [batch, tokens], without a unit. It adds up to nothing in particular. Non-negative
        for ``none``, ``positive``, ``negative`` and ``absolute``, unless a guide or a readout given by hand is negative.

    Raises:
        TraceError: see ``zl.trace``.
        NotFoundError: a call, correction or stream that does not exist (the nearest named).
        TargetError: a target that no attention reaches or that needs no gradient.
        InputError: a guide of the wrong length, a grid that does not fit, inputs on another device.
        UsageError: a readout that does not fit, a relevance that is not square under the bi-modal rule.
        ModelStateError: training mode with dropout.
        NonFiniteError: NaN or infinity in the target or in an attention gradient.
    """
    among("correction", correction, tuple(CORRECTIONS))
    among("coverage", coverage, COVERAGES)
    among("rule", rule, RULES)
    among("head_fusion", head_fusion, FUSIONS)
    settings = {"correction": correction, "calls": plain(calls), "coverage": coverage, "rule": rule, "head_fusion": head_fusion}
    settings |= {"guide": kept(guide), "readout": kept(readout)}
    several = isinstance(target, Mapping)
    given: Mapping[str, TargetLike] = target if isinstance(target, Mapping) else {"": target}
    if not given:
        raise TargetError("no targets were given")
    asked = {name: target_of(model, inputs, one) for name, one in given.items()}
    with followed(model, inputs) as pass_:
        records = pass_.calls()
        found = {}
        for number, (name, one) in enumerate(asked.items()):
            options = {"correction": correction, "calls": calls, "coverage": coverage, "guide": guide, "head_fusion": head_fusion, "given": readout}
            sweep = Sweep(pass_, records, one, **options)
            sweep.differentiate(keep=number + 1 < len(asked))
            run = sweep.graph_rule if rule == "graph" else sweep.bimodal_rule
            found[name] = sweep.record(run(), "rollout" if correction == "none" else "attention_relevance", settings, grid, prefix)
        return found if several else found[""]


class Sweep:
    """One target's way back through the calls of one pass: what is corrected, the gradients, the two rules."""

    def __init__(
        self,
        pass_: Followed,
        records: tuple[Call, ...],
        target: Target,
        *,
        correction: str = "positive",
        calls: Any = "all",
        coverage: str = "complete",
        guide: Guide | None = None,
        head_fusion: str = "mean",
        given: Given = None,
    ) -> None:
        self.pass_, self.graph, self.records = pass_, pass_.graph, records
        self.change, self.fusion, self.given = correction_of(correction), head_fusion, given
        self.value, self.target = value_of(pass_, target)
        self.state = self.graph.target(self.value)
        self.output = self.value.detach().double()
        self.finals = sorted({final.call for final in finals(self.graph, self.state)})
        self.corrected, self.raw = self._covered(calls, coverage)
        self.gradients: dict[int, Tensor] = {}
        self.sizes = {name: stream.batch * stream.tokens for name, stream in self.graph.streams.items()}
        self.guides = _guides(guide, self.graph.streams)
        self.moved: dict[int, Tensor] = {}

    def _covered(self, calls: Any, coverage: str) -> tuple[set[int], set[int]]:
        everything = set(range(len(self.records)))
        if coverage == "complete":
            return set(chosen(self.records, calls)), set()
        named = set(self.finals) if isinstance(calls, str) and calls == "all" else set(chosen(self.records, calls))
        return named, everything - named

    def differentiate(self, keep: bool) -> None:
        """df/do of every call that needs it, in one backward pass; the graph goes with it unless kept."""
        wanted = (self.corrected if self.change is not None else set()) | set(self.finals if self.given is None else ())
        self.gradients = output_gradients(self.pass_, self.value, wanted, keep=keep)
        del self.value

    def start(self) -> Readout:
        """The readout: row weights at the last calls that the target reads."""
        norms = {i: self.pass_.maps(i, self.gradients[i]).output_gradient for i in self.finals if i in self.gradients}
        return readout(self.graph, self.state, {i: g for i, g in norms.items() if g is not None}, self.given)

    def graph_rule(self) -> tuple[dict[str, Tensor], Readout]:
        """R_h = I + sum_i Abar_i R_{v_i} for one row, from the output back."""
        begin = self.start()
        values = [states["value"] for states in self.graph.states]
        rows = [states["query"].size for states in self.graph.states]
        return reverse(values, rows, self.sizes, begin.calls, begin.streams, self.step), begin

    @torch.no_grad()
    def step(self, call: int, r: Tensor) -> Tensor:
        """r^T Abar of one call, [rows of its keys]."""
        key = self.graph.states[call]["key"]
        if call not in self.corrected and call not in self.raw:
            return torch.zeros(key.size, dtype=torch.float64)
        change = self.change if call in self.corrected else None
        maps = self.pass_.maps(call, self.gradients.get(call))
        query = self.graph.states[call]["query"].layout
        sent = vector_times(maps, r.view(query.groups, query.tokens), change, self.fusion).double().cpu().flatten()
        if self.guides and call in self.corrected:
            sent = sent * guided(key, self.guides)
        self.moved[call] = sent
        return sent

    @torch.no_grad()
    def bimodal_rule(self) -> tuple[dict[str, Tensor], Readout]:
        """Chefer's rules 10 and 11 where queries and keys are of two streams; full matrices, forward."""
        begin = self.start()
        added: list[Matrices] = []
        for call, states in enumerate(self.graph.states):
            value = gathered(states["value"], added, self.sizes)
            if call not in self.corrected and call not in self.raw:
                added.append({})
                continue
            abar = self.matrix(call)
            record = self.records[call]
            crossed = record.kind == HETEROGENOUS and " + " not in record.queries + record.keys
            query = gathered(states["query"], added, self.sizes) if crossed else {}
            if record.queries in query and record.keys in value:
                added.append(bimodal(record.queries, record.keys, abar, query, value))
            else:  # one stream, or a state without relevance of its own stream: rules 10 and 11 say nothing
                added.append({name: abar @ matrix for name, matrix in value.items()})
            if begin.calls.get(call) is not None:
                self.moved[call] = begin.calls[call] @ abar
        total = {name: torch.zeros(size, dtype=torch.float64) for name, size in self.sizes.items()}
        for call, r in begin.calls.items():
            for name, matrix in added[call].items():
                total[name] += r @ matrix
        for name, r in begin.streams.items():
            total[name] += r
        return total, begin

    def matrix(self, call: int) -> Tensor:
        """Abar of one call for the whole batch: block-diagonal [query rows, key rows], float64."""
        change = self.change if call in self.corrected else None
        abar = fused(self.pass_.maps(call, self.gradients.get(call)), change, self.fusion).double().cpu()
        matrix: Tensor = torch.block_diag(*abar)  # type: ignore[no-untyped-call]
        return matrix * guided(self.graph.states[call]["key"], self.guides) if self.guides and call in self.corrected else matrix

    def record(
        self, result: tuple[dict[str, Tensor], Readout], method: str, settings: Mapping[str, Any], grid: tuple[int, int] | None, prefix: int | None
    ) -> Relevance:
        """The frozen record, on the model's device, in the precision of its maps."""
        found, begin = result
        output = self.graph.calls[0].output.tensor
        dtype, device = torch.promote_types(output.dtype, torch.float32), output.device
        streams = self.graph.streams
        by_source = {name: r.view(streams[name].batch, streams[name].tokens).to(device, dtype) for name, r in found.items()}
        return Relevance(
            by_source=by_source,
            per_call={name: self._per_call(name).to(device, dtype) for name in by_source},
            tokens=token_lie(self.pass_, by_source, grid, prefix),
            method=method,
            target=self.target.describe(self.pass_.inputs.batch),
            output=self.output,
            calls=tuple((c.name, c.kind) for c in self.records),
            corrected=tuple(sorted(self.corrected)) if self.change is not None else (),
            readout=begin.words if self.given is None else tuple(f"{words} (given)" for words in begin.words),
            settings=dict(settings),
            versions=identity.versions(),
            model_class=identity.model_class(self.pass_.model),
            weights=identity.weights_hash(self.pass_.model),
        )

    def _per_call(self, name: str) -> Tensor:
        stream = self.graph.streams[name]
        found = torch.zeros(len(self.records), stream.batch * stream.tokens, dtype=torch.float64)
        for call, moved in self.moved.items():
            link = self.graph.states[call]["key"].own.get(name)
            if link is not None:
                found[call] = carried(link, moved, found.shape[1])
        return found.view(len(self.records), stream.batch, stream.tokens)


def guided(key: State, guides: Mapping[str, Tensor]) -> Tensor:
    """The guide's weight for each row of a key state: that of the token that it is, 1 where it is none of a guided stream's."""
    weights = torch.ones(key.size, dtype=torch.float64)
    for name, guide in guides.items():
        if name in key.own:
            link = key.own[name]
            weights[link.ids] = guide[link.rows]
    return weights


def _guides(guide: Guide | None, streams: Mapping[str, Stream]) -> dict[str, Tensor]:
    """Guides by stream, [batch * tokens]; learned tokens before the patches get 1 where the guide is for patches."""
    if guide is None:
        return {}
    if isinstance(guide, Mapping):
        named = dict(guide)
    else:
        inputs = [name for name, stream in streams.items() if stream.is_input]
        if len(inputs) != 1:
            raise InputError(f"the model has {len(inputs)} sources ({', '.join(inputs)}); give guide={{stream: weights}}")
        named = {inputs[0]: guide}
    found = {}
    for name, weights in named.items():
        if name not in streams:
            raise NotFoundError.among("stream", name, streams)
        stream = streams[name]
        try:
            given = torch.as_tensor(weights).double().cpu()
        except (TypeError, ValueError, RuntimeError) as problem:
            raise InputError(f"the guide for {name!r} is {type(weights).__name__}, no weights of its {stream.tokens} tokens ({problem})") from None
        if stream.grid is not None and given.shape[-2:] == stream.grid:
            given = given.flatten(-2)
        patches = stream.tokens - stream.prefix
        if given.ndim not in (1, 2) or given.shape[-1] not in (stream.tokens, patches) or (given.ndim == 2 and len(given) not in (1, stream.batch)):
            lengths = f"{stream.tokens} tokens" + (f" or {patches} patches" if stream.prefix else "") + (f" {stream.grid}" if stream.grid else "")
            raise InputError(f"a guide of shape {tuple(given.shape)} was given for {name!r}; it has {lengths} in {stream.batch} samples")
        if not bool(given.isfinite().all()):
            raise InputError(f"the guide for {name!r} holds NaN or infinity")
        given = given.expand(stream.batch, -1)
        if given.shape[-1] != stream.tokens:
            given = torch.cat([torch.ones(stream.batch, stream.prefix, dtype=torch.float64), given], 1)
        found[name] = given.flatten()
    return found


def token_lie(pass_: Followed, by_source: Iterable[str], grid: tuple[int, int] | None, prefix: int | None) -> dict[str, Tokens]:
    """How each stream's tokens lie: as given, as the pass showed, or as the model's configuration says."""
    streams = pass_.graph.streams
    lie = {name: Tokens(streams[name].prefix, streams[name].grid) for name in by_source}
    images = [name for name in by_source if streams[name].is_input and not _is_ids(pass_, name)]
    for name in images:
        known = patches_of(pass_.model, streams[name].tokens) if lie[name].grid is None and lie[name].prefix == 0 else None
        if known is not None:
            lie[name] = Tokens(known.prefix, known.grid)
    if grid is not None or prefix is not None:
        if not images:
            raise InputError("a grid or a prefix was given, and no stream of this model is an image or a float input")
        if len(images) != 1:
            raise InputError(f"a grid was given, and {len(images)} streams could lie on it ({', '.join(images)}); use .grid(stream, grid=...)")
        name = images[0]
        lie[name] = laid(name, streams[name].tokens, lie[name], grid, prefix)
    return lie


def _is_ids(pass_: Followed, name: str) -> bool:
    given = pass_.inputs.tensors.get(name)
    return given is not None and not given.is_floating_point()


def among(kind: str, asked: Any, possible: tuple[str, ...]) -> None:
    """NotFoundError where an option is none of those that are possible."""
    if not isinstance(asked, str) or asked not in possible:
        raise NotFoundError.among(kind, str(asked), possible)


def kept(given: Any) -> Any:
    """What was given by hand as JSON types, so that a saved record can be repeated."""
    if isinstance(given, Mapping):
        return {str(name): kept(one) for name, one in given.items()}
    return given.tolist() if hasattr(given, "tolist") else list(given) if isinstance(given, (list, tuple)) else given


def plain(calls: Any) -> Any:
    """A selection of calls as JSON types."""
    if isinstance(calls, (list, tuple, range)):
        return [plain(c) for c in calls]
    return str(calls) if isinstance(calls, slice) else calls
