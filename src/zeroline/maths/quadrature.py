"""Nodes and weights on [0, 1]: how an integral along a path becomes a weighted sum of gradients.

Holds the fixed rules (a table) and the trapezoid on given nodes. The adaptive rule, which chooses its nodes,
is ``maths.adaptive``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zeroline.errors import NotFoundError, UsageError

Rule = tuple[Tensor, Tensor]


def gausslegendre(steps: int) -> Rule:
    """Gauss-Legendre: exact for polynomials up to degree 2 steps - 1 (Golub & Welsch 1969).

    >>> nodes, weights = gausslegendre(3)
    >>> bool(torch.isclose((weights * nodes**5).sum(), torch.tensor(1 / 6, dtype=torch.float64)))
    True
    """
    k = torch.arange(1, steps, dtype=torch.float64)
    off = k / (4 * k**2 - 1).sqrt()
    roots, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (roots + 1) / 2, vectors[0] ** 2


def midpoint(steps: int) -> Rule:
    """The middle of each of ``steps`` equal segments."""
    return (torch.arange(steps, dtype=torch.float64) + 0.5) / steps, _equal(steps)


def riemann(steps: int) -> Rule:
    """The far end of each segment, k / steps for k = 1..steps (Sundararajan 2017, equation 3)."""
    return torch.arange(1, steps + 1, dtype=torch.float64) / steps, _equal(steps)


def riemann_left(steps: int) -> Rule:
    """The near end of each segment, k / steps for k = 0..steps - 1."""
    return torch.arange(steps, dtype=torch.float64) / steps, _equal(steps)


def trapezoid(steps: int) -> Rule:
    """``steps`` equally spaced nodes with both ends, at least 2."""
    if steps < 2:
        raise UsageError(f"the trapezoid rule needs n_steps of 2 or more; found {steps}")
    nodes = torch.linspace(0, 1, steps, dtype=torch.float64)
    return nodes, trapezoid_weights(nodes)


RULES: dict[str, Callable[[int], Rule]] = {
    "gausslegendre": gausslegendre,
    "midpoint": midpoint,
    "trapezoid": trapezoid,
    "riemann": riemann,
    "riemann_left": riemann_left,
}


def rule(name: str, steps: int) -> Rule:
    """Nodes and weights [steps], float64; the weights add up to 1."""
    if name not in RULES:
        raise NotFoundError.among("path rule", name, ["adaptive", *RULES])
    if steps < 1:
        raise UsageError(f"n_steps must be 1 or more; found {steps}")
    return RULES[name](steps)


def trapezoid_weights(nodes: Tensor) -> Tensor:
    """Weights of the trapezoid rule on sorted nodes: half the sum of the two segments that meet there.

    >>> trapezoid_weights(torch.tensor([0.0, 0.5, 1.0])).tolist()
    [0.25, 0.5, 0.25]
    """
    lengths = nodes.diff()
    weights = torch.zeros_like(nodes)
    weights[:-1] += lengths / 2
    weights[1:] += lengths / 2
    return weights


def coarse_weights(nodes: Tensor) -> Tensor:
    """Trapezoid weights on every second node (both ends kept), 0 at the nodes left out.

    The difference between the two rules estimates the error of the map at no further evaluation.
    """
    kept = torch.arange(len(nodes)) % 2 == 0
    kept[-1] = True
    weights = torch.zeros_like(nodes)
    weights[kept] = trapezoid_weights(nodes[kept])
    return weights


def defects(nodes: Sequence[float] | Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """Segment defects r_k = f_{k+1} - f_k - (t_{k+1} - t_k)(s_k + s_{k+1}) / 2: [nodes - 1].

    Their sum is minus the attribution error of the trapezoid rule; the sum of their absolute values bounds it
    and cannot cancel between segments.
    """
    nodes = torch.as_tensor(nodes, dtype=torch.float64, device=values.device)
    return values.diff() - nodes.diff() * (slopes[:-1] + slopes[1:]) / 2


def _equal(steps: int) -> Tensor:
    return torch.full((steps,), 1 / steps, dtype=torch.float64)
