"""A whole run in one record: how exact its explanations are, where their evidence lies, which examples to look at first.

Holds ``Summary`` and ``Disagreement`` (of two runs over the same examples). Reading a run is ``zeroline.scale.summarize``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroline import records
from zeroline.comparison import aligned

FORMAT = 1
KIND = "summary"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
HEAD = ("figure", "examples", "mean", "least", "5 %", "25 %", "median", "75 %", "95 %", "most")
_MAPS = "map/"


@dataclass(frozen=True)
class Spread:
    """How a figure is distributed over ``count`` examples that have it: mean, and the quantiles of ``QUANTILES`` (linear between neighbours)."""

    count: int
    mean: float
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, values: Tensor) -> Spread | None:
        """Of finite values; None where there is none."""
        known = values[values.isfinite()].double()
        if not len(known):
            return None
        at = torch.tensor(QUANTILES, dtype=torch.float64) * (len(known) - 1)
        ordered = known.sort().values
        low, high = ordered[at.floor().long()], ordered[at.ceil().long()]
        return cls(len(known), float(known.mean()), tuple((low + (high - low) * at.frac()).tolist()))

    @property
    def median(self) -> float:
        """The middle quantile."""
        return self.quantiles[QUANTILES.index(0.5)]


@dataclass(frozen=True)
class Disagreement:
    """Two runs, example by example, over ``common`` of their examples.

    ``spreads``: |f(x) of one minus the other|, and, where both have maps of one shape, their ``cosine`` and the ``distance`` |a - b|_1 / |a|_1.
    ``apart``: the examples that agree least, (id, cosine, distance). ``settings``: what was asked otherwise, in words.
    """

    other: str
    common: int
    only_here: int
    only_there: int
    changed: int
    same_target: int
    spreads: Mapping[str, Spread]
    apart: tuple[tuple[str, float, float], ...]
    settings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Summary:
    """``spreads``: figure -> ``Spread``. ``slowest`` and ``least_exact`` are (id, label, what was measured); the latter by |E| / |D|.

    ``maps`` [rows, columns]: the mean signed map of each class (its label, else the target that was explained), ``counts`` how many examples it is
    of. ``histogram`` is (edges, counts) of |E| / |D| on a logarithmic scale, those outside in the outer bins. ``stopped``: reason -> examples.
    """

    folder: str
    model: str
    settings: Mapping[str, Any]
    examples: int
    failed: int
    reasons: Mapping[str, int]
    spreads: Mapping[str, Spread]
    stopped: Mapping[str, int]
    slowest: tuple[tuple[str, str, float], ...]
    least_exact: tuple[tuple[str, str, float], ...]
    histogram: tuple[tuple[float, ...], tuple[int, ...]] | None
    counts: Mapping[str, int]
    maps: Mapping[str, Tensor]
    against: Disagreement | None = None

    def table(self) -> list[tuple[str, ...]]:
        """A row per figure, under ``HEAD``."""
        return [_row(name, spread) for name, spread in self.spreads.items()]

    def rows(self) -> list[tuple[str, str]]:
        """The rest in words, for tables: (label, value) pairs."""
        asked = self.settings
        lines = [
            ("run", f"{self.folder}: {self.examples} examples, {self.failed} failed"),
            ("asked", f"{asked.get('method')} of {self.model}, target {asked.get('target')}, baseline {asked.get('baseline')}"),
        ]
        lines += [(f"failed: {reason}", str(count)) for reason, count in self.reasons.items()]
        lines += [(f"stopped by {reason}", f"{count} ({count / max(self.examples, 1):.1%})") for reason, count in self.stopped.items()]
        if "evidence inside the object" in self.spreads:
            inside, chance = self.spreads["evidence inside the object"], self.spreads["chance"]
            hit = self.spreads["largest value inside"].mean
            lines.append(("evidence inside the object", f"{inside.mean:.1%} of it, the largest value in {hit:.1%}; chance {chance.mean:.1%}"))
        lines += [("slowest", f"{id}{_of(label)}: {seconds:.3g} s") for id, label, seconds in self.slowest]
        lines += [("least exact", f"{id}{_of(label)}: error {share:.2%} of the difference") for id, label, share in self.least_exact]
        return lines + ([] if self.against is None else _against(self.against))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the maps, as JSON types."""
        plain = ("folder", "model", "examples", "failed")
        return {
            "format": FORMAT,
            "kind": KIND,
            **{name: getattr(self, name) for name in plain},
            **{name: dict(getattr(self, name)) for name in ("settings", "reasons", "stopped", "counts")},
            "spreads": {name: asdict(spread) for name, spread in self.spreads.items()},
            "slowest": [list(one) for one in self.slowest],
            "least_exact": [list(one) for one in self.least_exact],
            "histogram": None if self.histogram is None else [list(side) for side in self.histogram],
            "against": None if self.against is None else asdict(self.against),
        }

    def save(self, path: str | Path) -> None:
        """Write maps and record to one safetensors file (to a temporary name first, then renamed)."""
        maps = {f"{_MAPS}{number}": map_ for number, map_ in enumerate(self.maps.values())}
        records.write(path, maps, {**self.to_dict(), "classes": list(self.maps)})

    @classmethod
    def load(cls, path: str | Path) -> Summary:
        """Read a record that ``save`` wrote. Raises LoadError where the file is not one."""
        return records.load(path, "a summary", cls.unpacked)

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], where: str) -> Summary:
        """What ``save`` wrote, as a record again; ``where`` is named in errors."""
        records.check(record, KIND, FORMAT, where)
        own = {name: record[name] for name in ("folder", "model", "settings", "examples", "failed", "reasons", "stopped", "counts")}
        own |= {name: tuple((id, label, value) for id, label, value in record[name]) for name in ("slowest", "least_exact")}
        kept = record["histogram"]
        other = record["against"]
        if other is not None:
            other = Disagreement(
                **{
                    **other,
                    "spreads": _spreads(other["spreads"]),
                    "apart": tuple((id, cosine, distance) for id, cosine, distance in other["apart"]),
                    "settings": tuple(other["settings"]),
                }
            )
        return cls(
            **own,
            spreads=_spreads(record["spreads"]),
            histogram=None if kept is None else (tuple(kept[0]), tuple(kept[1])),
            maps={name: tensors[f"{_MAPS}{number}"] for number, name in enumerate(record["classes"])},
            against=other,
        )

    def __repr__(self) -> str:
        width = max(len(label) for label, _ in self.rows()) + 2
        return "\n".join([*(f"{label:<{width}}{value}" for label, value in self.rows()), "", aligned([HEAD, *self.table()])])

    def _repr_html_(self) -> str:
        return records.as_html("Summary of a run", [*self.rows(), *((row[0], " | ".join(row[1:])) for row in self.table())])


def _row(name: str, spread: Spread) -> tuple[str, ...]:
    return (name, str(spread.count), f"{spread.mean:.3g}", *(f"{value:.3g}" for value in spread.quantiles))


def _spreads(found: Mapping[str, Any]) -> dict[str, Spread]:
    return {name: Spread(one["count"], one["mean"], tuple(one["quantiles"])) for name, one in found.items()}


def _of(label: str) -> str:
    return f" ({label})" if label else ""


def _against(other: Disagreement) -> list[tuple[str, str]]:
    lines = [("against", f"{other.other}: {other.common} examples in both, {other.only_here} only here, {other.only_there} only there")]
    if other.changed:
        lines.append(("changed", f"{other.changed} examples have other contents there: they are left out"))
    lines += [("asked otherwise", words) for words in other.settings]
    lines.append(("same target", f"{other.same_target} of {other.common}"))
    for name, spread in other.spreads.items():
        low, high = spread.quantiles[1], spread.quantiles[5]
        lines.append((name, f"median {spread.median:.3g}, 5 to 95 %: {low:.3g} to {high:.3g}, {spread.count} examples"))
    for id, cosine, distance in other.apart:
        lines.append(("apart", f"{id}: cosine {cosine:+.2f}" + ("" if math.isnan(distance) else f", distance {distance:.2f}")))
    return lines
