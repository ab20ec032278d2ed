"""Closing the sum: sharing out what the quadrature left, by a stated rule.

Holds the discrete gradient (Gonzalez 1996, "Time integration and discrete Hamiltonian systems"). It makes the
sum exact and leaves the map as good or bad as it was, which is why the record keeps the raw error beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def discrete_gradient(values: Sequence[Tensor], steps: Sequence[Tensor], error: Tensor) -> list[Tensor]:
    """``a - E d^2 / |d|^2``: values whose sum is the difference, for any number of segments.

    On a segment from u to v with mean gradient g, the discrete gradient is
    ``g + (f(v) - f(u) - <g, v - u>)(v - u) / |v - u|^2``; summed over the segments of a straight path with
    step d this is the formula above. ``values`` and ``steps`` are lists (one per part of a joint site) of
    [batch, ...]; ``error`` is [batch]. Where d = 0 there is nothing to share out and nothing changes.
    """
    square = torch.stack([d.to(error).flatten(1).square().sum(1) for d in steps]).sum(0)
    share = torch.where(square > 0, error / square.clamp_min(torch.finfo(square.dtype).tiny), torch.zeros_like(error))
    closed = []
    for a, d in zip(values, steps):
        per_sample = share.view(-1, *[1] * (d.ndim - 1))
        closed.append((a.to(error) - per_sample * d.to(error).square()).to(a.dtype))
    return closed
