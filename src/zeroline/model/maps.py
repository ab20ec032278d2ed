"""From an attention as it was seen to its map as a tensor [groups, heads, queries, keys], and back into the pass."""

from __future__ import annotations

from torch import Tensor

from zeroline.errors import TraceError
from zeroline.maths.attention import Maps
from zeroline.model.capture import Operand, Seen


def name_of(seen: Seen) -> str:
    """``path`` or ``path#index``, as sites are spelled."""
    return (seen.path or "the model") + (f"#{seen.index}" if seen.index else "")


def heads_of(operand: Operand, batch: int) -> int:
    """Heads: the third axis from the right; in [batch x heads, tokens, width] what the batch leaves over."""
    shape = [operand.tensor.shape[i] for i in operand.order]
    if len(shape) > 3:
        return int(shape[-3])
    return int(shape[0]) // batch if len(shape) == 3 and shape[0] % batch == 0 else 1


def four(operand: Operand, batch: int, *, graph: bool = False) -> Tensor:
    """An operand as [groups, heads, tokens, width]."""
    tensor = operand.tensor.permute(operand.order) if graph else operand.ordered
    if tensor.ndim == 3:
        return tensor.reshape(-1, heads_of(operand, batch), *tensor.shape[1:])
    return tensor.flatten(0, -4) if tensor.ndim > 4 else tensor


def maps_of(seen: Seen, batch: int, output_gradient: Tensor | None = None) -> Maps:
    """A call's tensors, without a graph, as the arithmetic wants them."""
    query, key, value = (four(getattr(seen, part), batch) for part in ("query", "key", "value"))
    if len(query) != len(key):
        raise TraceError(f"{name_of(seen)} has queries for {len(query)} samples and keys for {len(key)}; broadcast batches are not followed")
    weights = None if seen.weights is None else four(seen.weights, batch)
    gradient = None if output_gradient is None else four(Operand(output_gradient, seen.output.order), batch)
    scale = 1.0 if seen.scale is None else seen.scale
    return Maps(query, key, value, weights, _mask(seen, query), seen.causal, scale, gradient)


def with_map(seen: Seen, attention: Tensor, batch: int) -> Tensor:
    """The output that the call would give with another map: A v, in the layout and precision of its own output."""
    value = four(seen.value, batch, graph=True).to(attention.dtype)
    repeats = attention.shape[1] // value.shape[1]
    output = attention @ (value.repeat_interleave(repeats, 1) if repeats > 1 else value)
    own = seen.output
    ordered = output.reshape([own.tensor.shape[i] for i in own.order])
    return ordered.permute([own.order.index(i) for i in range(len(own.order))]).to(own.tensor.dtype)


def _mask(seen: Seen, query: Tensor) -> Tensor | None:
    """The mask of a fused kernel, to be broadcast to [groups, heads, queries, keys]."""
    mask, shape = seen.mask, seen.query.tensor.shape
    if mask is None or len(shape) == 4 or mask.ndim == 2:
        return mask
    if len(shape) == 3:
        return mask.expand(shape[0], *mask.shape[1:]).reshape(-1, query.shape[1], *mask.shape[1:])
    if mask.ndim < 4:
        return mask
    return mask.expand(*shape[:-3], *mask.shape[-3:]).flatten(0, -4)
