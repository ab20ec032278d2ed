"""Every attention of a forward pass and the graph between them: the tracer.

Holds ``trace`` and its record (``Trace``, ``Call``), and ``followed``, the block in which methods have the live tensors.
Seeing is ``capture``, following tokens is ``rows`` and ``streams``; here is what one asks of them, and the errors where a
model hides its attention.
"""

from __future__ import annotations

import json
import operator
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import ModelStateError, NotFoundError, TraceError
from zeroline.maths.attention import Maps
from zeroline.model import identity
from zeroline.model.capture import Recording, Replace, Seen, watched
from zeroline.model.inputs import Inputs
from zeroline.model.layouts import layout_of
from zeroline.model.maps import four, heads_of, maps_of, name_of
from zeroline.model.operations import Node
from zeroline.model.state import untouched
from zeroline.model.streams import Graph, Stream
from zeroline.model.walk import REENTRANT

HOMOGENOUS, HETEROGENOUS = "homogenous", "heterogenous"


@dataclass(frozen=True)
class Call:
    """One attention. ``queries`` and ``keys`` name the streams (joined by " + "); ``feeds_from`` numbers earlier calls."""

    number: int
    path: str
    index: int
    how: str
    heads: int
    key_heads: int
    query_length: int
    key_length: int
    mask: str
    scale: float | None
    queries: str
    keys: str
    kind: str
    feeds_from: tuple[int, ...]

    @property
    def name(self) -> str:
        """``path``, or ``path#index`` for a module's later calls."""
        return (self.path or "the model") + (f"#{self.index}" if self.index else "")


@dataclass(frozen=True)
class Trace:
    """The calls of one forward pass in order, and the streams between which they run.

    ``fast_path_difference`` is the largest difference between the model's own output with PyTorch's fused encoder path on
    and off, padded rows left out; None where the model has no such path.
    """

    calls: tuple[Call, ...]
    streams: tuple[Stream, ...]
    model_class: str
    versions: Mapping[str, str]
    fast_path_difference: float | None = None

    def __len__(self) -> int:
        return len(self.calls)

    def rows(self) -> list[tuple[str, ...]]:
        """The table: one row of strings per call, below ``HEAD``."""
        return [
            (
                str(c.number),
                c.name,
                c.how,
                str(c.heads) if c.heads == c.key_heads else f"{c.heads} (keys {c.key_heads})",
                f"{c.query_length} x {c.key_length}",
                c.mask,
                "" if c.scale is None else f"{c.scale:.4g}",
                c.queries if c.queries == c.keys else f"{c.queries} over {c.keys}",
                c.kind,
                _ranges(c.feeds_from),
            )
            for c in self.calls
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "model": self.model_class,
            "calls": [{**asdict(call), "feeds_from": list(call.feeds_from)} for call in self.calls],
            "streams": [asdict(stream) for stream in self.streams],
            "fast_path_difference": self.fast_path_difference,
            "versions": dict(self.versions),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The record as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart: streams and calls, an edge per direct feed (those through other calls left out)."""
        lines = ["flowchart LR"]
        ids = {stream.name: f"s{i}" for i, stream in enumerate(self.streams)}
        lines += [f'  {ids[s.name]}(["{s.name} ({s.tokens})"])' for s in self.streams]
        for call in self.calls:
            shape = "{{" + f'"{call.name}"' + "}}" if call.kind == HETEROGENOUS else f'["{call.name}"]'
            lines.append(f"  c{call.number}{shape}")
        reached: dict[int, set[int]] = {}
        for call in self.calls:
            reached[call.number] = set(call.feeds_from).union(*(reached[i] for i in call.feeds_from))
            direct = [i for i in call.feeds_from if not any(i in reached[j] for j in call.feeds_from)]
            lines += [f"  c{i} --> c{call.number}" for i in direct]
            if not direct:
                names = dict.fromkeys([*call.queries.split(" + "), *call.keys.split(" + ")])
                lines += [f"  {ids[name]} --> c{call.number}" for name in names if name in ids]
        return "\n".join(lines)

    def __repr__(self) -> str:
        table = [HEAD, *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
        return "\n".join([f"Trace of {self.model_class}: {len(self.calls)} attention calls", *lines])

    def _repr_html_(self) -> str:
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows())
        return f"<table><tr>{''.join(f'<th>{name}</th>' for name in HEAD)}</tr>{body}</table>"


HEAD = ("", "module", "how", "heads", "tokens", "mask", "scale", "streams", "kind", "feeds from")


@dataclass(frozen=True)
class Followed:
    """A pass whose graph is alive: for methods, inside ``followed``."""

    model: nn.Module
    inputs: Inputs
    recording: Recording
    graph: Graph
    fast_path_difference: float | None

    def calls(self) -> tuple[Call, ...]:
        """The record of every call."""
        return tuple(_call(self.graph, number) for number in range(len(self.graph.calls)))

    def maps(self, number: int, output_gradient: Tensor | None = None) -> Maps:
        """A call's tensors as [groups, heads, tokens, width]."""
        return maps_of(self.graph.calls[number], self.inputs.batch, output_gradient)


def trace(model: nn.Module, inputs: Any) -> Trace:
    """All attention calls of one forward pass, what they attend from and to, and which feed which.

    Args:
        model: any module; unmodified, its outputs bit for bit those that it gives in evaluation mode with gradients on.
        inputs: a tensor, a tuple, or a dict passed as keyword arguments; batch first.

    Returns:
        A ``Trace``: prints as a table, ``to_json()``, ``to_mermaid()``. A stream carries the name of the model input that it
        starts from, or of the parameter that holds its learned tokens. A call is *homogenous* where its queries and keys
        come from the same streams and *heterogenous* where they do not.

    Raises:
        TraceError: the model has no attention, hides it (compiled, scripted, quantised, run outside torch functions), or
            moves its tokens by an operation that cannot be followed; the message names it.
        ModelStateError: training mode with dropout.
        InputError: inputs that hold no tensor, or are on another device.
    """
    with followed(model, inputs) as found:
        graph = found.graph
        streams = tuple(graph.streams.values())
        return Trace(found.calls(), streams, identity.model_class(model), identity.versions(), found.fast_path_difference)


@contextmanager
def followed(model: nn.Module, inputs: Any, replace_output: Replace | None = None) -> Iterator[Followed]:
    """Run the model once, watched, and read its graph; inside the block the tensors live, after it all is put back.

    ``replace_output(seen, output)`` may put another output in an attention's place: it is then another model that is followed.
    """
    fast = _fast_output(model, inputs)
    with untouched(model):
        _refuse_hidden(model)
        wanted = Inputs.of(model, inputs)
        with watched(model, wanted, replace_output=replace_output) as recording:
            if not recording.seen:
                raise TraceError(_nothing_seen(model, recording))
            _refuse_unseen(recording)
            graph = Graph(recording, wanted)
            for number, states in enumerate(graph.states):
                if not graph.names(states["query"]) or not graph.names(states["key"]):
                    part = "keys" if graph.names(states["query"]) else "queries"
                    if any(node.name().startswith("CheckpointFunctionBackward") for node in _nodes(recording)):
                        raise TraceError(REENTRANT)
                    why = "the model computes them without gradients (torch.no_grad, detach, quantised layers)"
                    raise TraceError(f"nothing leads to the {part} of {name_of(graph.calls[number])}: {why}, or from constants")
            if lost := graph.lost():
                raise TraceError(f"tokens come from nowhere, and input {lost[0]!r} reaches no attention: the model computes it under no_grad")
            difference = None if fast is None else _difference(fast, recording.output, wanted)
            yield Followed(model, wanted, recording, graph, difference)


def chosen(calls: tuple[Call, ...], selection: Any) -> list[int]:
    """Numbers of the calls that a selection means: "all", a number, a name with ``*``, or several of these."""
    if isinstance(selection, str) and selection == "all":
        return list(range(len(calls)))
    if isinstance(selection, bool):
        raise NotFoundError(f"no call {selection!r}; calls are numbers, names or 'all'")
    if hasattr(selection, "__index__") and not isinstance(selection, Tensor):
        selection = operator.index(selection)
        if not -len(calls) <= selection < len(calls):
            nearest = len(calls) - 1 if selection > 0 else 0
            raise NotFoundError(f"no call {selection}; the model has {len(calls)} (0 to {len(calls) - 1}); nearest: {nearest}, {calls[nearest].name}")
        return [selection % len(calls)]
    if isinstance(selection, str):
        from fnmatch import fnmatchcase

        if re.fullmatch(r"-?\d+(\s*,\s*-?\d+)*", selection.strip()):
            return chosen(calls, [int(number) for number in selection.split(",")])
        found = [c.number for c in calls if fnmatchcase(c.name, selection) or c.path == selection]
        if not found:
            raise NotFoundError.among("call", selection, [c.name for c in calls], "see `zeroline trace MODEL`")
        return found
    if isinstance(selection, (list, tuple, range, slice)):
        each = range(len(calls))[selection] if isinstance(selection, slice) else selection
        found = sorted({number for one in each for number in chosen(calls, one)})
        if not found:
            raise NotFoundError("a selection of no calls was asked; give numbers, names or 'all'")
        return found
    raise NotFoundError(f"calls are 'all', a number, a name or a list of them, not {type(selection).__name__}")


def _call(graph: Graph, number: int) -> Call:
    seen, states = graph.calls[number], graph.states[number]
    queries, keys = graph.names(states["query"]), graph.names(states["key"])
    feeds = sorted({call for state in states.values() for call in state.from_calls})
    heads = heads_of(seen.query, graph.batch)
    return Call(
        number=number,
        path=seen.path,
        index=seen.index,
        how=seen.how,
        heads=heads,
        key_heads=_key_heads(four(seen.key, graph.batch), heads),
        query_length=layout_of(seen.query, graph.batch).tokens,
        key_length=layout_of(seen.key, graph.batch).tokens,
        mask=_mask_words(seen),
        scale=seen.scale,
        queries=" + ".join(queries),
        keys=" + ".join(keys),
        kind=HOMOGENOUS if set(queries) == set(keys) else HETEROGENOUS,
        feeds_from=tuple(feeds),
    )


def _mask_words(seen: Seen) -> str:
    if seen.weights is not None:
        return "in the map"
    words = ["causal"] if seen.causal else []
    if seen.mask is not None:
        words.append(f"{'Boolean' if seen.mask.dtype == torch.bool else 'additive'} {tuple(seen.mask.shape)}")
    return ", ".join(words) or "none"


def _key_heads(key: Tensor, heads: int) -> int:
    """Key/value groups: fewer key heads than query heads, or heads that were repeated before the call."""
    if key.shape[1] < heads or heads == 1 or not bool(key[0, :, 0].any()):
        return int(key.shape[1])
    probe = key[0][:, [0, -1]].flatten(1)
    new = int((probe[1:] != probe[:-1]).any(1).sum()) + 1
    repeats = heads // new if heads % new == 0 else 1
    return new if repeats > 1 and torch.equal(probe[::repeats].repeat_interleave(repeats, 0), probe) else heads


def _refuse_hidden(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"{name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(f"{where} is scripted (torch.jit), which hides its attention; trace the original module")
        if isinstance(module, torch._dynamo.eval_frame.OptimizedModule) or getattr(module, "_compiled_call_impl", None) is not None:
            raise TraceError(f"{where} is compiled (torch.compile), which hides its attention; trace the original module (model._orig_mod)")


def _nothing_seen(model: nn.Module, recording: Recording) -> str:
    modules = [(name, type(m)) for name, m in model.named_modules()]
    quantised = [f"{n} ({c.__name__})" for n, c in modules if "quantized" in c.__module__ or c.__name__.startswith(("Linear8bit", "Linear4bit"))]
    named = [f"{name} ({kind.__name__})" for name, kind in modules if re.search("(?<!fl)atten|attn", kind.__name__.lower())]
    most = sorted(recording.functions, key=lambda f: -recording.functions[f])[:6]
    seen = f"{sum(recording.functions.values())} torch functions ran ({', '.join(most) or 'none'}), none of them attention"
    if quantised:
        return f"no attention was seen: {seen}; quantised modules hide it: {', '.join(quantised[:4])}; trace the model in floating point"
    if named:
        return f"no attention was seen, though modules are named so: {', '.join(named[:4])}; {seen}; it ran outside torch functions (a custom kernel)"
    return f"the model has no attention: {seen}; for other models use zl.integrated_gradients or the CAM family at a site"


def _refuse_unseen(recording: Recording) -> None:
    """Attention kernels in the graph that no torch function announced."""
    known: set[Node] = set()
    for seen in recording.seen:
        near = [None if seen.output.edge is None else seen.output.edge.node]
        for _ in range(4):
            known.update(n for n in near if n is not None)
            near = [f for n in near if n is not None for f, _ in n.next_functions]
    for node in _nodes(recording):
        if node not in known and any(word in node.name().lower() for word in ("attention", "attn")):
            raise TraceError(f"an attention ran outside torch functions: {node.name()} is in the graph and no call announced it")


def _nodes(recording: Recording) -> Iterator[Node]:
    """Every operation in the graph of the output."""
    visited: set[Node] = set()
    waiting = [t.grad_fn for t in _tensors(recording.output)]
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        yield node
        waiting += [f for f, _ in node.next_functions]


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in _tensors(value)]
    return [t for value in output for t in _tensors(value)] if isinstance(output, (tuple, list)) else []


def _fast_output(model: nn.Module, inputs: Any) -> Any | None:
    """The model's output as PyTorch gives it without us, where it has a fused encoder path of its own."""
    if not isinstance(model, nn.Module):
        raise ModelStateError(f"a model is a torch.nn.Module, not {type(model).__name__}")
    kinds = (nn.TransformerEncoder, nn.TransformerEncoderLayer)
    if not torch.backends.mha.get_fastpath_enabled() or model.training or not any(isinstance(m, kinds) for m in model.modules()):
        return None
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nested tensors; nobody asked for this pass
        wanted = Inputs.of(model, inputs)
        return wanted.with_values({name: tensor.clone() for name, tensor in wanted.tensors.items()}).call(model)


def _difference(fast: Any, output: Any, inputs: Inputs) -> float:
    """Largest difference of two outputs, rows that a Boolean padding mask covers left out."""
    worst = 0.0
    for a, b in zip(_tensors(fast), _tensors(output)):
        if a.shape != b.shape or not a.is_floating_point():
            continue
        apart = (a.detach() - b.detach()).abs().double()
        for mask in inputs.tensors.values():
            if mask.dtype == torch.bool and mask.shape == apart.shape[:2]:
                apart = apart[~mask]
        worst = max(worst, float(apart.max()) if apart.numel() else 0.0)
    return worst


def _ranges(numbers: tuple[int, ...]) -> str:
    """0, 1, 2, 5 -> "0-2, 5"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
