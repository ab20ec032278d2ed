"""Whole datasets: one process or Ray, resumable, into Parquet shards that other tools read."""

from zeroline.scale.opened import Run, open_run
from zeroline.scale.session import Progress, run
from zeroline.scale.summary_of import summarize

__all__ = ["Progress", "Run", "open_run", "run", "summarize"]
