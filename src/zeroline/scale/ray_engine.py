"""The Ray engine: Ray Data over an actor pool, one model per actor, on one machine or a cluster.

Ray Data moves numbers of examples to the actors and finished rows back; an actor that is lost, alone or with its node, is started again elsewhere and
its examples are explained once more. The driver alone writes, so an example that came twice is written once. ``pip install 'zeroline[ray]'``.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from typing import Any

import pyarrow as pa

from zeroline.errors import RunError, UsageError, ZerolineError
from zeroline.scale.columns import Layout
from zeroline.scale.explainer import Explainer, Finished, Survey
from zeroline.scale.job import Job
from zeroline.scale.local import explained
from zeroline.scale.prepare import Failure
from zeroline.scale.source import Chunk, Source

_TOGETHER = 4  # chunks per task at most: the next is prepared while one is explained ...
_REACH_SECONDS = 10
_TASKS = 4  # ... but so many tasks per worker, so that all end together


class RayEngine:
    """Joins the cluster at ``address``, or starts one on this machine for as long as the run lasts.

    Raises UsageError where Ray is not installed or the cluster has not what is asked, RunError where it cannot be reached.
    """

    def __init__(self, job: Job, source: Source, workers: int | None, gpus_per_worker: float, cpus_per_worker: float, address: str | None) -> None:
        self._ray = _imported()
        self._job, self._source = job, source
        self._needs = {"num_cpus": cpus_per_worker, "num_gpus": gpus_per_worker}
        self._started = self._join(address)
        try:
            self.workers = self._fitting(workers)
        except BaseException:
            self.close()
            raise
        self.words = f"ray, {self.workers} workers of {cpus_per_worker:g} CPU and {gpus_per_worker:g} GPU" + (
            "" if address is None else f" at {address}"
        )
        self._layout: Layout | None = None
        self._batch = 1

    def survey(self, batch: int | None, layout: Layout | None) -> Survey:
        """What a run must know before it begins, found by a worker: the driver needs no room for the model."""
        ray = self._ray
        found = ray.get(ray.remote(**self._needs, max_retries=3)(_surveyed).remote(self._job, self._source, batch, layout))
        if isinstance(found, ZerolineError):
            raise found
        self._layout, self._batch = found.layout, found.batch
        return found  # type: ignore[no-any-return]

    def results(self, chunks: Iterable[Chunk], known: Mapping[str, str | None], stop: Event) -> Iterator[Finished]:
        """What comes of each chunk, in the order in which it is finished; none more is taken once ``stop`` is set."""
        ray, bounds = self._ray, list(chunks)
        size = max(1, min(_TOGETHER, len(bounds) // (_TASKS * self.workers)))
        tasks = [{"chunks": [list(chunk) for chunk in bounds[i : i + size]]} for i in range(0, len(bounds), size)]
        if not tasks:
            return
        # inside a list, so that Ray hands it on unopened: what an actor is made from must outlive a lost node
        job = [ray.put((self._job, self._source, self._batch, self._layout, dict(known)))]
        # one block per task, put there by the driver: a task that made them would wait for a CPU that the actors hold
        asked = ray.data.from_items(tasks, override_num_blocks=len(tasks))
        pool = ray.data.ActorPoolStrategy(size=self.workers, max_tasks_in_flight_per_actor=2)
        answers = asked.map_batches(_Worker, fn_constructor_args=(job,), batch_size=1, compute=pool, **self._needs)
        for answer in answers.iter_batches(batch_size=1, prefetch_batches=0):
            for payload in answer["payload"]:
                if stop.is_set():
                    return
                yield _unpacked(payload)

    def close(self) -> None:
        """Leave the cluster; one that was started for the run ends."""
        if self._started:
            self._ray.shutdown()

    def _join(self, address: str | None) -> bool:
        """Was Ray started here?"""
        ray = self._ray
        if ray.is_initialized():
            return False
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side writes to standard error, between our lines
        try:
            _reach(address)
            with _silent():
                ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as problem:
            raise RunError(f"no Ray cluster at {address!r} ({str(problem).splitlines()[0]}); start one: ray start --head") from None
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        for name in ("ray.data", "ray.serve", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return True

    def _fitting(self, workers: int | None) -> int:
        """How many workers the cluster has room for; an error where more are asked."""
        there = self._ray.cluster_resources()
        room = {"CPUs": (there.get("CPU", 0.0), self._needs["num_cpus"]), "GPUs": (there.get("GPU", 0.0), self._needs["num_gpus"])}
        fitting = min((int(has / each) for has, each in room.values() if each > 0), default=1)
        wanted = fitting if workers is None else workers
        for what, (has, each) in room.items():
            if max(wanted, 1) * each > has:
                raise UsageError(f"{max(wanted, 1)} workers of {each:g} {what} were asked; the cluster has {has:g} {what}")
        return wanted


def _reach(address: str | None) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing on standard error: Ray's C++ side writes there while it connects, whatever its logging is told."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _Worker:
    """One model in one actor; Ray Data calls it with a few chunks at a time."""

    def __init__(self, shared: list[Any]) -> None:
        import ray

        _one_thread_per_cpu()
        job, source, batch, layout, self._known = ray.get(shared[0])
        self._explainer = Explainer(job, source, is_copy=True)
        self._explainer.survey(batch, layout)

    def __call__(self, asked: Mapping[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        bounds = [(int(start), int(stop)) for task in asked["chunks"] for start, stop in task]
        for finished in explained(self._explainer, bounds, self._known):
            yield {"payload": [_packed(finished)]}


def _surveyed(job: Job, source: Source, batch: int | None, layout: Layout | None) -> Survey | ZerolineError:
    _one_thread_per_cpu()
    try:
        return Explainer(job, source, is_copy=True).survey(batch, layout)
    except ZerolineError as problem:
        return problem


def _one_thread_per_cpu() -> None:
    """As many threads as Ray lends CPUs: workers that take more wait for each other."""
    import ray
    import torch

    lent = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    torch.set_num_threads(max(1, int(lent)))


def _packed(finished: Finished) -> bytes:
    """Rows and failures as bytes: Ray Data is not to look into them."""
    sink = pa.BufferOutputStream()
    metadata = {b"finished": json.dumps({"failures": [vars(f) for f in finished.failures], "unchanged": finished.unchanged}).encode()}
    table = finished.table if finished.table is not None else pa.table({})
    schema = table.schema.with_metadata(metadata)
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table.replace_schema_metadata(metadata))
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _unpacked(payload: bytes) -> Finished:
    table = pa.ipc.open_stream(payload).read_all()
    told = json.loads(table.schema.metadata[b"finished"])
    rows = table.replace_schema_metadata(None) if table.num_columns else None
    return Finished(rows, tuple(Failure(**one) for one in told["failures"]), told["unchanged"])


def _imported() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as problem:
        raise UsageError(f"the Ray engine needs Ray ({problem}); install it: pip install 'zeroline[ray]'") from None
    return ray
