"""How records look in a terminal, and where they are written."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from zeroline.attribution import Attribution
from zeroline.baseline import Baseline, Distribution
from zeroline.comparison import HEAD, Comparison
from zeroline.errors import SiteError, UsageError
from zeroline.model.loading import Loaded
from zeroline.model.reference import settle
from zeroline.report import figure, page
from zeroline.report.drawing import draw
from zeroline.seen import Seen

COMMAND: ContextVar[tuple[str, ...]] = ContextVar("COMMAND", default=())  # what was typed after ``zeroline``
_WIDE = 240  # in a pipe a table is for a program to read: do not fold it to 80 columns
output = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)
notes = Console(stderr=True, highlight=False, soft_wrap=True)


def record(attribution: Attribution, seconds: float) -> None:
    """The figures of one sample as a table."""
    table([("method", attribution.method), *attribution.rows(), ("seconds", f"{seconds:.2f}")])


def table(rows: Iterable[tuple[str, str]]) -> None:
    """(label, value) pairs, aligned."""
    found = Table(show_header=False, box=None, pad_edge=False)
    for label, value in rows:
        found.add_row(Text(label), Text(value), style="bold" if label == "attribution error" else None)
    grid(found)


def grid(drawn: Table) -> None:
    """A table with every cell whole: where the terminal is narrower it folds the lines, and no number is cut."""
    width = Measurement.get(output, output.options.update(max_width=10_000), drawn).maximum
    Console(file=output.file, highlight=False, soft_wrap=True, width=max(width, output.width)).print(drawn)


def comparison(found: Comparison, more: Mapping[str, Sequence[str]], heads: Sequence[str]) -> None:
    """A table of attributions with columns of the caller's own, and a note for each that failed."""
    output.print(f"target  {found.target[0]}", markup=False)
    drawn = Table(*HEAD, *heads, box=None, pad_edge=False)
    for row in found.rows():
        drawn.add_row(*map(Text, row), *map(Text, more.get(row[0], ["-"] * len(heads))))
    grid(drawn)
    for label, why in found.failures.items():
        notes.print(f"note: {label} failed: {why}", markup=False)


class Record(Protocol):
    """What every result can do."""

    def save(self, path: str | Path) -> None: ...
    def to_dict(self) -> dict[str, Any]: ...


def write(record: Record, name: str, folder: Path, seen: Seen, formats: Sequence[str] = ("png",), *, report: bool = False) -> list[Path]:
    """``NAME.safetensors`` with what was seen, ``record.json`` and, where one can be drawn, ``figure.png`` (or other ``formats`` of it).

    With ``report`` also ``report.html``. All are written into a folder of their own first, then moved: a failure leaves what was there before.
    """
    with fresh(folder) as partial:
        keep(record, partial / f"{name}.safetensors", seen)
        (partial / "record.json").write_text(json.dumps(record.to_dict(), indent=2) + "\n")
        try:
            drawn = draw(record, seen)
            for kind in formats:
                figure.save(drawn, partial / f"figure.{kind}")
        except SiteError as reason:
            notes.print(f"no figure: {reason}", markup=False)
        if report:
            page.save([page.chapter(record, asked(seen))], partial / "report.html")
        written = sorted(path.name for path in partial.iterdir())
    return [folder / name for name in written]


def write_several(
    records: Mapping[str, Record], told: Any, folder: Path, seen: Mapping[str, Seen], drawn: Any | None, *, report: bool = False
) -> list[Path]:
    """A file per record by name, ``record.json`` of what is ``told``, one figure of all, and a report with a chapter each."""
    with fresh(folder) as partial:
        for name, one in records.items():
            keep(one, partial / f"{name}.safetensors", seen.get(name, Seen()))
        (partial / "record.json").write_text(json.dumps(told, indent=2) + "\n")
        if drawn is not None:
            figure.save(drawn, partial / "figure.png")
        if report:
            chapters = [page.chapter(one, asked(seen.get(name, Seen()))) for name, one in records.items()]
            page.save(chapters, partial / "report.html")
        written = sorted(path.name for path in partial.iterdir())
    return [folder / name for name in written]


def keep(record: Record, path: Path, seen: Seen) -> None:
    """Save a record with what was seen beside it, and the command that asked."""
    record.save(path)
    asked(seen).attach(path)


def asked(seen: Seen) -> Seen:
    """What was seen, with the words of the command line."""
    return replace(seen, command=COMMAND.get())


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """A folder to write into; its files are moved to ``folder`` at the end, and only where nothing failed."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        yield Path(partial)
        for path in sorted(Path(partial).iterdir()):
            path.replace(folder / path.name)


@contextmanager
def results_folder(folder: Path) -> Iterator[Path]:
    """Make the folder for results before the work starts; take it away again if it stays empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]  # the deepest first
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(f"cannot write results to {str(folder)!r}: {problem.strerror or problem}") from None
    if not os.access(folder, os.W_OK):
        raise UsageError(f"cannot write results to {str(folder)!r}: permission denied")
    try:
        yield folder
    finally:
        for path in made:
            if any(path.iterdir()):
                break
            path.rmdir()


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal, nothing in a pipe."""
    if not notes.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def settled(loaded: Loaded, inputs: Any, baseline: Baseline | Distribution, site: str | None) -> Baseline | Distribution:
    """The baseline with its recipe followed, a bar while it is looked for: the figure then shows what was measured from."""
    with progress("looking for the baseline") as report:
        return settle(loaded.model, inputs, baseline, site, report)


def calls_of(text: str) -> Any:
    """``all``, ``3``, ``0,2,-1`` or a name."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError("--calls is empty; write all, numbers such as 0,3, or a name")
    return parts[0] if len(parts) == 1 else parts
