"""Whole datasets: one process or Ray, resumable, into Parquet shards that other tools read."""

from zeroline.scale.opened import Run, open_run
from zeroline.scale.run import Progress, run

__all__ = ["Progress", "Run", "open_run", "run"]
