"""One target, every correction of the attention and both coverages, side by side, with the numbers that tell them apart.

Holds the ``Corrections`` record. Our reading of Cui, Fan & Chen 2026 ("guided attention"): positive, absolute, negative and signed gradient
corrections, complete and incomplete, show different parts of what a model uses. Asking the model is ``zeroline.measure.corrections``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroline import records
from zeroline.comparison import aligned
from zeroline.maths.evidence import chance, coverage, inside, pointing
from zeroline.maths.rank import spearman
from zeroline.relevance import Relevance

FORMAT = 1
KIND = "corrections"
HEAD = ("correction", "coverage", "inside", "points", "object covered", "most alike", "least alike")


@dataclass(frozen=True, eq=False)
class Corrections:
    """Records by ``"correction, coverage"``; ``stream`` is the source whose maps are compared, ``mask`` bool [batch, height, width] or None."""

    members: Mapping[str, Relevance]
    stream: str
    mask: Tensor | None = None

    def maps(self, label: str) -> Tensor:
        """The map of a member, [batch, rows, columns]; tokens that lie on no grid are one row."""
        one = self.members[label]
        return one.grid(self.stream) if one.tokens[self.stream].grid else one.of(self.stream)[:, None]

    def figures(self) -> dict[str, dict[str, Tensor]]:
        """``inside``, ``pointing``, ``coverage`` and ``chance`` per member, [batch] each; empty without a mask."""
        if self.mask is None:
            return {}
        measures = {"inside": inside, "pointing": pointing, "coverage": coverage, "chance": chance}
        return {label: {name: measure(self.maps(label), self.mask) for name, measure in measures.items()} for label in self.members}

    def agreement(self) -> Tensor:
        """Spearman's rho of every member's map with every other's: [batch, members, members]."""
        flat = torch.stack([self.maps(label).flatten(1).double() for label in self.members], 1)
        return spearman(flat[:, :, None].expand(-1, -1, len(self.members), -1), flat[:, None].expand(-1, len(self.members), -1, -1))

    def rows(self, sample: int = 0) -> list[tuple[str, ...]]:
        """The table below ``HEAD``."""
        figures, agreement, labels = self.figures(), self.agreement()[sample], list(self.members)
        found = []
        for i, label in enumerate(labels):
            correction, covered = label.split(", ")
            shares = [float(figures[label][name][sample]) for name in ("inside", "pointing", "coverage")] if figures else [math.nan] * 3
            cells = ["-" if math.isnan(share) else f"{share:.0%}" for share in shares]
            cells[1] = "-" if math.isnan(shares[1]) else "yes" if shares[1] else "no"
            others = [(float(agreement[i, j]), labels[j]) for j in range(len(labels)) if j != i and agreement[i, j] == agreement[i, j]]
            ends = [f"{rho:+.2f} {name}" for rho, name in (max(others), min(others))] if others else ["-", "-"]
            found.append((correction, covered, *cells, *ends))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values, as JSON types."""
        figures = {label: {name: [None if v != v else v for v in f.tolist()] for name, f in each.items()} for label, each in self.figures().items()}
        agreement = [[[None if v != v else v for v in row] for row in sample] for sample in self.agreement().tolist()]
        return {
            "kind": KIND,
            "format": FORMAT,
            "stream": self.stream,
            "members": {label: one.to_dict() for label, one in self.members.items()},
            "figures": figures,
            "agreement": agreement,
        }

    def save(self, path: str | Path) -> None:
        """Write all members to one safetensors file (to a temporary name first, then renamed)."""
        tensors, kept = records.together(self.members)
        if self.mask is not None:
            tensors["mask"] = self.mask
        records.write(path, tensors, {**self.to_dict(), "members": kept})

    @classmethod
    def load(cls, path: str | Path) -> Corrections:
        """Read a record that ``save`` wrote. Raises LoadError where the file is not one."""
        return records.load(path, "corrections", cls.unpacked)

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], where: str) -> Corrections:
        """What ``save`` wrote, as a record again; ``where`` is named in errors."""
        records.check(record, KIND, FORMAT, where)
        members = {label: Relevance.unpacked(own, one, where) for label, own, one in records.apart(tensors, record["members"])}
        return cls(members, record["stream"], tensors.get("mask"))

    def __repr__(self) -> str:
        first = next(iter(self.members.values()))
        return f"{len(self.members)} corrections for the {first.target[0]}\n{aligned([HEAD, *self.rows()])}"
