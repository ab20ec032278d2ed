"""How small a change rewrites each picture of a set: the smallest epsilon per picture, the share that a budget rewrites, the fragile patches.

Holds the ``Robustness`` record. Asking the model is ``zeroline.guided.robustness``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroline import records
from zeroline.comparison import aligned
from zeroline.maths.intervals import median_interval, wilson
from zeroline.rewriting import amount

FORMAT = 1
KIND = "robustness"
HEAD = ("picture", "is", "becomes", "smallest epsilon", "PSNR", "SSIM", "most fragile cell", "alone")
SUMMARY = ("model", "pictures", "median smallest epsilon", "rewritten", "PSNR", "SSIM", "survive", "evaluations")


@dataclass(frozen=True, eq=False)
class Robustness:
    """One row per picture; where none was found within ``most``, ``smallest`` is infinite and the rest of the row is that of the nearest try.

    ``norm`` is ``"linf"`` or ``"l2"``, ``smallest`` [pictures] in pixels of 0..1; ``psnr`` in dB. ``fragility`` [pictures, rows, columns] is the part
    of the margin's gain that the change in one cell alone brings, ``f(x + d on the cell) - f(x)`` over ``f(x + d) - f(x)`` with f the margin, NaN
    without success; the cells of a picture need not add up to 1. ``agreement`` [pictures]: Spearman's rho of fragility with the attention
    relevance of the class before, NaN where there is none. ``survived``: the share of the rewritten that outlives each handling, over the successes.
    ``failures``: pictures that could not be asked about, and why.
    """

    model: str
    names: tuple[str, ...]
    own: tuple[str, ...]
    to: tuple[str, ...]
    norm: str
    most: float
    smallest: Tensor
    psnr: Tensor
    ssim: Tensor
    evaluations: Tensor
    fragility: Tensor
    agreement: Tensor
    survived: Mapping[str, float]
    settings: Mapping[str, Any]
    failures: Mapping[str, str]

    @property
    def success(self) -> Tensor:
        """Was the picture rewritten within the budget? bool [pictures]"""
        return self.smallest.isfinite()

    def rate(self, epsilon: float) -> tuple[float, float, float]:
        """Share of the pictures that a budget rewrites, with Wilson's 95 % interval."""
        count = int((self.smallest <= epsilon * (1 + 1e-9)).sum())
        return count / len(self.names), *wilson(count, len(self.names))

    def budgets(self) -> list[float]:
        """Where the curve is drawn: every level up to 16 and doublings beyond under L-infinity, else 24 steps up to the budget."""
        if self.norm == "l2":
            return [self.most * (i + 1) / 24 for i in range(24)]
        top = round(self.most * 255)
        levels = [level for level in [*range(1, 17), 24, 32, 48, 64, 96, 128, 192] if level < top]
        return [level / 255 for level in [*levels, top]]

    def median(self) -> tuple[float, float, float]:
        """Median smallest epsilon with its 95 % interval; infinite where half of the pictures stood."""
        return median_interval(self.smallest.tolist())

    def additivity(self) -> Tensor:
        """What the cells of a picture bring alone, together: 1 where changes in different cells do not need each other. [pictures]"""
        return self.fragility.flatten(1).sum(1)

    def fragile(self) -> Tensor:
        """Mean fragility of each cell over the pictures that were rewritten: [rows, columns]."""
        return self.fragility.nanmean(0)

    def words(self, epsilon: float) -> str:
        """An epsilon in its unit."""
        return f"> {amount(self.norm, self.most)}" if math.isinf(epsilon) else amount(self.norm, epsilon)

    def summary(self) -> tuple[str, ...]:
        """One row below ``SUMMARY``."""
        middle, low, high = self.median()
        share, least, greatest = self.rate(self.most)
        done = self.success
        mean = [f"{float(values[done].median()):.{digits}f}" if bool(done.any()) else "-" for values, digits in ((self.psnr, 1), (self.ssim, 4))]
        return (
            self.model,
            str(len(self.names)),
            f"{self.words(middle)} ({self.words(low)} to {self.words(high)})",
            f"{share:.0%} ({least:.0%} to {greatest:.0%}) within {amount(self.norm, self.most)}",
            f"{mean[0]} dB" if mean[0] != "-" else "-",
            mean[1],
            ", ".join(f"{name} {part:.0%}" for name, part in self.survived.items()) or "-",
            f"{float(self.evaluations.double().mean()):.0f}",
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The table below ``HEAD``, the most fragile pictures first."""
        found: list[tuple[str, ...]] = []
        for i in torch.argsort(self.smallest, stable=True).tolist():
            good, cells = bool(self.success[i]), self.fragility[i]
            best = int(cells.nan_to_num(-torch.inf).argmax())
            place = f"row {best // cells.shape[1]}, column {best % cells.shape[1]}"
            found.append(
                (
                    self.names[i],
                    self.own[i],
                    self.to[i] if good else "-",
                    self.words(float(self.smallest[i])),
                    f"{float(self.psnr[i]):.1f} dB" if good else "-",
                    f"{float(self.ssim[i]):.4f}" if good else "-",
                    place if good else "-",
                    f"{float(cells.flatten()[best]):.0%}" if good else "-",
                )
            )
        return found

    def curve(self) -> list[dict[str, float]]:
        """Share rewritten and its interval at each of ``budgets``."""
        return [dict(zip(("epsilon", "share", "low", "high"), (epsilon, *self.rate(epsilon)))) for epsilon in self.budgets()]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the fragility maps, as JSON types."""
        middle = [None if math.isinf(v) else v for v in self.median()]
        return {
            "kind": KIND,
            "format": FORMAT,
            "model": self.model,
            "norm": self.norm,
            "most": self.most,
            "median": dict(zip(("epsilon", "low", "high"), middle)),
            "curve": self.curve(),
            "survived": dict(self.survived),
            "pictures": [
                {
                    "name": self.names[i],
                    "own": self.own[i],
                    "to": self.to[i],
                    "smallest": known(float(self.smallest[i])),
                    "psnr": known(float(self.psnr[i])),
                    "ssim": known(float(self.ssim[i])),
                    "evaluations": int(self.evaluations[i]),
                    "additivity": known(float(self.additivity()[i])),
                    "agreement": known(float(self.agreement[i])),
                }
                for i in range(len(self.names))
            ],
            "settings": dict(self.settings),
            "failures": dict(self.failures),
        }

    def save(self, path: str | Path) -> None:
        """Write the record to one safetensors file (to a temporary name first, then renamed)."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        records.write(path, tensors, {**self.to_dict(), **{name: list(getattr(self, name)) for name in _LISTS}})

    @classmethod
    def load(cls, path: str | Path) -> Robustness:
        """Read a record that ``save`` wrote. Raises LoadError where the file is not one."""
        return records.load(path, "a robustness", cls.unpacked)

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], where: str) -> Robustness:
        """What ``save`` wrote, as a record again; ``where`` is named in errors."""
        records.check(record, KIND, FORMAT, where)
        known: dict[str, Any] = {name: record[name] for name in ("model", "norm", "most", "survived", "settings", "failures")}
        known |= {name: tuple(record[name]) for name in _LISTS} | {name: tensors[name] for name in _TENSORS}
        return cls(**known)

    def __repr__(self) -> str:
        return f"{table([self])}\n{aligned([HEAD, *self.rows()])}"


_LISTS = ("names", "own", "to")
_TENSORS = ("smallest", "psnr", "ssim", "evaluations", "fragility", "agreement")


def table(found: Sequence[Robustness]) -> str:
    """Several models' figures, one line each."""
    return aligned([SUMMARY, *(one.summary() for one in found)])


def known(value: float) -> float | None:
    """A number for JSON, which has neither NaN nor infinity."""
    return value if math.isfinite(value) else None
