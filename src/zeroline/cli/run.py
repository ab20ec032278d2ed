"""``zeroline run``: every example of a source, into Parquet shards; again, and it goes on."""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from zeroline.cli import show
from zeroline.cli.options import BaselineOrNone, Grid, ModelName, Prefix, TrustRemoteCode
from zeroline.errors import UsageError, ZerolineWarning
from zeroline.scale import Progress
from zeroline.scale import run as over_source
from zeroline.scale.job import read_options
from zeroline.scale.session import FLUSH_SECONDS
from zeroline.spelling.reading import grid_of
from zeroline.target import whole_number

_LINE_SECONDS = 10.0  # between lines in a pipe


def run(
    source: Annotated[Path, typer.Argument(help="A folder of images, a CSV or Parquet file, or a saved Hugging Face dataset.")],
    out: Annotated[Path, typer.Option(help="Folder for the shards, the failures and the manifest.")] = Path("out/run"),
    model: ModelName = "zoo:digits-vit",
    method: Annotated[str, typer.Option(help="See `zeroline methods`; also logic, ground and mechanism.")] = "integrated_gradients",
    target: Annotated[str, typer.Option(help="top, label (each example's own), a class number, a label, or a contrast 'A - B'.")] = "top",
    site: Annotated[str | None, typer.Option(help="Where the features are; see `zeroline sites MODEL`. Default: the input.")] = None,
    baseline: BaselineOrNone = None,
    option: Annotated[list[str] | None, typer.Option("--option", help="An option of the method, NAME=VALUE; can be repeated.")] = None,
    grid: Grid = None,
    prefix: Prefix = None,
    keep: Annotated[str, typer.Option(help="values, map (one number per position) or figures.")] = "values",
    columns: Annotated[str | None, typer.Option(help="Which column is what: image=file,label=digit; also text, passage, mask, box, id.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a saved dataset with several.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many examples, from the first on.")] = None,
    engine: Annotated[str, typer.Option(help="local (one process) or ray.")] = "local",
    workers: Annotated[int | None, typer.Option(help="Ray: how many, each with a model of its own. Default: as many as fit.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="Ray: GPUs of each worker; 0.5 shares one.")] = None,
    cpus_per_worker: Annotated[float | None, typer.Option(help="Ray: CPUs, and threads, of each worker. Default: 1.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray: a running cluster, auto or HOST:PORT. Default: one is started here.")] = None,
    batch_size: Annotated[str, typer.Option(help="Examples per pass; auto measures what fits into memory.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16.")] = "float32",
    max_failures: Annotated[int | None, typer.Option(help="Stop after so many failures. Default: never.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try the failures of earlier sessions again.")] = False,
    flush_seconds: Annotated[float, typer.Option(help="Write what is finished so often: a run that is killed loses no more.")] = FLUSH_SECONDS,
    json_: Annotated[bool, typer.Option("--json", help="Print a summary of the run as JSON at the end.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Explain every example of a source; run the same again to go on where it ended."""
    options = read_options(option or [])
    named = _columns(columns)
    with progress() as report, _interruptible(), _told_at_once():
        found = over_source(
            source,
            model=model,
            out=out,
            method=method,
            target=target,
            site=site,
            baseline=baseline,
            options=options,
            grid=grid_of(grid),
            prefix=prefix,
            keep=keep,
            columns=named,
            split=split,
            limit=limit,
            engine=engine,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            cpus_per_worker=cpus_per_worker,
            address=address,
            batch_size=_batch(batch_size),
            device=device,
            dtype=dtype,
            max_failures=max_failures,
            retry_failed=retry_failed,
            flush_seconds=flush_seconds,
            trust_remote_code=trust_remote_code,
            progress=report,
        )
    if json_:
        print(json.dumps(found.to_dict(), indent=2))
        return
    show.table(found.lines())
    if found.failures.num_rows:
        show.notes.print(f"note: {found.failures.num_rows} examples failed; the reasons are in {out / 'failures'}", markup=False)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        show.notes.print("note: what is finished is written; run the same again to go on", markup=False)
        raise


@contextmanager
def _told_at_once() -> Iterator[None]:
    """Warnings as lines when they come: a run is long."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", ZerolineWarning)
        warnings.showwarning = lambda message, *_: show.notes.print(f"warning: {message}", markup=False)
        yield


@contextmanager
def progress() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; in a pipe a line now and then: done, failed, examples per second, time left."""
    if not show.notes.is_terminal:
        yield _Lines()
        return
    parts = (TextColumn("examples"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
    with Bar(*parts, console=show.notes, transient=True) as bar:
        task = bar.add_task("", total=None, said="")

        def report(far: Progress) -> None:
            bar.update(task, completed=far.done + far.failed, total=far.total, said=f"{far.failed} failed, {far.per_second:.1f} per second")

        yield report


class _Lines:
    """Progress for a log file."""

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, far: Progress) -> None:
        ended = far.done + far.failed >= far.total
        if time.monotonic() - self._last < _LINE_SECONDS and not ended:
            return
        self._last = time.monotonic()
        left = "" if far.seconds_left is None or ended else f", {_span(far.seconds_left)} left"
        print(f"{far.done} of {far.total} done, {far.failed} failed, {far.per_second:.1f} per second{left}", file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _batch(text: str) -> int | None:
    number = whole_number(text)
    if text != "auto" and number is None:
        raise UsageError(f"cannot read --batch-size {text!r}; write auto or a number")
    return number


def _columns(text: str | None) -> dict[str, str]:
    """``image=file,label=digit``."""
    found: dict[str, str] = {}
    for part in (text or "").split(","):
        role, equals, name = part.partition("=")
        if not part.strip():
            continue
        if not equals or not role.strip() or not name.strip():
            raise UsageError(f"cannot read --columns {text!r}; write ROLE=COLUMN,..., e.g. image=file,label=digit")
        found[role.strip()] = name.strip()
    return found
