"""The local engine: one process, the next examples read and prepared while the model works on these.

Holds ``explained``, the loop over chunks that Ray's workers run too, and ``LocalEngine``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

from zeroline.scale.columns import Layout
from zeroline.scale.explainer import Explainer, Finished, Survey
from zeroline.scale.job import Job
from zeroline.scale.prepare import Prepared
from zeroline.scale.source import Chunk, Source

AHEAD = 2  # chunks that are prepared beside the one that is explained


def explained(explainer: Explainer, chunks: Iterable[Chunk], known: Mapping[str, str | None], stop: Event | None = None) -> Iterator[Finished]:
    """What comes of each chunk, in order; none is begun once ``stop`` is set. A thread reads and prepares ahead."""
    ahead: deque[Future[Prepared]] = deque()
    coming = iter(chunks)
    with ThreadPoolExecutor(1, "loader") as loader:
        try:
            while stop is None or not stop.is_set():
                while len(ahead) <= AHEAD and (chunk := next(coming, None)) is not None:
                    ahead.append(loader.submit(explainer.prepared, *chunk, known))
                if not ahead:
                    return
                yield explainer.finished(ahead.popleft().result())
        finally:
            for waiting in ahead:
                waiting.cancel()


class LocalEngine:
    """Loads the model when it is made."""

    words = "local"

    def __init__(self, job: Job, source: Source) -> None:
        self._explainer = Explainer(job, source)

    def survey(self, batch: int | None, layout: Layout | None) -> Survey:
        """What a run must know before it begins."""
        return self._explainer.survey(batch, layout)

    def results(self, chunks: Iterable[Chunk], known: Mapping[str, str | None], stop: Event) -> Iterator[Finished]:
        """What comes of each chunk, in order; none is begun once ``stop`` is set."""
        return explained(self._explainer, chunks, known, stop)

    def close(self) -> None:
        """Nothing is held."""
