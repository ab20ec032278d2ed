"""Where to look next: the refinement of a path until its defects are small.

Holds the state of one sample's path (nodes, values, slopes) and the rule that bisects its worst segments. It
evaluates nothing: ``methods.integrated_gradients`` asks ``wanted`` for nodes, evaluates them, and ``add``s them.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zeroline.maths.quadrature import defects

START = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Tolerance:
    """When a path is good enough.

    |E| <= ``total`` * scale and sum |r_k| <= ``local`` * scale, where scale is |D|, or the range of f along the
    path where D itself is rounding. ``resolution`` is the relative rounding of f (an epsilon of the model's dtype).
    """

    total: float
    local: float
    max_evaluations: int
    resolution: float


@dataclass
class Path:
    """One sample's nodes on [0, 1], kept sorted, with f and the directional derivative s at each."""

    tolerance: Tolerance
    difference: float
    nodes: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    slopes: list[float] = field(default_factory=list)

    def add(self, node: float, value: float, slope: float) -> None:
        """Put in an evaluated node: t, f(t), s(t)."""
        where = bisect(self.nodes, node)
        self.nodes.insert(where, node)
        self.values.insert(where, value)
        self.slopes.insert(where, slope)

    def defects(self) -> Tensor:
        """r_k of every segment, in the order of the nodes."""
        return defects(self.nodes, torch.tensor(self.values, dtype=torch.float64), torch.tensor(self.slopes, dtype=torch.float64))

    @property
    def floor(self) -> float:
        """The rounding of f along this path: a defect below it says nothing."""
        return 4 * self.tolerance.resolution * max(map(abs, self.values))

    @property
    def scale(self) -> float:
        """|D|, or where that is rounding, how far f moves along the path."""
        return abs(self.difference) if abs(self.difference) > 2 * self.floor else max(self.values) - min(self.values)

    def error(self) -> float:
        """The trapezoid rule's attribution error, measured against the difference D."""
        nodes, slopes = torch.tensor(self.nodes, dtype=torch.float64), torch.tensor(self.slopes, dtype=torch.float64)
        return float(torch.trapezoid(slopes, nodes)) - self.difference

    def stopped(self) -> str | None:
        """Why no further node is wanted, or None."""
        if not self.nodes:
            return None
        bad = self.defects().abs()
        total, local = abs(self.error()), float(bad.sum())
        if total <= self.tolerance.total * self.scale and local <= self.tolerance.local * self.scale:
            return "tolerance"
        if bool((bad <= self.floor).all()):
            return "rounding floor"
        if len(self.nodes) >= self.tolerance.max_evaluations:
            return "max_evaluations"
        return None

    def wanted(self) -> list[float]:
        """The nodes to evaluate next: middles of the segments that hold most of the defect, worst first.

        A round bisects the fewest segments that together hold half of sum |r_k|, at most a quarter of all:
        few, because a bisection cuts its own defect to about an eighth.
        """
        if not self.nodes:
            return list(START[: max(2, self.tolerance.max_evaluations)]) if self.tolerance.max_evaluations >= 5 else [0.0, 1.0]
        bad = self.defects().abs()
        order = bad.argsort(descending=True, stable=True).tolist()
        most = min(max(1, len(order) // 4), self.tolerance.max_evaluations - len(self.nodes))
        chosen: list[float] = []
        held = 0.0
        for segment in order[:most]:
            if float(bad[segment]) <= self.floor or held >= float(bad.sum()) / 2:
                break
            chosen.append((self.nodes[segment] + self.nodes[segment + 1]) / 2)
            held += float(bad[segment])
        return chosen
