"""Where the examples come from: a folder of images, a CSV or Parquet file, a saved Hugging Face ``datasets`` folder.

Holds ``Source`` and ``Example``. A source is a table of light columns (identities, paths, texts, labels); pixels are read when an example's turn
comes, wherever that is: a source travels to other processes and opens its files there. Nothing is decoded here.
"""

from __future__ import annotations

import csv
import hashlib
import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from zeroline.errors import InputError, LoadError, NotFoundError, UsageError
from zeroline.spelling.sources import SUFFIXES

# what an example is made of, and the column names that mean it where none is given
ROLES: dict[str, tuple[str, ...]] = {
    "id": ("id",),
    "image": ("image", "path", "file", "file_name", "filename", "image_path", "img"),
    "text": ("text", "question", "caption", "sentence"),
    "passage": ("passage", "context"),
    "label": ("label", "class", "category"),
    "mask": ("mask",),
    "box": ("box", "bbox"),
}
LABELS = ("labels.csv", "metadata.csv")  # in a folder of images: their columns instead of sub-folders
_DATASETS = "a saved Hugging Face dataset is read with datasets; install it: pip install 'zeroline[datasets]'"


Chunk = tuple[int, int]  # numbers of examples: start, stop


@dataclass(frozen=True)
class Example:
    """One example, as the source names it. ``image`` and ``mask`` are paths; pixels inside the source's own files are read by ``Source.pixels``."""

    number: int
    id: str
    image: str | None = None
    text: str | None = None
    passage: str | None = None
    label: str | None = None
    mask: str | None = None
    box: str | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """``rows`` has a column per role found; ``embedded`` names the column of the file that holds pixels, where they are inside it."""

    path: str
    kind: str
    rows: pa.Table
    columns: Mapping[str, str] = field(default_factory=dict)
    embedded: str | None = None
    masks: str | None = None

    @classmethod
    def open(cls, path: str | Path, *, columns: Mapping[str, str] | None = None, split: str | None = None) -> Source:
        """Find out what ``path`` is and read its light columns.

        ``columns`` says which column is the image, text, passage, label, mask, box or id, where its name does not. ``split`` picks one of a
        saved dataset of several. Raises NotFoundError, InputError, LoadError or UsageError with what was found.
        """
        path, asked = Path(path).expanduser(), dict(columns or {})
        for role in asked:
            if role not in ROLES:
                raise NotFoundError.among("role of a column", role, ROLES)
        if not path.exists():
            raise NotFoundError(f"no source {str(path)!r}; it is a folder of images, a CSV or Parquet file, or a saved Hugging Face dataset")
        path = path.resolve()
        if path.is_dir() and any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
            return _saved_dataset(path, asked, split)
        if split is not None:
            raise UsageError(f"a split ({split!r}) belongs to a saved Hugging Face dataset; {str(path)!r} is none")
        if path.is_dir():
            listed = next((path / name for name in LABELS if (path / name).is_file()), None)
            return _table_file(listed, asked) if listed is not None else _folder(path, asked)
        return _table_file(path, asked)

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @property
    def has_places(self) -> bool:
        """Does it say where the objects are (masks or boxes)?"""
        return bool({"mask", "box"} & set(self.columns))

    @cached_property
    def ids(self) -> list[str]:
        """The identity of every example, in order."""
        return [str(one) for one in self.rows["id"].to_pylist()]

    def examples(self, start: int, stop: int) -> list[Example]:
        """The examples ``start`` to ``stop``."""
        found = self.rows.slice(start, stop - start).to_pylist()
        return [Example(number, **row) for number, row in enumerate(found, start)]

    def pixels(self, example: Example, role: str = "image") -> bytes | None:
        """The image file of an example (or its mask), as it is on disk; None where it has none. Raises LoadError where it cannot be read."""
        inside = self.embedded if role == "image" else self.masks
        if inside is not None:
            return self._inside.read(example.number, inside)
        named: str | None = getattr(example, role)
        if named is None or not str(named).strip():
            return None
        try:
            return (Path(self.path).parent / named if self.kind != "folder" else Path(self.path) / named).read_bytes()
        except OSError as problem:
            raise LoadError(f"cannot read {named!r}: {problem.strerror or problem}") from None

    @cached_property
    def _inside(self) -> _ParquetPixels | _DatasetPixels:
        return _ParquetPixels(self.path) if self.kind == "parquet" else _DatasetPixels(self.path)

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: they are opened where they are read."""
        return {name: value for name, value in vars(self).items() if name not in ("_inside", "ids")}


def content_hash(example: Example, pixels: Mapping[str, bytes | None]) -> str:
    """SHA-256 (first 32 hex digits) of everything that an example's row depends on: file contents, texts, label, place."""
    digest = hashlib.sha256()
    parts = {**pixels, **{name: getattr(example, name) for name in ("text", "passage", "label", "box")}}
    for name, part in sorted(parts.items()):
        raw = part.encode() if isinstance(part, str) else part
        digest.update(f"{name}:{'none' if raw is None else len(raw)};".encode())
        digest.update(raw or b"")
    return digest.hexdigest()[:32]


def _folder(path: Path, asked: Mapping[str, str]) -> Source:
    """Images of a folder and its sub-folders, by name; the name of the sub-folder is the label."""
    if asked:
        raise UsageError(f"{str(path)!r} is a folder of images without {LABELS[0]}: it has no columns ({', '.join(asked)} asked)")
    found = sorted(file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise UsageError(f"the folder {str(path)!r} holds no image ({', '.join(SUFFIXES)}), no {LABELS[0]} and no saved dataset")
    names = [file.as_posix() for file in found]
    for name in names:
        if not name.isprintable() and name.encode(errors="ignore").decode() != name:
            raise InputError(f"the file name {name!r} in {str(path)!r} is no Unicode text; rename it")
    columns: dict[str, Sequence[str | None]] = {"id": names, "image": names}
    labelled = [file.parent.as_posix() if len(file.parts) > 1 else None for file in found]
    if any(labelled):
        columns |= {"label": labelled}
    return Source(str(path), "folder", pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}))


def _table_file(path: Path, asked: Mapping[str, str]) -> Source:
    kind = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet"}.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{str(path)!r} is no source: it is a folder of images, a .csv, .tsv or .parquet file, or a saved Hugging Face dataset")
    try:
        types, read = _csv(path) if kind == "csv" else _parquet(path)
        roles = _roles(path.name, list(types), asked)
        embedded: dict[str, str] = {role: roles[role] for role in ("image", "mask") if role in roles and _holds_pixels(types[roles[role]])}
        table = read(list(dict.fromkeys(column for role, column in roles.items() if role not in embedded)))
    except (pa.ArrowInvalid, pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise LoadError(f"cannot read {str(path)!r} as {'CSV' if kind == 'csv' else 'Parquet'}: {str(problem).splitlines()[0]}") from None
    return _tabled(str(path), kind, table, roles, embedded)


Columns = dict[str, pa.DataType]
Read = Callable[[Sequence[str]], pa.Table]


def _csv(path: Path) -> tuple[Columns, Read]:
    """Every column as text: an identity "007" stays one."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=delimiter), [])
    _refuse_twins(path, names)
    types: Columns = dict.fromkeys(names, pa.string())

    def read(columns: Sequence[str]) -> pa.Table:
        as_text = pa.csv.ConvertOptions(column_types=types, include_columns=list(columns), strings_can_be_null=True, null_values=[""])
        return pa.csv.read_csv(path, parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True), convert_options=as_text)

    return types, read


def _parquet(path: Path) -> tuple[Columns, Read]:
    file = pa.parquet.ParquetFile(path)
    schema = file.schema_arrow
    _refuse_twins(path, schema.names)
    return dict(zip(schema.names, schema.types)), lambda columns: file.read(list(columns))


def _refuse_twins(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise InputError(f"{path.name!r} has two columns of one name: {', '.join(names)}")


def _holds_pixels(kind: pa.DataType) -> bool:
    """Bytes, or a struct of bytes and path as Hugging Face writes images."""
    if pa.types.is_struct(kind):
        return any(_holds_pixels(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _saved_dataset(path: Path, asked: Mapping[str, str], split: str | None) -> Source:
    """Features say what is an image and what a class; the names of classes are the labels."""
    try:
        import datasets
    except ImportError as problem:
        raise UsageError(f"{_DATASETS} ({problem})") from None
    if (path / "dataset_dict.json").is_file():
        splits = sorted(one.name for one in path.iterdir() if (one / "dataset_info.json").is_file())
        if split is None and len(splits) != 1:
            raise UsageError(f"{str(path)!r} has the splits {', '.join(splits)}; name one with split (--split)")
        if split is not None and split not in splits:
            raise NotFoundError.among("split", split, splits)
        path = path / (split or splits[0])
    elif split is not None:
        raise UsageError(f"{str(path)!r} is one dataset without splits; {split!r} was asked")
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowInvalid) as problem:
        raise LoadError(f"cannot read {str(path)!r} as a saved dataset: {str(problem).splitlines()[0]}") from None
    pictures = [name for name, feature in found.features.items() if isinstance(feature, datasets.Image)]
    free = [name for name in pictures if name not in ROLES["mask"] and name not in asked.values()]
    roles = _roles(path.name, list(found.features), {**({"image": free[0]} if len(free) == 1 else {}), **asked})
    embedded: dict[str, str] = {role: roles[role] for role in ("image", "mask") if role in roles and roles[role] in pictures}
    light = list(dict.fromkeys(column for role, column in roles.items() if role not in embedded))
    table = found.select_columns(light).with_format("arrow")[:] if light else pa.table({"n": pa.nulls(len(found))})
    named = found.features.get(roles.get("label", ""))
    if isinstance(named, datasets.ClassLabel):
        at = table.schema.get_field_index(roles["label"])
        words = [None if number is None or number < 0 else named.int2str(number) for number in table.column(at).to_pylist()]
        table = table.set_column(at, roles["label"], pa.array(words, pa.string()))
    return _tabled(str(path), "dataset", table, roles, embedded)


def _roles(name: str, columns: Sequence[str], asked: Mapping[str, str]) -> dict[str, str]:
    """Role -> column: as asked, else by the usual names."""
    for column in asked.values():
        if column not in columns:
            raise NotFoundError.among("column", column, columns, f"in {name!r}")
    usual = {role: column for role, names in ROLES.items() for column in reversed(names) if column in columns}
    found = {role: asked.get(role) or usual[role] for role in ROLES if role in asked or role in usual}
    if not {"image", "text"} & set(found):
        raise InputError(f"{name!r} has the columns {', '.join(columns) or 'none'}; which is the image, or the text? say columns image=NAME")
    return found


def _tabled(path: str, kind: str, table: pa.Table, roles: Mapping[str, str], embedded: Mapping[str, str]) -> Source:
    """The light columns by role, as text; identities checked, or made from paths or numbers."""
    if not table.num_rows:
        raise InputError(f"{path!r} has no rows")
    columns = {role: _as_text(table[column], column) for role, column in roles.items() if role not in embedded}
    if "id" not in columns:
        paths = columns.get("image")
        unique = paths is not None and paths.null_count == 0 and len(set(paths.to_pylist())) == len(paths)
        columns["id"] = paths if unique else pa.array([str(number) for number in range(table.num_rows)])
    seen: dict[str, int] = {}
    for number, one in enumerate(columns["id"].to_pylist()):
        if one is None:
            raise InputError(f"row {number} of {path!r} has no id")
        if one in seen:
            raise InputError(f"the id {one!r} is in rows {seen[one]} and {number} of {path!r}; ids tell examples apart")
        seen[one] = number
    return Source(path, kind, pa.table(columns), dict(roles), embedded.get("image"), embedded.get("mask"))


def _as_text(column: pa.ChunkedArray, name: str) -> pa.Array:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.array([None if one is None else ",".join(map(_whole, one)) for one in column.to_pylist()], pa.string())
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    try:
        return column.cast(pa.string()).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"the column {name!r} holds {kind}; texts, numbers, lists of numbers (a box) and image bytes are possible") from None


def _whole(number: Any) -> str:
    """A side of a box in whole pixels; what is no number stays, for the error of its example."""
    return str(round(number)) if isinstance(number, (int, float)) and math.isfinite(number) else str(number)


class _ParquetPixels:
    """Image bytes inside a Parquet file; the row group that was read last is kept, since examples come in order."""

    def __init__(self, path: str) -> None:
        self._file, self._folder = pa.parquet.ParquetFile(path), Path(path).parent
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
        self._kept: dict[str, tuple[int, pa.ChunkedArray]] = {}
        self._one_reader = threading.Lock()

    def read(self, number: int, column: str) -> bytes | None:
        group = bisect_right(self._starts, number) - 1
        with self._one_reader:
            if self._kept.get(column, (-1, None))[0] != group:
                self._kept[column] = (group, self._file.read_row_group(group, [column]).column(0))
            found = self._kept[column][1][number - self._starts[group]]
        return _bytes(found.as_py(), self._folder)


class _DatasetPixels:
    """Image bytes inside a saved dataset, which lies in memory-mapped files."""

    def __init__(self, path: str) -> None:
        import datasets

        self._found, self._folder = datasets.load_from_disk(path), Path(path)

    def read(self, number: int, column: str) -> bytes | None:
        return _bytes(self._found.select_columns([column]).with_format("arrow")[number][column][0].as_py(), self._folder)


def _bytes(found: Any, folder: Path) -> bytes | None:
    """Bytes, or the file (from ``folder``) that a Hugging Face image names instead of holding its bytes."""
    if found is None or isinstance(found, bytes):
        return found
    if found.get("bytes") is not None:
        return bytes(found["bytes"])
    try:
        return None if not found.get("path") else (folder / found["path"]).read_bytes()
    except OSError as problem:
        raise LoadError(f"cannot read {found['path']!r}: {problem.strerror or problem}") from None


def chunks(count: int, size: int, limit: int | None = None) -> Iterator[Chunk]:
    """(start, stop) of the examples in order, ``size`` at a time: cut from the source, not from what is left, so that a resumed run has the same."""
    end = count if limit is None else min(count, limit)
    return ((start, min(start + size, end)) for start in range(0, end, size))
