"""Where the rows of a tensor come from: token positions followed back through the operations of the autograd graph.

Holds ``Rows`` (which row of a state each position of a tensor belongs to, or none) and ``back``, which takes it through
one operation. An axis of a tensor is a product of *factors*; a factor is kept (positions along it belong to different
rows) or spread (they all belong to the same: features, heads). Linear layers, norms and pointwise functions act on
features and keep rows; reshapes, slices, permutations and concatenations move them; an operation that mixes rows outside
attention cannot be followed. It knows nothing of attention and of streams: that is ``streams``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

NONE = -1
_MOST_LAYERS = 64
Shape = tuple[int, ...]
Node = Any  # torch.autograd.graph.Node; its saved attributes are not typed


class Mixes(Exception):
    """An operation mixes rows, or is not known: its name."""


@dataclass(frozen=True)
class Factor:
    """A factor of an axis: its size, and whether positions along it are told apart.

    A spread factor may be ``live`` at some positions only: a row of x[:, 0] is position 0 of that axis of x, no other.
    """

    size: int
    kept: bool
    live: tuple[int, ...] | None = None

    @property
    def share(self) -> int:
        """How many positions one row has along it."""
        return 1 if self.kept else self.size if self.live is None else len(self.live)


Axes = tuple[tuple[Factor, ...], ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """``ids``: int64, one dimension per kept factor in order; the state's row at each position, or -1."""

    axes: Axes
    ids: Tensor

    @property
    def shape(self) -> Shape:
        """The shape of the tensor."""
        return tuple(math.prod(f.size for f in axis) for axis in self.axes)

    def kept_of(self, axis: int) -> int:
        """How many kept factors an axis has."""
        return sum(f.kept for f in self.axes[axis])

    def first_kept(self, axis: int) -> int:
        """The dimension of ``ids`` where an axis' kept factors begin."""
        return sum(self.kept_of(a) for a in range(axis))


def fresh(axes: Axes) -> Rows:
    """Every kept position is its own row, numbered in order."""
    sizes = [f.size for axis in axes for f in axis if f.kept]
    return Rows(axes, torch.arange(math.prod(sizes)).reshape(sizes))


def whole(shape: Sequence[int], kept: Sequence[bool]) -> Axes:
    """One factor per axis."""
    return tuple((Factor(size, keep),) if size != 1 or keep else () for size, keep in zip(shape, kept))


def is_identity(ids: Tensor) -> bool:
    """Are the ids 0, 1, 2, ... in order?"""
    return bool((ids.flatten() == torch.arange(ids.numel())).all())


# --- what operations do to rows -----------------------------------------------------------------------------------


def reshape(rows: Rows, target: Shape) -> Rows:
    """The rows of a tensor that was reshaped from ``target``: factors are cut where the new axes begin."""
    if rows.shape == target:
        return rows
    waiting = [f for axis in rows.axes for f in axis if f.size != 1]
    axes: list[tuple[Factor, ...]] = []
    for size in target:
        axis: list[Factor] = []
        room = size
        while room > 1:
            factor = waiting.pop(0)
            if factor.size > room:
                if factor.size % room or factor.live is not None:
                    return _every_position(rows, target)
                waiting.insert(0, Factor(factor.size // room, factor.kept))
                factor = Factor(room, factor.kept)
            elif room % factor.size:
                return _every_position(rows, target)
            axis.append(factor)
            room //= factor.size
        axes.append(tuple(axis))
    return Rows(tuple(axes), rows.ids.reshape([f.size for axis in axes for f in axis if f.kept]))


def _every_position(rows: Rows, target: Shape) -> Rows:
    """Where factors and new axes do not divide each other: every position told apart."""
    return Rows(tuple((Factor(n, True),) for n in target), full(rows).reshape(target))


def full(rows: Rows) -> Tensor:
    """``ids`` for every position of the tensor."""
    factors = [f for axis in rows.axes for f in axis]
    ids = rows.ids.reshape([f.size if f.kept else 1 for f in factors]).expand([f.size for f in factors])
    return _only_live(ids, factors, 0).reshape(rows.shape)


def _only_live(ids: Tensor, factors: Sequence[Factor], first: int) -> Tensor:
    """-1 at the positions where a factor is not live; dimension ``first + i`` of ids is ``factors[i]``."""
    for dimension, factor in enumerate(factors, first):
        if factor.live is not None:
            live = torch.zeros(factor.size, dtype=torch.bool)
            live[list(factor.live)] = True
            ids = ids.where(live.view(-1, *[1] * (ids.ndim - dimension - 1)), NONE)
    return ids


def permute(rows: Rows, dims: Sequence[int]) -> Rows:
    """The rows of x where ``dims`` tells which axis of the tensor each axis of x is."""
    order = [rows.first_kept(d) + i for d in dims for i in range(rows.kept_of(d))]
    return Rows(tuple(rows.axes[d] for d in dims), rows.ids.permute(order))


def merged(rows: Rows, axis: int) -> Rows:
    """The same with one kept factor for the whole axis."""
    factors = rows.axes[axis]
    if len(factors) == 1 and factors[0].kept:
        return rows
    start, count = rows.first_kept(axis), rows.kept_of(axis)
    before, after = rows.ids.shape[:start], rows.ids.shape[start + count :]
    view = rows.ids.reshape(*before, *[f.size if f.kept else 1 for f in factors], *after)
    size = math.prod(f.size for f in factors)
    ids = _only_live(view.expand(*before, *[f.size for f in factors], *after), factors, start)
    return _with(rows, axis, (Factor(size, True),), ids.reshape(*before, size, *after))


def place(rows: Rows, axis: int, size: int, index: Tensor) -> Rows:
    """The rows of x where the tensor is ``x.index_select(axis, index)``; axis has ``size`` positions in x."""
    factors = rows.axes[axis]
    if len(factors) <= 1 and not any(f.kept for f in factors):
        live = index if not factors or factors[0].live is None else index[list(factors[0].live)]
        part = None if len(live) == size else tuple(live.tolist())
        return _with(rows, axis, (Factor(size, False, part),) if size != 1 else (), rows.ids)
    rows = merged(rows, axis)
    where = rows.first_kept(axis)
    shape = list(rows.ids.shape)
    shape[where] = size
    ids = torch.full(shape, NONE).index_copy(where, index, rows.ids)
    return _with(rows, axis, (Factor(size, True),), ids)


def insert(rows: Rows, axis: int, factors: tuple[Factor, ...] = ()) -> Rows:
    """A new axis of spread factors (or of size 1)."""
    return Rows((*rows.axes[:axis], factors, *rows.axes[axis:]), rows.ids)


def remove(rows: Rows, axis: int) -> Rows:
    """Without an axis of size 1."""
    start, count = rows.first_kept(axis), rows.kept_of(axis)
    ids = rows.ids.reshape((*rows.ids.shape[:start], *rows.ids.shape[start + count :]))
    return Rows((*rows.axes[:axis], *rows.axes[axis + 1 :]), ids)


def spread(rows: Rows, axis: int, size: int | None = None, op: str = "", copies: bool = False) -> list[Rows]:
    """The rows where all positions along an axis go into each other (or into ``size`` others): the axis holds features.

    Different rows along it mean that they are mixed (Mixes, with the name ``op``), unless they are ``copies`` of one
    position: then each makes a layer.
    """
    factors = rows.axes[axis]
    size = math.prod(f.size for f in factors) if size is None else size
    after = (Factor(size, False),) if size != 1 else ()
    count = rows.kept_of(axis)
    if not count:
        return [_with(rows, axis, after, rows.ids)]
    start = rows.first_kept(axis)
    ids = rows.ids.flatten(start, start + count - 1)
    most = ids.amax(start)
    least = torch.where(ids < 0, torch.iinfo(torch.int64).max, ids).amin(start)
    if bool(((most < 0) | (most == least)).all()):
        return [_with(rows, axis, after, most)]
    if not copies or ids.shape[start] > _MOST_LAYERS:
        raise Mixes(op)
    return [_with(rows, axis, after, layer) for layer in ids.unbind(start) if bool((layer >= 0).any())]


def unbroadcast(rows: Rows, shape: Shape, op: str) -> list[Rows]:
    """The rows of an operand of ``shape`` that was broadcast to the tensor's shape."""
    layers = [rows]
    while layers and len(layers[0].axes) > len(shape):
        layers = [remove(one, 0) for layer in layers for one in spread(layer, 0, 1, op, copies=True)]
    for axis, size in enumerate(shape):
        if size == 1 and rows.shape[len(rows.axes) - len(shape) + axis] != 1:
            layers = [one for layer in layers for one in spread(layer, axis, 1, op, copies=True)]
    return layers


def _with(rows: Rows, axis: int, factors: tuple[Factor, ...], ids: Tensor) -> Rows:
    return Rows((*rows.axes[:axis], factors, *rows.axes[axis + 1 :]), ids)


# --- one operation, by the name of its node -----------------------------------------------------------------------

POINTWISE = frozenset(
    "Abs Add Sub Mul Div Neg Pow Exp Expm1 Log Log1P Log2 Sqrt Rsqrt Reciprocal Sin Cos Tanh Sigmoid Relu Gelu Silu Elu Mish Softplus "
    "LeakyRelu Hardswish Hardsigmoid Hardtanh HardtanhBackward LogSigmoid Erf Clamp ClampMin ClampMax Clone ToCopy Where MaskedFill "
    "Maximum Minimum Lerp Addcmul Addcdiv NanToNum NativeDropout FusedDropout NativeBatchNorm CudnnBatchNorm MiopenBatchNorm Prelu Threshold "
    "Copy Rsub Alias Sign Copysign".split()
)
LAST = frozenset("NativeLayerNorm FusedRmsNorm RmsNorm Softmax LogSoftmax Glu LogCumsumExp".split())
REDUCTIONS = frozenset("Mean Sum Amax Amin Max Min LinalgVectorNorm Norm Logsumexp Var Std VarMean Prod StdMean NllLoss NllLoss2D".split())
MATRIX = frozenset("Mm Bmm Addmm Baddbmm Addbmm Linear MkldnnLinear".split())
VIEWS = frozenset("View UnsafeView ReshapeAlias Squeeze Unsqueeze MkldnnReshape".split())
# movements that are rare: the node itself moves the ids
MOVES = frozenset(
    "Index IndexSelect Gather Roll Flip ConstantPadNd Repeat Unfold MaskedScatter IndexPut MaskedSelect Take AsStrided SelectScatter "
    "SliceScatter IndexCopy Scatter Diagonal Tril Triu Rot90 PixelShuffle PixelUnshuffle CopySlices Im2Col".split()
)


def kind(node: Node) -> str:
    """``AddBackward0`` -> ``Add``."""
    name = str(node.name()).rsplit("::", 1)[-1]
    return name.rstrip("0123456789").removesuffix("Backward")


def shape_of(node: Node, number: int) -> Shape:
    """The shape of output ``number`` of the operation that ``node`` is the backward of."""
    return tuple(int(n) for n in node._input_metadata[number].shape)


def back(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    """(operand, rows) for every operand of an operation that leads on; ``rows`` are those of its output ``number``.

    Operands that are broadcast are given before the rows are put together: see ``unbroadcast``. Raises ``Mixes``.
    """
    op = kind(node)
    if op in POINTWISE:
        return [(slot, rows) for slot in live(node)]
    rule = _RULES.get(op)
    if rule is not None:
        return rule(node, number, rows)
    if op in MATRIX:
        return _matrix(node, rows)
    if op in LAST:
        return [(0, layer) for layer in _mixed(rows, _last(node, len(rows.axes)), op)]
    if op in REDUCTIONS:
        return [(slot, _unreduced(node, rows)) for slot in live(node)[:1]]
    if op in MOVES:
        return _moved(node, rows)
    raise Mixes(str(node.name()))


def live(node: Node) -> list[int]:
    """The operands that lead on in the graph."""
    return [slot for slot, (following, _) in enumerate(node.next_functions) if following is not None]


def _mixed(rows: Rows, axes: Sequence[int], op: str) -> list[Rows]:
    layers = [rows]
    for axis in axes:
        layers = [one for layer in layers for one in spread(layer, axis, op=op)]
    return layers


def _last(node: Node, ndim: int) -> Sequence[int]:
    normalised = getattr(node, "_saved_normalized_shape", None)
    if normalised is not None:
        return range(ndim - len(normalised), ndim)
    dim = getattr(node, "_saved_dim", -1)
    return [signed(dim) % ndim]


def signed(value: int) -> int:
    """Saved dimensions are unsigned: 2**64 - 1 is -1."""
    return value - 2**64 if value >= 2**63 else value


def _operand_shape(node: Node, slot: int = 0) -> Shape:
    following, number = node.next_functions[slot]
    if following.name() == "torch::autograd::AccumulateGrad":
        return tuple(following.variable.shape)
    return shape_of(following, number)


def _view(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    return [(0, reshape(rows, _operand_shape(node)))]


def _transpose(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    order = list(range(len(rows.axes)))
    a, b = (signed(node._saved_dim0), signed(node._saved_dim1)) if hasattr(node, "_saved_dim0") else (0, 1)
    order[a], order[b] = order[b], order[a]
    return [(0, permute(rows, order))]


def _permute(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    dims = [signed(d) % len(rows.axes) for d in node._saved_dims]
    return [(0, permute(rows, [dims.index(i) for i in range(len(dims))]))]


def _expand(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    return [(0, layer) for layer in unbroadcast(rows, _operand_shape(node), "expand")]


def _select(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    shape = _operand_shape(node)
    dim = signed(node._saved_dim) % len(shape)
    index = torch.tensor([signed(node._saved_index) % shape[dim]])
    return [(0, place(insert(rows, dim, ()), dim, shape[dim], index))]


def _slice(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    shape = _operand_shape(node)
    dim = signed(node._saved_dim) % len(shape)
    index = torch.arange(shape[dim])[slice(signed(node._saved_start), signed(node._saved_end), node._saved_step)]
    return [(0, place(rows, dim, shape[dim], index))]


def _unbind(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    shape = _operand_shape(node)
    dim = signed(node._saved_dim) % len(shape)
    return [(0, place(insert(rows, dim, ()), dim, shape[dim], torch.tensor([number])))]


def _split(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    shape = _operand_shape(node)
    dim = signed(node._saved_dim) % len(shape)
    sizes = getattr(node, "_saved_split_sizes", None)
    start = sum(sizes[:number]) if sizes is not None else number * node._saved_split_size
    return [(0, place(rows, dim, shape[dim], torch.arange(start, start + rows.shape[dim])))]


def _cat(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    dim = signed(node._saved_dim) % len(rows.axes)
    start, found = 0, []
    for slot, size in enumerate(_cat_sizes(node, dim, rows.shape[dim])):
        part = narrow(rows, dim, start, size) if node.next_functions[slot][0] is not None else None
        if part is not None:
            found.append((slot, part))
        start += size
    return found


def narrow(rows: Rows, axis: int, start: int, size: int) -> Rows | None:
    """The rows along a part of an axis; None where there are none."""
    factors = rows.axes[axis]
    if not any(f.kept for f in factors) and all(f.live is None for f in factors):
        return _with(rows, axis, (Factor(size, False),) if size != 1 else (), rows.ids)
    if len(factors) == 1 and factors[0].live is not None:
        live = tuple(i - start for i in factors[0].live if start <= i < start + size)
        kept = _with(rows, axis, (Factor(size, False, None if len(live) == size else live),) if size != 1 else (), rows.ids)
        return kept if live else None
    rows = merged(rows, axis)
    part = _with(rows, axis, (Factor(size, True),), rows.ids.narrow(rows.first_kept(axis), start, size))
    return part if bool((part.ids >= 0).any()) else None


def _cat_sizes(node: Node, dim: int, total: int) -> list[int]:
    """Sizes of the operands along ``dim``; those without a graph share what is left."""
    known = [None if f is None else _operand_shape(node, i)[dim] for i, (f, _) in enumerate(node.next_functions)]
    unknown = [i for i, size in enumerate(known) if size is None]
    rest = total - sum(size for size in known if size is not None)
    if len(unknown) == 1:
        known[unknown[0]] = rest
    elif unknown:
        # the node knows: a gradient of zeros comes back in the operands' shapes
        raise Mixes("cat of several tensors without a gradient")
    return [int(size or 0) for size in known]


def _stack(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    dim = signed(node._saved_dim) % len(rows.axes)
    parts = [(slot, narrow(rows, dim, slot, 1)) for slot in live(node)]
    return [(slot, remove(part, dim)) for slot, part in parts if part is not None]


def _glu(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    axis = signed(node._saved_dim) % len(rows.axes)
    return [(0, layer) for layer in spread(rows, axis, 2 * rows.shape[axis], "glu")]


def _unreduced(node: Node, rows: Rows) -> Rows:
    """An axis that was summed over: all its positions belong to the row of the sum."""
    shape = _operand_shape(node, live(node)[0])
    dims = getattr(node, "_saved_dim", None)
    if dims is None or (isinstance(dims, tuple) and not dims):
        dims = range(len(rows.axes) if len(rows.axes) < len(shape) else 0, len(shape))
    dims = sorted(signed(d) % len(shape) for d in ([dims] if isinstance(dims, int) else dims))
    if len(rows.axes) == len(shape):
        for dim in dims:
            rows = insert(remove(rows, dim), dim, (Factor(shape[dim], False),) if shape[dim] != 1 else ())
        return rows
    for dim in dims:
        rows = insert(rows, dim, (Factor(shape[dim], False),) if shape[dim] != 1 else ())
    return rows


def _matrix(node: Node, rows: Rows) -> list[tuple[int, Rows]]:
    """A matrix product: an operand keeps the axes that it shares with the output; the others mix."""
    op = kind(node)
    found: list[tuple[int, Rows]] = []
    bias = op in ("Addmm", "Baddbmm", "Addbmm")
    for slot in live(node):
        if bias and slot == 0:
            found.append((slot, rows))
            continue
        shape = _operand_shape(node, slot)
        left = slot == (1 if bias else 0)
        axis = len(rows.axes) - 1 if left else len(rows.axes) - 2
        width = shape[-1] if left else shape[-2]
        found += [(slot, layer) for layer in spread(rows, axis, width, op)]
    return found


def _moved(node: Node, rows: Rows) -> list[tuple[int, Rows]]:
    """Ids sent through the backward of an operation that only moves elements."""
    ids = full(rows)
    metadata = node._input_metadata[0]
    base = {torch.float64: 2**53, torch.float32: 2**24, torch.float16: 2**11, torch.bfloat16: 2**8}.get(metadata.dtype, 2**8)
    dtype, device = metadata.dtype, metadata.device
    coded, digits = ids + 1, []
    while True:
        digits.append((coded % base).to(dtype))
        coded = coded // base
        if not bool(coded.any()):
            break
    sent = [_call(node, d.to(device)) for d in [*digits, torch.ones(ids.shape, dtype=dtype)]]
    found = []
    for slot in live(node):
        if any(s[slot] is None for s in sent):
            continue
        if bool((sent[-1][slot] > 1).any()):
            raise Mixes(f"{node.name()} (an element goes to several places)")
        whole_ids = torch.zeros(sent[0][slot].shape, dtype=torch.int64)
        for power, digit in enumerate(sent[:-1]):
            whole_ids += digit[slot].cpu().long() * base**power
        found.append((slot, folded(whole_ids - 1)))
    return found


def _call(node: Node, gradient: Tensor) -> tuple[Tensor | None, ...]:
    with torch.no_grad():
        result = node(gradient)
    return result if isinstance(result, tuple) else (result,)


def folded(ids: Tensor) -> Rows:
    """Rows from ids at every position; axes along which they are all equal are spread."""
    axes: list[tuple[Factor, ...]] = []
    for axis, size in enumerate(ids.shape):
        first = ids.narrow(axis, 0, 1)
        equal = size > 1 and bool((ids == first).all())
        axes.append((Factor(size, not equal),) if size != 1 else ())
        ids = first if equal else ids
    return Rows(tuple(axes), ids.reshape([f.size for axis in axes for f in axis if f.kept]))


_RULES: dict[str, Callable[[Node, int, Rows], list[tuple[int, Rows]]]] = {
    **dict.fromkeys(VIEWS, _view),
    "Transpose": _transpose,
    "T": _transpose,
    "Permute": _permute,
    "Expand": _expand,
    "Select": _select,
    "Slice": _slice,
    "Unbind": _unbind,
    "Split": _split,
    "SplitWithSizes": _split,
    "Cat": _cat,
    "Stack": _stack,
    "Glu": _glu,
}
