"""Rank correlation: does one quantity rise with another, whatever the shape of the relation?"""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 along the last dimension, equal values sharing the mean of theirs; float64.

    >>> ranks(torch.tensor([10.0, 20.0, 10.0, 30.0])).tolist()
    [1.5, 3.0, 1.5, 4.0]
    """
    exact = values.double().contiguous()
    ordered = exact.sort(-1).values
    below, up_to = (torch.searchsorted(ordered, exact, right=right) for right in (False, True))
    return (below + up_to + 1).double() / 2


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rho along the last dimension: Pearson's correlation of the ranks, in -1..1; NaN where one side is constant or holds NaN.

    >>> float(spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 10.0, 100.0])))
    1.0
    """
    unknown = a.isnan().any(-1) | b.isnan().any(-1)
    x, y = (ranks(side) for side in (a, b))
    x, y = (side - side.mean(-1, keepdim=True) for side in (x, y))
    rho = (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    return rho.masked_fill(unknown, torch.nan)
