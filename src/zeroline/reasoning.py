"""What a model's answer needs: the record of a game between parts of its inputs.

Holds ``Player`` (a part of the inputs and what stands there when it is absent) and ``Logic``: the values of f for coalitions of players, their
dividends, and the reading in words. It saves, loads and prints; it runs no model. Playing is ``zeroline.paradigm.logical``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroline import records
from zeroline.baseline import Baseline
from zeroline.comparison import aligned
from zeroline.maths.coalitions import Implicant, dividends, low_order, members, prime_implicants, shapley

FORMAT = 1
KIND = "logic"
SHOWN = 8  # dividends in a table
READ = 4  # prime implicants in a sentence
SMALL = 0.1  # f(all) - f(none) below this share of the largest change of f from f(none): the players cancel, and half-way means nothing


@dataclass(frozen=True, eq=False)
class Player:
    """A part of the inputs that is there or not: positions ``where`` of the model input ``input``; when absent, ``baseline`` stands there.

    ``where`` is bool over the positions of one sample, the same for all ([tokens] of ids [batch, tokens] or features [batch, tokens, width]; [height,
    width] of an image [batch, channels, height, width]; or the whole of a sample's shape), or with a batch axis before it; None: everywhere.
    ``baseline`` None: the default of ``zl.logic``.
    """

    name: str
    input: str
    where: Tensor | None = None
    baseline: Baseline | None = None


@dataclass(frozen=True, eq=False)
class Logic:
    """A game: ``values`` [batch, n] is f for the n ``coalitions`` (bit i: player i is there; else its ``baselines[i]``), float64.

    ``holds`` [batch, n] is what of it is read as true, by the rule that ``threshold`` says. With all 2^k coalitions the dividends are exact and add
    up to ``difference`` = f(all) - f(none), up to rounding (``error``); of more than ten players only those of one and two are known, and
    ``error`` is what larger groups hold; ``estimate`` and ``half_width`` are then Shapley values [batch, players] from ``orders`` random
    orders with a 95 % interval. ``instead`` is the same game on other inputs (a minimal pair). ``evaluations`` counts coalitions per sample,
    ``forward_passes`` the passes that they took; one at x, and a trace where players were not given, come beside.
    """

    players: tuple[str, ...]
    baselines: tuple[str, ...]
    coalitions: Tensor
    values: Tensor
    holds: Tensor
    threshold: str
    target: tuple[str, ...]
    output: Tensor
    evaluations: int
    forward_passes: int
    estimate: Tensor | None = None
    half_width: Tensor | None = None
    orders: int = 0
    labels: tuple[str, ...] = ()
    instead: Logic | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    model: str = ""

    @property
    def exact(self) -> bool:
        """Are all coalitions known?"""
        return len(self.coalitions) == 1 << len(self.players)

    @cached_property
    def _by_coalition(self) -> dict[int, Tensor]:
        return {coalition: self.values[:, i] for i, coalition in enumerate(self.coalitions.tolist())}

    @cached_property
    def _dividends(self) -> dict[int, Tensor]:
        if not self.exact:
            return low_order({c: v for c, v in self._by_coalition.items() if c.bit_count() <= 2})
        found = dividends(torch.stack([self._by_coalition[c] for c in range(1 << len(self.players))], -1))
        return {c: found[:, c] for c in range(1, found.shape[1])}

    @property
    def dividends(self) -> Mapping[tuple[str, ...], Tensor]:
        """Players -> d [batch]: what they add together that no fewer of them add. In units of the target; they sum to ``difference``."""
        return {tuple(self.players[i] for i in members(c)): d for c, d in self._dividends.items()}

    @property
    def value(self) -> Tensor:
        """f(all) [batch]: with every player there."""
        return self._by_coalition[(1 << len(self.players)) - 1]

    @property
    def baseline_value(self) -> Tensor:
        """f(none) [batch]: with every player absent."""
        return self._by_coalition[0]

    @property
    def difference(self) -> Tensor:
        """f(all) - f(none) [batch]."""
        return self.value - self.baseline_value

    @property
    def total(self) -> Tensor:
        """Sum of the dividends [batch]."""
        return torch.stack(list(self._dividends.values())).sum(0)

    @property
    def error(self) -> Tensor:
        """``total - difference`` [batch]: rounding where all coalitions are known, else what groups of three and more hold, with its sign turned."""
        return self.total - self.difference

    @property
    def shapley(self) -> Tensor:
        """Shapley values [batch, players]: exact where all coalitions are known, else the estimate."""
        if self.estimate is not None and not self.exact:
            return self.estimate
        return shapley(torch.stack([self.baseline_value, *(self._dividends[c] for c in range(1, 1 << len(self.players)))], -1))

    def implicants(self, sample: int = 0) -> tuple[Implicant, ...] | None:
        """Prime implicants of what holds; None where there is no reading (not all coalitions known, or the players cancel)."""
        if not self.exact or (self._relative and self._cancels(sample)):
            return None
        truth = torch.zeros(1 << len(self.players), dtype=torch.bool)
        truth[self.coalitions] = self.holds[sample]
        return prime_implicants(truth)

    @property
    def _relative(self) -> bool:
        """Is the threshold a share of the difference?"""
        return self.settings.get("threshold") != "answer"

    def _cancels(self, sample: int) -> bool:
        largest = (self.values[sample] - self.baseline_value[sample]).abs().max()
        return bool(self.difference[sample].abs() <= SMALL * largest)

    @property
    def reading(self) -> tuple[str, ...]:
        """What the answer needs, in words, per sample: "blue needs color AND seven AND region B2"."""
        return tuple(self._read(sample) for sample in range(len(self.values)))

    def _read(self, sample: int) -> str:
        who = self.labels[sample] if self.labels else self.target[sample]
        if not self.exact:
            best = self.shapley[sample].abs().argsort(descending=True)[:3].tolist()
            parts = (f"{self.players[i]} ({float(self.shapley[sample, i]):+.3g})" for i in best)
            return f"no logical reading of {len(self.players)} players (2 to 10 have one); the largest Shapley estimates are of {', '.join(parts)}"
        found = self.implicants(sample)
        if found is None and not bool((self.values[sample] != self.baseline_value[sample]).any()):
            return f"{who} does not depend on the players: f is the same for every coalition"
        if found is None:
            small = f"f(all) - f(none) = {float(self.difference[sample]):.3g} is small beside what some coalitions change"
            return f"no reading of {who}: {small}: the players cancel"
        if not found:
            return f"{who} holds for no coalition: {self.threshold} is true of none"
        if any(one.size == 0 for one in found):
            return f"{who} needs none of the players: it holds without them"
        always = [i for i in found[0].present if all(i in one.present for one in found)]
        terms = [[*(self.players[i] for i in one.present if i not in always), *(f"NOT {self.players[i]}" for i in one.absent)] for one in found]
        needed = " AND ".join(self.players[i] for i in always)
        if len(terms) == 1:
            return f"{who} needs {' AND '.join([*([needed] if needed else []), *terms[0]])}"
        ways = [f"({' AND '.join(term)})" if len(term) > 1 else term[0] for term in terms[:READ]]
        more = f" OR {len(terms) - READ} more ways" if len(terms) > READ else ""
        words = f"{' OR '.join(ways)}{more}"
        return f"{who} needs {needed} AND ({words})" if needed else f"{who} needs {words}"

    def independent(self, sample: int = 0) -> tuple[str, ...]:
        """Players that the reading does not name."""
        found = self.implicants(sample)
        named = {i for one in found or () for i in (*one.present, *one.absent)}
        return () if found is None else tuple(name for i, name in enumerate(self.players) if i not in named)

    def changes(self, sample: int = 0) -> list[tuple[tuple[str, ...], float, float]]:
        """With ``instead``: (players, dividend here, dividend there), the largest change first. Empty without."""
        if self.instead is None:
            return []
        there = self.instead._dividends
        rows = [(c, float(d[sample]), float(there[c][sample])) for c, d in self._dividends.items()]
        return [(tuple(self.players[i] for i in members(c)), a, b) for c, a, b in sorted(rows, key=lambda row: -abs(row[2] - row[1]))]

    def sample(self, index: int) -> Logic:
        """The record of one sample of the batch (a batch of 1)."""
        size = len(self.values)
        pick = records.picked(index, size)
        put = {n: None if (t := getattr(self, n)) is None else t[pick] for n in ("values", "holds", "output", "estimate", "half_width")}
        instead = None if self.instead is None else self.instead.sample(index)
        return replace(self, **put, target=self.target[pick], labels=self.labels[pick], instead=instead)  # type: ignore[arg-type]

    def largest(self, sample: int = 0, count: int = SHOWN) -> list[tuple[str, float]]:
        """The largest dividends by size: ("color + seven", value)."""
        found = sorted(((name, float(d[sample])) for name, d in self.dividends.items()), key=lambda pair: -abs(pair[1]))
        return [(" + ".join(name), value) for name, value in found[:count]]

    def rows(self, sample: int = 0) -> list[tuple[str, str]]:
        """The figures of one sample in words: (label, value) pairs."""
        k = len(self.players)
        largest = float((self.values[sample] - self.baseline_value[sample]).abs().max())
        lines = [
            ("target", self.target[sample]),
            ("players", "; ".join(f"{name} (absent: {baseline})" for name, baseline in zip(self.players, self.baselines))),
            ("f(all)", f"{float(self.value[sample]):.6g}"),
            ("f(none)", f"{float(self.baseline_value[sample]):.6g}"),
            ("difference", f"{float(self.difference[sample]):.6g}"),
            ("sum of dividends", f"{float(self.total[sample]):.6g}"),
        ]
        share = f" ({abs(float(self.error[sample])) / largest:.2g} of the largest change of f)" if largest > 0 else ""
        what = "" if self.exact else ", which groups of three and more hold"
        lines.append(("attribution error", f"{float(self.error[sample]):+.3g}{share}{what}"))
        counted = f"all {1 << k} coalitions" if self.exact else f"{len(self.coalitions)} of 2^{k} coalitions, singles and pairs exact"
        lines.append(("evaluations", f"{self.evaluations} ({counted}) in {self.forward_passes} forward passes"))
        lines += [(f"dividend {name}", f"{value:+.4g}") for name, value in self.largest(sample)]
        if len(self._dividends) > SHOWN:
            rest = sum(abs(float(d[sample])) for d in self._dividends.values()) - sum(abs(v) for _, v in self.largest(sample))
            lines.append(("", f"and {len(self._dividends) - SHOWN} smaller, {rest:.3g} in size together"))
        if self.half_width is not None and not self.exact:
            kind = f"estimate from {self.orders} orders, 95 %"
            lines += [(f"Shapley {n}", f"{float(v):+.4g} +- {float(w):.2g} ({kind})") for n, v, w in zip(self.players, *self._estimates(sample))]
        else:
            lines.append(("Shapley values", ", ".join(f"{n} {float(v):+.3g}" for n, v in zip(self.players, self.shapley[sample]))))
        lines += [("true where", self.threshold), ("reading", self._read(sample))]
        if out := self.independent(sample):
            lines.append(("independent of", ", ".join(out)))
        if self.instead is not None:
            other = [f"{there} for {here}" for here, there in zip(self.players, self.instead.players) if here != there]
            lines += [("instead", self.instead._read(sample)), *([("in place", ", ".join(other))] if other else [])]
            lines += [(f"changes {' + '.join(name)}", f"{a:+.4g} -> {b:+.4g}") for name, a, b in self.changes(sample)[:SHOWN]]
        return lines

    def _estimates(self, sample: int) -> tuple[Tensor, Tensor]:
        assert self.estimate is not None
        assert self.half_width is not None
        return self.estimate[sample], self.half_width[sample]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, coalitions by the names of their players."""
        size = len(self.values)
        primes = [self.implicants(sample) for sample in range(size)]

        def named(one: Implicant) -> dict[str, list[str]]:
            return {"present": [self.players[i] for i in one.present], "absent": [self.players[i] for i in one.absent]}

        return {
            "format": FORMAT,
            "kind": KIND,
            "players": [{"name": name, "absent": baseline} for name, baseline in zip(self.players, self.baselines)],
            "target": list(self.target),
            "labels": list(self.labels),
            "output": self.output.tolist(),
            "value": self.value.tolist(),
            "baseline_value": self.baseline_value.tolist(),
            "difference": self.difference.tolist(),
            "total": self.total.tolist(),
            "error": self.error.tolist(),
            "exact": self.exact,
            "dividends": [{"players": list(name), "value": d.tolist()} for name, d in self.dividends.items()],
            "shapley": self.shapley.tolist(),
            "shapley_half_width": None if self.half_width is None else [records.numbers(row) for row in self.half_width],
            "orders": self.orders,
            "threshold": self.threshold,
            "reading": list(self.reading),
            "implicants": [None if each is None else [named(one) for one in each] for each in primes],
            "evaluations": self.evaluations,
            "forward_passes": self.forward_passes,
            "instead": None if self.instead is None else self.instead.to_dict(),
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "model": self.model,
        }

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON types, for a file."""
        tensors = {n: t for n in _TENSORS if (t := getattr(self, n)) is not None}
        if self.instead is not None:
            tensors |= {f"instead/{n}": t for n, t in self.instead.packed()[0].items()}
        return tensors, self.to_dict()

    def save(self, path: str | Path) -> None:
        """Write values and record to one safetensors file (to a temporary name first, then renamed)."""
        records.write(path, *self.packed())

    @classmethod
    def load(cls, path: str | Path) -> Logic:
        """Read a record that ``save`` wrote. Raises LoadError where the file is not one."""
        return records.load(path, "a logic record", cls.unpacked)

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], where: str) -> Logic:
        """What ``packed`` gave, as a record again; ``where`` is named in errors."""
        records.check(record, KIND, FORMAT, where)
        return cls._unpacked(tensors, record)

    @classmethod
    def _unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Logic:
        within = {n.removeprefix("instead/"): t for n, t in tensors.items() if n.startswith("instead/")}
        own: dict[str, Any] = {name: tensors[name] if name in _NEEDED else tensors.get(name) for name in _TENSORS}
        own |= {name: tuple(record[name]) for name in ("target", "labels")}
        own |= {name: record[name] for name in ("threshold", "evaluations", "forward_passes", "orders", "settings", "versions", "model")}
        return cls(
            players=tuple(one["name"] for one in record["players"]),
            baselines=tuple(one["absent"] for one in record["players"]),
            **own,
            instead=cls._unpacked(within, record["instead"]) if within else None,
        )

    def __repr__(self) -> str:
        size = len(self.values)
        more = f"\n  ... and {size - 1} more samples: .sample(i)" if size > 1 else ""
        return f"Logic of {len(self.players)} players\n{aligned(self.rows())}{more}"

    def _repr_html_(self) -> str:
        return records.as_html(f"Logic of {len(self.players)} players", self.rows())


_NEEDED = ("coalitions", "values", "holds", "output")
_TENSORS = (*_NEEDED, "estimate", "half_width")
