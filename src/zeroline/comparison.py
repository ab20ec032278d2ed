"""Several attributions of one target side by side: at several sites, or by several methods.

Holds the ``Comparison`` record: attributions by label, each with its own site, baseline and error, and how their values lie. It
saves, loads and prints; it ranks nobody. Making one is ``zeroline.measure.layers`` and ``zeroline.measure.compare``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from zeroline import records
from zeroline.attribution import Attribution
from zeroline.errors import NotFoundError
from zeroline.relevance import Tokens

FORMAT = 1
KIND = "comparison"
HEAD = ("", "site", "baseline", "sum", "difference", "error", "relative", "local error", "map error", "gradients")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Attributions by label, in order; ``lies[label]`` is how the values lie; ``failures[label]`` why there is none.

    All members explain the same inputs and the same target of the same model.
    """

    members: Mapping[str, Attribution]
    lies: Mapping[str, Tokens] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, label: str) -> Attribution:
        if label not in self.members:
            why = f"it failed: {self.failures[label]}" if label in self.failures else ""
            raise NotFoundError.among("attribution", label, self.members, why)
        return self.members[label]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in order."""
        return tuple(self.members)

    @property
    def target(self) -> tuple[str, ...]:
        """What is explained, in words, per sample."""
        return next(iter(self.members.values())).target

    def rows(self, sample: int = 0) -> list[tuple[str, ...]]:
        """The figures of one sample, a row per member, in the order of ``HEAD``."""
        return [(label, *figures(one.sample(sample))) for label, one in self.members.items()]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values, as JSON types."""
        return {
            "kind": KIND,
            "format": FORMAT,
            "members": {label: one.to_dict() for label, one in self.members.items()},
            "lies": {label: {"prefix": lie.prefix, "grid": None if lie.grid is None else list(lie.grid)} for label, lie in self.lies.items()},
            "failures": dict(self.failures),
        }

    def save(self, path: str | Path) -> None:
        """Write all members to one safetensors file (to a temporary name first, then renamed)."""
        tensors, kept = records.together(self.members)
        records.write(path, tensors, {**self.to_dict(), "members": kept})

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read a record that ``save`` wrote. Raises LoadError where the file is not one."""
        return records.load(path, "a comparison", cls.unpacked)

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], where: str) -> Comparison:
        """What ``save`` wrote, as a record again; ``where`` is named in errors."""
        records.check(record, KIND, FORMAT, where)
        members = {label: Attribution.unpacked(own, one, where) for label, own, one in records.apart(tensors, record["members"])}
        lies = {label: Tokens(lie["prefix"], None if lie["grid"] is None else tuple(lie["grid"])) for label, lie in record["lies"].items()}
        return cls(members, lies, record["failures"])

    def __repr__(self) -> str:
        size = len(self.target)
        more = f"\n  ... and {size - 1} more samples: .rows(i)" if size > 1 else ""
        failed = "".join(f"\n  {label}: {why}" for label, why in self.failures.items())
        return f"{len(self.members)} attributions of the {self.target[0]}\n{aligned([HEAD, *self.rows()])}{failed}{more}"

    def _repr_html_(self) -> str:
        lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in (HEAD, *self.rows()))
        return f"<table><caption>{escape(self.target[0])}</caption>{lines}</table>"


def figures(one: Attribution) -> tuple[str, ...]:
    """Site, baseline, sum, difference, errors and evaluations of a record of one sample, in words."""
    relative = one.relative_error
    share = "undefined" if relative is None else f"{float(relative[0]):.2%}"
    local, apart = (None if figure is None or bool(figure[0].isnan()) else float(figure[0]) for figure in (one.local_error, one.map_error))
    return (
        one.site,
        one.baseline,
        f"{float(one.total[0]):.4g}",
        f"{float(one.difference[0]):.4g}",
        f"{float(one.error[0]):+.3g}",
        share,
        "-" if local is None else f"{local:.3g}",
        "-" if apart is None else f"{apart:.3g}",
        str(int(one.evaluations[0])),
    )


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows as lines of text with aligned columns."""
    known = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*known)]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in known)
