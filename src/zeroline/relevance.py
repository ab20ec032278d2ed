"""The result of an attention route: how much each token of each source matters, without a unit.

Holds the ``Relevance`` record. Relevance adds up to nothing in particular, so there is no attribution error, and it is
no ``Attribution``: the two are never mixed up. It saves, loads and prints; it never draws itself and never runs a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroline import records
from zeroline.errors import InputError, NotFoundError, UsageError

FORMAT = 2
KIND = "relevance"
_PUT = ("group", "row", "weights")  # tensors of a substitution


@dataclass(frozen=True)
class Tokens:
    """How a stream's tokens lie: ``prefix`` learned ones (class, registers), then ``grid`` (rows, columns) of patches, or a line."""

    prefix: int = 0
    grid: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Substitution:
    """Weights that a method puts in the place of an attention's own: ``weights`` [n, keys] for its queries (``group``, ``row``) [n].

    A group is a sample, or a window of one: ``per_sample`` groups each. What the model would answer with them is its *implied model*
    (``zl.check_principles`` runs it); the weights are as the method uses them and need not add up to 1.
    """

    call: str
    group: Tensor
    row: Tensor
    weights: Tensor
    per_sample: int = 1


@dataclass(frozen=True, eq=False)
class Relevance:
    """Relevance per source, per token, and per call.

    ``by_source[stream]`` is [batch, tokens]; the stream is a model input's name, or a parameter's where tokens are learned.
    ``per_call[stream]`` is [calls, batch, tokens]: what each call moved onto the tokens that its keys stand for, in the
    order of ``calls``. ``output`` is f(x), float64 [batch]. ``calls`` holds (name, kind) pairs; ``corrected`` their numbers.
    What the method substitutes in the model it declares in ``substitutes`` in words and, where that can be put in the model's
    place, in ``substituted``: nothing, for relevance over the graph.
    """

    by_source: Mapping[str, Tensor]
    per_call: Mapping[str, Tensor]
    tokens: Mapping[str, Tokens]
    method: str
    target: tuple[str, ...]
    output: Tensor
    calls: tuple[tuple[str, str], ...]
    corrected: tuple[int, ...]
    readout: tuple[str, ...] = ()
    substitutes: tuple[str, ...] = ()
    substituted: tuple[Substitution, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    model_class: str = ""
    weights: Callable[[], str] | str = ""

    @property
    def model_id(self) -> str:
        """Model class and a hash of its weights (computed when first asked for)."""
        return f"{self.model_class}@{self.weights if isinstance(self.weights, str) else self.weights()}"

    def of(self, stream: str) -> Tensor:
        """``by_source[stream]``, or an error that names the streams there are."""
        if stream not in self.by_source:
            raise NotFoundError.among("stream", stream, self.by_source)
        return self.by_source[stream]

    def grid(self, stream: str | None = None, *, grid: tuple[int, int] | None = None, prefix: int | None = None) -> Tensor:
        """Relevance of a stream's patches as [batch, rows, columns], class and register tokens left out.

        ``stream`` may be left out where only one has a grid. ``grid`` and ``prefix`` go before what the model says.
        """
        name = self.gridded() if stream is None else stream
        values = self.of(name)
        (rows, columns), skip = self._lie(name, values.shape[1], grid, prefix)
        return values[:, skip:].reshape(-1, rows, columns)

    def gridded(self) -> str:
        """The one stream whose tokens lie on a grid."""
        found = [name for name, tokens in self.tokens.items() if tokens.grid]
        if len(found) != 1:
            raise UsageError(f"{len(found)} streams lie on a grid ({', '.join(found) or 'none'}); name one of {', '.join(self.by_source)}")
        return found[0]

    def call_grid(self, stream: str, *, grid: tuple[int, int] | None = None, prefix: int | None = None) -> Tensor:
        """``per_call`` of a stream's patches as [calls, batch, rows, columns]."""
        self.of(stream)
        values = self.per_call[stream]
        (rows, columns), skip = self._lie(stream, values.shape[2], grid, prefix)
        return values[:, :, skip:].reshape(*values.shape[:2], rows, columns)

    def share(self, stream: str) -> Tensor:
        """The stream's part of all relevance, by size: [batch], between 0 and 1."""
        total = torch.stack([r.abs().sum(1).double() for r in self.by_source.values() if len(r) == len(self.output)]).sum(0)
        return self.of(stream).abs().sum(1).double() / total.clamp_min(torch.finfo(torch.float64).tiny)

    def sample(self, index: int) -> Relevance:
        """The record of one sample of the batch (shapes keep a batch of 1)."""
        size = len(self.output)
        pick = records.picked(index, size)
        own = {name: r[pick] if len(r) == size else r for name, r in self.by_source.items()}
        calls = {name: r[:, pick] if r.shape[1] == size else r for name, r in self.per_call.items()}
        put = tuple(_of_sample(s, index % size) for s in self.substituted)
        return replace(
            self, by_source=own, per_call=calls, substituted=put, target=self.target[pick], readout=self.readout[pick], output=self.output[pick]
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values, as JSON types."""
        return {
            "format": FORMAT,
            "kind": KIND,
            "method": self.method,
            "target": list(self.target),
            "output": self.output.tolist(),
            "streams": {
                name: {"tokens": r.shape[1], "prefix": self.tokens[name].prefix, "grid": _listed(self.tokens[name].grid), "total": r.sum(1).tolist()}
                for name, r in self.by_source.items()
            },
            "calls": [{"name": name, "kind": kind} for name, kind in self.calls],
            "corrected": list(self.corrected),
            "readout": list(self.readout),
            "substitutes": list(self.substitutes),
            "substituted": [{"call": s.call, "rows": len(s.row), "keys": s.weights.shape[1], "per_sample": s.per_sample} for s in self.substituted],
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "model": self.model_id,
        }

    def save(self, path: str | Path) -> None:
        """Write values and record to one safetensors file (to a temporary name first, then renamed)."""
        records.write(path, *self.packed())

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON types, for a file of one record or of several."""
        tensors = {f"by_source/{name}": r for name, r in self.by_source.items()}
        tensors |= {f"per_call/{name}": r for name, r in self.per_call.items()}
        for i, s in enumerate(self.substituted):
            tensors |= {f"substituted/{i}/{part}": getattr(s, part) for part in _PUT}
        return {**tensors, "output": self.output}, self.to_dict()

    @classmethod
    def load(cls, path: str | Path) -> Relevance:
        """Read a record that ``save`` wrote. Raises LoadError where the file is not one."""
        return records.load(path, "a relevance", cls.unpacked)

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], where: str) -> Relevance:
        """What ``packed`` gave, as a record again; ``where`` is named in errors."""
        records.check(record, KIND, FORMAT, where)
        streams = record["streams"]
        model_class, _, weights = record["model"].rpartition("@")
        return cls(
            by_source={name: tensors[f"by_source/{name}"] for name in streams},
            per_call={name: tensors[f"per_call/{name}"] for name in streams if f"per_call/{name}" in tensors},
            tokens={name: Tokens(s["prefix"], tuple(s["grid"]) if s["grid"] else None) for name, s in streams.items()},
            output=tensors["output"],
            target=tuple(record["target"]),
            calls=tuple((c["name"], c["kind"]) for c in record["calls"]),
            corrected=tuple(record["corrected"]),
            substitutes=tuple(record["substitutes"]),
            substituted=tuple(
                Substitution(s["call"], **{part: tensors[f"substituted/{i}/{part}"] for part in _PUT}, per_sample=s["per_sample"])
                for i, s in enumerate(record["substituted"])
            ),
            model_class=model_class,
            weights=weights,
            readout=tuple(record["readout"]),
            **{name: record[name] for name in ("method", "settings", "versions")},
        )

    def rows(self, sample: int = 0) -> list[tuple[str, str]]:
        """The figures of one sample in words, for tables: (label, value) pairs."""
        kinds = [kind for _, kind in self.calls]
        lines = [
            ("target", self.target[sample]),
            ("f(x)", f"{float(self.output[sample]):.6g}"),
            ("read at", self.readout[sample]),
            ("attention calls", f"{len(kinds)} ({kinds.count('heterogenous')} heterogenous), {len(self.corrected)} corrected"),
        ]
        lines += [("substitutes", words) for words in self.substitutes]
        for name, r in self.by_source.items():
            if len(r) != len(self.output):
                lines.append((name, f"{r.shape[1]} tokens of {len(r)} samples"))
                continue
            lie, size = self.tokens[name], r[sample].abs().double()
            skip = lie.prefix if lie.grid is not None else 0
            best = skip + int(size[skip:].argmax())
            learned = f", {float(size[:skip].sum() / size.sum().clamp_min(1e-300)):.1%} of it on class and register tokens" if skip else ""
            share = f"{float(self.share(name)[sample]):.1%} of the relevance{learned}"
            lines.append((name, f"{r.shape[1]} tokens, {share}, most on {self.where(name, best)}"))
        return lines

    def where(self, stream: str, token: int) -> str:
        """A token in words: "patch (3, 4)", "class or register token 0", "token 5"."""
        lie = self.tokens[stream]
        if token < lie.prefix:
            return f"class or register token {token}"
        if lie.grid is None:
            return f"token {token}"
        row, column = divmod(token - lie.prefix, lie.grid[1])
        return f"patch ({row}, {column})"

    def _lie(self, stream: str, count: int, grid: tuple[int, int] | None, prefix: int | None) -> tuple[tuple[int, int], int]:
        known = self.tokens[stream]
        if grid is not None or prefix is not None:
            known = laid(stream, count, known, grid, prefix)
        shape = known.grid
        if shape is None:
            skip = known.prefix
            side = math.isqrt(max(count - skip, 0))
            if side < 2 or side * side != count - skip:
                raise InputError(f"the {count} tokens of {stream!r} are no square after {skip} prefix tokens; give grid=(rows, columns) and prefix")
            shape = (side, side)
        return shape, known.prefix

    def __repr__(self) -> str:
        size = len(self.output)
        rows = self.rows()
        width = max(20, *(len(label) for label, _ in rows)) + 2
        body = "\n".join(f"  {label:<{width}}{value}" for label, value in rows)
        more = f"\n  ... and {size - 1} more samples: .sample(i)" if size > 1 else ""
        return f"Relevance by {self.method}\n{body}{more}"

    def _repr_html_(self) -> str:
        return records.as_html(f"Relevance by {self.method}", self.rows())


def laid(stream: str, count: int, known: Tokens, grid: Any, prefix: Any) -> Tokens:
    """A grid and a prefix given by hand, checked against the ``count`` tokens of a stream of which ``known`` is known.

    Without ``prefix`` the model's own goes before the grid; where it has none that is known, what the grid leaves over.
    """
    shape = known.grid if grid is None else grid
    if shape is not None:
        sides = tuple(shape) if isinstance(shape, (tuple, list)) else ()
        if len(sides) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sides):
            raise InputError(f"grid={grid!r} was given; a grid is (rows, columns), two whole numbers above 0")
        shape = (sides[0], sides[1])
    if prefix is not None and (isinstance(prefix, bool) or not isinstance(prefix, int) or prefix < 0):
        raise InputError(f"prefix={prefix!r} was given; it is a number of tokens, 0 or more")
    patches = 0 if shape is None else shape[0] * shape[1]
    own = known.prefix or known.grid is not None
    before = prefix if prefix is not None else known.prefix if own or shape is None else count - patches
    if before < 0 or before > count or (shape is not None and before + patches != count):
        rows, columns = shape or (0, 0)
        asked = f"a grid of {rows} x {columns} with {max(before, 0)} prefix tokens"
        raise InputError(f"{asked} has {patches + max(before, 0)} tokens; {stream!r} has {count}")
    return Tokens(before, shape)


def _of_sample(found: Substitution, sample: int) -> Substitution:
    mine = found.group // found.per_sample == sample
    return Substitution(found.call, found.group[mine] % found.per_sample, found.row[mine], found.weights[mine], found.per_sample)


def _listed(grid: tuple[int, int] | None) -> list[int] | None:
    return None if grid is None else list(grid)
