"""Which tokens attend to which: the graph between the attentions of one pass, read off autograd.

A *state* is what a call reads: its queries, keys or values, as rows of tokens. ``Graph`` follows a state's rows back
(``rows.back``) until they reach the outputs of other calls or the places where streams start, and keeps what it found
as ``Link``s: state row -> row of a call's output, state row -> token of a stream. ``Stream`` is a source with its tokens:
a model input, with the class and register tokens that stand beside it, or learned queries by their parameter's name.

Every fork of the graph is followed once: where a tensor is read by several operations, the links of the rows at it are
remembered, so that the cost grows with the depth of a model and not with the number of paths through it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from zeroline.errors import TraceError
from zeroline.model.capture import Operand, Recording, Start
from zeroline.model.inputs import Inputs
from zeroline.model.maps import heads_of, name_of
from zeroline.model.operations import LAST, MATRIX, Node, back, by_softmax, kind, live, shape_of
from zeroline.model.rows import NONE, Axes, Factor, Mixes, Rows, fresh, full, is_identity, permute, reshape, spread, unbroadcast

_LEAF = "torch::autograd::AccumulateGrad"
_CHECKPOINT = "CheckpointFunctionBackward"
REENTRANT = "the model uses re-entrant checkpointing, which hides its graph; load it without, or with use_reentrant=False"
_CALL, _INPUT, _LEARNED = 1, 2, 4


@dataclass(frozen=True, eq=False)
class Link:
    """Row ``ids[n]`` of a state comes from ``rows[n]`` of a call's output (or of a source); ``weight`` is its share of a pool."""

    ids: Tensor
    rows: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """Rows of a state: ``groups`` (samples, or windows of samples) times ``tokens``."""

    groups: int
    tokens: int

    @property
    def rows(self) -> int:
        """Rows in all."""
        return self.groups * self.tokens


@dataclass(frozen=True)
class Stream:
    """A source with its tokens: ``prefix`` learned ones first, then the ``grid`` (or the row) of the rest."""

    name: str
    batch: int
    tokens: int
    prefix: int = 0
    grid: tuple[int, int] | None = None
    is_input: bool = True


@dataclass(eq=False)
class State:
    """What a call reads as queries, keys or values: the calls that feed its rows, and the tokens that its rows are.

    ``from_calls`` by number of the call; ``own`` by name of the stream, with rows numbered ``sample * tokens + token``.
    """

    layout: Layout
    from_calls: dict[int, Link] = field(default_factory=dict)
    own: dict[str, Link] = field(default_factory=dict)
    _sources: dict[int, Link] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Rows in all."""
        return self.layout.rows


@dataclass(eq=False)
class _Source:
    """A tensor where rows start: a leaf, the last operation before positions mix, or the first that parameters alone make.

    ``in_rows``: it is [batch, tokens, width], so that every position is a token, however a state reads it.
    """

    start: Start
    shape: tuple[int, ...]
    keep: tuple[bool, ...]
    owner: object
    in_rows: bool = False
    sample: Tensor | None = None
    token: Tensor | None = None
    batch: int = 0
    tokens: int = 0

    @property
    def numbered(self) -> bool:
        """Have its tokens their numbers?"""
        return self.token is not None

    @property
    def positions(self) -> int:
        """Positions along the axes that are kept."""
        return math.prod(n for n, keep in zip(self.shape, self.keep) if keep)


Links = dict[tuple[str, int], Link]
PARTS = ("query", "key", "value")


class Graph:
    """Calls, states and streams of one recorded pass. ``states[i]`` has the keys ``"query"``, ``"key"`` and ``"value"``."""

    def __init__(self, recording: Recording, inputs: Inputs, arguments: Sequence[str]) -> None:
        self.recording = recording
        self.batch = inputs.batch
        self.arguments = list(arguments)
        self.calls = recording.seen
        self._samples = {name: int(tensor.shape[0]) for name, tensor in inputs.tensors.items() if tensor.ndim}
        self.streams: dict[str, Stream] = {}
        self._below: dict[Node, int] = {}
        self._consumers: dict[Node, int] = {}
        self._inputs: dict[Node, frozenset[str]] = {}
        self._memo: dict[tuple[Node, int, Axes, bytes], Links] = {}
        self._sources: list[_Source] = []
        self._source_at: dict[object, int] = {}
        self._outputs = {(s.output.edge.node, s.output.edge.output_nr): i for i, s in enumerate(self.calls) if s.output.edge is not None}
        self._visit([edge.node for s in self.calls for edge in (s.query.edge, s.key.edge, s.value.edge) if edge is not None])
        for i in range(len(self.calls)):
            self._decide(i)
        self.states: list[dict[str, State]] = []
        self._widened = True
        with deep_recursion():
            while self._widened:  # once, or again where a later state tells more positions of a source apart than an earlier one
                self._widened = False
                self._memo.clear()
                self.states = [{part: self._state(i, getattr(seen, part), part) for part in PARTS} for i, seen in enumerate(self.calls)]
        self._name_streams([state for states in self.states for state in states.values()])

    # --- the walk -------------------------------------------------------------------------------------------------

    def _state(self, call: int, operand: Operand, part: str) -> State:
        state = State(layout_of(operand, self.batch))
        if operand.edge is not None:
            rows = _state_rows(operand, heads_of(operand, self.batch))
            self._keep(state, self._follow(operand.edge.node, operand.edge.output_nr, rows, f"the {part} of {name_of(self.calls[call])}"))
        return state

    def target(self, value: Tensor) -> State:
        """The state of a target [batch]: which rows of which calls it reads."""
        edge = get_gradient_edge(value)
        self._visit([edge.node])
        state = State(Layout(len(value), 1))
        axes: Axes = ((Factor(len(value), True),),) if len(value) > 1 else ((),)
        with deep_recursion():
            self._keep(state, self._follow(edge.node, edge.output_nr, fresh(axes), "the target"))
        for number, link in state._sources.items():
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
        self.streams[name] = Stream(name, source.batch, source.tokens, 0, None if source.start.is_ids else _grid_of(source))
        self._offset[number] = (name, 0)

    def _keep(self, state: State, links: Links) -> None:
        state.from_calls = {number: link for (what, number), link in links.items() if what == "call"}
        state._sources = {number: link for (what, number), link in links.items() if what == "source"}

    def _follow(self, node: Node, number: int, rows: Rows, where: str) -> Links:
        try:
            return self._resolve(node, number, rows)
        except Mixes as problem:
            if "NotImplemented" in str(problem):
                raise TraceError(f"cannot follow the tokens of {where}: an operation has no gradient ({problem}), as in quantised modules") from None
            raise TraceError(f"cannot follow the tokens of {where}: {problem} mixes or moves them outside attention") from None

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
        shape = part.shape
        if len(shape) == 3:
            groups, rest = (self.batch, shape[0] // self.batch) if shape[0] % self.batch == 0 else (shape[0], 1)
            tagged: Axes = ((*_factor(groups, True), *_factor(rest, False, 0)), _factor(shape[1], True), _factor(shape[2], False))
        else:
            lead = [_factor(n, i == 0, None if i == 0 else i) for i, n in enumerate(shape[:-2])]
            tagged = (*lead, _factor(shape[-2], True), _factor(shape[-1], False))
        rows = permute(fresh(tagged), [part.order.index(i) for i in range(len(part.order))])
        alone = self._alone(part.edge.node, part.edge.output_nr, rows)
        if not alone and len(shape) < 5:
            return
        decided = [_decided(one, alone, self.batch) for one in (seen.query, seen.key, seen.value, seen.output)]
        weights = None if seen.weights is None else _decided(seen.weights, alone, self.batch)
        query, key, value, output = decided
        self.calls[call] = replace(seen, query=query, key=key, value=value, output=output, weights=weights)

    def _alone(self, node: Node, number: int, rows: Rows) -> dict[int, int]:
        """Tags that reach a source or a call on an axis without features, and the size that did."""
        found: dict[int, int] = {}
        waiting, visited = [(node, number, rows)], set()
        while waiting:
            node, number, rows = waiting.pop()
            if not any(f.tag is not None for axis in rows.axes for f in axis) or (node, number, rows.axes) in visited:
                continue
            visited.add((node, number, rows.axes))
            call = self._outputs.get((node, number))
            if call is not None:
                ending = self._ungrouped(call, rows)
            elif node.name() == _LEAF:
                ending = rows.axes
            elif not self._below[node] & (_CALL | _INPUT):
                continue
            else:
                try:
                    operands = back(node, number, rows, self._slots(node))
                except Mixes:
                    ending = () if self._below[node] & _CALL else rows.axes
                else:
                    for slot, part in operands:
                        following, output = node.next_functions[slot]
                        shape = _shape(following, output)
                        if following in self._below:
                            waiting.append((following, output, part if part.shape == shape else unbroadcast(part, shape)[0]))
                    continue
            for axis in ending:
                tags = [f for f in axis if f.tag is not None]
                if tags and all(f.kept or f.tag is not None for f in axis):
                    for f in tags:
                        found[int(f.tag or 0)] = max(found.get(int(f.tag or 0), 1), f.size)
        return found

    def _ungrouped(self, call: int, rows: Rows) -> Axes:
        """The axes of a call's output without its heads and features."""
        operand = self.calls[call].output
        rows = permute(rows, operand.order)
        lead = math.prod(operand.shape[:-2])
        heads = heads_of(operand, self.batch)
        try:
            rows = reshape(rows, (lead // heads, heads, *operand.shape[-2:]))
        except Mixes:
            return ()
        return (rows.axes[0], rows.axes[2])

    def _slots(self, node: Node) -> list[int]:
        """The operands that matter: where one leads to calls or inputs, those that parameters alone make are weights."""
        ways = [(slot, self._below.get(node.next_functions[slot][0], 0)) for slot in live(node)]
        content = [slot for slot, below in ways if below & (_CALL | _INPUT)]
        return content or [slot for slot, below in ways if below]

    def _resolve(self, node: Node, number: int, rows: Rows) -> Links:
        """Links of the rows at output ``number`` of ``node``."""
        if self._consumers.get(node, 0) < 2:
            return self._expand(node, number, rows)
        key = (node, number, rows.axes, b"" if is_identity(rows.ids) else rows.ids.contiguous().numpy().tobytes())
        known = self._memo.get(key)
        if known is None:
            known = self._memo[key] = self._expand(node, number, rows)
        return known

    def _expand(self, node: Node, number: int, rows: Rows) -> Links:
        below = self._below[node]
        call = self._outputs.get((node, number))
        if call is not None:
            return self._call(call, rows)
        if node.name() == _LEAF:
            return self._leaf(node, rows)
        if not below & (_CALL | _INPUT):
            return self._learned(node, number, rows) if below & _LEARNED else {}
        if node.name().startswith(_CHECKPOINT):
            raise TraceError(REENTRANT)
        slots = self._slots(node)
        if kind(node) in MATRIX and len(slots) > 1:
            self._refuse_unannounced(node, slots)
        try:
            operands = back(node, number, rows, slots)
        except Mixes:
            if below & _CALL or kind(node) in MATRIX | LAST:
                raise
            return self._stem(node, number, rows)
        found: Links = {}
        for slot, part in operands:
            following, output = node.next_functions[slot]
            if following not in self._below or not self._below[following]:
                continue
            if not bool((part.ids >= 0).any()):
                continue
            shape = _shape(following, output)
            if not self._below[following] & (_CALL | _INPUT):
                _merge(found, self._learned(following, output, part))
            elif part.shape == shape and len(part.axes) == len(shape):
                _merge(found, self._resolve(following, output, part))
            else:
                few, copies = unbroadcast(part, shape)
                _merge(found, _copied(self._resolve(following, output, few), copies))
        return found

    def _refuse_unannounced(self, node: Node, slots: Sequence[int]) -> None:
        """A product of content by content where one side is a softmax over content is attention; here nobody saw it."""
        for slot in slots:
            if by_softmax(node, slot):
                raise Mixes(f"{node.name()}, by softmax weights that were not seen as attention,")

    def _call(self, call: int, rows: Rows) -> Links:
        """Rows at a call's output: heads and features put together, a pool's share where tokens are spread."""
        operand = self.calls[call].output
        layout = layout_of(operand, self.batch)
        rows = permute(rows, operand.order)
        rows = reshape(rows, (layout.groups, heads_of(operand, self.batch), layout.tokens, operand.shape[-1]))
        found: Links = {}
        for one in spread(rows, 3, op="the width of an attention", copies=True):
            for layer in spread(one, 1, op="the heads of an attention", copies=True):
                _merge(found, {("call", call): _link(Rows((layer.axes[0], layer.axes[2]), layer.ids), layout.rows)})
        return found

    def _leaf(self, node: Node, rows: Rows) -> Links:
        start = self.recording.starts.get(id(node.variable))
        if start is None:
            return {}
        return self._source(start, node.variable, rows)

    def _stem(self, node: Node, number: int, rows: Rows) -> Links:
        """An operation that mixes positions, with nothing but inputs behind it: tokens begin at its output."""
        names = sorted(self._inputs[node], key=self._rank)
        return self._source(Start(names[0], names[0]), (node, number), rows)

    def _learned(self, node: Node, number: int, rows: Rows) -> Links:
        """Rows that parameters alone make: the source is the first of them."""
        for start in self._learned_starts(node):
            return self._source(start, ("learned", start.name), rows)
        return {}

    def _source(self, start: Start, owner: object, rows: Rows) -> Links:
        keep = tuple(any(f.kept or f.live is not None for f in axis) for axis in rows.axes)
        shape = rows.shape
        key: object = (owner, shape) if start.input is None else (id(owner) if isinstance(owner, Tensor) else owner)
        number = self._source_at.get(key)
        if number is None:
            number = self._source_at[key] = len(self._sources)
            usual = start.is_ids or (isinstance(owner, Tensor) and len(shape) == 3)  # [batch, tokens, width]
            self._sources.append(_Source(start, shape, tuple(i < len(shape) - 1 for i in range(len(shape))) if usual else keep, owner, usual))
        source = self._sources[number]
        wider = tuple(a or b for a, b in zip(source.keep, keep))
        if wider != source.keep and not source.numbered:
            source.keep, self._widened = wider, True
        layers = [rows]
        for axis, keeps in enumerate(source.keep):
            if not keeps:
                layers = [one for layer in layers for one in spread(layer, axis, op="leaf", copies=True)]
        found: Links = {}
        for layer in layers:
            kept = Rows(tuple(axis for axis, keeps in zip(layer.axes, source.keep) if keeps), layer.ids)
            _merge(found, {("source", number): _link(kept, source.positions)})
        return found

    def _visit(self, roots: Iterable[Node]) -> None:
        """Count who reads each node and note what lies behind it: calls, inputs, learned tokens."""
        order: list[Node] = []
        for root in roots:
            self._consumers[root] = self._consumers.get(root, 0) + 1
            if root in self._below:
                continue
            stack: list[tuple[Node, bool]] = [(root, False)]
            while stack:
                node, done = stack.pop()
                if done:
                    order.append(node)
                    continue
                if node in self._below:
                    continue
                self._below[node] = 0
                stack.append((node, True))
                for following, _ in node.next_functions:
                    if following is not None:
                        self._consumers[following] = self._consumers.get(following, 0) + 1
                        if following not in self._below:
                            stack.append((following, False))
        calls = {node for node, _ in self._outputs}
        for node in order:
            below, inputs = 0, frozenset[str]()
            if node.name() == _LEAF:
                start = self.recording.starts.get(id(node.variable))
                below = 0 if start is None else _INPUT if start.input is not None else _LEARNED
                inputs = frozenset([start.input]) if start is not None and start.input is not None else inputs
            for following, _ in node.next_functions:
                if following is not None:
                    below |= self._below[following]
                    inputs |= self._inputs[following]
            self._below[node] = below | (_CALL if node in calls else 0)
            self._inputs[node] = inputs

    def _learned_starts(self, node: Node) -> list[Start]:
        seen: set[Node] = set()
        waiting, found = [node], []
        while waiting:
            node = waiting.pop(0)
            if node in seen:
                continue
            seen.add(node)
            if node.name() == _LEAF and (start := self.recording.starts.get(id(node.variable))):
                found.append(start)
            waiting += [node.next_functions[slot][0] for slot in live(node)]
        return found

    # --- names ----------------------------------------------------------------------------------------------------

    def _rank(self, name: str) -> int:
        return self.arguments.index(name) if name in self.arguments else len(self.arguments)

    def _name_streams(self, states: list[State]) -> None:
        """Number the tokens of every source, tell ordinary parameters from learned tokens, and form the streams."""
        for number, source in enumerate(self._sources):
            reaching = [(state, state._sources[number]) for state in states if number in state._sources]
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
                taken = sum(known[0] == source.start.name for known in names)
                names[key] = source.start.name + (f"#{taken}" if taken else "")
                grid = None if source.start.is_ids else _grid_of(source)
                self.streams[names[key]] = Stream(names[key], source.batch, prefix + source.tokens, prefix, grid, source.start.input is not None)
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

    def _number(self, source: _Source, reaching: list[tuple[State, Link]]) -> None:
        """Sample and token of every position, from the state that tells most of them apart; the others fill what it leaves."""
        reaching = sorted(reaching, key=lambda found: (-_distinct(found[1].rows), -_distinct(found[1].ids)))
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

    def _samples_of(self, state: State, source: _Source) -> int:
        """The samples that a state's groups belong to: as many as the inputs that feed it have (texts need not be as many as images)."""
        names = [source.start.input] if source.start.input is not None else [self._sources[n].start.input for n in state._sources]
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
            for number, link in state._sources.items():
                if self._sources[number].start.input is not None:
                    fed[link.ids] = True
            for number, link in state._sources.items():
                if self._sources[number].start.input is None and bool(fed[link.ids].any()):
                    ordinary.add(number)
        same = {self._sources[n].start.name for n in ordinary}
        return {n for n, source in enumerate(self._sources) if source.start.input is None and source.start.name in same}

    def _beside(self, states: list[State]) -> dict[int, int]:
        """Learned tokens that share a state with the rows of one float input, as class and register tokens do."""
        found: dict[int, int] = {}
        for state in states:
            floats = [n for n in state._sources if self._sources[n].start.input is not None and not self._sources[n].start.is_ids]
            floats = sorted(floats, key=lambda n: self._rank(str(self._sources[n].start.input)))
            learned = [n for n in state._sources if self._sources[n].start.input is None and n not in self._ordinary]
            taken = torch.zeros(state.layout.rows, dtype=torch.bool)
            for n in sorted(learned, key=lambda n: (self._sources[n].tokens, int(state._sources[n].ids.min()))):
                ids = state._sources[n].ids
                if floats and n not in found and not bool(taken[ids].any()):
                    found[n] = floats[0]
                taken[ids] = True
        first_row = {n: min(int(s._sources[n].ids.min()) for s in states if n in s._sources) for n in found}
        return dict(sorted(found.items(), key=lambda item: first_row[item[0]]))

    def _own(self, states: list[State], exclusive: bool = True) -> None:
        """For every row of a state the token that it is: of the first source, in rank, that feeds it (a target's row may be several)."""
        for state in states:
            covered = torch.zeros(state.layout.rows, dtype=torch.bool)
            for number in self._ranked():
                link, source = state._sources.get(number), self._sources[number]
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
                            [_weights(before), torch.ones(len(ids) - len(before.ids), dtype=torch.float64) if weight is None else weight]
                        )
                state.own[name] = Link(ids, tokens, weight)

    def lost(self) -> tuple[str, ...]:
        """Float inputs that reach nothing, where some state has rows that come from nowhere: computed without gradients."""
        nowhere = False
        for state in (state for states in self.states for state in states.values()):
            known = torch.zeros(state.size, dtype=torch.bool)
            for link in (*state.from_calls.values(), *state._sources.values()):
                known[link.ids] = True
            nowhere = nowhere or (bool(known.any()) and not bool(known.all()))
        reached = {name for node in self._inputs for name in self._inputs[node]}
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
        known = self.__dict__.setdefault("_query_name_memo", {})
        if call not in known:
            known[call] = self.names(self.states[call]["query"])
        return known[call]  # type: ignore[no-any-return]


def layout_of(operand: Operand, batch: int) -> Layout:
    """Groups and tokens of an operand ordered as [..., heads, tokens, width]."""
    *lead, tokens, _ = operand.shape
    return Layout(math.prod(lead) // heads_of(operand, batch), tokens)


def _factor(size: int, kept: bool, tag: int | None = None) -> tuple[Factor, ...]:
    return (Factor(size, kept, tag=tag),) if size != 1 else ()


def _state_rows(operand: Operand, heads: int) -> Rows:
    """A state's rows, numbered ``group * tokens + token``, at the positions of its tensor."""
    *lead, tokens, width = operand.shape
    axes: list[tuple[Factor, ...]] = []
    for size in reversed(lead):  # heads are the last of the leading axes, or the last part of one
        inner = math.gcd(size, heads)
        axes.insert(0, (*_factor(size // inner, True), *_factor(inner, False)))
        heads //= inner
    rows = fresh((*axes, _factor(tokens, True), _factor(width, False)))
    return permute(rows, [operand.order.index(i) for i in range(len(operand.order))])


def _decided(operand: Operand, alone: Mapping[int, int], batch: int) -> Operand:
    """An operand whose tagged axes in ``alone`` are groups: they go before the heads."""
    lead = len(operand.order) - 2
    if lead == 1:
        return replace(operand, heads=max(1, heads_of(operand, batch) // alone[0]))
    groups = [i for i in range(lead) if i == 0 or i in alone]
    heads = [i for i in range(lead) if i not in groups]
    order = (*(operand.order[i] for i in (*groups, *heads)), *operand.order[lead:])
    return replace(operand, order=order, heads=math.prod(operand.shape[i] for i in heads))


def _shape(node: Node, number: int) -> tuple[int, ...]:
    return tuple(node.variable.shape) if node.name() == _LEAF else shape_of(node, number)


def _value_of(source: _Source) -> object:
    """What tells two sources of one input apart: its ids' own values, or the operation where its tokens begin."""
    ids = source.start.ids
    if ids is not None:
        return (tuple(ids.shape), ids.contiguous().cpu().numpy().tobytes())
    return source.owner if isinstance(source.owner, tuple) else id(source.owner)


def _copied(links: Links, copies: Tensor) -> Links:
    """Links of an operand's positions, each standing for the ``copies`` [n, positions] rows that it was broadcast to."""
    if len(copies) == 1 and is_identity(copies):
        return links
    found: Links = {}
    for key, link in links.items():
        ids = copies[:, link.ids]
        on = ids >= 0
        rows = link.rows.expand(len(copies), -1)[on]
        weight = None if link.weight is None else link.weight.expand(len(copies), -1)[on]
        pairs, inverse = torch.unique(torch.stack([ids[on], rows]), dim=1, return_inverse=True)
        if weight is not None:
            weight = torch.zeros(pairs.shape[1], dtype=torch.float64).scatter_reduce(0, inverse, weight, "amax")
        if pairs.shape[1]:
            found[key] = Link(pairs[0], pairs[1], weight)
    return found


@contextmanager
def deep_recursion() -> Iterator[None]:
    """Chains of operations without a fork are followed by recursion: let them be long."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 100_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _link(rows: Rows, positions: int) -> Link:
    """Ids and positions where there is a row; tokens that are spread share a row's weight."""
    share = math.prod(f.share for axis in rows.axes for f in axis)
    ids = full(rows).flatten()
    if share == 1 and len(ids) == positions and is_identity(ids):
        return Link(ids, torch.arange(positions))
    where = (ids >= 0).nonzero().flatten()
    weight = torch.full((len(where),), 1 / share, dtype=torch.float64) if share > 1 else None
    return Link(ids[where], where, weight)


def _merge(found: Links, more: Links) -> None:
    """Add links; a row reached twice from the same place is reached once."""
    for key, link in more.items():
        known = found.get(key)
        if known is None:
            found[key] = link
        elif known is not link and not _same(known, link):
            pairs = torch.cat([torch.stack([known.ids, known.rows]), torch.stack([link.ids, link.rows])], 1)
            unique, inverse = torch.unique(pairs, dim=1, return_inverse=True)
            weight = None
            if known.weight is not None or link.weight is not None:
                both = torch.cat([_weights(known), _weights(link)])
                weight = torch.zeros(unique.shape[1], dtype=torch.float64).scatter_reduce(0, inverse, both, "amax")
            found[key] = Link(unique[0], unique[1], weight)


def _distinct(numbers: Tensor) -> int:
    return int(torch.unique(numbers).numel())


def _same(a: Link, b: Link) -> bool:
    return torch.equal(a.ids, b.ids) and torch.equal(a.rows, b.rows) and (a.weight is b.weight or torch.equal(_weights(a), _weights(b)))


def _weights(link: Link) -> Tensor:
    return torch.ones(len(link.ids), dtype=torch.float64) if link.weight is None else link.weight


def _grid_of(source: _Source) -> tuple[int, int] | None:
    """Rows and columns, where a source has two kept axes beside the batch."""
    sizes = [n for n, keep in zip(source.shape, source.keep) if keep]
    if source.batch > 1 or (len(sizes) > 2 and sizes[0] == 1):
        sizes = sizes[1:]
    if len(sizes) == 2 and sizes[0] * sizes[1] == source.tokens:
        return sizes[0], sizes[1]
    return None
