"""A run as it lies on disk, opened for reading: an Arrow dataset, an iterator of records, the table of failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from zeroline import records
from zeroline.errors import LoadError, NotFoundError
from zeroline.scale.columns import Layout
from zeroline.scale.store import FAILURE, FAILURES, MANIFEST, RECORDS, Manifest, shards

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Run:
    """What a run has finished. Reading needs no lock: shards appear whole."""

    folder: Path
    manifest: Manifest

    @property
    def layout(self) -> Layout:
        """The columns."""
        return Layout.from_dict(self.manifest.layout)

    @property
    def dataset(self) -> Any:
        """The rows as a ``pyarrow.dataset.Dataset``."""
        scan = pa.dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
        files = [str(file) for file in shards(self.folder, RECORDS)]
        return pa.dataset.dataset(files, self.layout.schema(), format=pa.dataset.ParquetFileFormat(default_fragment_scan_options=scan))

    @property
    def failures(self) -> Any:
        """The examples that failed, as an Arrow table: id, stage, reason, ..."""
        found = [pq.read_table(file) for file in shards(self.folder, FAILURES)]
        return pa.concat_tables(found).replace_schema_metadata(None) if found else FAILURE.empty_table()

    def __len__(self) -> int:
        return sum(pq.read_metadata(file).num_rows for file in shards(self.folder, RECORDS))

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows as dicts, a few hundred in memory at a time; arrays are flat lists."""
        known = self.layout.schema().names
        for name in columns or ():
            if name not in known:
                raise NotFoundError.among("column", name, known)
        yield from self._rows(columns=None if columns is None else list(columns))

    def _rows(self, **scan: Any) -> Iterator[dict[str, Any]]:
        for batch in self.dataset.to_batches(batch_size=_ROWS_AT_ONCE, **scan):
            arrays = {n: (c.storage if isinstance(c.type, pa.BaseExtensionType) else c) for n, c in zip(batch.schema.names, batch.columns)}
            yield from pa.RecordBatch.from_pydict(arrays).to_pylist() if arrays else ()

    def records(self) -> Iterator[tuple[str, Any]]:
        """(id, record) of every finished example: an Attribution, Relevance, Logic, Grounding or Mechanism of one sample."""
        layout = self.layout
        for row in self.rows():
            yield row["id"], layout.record(row, f"example {row['id']!r} in {str(self.folder)!r}")

    def record(self, id: str) -> Any:
        """The record of one example. Raises NotFoundError where there is none."""
        row = next(self._rows(filter=pa.dataset.field("id") == id), None)
        if row is None:
            raise NotFoundError(f"no example {id!r} among the {len(self)} finished in {str(self.folder)!r}")
        return self.layout.record(row, f"example {id!r} in {str(self.folder)!r}")

    def to_dict(self) -> dict[str, Any]:
        """What was asked, and how far it is, as JSON types."""
        told = self.manifest
        last = told.sessions[-1] if told.sessions else {}
        return {
            "folder": str(self.folder),
            "state": told.state,
            "done": len(self),
            "failed": self.failures.num_rows,
            "model": told.model,
            "model_id": told.model_id,
            "settings": dict(told.settings),
            "settings_hash": told.settings_hash,
            "source": dict(told.source),
            "batch": told.batch,
            "sessions": len(told.sessions),
            "last_session": dict(last),
        }

    def lines(self) -> list[tuple[str, str]]:
        """The run in words, for tables: (label, value) pairs."""
        told = self.manifest
        asked = told.settings
        lines = [
            ("run", f"{self.folder} ({told.state})"),
            ("source", f"{told.source['path']} ({told.source['examples']} examples)"),
            ("model", f"{told.model} ({told.model_id})"),
            ("method", str(asked["method"])),
            ("target", str(asked["target"])),
            *([("site", str(asked["site"]))] if asked["site"] else []),
            *([("baseline", str(asked["baseline"]))] if asked["baseline"] else []),
            ("finished", f"{len(self)} examples, {self.failures.num_rows} failed"),
        ]
        for session in told.sessions[-1:]:
            pace = f"{session['done'] / session['seconds']:.1f} per second" if session["seconds"] else ""
            lines.append(("last session", f"{session['done']} examples in {session['seconds']:.1f} s, {pace}, {session['engine']}"))
        return lines

    def __repr__(self) -> str:
        width = max(len(label) for label, _ in self.lines()) + 2
        return "\n".join(f"{label:<{width}}{value}" for label, value in self.lines())

    def _repr_html_(self) -> str:
        return records.as_html("Run", self.lines())


def open_run(folder: str | Path) -> Run:
    """The run in a folder, finished or not. Raises NotFoundError where there is none, LoadError where its manifest cannot be read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise NotFoundError(f"no folder {str(folder)!r}; a run is a folder that `zeroline run` wrote")
    manifest = Manifest.read(folder)
    if manifest is None:
        raise LoadError(f"{str(folder)!r} holds no run: there is no {MANIFEST}")
    return Run(folder, manifest)
