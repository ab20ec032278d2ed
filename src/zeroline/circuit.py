"""What the attention of a model does for one target: relevance and cause along every attention.

Holds the ``Mechanism`` record. An *edge* is an attention call: from the streams of its keys to those of its queries. Relevance has no unit;
an effect is in units of the target, and effects do not add up (cuts overlap): the record says how far they are from it. It saves, loads and
prints. Making one is ``zeroline.paradigm.mechanism``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroline import records
from zeroline.comparison import aligned
from zeroline.maths.rank import spearman

FORMAT = 1
KIND = "mechanism"
HETEROGENOUS = "heterogenous"
HEAD = ("", "attention", "from", "to", "kind", "relevance", "effect", "heads, by effect")
SHOWN = 3  # heads per edge, and edges in words
FEW = 4  # fewer edges than this have no rank correlation


@dataclass(frozen=True)
class Edge:
    """One attention: ``keys`` and ``queries`` name streams; ``cut`` the sources that are at their baseline when it is cut (none: their
    absence changes nothing at its keys); ``feeds_from`` numbers the calls that feed it."""

    number: int
    name: str
    kind: str
    queries: str
    keys: str
    heads: int
    feeds_from: tuple[int, ...]
    cut: tuple[str, ...]

    @property
    def layer(self) -> str:
        """The block that it is in: its path up to the last number."""
        path = self.name.partition("#")[0]
        return m.group(0) if (m := re.match(r"(?:.*\.)?\d+(?=\.|$)", path)) else path


@dataclass(frozen=True, eq=False)
class Mechanism:
    """``relevance`` [batch, edges] flows along an edge (its size); ``effect`` [batch, edges] = f(x) - f(do(o := o0)), o0 what the call gives
    with the sources of its keys at their baselines; ``head_effect`` [batch, edges, heads] the same for one head (NaN where there is none).

    ``joint`` [batch] is f(x) with all sources at their baselines at once. ``baselines``: source -> name. Of what was not cut the effects are NaN.
    ``evaluations`` counts cuts per sample; ``forward_passes`` those of cuts, baselines and recording, and the trace.
    """

    edges: tuple[Edge, ...]
    streams: tuple[tuple[str, int], ...]
    relevance: Tensor
    effect: Tensor
    head_effect: Tensor
    target: tuple[str, ...]
    output: Tensor
    joint: Tensor
    baselines: Mapping[str, str]
    readout: tuple[str, ...]
    evaluations: int
    forward_passes: int
    execution: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    model: str = ""

    @property
    def heterogenous(self) -> tuple[int, ...]:
        """Numbers of the edges between different streams."""
        return tuple(edge.number for edge in self.edges if edge.kind == HETEROGENOUS)

    @property
    def difference(self) -> Tensor:
        """f(x) - f(all sources at their baselines) [batch]."""
        return self.output - self.joint

    def rank_correlation(self, kind: str | None = None) -> Tensor:
        """Spearman's rho of relevance and the size of the effect over edges (of one ``kind``): [batch]; NaN of fewer than four edges.

        Does relevance predict cause?
        """
        picked = [e.number for e in self.edges if (kind is None or e.kind == kind) and not bool(self.effect[:, e.number].isnan().any())]
        if len(picked) < FEW:
            return torch.full((len(self.output),), math.nan, dtype=torch.float64)
        flow, cause = self.relevance[:, picked].abs().double(), self.effect[:, picked].abs().double()
        return torch.stack([torch.as_tensor(spearman(a, b), dtype=torch.float64) for a, b in zip(flow, cause)])

    def heads(self, sample: int = 0) -> list[tuple[str, int, float]]:
        """Heads by the size of their effect: (edge, head, effect), the largest first."""
        found = [(e.name, h, float(self.head_effect[sample, e.number, h])) for e in self.edges for h in range(e.heads)]
        return sorted((one for one in found if not math.isnan(one[2])), key=lambda one: -abs(one[2]))

    def fusion(self, sample: int = 0) -> list[tuple[str, float, float]]:
        """Where sources meet: (layer, relevance, size of effects) of its heterogenous edges, in order."""
        found: dict[str, list[float]] = {}
        for edge in self.edges:
            if edge.kind == HETEROGENOUS:
                sums = found.setdefault(edge.layer, [0.0, 0.0])
                sums[0] += float(self.relevance[sample, edge.number].abs())
                sums[1] += abs(float(self.effect[sample, edge.number].nan_to_num(0)))
        return [(layer, flow, size) for layer, (flow, size) in found.items()]

    def reading(self, sample: int = 0) -> str:
        """In words: where sources meet, and which edge and head the target needs most."""
        known = [e for e in self.edges if not math.isnan(float(self.effect[sample, e.number]))]
        if not known:
            return "nothing was cut"
        if not self.heterogenous:
            start = "nothing is heterogenous: in every attention queries and keys are of the same source"
        else:
            start = f"sources meet in {len(self.heterogenous)} of {len(self.edges)} attentions"
            if any(e.kind == HETEROGENOUS for e in known):
                layer, _, size = max(self.fusion(sample), key=lambda one: one[2])
                start += f", with most effect in {layer} ({size:.3g})"
        most = max(known, key=lambda e: abs(float(self.effect[sample, e.number])))
        words = f"{start}; the target needs {most.name} most ({float(self.effect[sample, most.number]):+.3g})"
        heads = self.heads(sample)
        return words + (f", of single heads {heads[0][1]} of {heads[0][0]} ({heads[0][2]:+.3g})" if heads else "")

    def sample(self, index: int) -> Mechanism:
        """The record of one sample of the batch (a batch of 1)."""
        size = len(self.output)
        pick = records.picked(index, size)
        return replace(self, **{name: getattr(self, name)[pick] for name in (*_TENSORS, "target", "readout")})

    def table(self, sample: int = 0) -> list[tuple[str, ...]]:
        """A row per edge, below ``HEAD``."""
        rows: list[tuple[str, ...]] = []
        for e in self.edges:
            effect = float(self.effect[sample, e.number])
            heads = sorted(range(e.heads), key=lambda h: -abs(float(self.head_effect[sample, e.number, h].nan_to_num(0))))[:SHOWN]
            said = ", ".join(f"{h} {float(self.head_effect[sample, e.number, h]):+.2g}" for h in heads)
            known = not bool(self.head_effect[sample, e.number, 0].isnan())
            rows.append(
                (
                    str(e.number),
                    e.name,
                    e.keys,
                    e.queries,
                    e.kind,
                    f"{float(self.relevance[sample, e.number]):.3g}",
                    "-" if math.isnan(effect) else f"{effect:+.3g}",
                    said if known else "-",
                )
            )
        return rows

    def rows(self, sample: int = 0) -> list[tuple[str, str]]:
        """The figures of one sample in words: (label, value) pairs."""
        effects = self.effect[sample].double()
        total = float(effects.nansum())
        lines = [
            ("target", self.target[sample]),
            ("f(x)", f"{float(self.output[sample]):.6g}"),
            ("baselines", "; ".join(f"{name}: {baseline}" for name, baseline in self.baselines.items())),
            ("f(baselines)", f"{float(self.joint[sample]):.6g}"),
            ("difference", f"{float(self.difference[sample]):.6g}"),
            ("sum of effects", f"{total:.6g}: cuts overlap, so they do not add up (off by {total - float(self.difference[sample]):+.3g})"),
            ("read at", self.readout[sample]),
        ]
        for kind in (None, HETEROGENOUS):
            rho = float(self.rank_correlation(kind)[sample])
            if not math.isnan(rho):
                lines.append((f"relevance and effect, {kind or 'all'}", f"Spearman's rho {rho:+.2f}"))
        lines += [(f"fusion in {layer}", f"relevance {flow:.3g}, effect {size:.3g}") for layer, flow, size in self.fusion(sample)]
        if ranked := self.heads(sample)[:SHOWN]:
            lines.append(("heads by effect", ", ".join(f"{head} of {name} ({value:+.3g})" for name, head, value in ranked)))
        full = [words for words in self.execution if words.startswith("full:")]
        how = f"{self.evaluations} cuts in {self.forward_passes} forward passes" + (f"; {len(full)} edges in {full[0]}" if full else "")
        return [*lines, ("evaluations", how), ("reading", self.reading(sample))]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; NaN becomes null."""
        size = len(self.output)
        return {
            "format": FORMAT,
            "kind": KIND,
            "target": list(self.target),
            "output": self.output.tolist(),
            "joint": self.joint.tolist(),
            "difference": self.difference.tolist(),
            "baselines": dict(self.baselines),
            "streams": [{"name": name, "tokens": tokens} for name, tokens in self.streams],
            "edges": [
                {
                    **asdict(e),
                    "feeds_from": list(e.feeds_from),
                    "cut": list(e.cut),
                    "layer": e.layer,
                    "relevance": self.relevance[:, e.number].tolist(),
                    "effect": records.numbers(self.effect[:, e.number]),
                    "head_effect": [records.numbers(each[: e.heads]) for each in self.head_effect[:, e.number]],
                    "execution": self.execution[e.number] if self.execution else "",
                }
                for e in self.edges
            ],
            "rank_correlation": records.numbers(self.rank_correlation()),
            "rank_correlation_heterogenous": records.numbers(self.rank_correlation(HETEROGENOUS)),
            "fusion": [[{"layer": a, "relevance": b, "effect": c} for a, b, c in self.fusion(s)] for s in range(size)],
            "reading": [self.reading(s) for s in range(size)],
            "readout": list(self.readout),
            "evaluations": self.evaluations,
            "forward_passes": self.forward_passes,
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "model": self.model,
        }

    def save(self, path: str | Path) -> None:
        """Write values and record to one safetensors file (to a temporary name first, then renamed)."""
        records.write(path, *self.packed())

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON types, for a file of one record or of several."""
        return {name: getattr(self, name) for name in _TENSORS}, self.to_dict()

    @classmethod
    def load(cls, path: str | Path) -> Mechanism:
        """Read a record that ``save`` wrote. Raises LoadError where the file is not one."""
        return records.load(path, "a mechanism", cls.unpacked)

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], where: str) -> Mechanism:
        """What ``packed`` gave, as a record again; ``where`` is named in errors."""
        records.check(record, KIND, FORMAT, where)
        names = ("number", "name", "kind", "queries", "keys", "heads")
        own: dict[str, Any] = {name: tensors[name] for name in _TENSORS}
        own |= {name: tuple(record[name]) for name in ("target", "readout")}
        own |= {name: record[name] for name in ("baselines", "evaluations", "forward_passes", "settings", "versions", "model")}
        return cls(
            edges=tuple(Edge(**{n: e[n] for n in names}, feeds_from=tuple(e["feeds_from"]), cut=tuple(e["cut"])) for e in record["edges"]),
            streams=tuple((s["name"], s["tokens"]) for s in record["streams"]),
            execution=tuple(e["execution"] for e in record["edges"]),
            **own,
        )

    def __repr__(self) -> str:
        size = len(self.output)
        rho = float(self.rank_correlation().nanmean()) if size > 1 else math.nan
        mean = "" if math.isnan(rho) else f"; Spearman's rho of relevance and effect {rho:+.2f} in the mean over all {size}"
        more = f"\n  ... and {size - 1} more samples: .sample(i){mean}" if size > 1 else ""
        return f"Mechanism of {len(self.edges)} attentions\n{aligned([HEAD, *self.table()])}\n{aligned(self.rows())}{more}"

    def _repr_html_(self) -> str:
        table = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in (HEAD, *self.table()))
        return f"{records.as_html('Mechanism', self.rows())}<table>{table}</table>"


_TENSORS = ("relevance", "effect", "head_effect", "output", "joint")


def shortest(names: Sequence[str]) -> dict[str, str]:
    """Module names without the beginning that they share, for figures.

    >>> shortest(["encoder.layer.0.att", "encoder.layer.1.att"])["encoder.layer.1.att"]
    'layer.1.att'
    """
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(one) > shared + 1 for one in parts) and len({one[shared] for one in parts}) == 1 and not parts[0][shared + 1].isdigit():
        shared += 1
    return {name: ".".join(one[shared:]) for name, one in zip(names, parts)}
