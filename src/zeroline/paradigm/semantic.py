"""What grounds what: words of one source against regions of the other, for one target or for several.

Relevance goes back from the target along paths of attention (``R_h = I + sum_i Abar_i R_{v_i}``, ``zl.attention_relevance``). Each path that
ends at a token j of one source is booked for the last token i of the other source whose row it passed: ``G[i, j]`` is then the relevance of region j
that came in through word i, and ``sum_i G[i, j]``, with what passed no word, is the relevance of j. The same the other way round (the relevance
of word i that came in through region j) says which region was asked for a word; the two together are the coupling. One rule for co-attention,
cross-attention and one stream of two sources, whatever the model. Signed where the correction is. Semantic interpretation: our reading of
Cui, Fan & Chen 2026 (heterogenous attention), whose formulas are not public.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import InputError, NotFoundError, UsageError
from zeroline.grounding import Grounding
from zeroline.maths.attention import FUSIONS, fused
from zeroline.maths.propagation import through
from zeroline.methods.attention_relevance import COVERAGES, Guide, Sweep, among, attention_relevance, guided, kept, plain, token_lie
from zeroline.model import identity
from zeroline.model.inputs import Inputs
from zeroline.model.readout import Given
from zeroline.model.streams import Stream
from zeroline.model.targets import target_of
from zeroline.model.trace import HETEROGENOUS, Call, Followed, followed
from zeroline.relevance import Tokens
from zeroline.target import TargetLike

Part = str | tuple[str, Sequence[int]]


def ground(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike | Mapping[str, TargetLike],
    rows: Part | None = None,
    columns: Part | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
    correction: str = "positive",
    calls: Any = "all",
    coverage: str = "complete",
    guide: Guide | None = None,
    rule: str = "graph",
    head_fusion: str = "mean",
    readout: Given = None,
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
) -> Grounding:
    """A matrix of the tokens of one source against those of another: how much relevance of each column came in through each row.

    Args:
        model, inputs: as in ``zl.trace``; batch first.
        target: what is explained; or a dict of targets, which are then the rows themselves (each word that a decoder writes, each query or box
            coordinate of a detector): their relevance over the columns, from one forward pass.
        rows, columns: streams by name (see ``zl.trace``), or ``(stream, token numbers)``. Default: the streams of a heterogenous attention, text
            before images; of a single stream of two segments (``token_type_ids``) the first segment and the second.
        words: what the tokens of a stream are called, by stream, one for each of its tokens; default their numbers.
        correction, calls, coverage, guide, head_fusion, readout, grid, prefix: as in ``zl.attention_relevance``. ``rule`` can only be ``"graph"``
            (paths are what is followed), but for several targets.

    Returns:
        A ``Grounding``: ``matrix`` [batch, rows, columns], ``per_call`` [calls, batch, rows, columns] and ``direct`` [batch, columns];
        ``matrix.sum(1) + direct`` is the relevance of the columns. ``back`` [batch, rows, columns] is the relevance of rows that came in through
        columns (zeros where targets are the rows), ``coupling`` the two together. Without a unit. Non-negative unless the correction is signed.

    Raises:
        UsageError: the model has one source and no rows or columns are named; rows and columns share a token.
        NotFoundError: a stream that does not exist. InputError: a token number that does not, words of another number than the tokens.
        As ``zl.attention_relevance``. Memory grows with calls x rows x tokens, and with the square of a call's tokens.
    """
    if isinstance(target, Mapping):
        options = {"correction": correction, "calls": calls, "coverage": coverage, "guide": guide, "rule": rule, "head_fusion": head_fusion}
        return _by_target(model, inputs, target, rows, columns, words or {}, {**options, "readout": readout, "grid": grid, "prefix": prefix})
    among("coverage", coverage, COVERAGES)
    among("head_fusion", head_fusion, FUSIONS)
    if rule != "graph":
        raise UsageError(f"rule={rule!r} was given; grounding follows paths, which the graph rule alone has")
    asked = target_of(model, inputs, target)
    settings = {"correction": correction, "calls": plain(calls), "coverage": coverage, "head_fusion": head_fusion}
    settings |= {"guide": kept(guide), "readout": kept(readout)}
    with followed(model, inputs) as pass_:
        records = pass_.calls()
        _refuse_unknown(words or {}, pass_.graph.streams, pass_.inputs)
        ends = _parts(pass_, records, rows, columns)
        sweep = Sweep(
            pass_, records, asked, correction=correction, calls=calls, coverage=coverage, guide=guide, head_fusion=head_fusion, given=readout
        )
        sweep.differentiate(keep=False)
        begin = sweep.start()
        found, other = _through(sweep, ends, begin.calls), _through(sweep, _Ends(ends.columns, ends.rows), begin.calls)
        lie = token_lie(pass_, [ends.columns.stream], grid, prefix)[ends.columns.stream]
        batch = pass_.graph.streams[ends.columns.stream].batch
        past = found.pop(-1)
        read = begin.streams.get(ends.columns.stream)
        if read is not None:
            past = past + read[None]
        other.pop(-1)
        used = sorted({*found, *other})
        output = pass_.graph.calls[0].output.tensor

        def native(tensor: Tensor) -> Tensor:
            return tensor.to(output.device, torch.promote_types(output.dtype, torch.float32))

        per_call = _stacked(found, used, ends, batch)
        back = _stacked(other, used, _Ends(ends.columns, ends.rows), batch).transpose(2, 3)
        return Grounding(
            matrix=native(per_call.sum(0)),
            per_call=native(per_call),
            back=native(back.sum(0)),
            back_per_call=native(back),
            direct=native(past.view(batch, -1)[:, list(ends.columns.tokens)]),
            calls=tuple(records[call].name for call in used),
            row_stream=ends.rows.stream,
            column_stream=ends.columns.stream,
            row_tokens=ends.rows.tokens,
            column_tokens=ends.columns.tokens,
            row_words=ends.rows.called(words or {}) or tuple(f"token {n}" for n in ends.rows.tokens),
            column_words=ends.columns.called(words or {}),
            lie=lie,
            target=sweep.target.describe(pass_.inputs.batch),
            output=sweep.output,
            readout=begin.words,
            settings=settings,
            versions=identity.versions(),
            model_class=identity.model_class(model),
            weights=identity.weights_hash(model),
        )


@dataclass(frozen=True)
class _Part:
    """Some tokens of a stream."""

    stream: str
    tokens: tuple[int, ...]
    total: int

    def called(self, words: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """The tokens' words, where the stream has any."""
        if self.stream not in words:
            return ()
        known = tuple(str(word) for word in words[self.stream])
        if len(known) != self.total:
            raise InputError(f"{len(known)} words were given for {self.stream!r}; it has {self.total} tokens: give a word for each")
        return tuple(known[n] for n in self.tokens)


@dataclass(frozen=True)
class _Ends:
    rows: _Part
    columns: _Part


def _stacked(found: Mapping[int, Tensor], calls: Sequence[int], ends: _Ends, batch: int) -> Tensor:
    """[calls, batch, rows, columns] of what was booked by call as [rows, batch * tokens]."""
    blank = torch.zeros(len(ends.rows.tokens), batch * ends.columns.total, dtype=torch.float64)
    each = [found.get(call, blank).view(len(blank), batch, -1).transpose(0, 1)[..., list(ends.columns.tokens)] for call in calls]
    return torch.stack(each) if each else torch.zeros(0, batch, len(blank), len(ends.columns.tokens), dtype=torch.float64)


@torch.no_grad()
def _through(sweep: Sweep, ends: _Ends, start: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Relevance of the columns' stream by the last row passed, by call: {call: [rows, batch * tokens]}."""
    states, streams = sweep.graph.states, sweep.graph.streams
    number = torch.full((ends.rows.total,), -1)
    number[list(ends.rows.tokens)] = torch.arange(len(ends.rows.tokens))
    passing = []
    for state in (each["query"] for each in states):
        own = torch.full((state.size,), -1)
        link = state.own.get(ends.rows.stream)
        if link is not None and (link.weight is None or bool((link.weight == 1).all())):  # a row that pools tokens is none of them
            own[link.ids] = number[link.rows % ends.rows.total]
        passing.append(own)
    stream = streams[ends.columns.stream]
    sizes = [each["query"].size for each in states]
    found = through([each["value"] for each in states], sizes, stream.batch * stream.tokens, stream.name, passing, dict(start), _Step(sweep))
    rows = len(ends.rows.tokens)
    return {
        call: one if call == -1 or len(one) == rows else torch.cat([one, one.new_zeros(rows - len(one), one.shape[1])]) for call, one in found.items()
    }


class _Step:
    """r Abar of a call for r [n, rows of its queries]; the map of the last call asked is kept."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.kept: tuple[int, Tensor] | None = None

    def __call__(self, call: int, r: Tensor) -> Tensor:
        sweep = self.sweep
        key, query = sweep.graph.states[call]["key"], sweep.graph.states[call]["query"].layout
        if call not in sweep.corrected and call not in sweep.raw:
            return torch.zeros(len(r), key.size, dtype=torch.float64)
        if self.kept is None or self.kept[0] != call:
            change = sweep.change if call in sweep.corrected else None
            self.kept = call, fused(sweep.pass_.maps(call, sweep.gradients.get(call)), change, sweep.fusion).double().cpu()
        sent = torch.einsum("ngq,gqk->ngk", r.view(len(r), query.groups, query.tokens), self.kept[1]).flatten(1)
        return sent * guided(key, sweep.guides) if sweep.guides and call in sweep.corrected else sent


def _by_target(
    model: nn.Module,
    inputs: Any,
    targets: Mapping[str, TargetLike],
    rows: Part | None,
    columns: Part | None,
    words: Mapping[str, Sequence[str]],
    options: Mapping[str, Any],
) -> Grounding:
    """Each target a row: its relevance over the columns."""
    if rows is not None:
        raise UsageError("several targets are the rows themselves; rows= goes with one target")
    found = attention_relevance(model, inputs, target=dict(targets), **options)
    each = list(found.values())
    first = each[0]
    _refuse_unknown(words, first.by_source, Inputs.of(model, inputs))
    stream, tokens = _named(columns) if columns is not None else (_column_stream(model, first.tokens, first.by_source), None)
    if stream not in first.by_source:
        raise NotFoundError.among("stream", stream, first.by_source)
    total = first.by_source[stream].shape[1]
    part = _Part(stream, _numbers(tokens, total, stream), total)
    picked = list(part.tokens)
    matrix = torch.stack([one.by_source[stream][:, picked] for one in each], 1)
    return Grounding(
        matrix=matrix,
        per_call=torch.stack([one.per_call[stream][..., picked] for one in each], 2),
        direct=torch.zeros_like(matrix[:, 0]),
        back=torch.zeros_like(matrix),
        back_per_call=torch.zeros(len(first.calls), *matrix.shape).to(matrix),
        calls=tuple(name for name, _ in first.calls),
        row_stream="",
        column_stream=stream,
        row_tokens=tuple(range(len(each))),
        column_tokens=part.tokens,
        row_words=tuple(found),
        column_words=part.called(words),
        lie=first.tokens[stream],
        target=tuple(words for one in each for words in one.target),
        output=torch.stack([one.output for one in each], 1),
        readout=tuple(f"{len(each)} targets, each at its own rows" for _ in range(len(matrix))),
        settings=dict(first.settings),
        versions=first.versions,
        model_class=first.model_class,
        weights=first.weights,
    )


def _refuse_unknown(words: Mapping[str, Sequence[str]], streams: Iterable[str], inputs: Inputs) -> None:
    for name in words:
        if name not in streams and name not in inputs.named:
            raise NotFoundError.among("stream", name, streams, "words= names streams")


def _column_stream(model: nn.Module, lies: Mapping[str, Tokens], sources: Mapping[str, Tensor]) -> str:
    """The picture; else the model's main input; else what has the most tokens."""
    gridded = [name for name in sources if lies[name].grid is not None]
    if len(gridded) == 1:
        return gridded[0]
    if getattr(model, "main_input_name", None) in sources:
        return str(model.main_input_name)
    largest = sorted(sources, key=lambda name: -sources[name].shape[1])
    return largest[0]


def _parts(pass_: Followed, calls: Sequence[Call], rows: Part | None, columns: Part | None) -> _Ends:
    streams = pass_.graph.streams
    usual_rows, usual_columns = (None, None) if rows is not None and columns is not None else _usual(pass_, calls, rows, columns)
    picked = []
    for given, usual in ((rows, usual_rows), (columns, usual_columns)):
        name, tokens = _named(given if given is not None else usual or "")
        if name not in streams:
            raise NotFoundError.among("stream", name, streams, "see `zeroline trace MODEL`")
        picked.append(_Part(name, _numbers(tokens, streams[name].tokens, name), streams[name].tokens))
    own, other = picked
    both = sorted(set(own.tokens) & set(other.tokens)) if own.stream == other.stream else []
    if both:
        raise UsageError(f"rows and columns share {len(both)} tokens of {own.stream!r} (token {both[0]}); name tokens apart: rows=(stream, numbers)")
    if own.stream != other.stream and streams[own.stream].batch != streams[other.stream].batch and streams[own.stream].is_input:
        raise InputError(f"{own.stream!r} has {streams[own.stream].batch} samples and {other.stream!r} {streams[other.stream].batch}")
    return _Ends(own, other)


def _usual(pass_: Followed, calls: Sequence[Call], rows: Part | None, columns: Part | None) -> tuple[Part | None, Part | None]:
    """The ends that go without saying; text before images."""
    streams = pass_.graph.streams
    inputs = [name for name, stream in streams.items() if stream.is_input]
    named = _named(rows)[0] if rows is not None else _named(columns)[0] if columns is not None else None
    segments = _segments(pass_, streams[inputs[0]]) if len(inputs) == 1 else None
    if segments is not None:
        return (inputs[0], segments[0]), (inputs[0], segments[1])
    if named is not None:
        others = _met(calls, named) or [name for name in inputs if name != named]
        if not others:
            raise UsageError(f"nothing but {named!r} meets in the model's attention; name rows= and columns= as (stream, token numbers)")
        return (others[0], None) if rows is None else (None, others[0])
    met = [(call.queries, call.keys) for call in calls if call.kind == HETEROGENOUS and call.queries in streams and call.keys in streams]
    if met:
        query, key = met[0]
        text_is_key = _is_ids(pass_, key) and not _is_ids(pass_, query) and (key, query) in met
        return (key, query) if text_is_key else (query, key)
    if len(inputs) > 1:
        ordered = sorted(inputs, key=lambda name: not _is_ids(pass_, name))
        return ordered[0], ordered[1]
    found = ", ".join(inputs) or "no input"
    raise UsageError(f"the model has one source ({found}); name rows= and columns= as (stream, token numbers), or give a dict of targets as the rows")


def _met(calls: Sequence[Call], name: str) -> list[str]:
    """Streams that meet ``name`` in a heterogenous attention."""
    found: dict[str, None] = {}
    for call in calls:
        both = (set(call.queries.split(" + ")), set(call.keys.split(" + ")))
        if call.kind == HETEROGENOUS and any(name in one for one in both):
            found |= dict.fromkeys(other for one in both for other in sorted(one) if other != name)
    return list(found)


def _segments(pass_: Followed, stream: Stream) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Tokens of segment 0 and of segment 1, as ``token_type_ids`` says; padding left out."""
    types = pass_.inputs.tensors.get("token_type_ids")
    if types is None or types.ndim != 2 or types.shape[1] != stream.tokens or not bool((types == 1).any()):
        return None
    mask = pass_.inputs.tensors.get("attention_mask")
    seen = torch.ones_like(types, dtype=torch.bool) if mask is None or mask.shape != types.shape else mask.bool()
    if not bool((types == types[:1]).all()):
        raise InputError("the samples' segments differ (token_type_ids); ask them one at a time, or name rows= and columns=")
    kinds = [tuple(((types[0] == kind) & seen.any(0)).nonzero()[:, 0].tolist()) for kind in (0, 1)]
    return kinds[0], kinds[1]


def _named(part: Part) -> tuple[str, Sequence[int] | None]:
    if isinstance(part, str):
        return part, None
    if isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], str):
        return part
    raise UsageError(f"rows and columns are a stream's name, or (stream, token numbers), not {part!r}")


def _numbers(tokens: Sequence[int] | None, total: int, stream: str) -> tuple[int, ...]:
    if tokens is None:
        return tuple(range(total))
    numbers = [int(n) for n in tokens]
    wrong = [n for n in numbers if not -total <= n < total]
    if wrong or not numbers:
        raise InputError(f"token {wrong[0]} of {stream!r} asked; it has {total} (0 to {total - 1})" if wrong else f"no token of {stream!r} was asked")
    return tuple(dict.fromkeys(n % total for n in numbers))


def _is_ids(pass_: Followed, name: str) -> bool:
    given = pass_.inputs.tensors.get(name.partition("#")[0])
    return given is not None and not given.is_floating_point()
