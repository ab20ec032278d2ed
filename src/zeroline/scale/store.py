"""The folder of a run: shards, failures, a manifest, and one writer at a time.

::

    DIR/manifest.json                     what was asked, of which model; the columns; how far it is
    DIR/records/part-000000.parquet ...   one row per finished example
    DIR/failures/part-000000.parquet ...  one row per example that failed, with the reason
    DIR/damaged/                          shards that could not be read when a run went on

The shards are the truth: what they hold is done, whatever the manifest says. A shard is written to a temporary name, flushed to the disk and renamed,
so it is there whole or not at all; where two hold one example, the later one counts. Holds ``Store`` (the writer) and ``Manifest``.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq

from zeroline.errors import LoadError, RunError, UsageError
from zeroline.scale.columns import SCHEMA
from zeroline.scale.job import differences
from zeroline.scale.prepare import Failure

MANIFEST, LOCK, WRITER = "manifest.json", ".lock", ".writer"
RECORDS, FAILURES, DAMAGED = "records", "failures", "damaged"
FAILURE = pa.schema(
    [
        pa.field("number", pa.int64()),
        *(pa.field(name, pa.string()) for name in ("id", "image", "text", "content_hash", "stage", "error", "reason")),
        *(pa.field(name, pa.string()) for name in ("settings_hash", "model_hash")),
    ]
)
SHARD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says. ``state`` is running, complete, interrupted or failed; ``sessions`` has a line per start."""

    settings: Mapping[str, Any]
    settings_hash: str
    model: str
    model_id: str
    source: Mapping[str, Any]
    batch: int
    chunk: int
    layout: Mapping[str, Any]
    versions: Mapping[str, str]
    created: str
    state: str = "running"
    done: int = 0
    failed: int = 0
    sessions: tuple[Mapping[str, Any], ...] = ()
    schema: int = SCHEMA

    @property
    def model_hash(self) -> str:
        """The hash of the weights."""
        return self.model_id.rpartition("@")[2]

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder; None where there is none. Raises LoadError where it cannot be read or is of another version."""
        file = folder / MANIFEST
        if not file.is_file():
            return None
        try:
            found = json.loads(file.read_text())
            schema = found["schema"]
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise LoadError(f"{str(file)!r} is no manifest of a run ({problem})") from None
        if schema != SCHEMA:
            raise LoadError(f"{str(file)!r} has schema {schema}; this version reads {SCHEMA}")
        try:
            return cls(**{**found, "sessions": tuple(found["sessions"])})
        except (TypeError, KeyError) as problem:
            raise LoadError(f"{str(file)!r} is a damaged manifest ({problem})") from None

    def write(self, folder: Path) -> None:
        """To a temporary name, flushed, then renamed."""
        _replaced(folder / MANIFEST, lambda file: file.write_text(json.dumps(asdict(self), indent=2) + "\n"))

    def refuse_other(self, settings: Mapping[str, Any], folder: Path) -> None:
        """Raise where a run of other settings is in the folder."""
        if self.settings != settings:
            apart = "; ".join(differences(self.settings, settings))
            raise UsageError(f"{str(folder)!r} holds a run of other settings ({apart}); give another folder, or the same settings")

    def refuse_other_model(self, model_id: str, folder: Path) -> None:
        """Raise where another model's run is in the folder."""
        if self.model_id != model_id:
            raise UsageError(f"{str(folder)!r} holds a run of the model {self.model_id}; asked is {model_id}: give another folder")


@dataclass(eq=False)
class Store:
    """The one writer of a folder: locked while it is open.

    ``finished`` and ``quarantined`` map ids to content hashes. Tables are gathered and written as a shard once they hold ``shard_bytes``, or at
    ``flush``; a thread compresses while the next batch is computed. Raises UsageError where another writer has the folder.
    """

    folder: Path
    shard_bytes: int = SHARD_BYTES
    finished: dict[str, str] = field(default_factory=dict)
    quarantined: dict[str, str | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    manifest: Manifest | None = None

    def __enter__(self) -> Store:
        self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]  # the deepest first
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UsageError(f"cannot write a run to {str(self.folder)!r}: {problem.strerror or problem}") from None
        if not os.access(self.folder, os.W_OK):
            raise UsageError(f"cannot write a run to {str(self.folder)!r}: permission denied")
        self._lock = filelock.FileLock(self.folder / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UsageError(
                f"another run writes to {str(self.folder)!r}{_told(self.folder / WRITER)}; wait for it, or give another folder"
            ) from None
        with suppress(OSError):
            (self.folder / WRITER).write_text(f"process {os.getpid()} on {platform.node()}, since {now()}")
        self._writer = ThreadPoolExecutor(1, "shards")
        self._pending: Future[None] | None = None
        self._gathered: list[pa.Table] = []
        self._gathered_ids: set[str] = set()
        self._gathered_bytes = 0
        self._under_way: list[str] = []  # ids of the shard that is being written
        self._wrong: list[Failure] = []
        self._stale: list[str] = []  # examples whose rows must go from their shards
        try:
            self.manifest = Manifest.read(self.folder)
            if self.manifest is None and any((self.folder / name).exists() for name in (RECORDS, FAILURES)):
                raise UsageError(f"{str(self.folder)!r} holds shards and no {MANIFEST}; give another folder")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None) -> None:
        self._writer.shutdown(wait=True)
        # the lock's file stays, since who deletes it may delete that of the next writer; but a folder that nothing was written to goes as it came
        unused = bool(self._made) and not (self.folder / MANIFEST).exists()
        for name in (WRITER, LOCK) if unused else ():
            with suppress(OSError):
                (self.folder / name).unlink()
        self._lock.release()
        for folder in self._made if unused else ():
            with suppress(OSError):
                folder.rmdir()

    def begin(self, manifest: Manifest) -> None:
        """Take up what is there: temporary files go, unreadable shards are set aside, an example that is there twice is left in the later shard."""
        for name in (RECORDS, FAILURES):
            (self.folder / name).mkdir(exist_ok=True)
            for file in (self.folder / name).glob(".*.partial"):
                file.unlink()
        where: dict[str, Path] = {}
        for shard, ids, hashes in self._readable(RECORDS):
            again = [one for one in ids if one in where]
            for file in {where[one] for one in again}:
                self._drop(file, again)
            where |= dict.fromkeys(ids, shard)
            self.finished |= dict(zip(ids, hashes))
        self._where = where
        for _, ids, hashes in self._readable(FAILURES):
            self.quarantined |= {one: hashed for one, hashed in zip(ids, hashes) if one not in self.finished}
        self._next = {name: self._number(name) for name in (RECORDS, FAILURES)}
        self.manifest = replace(manifest, state="running", done=len(self.finished), failed=len(self.quarantined))
        with self._on_disk():
            self.manifest.write(self.folder)

    def add(self, table: pa.Table | None, failures: Sequence[Failure]) -> None:
        """Take in what a batch gave. Examples that are there already are left out: none is there twice."""
        if table is not None:
            ids, hashes = (table[name].to_pylist() for name in ("id", "content_hash"))
            fresh = [self.finished.get(one) != hashed for one, hashed in zip(ids, hashes)]
            if not all(fresh):
                table = table.filter(pa.array(fresh))
            self.finished |= dict(zip(ids, hashes))
            for one in ids:
                self.quarantined.pop(one, None)
            if table.num_rows:
                self._gather(table)
        for failure in failures:
            self._forget(failure)
            known = failure.id in self.quarantined and self.quarantined[failure.id] == failure.content_hash
            self.quarantined[failure.id] = failure.content_hash
            if not known:
                self._wrong.append(failure)
        if self._gathered_bytes >= self.shard_bytes:
            self.flush()

    def _forget(self, failure: Failure) -> None:
        """An example whose contents changed since it was explained, and now fails, is finished no more; one that cannot be read now still is."""
        if failure.content_hash is not None and self.finished.pop(failure.id, None) is not None:
            self._ungather({failure.id})
            self._stale.append(failure.id)

    def _gather(self, table: pa.Table) -> None:
        ids = set(table["id"].to_pylist())
        self._ungather(ids)
        self._gathered.append(table)
        self._gathered_ids |= ids
        self._gathered_bytes += table.nbytes

    def _ungather(self, ids: set[str]) -> None:
        """Leave some examples out of what is gathered."""
        if ids.isdisjoint(self._gathered_ids):
            return
        cut = [table.filter(pa.array([one not in ids for one in table["id"].to_pylist()])) for table in self._gathered]
        self._gathered = [table for table in cut if table.num_rows]
        self._gathered_ids -= ids

    def flush(self, *, wait: bool = False) -> None:
        """Write what is gathered as a shard; ``wait`` until it is on the disk. Raises RunError where an earlier shard could not be written."""
        self._settle()
        tables, failures, stale = self._gathered, self._wrong, self._stale
        self._gathered, self._wrong, self._stale = [], [], []
        self._gathered_ids, self._gathered_bytes = set(), 0
        if tables or failures or stale:
            self._under_way = [one for table in tables for one in table["id"].to_pylist()]
            self._pending = self._writer.submit(self._write, tables, failures, stale, len(self.quarantined))
        if wait:
            self._settle()

    def close(self, state: str, session: Mapping[str, Any]) -> None:
        """The last shard, then the manifest with how the run ended."""
        self.flush(wait=True)
        assert self.manifest is not None  # begin() comes first
        sessions = (*self.manifest.sessions, session)
        self.manifest = replace(self.manifest, state=state, done=len(self._where), failed=len(self.quarantined), sessions=sessions)
        with self._on_disk():
            self._refresh_failures()
            self.manifest.write(self.folder)

    def retry(self) -> int:
        """Forget the failures of earlier runs, so that their examples are tried again."""
        count = len(self.quarantined)
        self.quarantined.clear()
        return count

    def _settle(self) -> None:
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        with self._on_disk():
            try:
                pending.result()
            except OSError:
                for one in self._under_way:
                    self.finished.pop(one, None)
                raise

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """What the disk refuses, as one clear error."""
        try:
            yield
        except OSError as problem:
            why = problem.strerror or problem
            raise RunError(f"cannot write to {str(self.folder)!r}: {why}; what was written before is kept: make room and run it again") from None

    def _write(self, tables: Sequence[pa.Table], failures: Sequence[Failure], stale: Sequence[str], failed: int) -> None:
        assert self.manifest is not None
        if tables:
            table = pa.concat_tables(tables)
            file = self._name(RECORDS)
            _write_shard(file, table, self.manifest)
            ids = table["id"].to_pylist()
            for old in {self._where[one] for one in ids if one in self._where}:  # their contents have changed since
                self._drop(old, ids)
            self._where |= dict.fromkeys(ids, file)
        for one in stale:
            if one in self._where:
                self._drop(self._where.pop(one), [one])
        if failures:
            told = {"settings_hash": self.manifest.settings_hash, "model_hash": self.manifest.model_hash}
            _write_shard(self._name(FAILURES), pa.Table.from_pylist([{**asdict(one), **told} for one in failures], FAILURE), self.manifest)
        self.manifest = replace(self.manifest, done=len(self._where), failed=failed)
        self.manifest.write(self.folder)

    def _name(self, kind: str) -> Path:
        number = self._next[kind]
        self._next[kind] += 1
        return self.folder / kind / f"part-{number:06d}.parquet"

    def _number(self, kind: str) -> int:
        taken = [file for where in (kind, DAMAGED) for file in (self.folder / where).glob("*part-*.parquet")]
        return max((_order(file) + 1 for file in taken), default=0)

    def _readable(self, kind: str) -> Iterable[tuple[Path, list[str], list[str]]]:
        """Each shard's ids and hashes, in order; those that cannot be read are set aside."""
        for file in shards(self.folder, kind):
            try:
                keys = pq.read_table(file, columns=["id", "content_hash"], page_checksum_verification=True, memory_map=True)
                pq.ParquetFile(file, page_checksum_verification=True).close()
            except (pa.ArrowException, OSError, KeyError) as problem:
                aside = self.folder / DAMAGED
                aside.mkdir(exist_ok=True)
                file.replace(aside / (f"{kind}-{file.name}" if (aside / file.name).exists() else file.name))
                self.notes.append(
                    f"{file.name} cannot be read ({str(problem).splitlines()[0]}): set aside in {DAMAGED}, its examples are explained again"
                )
                continue
            yield file, keys["id"].to_pylist(), keys["content_hash"].to_pylist()

    def _drop(self, file: Path, ids: Iterable[str]) -> None:
        """A shard without some examples; the file itself goes where none is left."""
        gone = set(ids)
        table = pq.read_table(file, page_checksum_verification=True)
        kept = table.filter(pa.array([one not in gone for one in table["id"].to_pylist()]))
        if kept.num_rows == table.num_rows:
            return
        if kept.num_rows == 0:
            file.unlink()
            return
        told = {key.decode(): value.decode() for key, value in (pq.read_metadata(file).metadata or {}).items() if key == b"zeroline"}
        _replaced(file, lambda temporary: _write_parquet(temporary, kept, told))

    def _refresh_failures(self) -> None:
        """Failures of examples that have been explained since, or that failed again, leave the table."""
        seen: set[str] = set()
        for file in reversed(shards(self.folder, FAILURES)):
            ids = pq.read_table(file, columns=["id"])["id"].to_pylist()
            stale = [one for one in ids if one not in self.quarantined or one in seen]
            if stale:
                self._drop(file, stale)
            seen |= set(ids)


def shards(folder: Path, kind: str) -> list[Path]:
    """The files of a kind, in the order in which they were written."""
    return sorted((folder / kind).glob("part-*.parquet"), key=_order)


def _order(file: Path) -> int:
    number = file.stem.rpartition("part-")[2]
    return int(number) if number.isdecimal() else -1


def now() -> str:
    """The time, for people: nothing is decided by it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write_shard(file: Path, table: pa.Table, manifest: Manifest) -> None:
    told = {"schema": SCHEMA, "settings_hash": manifest.settings_hash, "model": manifest.model_id, "layout": manifest.layout}
    _replaced(file, lambda temporary: _write_parquet(temporary, table, {"zeroline": json.dumps(told)}))


def _write_parquet(file: Path, table: pa.Table, told: Mapping[str, str]) -> None:
    """One shard. Without Arrow's own schema in the file arrays are flat lists to everybody: some readers stop at types of Arrow's that they do not
    know, and the manifest has the shapes."""
    words = [field.name for field in table.schema if pa.types.is_string(field.type)]
    options = {"compression": "zstd", "compression_level": 1, "use_dictionary": words, "write_statistics": ["number"]}
    with pq.ParquetWriter(file, table.schema.remove_metadata(), **options, write_page_checksum=True, store_schema=False) as writer:
        writer.write_table(table.replace_schema_metadata(None), row_group_size=4096)
        writer.add_key_value_metadata(told)


def _replaced(file: Path, write: Any) -> None:
    """Write beside it, flush to the disk, rename: the file is the old one or the new one, never a part."""
    temporary = file.with_name(f".{file.name}.partial")
    try:
        write(temporary)
        with temporary.open("rb+") as opened:
            os.fsync(opened.fileno())
        temporary.replace(file)
        _flush_folder(file.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """The renaming itself, on the disk (not possible everywhere: then the next flush does it)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _told(writer: Path) -> str:
    try:
        return f" ({writer.read_text().strip()})"
    except OSError:
        return ""
