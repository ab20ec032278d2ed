"""Attention maps and their gradients, rebuilt in blocks of rows: no map of a whole call is kept.

Holds ``Maps`` (what one call computed, as tensors), the corrections that combine a map with its gradient, and the
products that relevance needs. For ``o = A v`` with a target f, the gradient of the map is ``dA = dO v^T`` (per head): the
gradient of the *output* and the values give it, so a fused kernel, which never shows its map, is no obstacle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zeroline.errors import NotFoundError

BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Maps:
    """One call: query [G, H, Nq, D], key and value [G, H or fewer, Nk, D]; a map A [G, H, Nq, Nk] where the model made one.

    ``output_gradient`` is dO [G, H, Nq, D]. ``mask`` is Boolean (True: may attend) or additive, broadcast to A.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    weights: Tensor | None = None
    mask: Tensor | None = None
    causal: bool = False
    scale: float = 1.0
    output_gradient: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(G, H, Nq, Nk)."""
        groups, heads, queries, _ = self.query.shape
        return groups, heads, queries, self.key.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """What maps are computed in: float32, or float64 for a model in float64."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def attention(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """A [G, H, rows, Nk] = softmax(scale q k^T + mask), or the model's own."""
        if self.weights is not None:
            return self.weights[:, :, rows].to(self.dtype, copy=True)
        query = self.query[:, :, rows].to(self.dtype)
        scores = (query @ _per_head(self.key, query).transpose(-1, -2)).mul_(self.scale)
        if self.mask is not None:
            mask = self.mask if self.mask.shape[-2] == 1 else self.mask[..., rows, :]
            scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
        if self.causal:
            index = torch.arange(self.shape[2], device=scores.device)[rows]
            scores = scores.masked_fill_(torch.arange(self.shape[3], device=scores.device) > index[:, None], -torch.inf)
        if self.mask is not None or self.causal:
            nothing = scores.isneginf().all(-1, keepdim=True)  # a kernel gives zeros where a softmax gives NaN
            return scores.softmax(-1).masked_fill_(nothing, 0)
        return scores.softmax(-1)

    def visible(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Which keys a query may see: bool [G, rows, Nk], in any head.

        A mask of the model's own is read off its map: see ``_hidden``.
        """
        groups, _, queries, keys = self.shape
        if self.weights is not None:
            return ~self._hidden(self.weights)[:, rows]
        index = torch.arange(queries, device=self.query.device)[rows]
        seen = torch.ones(groups, len(index), keys, dtype=torch.bool, device=self.query.device)
        if self.mask is not None:
            mask = self.mask if self.mask.shape[-2] == 1 else self.mask[..., rows, :]
            may = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            seen &= may.any(-3) if may.ndim == 4 else may
        if self.causal:
            seen &= torch.arange(keys, device=seen.device) <= index[:, None]
        return seen

    def _hidden(self, weights: Tensor) -> Tensor:
        """Keys that a map hides, bool [G, Nq, Nk]: of weight 0 for every query, or above the diagonal where all of that is 0, or of weight 0
        though the score is too near to the largest to vanish in the map's precision (a soft maximum may round to 0)."""
        query = self.query.to(self.dtype)
        scores = query @ _per_head(self.key, query).transpose(-1, -2) * query.shape[-1] ** -0.5
        precision = torch.finfo(weights.dtype)
        near = scores.amax(-1, keepdim=True) - scores < -0.9 * math.log(precision.tiny * precision.eps)
        zero = (weights == 0).all(1)
        hidden: Tensor = ((weights == 0) & near).any(1) | zero.all(1, keepdim=True)
        if zero.shape[1] == zero.shape[2]:
            above = torch.ones(zero.shape[1:], dtype=torch.bool, device=zero.device).triu(1)
            hidden = hidden | (above & zero[:, above].all(1)[:, None, None])
        return hidden

    def gradient(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """dA [G, H, rows, Nk] = dO v^T."""
        assert self.output_gradient is not None
        gradient = self.output_gradient[:, :, rows].to(self.dtype)
        return gradient @ _per_head(self.value, gradient).transpose(-1, -2)


def per_head(tensor: Tensor, heads: int) -> Tensor:
    """Key or value heads [G, heads or fewer, N, D] repeated to the number of query heads (grouped queries)."""
    repeats = heads // tensor.shape[1]
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, 1)


def _per_head(tensor: Tensor, like: Tensor) -> Tensor:
    """As ``per_head``, in the number of heads and the precision of another tensor."""
    return per_head(tensor.to(like.dtype), like.shape[1])


Correction = Callable[[Tensor, Tensor], Tensor]

# C(A, dA), written on A's memory; "none" never asks for dA
CORRECTIONS: dict[str, Correction | None] = {
    "none": None,
    "positive": lambda a, da: a.mul_(da).clamp_(min=0),
    "negative": lambda a, da: a.mul_(da).neg_().clamp_(min=0),
    "absolute": lambda a, da: a.mul_(da).abs_(),
    "signed": lambda a, da: a.mul_(da),
}
FUSIONS = ("mean", "max")


def correction_of(name: str) -> Correction | None:
    """The correction by name; an error with the possible ones."""
    if name not in CORRECTIONS:
        raise NotFoundError.among("correction", name, CORRECTIONS)
    return CORRECTIONS[name]


def fused(maps: Maps, correction: Correction | None, fusion: str, rows: Tensor | slice = slice(None)) -> Tensor:
    """Abar [G, rows, Nk]: C(A, dA) over heads, their mean (or the largest in size, with its sign)."""
    corrected = _corrected(maps, correction, rows)
    if fusion == "mean":
        return corrected.mean(1)
    return corrected.gather(1, corrected.abs().argmax(1, keepdim=True))[:, 0]


def _corrected(maps: Maps, correction: Correction | None, rows: Tensor | slice) -> Tensor:
    attention = maps.attention(rows)
    return attention if correction is None else correction(attention, maps.gradient(rows))


def row_blocks(maps: Maps, rows: Tensor, limit: int = BLOCK_BYTES) -> Iterator[Tensor]:
    """``rows`` in blocks whose maps take at most ``limit`` bytes each."""
    groups, heads, _, keys = maps.shape
    per_row = groups * heads * keys * torch.finfo(maps.dtype).bits // 8
    size = max(1, limit // per_row)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def vector_times(maps: Maps, r: Tensor, correction: Correction | None, fusion: str, limit: int = BLOCK_BYTES) -> Tensor:
    """r^T Abar: [G, Nk] from r [G, Nq], in row blocks; rows where r is zero in every group are left out."""
    groups, heads, _, keys = maps.shape
    r = r.to(maps.query.device, maps.dtype)
    total = torch.zeros(groups, keys, dtype=maps.dtype, device=r.device)
    wanted = r.abs().sum(0).nonzero().flatten()
    for rows in row_blocks(maps, wanted, limit):
        index: Tensor | slice = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) == int(rows[-1]) - int(rows[0]) + 1 else rows
        part = r[:, rows]
        if fusion == "mean":
            total += torch.matmul(part[:, None, None], _corrected(maps, correction, index)).sum((1, 2)) / heads
        else:
            total += torch.matmul(part[:, None], fused(maps, correction, fusion, index))[:, 0]
    return total
