"""Does an explanation explain this model, and does it follow how well the model does? Two principles, measured.

Holds the ``Principles`` record of one method over one labelled set, and what its figures say in words, by the thresholds below.
Cui, Fan & Chen 2026 ("Debunking Grad-ECLIP"), our reading of its two principles: an interpretation must be of the original
model, and it must be aligned with the model's performance. Measuring is ``zeroline.measure.principles``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from zeroline import records
from zeroline.maths.rank import spearman

FORMAT = 1
KIND = "principles"
AGREES = 0.95  # the implied model gives the original's answer at least so often, else it is another model
FOLLOWS = 0.3  # Spearman's rho between evidence and score from which evidence follows the score
SAME = 0.1  # wrong answers may be pointed at less often than right ones by this much, and count as no less
FEW = 10  # fewer wrong answers than this say nothing
ROUNDING = 64  # units of rounding that another kernel (for second derivatives, say) may move an output by
UNCHANGED = 0.5  # Spearman's rho between maps above which the map of a ruined model (half the accuracy or less) is still the old one


@dataclass(frozen=True, eq=False)
class Implied:
    """The model with the explanation's substitutes in place. Per example: ``score``, ``cosine`` of its embedding (of its scores, for a
    classifier) with the original's, ``answer``."""

    score: Tensor
    cosine: Tensor
    answer: Tensor


@dataclass(frozen=True, eq=False)
class Stage:
    """The model with its weights shuffled from the top down to here. Per example: ``alike``, Spearman's rho of the map with the original's;
    ``hit``, does it point at the object; ``evidence`` and ``score``, ``answer``."""

    name: str
    alike: Tensor
    hit: Tensor
    evidence: Tensor
    score: Tensor
    answer: Tensor


@dataclass(frozen=True, eq=False)
class Principles:
    """One method over a labelled set of n examples; tensors are [n].

    ``score`` is the target's value, ``evidence`` the sum of the explanation's values on the source shown, ``answer`` and ``label`` the
    model's answer and the right one, ``hit`` whether the map's largest value lies on the object (NaN without a mask or a positive value),
    ``chance`` what a blind guess hits. ``apart`` is how far the outputs while explaining (a pass of the method, and its f(x)) are from the bare
    model's, over the largest value and in units of rounding: 0 bit for bit, infinite where the model answers otherwise afterwards.
    """

    method: str
    settings: Mapping[str, Any]
    target: str
    source: str
    score: Tensor
    evidence: Tensor
    answer: Tensor
    label: Tensor
    hit: Tensor
    chance: Tensor
    apart: float = 0.0
    substitutes: tuple[str, ...] = ()
    implied: Mapping[str, Implied] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    model: str = ""

    @property
    def unchanged(self) -> bool:
        """Were the outputs the model's own, up to the rounding of another kernel (``ROUNDING``)?"""
        return self.apart <= ROUNDING

    @property
    def _outputs(self) -> str:
        if self.apart == 0:
            return "bit for bit the model's"
        return f"the model's up to rounding ({self.apart:.0f} times its unit)" if self.unchanged else "NOT the model's"

    @property
    def right(self) -> Tensor:
        """Which examples the model gets right, bool [n]."""
        return self.answer == self.label

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.right.double().mean())

    @property
    def follows(self) -> float:
        """Spearman's rho of evidence and score over the set."""
        return float(spearman(self.evidence, self.score))

    def agreement(self, way: str) -> float:
        """How often the implied model gives the original's answer."""
        return float((self.implied[way].answer == self.answer).double().mean())

    def implied_accuracy(self, way: str) -> float:
        """Share of right answers of the implied model."""
        return float((self.implied[way].answer == self.label).double().mean())

    def pointing(self, right: bool) -> float:
        """How often the map points at the object where the model is right (wrong); NaN where no map of them points anywhere."""
        return float(self.hit[self.right == right].nanmean())

    def original_model(self) -> tuple[bool, str]:
        """Principle 1: does it explain the original model? The verdict, and why in words."""
        if not self.unchanged:
            return False, "the model's outputs change while it is explained"
        if not self.substitutes:
            return True, f"it substitutes nothing, and the outputs stay {self._outputs}"
        if not self.implied:
            return False, f"it substitutes {'; '.join(self.substitutes)}"
        parts = [
            f"{way}: {self.agreement(way):.0%} of the answers, accuracy {self.implied_accuracy(way):.0%}, cosine {float(one.cosine.mean()):.2f}"
            for way, one in self.implied.items()
        ]
        holds = all(self.agreement(way) >= AGREES for way in self.implied)
        how = "the implied model answers much as the original" if holds else "the model that it implies is another one"
        return False, f"it substitutes the model's attention; {how} ({'; '.join(parts)}; the original's accuracy is {self.accuracy:.0%})"

    def performance(self) -> tuple[bool, str]:
        """Principle 2: is it aligned with the model's performance? The verdict, and why in words; False where a part says no."""
        said, bad = [], False
        rho = self.follows
        bad |= not rho >= FOLLOWS
        said.append(f"evidence {'follows' if rho >= FOLLOWS else 'does not follow'} the score (rho {rho:.2f})")
        wrong = int((~self.right).sum())
        if wrong >= FEW and bool(self.hit.isfinite().any()):
            same = self.pointing(False) >= self.pointing(True) - SAME
            bad |= same
            how = "just as often" if same else "less often"
            said.append(f"where the model is wrong it points at the object {how} ({self.pointing(False):.0%}, right {self.pointing(True):.0%})")
        elif bool(self.hit.isfinite().any()):
            said.append(f"the model is wrong on {wrong} of {len(self.label)}: too few to tell")
        broken = [stage for stage in self.stages if float((stage.answer == self.label).double().mean()) < self.accuracy / 2]
        if broken:
            worst = max(broken, key=lambda stage: float(stage.alike.nanmean().nan_to_num(-2)))
            alike = float(worst.alike.nanmean())
            bad |= alike > UNCHANGED
            how = "stays" if alike > UNCHANGED else "changes"
            said.append(f"the map {how} when shuffled weights ruin the model (rho at most {alike:.2f}, {worst.name})")
        return not bad, "; ".join(said)

    def rows(self) -> list[tuple[str, str]]:
        """The figures in words: (label, value) pairs."""
        lines = [("target", self.target), ("map over", self.source), ("examples", f"{len(self.label)}, accuracy {self.accuracy:.1%}")]
        lines += [("substitutes", words) for words in self.substitutes] or [("substitutes", "nothing")]
        lines.append(("outputs while explained", self._outputs))
        for way, one in self.implied.items():
            off = one.score - self.score
            lines.append((f"implied model ({way})", f"score {float(off.mean()):+.3f} in the mean ({float(off.abs().mean()):.3f} in size)"))
            figures = f"cosine {float(one.cosine.mean()):.3f}, same answer {self.agreement(way):.1%}, accuracy {self.implied_accuracy(way):.1%}"
            lines.append(("", figures))
        lines.append(("evidence and score", f"Spearman's rho {self.follows:.2f}"))
        if bool(self.hit.isfinite().any()):
            right, wrong = int(self.right.sum()), int((~self.right).sum())
            figures = f"right {self.pointing(True):.1%} of {right}, " + (f"wrong {self.pointing(False):.1%} of {wrong}" if wrong else "none wrong")
            lines.append(("points at the object", f"{figures}, chance {float(self.chance.nanmean()):.1%}"))
        for stage in self.stages:
            accuracy = float((stage.answer == self.label).double().mean())
            hit = "" if not bool(stage.hit.isfinite().any()) else f", points {float(stage.hit.nanmean()):.1%}"
            figures = f"map rho {float(stage.alike.nanmean()):+.2f}, accuracy {accuracy:.1%}{hit}"
            lines.append((f"shuffled to {stage.name}", figures))
        for number, (holds, why) in ((1, self.original_model()), (2, self.performance())):
            lines.append((f"principle {number}", f"{'holds' if holds else 'does not hold'}: {why}"))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON types, with the figures drawn from them."""
        one, two = self.original_model(), self.performance()
        return {
            "format": FORMAT,
            "kind": KIND,
            "method": self.method,
            "settings": dict(self.settings),
            "target": self.target,
            "source": self.source,
            "examples": len(self.label),
            "accuracy": self.accuracy,
            "unchanged": self.unchanged,
            "apart": _known(self.apart),
            "substitutes": list(self.substitutes),
            "implied": {
                way: {
                    "score_change": float((i.score - self.score).mean()),
                    "score_change_size": float((i.score - self.score).abs().mean()),
                    "cosine": float(i.cosine.mean()),
                    "agreement": self.agreement(way),
                    "accuracy": self.implied_accuracy(way),
                }
                for way, i in self.implied.items()
            },
            "spearman": _known(self.follows),
            "points_where_right": _known(self.pointing(True)),
            "points_where_wrong": _known(self.pointing(False)),
            "wrong": int((~self.right).sum()),
            "chance": _known(float(self.chance.nanmean())),
            "stages": [{"name": s.name, "alike": _known(float(s.alike.nanmean())), "points": _known(float(s.hit.nanmean()))} for s in self.stages],
            "principle_1": {"holds": one[0], "why": one[1]},
            "principle_2": {"holds": two[0], "why": two[1]},
            "versions": dict(self.versions),
            "model": self.model,
        }

    def save(self, path: str | Path) -> None:
        """Write tensors and record to one safetensors file (to a temporary name first, then renamed)."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        for way, one in self.implied.items():
            tensors |= {f"implied/{way}/{name}": getattr(one, name) for name in _IMPLIED}
        for number, stage in enumerate(self.stages):
            tensors |= {f"stages/{number}/{name}": getattr(stage, name) for name in _STAGE}
        records.write(path, tensors, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Principles:
        """Read a record that ``save`` wrote. Raises LoadError where the file is not one."""
        return records.load(path, "a principles report", cls.unpacked)

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], where: str) -> Principles:
        """What ``save`` wrote, as a record again; ``where`` is named in errors."""
        records.check(record, KIND, FORMAT, where)
        known: dict[str, Any] = {name: tensors[name] for name in _TENSORS}
        known |= {name: record[name] for name in ("method", "settings", "target", "source", "versions", "model")}
        known["apart"] = math.inf if record["apart"] is None else record["apart"]
        return cls(
            **known,
            substitutes=tuple(record["substitutes"]),
            implied={way: Implied(*(tensors[f"implied/{way}/{name}"] for name in _IMPLIED)) for way in record["implied"]},
            stages=tuple(
                Stage(stage["name"], *(tensors[f"stages/{number}/{name}"] for name in _STAGE)) for number, stage in enumerate(record["stages"])
            ),
        )

    def __repr__(self) -> str:
        rows = self.rows()
        width = max(len(label) for label, _ in rows) + 2
        return "\n".join([f"Principles of {self.method}", *(f"  {label:<{width}}{value}" for label, value in rows)])


def _known(value: float) -> float | None:
    """A figure as JSON knows it: None where there is none."""
    return value if math.isfinite(value) else None


_TENSORS = ("score", "evidence", "answer", "label", "hit", "chance")
_IMPLIED = ("score", "cosine", "answer")
_STAGE = ("alike", "hit", "evidence", "score", "answer")
