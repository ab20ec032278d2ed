"""Which baseline should be used here? What a model says on each candidate, and what follows from it.

Holds the ``BaselineAudit`` record: for every baseline the class distribution that the model gives there, f there, the distance to the
input; and the reading of these figures in words (``verdict``, ``advice``), by the thresholds below. Asking the model is
``zeroline.measure.baseline_audit``.

The reasoning: values are measured from the baseline, so what the model already believes there is never explained. A baseline
is good where the model has no opinion (KL from uniform near 0), where the target tells it from x, and where it does not give
x's own answer. Among those that are alike in this, the one nearest to x leaves the least to chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroline import records
from zeroline.attribution import rounding
from zeroline.comparison import aligned
from zeroline.errors import NotFoundError

FORMAT = 1
KIND = "audit"
NEUTRAL = 0.05  # KL from uniform over log K: up to here the model has no opinion ...
LEANING = 0.5  # ... up to here it leans, above (or with a class above one half, 0.75 of two) it is confident
ALIKE = 0.05  # shares of log K closer than this are no reason to prefer a baseline
HEAD = ("baseline", "f there", "difference", "KL", "KL / log K", "entropy / log K", "top class", "probability", "distance", "verdict")


@dataclass(frozen=True, eq=False)
class Audited:
    """One baseline. Per sample: ``output`` f(do(z := z0)), ``reference_output`` f(x0) (None at the site), ``probabilities`` [batch, K],
    ``distance`` root mean square of z - z0."""

    output: Tensor
    probabilities: Tensor
    distance: Tensor
    reference_output: Tensor | None = None

    @property
    def kl(self) -> Tensor:
        """KL(p, uniform) = log K - H(p), in nats, [batch]."""
        p = self.probabilities.cpu().double()
        found: Tensor = torch.special.xlogy(p, p).sum(-1) + math.log(p.shape[-1])
        return found.clamp_min(0)

    @property
    def opinion(self) -> Tensor:
        """KL over log K: 0 for the uniform distribution, 1 for certainty, [batch]."""
        return self.kl / math.log(self.probabilities.shape[-1])


@dataclass(frozen=True, eq=False)
class BaselineAudit:
    """Baselines by name, in the order asked. ``own`` is the model's class distribution on x [batch, K], ``output`` f(x) [batch].

    ``failures`` says why a baseline could not be had (a neutral one that was not reached). ``unit`` is that of the distance.
    """

    baselines: Mapping[str, Audited]
    target: tuple[str, ...]
    site: str
    output: Tensor
    own: Tensor
    classes: tuple[str, ...]
    resolution: float
    unit: str
    failures: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    model: str = ""

    def __getitem__(self, name: str) -> Audited:
        if name not in self.baselines:
            raise NotFoundError.among("audited baseline", name, self.baselines, self.failures.get(name, ""))
        return self.baselines[name]

    def top(self, name: str, sample: int = 0) -> tuple[str, float]:
        """The model's top class on a baseline, and its probability."""
        p = self[name].probabilities[sample]
        return self.classes[int(p.argmax())], float(p.max())

    def difference(self, name: str) -> Tensor:
        """D = f(x) - f(do(z := z0)), [batch]."""
        return self.output - self[name].output

    def usable(self, name: str, sample: int = 0) -> bool:
        """Does the target tell x from this baseline, and does the model not give x's own answer there?"""
        return self._telling(name, sample) and not self._same_answer(name, sample)

    def verdict(self, name: str, sample: int = 0) -> str:
        """One baseline in plain words."""
        opinion, (top, share) = float(self[name].opinion[sample]), self.top(name, sample)
        if not self._telling(name, sample):
            return "says nothing: the target does not tell x from it"
        higher = "; f is higher there than on x" if float(self.difference(name)[sample]) < 0 else ""
        if self._same_answer(name, sample):
            return f"keeps the answer: the model still sees {top} with {share:.2f}{higher}"
        if opinion <= NEUTRAL:
            return f"neutral: no class above {share:.2f}{higher}"
        if opinion > LEANING or share > max(0.5, 1.5 / len(self.classes)):
            return f"confident baseline: the model sees {top} with {share:.2f}{higher}"
        return f"leans to {top} ({share:.2f}){higher}"

    def advice(self, sample: int = 0) -> tuple[str | None, str]:
        """The baseline that the figures speak for, and why; None where they speak for none."""
        usable = [name for name in self.baselines if self.usable(name, sample)]
        if not usable:
            return None, "no baseline here is usable: each keeps the model's answer, or the target does not tell x from it"
        opinions = {name: float(self[name].opinion[sample]) for name in usable}
        least = min(opinions.values())
        alike = [name for name in usable if opinions[name] <= least + ALIKE]
        best = min(alike, key=lambda name: float(self[name].distance[sample]))
        why = f"the model is least decided there (KL {float(self[best].kl[sample]):.2g} of at most {math.log(len(self.classes)):.2f} nats)"
        others = [name for name in usable if name not in alike]
        if len(alike) > 1:
            why = f"{', '.join(alike)} leave the model about as undecided, and {best} is nearest to x"
        if others:
            second = min(others, key=opinions.__getitem__)
            why += f"; next is {second} with {float(self[second].kl[sample]):.2g}"
        if least > LEANING:
            why += "; but the model is confident even there: values explain a step between two opinions; try neutral(...)"
        return best, why

    def rows(self, sample: int = 0) -> list[tuple[str, ...]]:
        """The figures of one sample, a row per baseline, in the order of ``HEAD``."""
        return [self._row(name, sample) for name in self.baselines] + [
            (name, *["-"] * (len(HEAD) - 2), f"not to be had: {why}") for name, why in self.failures.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON types, with verdicts and advice per sample; class distributions are in the safetensors file."""
        samples = range(len(self.output))
        advice = [self.advice(b) for b in samples]
        return {
            "kind": KIND,
            "format": FORMAT,
            "target": list(self.target),
            "site": self.site,
            "classes": list(self.classes),
            "resolution": self.resolution,
            "unit": self.unit,
            "failures": dict(self.failures),
            "versions": dict(self.versions),
            "model": self.model,
            "names": list(self.baselines),
            "output": self.output.tolist(),
            "baselines": {
                name: {
                    "output": one.output.tolist(),
                    "reference_output": None if one.reference_output is None else one.reference_output.tolist(),
                    "difference": self.difference(name).tolist(),
                    "kl": one.kl.tolist(),
                    "entropy_share": (1 - one.opinion).tolist(),
                    "top": [list(self.top(name, b)) for b in samples],
                    "distance": one.distance.tolist(),
                    "verdict": [self.verdict(name, b) for b in samples],
                }
                for name, one in self.baselines.items()
            },
            "advice": [{"baseline": name, "why": why} for name, why in advice],
        }

    def save(self, path: str | Path) -> None:
        """Write the record to one safetensors file (to a temporary name first, then renamed)."""
        tensors = {"output": self.output, "own": self.own}
        for number, one in enumerate(self.baselines.values()):
            tensors |= {f"{number}/{name}": value for name in _TENSORS if (value := getattr(one, name)) is not None}
        records.write(path, tensors, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> BaselineAudit:
        """Read a record that ``save`` wrote. Raises LoadError where the file is not one."""
        return records.load(path, "a baseline audit", cls.unpacked)

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], where: str) -> BaselineAudit:
        """What ``save`` wrote, as a record again; ``where`` is named in errors."""
        records.check(record, KIND, FORMAT, where)
        audited = {
            name: Audited(**{key: tensors[f"{number}/{key}"] for key in _TENSORS if f"{number}/{key}" in tensors})
            for number, name in enumerate(record["names"])
        }
        plain = {name: record[name] for name in ("site", "resolution", "unit", "failures", "versions", "model")}
        return cls(audited, tuple(record["target"]), output=tensors["output"], own=tensors["own"], classes=tuple(record["classes"]), **plain)

    def __repr__(self) -> str:
        best, why = self.advice()
        more = f"\n  ... and {len(self.output) - 1} more samples: .rows(i), .advice(i)" if len(self.output) > 1 else ""
        head = f"Baselines for the {self.target[0]} at {self.site}: f(x) = {float(self.output[0]):.6g} (distance in {self.unit})"
        return f"{head}\n{aligned([HEAD, *self.rows()])}\n  advice: {best or 'none of these'}: {why}{more}"

    def _row(self, name: str, sample: int) -> tuple[str, ...]:
        one, (top, share) = self[name], self.top(name, sample)
        opinion = float(one.opinion[sample])
        return (
            name,
            f"{float(one.output[sample]):.4g}",
            f"{float(self.difference(name)[sample]):.4g}",
            f"{float(one.kl[sample]):.3f}",
            f"{opinion:.2f}",
            f"{1 - opinion:.2f}",
            top,
            f"{share:.2f}",
            f"{float(one.distance[sample]):.3g}",
            self.verdict(name, sample),
        )

    def _telling(self, name: str, sample: int) -> bool:
        noise = rounding(self.resolution, self.output, self[name].output)
        return bool(self.difference(name)[sample].abs() > noise[sample])

    def _same_answer(self, name: str, sample: int) -> bool:
        """Is x's top class the top class here too, with more than the model gives when it has no opinion?"""
        one = self[name]
        same = int(one.probabilities[sample].argmax()) == int(self.own[sample].argmax())
        return same and float(one.opinion[sample]) > NEUTRAL


_TENSORS = ("output", "probabilities", "distance", "reference_output")
