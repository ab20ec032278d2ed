"""Token positions followed back through one operation of the autograd graph.

Holds ``back``: linear layers, norms and pointwise functions act on features and keep rows; reshapes, slices, permutations
and concatenations move them; rare movements are followed by sending the positions themselves through the operation's own
backward; an operation that mixes rows outside attention, or is not known, raises ``Mixes`` with its name. It knows nothing
of attention and of streams: that is ``streams``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zeroline.model.rows import (
    Factor,
    Mixes,
    Rows,
    Shape,
    folded,
    full,
    insert,
    masked,
    merged,
    narrow,
    permute,
    place,
    remove,
    reshape,
    spread,
    with_axis,
)

Node = Any  # torch.autograd.graph.Node; its saved attributes are not typed


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


POINTWISE = _words(
    "Abs Add Sub Mul Div Neg Pow Exp Expm1 Log Log1P Log2 Sqrt Rsqrt Reciprocal Sin Cos Tanh Sigmoid Relu Gelu Silu Elu Mish Softplus "
    "LeakyRelu Hardswish Hardsigmoid Hardtanh HardtanhBackward LogSigmoid Erf Clamp ClampMin ClampMax Clone ToCopy "
    "Maximum Minimum Lerp Addcmul Addcdiv NanToNum NativeDropout FusedDropout NativeBatchNorm CudnnBatchNorm MiopenBatchNorm Prelu Threshold "
    "Rsub Alias Sign Copysign PreluKernel Atan Atan2 Sinh Cosh Tan Asin Acos Asinh Acosh Atanh Round Floor Ceil Trunc Frac Celu Selu Softshrink "
    "Hardshrink Exp2 Logit Erfc Erfinv Sgn Xlogy Remainder Fmod Logaddexp Hypot Softsign GeLUFunction"
)
LAST = _words("NativeLayerNorm FusedRmsNorm RmsNorm Softmax LogSoftmax Glu LogCumsumExp")
REDUCTIONS = _words("Mean Sum Amax Amin Max Min LinalgVectorNorm Norm Logsumexp Var Std VarMean Prod StdMean NllLoss NllLoss2D")
MATRIX = _words("Mm Bmm Addmm Baddbmm Addbmm Linear MkldnnLinear GroupedMm")
VIEWS = _words("View UnsafeView ReshapeAlias Squeeze Unsqueeze MkldnnReshape")
# movements that are rare: the node itself moves the ids
MOVES = _words(
    "Index IndexSelect Gather Unfold MaskedScatter IndexPut MaskedSelect Take AsStrided SelectScatter "
    "SliceScatter IndexCopy Scatter Diagonal Tril Triu Rot90 PixelShuffle PixelUnshuffle CopySlices Im2Col"
)


_TRANSPARENT = POINTWISE | VIEWS | _words("Expand Slice Select Transpose T Permute Unbind Split Cat Index Where MaskedFill")


def kind(node: Node) -> str:
    """``AddBackward0`` -> ``Add``."""
    name = str(node.name()).rsplit("::", 1)[-1]
    return re.sub(r"Backwards?\d*$", "", name)


def shape_of(node: Node, number: int) -> Shape:
    """The shape of output ``number`` of the operation that ``node`` is the backward of."""
    return tuple(int(n) for n in node._input_metadata[number].shape)


def back(node: Node, number: int, rows: Rows, slots: Sequence[int] | None = None) -> list[tuple[int, Rows]]:
    """(operand, rows) for every operand of an operation that leads on; ``rows`` are those of its output ``number``.

    ``slots`` are the operands of interest (all that lead on). Operands that are broadcast are given as if they were not: see
    ``rows.unbroadcast``. Raises ``Mixes``.
    """
    op = kind(node)
    if op in ("NativeBatchNorm", "CudnnBatchNorm") and node._saved_training:
        raise Mixes(str(node.name()))  # statistics of these very tokens: an instance norm
    if op in POINTWISE or op == "Expand":
        return [(slot, rows) for slot in live(node)]
    rule = _RULES.get(op)
    if rule is not None:
        return rule(node, number, rows)
    if op in MATRIX:
        return _matrix(node, rows, live(node) if slots is None else slots)
    if op in LAST:
        return [(0, layer) for layer in _mixed(rows, _last(node, len(rows.axes)), op)]
    if op in REDUCTIONS:
        return [(slot, _unreduced(node, rows)) for slot in live(node)[:1]]
    if op in MOVES:
        return _moved(node, rows)
    raise Mixes(str(node.name()))


def by_softmax(node: Node, slot: int) -> bool:
    """Is an operand a softmax over content, through pointwise functions and views: attention that nobody announced?"""
    seen: set[Node] = set()
    waiting = [node.next_functions[slot][0]]
    while waiting and len(seen) < 40:
        following = waiting.pop()
        if following is None or following in seen:
            continue
        seen.add(following)
        op = kind(following)
        if op in ("Softmax", "Exp"):
            return True
        if op in _TRANSPARENT:
            waiting += [f for f, _ in following.next_functions]
    return False


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


def _where(node: Node, rows: Rows) -> list[tuple[int, Rows]]:
    taken = node._saved_condition.cpu()
    last = len(node.next_functions) - 1
    return [(slot, masked(rows, ~taken if slot == last else taken)) for slot in live(node)]


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


def _roll(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    if not node._saved_dims:
        return _moved(node, rows)
    for dim, shift in zip(node._saved_dims, node._saved_shifts):
        axis = signed(dim) % len(rows.axes)
        if _told_apart(rows, axis):
            rows = merged(rows, axis)
            rows = with_axis(rows, axis, rows.axes[axis], rows.ids.roll(-signed(shift), rows.first_kept(axis)))
    return [(0, rows)]


def _flip(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    for dim in node._saved_dims:
        axis = signed(dim) % len(rows.axes)
        if _told_apart(rows, axis):
            rows = merged(rows, axis)
            rows = with_axis(rows, axis, rows.axes[axis], rows.ids.flip(rows.first_kept(axis)))
    return [(0, rows)]


def _pad(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    pad, shape = [signed(n) for n in node._saved_pad], _operand_shape(node)
    if min(pad, default=0) < 0:
        return _moved(node, rows)
    for i in range(len(pad) // 2):
        axis = len(shape) - 1 - i
        if pad[2 * i] or pad[2 * i + 1]:
            part = narrow(rows, axis, pad[2 * i], shape[axis])
            if part is None:
                return []
            rows = part
    return [(0, rows)]


def _repeat(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    """A tensor tiled: its repeats as leading axes, over which it was broadcast."""
    shape = _operand_shape(node)
    times = [int(n) for n in node._saved_repeats]
    sizes = [1] * (len(times) - len(shape)) + list(shape)
    rows = reshape(rows, tuple(n for pair in zip(times, sizes) for n in pair))
    kept = [2 * i + 1 for i in range(len(times) - len(shape), len(times))]
    return [(0, permute(rows, [axis for axis in range(2 * len(times)) if axis not in kept] + kept))]


def _convolution(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    """A convolution by single positions is a linear layer over channels; any other mixes positions."""
    weight = tuple(node._saved_weight.shape[2:]) if node._saved_weight is not None else ()
    plain = all(n == 1 for n in (*weight, *node._saved_stride)) and not any(node._saved_padding) and not node._saved_transposed
    if not weight or not plain:
        raise Mixes(str(node.name()))
    return [(0, layer) for layer in spread(rows, 1, _operand_shape(node)[1], "Convolution")]


def _real(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    last = len(rows.axes) - 1
    return [(0, remove(layer, last)) for layer in spread(rows, last, 1, "ViewAsReal")]


def _told_apart(rows: Rows, axis: int) -> bool:
    return any(f.kept or f.live is not None for f in rows.axes[axis])


def _stack(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    dim = signed(node._saved_dim) % len(rows.axes)
    parts = [(slot, narrow(rows, dim, slot, 1)) for slot in live(node)]
    return [(slot, remove(part, dim)) for slot, part in parts if part is not None]


def _along(node: Node, number: int, rows: Rows) -> list[tuple[int, Rows]]:
    """The largest along an axis, or a sort of it: of features, as a router of experts does; of tokens it mixes them."""
    axis = signed(node._saved_dim) % len(rows.axes)
    return [(0, layer) for layer in spread(rows, axis, _operand_shape(node)[axis], kind(node))]


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


def _matrix(node: Node, rows: Rows, slots: Sequence[int]) -> list[tuple[int, Rows]]:
    """A matrix product: an operand keeps the axes that it shares with the output; the others mix."""
    op = kind(node)
    found: list[tuple[int, Rows]] = []
    bias = op in ("Addmm", "Baddbmm", "Addbmm")
    for slot in slots:
        if bias and slot == 0:
            found.append((slot, rows))
            continue
        shape = _operand_shape(node, slot)
        left = slot == (1 if bias else 0)
        axis = len(rows.axes) - 1 if left else len(rows.axes) - 2
        width = shape[-1] if left else shape[-2]
        found += [(slot, layer) for layer in spread(rows, axis, width, op)]
    return found


# digits that a dtype holds exactly, with their squares
_BASES = {torch.float64: 2**20, torch.float32: 2**7, torch.float16: 2**4, torch.bfloat16: 2**3}


def _moved(node: Node, rows: Rows) -> list[tuple[int, Rows]]:
    """Ids sent, digit by digit, through the backward of an operation that moves elements (and may scale them).

    An element that goes to one place comes back as digit times factor, its square as square times factor, a one as the
    factor. Elements that are added up do not fit together like that, unless they belong to the same row.
    """
    ids, metadata = full(rows), node._input_metadata[0]
    base = _BASES.get(metadata.dtype, 2**3)
    factors = _sent(node, torch.ones(ids.shape), metadata)
    found: dict[int, Tensor] = {}
    coded, power = ids + 1, 1
    while bool(coded.any()):
        digit = (coded % base).double()
        once, twice = _sent(node, digit, metadata), _sent(node, digit**2, metadata)
        for slot, factor in factors.items():
            there = factor != 0
            value = torch.where(there, once[slot] / factor.where(there, 1), 0)
            square = torch.where(there, twice[slot] / factor.where(there, 1), 0)
            if bool(((square - value**2).abs() > 0.1).any()) or bool(((value - value.round()).abs() > 0.1).any()):
                raise Mixes(f"{node.name()} (several elements in one)")
            found[slot] = found.get(slot, torch.zeros(factor.shape, dtype=torch.int64)) + value.round().long() * power
        coded, power = coded // base, power * base
    return [(slot, folded(whole - 1)) for slot, whole in found.items()]


def _sent(node: Node, gradient: Tensor, metadata: Any) -> dict[int, Tensor]:
    """What comes back from a backward, by operand, in float64 on the CPU."""
    back_again = _call(node, gradient.to(metadata.device, metadata.dtype))
    return {slot: back_again[slot].double().cpu() for slot in live(node) if back_again[slot] is not None}


def _call(node: Node, gradient: Tensor) -> tuple[Any, ...]:
    with torch.no_grad():
        result = node(gradient)
    return result if isinstance(result, tuple) else (result,)


_RULES: dict[str, Callable[[Node, int, Rows], list[tuple[int, Rows]]]] = {
    **dict.fromkeys(VIEWS, _view),
    "Transpose": _transpose,
    "T": _transpose,
    "Permute": _permute,
    "Copy": lambda node, number, rows: [(live(node)[-1], rows)],
    "Where": lambda node, number, rows: _where(node, rows),
    "MaskedFill": lambda node, number, rows: [(0, masked(rows, ~node._saved_mask.cpu()))] if 0 in live(node) else [],
    "Select": _select,
    "Slice": _slice,
    "Unbind": _unbind,
    "Split": _split,
    "SplitWithSizes": _split,
    "Cat": _cat,
    "Stack": _stack,
    "Topk": _along,
    "Sort": _along,
    "Roll": _roll,
    "Flip": _flip,
    "ConstantPadNd": _pad,
    "Repeat": _repeat,
    "Convolution": _convolution,
    "ViewAsReal": _real,
    "ViewAsComplex": lambda node, number, rows: [(0, insert(rows, len(rows.axes), (Factor(2, False),)))],
    "Glu": _glu,
}
