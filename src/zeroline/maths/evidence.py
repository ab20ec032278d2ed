"""Where the evidence of a map lies: how concentrated it is, and how much of it is inside an object.

Pure tensors on maps [batch, rows, columns]. Positive values alone count as evidence for the target; a map without any gives NaN.
None of these figures says that an explanation is right: they say where it points.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from zeroline.errors import InputError


def concentration(maps: Tensor, share: float = 0.1) -> Tensor:
    """Share of the positive values that lies in the top ``share`` of positions (at least one): [batch] in 0..1.

    An even map gives ``share`` itself, a single position 1.

    >>> concentration(torch.tensor([[[8.0, 1.0, 1.0, -5.0]]]), share=0.25).tolist()
    [0.8]
    """
    if not 0 < share <= 1:
        raise InputError(f"share={share:g} of the positions was asked; above 0, at most 1")
    positive = maps.flatten(1).clamp(min=0).double()
    count = max(1, round(share * positive.shape[1]))
    return _share(positive.topk(count, 1).values.sum(1), positive)


def inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive values on positions that the mask touches: [batch]. ``masks`` bool [batch, height, width]."""
    touched = _touched(maps, masks)
    positive = maps.flatten(1).clamp(min=0).double()
    return _share((positive * touched).sum(1), positive)


def pointing(maps: Tensor, masks: Tensor) -> Tensor:
    """1 where the largest value lies on a position that the mask touches (the pointing game, Zhang et al. 2016), else 0: [batch]."""
    flat = maps.flatten(1)
    hit = _touched(maps, masks).gather(1, flat.argmax(1, keepdim=True))[:, 0]
    return torch.where(flat.amax(1) > 0, hit, torch.nan)


def coverage(maps: Tensor, masks: Tensor, mass: float = 0.5) -> Tensor:
    """Share of the object's positions among the fewest that hold ``mass`` of the positive values: [batch], comprehensiveness.

    1 where those positions take in the whole object, small where all evidence is on a corner of it.

    >>> coverage(torch.tensor([[[5.0, 4.0, 1.0, 0.0]]]), torch.tensor([[[True, True, False, False]]]), mass=0.6).tolist()
    [1.0]
    """
    if not 0 < mass <= 1:
        raise InputError(f"mass={mass:g} of the positive values was asked; above 0, at most 1")
    touched = _touched(maps, masks)
    positive = maps.flatten(1).clamp(min=0).double()
    order = positive.argsort(stable=True, dim=1, descending=True)
    held = positive.gather(1, order).cumsum(1)
    before = torch.cat([torch.zeros_like(held[:, :1]), held[:, :-1]], 1)  # what the positions before hold: enough already, or not yet
    taken = (before < mass * held[:, -1:] * (1 - 1e-12)).double()
    chosen = torch.zeros_like(taken).scatter(1, order, taken)
    share = (chosen * touched).sum(1) / touched.sum(1).clamp_min(1)
    return torch.where((held[:, -1] > 0) & (touched.sum(1) > 0), share, torch.nan)


def chance(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the positions that the mask touches: what an even map has inside, and what a blind guess hits, [batch]."""
    return _touched(maps, masks).mean(1)


def _touched(maps: Tensor, masks: Tensor) -> Tensor:
    """1 where a position's cell holds a pixel of the mask, else 0: float64 [batch, positions]."""
    if masks.ndim != 3 or len(masks) != len(maps) or maps.ndim != 3:
        raise InputError(f"masks [batch, height, width] go with maps [batch, rows, columns]; found {tuple(masks.shape)} and {tuple(maps.shape)}")
    size = (maps.shape[1], maps.shape[2])
    return adaptive_max_pool2d(masks[:, None].float(), size)[:, 0].flatten(1).double().to(maps.device)


def _share(part: Tensor, positive: Tensor) -> Tensor:
    total = positive.sum(1)
    return torch.where(total > 0, part / total.clamp_min(torch.finfo(total.dtype).tiny), torch.nan)
