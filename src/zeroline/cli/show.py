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

import numpy as np
import torch
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor

from zeroline.attribution import Attribution
from zeroline.baseline import Baseline, Distribution, Normalisation
from zeroline.comparison import HEAD, Comparison
from zeroline.errors import BaselineError, InputError, SiteError, UsageError
from zeroline.model import normalisation
from zeroline.model.families import patch_grid
from zeroline.model.inputs import Inputs
from zeroline.model.loading import Loaded
from zeroline.model.positions import positions_of
from zeroline.model.reference import reference_inputs, settle
from zeroline.report import figure, page
from zeroline.report.drawing import draw
from zeroline.seen import BASELINE, IMAGE, Seen

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


def around(
    attribution: Attribution,
    loaded: Loaded,
    inputs: Any,
    baseline: Baseline | Distribution,
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
) -> Seen:
    """What is seen beside an attribution: the picture, the baseline's, and how its values lie."""
    photograph = pixels(loaded, inputs)
    if photograph is None:
        return Seen()
    if grid is None and prefix is None:
        lie = positions_of(loaded.model, Inputs.of(loaded.model, inputs), figure.picture_part(attribution))
        grid, prefix = (lie.grid, lie.prefix) if lie.grid is not None else (None, None)
    elif grid is None:
        grid = patch_grid(loaded.model, photograph.shape[:2])
    pictures = {IMAGE: photograph, BASELINE: baseline_picture(loaded, inputs, baseline, attribution.site)}
    return Seen(levels(pictures), grid=grid, prefix=prefix)


def levels(pictures: Mapping[str, figure.Picture | None]) -> dict[str, Tensor]:
    """Pictures in 0..1 as whole levels, those that are there."""
    known = {name: picture for name, picture in pictures.items() if picture is not None}
    return {name: torch.from_numpy((np.clip(picture, 0, 1) * 255).round().astype(np.uint8)) for name, picture in known.items()}


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


def pixels(loaded: Loaded, inputs: Any) -> figure.Picture | None:
    """The model's own view of the photograph: what it was given, back in [0, 1]."""
    image = _image_tensor(inputs)
    return None if image is None else _unnormalised(image, normalisation.of(loaded.model))


def picture_of(model: Any, given: Any) -> figure.Picture | None:
    """An input of a model back as a picture in [0, 1], where it is one."""
    image = _image_tensor([given])
    return None if image is None else _unnormalised(image, normalisation.of(model))


def picture_among(model: Any, inputs: Mapping[str, Any]) -> figure.Picture | None:
    """The first input that is a picture, back in [0, 1]."""
    return next((found for found in (picture_of(model, given) for given in inputs.values()) if found is not None), None)


def baseline_picture(loaded: Loaded, inputs: Any, baseline: Baseline | Distribution, site: str = "input:") -> figure.Picture | None:
    """The baseline as a picture, where it is one (features at a layer are not; of a distribution, the mean over its draws)."""
    if isinstance(baseline, Distribution):
        seen = [baseline_picture(loaded, inputs, draw, site) for draw in baseline.draws]
        known = [one for one in seen if one is not None]
        return np.mean(known, axis=0, dtype=np.float32) if len(known) == len(seen) else None
    if baseline.at != "input" and not site.startswith("input:"):
        return None
    try:
        known_inputs = Inputs.of(loaded.model, inputs)
        image = _image_tensor(reference_inputs(loaded.model, known_inputs, baseline).named)
    except (BaselineError, InputError):
        return None
    return None if image is None else _unnormalised(image, normalisation.of(loaded.model))


def _image_tensor(inputs: Any) -> Tensor | None:
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs.values()) if hasattr(inputs, "values") else list(inputs)
    return next((t for t in tensors if isinstance(t, Tensor) and t.is_floating_point() and t.ndim == 4 and t.shape[1] in (1, 3)), None)


def _unnormalised(image: Tensor, known: Normalisation | None) -> figure.Picture:
    pixels = image[0].detach().float().cpu()
    if known is not None and len(known.mean) == len(pixels):
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (known.mean, known.std))
        pixels = pixels * std + mean
    else:
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp_min(1e-12)
    return np.asarray(pixels.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).numpy())


def calls_of(text: str) -> Any:
    """``all``, ``3``, ``0,2,-1`` or a name."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError("--calls is empty; write all, numbers such as 0,3, or a name")
    return parts[0] if len(parts) == 1 else parts
