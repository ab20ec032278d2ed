"""Laying one picture on another: where, how large, how opaque. Pure tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from zeroline.errors import InputError


def compose(
    host: Tensor, guest: Tensor, at: tuple[int, int], size: tuple[int, int], opacity: float = 1.0, alpha: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``host (1 - a) + guest a`` on the rectangle at ``at`` = (left, top) of ``size`` = (width, height) pixels; ``a`` = opacity alpha.

    ``host`` [3, H, W] and ``guest`` [3, h, w] in 0..1; ``alpha`` [h, w] in 0..1 is the guest's own shape (None: all of it). Gives the
    composed picture and where the guest is, bool [H, W] (alpha above one half, whatever the opacity).

    >>> picture, where = compose(torch.zeros(3, 2, 4), torch.ones(3, 1, 1), at=(1, 0), size=(2, 2), opacity=0.25)
    >>> picture[0].tolist(), where.sum().item()
    ([[0.0, 0.25, 0.25, 0.0], [0.0, 0.25, 0.25, 0.0]], 4)

    Raises InputError for a guest that is not wholly on the host, an empty size, or an opacity outside 0..1.
    """
    (left, top), (width, height) = at, size
    if width < 1 or height < 1:
        raise InputError(f"a guest of {width} x {height} pixels was asked; 1 x 1 or more")
    if not 0 < opacity <= 1:
        raise InputError(f"an opacity of {opacity:g} was asked; above 0, at most 1")
    if not (left >= 0 and top >= 0 and left + width <= host.shape[2] and top + height <= host.shape[1]):
        raise InputError(f"a guest of {width} x {height} at {left},{top} is not wholly on the host of {host.shape[2]} x {host.shape[1]}")
    shape = torch.ones(guest.shape[1:]) if alpha is None else alpha.float()
    resized, mask = (
        interpolate(part[None].float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)
        for part in (guest, shape[None])
    )
    found, where = host.clone(), torch.zeros(host.shape[1:], dtype=torch.bool)
    a = opacity * mask
    window = (slice(top, top + height), slice(left, left + width))
    found[:, window[0], window[1]] = host[:, window[0], window[1]] * (1 - a) + resized * a
    where[window] = mask[0] > 0.5
    return found, where
