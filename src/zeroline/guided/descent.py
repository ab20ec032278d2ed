"""Projected gradient steps with momentum on the pixels of pictures, until the model says another class.

    m(q)     = logit_to(q) - max_{c != to} logit_c(q)                the margin; above 0 the model says ``to``
    g_k      = mu g_{k-1} + grad m(q_k) / |grad m(q_k)|_1            momentum (Dong et al. 2018, "Boosting adversarial attacks with momentum")
    d_{k+1}  = P(d_k + a_k sign(g_k))     or, under an L2 or similarity budget,     P(d_k + a_k g_k / |g_k|_2)
    q_k      = 8-bit(x + d_k)

``P`` is the projection onto the budget and 0..1, ``a_k`` falls from half the budget to a tenth of it along a cosine. The model is always asked about
the 8-bit picture q, and its gradient there is taken for the gradient at x + d (rounding passes it on as it is). A row that a judge accepts
leaves the batch; rows never share anything, so a batch gives what its rows give alone. The margin, not the cross-entropy: its gradient does not
vanish where the model is sure (Carlini & Wagner 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zeroline.maths.budgets import Budget, quantised

Margin = Callable[[Tensor, Tensor], Tensor]  # pixels [rows, 3, h, w], which pictures they are of [rows] -> margins [rows], with a graph
Judge = Callable[[Tensor, Tensor], Tensor]  # the same -> bool [rows]: does the saved picture do it?
MOMENTUM = 0.75
_FIRST, _LAST = 0.5, 0.1  # steps as shares of the budget
_SLIGHT, _FREE = 2 / 255, 32 / 255  # steps where similarity, or only a place, bounds the change


class Search:
    """What the steps have found so far, per row: the 8-bit picture, whether a judge accepted it, gradient evaluations and judgements.

    The picture is the accepted one; where there is none, the one with the largest margin that was seen.
    """

    def __init__(self, original: Tensor, lead: float) -> None:
        count = len(original)
        self.pixels = original.clone()
        self.success = torch.zeros(count, dtype=torch.bool)
        self.evaluations = torch.zeros(count, dtype=torch.long)
        self.judged = torch.zeros(count, dtype=torch.long)
        self._largest = torch.full((count,), -math.inf, dtype=torch.float64)
        self._needed = torch.full((count,), float(lead), dtype=torch.float64)

    def left(self) -> Tensor:
        """The rows without success."""
        return (~self.success).nonzero()[:, 0]

    def see(self, rows: Tensor, pixels: Tensor, margins: Tensor, judge: Judge) -> None:
        """Take in pictures and their margins; those that lead by enough are judged."""
        better = margins > self._largest[rows]
        self._largest[rows[better]] = margins[better]
        self.pixels[rows[better]] = pixels[better]
        claimed = margins > self._needed[rows]
        if not bool(claimed.any()):
            return
        asked, shown, reached = rows[claimed], pixels[claimed], margins[claimed]
        accepted = judge(shown, asked)
        self.judged[asked] += 1
        self.pixels[asked[accepted]] = shown[accepted]
        self.success[asked[accepted]] = True
        self._needed[asked[~accepted]] = reached[~accepted]  # what the path through the pixels did not foresee: lead by more


def descend(
    original: Tensor,
    budget: Budget,
    margin: Margin,
    judge: Judge,
    *,
    steps: int,
    lead: float = 0.0,
    restarts: int = 1,
    seed: int = 0,
    start: Tensor | None = None,
) -> Search:
    """Rewrite every row within its budget.

    Args:
        original: 8-bit pictures [rows, 3, height, width] in 0..1. start: a change to begin with (default: none).
        steps: gradient evaluations per attempt at most. lead: the margin to reach, in logits.
        restarts: attempts; each after the first begins at a random change within the budget, drawn from ``seed``, the same for all rows.
    """
    search = Search(original, lead)
    for attempt in range(restarts):
        rows = search.left()
        if not len(rows):
            break
        part = budget.rows(rows)
        first = _random(original[rows], part, seed + attempt) if attempt else torch.zeros_like(original[rows]) if start is None else start[rows]
        _attempt(original, budget, margin, judge, search, rows, part.project(original[rows], first), steps)
    return search


def _attempt(original: Tensor, budget: Budget, margin: Margin, judge: Judge, search: Search, rows: Tensor, change: Tensor, steps: int) -> None:
    """``steps`` steps of the rows without success, one more look at the end."""
    momentum = torch.zeros_like(change)
    for step in range(steps + 1):
        last = step == steps
        pixels = quantised(original[rows] + change).requires_grad_(not last)
        values = margin(pixels, rows)
        gradient = torch.zeros_like(change) if last else torch.autograd.grad(values.sum(), pixels)[0]
        search.evaluations[rows] += int(not last)
        search.see(rows, pixels.detach(), values.detach().double().cpu(), judge)
        kept = ~search.success[rows]
        if last or not bool(kept.any()):
            return
        rows, change, momentum, gradient = rows[kept], change[kept], momentum[kept], gradient[kept]
        part = budget.rows(rows)
        gradient = torch.where(part.where, gradient, 0.0)
        momentum = MOMENTUM * momentum + gradient / _row(gradient.flatten(1).abs().sum(1).clamp_min(1e-30))
        change = part.project(original[rows], change + _step(momentum, part, step / steps))


def _step(direction: Tensor, budget: Budget, progress: float) -> Tensor:
    """The step along the momentum, [rows, 3, height, width]: by length under L2 and similarity, else by signs."""
    share = _LAST + (_FIRST - _LAST) * (1 + math.cos(math.pi * progress)) / 2
    size = share * _row(_reach(budget).to(direction))
    if _by_length(budget):
        return size * direction / _row(direction.flatten(1).norm(dim=1).clamp_min(1e-30))
    return size * direction.sign()


def _random(original: Tensor, budget: Budget, seed: int) -> Tensor:
    """A random change: even within L-infinity, or of a step's length in an even direction."""
    noise = torch.rand(original.shape[1:], generator=torch.Generator().manual_seed(seed)).to(original) * 2 - 1
    return noise * _row(_reach(budget).to(original)) / (noise.norm() if _by_length(budget) else 1)


def _by_length(budget: Budget) -> bool:
    return budget.l2 is not None or budget.ssim is not None


def _reach(budget: Budget) -> Tensor:
    """The longest step per row: the budget; under similarity, as if each channel that may change moved by two levels."""
    if budget.l2 is not None:
        return budget.l2
    if budget.ssim is not None:
        return (3 * budget.where.flatten(1).sum(1)).sqrt() * _SLIGHT
    return torch.full((len(budget.where),), _FREE) if budget.linf is None else budget.linf


def _row(values: Tensor) -> Tensor:
    return values[:, None, None, None]
