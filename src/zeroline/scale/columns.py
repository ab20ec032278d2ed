"""Records as rows of an Arrow table, and back: one row per example.

Holds ``Layout``, the columns of one run, found from its first record and the same in every shard. A row has what tells the
example (id, number, hashes, texts, label), the record's figures as columns of their own, its tensors (of one shape in the whole run as
fixed-shape tensors, else as flat lists beside their shapes) and in ``record`` all the rest as JSON, so that the record comes back whole.
It knows no model and writes no file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from zeroline.attribution import Attribution
from zeroline.circuit import Mechanism
from zeroline.errors import InputError, LoadError
from zeroline.grounding import Grounding
from zeroline.reasoning import Logic
from zeroline.relevance import Relevance

SCHEMA = 1
KEEPS = ("values", "map", "figures")
_TEXT, _REAL, _WHOLE, _TRUTH = pa.string(), pa.float64(), pa.int64(), pa.bool_()
_SHAPE = ".shape"  # of a column of lists: the column with the shapes
_MAP = "map"
_UNEVEN = "substituted/"  # tensors that hold another number of rows for every example


@dataclass(frozen=True)
class Kind:
    """A kind of record: its class, figures that become columns, and tensors whose samples lie along a dimension other than 0 (None: none)."""

    record: Any
    figures: Mapping[str, pa.DataType]
    axes: Mapping[str, int | None]

    def axis(self, tensor: str) -> int | None:
        """The dimension of a tensor that its samples lie along."""
        return next((axis for start, axis in self.axes.items() if tensor.startswith(start)), 0)


_ATTRIBUTION = dict.fromkeys(
    (
        *("output", "baseline_output", "reference_output", "difference", "total", "error", "relative_error"),
        *("local_error", "map_error", "raw_error", "baseline_kl", "error_spread"),
    ),
    _REAL,
)
KINDS = {
    "attribution": Kind(
        Attribution,
        {"target": _TEXT, "site": _TEXT, "baseline": _TEXT, **_ATTRIBUTION, "evaluations": _WHOLE, "forward_passes": _WHOLE, "stopped": _TEXT},
        {},
    ),
    "relevance": Kind(Relevance, {"target": _TEXT, "output": _REAL, "readout": _TEXT}, {"per_call/": 1, "substituted/": None}),
    "logic": Kind(
        Logic,
        {
            **{"target": _TEXT, "output": _REAL, "value": _REAL, "baseline_value": _REAL, "difference": _REAL, "total": _REAL, "error": _REAL},
            **{"exact": _TRUTH, "threshold": _TEXT, "reading": _TEXT, "evaluations": _WHOLE},
        },
        {"coalitions": None},
    ),
    "grounding": Kind(Grounding, {"target": _TEXT, "output": _REAL, "readout": _TEXT}, {"per_call": 1, "back_per_call": 1}),
    "mechanism": Kind(
        Mechanism,
        {"target": _TEXT, "output": _REAL, "joint": _REAL, "difference": _REAL, "rank_correlation": _REAL, "reading": _TEXT, "evaluations": _WHOLE},
        {},
    ),
}
EXAMPLE = {"id": _TEXT, "number": _WHOLE, "image": _TEXT, "text": _TEXT, "passage": _TEXT, "label": _TEXT, "content_hash": _TEXT}
RUN = {"settings_hash": _TEXT, "model_hash": _TEXT, "method": _TEXT, "seconds": _REAL, "batch": _WHOLE}
EVIDENCE = {"inside": _REAL, "pointing": _REAL, "chance": _REAL}


def kind_of(record: Any) -> str:
    """The kind of a record by its class; an error where there is none with one row per example."""
    found = next((name for name, kind in KINDS.items() if isinstance(record, kind.record)), None)
    if found is None:
        raise InputError(f"{type(record).__name__} is no record with one row per example; those are {', '.join(KINDS)}")
    return found


@dataclass(frozen=True)
class Array:
    """A tensor of the record as a column: ``axis`` is the dimension of its samples (None: kept whole), ``shape`` without it (None: ragged)."""

    tensor: str
    column: str
    axis: int | None
    dtype: str
    shape: tuple[int, ...] | None

    @property
    def number(self) -> pa.DataType:
        """Arrow's type of the numbers; half precision is widened, since many readers have none."""
        return pa.from_numpy_dtype(_array(torch.zeros((), dtype=getattr(torch, self.dtype))).dtype)

    def fields(self) -> list[pa.Field]:
        """One column, or two where it is ragged."""
        if self.shape is not None:
            return [pa.field(self.column, pa.fixed_shape_tensor(self.number, list(self.shape)))]
        return [pa.field(self.column, pa.list_(self.number)), pa.field(self.column + _SHAPE, pa.list_(pa.int32()))]

    def of(self, tensors: Mapping[str, Tensor]) -> np.ndarray[Any, Any]:
        """The tensor of one example without the dimension of samples; an InputError where its shape is not the run's."""
        tensor = tensors.get(self.tensor)
        if tensor is None:
            raise InputError(f"its record has no {self.tensor!r}, which the others of the run have")
        found = _array(tensor if self.axis is None else tensor.squeeze(self.axis))
        if self.shape is not None and found.shape != self.shape:
            raise InputError(f"its {self.tensor!r} is {found.shape}; in this run they are {self.shape}")
        return found

    def arrays(self, rows: Sequence[np.ndarray[Any, Any]]) -> dict[str, pa.Array]:
        """The columns of several examples."""
        if self.shape is not None:
            return {self.column: pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(np.stack(rows)))}
        offsets = np.cumsum([0, *(row.size for row in rows)])
        flat = np.concatenate([row.ravel() for row in rows]) if rows else np.empty(0)
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat, self.number))
        return {self.column: lists, self.column + _SHAPE: pa.array([list(row.shape) for row in rows], pa.list_(pa.int32()))}

    def back(self, row: Mapping[str, Any]) -> Tensor:
        """The tensor as the record had it, from one row of a table."""
        shape = self.shape if self.shape is not None else row[self.column + _SHAPE]
        flat = np.asarray(row[self.column]).reshape(tuple(int(n) for n in shape))
        found = torch.from_numpy(flat.copy()).to(getattr(torch, self.dtype))
        return found if self.axis is None else found.unsqueeze(self.axis)


@dataclass(frozen=True)
class Row:
    """One finished example: what tells it, its record (of one sample), and what was measured beside it."""

    example: Mapping[str, Any]
    run: Mapping[str, Any]
    record: Any
    map: Tensor | None = None
    evidence: Mapping[str, float | None] | None = None

    @cached_property
    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The record's tensors and JSON types, made once."""
        tensors, told = self.record.packed()
        return tensors, told


@dataclass(frozen=True)
class Layout:
    """The columns of a run. ``map`` is the column of positions [rows, columns], if there is one; ``evidence``: are there masks or boxes?"""

    kind: str
    arrays: tuple[Array, ...]
    map: Array | None
    evidence: bool

    @classmethod
    def of(cls, row: Row, *, fixed: bool, fixed_map: bool, keep: str) -> Layout:
        """The layout of a run whose first record this is.

        ``fixed``: every example gives the same shapes; ``fixed_map``: the same map at least. ``keep``: values, map or figures.
        """
        kind = kind_of(row.record)
        tensors = {name: t for name, t in row.packed[0].items() if not _is_figure(name, t)}
        values = [name for name in tensors if name.startswith("values/")]
        taken = {*EXAMPLE, *RUN, *EVIDENCE, *KINDS[kind].figures, _MAP, "record"}

        def array(name: str, tensor: Tensor) -> Array:
            axis = KINDS[kind].axis(name)
            axis = axis if axis is not None and tensor.shape[axis] == 1 else None
            shape = tuple(tensor.squeeze(axis).shape if axis is not None else tensor.shape)
            ragged = not fixed or name.startswith(_UNEVEN) or 0 in shape
            column = "values" if values == [name] else name.replace("/", ".")
            column = f"tensor.{column}" if column in taken else column
            return Array(name, column, axis, str(tensor.dtype).removeprefix("torch."), None if ragged or not shape else shape)

        kept = tuple(array(name, tensor) for name, tensor in tensors.items()) if keep == "values" else ()
        shown = None if row.map is None or keep == "figures" else Array(_MAP, _MAP, None, "float32", tuple(row.map.shape) if fixed_map else None)
        return cls(kind, kept, shown, row.evidence is not None)

    @property
    def is_fixed(self) -> bool:
        """Does every example have the same shapes?"""
        return all(array.shape is not None for array in self._arrays)

    def schema(self) -> pa.Schema:
        """Names and types, in order."""
        known = {**EXAMPLE, **RUN, **KINDS[self.kind].figures, **(EVIDENCE if self.evidence else {})}
        arrays = [field for array in self._arrays for field in array.fields()]
        return pa.schema([*(pa.field(name, kind) for name, kind in known.items()), *arrays, pa.field("record", _TEXT)])

    @property
    def _arrays(self) -> tuple[Array, ...]:
        return self.arrays if self.map is None else (*self.arrays, self.map)

    def check(self, row: Row) -> None:
        """Raise InputError where an example does not fit the run's columns."""
        if kind_of(row.record) != self.kind:
            raise InputError(f"its record is {kind_of(row.record)}; in this run they are {self.kind}")
        self._tensors(row)

    def table(self, rows: Sequence[Row]) -> pa.Table:
        """The rows of several examples."""
        schema = self.schema()
        kind = KINDS[self.kind]
        columns: dict[str, list[Any]] = {name: [] for name in (*EXAMPLE, *RUN, *kind.figures, *(EVIDENCE if self.evidence else ()), "record")}
        arrays: list[list[np.ndarray[Any, Any]]] = [[] for _ in self._arrays]
        for row in rows:
            tensors, record = row.packed
            figures = {name: t for name, t in tensors.items() if _is_figure(name, t)}
            known = {**row.example, **row.run, **_figures(kind, {**record, **figures}), **(row.evidence or {})}
            known["record"] = json.dumps({"record": record, "figures": {name: _written(t) for name, t in figures.items()}})
            for name, column in columns.items():
                column.append(known.get(name))
            for column, found in zip(arrays, self._tensors(row)):
                column.append(found)
        made = {name: pa.array(column, schema.field(name).type) for name, column in columns.items()}
        for array, column in zip(self._arrays, arrays):
            made |= array.arrays(column)
        return pa.table({name: made[name] for name in schema.names}, schema)

    def record(self, row: Mapping[str, Any], where: str) -> Any:
        """The record of one row of a table, as it was. Raises LoadError where the run kept no values."""
        kept = json.loads(row["record"])
        tensors = {name: _read(*figure) for name, figure in kept["figures"].items()}
        tensors |= {array.tensor: array.back(row) for array in self.arrays}
        try:
            return KINDS[self.kind].record.unpacked(tensors, kept["record"], where)
        except KeyError as missing:
            raise LoadError(f"{where}: the run kept no values, so there is no whole record; its figures are columns") from missing

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for the manifest."""
        return {
            "kind": self.kind,
            "arrays": [vars(array) for array in self.arrays],
            "map": None if self.map is None else vars(self.map),
            "evidence": self.evidence,
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Layout:
        """What ``to_dict`` gave."""

        def array(one: Mapping[str, Any]) -> Array:
            return Array(**{**one, "shape": None if one["shape"] is None else tuple(one["shape"])})

        shown = None if found["map"] is None else array(found["map"])
        return cls(found["kind"], tuple(array(one) for one in found["arrays"]), shown, found["evidence"])

    def _tensors(self, row: Row) -> list[np.ndarray[Any, Any]]:
        tensors = dict(row.packed[0])
        if row.map is not None:
            tensors[_MAP] = row.map
        return [array.of(tensors) for array in self._arrays]


def _figures(kind: Kind, known: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a record of one sample: lists of one are the sample's own; NaN and infinity are null."""
    found = {}
    for name in kind.figures:
        value = known.get(name)
        value = value.tolist() if isinstance(value, Tensor) else value
        while isinstance(value, list):
            value = value[0] if len(value) == 1 else None
        found[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return found


def _is_figure(name: str, tensor: Tensor) -> bool:
    """One number of the sample: it goes into the JSON, not into a column of tensors."""
    return tensor.shape == (1,) and not name.startswith(_UNEVEN)


def _written(tensor: Tensor) -> list[Any]:
    number = tensor.item()
    return [str(tensor.dtype).removeprefix("torch."), str(number) if isinstance(number, float) and not math.isfinite(number) else number]


def _read(dtype: str, number: Any) -> Tensor:
    return torch.tensor([float(number) if isinstance(number, str) else number], dtype=getattr(torch, dtype))


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """As numpy, half precision widened to float32 (exactly)."""
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy())
