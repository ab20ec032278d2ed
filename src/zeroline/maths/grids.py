"""From values at any site to a map on the picture: sums over channels, tokens on a grid.

Pure tensors; what the grid of a model is, ``zeroline.model.families`` knows.
"""

from __future__ import annotations

import math

from torch import Tensor

from zeroline.errors import SiteError


def as_map(values: Tensor, grid: tuple[int, int] | None = None, prefix: int | None = None) -> Tensor:
    """Values [batch, ...] as a signed map [batch, height, width]; sums, never means, so the total stays.

    [batch, channels, height, width] is summed over channels, and so is
    [batch, height, width, channels] where ``grid`` says so. [batch, tokens, width] is summed over the width; the
    first ``prefix`` tokens (class, registers) are left out of the map and the rest laid on ``grid``. Without a
    grid the tokens must be a square number, with or without one class token.
    """
    if values.ndim == 4:
        return values.sum(-1 if channels_last(values, grid) else 1)
    if values.ndim != 3:
        raise SiteError(f"values of shape {tuple(values.shape)} are no picture; expected [batch, channels, height, width] or [batch, tokens, width]")
    tokens = values.sum(-1)
    count = tokens.shape[1]
    if grid is None:
        grid, prefix = _square(count)
    height, width = grid
    prefix = count - height * width if prefix is None else prefix
    if prefix < 0 or count - prefix != height * width:
        asked = f"a grid of {height} x {width} with {max(prefix, 0)} prefix tokens"
        raise SiteError(f"{asked} has {height * width + max(prefix, 0)} tokens; the site has {count}")
    return tokens[:, prefix:].reshape(-1, height, width)


def channels_last(values: Tensor, grid: tuple[int, int] | None) -> bool:
    """Are values of four dimensions [batch, height, width, channels]? Where the grid is that of the two dimensions after the batch alone."""
    return grid is not None and tuple(values.shape[1:3]) == tuple(grid) and tuple(values.shape[2:4]) != tuple(grid)


def _square(count: int) -> tuple[tuple[int, int], int]:
    for prefix in (0, 1):
        side = math.isqrt(count - prefix)
        if side > 1 and side * side == count - prefix:
            return (side, side), prefix
    raise SiteError(f"{count} tokens are no square grid, with or without a class token; give grid=(height, width) and prefix")
