"""Explain every example of a source: resumable, on one machine or many.

Holds ``run``, which brings together the source (what there is), the job (what is asked), an engine (who computes) and the store (what is done).
"""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from zeroline.baseline import Baseline, Distribution
from zeroline.errors import NotConvergedWarning, NotFoundError, RunError, UsageError, ZerolineWarning
from zeroline.model.identity import versions
from zeroline.model.loading import Sourced
from zeroline.scale.columns import Layout
from zeroline.scale.explainer import Finished, Survey
from zeroline.scale.job import Job, settings_hash
from zeroline.scale.local import LocalEngine
from zeroline.scale.opened import Run, open_run
from zeroline.scale.ray_engine import RayEngine
from zeroline.scale.source import Chunk, Source, chunks
from zeroline.scale.store import Manifest, Store, now
from zeroline.target import Target

ENGINES = ("local", "ray")
FLUSH_SECONDS = 20.0


@dataclass(frozen=True)
class Progress:
    """How far a run is: of ``total`` examples, ``done`` are explained (in this and earlier sessions) and ``failed`` set aside."""

    total: int
    done: int
    failed: int
    fresh: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Examples per second of this session."""
        return self.fresh / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At this pace; None before the first example."""
        left = self.total - self.done - self.failed
        return left / self.per_second if self.per_second > 0 else None


class Engine(Protocol):
    """Who computes."""

    words: str

    def survey(self, batch: int | None, layout: Layout | None) -> Survey: ...
    def results(self, chunks: Iterable[Chunk], known: Mapping[str, str | None], stop: threading.Event) -> Iterator[Finished]: ...
    def close(self) -> None: ...


def run(
    source: str | Path,
    *,
    model: str | nn.Module | Sourced,
    out: str | Path,
    method: str = "integrated_gradients",
    target: str | Target = "top",
    site: str | None = None,
    baseline: str | Baseline | Distribution | None = None,
    options: Mapping[str, Any] | None = None,
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
    keep: str = "values",
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    engine: str = "local",
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    cpus_per_worker: float | None = None,
    address: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    preprocess: Callable[[Any], Any] | None = None,
    max_failures: int | None = None,
    retry_failed: bool = False,
    flush_seconds: float = FLUSH_SECONDS,
    trust_remote_code: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Run:
    """One record per example of a source, into a folder of Parquet shards. Running the same again goes on where it ended.

    Args:
        source: a folder of images (sub-folders are labels, or a ``labels.csv``), a CSV or Parquet file, a saved Hugging Face dataset.
        model: a name (``zoo:digits-vit``, ``hf:...``, ``timm:...``), a module, or a ``Sourced``; what was made in Python travels to Ray's workers.
        out: the folder. One writer at a time; a run of other settings or of another model in it is refused.
        method: of ``zl.METHODS``, the routes with one record per example, or ``logic``, ``ground``, ``mechanism``.
        target: in words (``"top"``, ``"seven - one"``, ``"label"``: each example's own label), or a target record.
        site, baseline, options, grid, prefix: as for the method; the baseline in words (default black) or a record.
        keep: ``"values"`` (everything), ``"map"`` (one number per position, and the figures) or ``"figures"``.
        columns: role -> column, where names do not say it: image, text, passage, label, mask, box, id. ``split``: of a saved dataset.
        limit: only so many examples, from the first on.
        engine: ``"local"`` (one process) or ``"ray"`` (``workers`` actors of ``cpus_per_worker`` and ``gpus_per_worker``, on the cluster at
            ``address`` or on this machine).
        batch_size: examples per pass; None measures what fits into memory, and halves it where that was too much.
        device, dtype: where a model that is loaded by name goes, and in what.
        preprocess: from a PIL image to the inputs, for a module that does not say.
        max_failures: stop after so many failures of this session; None never does. ``retry_failed`` takes up those of earlier sessions again.
        flush_seconds: what is finished is on the disk after so long, or once a shard is full: a run that is killed loses no more.
        progress: called with a ``Progress`` after every batch.

    Returns:
        ``zl.open_run(out)``. Its values are those of the method called on each example; between engines and batch sizes they differ by rounding (and
        an adaptive path, which decides by figures, may end one node apart).

    Raises:
        UsageError and its kinds for what cannot be asked, before anything is written; RunError where writing fails or ``max_failures`` is reached;
        KeyboardInterrupt after Ctrl-C (or SIGTERM), once the batch under way is finished and written. A ZerolineWarning for a shard that cannot be
        read: its examples are explained again.
    """
    job = Job(model, method, target, site, baseline, dict(options or {}), grid, prefix, keep, device, dtype, preprocess, trust_remote_code)
    ray_options = {"workers": workers, "gpus_per_worker": gpus_per_worker, "cpus_per_worker": cpus_per_worker, "address": address}
    _check(engine, ray_options, batch_size, limit, max_failures)
    found = Source.open(source, columns=columns, split=split)
    settings = job.settings()
    folder = Path(out)
    with Store(folder) as store:
        before = store.manifest
        if before is not None:
            before.refuse_other(settings, folder)
        cpus = 1.0 if cpus_per_worker is None else cpus_per_worker
        engaged: Engine = LocalEngine(job, found) if engine == "local" else RayEngine(job, found, workers, gpus_per_worker or 0.0, cpus, address)
        try:
            layout = None if before is None else Layout.from_dict(before.layout)
            survey = engaged.survey(batch_size or (None if before is None else before.batch), layout)
            if before is not None:
                before.refuse_other_model(survey.model_id, folder)
            told = {"path": found.path, "kind": found.kind, "columns": dict(found.columns), "examples": len(found)}
            store.begin(_manifest(settings, told, survey) if before is None else replace(before, source=told))
            for note in store.notes:
                warnings.warn(note, ZerolineWarning, stacklevel=2)
            if retry_failed:
                store.retry()
            total = min(len(found), limit or len(found))
            _Session(store, engaged, total, max_failures, flush_seconds, progress).finish(chunks(len(found), survey.chunk, limit))
        finally:
            engaged.close()
    return open_run(folder)


class _Session:
    """One start of a run, from the first chunk to the last line of the manifest."""

    def __init__(
        self, store: Store, engine: Engine, total: int, most: int | None, flush_seconds: float, progress: Callable[[Progress], None] | None
    ) -> None:
        self._store, self._engine, self._total, self._most, self._flush_seconds, self._progress = store, engine, total, most, flush_seconds, progress
        self._started = self._flushed = time.monotonic()
        self._fresh = self._wrong = self._unchanged = 0
        self._stop = threading.Event()

    def finish(self, coming: Iterator[Chunk]) -> None:
        """All chunks; whatever ends it early, what is finished is written first."""
        known: dict[str, str | None] = {**self._store.quarantined, **self._store.finished}
        known = {id: hashed for id, hashed in known.items() if hashed is not None}
        state = "failed"
        begun = now()
        try:
            with warnings.catch_warnings(), _graceful(self._stop):
                warnings.simplefilter("ignore", NotConvergedWarning)  # the column `stopped` says it, example by example
                for finished in self._engine.results(coming, known, self._stop):
                    self._take(finished)
            state = "interrupted" if self._stop.is_set() else "complete"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            seconds = time.monotonic() - self._started
            told = {"engine": self._engine.words, "begun": begun, "ended": now(), "seconds": round(seconds, 3)}
            self._store.close(state, {**told, "done": self._fresh, "failed": self._wrong, "unchanged": self._unchanged})
        if state == "interrupted":
            raise KeyboardInterrupt
        self._refuse_too_many()

    def _take(self, finished: Finished) -> None:
        self._store.add(finished.table, finished.failures)
        self._fresh += 0 if finished.table is None else finished.table.num_rows
        self._wrong += len(finished.failures)
        self._unchanged += finished.unchanged
        if time.monotonic() - self._flushed > self._flush_seconds:
            self._store.flush()
            self._flushed = time.monotonic()
        if self._progress is not None:
            passed = time.monotonic() - self._started
            failed = min(len(self._store.quarantined), self._total)
            self._progress(Progress(self._total, min(len(self._store.finished), self._total - failed), failed, self._fresh, passed))
        self._refuse_too_many()

    def _refuse_too_many(self) -> None:
        if self._most is not None and self._wrong > self._most:
            why = f"{self._wrong} examples failed, more than max_failures={self._most}"
            raise RunError(f"{why}; the reasons are in {str(self._store.folder / 'failures')!r}, what was finished is kept")


@contextmanager
def _graceful(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask to stop after the batch under way; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, ask) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before):
            signal.signal(kind, handler)


def _manifest(settings: Mapping[str, Any], source: Mapping[str, Any], survey: Survey) -> Manifest:
    sizes, columns = (survey.batch, survey.chunk), survey.layout.to_dict()
    return Manifest(settings, settings_hash(settings), survey.name, survey.model_id, source, *sizes, columns, versions(), now())


def _check(engine: str, ray_options: Mapping[str, Any], batch_size: int | None, limit: int | None, max_failures: int | None) -> None:
    if engine not in ENGINES:
        raise NotFoundError.among("engine", engine, ENGINES)
    if engine == "local":
        for name, value in ray_options.items():
            if value is not None:
                raise UsageError(f"{name}={value} means nothing to the local engine, which is one process; it belongs to engine='ray'")
    counts = (("batch_size", batch_size, 1), ("limit", limit, 1), ("max_failures", max_failures, 0), ("workers", ray_options["workers"], 1))
    for name, value, least in counts:
        if value is not None and value < least:
            raise UsageError(f"{name}={value} was asked; {least} or more")
    for name in ("gpus_per_worker", "cpus_per_worker"):
        if ray_options[name] is not None and ray_options[name] < 0:
            raise UsageError(f"{name}={ray_options[name]} was asked; 0 or more")
