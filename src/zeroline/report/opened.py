"""A saved record of any kind, opened by what its file says it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zeroline import (
    attribution,
    audit,
    circuit,
    comparison,
    corrected,
    grounding,
    guidance,
    principles,
    reasoning,
    records,
    relevance,
    rewriting,
    thresholds,
)
from zeroline import summary as summaries
from zeroline.errors import LoadError, NotFoundError, UsageError
from zeroline.seen import Seen

LOAD: Mapping[str, Callable[[Path], Any]] = {
    attribution.KIND: attribution.Attribution.load,
    audit.KIND: audit.BaselineAudit.load,
    comparison.KIND: comparison.Comparison.load,
    corrected.KIND: corrected.Corrections.load,
    grounding.KIND: grounding.Grounding.load,
    guidance.KIND: guidance.Guidance.load,
    reasoning.KIND: reasoning.Logic.load,
    circuit.KIND: circuit.Mechanism.load,
    principles.KIND: principles.Principles.load,
    relevance.KIND: relevance.Relevance.load,
    rewriting.KIND: rewriting.Rewriting.load,
    thresholds.KIND: thresholds.Robustness.load,
    summaries.KIND: summaries.Summary.load,
}


def open_record(path: str | Path) -> tuple[Any, Seen]:
    """The record of a file, and what was seen beside it. Raises LoadError where the file is no record, or a damaged one."""
    path = Path(path)
    kind = records.kind_of(records.told(path))
    if kind not in LOAD:
        raise LoadError(f"{str(path)!r} holds {kind}; possible are {', '.join(sorted(LOAD))}")
    return LOAD[kind](path), Seen.of(path)


def nearest(name: str, names: list[str]) -> str:
    """The part of an error that names the files there are, those like ``name`` first."""
    return str(NotFoundError.among("record", name, names)).partition("; ")[2]


def record_files(paths: list[Path]) -> list[Path]:
    """Files of records as given, folders opened: their ``.safetensors`` files, by name. Raises UsageError where there are none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            within = sorted(file for file in path.glob("*.safetensors") if not file.name.startswith("."))
            if not within:
                raise UsageError(f"the folder {str(path)!r} holds no record (a .safetensors file that zeroline saved)")
            found += within
        elif path.exists():
            found.append(path)
        else:
            near = sorted(file.name for file in path.parent.glob("*.safetensors")) if path.parent.is_dir() else []
            raise NotFoundError(f"no record {str(path)!r}; {nearest(path.name, near)}") if near else NotFoundError(f"no record {str(path)!r}")
    return found
