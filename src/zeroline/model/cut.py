"""Is the site a cut: does every path from the input to the target pass it?

Holds the test: run the model on another input with the site's features set to those of x. A cut gives f(x)
back; masks, positions and the other integer inputs are part of the other input. The answer belongs to the
model's structure, so it is kept per model, site, target and input signature until a weight changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zeroline.attribution import rounding
from zeroline.model.identity import Memory
from zeroline.model.inputs import Inputs

_SLACK = 1e-4  # of |f(x) - f(x0)|: batched kernels round differently, real side paths are far above it
known: Memory[bool] = Memory()


def verdict(resolution: float, f_x: Tensor, f_other: Tensor, f_mixed: Tensor) -> bool | None:
    """From f(x), f(x0) and f(x0 with the site's features of x): a cut, not one, or None where f cannot tell."""
    noise = rounding(resolution, f_x, f_other, f_mixed)
    tells = (f_x - f_other).abs() > 4 * noise
    same = (f_mixed - f_x).abs() <= noise + _SLACK * (f_x - f_other).abs()
    if not bool(same.all()):
        return False
    return True if bool(tells.any()) else None


def probe(inputs: Inputs) -> Inputs:
    """Another input to test with where the baseline names none: x reversed along its last axis and rescaled.

    Ids are reversed; masks (0 and 1 only) and position-like inputs are left as they are.
    """
    reversed_ids = {name: t.flip(-1) for name, t in inputs.ids().items() if t.ndim == 2 and int(t.max()) > 1 and not _is_range(t)}
    moved = {name: t.flip(-1) * 0.75 + 0.1 for name, t in inputs.floating().items()}
    return inputs.with_values({**reversed_ids, **moved})


def test(resolution: float, f_x: Tensor, run_other: Callable[[bool], Tensor], f_other: Tensor | None) -> bool | None:
    """``run_other(mixed)`` gives f on the other input, with the site's features of x where ``mixed``."""
    f_mixed = run_other(True)
    if f_other is None:
        if bool(((f_mixed - f_x).abs() > _SLACK * f_x.abs() + rounding(resolution, f_x, f_mixed)).any()):
            return False
        f_other = run_other(False)
    return verdict(resolution, f_x, f_other, f_mixed)


def _is_range(tensor: Tensor) -> bool:
    steps = torch.arange(tensor.shape[-1], device=tensor.device)
    return bool((tensor == steps).all())
