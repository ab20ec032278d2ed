"""The walk back through autograd's graph: from rows of a tensor to the calls and sources that they come from.

Holds ``Walk``, which knows the graph of one pass (who reads each operation, what lies behind it), takes rows back through it
operation by operation (``operations.back``), and collects the sources that it meets. Every fork is followed once: where a
tensor is read by several operations, the links of the rows at it are remembered, so that the cost grows with the depth of
a model and not with the number of ways through it. What the sources are called is ``streams``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from zeroline.errors import TraceError
from zeroline.model.capture import Recording, Seen, Start
from zeroline.model.layouts import layout_of
from zeroline.model.links import Links, copied, distinct, link_of, merge
from zeroline.model.maps import heads_of
from zeroline.model.operations import LAST, MATRIX, Node, back, by_softmax, kind, live, shape_of
from zeroline.model.rows import Axes, Factor, Mixes, Rows, fresh, is_identity, permute, reshape, spread, unbroadcast

_LEAF = "torch::autograd::AccumulateGrad"
_CHECKPOINT = "CheckpointFunctionBackward"
REENTRANT = "the model uses re-entrant checkpointing, which hides its graph; load it without, or with use_reentrant=False"
_CALL, _INPUT, _LEARNED = 1, 2, 4


@dataclass(eq=False)
class Source:
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


class Walk:
    """Rows followed through one recorded pass. ``widened`` says that a source's positions were told apart more finely by a later state."""

    def __init__(self, recording: Recording, calls: list[Seen], batch: int) -> None:
        self.recording = recording
        self.calls = calls
        self.batch = batch
        self.sources: list[Source] = []
        self.widened = False
        self._below: dict[Node, int] = {}
        self._consumers: dict[Node, int] = {}
        self._inputs: dict[Node, frozenset[str]] = {}
        self._memo: dict[tuple[Node, int, Axes, bytes], Links] = {}
        self._source_at: dict[object, int] = {}
        self._outputs = {(s.output.edge.node, s.output.edge.output_nr): i for i, s in enumerate(calls) if s.output.edge is not None}
        self.visit([edge.node for s in calls for edge in (s.query.edge, s.key.edge, s.value.edge) if edge is not None])

    def forget(self) -> None:
        """Follow everything anew, with the sources as they are now."""
        self._memo.clear()
        self.widened = False

    def inputs_reached(self) -> set[str]:
        """The model inputs that lead anywhere."""
        return {name for names in self._inputs.values() for name in names}

    def follow(self, node: Node, number: int, rows: Rows, where: str) -> Links:
        """The links of rows at output ``number`` of ``node``; a TraceError that names the operation where they cannot be followed."""
        try:
            return self._resolve(node, number, rows)
        except Mixes as problem:
            if "NotImplemented" in str(problem):
                raise TraceError(f"cannot follow the tokens of {where}: an operation has no gradient ({problem}), as in quantised modules") from None
            raise TraceError(f"cannot follow the tokens of {where}: {problem} mixes or moves them outside attention") from None

    def alone(self, node: Node, number: int, rows: Rows) -> dict[int, int]:
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
                    lost = kind(node) not in MATRIX | LAST and any(_tagged(part) < _tagged(rows) for _, part in operands)
                    if lost and kind(node) in ("Cat", "Stack"):
                        for tag, size in self._disjoint(node, number, rows).items():
                            found[tag] = max(found.get(tag, 1), size)
                    elif lost:
                        _record(found, [axis for axis in rows.axes if _before_tokens(axis)])
                    for slot, part in operands:
                        following, output = node.next_functions[slot]
                        shape = _shape(following, output)
                        if following in self._below:
                            waiting.append((following, output, part if part.shape == shape else unbroadcast(part, shape)[0]))
                    continue
            _record(found, [axis for axis in ending if all(f.kept or f.tag is not None for f in axis)])
        return found

    def _disjoint(self, node: Node, number: int, rows: Rows) -> dict[int, int]:
        """Tags of the axes that ``cat`` or ``stack`` made, if each part comes from rows of its own: then they are groups."""
        apart = fresh(tuple(tuple(Factor(f.size, f.kept or f.tag is not None, f.live) for f in axis) for axis in rows.axes))
        tags = {f.tag: f.size for axis in rows.axes for f in axis if f.tag is not None}
        kept = [f for axis in rows.axes for f in axis if f.kept or f.tag is not None]
        try:
            links = self._resolve(node, number, apart)
        except Mixes:
            return {}
        found: dict[int, int] = {}
        for dimension, factor in enumerate(kept):
            if factor.tag is None:
                continue
            inner = math.prod(f.size for f in kept[dimension + 1 :])
            shared = False
            for link in links.values():
                pairs = torch.unique(torch.stack([link.rows, link.ids // inner % factor.size]), dim=1)
                shared = shared or distinct(pairs[0]) < pairs.shape[1]
            if not shared:
                found[factor.tag] = tags[factor.tag]
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
                merge(found, self._learned(following, output, part))
            elif part.shape == shape and len(part.axes) == len(shape):
                merge(found, self._resolve(following, output, part))
            else:
                few, copies = unbroadcast(part, shape)
                merge(found, copied(self._resolve(following, output, few), copies))
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
                merge(found, {("call", call): link_of(Rows((layer.axes[0], layer.axes[2]), layer.ids), layout.rows)})
        return found

    def _leaf(self, node: Node, rows: Rows) -> Links:
        start = self.recording.starts.get(id(node.variable))
        if start is None:
            return {}
        return self._source(start, node.variable, rows)

    def _stem(self, node: Node, number: int, rows: Rows) -> Links:
        """An operation that mixes positions, with nothing but inputs behind it: tokens begin at its output."""
        name = next(name for name in self.recording.arguments if name in self._inputs[node])
        return self._source(Start(name, name), (node, number), rows)

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
            number = self._source_at[key] = len(self.sources)
            usual = start.is_ids or (isinstance(owner, Tensor) and len(shape) == 3)  # [batch, tokens, width]
            first = tuple(usual and axis < len(shape) - 1 for axis in range(len(shape)))
            self.sources.append(Source(start, shape, first, owner, usual))
        source = self.sources[number]
        convolved = isinstance(owner, tuple) and owner[0] != "learned" and kind(owner[0]) == "Convolution"
        features = len(shape) - 1 if source.in_rows else 1 if convolved else None
        keep = tuple(keeps and axis != features for axis, keeps in enumerate(keep))  # a part of the features is no token
        wider = tuple(a or b for a, b in zip(source.keep, keep))
        if wider != source.keep and not source.numbered:
            source.keep, self.widened = wider, True
        layers = [rows]
        for axis, keeps in enumerate(source.keep):
            if not keeps:
                layers = [one for layer in layers for one in spread(layer, axis, op="leaf", copies=True)]
        found: Links = {}
        for layer in layers:
            kept = Rows(tuple(axis for axis, keeps in zip(layer.axes, source.keep) if keeps), layer.ids)
            merge(found, {("source", number): link_of(kept, source.positions)})
        return found

    def visit(self, roots: Iterable[Node]) -> None:
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


def _tagged(rows: Rows) -> int:
    return math.prod(f.size for axis in rows.axes for f in axis if f.tag is not None)


def _before_tokens(axis: tuple[Factor, ...]) -> bool:
    """Does a tagged factor stand before a kept one on the axis, as a window's number before its tokens?"""
    tagged = [i for i, f in enumerate(axis) if f.tag is not None]
    return bool(tagged) and any(f.kept for f in axis[tagged[0] + 1 :])


def _record(found: dict[int, int], axes: Iterable[tuple[Factor, ...]]) -> None:
    """Sizes of the tags on these axes, those of one tag multiplied; the largest that any way showed."""
    sizes: dict[int, int] = {}
    for axis in axes:
        for f in axis:
            if f.tag is not None:
                sizes[f.tag] = sizes.get(f.tag, 1) * f.size
    for tag, size in sizes.items():
        found[tag] = max(found.get(tag, 1), size)


def _shape(node: Node, number: int) -> tuple[int, ...]:
    return tuple(node.variable.shape) if node.name() == _LEAF else shape_of(node, number)


@contextmanager
def deep_recursion() -> Iterator[None]:
    """Chains of operations without a fork are followed by recursion: let them be long."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 100_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
