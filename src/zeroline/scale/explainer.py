"""One model, and examples explained with it: what every engine calls, batch by batch.

Holds ``Explainer``. A batch that fails is halved until the examples that fail stand alone; one that does not fit into memory is halved for good.
Nothing here writes files or knows how many machines there are.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from zeroline.attribution import Attribution
from zeroline.errors import InputError, RunError, ZerolineError
from zeroline.maths import evidence
from zeroline.model.identity import model_class, weights_hash
from zeroline.model.inputs import Inputs
from zeroline.model.memory import Meter, rows_that_fit
from zeroline.scale.asking import Asking
from zeroline.scale.columns import EVIDENCE, Layout, Row
from zeroline.scale.job import Job, settings_hash
from zeroline.scale.maps import maps_of
from zeroline.scale.prepare import Failure, Prepared, Preparer, Ready, by_shape
from zeroline.scale.source import Source

KEPT_GRADIENTS = 64  # path points whose gradients an example is taken to keep, for the size of a batch
RAGGED_CHUNK = 4  # batches that are prepared together where shapes differ, so that equal ones meet


@dataclass(frozen=True, eq=False)
class Finished:
    """What came of some examples: their rows, those that failed, how many were done before and have not changed."""

    table: pa.Table | None
    failures: tuple[Failure, ...] = ()
    unchanged: int = 0


@dataclass(frozen=True)
class Survey:
    """What a run must know before it begins: who explains, how large batches are and how many examples are prepared together, and the columns."""

    model_id: str
    name: str
    batch: int
    chunk: int
    layout: Layout


class Explainer:
    """A job with its model loaded. ``batch`` is how many examples share a pass; it shrinks where memory runs out.

    ``is_copy``: a module in the job came from another process, so that it may be moved to the job's device and dtype.
    """

    def __init__(self, job: Job, source: Source, *, is_copy: bool = False) -> None:
        self._job = job
        self._asking = Asking(job, is_copy=is_copy)
        self._sourced = self._asking.sourced
        self._preparer = Preparer(self._sourced, source)
        self._examples, self._has_places = len(source), source.has_places
        self._settings = settings_hash(job.settings())
        self._model_id = f"{model_class(self._sourced.model)}@{weights_hash(self._sourced.model)()}"
        self.batch = 1
        self.layout: Layout | None = None

    def survey(self, batch: int | None = None, layout: Layout | None = None) -> Survey:
        """Explain one example to learn the columns and what a batch costs, unless ``batch`` and ``layout`` are known from before.

        Raises what is wrong with the first example, the one in the middle and the last, where none of the three can be explained.
        """
        if batch is None or layout is None:
            ready, row = self._first()
            one_size = self._preparer.has_one_picture_size(ready)
            layout = layout or Layout.of(row, fixed=one_size and not self._preparer.reads_text, fixed_map=one_size, keep=self._job.keep)
            batch = batch or self._batch_that_fits(ready)
        batch = 1 if self._asking.one_at_a_time else batch
        self.batch, self.layout = batch, layout
        return Survey(self._model_id, self._sourced.name, batch, batch * (1 if layout.is_fixed else RAGGED_CHUNK), layout)

    def prepared(self, start: int, stop: int, known: Mapping[str, str | None]) -> Prepared:
        """The inputs of the examples ``start`` to ``stop`` but for those ``known``; may run beside ``finished``."""
        return self._preparer.prepared(start, stop, known)

    def finished(self, prepared: Prepared) -> Finished:
        """Records of prepared examples as rows, those of one shape in batches."""
        assert self.layout is not None  # survey() comes first
        rows: list[Row] = []
        failed = list(prepared.failures)
        for group in by_shape(prepared.ready):
            found, wrong = self._in_batches(group, self.batch)
            rows += found
            failed += wrong
        rows.sort(key=lambda row: int(row.example["number"]))
        return Finished(self.layout.table(rows) if rows else None, tuple(failed), prepared.unchanged)

    def _first(self) -> tuple[Ready, Row]:
        problem: Exception | None = None
        for number in dict.fromkeys((0, self._examples // 2, self._examples - 1)):
            try:
                ready = self._preparer.one(number)
                return ready, self._rows([ready])[0]
            except Exception as found:
                problem = problem or found
        assert problem is not None
        if isinstance(problem, ZerolineError):
            raise problem
        raise InputError(f"no example could be explained with {self._sourced.name!r}: {type(problem).__name__}: {problem}") from problem

    def _explained(self, ready: Sequence[Ready]) -> tuple[list[Row], list[Failure]]:
        """Rows of a batch; halved where it fails, for good where memory runs out."""
        try:
            rows = self._rows(ready)
            if self.layout is not None:
                for row in rows:
                    self.layout.check(row)
            return rows, []
        except Exception as problem:
            short = _out_of_memory(problem)
            if "CUDA error" in str(problem) and not short:
                raise RunError(f"the GPU failed; start the run again to go on: {str(problem).splitlines()[0]}") from problem
            if len(ready) == 1:
                before = "out of memory with one example in a batch: " if short else ""
                return [], [Failure.of(ready[0].example, ready[0].content_hash, "explain", problem, before)]
        half = (len(ready) + 1) // 2
        if short:
            self.batch = min(self.batch, half)
            gc.collect()
            if self._asking.device.type == "cuda":
                torch.cuda.empty_cache()
        return self._in_batches(ready, half)

    def _in_batches(self, ready: Sequence[Ready], most: int) -> tuple[list[Row], list[Failure]]:
        """``most`` examples at a time, or fewer: the batch may shrink on the way."""
        rows: list[Row] = []
        failed: list[Failure] = []
        while ready:
            size = min(most, self.batch)
            found, wrong = self._explained(ready[:size])
            ready = ready[size:]
            rows += found
            failed += wrong
        return rows, failed

    def _rows(self, ready: Sequence[Ready]) -> list[Row]:
        """The method on one batch; its record taken apart."""
        started = time.perf_counter()
        inputs = self._asking.joined([one.inputs for one in ready])
        found = on_cpu(self._asking.record(inputs, ready))
        maps = maps_of(self._sourced.model, inputs, found, self._job.grid, self._job.prefix)
        told_of_all = {
            "settings_hash": self._settings,
            "model_hash": self._model_id.rpartition("@")[2],
            "method": self._job.method,
            "batch": len(ready),
        }
        seconds = _shared_out(time.perf_counter() - started, found, len(ready))
        shares = self._evidence(maps, ready)
        rows = []
        for number, one in enumerate(ready):
            run = {**told_of_all, "seconds": seconds[number]}
            told = {name: value for name, value in vars(one.example).items() if name not in ("mask", "box")}
            map_ = None if maps is None else maps[number]
            rows.append(Row({**told, "content_hash": one.content_hash}, run, found.sample(number), map_, shares[number]))
        return rows

    def _evidence(self, maps: Tensor | None, ready: Sequence[Ready]) -> list[Mapping[str, float | None]] | list[None]:
        """Of each map the positive share inside the object, whether its largest value is there, and what chance gives."""
        if not self._has_places:
            return [None] * len(ready)
        found: list[Mapping[str, float | None]] = [{} for _ in ready]
        known = {number: one.mask for number, one in enumerate(ready) if maps is not None and one.mask is not None and bool(one.mask.any())}
        if maps is None or not known:
            return found
        chosen, masks = maps[list(known)], torch.stack(list(known.values()))
        shares = {name: getattr(evidence, name)(chosen, masks).tolist() for name in EVIDENCE}
        for row, number in enumerate(known):
            found[number] = {name: None if math.isnan(values[row]) else values[row] for name, values in shares.items()}
        return found

    def _batch_that_fits(self, ready: Ready) -> int:
        """Rows that free memory holds, by what one pass keeps for gradients and what a path keeps of them."""
        model = self._sourced.model
        inputs = Inputs.of(model, self._asking.joined([ready.inputs]))
        meter = Meter(model.parameters())
        with torch.enable_grad(), meter.running():
            inputs.with_values({name: t.detach().clone().requires_grad_() for name, t in inputs.floating().items()}).call(model)
        return rows_that_fit(meter.bytes + KEPT_GRADIENTS * sum(t.nbytes for t in inputs.floating().values()), self._asking.device)


def on_cpu(record: Any) -> Any:
    """A record with all its tensors on the CPU, moved at once rather than sample by sample."""
    if isinstance(record, Tensor):
        return record.detach().cpu()
    if isinstance(record, Mapping):
        return {name: on_cpu(value) for name, value in record.items()}
    if isinstance(record, (tuple, list)):
        return type(record)(on_cpu(value) for value in record)
    if is_dataclass(record) and not isinstance(record, type):
        return replace(record, **{field.name: on_cpu(getattr(record, field.name)) for field in fields(record)})
    return record


def _shared_out(seconds: float, found: Any, count: int) -> list[float]:
    """A batch's seconds over its examples, by their gradient evaluations where they differ."""
    if not isinstance(found, Attribution):
        return [seconds / count] * count
    evaluations = found.evaluations.double().cpu().clamp_min(1)
    return (seconds * evaluations / evaluations.sum()).tolist()


def _out_of_memory(problem: Exception) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(problem, (MemoryError, torch.OutOfMemoryError)) or any(word in str(problem).lower() for word in words)
