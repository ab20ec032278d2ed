"""How a record lies on disk: tensors and one JSON text in a safetensors file. Nothing here is unpickled.

What the tensors and the text mean is the records' own (``attribution``, ``relevance``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from zeroline.errors import LoadError, UsageError


def write(path: str | Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write to a temporary name first, then rename. Raises UsageError where the folder does not exist."""
    from safetensors.torch import save_file

    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(f"cannot save to {str(path)!r}: there is no folder {str(path.parent)!r}")
    temporary = path.with_name(f".{path.name}.partial")
    try:
        save_file({name: _packed(tensor) for name, tensor in tensors.items()}, temporary, {"zeroline": json.dumps(record)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | Path, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record and the tensors that ``write`` wrote; a LoadError that says ``what`` was expected where the file is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            record = json.loads((file.metadata() or {})["zeroline"])
            return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise LoadError(f"no file {str(path)!r}") from None
    except (SafetensorError, KeyError, ValueError, OSError) as problem:
        raise LoadError(f"{str(path)!r} is not {what} that zeroline saved ({problem})") from None


def picked(index: int, size: int) -> slice:
    """One of ``size`` samples as a slice; counted from the end where negative. Raises UsageError where there is none."""
    if not -size <= index < size:
        raise UsageError(f"sample {index} asked; the record has {size}")
    return slice(index % size, index % size + 1)


def numbers(figures: Tensor | None) -> list[float | int | None] | None:
    """JSON numbers: NaN and infinity, which JSON lacks, become None."""
    if figures is None:
        return None
    return [number if math.isfinite(number) else None for number in figures.tolist()]


def as_html(caption: str, rows: Iterable[tuple[str, str]]) -> str:
    """(label, value) pairs as a table, for notebooks."""
    lines = "".join(f"<tr><th style='text-align:left'>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in rows)
    return f"<table><caption>{escape(caption)}</caption>{lines}</table>"


class Packs(Protocol):
    """A record that says its tensors and JSON types."""

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...


def together(members: Mapping[str, Packs]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Several records for one file: their tensors by number, and {"label", "record"} of each in order."""
    tensors: dict[str, Tensor] = {}
    kept = []
    for number, (label, one) in enumerate(members.items()):
        found, record = one.packed()
        tensors |= {f"{number}/{name}": tensor for name, tensor in found.items()}
        kept.append({"label": label, "record": record})
    return tensors, kept


def apart(tensors: Mapping[str, Tensor], kept: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Any]]]:
    """Label, tensors and record of each of those that ``together`` joined."""
    for number, one in enumerate(kept):
        start = f"{number}/"
        yield one["label"], {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}, one["record"]


def _packed(tensor: Tensor) -> Tensor:
    """A copy of its own, on the CPU, as safetensors wants it."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
