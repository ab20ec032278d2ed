"""How a record lies on disk: tensors and one JSON text in a safetensors file. Nothing here is unpickled.

What the tensors and the text mean is the records' own (``attribution``, ``relevance``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from zeroline.errors import LoadError, UsageError, ZerolineError

ASIDE = "seen/"  # tensors beside a record, which its class does not read


def write(path: str | Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write to a temporary name first, then rename. Raises UsageError where the folder does not exist."""
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(f"cannot save to {str(path)!r}: there is no folder {str(path.parent)!r}")
    _save(path, tensors, {"zeroline": json.dumps(record)})


def add(path: str | Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Put tensors (named ``seen/...``) and texts into the file of a saved record, in the place of those put before; the record stays what it is."""
    before, known = _opened(path, "a record", lambda name: not name.startswith(ASIDE))
    _save(Path(path), {**known, **tensors}, {**before, **texts})


def aside(path: str | Path, key: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What ``add`` put there: the text ``key`` as JSON, and the tensors. Empty where nothing was."""
    texts, tensors = _opened(path, "a record", lambda name: name.startswith(ASIDE))
    with intact(str(path), "record"):
        found = json.loads(texts.get(key, "{}"))
        if not isinstance(found, dict):
            raise TypeError(f"{key} is no JSON object")
        return found, tensors


def read(path: str | Path, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record and the tensors that ``write`` wrote; a LoadError that says ``what`` was expected where the file is none."""
    texts, tensors = _opened(path, what, lambda name: not name.startswith(ASIDE))
    return _record(texts, what, path), tensors


def told(path: str | Path, what: str = "a record") -> dict[str, Any]:
    """The record of a file without its tensors: what it says it is. Raises LoadError where the file is none."""
    return _record(_opened(path, what, lambda name: False)[0], what, path)


def load(path: str | Path, what: str, unpacked: Callable[[Mapping[str, Tensor], Mapping[str, Any], str], T]) -> T:
    """A record of a file, by its class's ``unpacked``; a LoadError where the file is none, is of another kind, or where parts do not fit together."""
    record, tensors = read(path, what)
    with intact(str(path), what):
        found = unpacked(tensors, record, str(path))
        found.to_dict()  # every figure of it can be said
        return found


def kind_of(record: Mapping[str, Any]) -> str:
    """What a record is: attributions name no kind, the others do."""
    return str(record.get("kind", "attribution" if "shapes" in record else "something else"))


def check(record: Mapping[str, Any], kind: str, form: int, where: str) -> None:
    """Raises LoadError where a record is of another kind or format."""
    found = kind_of(record)
    if found != kind or record.get("format") != form:
        raise LoadError(f"{where!r} holds {found} {record.get('format')}, not {kind} of format {form}")


@contextmanager
def intact(where: str, what: str) -> Iterator[None]:
    """What goes wrong while a file's parts are put together becomes one LoadError: a text or tensor is missing, or is not what it was."""
    try:
        yield
    except LoadError:
        raise
    except ZerolineError as problem:
        raise LoadError(f"{where!r} is a damaged {_bare(what)}: {problem}") from None
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        RecursionError,
        StopIteration,
        AssertionError,
        MemoryError,
    ) as problem:
        said = f"it lacks {problem}" if isinstance(problem, KeyError) else str(problem).strip().partition("\n")[0] or type(problem).__name__
        raise LoadError(f"{where!r} is a damaged {_bare(what)}: {said}") from None


def _bare(what: str) -> str:
    return what.removeprefix("a ").removeprefix("an ")


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


class Tells(Protocol):
    """A record that says everything but its values."""

    def to_dict(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=Tells)


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


def _save(path: Path, tensors: Mapping[str, Tensor], texts: dict[str, str]) -> None:
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    try:
        temporary.touch()
        rights = (path if path.exists() else temporary).stat().st_mode & 0o777  # safetensors gives its files fewer
        save_file({name: _packed(tensor) for name, tensor in tensors.items()}, temporary, texts)
        temporary.chmod(rights)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _record(texts: Mapping[str, str], what: str, path: str | Path) -> dict[str, Any]:
    try:
        record = json.loads(texts["zeroline"])
    except (KeyError, ValueError, RecursionError) as problem:
        raise LoadError(f"{str(path)!r} is not {what} that zeroline saved ({problem})") from None
    if not isinstance(record, dict):
        raise LoadError(f"{str(path)!r} is not {what} that zeroline saved (its record is no JSON object)")
    return record


def _opened(path: str | Path, what: str, wanted: Callable[[str], bool]) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise LoadError(f"no file {str(path)!r}") from None
    except (SafetensorError, KeyError, ValueError, TypeError, OSError, RuntimeError) as problem:
        raise LoadError(f"{str(path)!r} is not {what} that zeroline saved ({problem})") from None


def _packed(tensor: Tensor) -> Tensor:
    """A copy of its own, on the CPU, as safetensors wants it."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
