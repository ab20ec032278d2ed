"""What grounds what: the tokens of one source against the tokens or regions of another.

Holds the ``Grounding`` record: a matrix per sample, in total and per call. It is relevance, so it has no unit and no attribution error; what it
adds up to, the relevance of the columns, it says. It saves, loads and prints. Making one is ``zeroline.paradigm.semantic``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroline import records
from zeroline.comparison import aligned
from zeroline.errors import NotFoundError, UsageError
from zeroline.relevance import Tokens

FORMAT = 1
KIND = "grounding"
SHOWN = 12  # rows in a table


@dataclass(frozen=True, eq=False)
class Grounding:
    """``matrix`` [batch, rows, columns]: how much relevance of a column came in through a row; ``per_call`` [calls, batch, rows, columns] by the
    call at which it left the row (``calls``: names). ``direct`` [batch, columns] is what passed no row. ``back`` and ``back_per_call`` are the
    other direction: relevance of a row that came in through a column. ``coupling`` is both together: a word finds its region either way.

    ``matrix.sum(1) + direct`` is ``relevance``, that of the columns' tokens. Rows are tokens of the stream ``row_stream`` (``row_tokens``: numbers),
    or targets (``row_stream`` is then ""); columns are the tokens ``column_tokens`` of ``column_stream``, which lie as ``lie`` says
    where all of them are there, in order. ``output`` [batch] is f(x), of several targets [batch, rows]; ``target`` says them in words, of
    several for each row and sample, row by row.
    """

    matrix: Tensor
    per_call: Tensor
    direct: Tensor
    back: Tensor
    back_per_call: Tensor
    calls: tuple[str, ...]
    row_stream: str
    column_stream: str
    row_tokens: tuple[int, ...]
    column_tokens: tuple[int, ...]
    row_words: tuple[str, ...]
    column_words: tuple[str, ...]
    lie: Tokens
    target: tuple[str, ...]
    output: Tensor
    readout: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    model_class: str = ""
    weights: Callable[[], str] | str = ""

    @property
    def model_id(self) -> str:
        """Model class and a hash of its weights (computed when first asked for)."""
        return f"{self.model_class}@{self.weights if isinstance(self.weights, str) else self.weights()}"

    @property
    def relevance(self) -> Tensor:
        """Of each column for the target [batch, columns]: what came in through rows and what came in past them."""
        return self.matrix.sum(1) + self.direct

    @property
    def coupling(self) -> Tensor:
        """Relevance that passed between a row and a column, in either direction: ``matrix + back`` [batch, rows, columns]."""
        return self.matrix + self.back

    @property
    def through(self) -> Tensor:
        """The part of all relevance of the columns, by size, that came in through rows: [batch], between 0 and 1."""
        rows, past = self.matrix.abs().double().sum((1, 2)), self.direct.abs().double().sum(1)
        return rows / (rows + past).clamp_min(torch.finfo(torch.float64).tiny)

    def row(self, name: str | int) -> Tensor:
        """One row [batch, columns], by its number or its word."""
        if isinstance(name, int):
            if not -len(self.row_words) <= name < len(self.row_words):
                raise NotFoundError(f"no row {name}; there are {len(self.row_words)} (0 to {len(self.row_words) - 1})")
            return self.matrix[:, name]
        if name not in self.row_words:
            raise NotFoundError.among("row", name, self.row_words)
        if self.row_words.count(name) > 1:
            places = ", ".join(str(i) for i, word in enumerate(self.row_words) if word == name)
            raise UsageError(f"{self.row_words.count(name)} rows are called {name!r}; give a number ({places})")
        return self.matrix[:, self.row_words.index(name)]

    @property
    def gridded(self) -> bool:
        """Do the columns lie on a grid?"""
        rows, columns = self.lie.grid or (0, 0)
        return self.lie.grid is not None and self.column_tokens == tuple(range(self.lie.prefix + rows * columns))

    def grid(self, part: str = "matrix") -> Tensor:
        """A part of the record ("matrix", "back", "coupling", "per_call", ...) with its columns as maps [..., height, width]."""
        if not self.gridded or self.lie.grid is None:
            raise UsageError(f"the {len(self.column_tokens)} columns ({self.column_stream}) lie on no grid")
        values: Tensor = getattr(self, part)
        return values[..., self.lie.prefix :].reshape(*values.shape[:-1], *self.lie.grid)

    def sample(self, index: int) -> Grounding:
        """The record of one sample of the batch (a batch of 1)."""
        size = len(self.matrix)
        pick = records.picked(index, size)
        own = {name: getattr(self, name)[pick] for name in ("matrix", "direct", "back", "output", "readout")}
        own |= {name: getattr(self, name)[:, pick] for name in ("per_call", "back_per_call")}
        target = self.target[index % size :: size]
        return replace(self, **own, target=target)

    def where(self, column: int) -> str:
        """A column in words: "patch (3, 4)", the word, or "token 5"."""
        if self.column_words:
            return self.column_words[column]
        if self.gridded and self.lie.grid is not None and column >= self.lie.prefix:
            return "patch ({}, {})".format(*divmod(column - self.lie.prefix, self.lie.grid[1]))
        return f"token {self.column_tokens[column]}"

    def rows(self, sample: int = 0) -> list[tuple[str, str]]:
        """The figures of one sample in words: (label, value) pairs."""
        matrix, both = self.matrix[sample].double(), self.coupling[sample].double()
        size = both.abs().sum().clamp_min(1e-300)
        lines = [("target", self.target[sample] if self.row_stream else f"{len(self.row_words)} targets")]
        what = f"{len(self.row_words)} tokens of {self.row_stream}" if self.row_stream else f"{len(self.row_words)} targets"
        lines.append(("rows", what))
        lines.append(("columns", f"{len(self.column_tokens)} tokens of {self.column_stream}"))
        past = float(self.direct[sample].sum())
        if self.row_stream:
            lines.append(
                ("relevance of columns", f"{float(self.relevance[sample].sum()):.4g} = {float(matrix.sum()):.4g} through rows + {past:.4g} past them")
            )
            lines.append(("relevance of rows", f"{float(self.back[sample].sum()):.4g} through columns"))
        if not bool(both.any()):
            lines.append(("note", "no relevance passes between rows and columns: for this target they meet in no attention"))
        order = both.abs().sum(1).argsort(descending=True)[:SHOWN].tolist()
        for i in sorted(order):
            best = int(both[i].abs().argmax())
            lines.append((self.row_words[i], f"{float(both[i].abs().sum() / size):.2%}, most with {self.where(best)} ({float(both[i, best]):+.3g})"))
        if len(self.row_words) > SHOWN:
            lines.append(("", f"and {len(self.row_words) - SHOWN} rows with less"))
        each = (self.per_call + self.back_per_call)[:, sample].double().abs().sum((1, 2))
        lines += [(f"at {name}", f"{float(part / each.sum().clamp_min(1e-300)):.1%}") for name, part in zip(self.calls, each)]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values, as JSON types."""
        return {
            "format": FORMAT,
            "kind": KIND,
            "target": list(self.target),
            "output": self.output.tolist(),
            "rows": {"stream": self.row_stream, "tokens": list(self.row_tokens), "words": list(self.row_words)},
            "columns": {
                "stream": self.column_stream,
                "tokens": list(self.column_tokens),
                "words": list(self.column_words),
                "prefix": self.lie.prefix,
                "grid": None if self.lie.grid is None else list(self.lie.grid),
            },
            "row_totals": self.coupling.sum(2).tolist(),
            "direct": self.direct.sum(1).tolist(),
            "through": self.through.tolist(),
            "calls": list(self.calls),
            "readout": list(self.readout),
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "model": self.model_id,
        }

    def save(self, path: str | Path) -> None:
        """Write values and record to one safetensors file (to a temporary name first, then renamed)."""
        records.write(path, *self.packed())

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON types, for a file of one record or of several."""
        return {name: getattr(self, name) for name in _TENSORS}, self.to_dict()

    @classmethod
    def load(cls, path: str | Path) -> Grounding:
        """Read a record that ``save`` wrote. Raises LoadError where the file is not one."""
        return records.load(path, "a grounding", cls.unpacked)

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], where: str) -> Grounding:
        """What ``packed`` gave, as a record again; ``where`` is named in errors."""
        records.check(record, KIND, FORMAT, where)
        rows, columns = record["rows"], record["columns"]
        model_class, _, weights = record["model"].rpartition("@")
        own: dict[str, Any] = {name: tensors[name] for name in _TENSORS}
        own |= {name: tuple(record[name]) for name in ("calls", "target", "readout")}
        return cls(
            **own,
            row_stream=rows["stream"],
            column_stream=columns["stream"],
            row_tokens=tuple(rows["tokens"]),
            column_tokens=tuple(columns["tokens"]),
            row_words=tuple(rows["words"]),
            column_words=tuple(columns["words"]),
            lie=Tokens(columns["prefix"], tuple(columns["grid"]) if columns["grid"] else None),
            model_class=model_class,
            weights=weights,
            settings=record["settings"],
            versions=record["versions"],
        )

    def __repr__(self) -> str:
        size = len(self.matrix)
        more = f"\n  ... and {size - 1} more samples: .sample(i)" if size > 1 else ""
        return f"Grounding of {self.row_stream or 'targets'} in {self.column_stream}\n{aligned(self.rows())}{more}"

    def _repr_html_(self) -> str:
        return records.as_html(f"Grounding of {self.row_stream or 'targets'} in {self.column_stream}", self.rows())


_TENSORS = ("matrix", "per_call", "direct", "back", "back_per_call", "output")
