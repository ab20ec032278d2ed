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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zeroline.errors import TraceError
from zeroline.model.capture import Operand, Recording, Start
from zeroline.model.maps import heads_of, name_of
from zeroline.model.operations import Node, back, live, shape_of
from zeroline.model.rows import NONE, Axes, Factor, Mixes, Rows, fresh, full, is_identity, permute, reshape, spread, unbroadcast

_LEAF = "torch::autograd::AccumulateGrad"
_CHECKPOINT = "CheckpointFunctionBackward"
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
    """A tensor where rows start: a leaf, the last operation before positions mix, or the first that parameters alone make."""

    start: Start
    shape: tuple[int, ...]
    keep: tuple[bool, ...]
    owner: object
    sample: Tensor | None = None
    token: Tensor | None = None
    batch: int = 0
    tokens: int = 0

    @property
    def positions(self) -> int:
        """Positions along the axes that are kept."""
        return math.prod(n for n, keep in zip(self.shape, self.keep) if keep)


Links = dict[tuple[str, int], Link]


class Graph:
    """Calls, states and streams of one recorded pass. ``states[i]`` has the keys ``"query"``, ``"key"`` and ``"value"``."""

    def __init__(self, recording: Recording, batch: int, arguments: Sequence[str]) -> None:
        self.recording = recording
        self.batch = batch
        self.arguments = list(arguments)
        self.calls = recording.seen
        self.streams: dict[str, Stream] = {}
        self._below: dict[Node, int] = {}
        self._consumers: dict[Node, int] = {}
        self._inputs: dict[Node, frozenset[str]] = {}
        self._memo: dict[tuple[Node, int, Axes, bytes], Links] = {}
        self._sources: list[_Source] = []
        self._source_at: dict[object, int] = {}
        self._outputs = {(s.output.tensor.grad_fn, s.output.tensor.output_nr): i for i, s in enumerate(self.calls) if s.output.tensor.grad_fn}
        operands = [getattr(s, part).tensor for s in self.calls for part in ("query", "key", "value")]
        self._visit(operands)
        self.states: list[dict[str, State]] = []
        for i, seen in enumerate(self.calls):
            self.states.append({part: self._state(i, getattr(seen, part), part) for part in ("query", "key", "value")})
        self._name_streams([state for states in self.states for state in states.values()])

    # --- the walk -------------------------------------------------------------------------------------------------

    def _state(self, call: int, operand: Operand, part: str) -> State:
        tensor = operand.tensor
        layout = layout_of(operand, self.batch)
        state = State(layout)
        if tensor.grad_fn is None and not tensor.requires_grad:
            return state
        where = f"the {part} of {name_of(self.calls[call])}"
        self._keep(state, self._follow(tensor, _state_rows(operand, self.batch, layout), where))
        return state

    def target(self, value: Tensor) -> State:
        """The state of a target [batch]: which rows of which calls it reads."""
        self._visit([value])
        state = State(Layout(len(value), 1))
        axes: Axes = ((Factor(len(value), True),),) if len(value) > 1 else ((),)
        self._keep(state, self._follow(value, fresh(axes), "the target"))
        for number, link in state._sources.items():
            if number not in self._offset and self._sources[number].start.input is not None:
                self._add_stream(number, state.layout, link)
        self._own([state], exclusive=False)
        return state

    def _add_stream(self, number: int, layout: Layout, link: Link) -> None:
        """A stream that a target reads without any attention."""
        source = self._sources[number]
        self._number(source, layout, link)
        name = source.start.name
        while name in self.streams:
            name += "#"
        self.streams[name] = Stream(name, source.batch, source.tokens, 0, _grid_of(source))
        self._offset[number] = (name, 0)

    def _keep(self, state: State, links: Links) -> None:
        state.from_calls = {number: link for (what, number), link in links.items() if what == "call"}
        state._sources = {number: link for (what, number), link in links.items() if what == "source"}

    def _follow(self, tensor: Tensor, rows: Rows, where: str) -> Links:
        node = tensor.grad_fn
        try:
            if node is None:
                return self._leaf(torch.autograd.graph.get_gradient_edge(tensor).node, rows)
            return self._resolve(node, tensor.output_nr, rows)
        except Mixes as problem:
            raise TraceError(f"cannot follow the tokens of {where}: {problem} mixes or moves them outside attention") from None

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
            raise TraceError("the model uses re-entrant checkpointing, which hides its graph; load it without, or with use_reentrant=False")
        try:
            operands = back(node, number, rows)
        except Mixes:
            if below & _CALL:
                raise
            return self._stem(node, number, rows)
        found: Links = {}
        for slot, part in operands:
            following, output = node.next_functions[slot]
            if following not in self._below or not self._below[following]:
                continue
            if not bool((part.ids >= 0).any()):
                continue
            shape = tuple(following.variable.shape) if following.name() == _LEAF else shape_of(following, output)
            if not self._below[following] & (_CALL | _INPUT):
                _merge(found, self._learned(following, output, part))
                continue
            for layer in [part] if part.shape == shape else unbroadcast(part, shape, str(node.name())):
                _merge(found, self._resolve(following, output, layer))
        return found

    def _call(self, call: int, rows: Rows) -> Links:
        """Rows at a call's output: heads and features put together, a pool's share where tokens are spread."""
        operand = self.calls[call].output
        layout = layout_of(operand, self.batch)
        heads = heads_of(operand, self.batch)
        rows = permute(rows, operand.order)
        if len(rows.axes) == 3:
            lead = rows.shape[0] // heads
            rows = reshape(rows, (lead, heads, *rows.shape[1:]))
        found: Links = {}
        width, head = len(rows.axes) - 1, len(rows.axes) - 3
        for one in spread(rows, width, op="heads"):
            for layer in spread(one, head, op="heads", copies=True):
                inner = Rows(tuple(axis for i, axis in enumerate(layer.axes) if i not in (head, width)), layer.ids)
                _merge(found, {("call", call): _link(inner, layout.rows)})
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
            self._sources.append(_Source(start, shape, keep, owner))
        source = self._sources[number]
        layers = [rows]
        for axis, keeps in enumerate(source.keep):
            if not keeps:
                layers = [one for layer in layers for one in spread(layer, axis, op="leaf", copies=True)]
        found: Links = {}
        for layer in layers:
            kept = Rows(tuple(axis for axis, keeps in zip(layer.axes, source.keep) if keeps), layer.ids)
            _merge(found, {("source", number): _link(kept, source.positions)})
        return found

    def _visit(self, tensors: Iterable[Tensor]) -> None:
        """Count who reads each node and note what lies behind it: calls, inputs, learned tokens."""
        order: list[Node] = []
        for tensor in tensors:
            if not tensor.requires_grad:
                continue
            root = torch.autograd.graph.get_gradient_edge(tensor).node
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
        for state in states:
            for number, link in state._sources.items():
                self._number(self._sources[number], state.layout, link)
        self._ordinary = self._positional(states)
        beside = self._beside(states)
        self._offset: dict[int, tuple[str, int]] = {}
        names: dict[tuple[str, int], str] = {}
        for number in self._ranked():
            source = self._sources[number]
            if source.token is None or number in self._ordinary or number in beside:
                continue
            learned = [n for n, owner in beside.items() if owner == number]
            prefix = sum(self._sources[n].tokens for n in learned)
            key = (source.start.name, source.tokens)
            if key not in names:
                taken = sum(name == source.start.name for name, _ in names)
                names[key] = source.start.name + (f"#{taken}" if taken else "")
                grid = _grid_of(source)
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

    def _number(self, source: _Source, layout: Layout, link: Link) -> None:
        """Sample and token of every position, from the first state that reaches the source."""
        if source.token is not None:
            return
        samples = self.batch if layout.groups % self.batch == 0 else layout.groups
        of_row = torch.arange(layout.rows) // layout.tokens * samples // layout.groups
        sample, group = torch.full((2, source.positions), NONE)
        sample[link.rows], group[link.rows] = of_row[link.ids], link.ids
        missing = sample < 0
        if bool(missing.any()):
            guess = torch.arange(source.positions) * samples // source.positions
            sample = torch.where(missing, guess, sample)
            group = torch.where(missing, layout.rows + torch.arange(source.positions), group)
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
                    weight = None if weight is None else torch.zeros(pairs.shape[1]).index_add_(0, inverse, weight)
                if name in state.own:
                    before = state.own[name]
                    ids, tokens = torch.cat([before.ids, ids]), torch.cat([before.rows, tokens])
                    if weight is not None or before.weight is not None:
                        weight = torch.cat([_weights(before), torch.ones(len(ids) - len(before.ids)) if weight is None else weight])
                state.own[name] = Link(ids, tokens, weight)

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
    shape = [int(operand.tensor.shape[i]) for i in operand.order]
    if len(shape) == 3:
        return Layout(shape[0] // heads_of(operand, batch), shape[1])
    return Layout(math.prod(shape[:-3]), shape[-2])


def _state_rows(operand: Operand, batch: int, layout: Layout) -> Rows:
    """A state's rows, numbered ``group * tokens + token``, at the positions of its tensor."""
    shape = [int(operand.tensor.shape[i]) for i in operand.order]
    heads = heads_of(operand, batch)
    lead = shape[:-3] if len(shape) > 3 else [layout.groups]
    axes = tuple((Factor(n, True),) if n != 1 else () for n in lead)
    head: tuple[Factor, ...] = (Factor(heads, False),) if heads != 1 else ()
    tokens: tuple[Factor, ...] = (Factor(shape[-2], True),) if shape[-2] != 1 else ()
    width: tuple[Factor, ...] = (Factor(shape[-1], False),) if shape[-1] != 1 else ()
    merged_axes: Axes = (*axes, head, tokens, width) if len(shape) > 3 else ((*axes[0], *head), tokens, width)
    rows = fresh(merged_axes)
    return permute(rows, [operand.order.index(i) for i in range(len(operand.order))])


def _link(rows: Rows, positions: int) -> Link:
    """Ids and positions where there is a row; tokens that are spread share a row's weight."""
    share = math.prod(f.share for axis in rows.axes for f in axis)
    ids = full(rows).flatten()
    if share == 1 and len(ids) == positions and is_identity(ids):
        return Link(ids, torch.arange(positions))
    where = (ids >= 0).nonzero().flatten()
    weight = torch.full((len(where),), 1 / share) if share > 1 else None
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
                weight = torch.zeros(unique.shape[1]).scatter_reduce(0, inverse, both, "amax")
            found[key] = Link(unique[0], unique[1], weight)


def _same(a: Link, b: Link) -> bool:
    return torch.equal(a.ids, b.ids) and torch.equal(a.rows, b.rows) and (a.weight is b.weight or torch.equal(_weights(a), _weights(b)))


def _weights(link: Link) -> Tensor:
    return torch.ones(len(link.ids)) if link.weight is None else link.weight


def _grid_of(source: _Source) -> tuple[int, int] | None:
    """Rows and columns, where a source has two kept axes beside the batch."""
    sizes = [n for n, keep in zip(source.shape, source.keep) if keep]
    if source.batch > 1 or (len(sizes) > 2 and sizes[0] == 1):
        sizes = sizes[1:]
    if len(sizes) == 2 and sizes[0] * sizes[1] == source.tokens:
        return sizes[0], sizes[1]
    return None
