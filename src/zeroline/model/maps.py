"""From an attention as it was seen to its map as a tensor [groups, heads, queries, keys], and back into the pass."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zeroline.errors import TraceError
from zeroline.maths.attention import Maps, per_head
from zeroline.model.capture import MULTIHEAD, Operand, Seen


def name_of(seen: Seen) -> str:
    """``path`` or ``path#index``, as sites are spelled."""
    return (seen.path or "the model") + (f"#{seen.index}" if seen.index else "")


def heads_of(operand: Operand, batch: int) -> int:
    """Heads, as the graph decided, else the third axis from the right; in [batch x heads, tokens, width] what the batch leaves over."""
    if operand.heads is not None:
        return operand.heads
    shape = operand.shape
    if len(shape) > 3:
        return shape[-3]
    return shape[0] // batch if shape[0] % batch == 0 else 1


def four(operand: Operand, batch: int, *, graph: bool = False) -> Tensor:
    """An operand as [groups, heads, tokens, width]."""
    tensor = operand.tensor.permute(operand.order) if graph else operand.ordered
    return tensor.reshape(-1, heads_of(operand, batch), *tensor.shape[-2:])


def maps_of(seen: Seen, batch: int, output_gradient: Tensor | None = None) -> Maps:
    """A call's tensors, without a graph, as the arithmetic wants them."""
    query, key, value = (four(getattr(seen, part), batch) for part in ("query", "key", "value"))
    if len(query) != len(key):
        raise TraceError(f"{name_of(seen)} has queries for {len(query)} samples and keys for {len(key)}; broadcast batches are not followed")
    weights = None if seen.weights is None else four(seen.weights, batch)
    gradient = None if output_gradient is None else four(replace(seen.output, tensor=output_gradient), batch)
    scale = 1.0 if seen.scale is None else seen.scale
    return Maps(query, key, value, weights, _mask(seen, query), seen.causal, scale, gradient)


def with_map(seen: Seen, attention: Tensor, batch: int) -> Tensor:
    """The output that the call would give with another map: A v, in the layout and precision of its own output."""
    value = four(seen.value, batch, graph=True).to(attention.dtype)
    attention = attention.reshape(len(value), -1, *attention.shape[-2:])
    return laid_out(seen, attention @ per_head(value, attention.shape[1]))


def with_rows(seen: Seen, output: Tensor, group: Tensor, row: Tensor, weights: Tensor, batch: int) -> Tensor:
    """A call's output with some rows made from other weights, the same for every head: ``weights`` [n, keys] at (group, row)."""
    value = per_head(four(seen.value, batch, graph=True), heads_of(seen.query, batch))
    changed = four(replace(seen.output, tensor=output), batch, graph=True).clone()
    changed[group, :, row] = torch.einsum("nk,nhkd->nhd", weights.to(value), value[group])
    return laid_out(seen, changed)


def one_head(seen: Seen, batch: int) -> Tensor:
    """The output that the call would give with its heads taken as one: softmax(q k^T / sqrt(all channels) + mask) v."""
    query, key, value = (four(operand, batch, graph=True) for operand in (seen.query, seen.key, seen.value))
    parts, heads = (query * prescaled(seen, query.shape[-1]), key, value), heads_of(seen.query, batch)
    query, key, value = (per_head(part, heads).transpose(1, 2).flatten(2)[:, None] for part in parts)
    hidden = ~maps_of(seen, batch).visible()[:, None]
    scores = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf)
    output = (scores.softmax(-1) @ value)[:, 0]
    return laid_out(seen, output.unflatten(-1, (heads, -1)).transpose(1, 2))


def prescaled(seen: Seen, width: int) -> float:
    """What undoes the scaling of queries before the product: ``nn.MultiheadAttention`` that gives weights divides them by sqrt(width)."""
    return width**0.5 if seen.how == MULTIHEAD and seen.scale is None else 1.0


def laid_out(seen: Seen, output: Tensor) -> Tensor:
    """[groups, heads, queries, width] in the layout and precision of the call's own output."""
    own = seen.output
    ordered = output.reshape([own.tensor.shape[i] for i in own.order])
    return ordered.permute([own.order.index(i) for i in range(len(own.order))]).to(own.tensor.dtype)


def _mask(seen: Seen, query: Tensor) -> Tensor | None:
    """The mask of a fused kernel, to be broadcast to [groups, heads, queries, keys]."""
    mask, operand = seen.mask, seen.query
    if mask is None or mask.ndim == 2 or (len(operand.shape) == 4 and operand.heads is None):
        return mask
    plain = [operand.tensor.shape[i] for i in range(operand.tensor.ndim - 2)]
    whole = mask.expand(*plain, *mask.shape[-2:]).permute(operand.order)
    return whole.reshape(*query.shape[:2], *whole.shape[-2:])
