"""Seeing every attention of a forward pass: one mode that watches torch functions, none of the model's code touched.

Holds ``Seen`` (one attention computation: the tensors it read and wrote), ``Watch`` (the mode that finds them) and the
record of where streams start: float inputs, embedding look-ups and learned tokens are made to require a gradient for
the length of the pass, so that autograd draws the graph that ``rows`` and ``streams`` read.

An attention is ``scaled_dot_product_attention``, or a softmax over the last dimension whose result (through dropout,
casts, masks) is the left factor of a matrix product. ``nn.MultiheadAttention`` is one of the two inside.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from zeroline.errors import ModelStateError, TraceError
from zeroline.model.inputs import Inputs

FUSED, MULTIHEAD, WRITTEN = "fused kernel", "nn.MultiheadAttention", "hand-written softmax"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# functions through which scores stay scores and weights stay weights
_KEEPS = _words(
    "add add_ __add__ __radd__ __iadd__ sub __sub__ sub_ mul mul_ __mul__ __rmul__ __imul__ div div_ __truediv__ true_divide tanh dropout "
    "masked_fill masked_fill_ where to float half bfloat16 double type type_as clamp clamp_ clip maximum max contiguous nan_to_num "
    "view reshape unflatten flatten squeeze unsqueeze clone feature_alpha_dropout __getitem__ narrow cat concat"
)
_RESIZES = _words("__getitem__ narrow cat concat")  # an attention sink is put beside the scores and taken off the weights
_TURNS = _words("transpose permute t swapaxes movedim adjoint")
_PRODUCTS = _words("matmul __matmul__ bmm baddbmm einsum")
# functions that take a parameter as data (a class token, learned queries), not as a weight
_TAKES_TOKENS = _words(
    "expand expand_as cat concat repeat tile unsqueeze view reshape broadcast_to __getitem__ clone stack flatten permute transpose "
    "repeat_interleave to type_as type contiguous split chunk narrow unbind select index_select swapaxes movedim tensor_split"
)
_TAKES_TOKENS_FIRST = _words("layer_norm linear dropout rms_norm mul __mul__ matmul __matmul__ bmm normalize")
_ADDS = _words("add __add__ __radd__")
# functions that move ids but make no new ones: what they give is still the input's (shifted decoder ids, say)
_MOVES_IDS = _words(
    "clone to long int view reshape __getitem__ cat contiguous masked_fill masked_fill_ where expand squeeze unsqueeze clamp clip pad roll "
    "flatten detach flip transpose permute index_select gather repeat repeat_interleave type t swapaxes movedim narrow split chunk unbind stack "
    "add sub __add__ __sub__ __radd__ __get__"
)


@dataclass(frozen=True)
class Operand:
    """A tensor that an attention reads or writes, with the order of its axes that makes it [..., heads, tokens, width]."""

    tensor: Tensor
    order: tuple[int, ...]
    edge: GradientEdge | None = None  # where it came from when it was seen; the model may write on it later
    heads: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, ordered."""
        return tuple(int(self.tensor.shape[i]) for i in self.order)

    @property
    def ordered(self) -> Tensor:
        """The tensor as [..., heads, tokens, width]; without a graph."""
        return self.tensor.detach().permute(self.order)


def operand(tensor: Tensor, order: tuple[int, ...] | None = None) -> Operand:
    """A tensor as it is now, with its place in the graph."""
    edge = get_gradient_edge(tensor) if tensor.requires_grad else None
    return Operand(tensor, tuple(range(tensor.ndim)) if order is None else order, edge)


@dataclass(frozen=True)
class Seen:
    """One attention computation. ``weights`` is kept where the model made a map itself; a fused kernel leaves None.

    ``mask`` is the additive or Boolean mask of a fused kernel; ``scale`` its factor; None where the model's own map is kept.
    """

    path: str
    index: int
    how: str
    query: Operand
    key: Operand
    value: Operand
    output: Operand
    weights: Operand | None = None
    mask: Tensor | None = None
    causal: bool = False
    scale: float | None = None


@dataclass(frozen=True)
class Start:
    """Where a stream starts: ``input`` is a model input's name, or None where it is a parameter (``name`` then)."""

    name: str
    input: str | None
    ids: Tensor | None = None

    @property
    def is_ids(self) -> bool:
        """Does it start at an embedding look-up?"""
        return self.ids is not None


@dataclass
class Recording:
    """What one pass left: the model's output, its attentions, and the leaves of its graph by ``id``."""

    output: Any = None
    seen: list[Seen] = field(default_factory=list)
    starts: dict[int, Start] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()  # the model's inputs, in its own order
    leaves: list[Tensor] = field(default_factory=list)  # kept alive: ``starts`` knows them by id


Replace = Callable[[Seen, Tensor], Tensor]
_active: list[Watch] = []


@dataclass(frozen=True)
class _Scores:
    query: Operand
    key: Operand
    reshaped: bool = False


@dataclass(frozen=True)
class _Weights:
    scores: _Scores | None


@dataclass(frozen=True)
class _Turned:
    """Weights transposed: what they multiply cannot be followed."""


class Watch(TorchFunctionMode):
    """The mode. ``changed(seen, output)`` may give another output for an attention (the do-operator on its map).

    After the call ``last`` (path, index) it looks no further: what comes then runs as if nobody watched.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        recording: Recording,
        *,
        graph: bool,
        changed: Replace | None = None,
        last: tuple[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.last, self.asleep = last, False
        self.recording = recording
        self.graph = graph
        self.replace = changed
        layers = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.LayerNorm)
        modules = list(model.modules()) if graph else []  # what follows tells where streams start, which a pass without a graph does not ask
        self.parameters = {id(p): name for name, p in model.named_parameters()} if graph else {}
        self.weights = {id(p) for module in modules if isinstance(module, layers) for p in module.parameters(recurse=False)}
        self.opened: list[nn.Parameter] = []
        self.batch = inputs.batch
        self.stack: list[str] = [""]
        self.counts: dict[str, int] = {}
        self.how: str | None = None
        self.tags: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.derived: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for name, tensor in inputs.tensors.items():
            self.derived[tensor] = name

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if self.asleep:
            return func(*args, **(kwargs or {}))
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if _active[-1] is not self:
            return func(*args, **kwargs)  # another pass runs inside this one (a trace in a hook): its calls are its own
        if func is F.multi_head_attention_forward and self.how is None:
            return self._inside_multi_head(func, args, kwargs)
        if self.graph:
            self._open_tokens(name, args)
        if func is F.scaled_dot_product_attention:
            return self._fused(func, args, kwargs)
        out = func(*args, **kwargs)
        if name == "__setitem__" and isinstance(args[2], Tensor) and (moved := _get(self.derived, args[2])) is not None:
            self.derived[args[0]] = moved
        counts = self.recording.functions
        counts[name] = counts.get(name, 0) + 1
        if name in _MOVES_IDS:
            for one in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(one, Tensor) and not one.is_floating_point():
                    self._derive(one, args)
        if not isinstance(out, Tensor):
            return out
        if func is F.embedding and self.graph and out.is_floating_point():
            return self._start_at_embedding(out, args, kwargs)
        return self._follow(name, out, args, kwargs)

    def _inside_multi_head(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the body of ``multi_head_attention_forward`` under the mode.

        The body starts by handing itself to any mode; with that one question answered "no" for the length of
        the call, it runs as written and the softmax or the kernel in it is seen like any other. The question is asked by
        a function of PyTorch's module, so that two threads must not trace at once.
        """
        asks = F.__dict__["has_torch_function"]
        self.how = MULTIHEAD
        try:
            F.__dict__["has_torch_function"] = lambda _: False
            with self:
                return func(*args, **kwargs)
        finally:
            F.__dict__["has_torch_function"] = asks
            self.how = None

    def _tag(self, tensor: Tensor) -> Any:
        return _get(self.tags, tensor)

    def _fused(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args)), **kwargs}
        if given.get("dropout_p"):
            raise ModelStateError(f"attention in {self.stack[-1]!r} drops out at random (p={given['dropout_p']:g}); call model.eval() first")
        mask = given.get("attn_mask")
        if mask is not None and type(mask) is not Tensor and hasattr(mask, "_materialize"):
            mask = mask._materialize(given["query"].device)  # torch.nn.attention.bias.CausalBias
        if mask is not None and mask.requires_grad and not self._from_inputs(mask):
            given["attn_mask"] = mask = mask.detach()  # else another kernel would run than without us
        query, key, value = given["query"], given["key"], given["value"]
        out = func(**given)
        scale = given.get("scale")
        scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
        return self._saw(
            out,
            self.how or FUSED,
            operand(query),
            operand(key),
            operand(value),
            mask=None if mask is None else mask.detach(),
            causal=bool(given.get("is_causal")),
            scale=scale,
        )

    def _saw(self, out: Tensor, how: str, query: Operand, key: Operand, value: Operand, order: tuple[int, ...] | None = None, **more: Any) -> Tensor:
        path = self.stack[-1]
        index = self.counts.get(path, 0)
        self.counts[path] = index + 1
        output = operand(out, order)
        lead = output.shape[:-2]
        if len(lead) == 0:
            raise TraceError(f"the attention in {path!r} has no batch axis: its output is {tuple(out.shape)}")
        query, key, value = (_led(part, lead) for part in (query, key, value))
        seen = Seen(path, index, how, query, key, value, output, **more)
        if self.replace is not None:
            changed = self.replace(seen, out)
            if changed is not out:
                out, seen = changed, replace(seen, output=operand(changed, order))
        self.recording.seen.append(seen)
        self.asleep = self.last == (path, index)
        return out

    def _follow(self, name: str, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Scores, weights and their product, in attention that is written out."""
        if name in _PRODUCTS:
            return self._product(name, out, _positional(name, args, kwargs))
        first = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("input")
        if name in _TURNS and isinstance(first, Tensor) and isinstance(self._tag(first), _Weights):
            self.tags[out] = _Turned()
        elif name in ("softmax", "_softmax", "special_softmax"):
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            if isinstance(first, Tensor) and out.ndim >= 3 and dim in (-1, out.ndim - 1):
                tag = _get(self.tags, first)
                self.tags[out] = _Weights(tag if isinstance(tag, _Scores) else None)
        elif name in _KEEPS:
            given = args[0] if args and isinstance(args[0], (list, tuple)) else args[:3]
            tagged = [t for t in given if isinstance(t, Tensor) and t in self.tags and (name in _RESIZES or t.numel() == out.numel())]
            if tagged and not isinstance(self._tag(tagged[0]), _Turned):
                direct = [t for t in tagged if not getattr(self._tag(t), "reshaped", False)]
                tag = self._tag((direct or tagged)[0])
                shaped = isinstance(tag, _Scores) and out.shape != (direct or tagged)[0].shape and name not in _RESIZES
                self.tags[out] = replace(tag, reshaped=True) if shaped else tag
        return out

    def _product(self, name: str, out: Tensor, args: tuple[Any, ...]) -> Tensor:
        if name == "einsum":
            equation, operands = args[0], args[1] if isinstance(args[1], (list, tuple)) else args[1:]
            if len(operands) != 2 or not isinstance(equation, str) or "." in equation:
                return out
            (left, right), letters = operands, re.split(r",|->", equation.replace(" ", ""))
            if len(letters) != 3:
                return out
        else:
            left, right = args[1:3] if name == "baddbmm" else args[:2]
            letters = None
        tag = _get(self.tags, left)
        if isinstance(tag, _Weights):
            return self._written(tag, left, right, out, letters)
        if isinstance(_get(self.tags, right), (_Weights, _Turned)) or isinstance(tag, _Turned):
            raise TraceError(
                f"the attention in {self.stack[-1]!r} multiplies by its weights from the right, or transposed ({name});"
                " zeroline follows weights @ values"
            )
        if out.ndim >= 3 and right.ndim >= 3:
            scores = self._scores(left, right, letters)
            if scores is not None:
                self.tags[out] = scores
        return out

    def _scores(self, left: Tensor, right: Tensor, letters: list[str] | None) -> _Scores | None:
        if letters is None:
            order = (*range(right.ndim - 2), right.ndim - 1, right.ndim - 2)
            return _Scores(operand(left, tuple(range(left.ndim))), operand(right, order))
        q, k, out = letters
        width = next((c for c in q if c in k and c not in out), q[-1])
        lead, query, key = out[:-2], out[-2], out[-1]
        if sorted(q) != sorted(lead + query + width) or sorted(k) != sorted(lead + key + width):
            return None  # some other product: relative positions, say
        return _Scores(operand(left, _order(q, lead + query + width)), operand(right, _order(k, lead + key + width)))

    def _written(self, tag: _Weights, left: Tensor, right: Tensor, out: Tensor, letters: list[str] | None) -> Tensor:
        if tag.scores is None:
            raise TraceError(f"the softmax in {self.stack[-1]!r} is attention, but no matrix product of queries and keys leads to it")
        scores = tag.scores
        plain = tuple(range(left.ndim))
        if letters is None:
            weights, value, order = operand(left, plain), operand(right, tuple(range(right.ndim))), tuple(range(out.ndim))
        else:
            a, v, o = letters
            width = next((c for c in v if c in o and c not in a), v[-1])
            key = next((c for c in a if c in v and c not in o), a[-1])
            query = next((c for c in reversed(a) if c != key and c not in v), a[-2])
            lead = "".join(c for c in a if c not in (query, key))
            weights, value = operand(left, _order(a, lead + query + key)), operand(right, _order(v, lead + key + width))
            order = _order(o, lead + query + width)
        return self._saw(out, self.how or WRITTEN, scores.query, scores.key, value, order, weights=weights)

    def _start_at_embedding(self, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        ids = args[0] if args else kwargs["input"]
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        name = _get(self.derived, ids)
        table = self.parameters.get(id(weight), "embedding")
        return self._leaf(out, Start(name or table, name, ids.detach()))

    def _leaf(self, tensor: Tensor, start: Start) -> Tensor:
        """A copy that the model may write on, whose graph ends in a leaf that we know."""
        leaf = tensor.detach().requires_grad_()
        self.recording.starts[id(leaf)] = start
        self.recording.leaves.append(leaf)
        return leaf.clone()

    def open_input(self, name: str, tensor: Tensor) -> Tensor:
        """A float input as a leaf of the graph."""
        opened = self._leaf(tensor, Start(name, name))
        self.derived[opened] = name
        return opened

    def _open_tokens(self, name: str, args: tuple[Any, ...]) -> None:
        """Parameters that are used as tokens require a gradient from here on, so that their rows have a source."""
        if name in _TAKES_TOKENS:
            given: Iterable[Any] = args[0] if args and isinstance(args[0], (list, tuple)) else args[:1]
        elif name in _TAKES_TOKENS_FIRST:
            given = [a for a in args[:1] if isinstance(a, Tensor) and a.ndim >= 2]
        elif name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
            given = args[:3]
        elif name in _ADDS:
            given = [a for a in args[:2] if isinstance(a, Tensor) and a.ndim >= 2]
        else:
            return
        for tensor in given:
            parameter = self.parameters.get(id(tensor)) if isinstance(tensor, Tensor) else None
            if id(tensor) in self.weights:
                continue  # a layer's own weight, cut in parts or turned on its way into a product
            if parameter is not None and not tensor.requires_grad and tensor.is_floating_point():
                tensor.requires_grad_(True)
                self.opened.append(tensor)
                self.recording.starts[id(tensor)] = Start(parameter, None)

    def _derive(self, out: Tensor, args: tuple[Any, ...]) -> None:
        """Integers moved from an integer input keep its name: shifted ids are the decoder's stream."""
        for tensor in args[0] if args and isinstance(args[0], (list, tuple)) else args:
            if isinstance(tensor, Tensor) and (found := _get(self.derived, tensor)) is not None:
                self.derived[out] = found
                return

    def _from_inputs(self, mask: Tensor) -> bool:
        """Does a mask depend on the inputs' content, and not on parameters (a position bias) alone?"""
        seen: set[Any] = set()
        waiting = [mask.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            start = self.recording.starts.get(id(node.variable)) if hasattr(node, "variable") else None
            if start is not None and start.input is not None:
                return True
            waiting += [n for n, _ in node.next_functions]
        return False


@contextmanager
def watched(
    model: nn.Module,
    inputs: Inputs,
    *,
    graph: bool = True,
    replace_output: Replace | None = None,
    values: Mapping[str, Any] | None = None,
    last: tuple[str, int] | None = None,
    paths: bool = True,
) -> Iterator[Recording]:
    """Run ``model(...)`` under the mode; inside the block the recording is there, after it everything is put back.

    With ``last`` (path, index) only that call is told apart from others, and nothing after it is seen; without ``paths`` no call says where it is.
    """
    recording = Recording(arguments=in_order(model, inputs))
    inputs = inputs.with_values({name: tensor.clone() for name, tensor in inputs.tensors.items()})  # the model may write on what it gets
    names = {id(module): name for name, module in reversed(list(model.named_modules()))}
    watch = Watch(model, inputs, recording, graph=graph, changed=replace_output, last=last)
    with ExitStack() as stack:
        stack.callback(lambda: [p.requires_grad_(False) for p in watch.opened])

        def enter(module: nn.Module, _: Any) -> None:
            watch.stack.append(names[id(module)])

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            watch.stack.pop()

        known = model if last is None or not last[0] else model.get_submodule(last[0])  # where else a call is does not matter then
        for module in known.modules() if paths else ():
            stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        opened = {
            n: watch.open_input(n, t) for n, t in inputs.tensors.items() if graph and t.is_floating_point() and t.ndim and not n.endswith("mask")
        }
        _active.append(watch)
        stack.callback(_active.remove, watch)
        with watch:
            recording.output = inputs.with_values({**opened, **(values or {})}).call(model)
        yield recording


def _positional(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The operands of a product by position, however they were given."""
    names = {"baddbmm": ("input", "batch1", "batch2"), "einsum": ()}.get(name, ("input", "mat2"))
    more = [kwargs[n] if n in kwargs else kwargs.get("other") for n in names[len(args) :]]
    return (*args, *more)


def in_order(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """The names of the inputs in the order of ``forward``'s parameters."""
    known = list(inspect.signature(model.forward).parameters)
    return tuple(sorted(inputs.named, key=lambda name: known.index(name) if name in known else len(known)))


def _led(part: Operand, lead: tuple[int, ...]) -> Operand:
    """Queries, keys or values without a batch axis (learned queries), or with one of size 1, spread over that of the output."""
    own = part.shape[:-2]
    wanted = (*lead[: len(lead) - len(own)], *(n if size == 1 else size for size, n in zip(own, lead[len(lead) - len(own) :])))
    if own == wanted:
        return part
    return operand(part.tensor.permute(part.order).expand(*wanted, *part.shape[-2:]))


def _order(letters: str, wanted: str) -> tuple[int, ...]:
    """The permutation that brings axes named ``letters`` into the order ``wanted``."""
    if sorted(letters) != sorted(wanted):
        raise TraceError(f"an einsum over axes {letters!r} is no attention that zeroline knows (expected {wanted!r} in some order)")
    return tuple(letters.index(c) for c in wanted)


def _get(known: WeakIdKeyDictionary, tensor: Tensor) -> Any:
    return known.get(tensor)  # type: ignore[no-untyped-call]
