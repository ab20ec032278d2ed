"""How far a picture may be changed: L-infinity, L2, structural similarity, and where, kept by 8-bit pictures.

Pure tensors on pixels [rows, 3, height, width] in 0..1, one budget per row. A budget is a statement about the picture that is saved, so every
projection here is onto pictures whose pixels are whole levels of 1/255: what an optimiser may dream of between two levels does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LEVELS = 255
_HALVINGS = 10


def quantised(pixels: Tensor) -> Tensor:
    """The nearest whole levels of 1/255, in 0..1.

    >>> quantised(torch.tensor([0.5, -0.1, 1.2])).mul(255).tolist()
    [128.0, 0.0, 255.0]
    """
    return (pixels * LEVELS).round().clamp(0, LEVELS) / LEVELS


def l2(difference: Tensor) -> Tensor:
    """Euclidean norm over all pixels and channels: [rows]."""
    return difference.flatten(1).double().square().sum(1).sqrt()


def linf(difference: Tensor) -> Tensor:
    """Largest change of any channel of any pixel: [rows]."""
    return difference.flatten(1).abs().amax(1)


@dataclass(frozen=True, eq=False)
class Budget:
    """What a row's change may be: ``linf`` and ``l2`` [rows] in pixels of 0..1 (None: unbounded), ``where`` bool [rows, 1, height, width].

    ``ssim`` [rows] is the least structural similarity, ``similarity(a, b)`` [rows] measures it.
    """

    where: Tensor
    linf: Tensor | None = None
    l2: Tensor | None = None
    ssim: Tensor | None = None
    similarity: Callable[[Tensor, Tensor], Tensor] | None = None

    def rows(self, index: Tensor) -> Budget:
        """The budgets of some rows."""
        linf, l2, ssim = (None if value is None else value[index] for value in (self.linf, self.l2, self.ssim))
        return replace(self, where=self.where[index], linf=linf, l2=l2, ssim=ssim)

    def kept(self, original: Tensor, change: Tensor) -> Tensor:
        """Does the 8-bit picture of a change keep to L2 and similarity? bool [rows] (L-infinity is kept by ``project``)."""
        seen = quantised(original + change)
        fine = torch.ones(len(original), dtype=torch.bool, device=original.device)
        if self.l2 is not None:
            fine &= l2(seen - original) <= self.l2 * (1 + 1e-9)
        if self.ssim is not None and self.similarity is not None:
            fine &= self.similarity(seen, original) >= self.ssim
        return fine

    def project(self, original: Tensor, change: Tensor) -> Tensor:
        """The change brought within the budget: nothing outside ``where``, within L-infinity and 0..1, and shrunk until the rest is kept.

        Shrinking keeps the direction and looks for the largest scale by bisection, on the rounded picture: the float change may then be longer
        than the budget, where rounding takes the excess away.
        """
        change = torch.where(self.where, change, 0.0)
        if self.linf is not None:
            most = self.linf[:, None, None, None]
            change = change.clamp(-most, most)
        change = (original + change).clamp(0, 1) - original
        if self.l2 is None and self.ssim is None:
            return change
        fine = self.kept(original, change)
        if bool(fine.all()):
            return change
        low, high = torch.zeros(len(fine), 1, 1, 1).to(change), torch.ones(len(fine), 1, 1, 1).to(change)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            good = self.kept(original, change * middle)[:, None, None, None]
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        return torch.where(fine[:, None, None, None], change, change * low)


def whole_levels(epsilon: float) -> int:
    """The largest number of levels that an L-infinity budget allows: 2 for 2/255, also for 2.9/255.

    >>> whole_levels(2 / 255), whole_levels(2.9 / 255), whole_levels(0.5 / 255)
    (2, 2, 0)
    """
    return int(epsilon * LEVELS + 1e-6)
