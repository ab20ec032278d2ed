"""Which tokens attend to which: the graph between the attentions of one pass, read off autograd.

A *state* is what a call reads: its queries, keys or values, as rows of tokens. ``Graph`` has a state's rows followed
back (``walk``) until they reach the outputs of other calls or the places where streams start, and keeps what was found
as ``Link``s: state row -> row of a call's output, state row -> token of a stream. ``Stream`` is a source with its tokens:
a model input, with the class and register tokens that stand beside it, or learned queries by their parameter's name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from zeroline.errors import TraceError
from zeroline.model.capture import Operand, Recording
from zeroline.model.inputs import Inputs
from zeroline.model.layouts import decided, layout_of, state_rows, tagged_rows
from zeroline.model.links import Layout, Link, Links, State, distinct, weights_of
from zeroline.model.maps import heads_of, name_of
from zeroline.model.rows import NONE, Axes, Factor, fresh
from zeroline.model.walk import Source, Walk, deep_recursion

PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class Stream:
    """A source with its tokens: ``prefix`` learned ones first, then the ``grid`` (or the row) of the rest."""

    name: str
    batch: int
    tokens: int
    prefix: int = 0
    grid: tuple[int, int] | None = None
    is_input: bool = True


class Graph:
    """Calls, states and streams of one recorded pass. ``states[i]`` has the keys ``"query"``, ``"key"`` and ``"value"``."""

    def __init__(self, recording: Recording, inputs: Inputs) -> None:
        self.recording = recording
        self.batch = inputs.batch
        self.arguments = recording.arguments
        self.calls = recording.seen
        self.streams: dict[str, Stream] = {}
        self.walk = Walk(recording, self.calls, self.batch)
        self._sources = self.walk.sources
        self._samples = {name: int(tensor.shape[0]) for name, tensor in inputs.tensors.items() if tensor.ndim}
        for i in range(len(self.calls)):
            self._decide(i)
        self.states: list[dict[str, State]] = []
        self._query_name_memo: dict[int, tuple[str, ...]] = {}
        with deep_recursion():
            self._follow_all()
            while self.walk.widened:  # a later state told more positions of a source apart than an earlier one
                self.walk.forget()
                self._follow_all()
        self._name_streams([state for states in self.states for state in states.values()])

    def _follow_all(self) -> None:
        self.states = [{part: self._state(i, getattr(seen, part), part) for part in PARTS} for i, seen in enumerate(self.calls)]

    def _state(self, call: int, operand: Operand, part: str) -> State:
        state = State(layout_of(operand, self.batch))
        if operand.edge is not None:
            rows = state_rows(operand, heads_of(operand, self.batch))
            where = f"the {part} of {name_of(self.calls[call])}"
            _keep(state, self.walk.follow(operand.edge.node, operand.edge.output_nr, rows, where))
        return state

    def target(self, value: Tensor) -> State:
        """The state of a target [batch]: which rows of which calls it reads."""
        edge = get_gradient_edge(value)
        self.walk.visit([edge.node])
        state = State(Layout(len(value), 1))
        axes: Axes = ((Factor(len(value), True),),) if len(value) > 1 else ((),)
        with deep_recursion():
            _keep(state, self.walk.follow(edge.node, edge.output_nr, fresh(axes), "the target"))
        for number, link in state.sources.items():
            if number not in self._offset and self._sources[number].start.input is not None:
                self._add_stream(number, state.layout, link)
        self._own([state], exclusive=False)
        return state

    def _add_stream(self, number: int, layout: Layout, link: Link) -> None:
        """A stream that a target reads without any attention."""
        source = self._sources[number]
        self._number(source, [(State(layout), link)])
        name = source.start.name
        while name in self.streams:
            name += "#"
        self.streams[name] = Stream(name, source.batch, source.tokens, 0, _grid_of(source))
        self._offset[number] = (name, 0)

    def _decide(self, call: int) -> None:
        """Which leading axes of a call are heads, and which are groups of tokens of their own (windows, frames, rows).

        A head's axis ends in the features of some earlier tensor; a group's axis stays an axis of its own as far as the
        first source or call. The axes that may be either are tagged, and followed until that is known.
        """
        seen = self.calls[call]
        part = next((p for p in (seen.value, seen.key, seen.query) if p.edge is not None), None)
        if part is None:
            return
        assert part.edge is not None
        alone = self.walk.alone(part.edge.node, part.edge.output_nr, tagged_rows(part, self.batch))
        if not alone and len(part.shape) < 5:
            return
        query, key, value, output = (decided(one, alone, self.batch) for one in (seen.query, seen.key, seen.value, seen.output))
        weights = None if seen.weights is None else decided(seen.weights, alone, self.batch)
        self.calls[call] = replace(seen, query=query, key=key, value=value, output=output, weights=weights)

    def _rank(self, name: str) -> int:
        return self.arguments.index(name) if name in self.arguments else len(self.arguments)

    def _name_streams(self, states: list[State]) -> None:
        """Number the tokens of every source, tell ordinary parameters from learned tokens, and form the streams."""
        for number, source in enumerate(self._sources):
            reaching = [(state, state.sources[number]) for state in states if number in state.sources]
            if reaching:
                self._number(source, reaching)
        self._ordinary = self._positional(states)
        beside = self._beside(states)
        self._offset: dict[int, tuple[str, int]] = {}
        names: dict[tuple[str, int, object], str] = {}
        for number in self._ranked():
            source = self._sources[number]
            if source.token is None or number in self._ordinary or number in beside:
                continue
            learned = [n for n, owner in beside.items() if owner == number]
            prefix = sum(self._sources[n].tokens for n in learned)
            key = (source.start.name, source.tokens, _value_of(source))
            if key not in names:
                taken = sum(name == source.start.name for name, *_ in names)
                names[key] = source.start.name + (f"#{taken}" if taken else "")
                known = source.start.input is not None
                self.streams[names[key]] = Stream(names[key], source.batch, prefix + source.tokens, prefix, _grid_of(source), known)
            self._offset[number] = (names[key], self.streams[names[key]].prefix)
            start = 0
            for n in learned:
                self._offset[n] = (names[key], start)
                start += self._sources[n].tokens
        self._own(states)
        used = {name for state in states for name in state.own}
        self.streams = {name: stream for name, stream in self.streams.items() if name in used}

    def _ranked(self) -> list[int]:
        """Sources in the order in which a row chooses its own: inputs as the model lists them, then the rarest parameter."""

        def rank(number: int) -> tuple[int, int, int]:
            source = self._sources[number]
            return (0, self._rank(str(source.start.input)), number) if source.start.input is not None else (1, source.tokens, number)

        return sorted(range(len(self._sources)), key=rank)

    def _number(self, source: Source, reaching: list[tuple[State, Link]]) -> None:
        """Sample and token of every position, from the state that tells most of them apart; the others fill what it leaves."""
        reaching = sorted(reaching, key=lambda found: (-distinct(found[1].rows), -distinct(found[1].ids)))
        sample, group = torch.full((2, source.positions), NONE)
        next_group = 0
        for state, link in reaching:
            new = sample[link.rows] < 0
            samples = self._samples_of(state, source)
            sample[link.rows[new]] = link.ids[new] // state.layout.tokens * samples // state.layout.groups
            group[link.rows[new]] = link.rows[new] if source.in_rows else next_group + link.ids[new]
            next_group += state.layout.rows
        samples = self._samples_of(reaching[0][0], source)
        positions = torch.arange(source.positions)
        if source.in_rows and not _by_axis(sample, source.shape, samples):
            name = source.start.name
            raise TraceError(f"the samples of {name!r} are mixed up on the way to an attention (heads before the batch?): not followed")
        missing = sample < 0
        sample, group = torch.where(missing, positions * samples // source.positions, sample), torch.where(missing, next_group + positions, group)
        token = torch.zeros(source.positions, dtype=torch.int64)
        for b in range(samples):
            here = (sample == b).nonzero().flatten()
            _, inverse = torch.unique(group[here], return_inverse=True)
            first = torch.full((int(inverse.max()) + 1 if len(here) else 0,), source.positions).scatter_reduce(
                0, inverse, torch.arange(len(here)), "amin"
            )
            rank = torch.empty_like(first)
            rank[first.argsort()] = torch.arange(len(first))
            token[here] = rank[inverse]
        source.sample, source.token, source.batch, source.tokens = sample, token, samples, int(token.max()) + 1

    def _samples_of(self, state: State, source: Source) -> int:
        """The samples that a state's groups belong to: as many as the inputs that feed it have (texts need not be as many as images)."""
        names = [source.start.input] if source.start.input is not None else [self._sources[n].start.input for n in state.sources]
        for name in names:
            count = self._samples.get(str(name), 0)
            if count and state.layout.groups % count == 0:
                return count
        return self.batch if state.layout.groups % self.batch == 0 else state.layout.groups

    def _positional(self, states: list[State]) -> set[int]:
        """Parameters added to rows that an input feeds: position and type embeddings, no sources of their own."""
        ordinary: set[int] = set()
        for state in states:
            fed = torch.zeros(state.layout.rows, dtype=torch.bool)
            for number, link in state.sources.items():
                if self._sources[number].start.input is not None:
                    fed[link.ids] = True
            for number, link in state.sources.items():
                if self._sources[number].start.input is None and bool(fed[link.ids].any()):
                    ordinary.add(number)
        same = {self._sources[n].start.name for n in ordinary}
        return {n for n, source in enumerate(self._sources) if source.start.input is None and source.start.name in same}

    def _beside(self, states: list[State]) -> dict[int, int]:
        """Learned tokens that share a state with the rows of one float input, as class and register tokens do."""
        found: dict[int, int] = {}
        for state in states:
            floats = [n for n in state.sources if self._sources[n].start.input is not None and not self._sources[n].start.is_ids]
            floats = sorted(floats, key=lambda n: self._rank(str(self._sources[n].start.input)))
            learned = [n for n in state.sources if self._sources[n].start.input is None and n not in self._ordinary]
            taken = torch.zeros(state.layout.rows, dtype=torch.bool)
            for n in sorted(learned, key=lambda n: (self._sources[n].tokens, int(state.sources[n].ids.min()))):
                ids = state.sources[n].ids
                if floats and n not in found and not bool(taken[ids].any()):
                    found[n] = floats[0]
                taken[ids] = True
        first_row = {n: min(int(s.sources[n].ids.min()) for s in states if n in s.sources) for n in found}
        return dict(sorted(found.items(), key=lambda item: first_row[item[0]]))

    def _own(self, states: list[State], exclusive: bool = True) -> None:
        """For every row of a state the token that it is: of the first source, in rank, that feeds it (a target's row may be several)."""
        for state in states:
            covered = torch.zeros(state.layout.rows, dtype=torch.bool)
            for number in self._ranked():
                link, source = state.sources.get(number), self._sources[number]
                if link is None or number not in self._offset:
                    continue
                assert source.token is not None
                assert source.sample is not None
                name, offset = self._offset[number]
                if name not in self.streams:
                    continue
                stream = self.streams[name]
                free = ~covered[link.ids]
                covered[link.ids] = exclusive
                tokens = source.sample[link.rows] * stream.tokens + offset + source.token[link.rows]
                ids, tokens = link.ids[free], tokens[free]
                weight = None if link.weight is None else link.weight[free]
                if not len(ids):
                    continue
                if source.positions > source.batch * source.tokens:  # several positions are one token (pixels of a patch)
                    pairs, inverse = torch.unique(torch.stack([ids, tokens]), dim=1, return_inverse=True)
                    ids, tokens = pairs
                    weight = None if weight is None else torch.zeros(pairs.shape[1], dtype=torch.float64).index_add_(0, inverse, weight)
                if name in state.own:
                    before = state.own[name]
                    ids, tokens = torch.cat([before.ids, ids]), torch.cat([before.rows, tokens])
                    if weight is not None or before.weight is not None:
                        weight = torch.cat(
                            [weights_of(before), torch.ones(len(ids) - len(before.ids), dtype=torch.float64) if weight is None else weight]
                        )
                state.own[name] = Link(ids, tokens, weight)

    def lost(self) -> tuple[str, ...]:
        """Float inputs that reach nothing, where some state has rows that come from nowhere: computed without gradients."""
        nowhere = False
        for state in (state for states in self.states for state in states.values()):
            known = torch.zeros(state.size, dtype=torch.bool)
            for link in (*state.from_calls.values(), *state.sources.values()):
                known[link.ids] = True
            nowhere = nowhere or (bool(known.any()) and not bool(known.all()))
        reached = self.walk.inputs_reached()
        opened = {start.input for start in self.recording.starts.values() if start.input is not None}
        return tuple(sorted(opened - reached)) if nowhere else ()

    def names(self, state: State) -> tuple[str, ...]:
        """The streams that a state's rows belong to: those of its own tokens, and those that its feeding calls work for."""
        found = {name for name in state.own if self.streams[name].is_input} or set(state.own)
        for call in state.from_calls:
            found |= set(self._query_names(call))
        inputs = {name for name in found if self.streams[name].is_input}
        return tuple(sorted(found, key=lambda name: (name not in inputs, self._rank(name.split("#")[0]), name)))

    def _query_names(self, call: int) -> tuple[str, ...]:
        if call not in self._query_name_memo:
            self._query_name_memo[call] = self.names(self.states[call]["query"])
        return self._query_name_memo[call]


def _keep(state: State, links: Links) -> None:
    state.from_calls = {number: link for (what, number), link in links.items() if what == "call"}
    state.sources = {number: link for (what, number), link in links.items() if what == "source"}


def _value_of(source: Source) -> object:
    """What tells two sources of one input apart: its ids' own values, or the operation where its tokens begin."""
    ids = source.start.ids
    if ids is not None:
        return (tuple(ids.shape), ids.contiguous().cpu().numpy().tobytes())
    return source.owner if isinstance(source.owner, tuple) else id(source.owner)


def _by_axis(sample: Tensor, shape: tuple[int, ...], samples: int) -> bool:
    """Do the samples lie along the first or the second axis of [batch, tokens, width], as far as they are known?"""
    known = sample >= 0
    positions = torch.arange(len(sample))
    ways = [positions // (len(sample) // samples)] if shape[0] == samples else []
    ways += [positions % shape[1]] if len(shape) > 2 and shape[1] == samples else []
    return not ways or any(torch.equal(sample[known], way[known]) for way in ways)


def _grid_of(source: Source) -> tuple[int, int] | None:
    """Rows and columns, where a source (that is no [batch, tokens, width]) has two kept axes beside the batch."""
    sizes = [n for n, keep in zip(source.shape[1:], source.keep[1:]) if keep]
    if not source.in_rows and len(sizes) == 2 and sizes[0] * sizes[1] == source.tokens:
        return sizes[0], sizes[1]
    return None
