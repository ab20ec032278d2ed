"""The folder of a run: every example once whatever happened, one writer, and what is damaged, full or foreign is said; and the folder read back."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scale.rows_of import attributions, layout_and_rows, row
from zeroline.errors import LoadError, NotFoundError, RunError, UsageError
from zeroline.scale import store as stores
from zeroline.scale.columns import Layout
from zeroline.scale.opened import open_run
from zeroline.scale.prepare import Failure
from zeroline.scale.store import Manifest, Store

SETTINGS = {"schema": 1, "method": "integrated_gradients", "target": "top", "baseline": "black", "site": None, "options": {"tolerance": 0.05}}
LAYOUT, _ = layout_and_rows(attributions("float32"))
SESSION = {"engine": "local", "seconds": 2.0, "done": 1}


def manifest(**other):
    made = {
        "settings": SETTINGS, "settings_hash": "s", "model": "net", "model_id": "Net@abc", "source": {"path": "there", "examples": 9}, "batch": 2,
        "chunk": 2, "layout": LAYOUT.to_dict(), "versions": {"torch": "2"}, "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Manifest(**{**made, **other})


def table(*pairs):
    """Rows of examples: "a1" is the example "a" with the contents "1"; the values tell contents apart."""
    records = attributions("float32")
    return LAYOUT.table([row(records[int(pair[1:]) % 4], ord(pair[0]), pair[0], content_hash=pair[1:]) for pair in pairs])


def failure(pair, reason="no"):
    return Failure(ord(pair[0]), pair[0], None, None, pair[1:] or None, "prepare", "LoadError", reason)


@contextlib.contextmanager
def session(folder, state="complete", **options):
    """One start of a run."""
    with Store(folder, **options) as store:
        store.begin(store.manifest or manifest())
        yield store
        store.close(state, SESSION)


def filled(folder, *shards):
    """A run with a shard for each list of examples."""
    with session(folder, shard_bytes=1) as store:
        for pairs in shards:
            store.add(table(*pairs), [])
    return folder


def kept(folder):
    """Shard -> its examples, read without the code under test."""
    found = {}
    for file in sorted((folder / "records").glob("*.parquet")):
        rows = pq.read_table(file, columns=["id", "content_hash"]).to_pylist()
        found[file.name] = [one["id"] + one["content_hash"] for one in rows]
    return found


def examples(folder):
    return sorted(pair for pairs in kept(folder).values() for pair in pairs)


def failed(folder):
    rows = [one for file in sorted((folder / "failures").glob("*.parquet")) for one in pq.read_table(file).to_pylist()]
    return sorted((one["id"] + (one["content_hash"] or ""), one["reason"]) for one in rows)


def told(folder):
    return json.loads((folder / "manifest.json").read_text())


def leftovers(folder):
    return [file.name for file in folder.rglob("*.partial")]


FIRST, SECOND, THIRD, FOURTH = (f"part-{number:06d}.parquet" for number in range(4))


# --- every example once ----------------------------------------------------------------------------------------------------------


def test_what_is_added_is_there_once_and_said(tmp_path):
    with session(tmp_path) as store:
        store.add(table("a0", "b0"), [failure("x0")])
        store.add(table("a0"), [])
        store.add(table("b0", "c0"), [failure("x0", "again")])
        store.flush(wait=True)
        store.add(table("a0", "c0"), [])
    assert kept(tmp_path) == {FIRST: ["a0", "b0", "c0"]}
    assert failed(tmp_path) == [("x0", "no")]
    said = told(tmp_path)
    assert (said["done"], said["failed"], said["state"], said["sessions"]) == (3, 1, "complete", [SESSION])
    assert leftovers(tmp_path) == []


def test_what_was_there_before_is_not_added_again(tmp_path):
    filled(tmp_path, ["a0", "b0"])
    with session(tmp_path, "interrupted") as store:
        assert store.finished == {"a": "0", "b": "0"}
        store.add(table("a0", "c0"), [])
        store.add(table("b0"), [])
    assert kept(tmp_path) == {FIRST: ["a0", "b0"], SECOND: ["c0"]}
    assert (told(tmp_path)["done"], told(tmp_path)["state"], len(told(tmp_path)["sessions"])) == (3, "interrupted", 2)


def test_tables_are_gathered_until_they_fill_a_shard(tmp_path):
    size = table("a0").nbytes
    with session(tmp_path, shard_bytes=2 * size) as store:
        for letter in "abcde":
            store.add(table(f"{letter}0"), [])
    assert kept(tmp_path) == {FIRST: ["a0", "b0"], SECOND: ["c0", "d0"], THIRD: ["e0"]}


def test_changed_contents_replace_the_row_and_nothing_else(tmp_path):
    filled(tmp_path, ["a0", "b0"], ["c0"], ["d0", "e0"])
    before = pq.read_table(tmp_path / "records" / FIRST)
    with session(tmp_path) as store:
        store.add(table("b1", "c1", "d0"), [])
    assert kept(tmp_path) == {FIRST: ["a0"], THIRD: ["d0", "e0"], FOURTH: ["b1", "c1"]}
    after = pq.read_table(tmp_path / "records" / FIRST)
    assert after.equals(before.slice(0, 1))
    assert after.schema.metadata == before.schema.metadata
    assert set(json.loads(after.schema.metadata[b"zeroline"])) == {"schema", "settings_hash", "model", "layout"}
    with session(tmp_path) as store:
        assert store.finished == {"a": "0", "b": "1", "c": "1", "d": "0", "e": "0"}


def test_the_new_row_is_on_the_disk_before_the_old_one_goes(tmp_path, monkeypatch):
    filled(tmp_path, ["a0", "b0"])
    seen = []
    drop = Store._drop

    def watched(self, file, ids):
        seen.append(examples(tmp_path))
        drop(self, file, ids)

    monkeypatch.setattr(Store, "_drop", watched)
    with session(tmp_path) as store:
        store.add(table("a1"), [])
    assert seen == [["a0", "a1", "b0"]]
    assert examples(tmp_path) == ["a1", "b0"]


def test_contents_that_change_twice_before_a_shard_is_written_are_there_once(tmp_path):
    with session(tmp_path) as store:
        store.add(table("a0", "b0"), [])
        store.add(table("a1"), [])
    assert examples(tmp_path) == ["a1", "b0"]


def test_contents_that_change_back_and_forth_are_there_once(tmp_path):
    for contents in ("a0", "a1", "a0", "a0", "a2"):
        with session(tmp_path) as store:
            store.add(table(contents), [])
        assert examples(tmp_path) == [contents]


def test_of_two_shards_with_one_example_the_later_counts(tmp_path):
    """As after a kill between a new shard and the end of the old row."""
    parts = [filled(tmp_path / str(n), pairs) for n, pairs in enumerate((["a0", "b0", "c0"], ["b1", "d0"], ["a1", "b2"], ["d0"]))]
    for number, part in list(enumerate(parts))[1:]:
        (part / "records" / FIRST).rename(parts[0] / "records" / f"part-{number:06d}.parquet")
    with session(parts[0]) as store:
        assert store.finished == {"a": "1", "b": "2", "c": "0", "d": "0"}
        assert kept(parts[0]) == {FIRST: ["c0"], THIRD: ["a1", "b2"], FOURTH: ["d0"]}
        store.add(table("e0"), [])
    assert kept(parts[0]) == {FIRST: ["c0"], THIRD: ["a1", "b2"], FOURTH: ["d0"], "part-000004.parquet": ["e0"]}


def test_shards_beyond_a_million_are_in_order(tmp_path):
    """Names of seven digits come after those of six."""
    filled(tmp_path, ["a0"])
    other = filled(tmp_path / "other", ["a1"])
    (tmp_path / "records" / FIRST).rename(tmp_path / "records" / "part-999999.parquet")
    (other / "records" / FIRST).rename(tmp_path / "records" / "part-1000000.parquet")
    with session(tmp_path) as store:
        assert store.finished == {"a": "1"}


def test_partial_files_of_a_killed_writer_go(tmp_path):
    filled(tmp_path, ["a0"])
    for name in ("records/.part-000001.parquet.partial", "failures/.part-000000.parquet.partial", ".manifest.json.partial"):
        (tmp_path / name).write_bytes(b"PAR1 half")
    with session(tmp_path) as store:
        assert store.finished == {"a": "0"}
        store.add(table("b0"), [])
    assert kept(tmp_path) == {FIRST: ["a0"], SECOND: ["b0"]}
    assert leftovers(tmp_path) == []
    assert (told(tmp_path)["done"], told(tmp_path)["failed"]) == (2, 0)


def test_a_shard_is_whole_whenever_it_can_be_seen(tmp_path, monkeypatch):
    """Readers come at any time: while a shard is written there is none of its name, and then there is all of it."""
    write = stores._write_parquet
    seen = []

    def watched(file, *how):
        seen.append((sorted(p.name for p in (tmp_path / "records").iterdir()), len(open_run(tmp_path))))
        write(file, *how)
        seen.append((sorted(p.name for p in (tmp_path / "records").glob("part-*")), len(open_run(tmp_path))))

    monkeypatch.setattr(stores, "_write_parquet", watched)
    filled(tmp_path, ["a0"], ["b0", "c0"])
    assert seen == [([], 0), ([], 0), ([FIRST], 1), ([FIRST], 1)]
    assert len(open_run(tmp_path)) == 3


def test_a_file_is_flushed_to_the_disk_before_it_has_its_name_and_is_never_copied_there(tmp_path, monkeypatch):
    flushed = {}
    fsync = os.fsync

    def watched(descriptor):
        fsync(descriptor)
        flushed[os.fstat(descriptor).st_ino] = sorted(file.name for file in (tmp_path / "records").glob("part-*"))

    monkeypatch.setattr(os, "fsync", watched)
    filled(tmp_path, ["a0"], ["b0"])
    inodes = [(tmp_path / "records" / name).stat().st_ino for name in (FIRST, SECOND)]
    assert [flushed.get(inode) for inode in inodes] == [[], [FIRST]]
    assert (tmp_path / "manifest.json").stat().st_ino in flushed
    assert (tmp_path / "records").stat().st_ino in flushed


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(tmp_path):
    filled(tmp_path, ["a0"])
    before = (tmp_path / "manifest.json").read_bytes()
    with files_at_most(100), pytest.raises((OSError, RunError)):
        manifest(done=7).write(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert leftovers(tmp_path) == []


# --- damage ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = filled(tmp_path_factory.mktemp("whole"), ["a0", "b0"], ["c1", "d2"])
    return {name: (folder / "records" / name).read_bytes() for name in (FIRST, SECOND)}, (folder / "manifest.json").read_text()


def laid(folder, shards, said):
    (folder / "records").mkdir(parents=True)
    (folder / "manifest.json").write_text(said)
    for name, content in shards.items():
        (folder / "records" / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("which", [FIRST, SECOND])
def test_a_shard_that_was_cut_anywhere_is_set_aside_and_its_examples_are_explained_again(tmp_path, whole, which):
    shards, said = whole
    size = len(shards[which])
    cuts = sorted({0, 1, 3, 4, 5, 8, *range(0, size, size // 24), size - 9, size - 8, size - 5, size - 4, size - 1})
    assert len(cuts) >= 30
    gone, left = ({"a": "0", "b": "0"}, {"c": "1", "d": "2"}) if which == FIRST else ({"c": "1", "d": "2"}, {"a": "0", "b": "0"})
    for cut in cuts:
        folder = laid(tmp_path / str(cut), {**shards, which: shards[which][:cut]}, said)
        with session(folder) as store:
            assert store.finished == left
            assert told(folder)["done"] == 2
            assert (folder / "damaged" / which).read_bytes() == shards[which][:cut]
            assert len(store.notes) == 1
            assert store.notes[0].startswith(f"{which} cannot be read (")
            assert "set aside in damaged" in store.notes[0]
            store.add(table(*(one + hashed for one, hashed in gone.items())), [])
        assert examples(folder) == ["a0", "b0", "c1", "d2"]
        assert len({*kept(folder), which}) == 3  # the new shard has a name that none had before


@pytest.mark.parametrize("which", ["keys", "everywhere"])
def test_a_shard_with_a_changed_byte_is_set_aside_or_names_the_right_examples(tmp_path, whole, which):
    shards, said = whole
    size = len(shards[SECOND])
    meta = pq.ParquetFile(pa.BufferReader(shards[SECOND])).metadata.row_group(0)
    columns = {meta.column(i).path_in_schema: meta.column(i) for i in range(meta.num_columns)}
    start = columns["content_hash"].dictionary_page_offset
    within = range(start, start + columns["content_hash"].total_compressed_size, 3)
    places = list(within) if which == "keys" else list(range(4, size - 8, size // 60))
    aside = 0
    for at in places:
        changed = bytearray(shards[SECOND])
        changed[at] ^= 0x15
        folder = laid(tmp_path / str(at), {**shards, SECOND: bytes(changed)}, said)
        with session(folder) as store:
            damaged = (folder / "damaged" / SECOND).exists()
            aside += damaged
            assert store.finished == ({"a": "0", "b": "0"} if damaged else {"a": "0", "b": "0", "c": "1", "d": "2"})
    assert aside >= (len(places) - 3 if which == "keys" else 3)


def damaged_values(content):
    """A shard with one byte changed at a time, within its column of values."""
    meta = pq.ParquetFile(pa.BufferReader(content)).metadata.row_group(0)
    values = next(meta.column(i) for i in range(meta.num_columns) if meta.column(i).path_in_schema.startswith("values"))
    start = values.dictionary_page_offset or values.data_page_offset
    for at in range(start, start + values.total_compressed_size, 7):
        changed = bytearray(content)
        changed[at] ^= 0x15
        yield bytes(changed)


def test_damaged_values_are_an_error_when_they_are_read_never_other_values(tmp_path, whole):
    shards, said = whole
    right = [one.values.tolist() for one in attributions("float32")[1:3]]
    outcomes = []
    for number, changed in enumerate(damaged_values(shards[SECOND])):
        run = open_run(laid(tmp_path / str(number), {SECOND: changed}, said))
        try:
            outcomes.append([record.values.tolist() for _, record in run.records()] == right)
        except (LoadError, OSError, pa.ArrowException):
            outcomes.append(True)
    assert len(outcomes) > 10
    assert all(outcomes)


def test_a_shard_with_damaged_values_is_not_written_anew_as_if_it_were_whole(tmp_path, whole):
    """One of its examples has other contents now: the row goes, and what is left of the shard is the old row or an error."""
    shards, said = whole
    right = attributions("float32")[2].values.tolist()
    for number, changed in enumerate(damaged_values(shards[SECOND])):
        folder = laid(tmp_path / str(number), {SECOND: changed}, said)
        with contextlib.suppress(RunError, OSError, pa.ArrowException), session(folder) as store:
            store.add(table("c3"), [])
        for file in sorted((folder / "records").glob("part-*")):
            try:
                rows = pq.read_table(file, columns=["id", "content_hash", "values"], page_checksum_verification=True)
            except (OSError, pa.ArrowException):
                continue
            for id, hashed, values in zip(*(rows[name].to_pylist() for name in ("id", "content_hash", "values"))):
                assert (id, hashed) != ("d", "2") or values == np.ravel(right).tolist()


@pytest.mark.parametrize("content", [{"id": ["z"]}, {"name": ["z"]}])
def test_a_foreign_parquet_file_among_the_shards_is_set_aside(tmp_path, content):
    filled(tmp_path, ["a0"])
    pq.write_table(pa.table(content), tmp_path / "records" / SECOND)
    with session(tmp_path) as store:
        assert store.finished == {"a": "0"}
    assert (tmp_path / "damaged" / SECOND).is_file()


def test_a_damaged_table_of_failures_is_set_aside_and_its_examples_are_tried_again(tmp_path):
    with session(tmp_path, shard_bytes=1) as store:
        store.add(table("a0"), [failure("x0")])
    broken = tmp_path / "failures" / FIRST
    broken.write_bytes(broken.read_bytes()[:-3])
    with session(tmp_path) as store:
        assert (store.finished, store.quarantined) == ({"a": "0"}, {})
        store.add(None, [failure("x0", "once more")])
    assert failed(tmp_path) == [("x0", "once more")]
    assert (tmp_path / "damaged" / FIRST).is_file()


def test_what_was_set_aside_is_never_written_over(tmp_path):
    """Shards of records and of failures have the same names."""
    with session(tmp_path, shard_bytes=1) as store:
        store.add(table("a0"), [failure("x0")])
    for kind in ("records", "failures"):
        (tmp_path / kind / FIRST).write_bytes(kind.encode())
    with session(tmp_path):
        pass
    assert sorted(file.read_bytes() for file in (tmp_path / "damaged").iterdir()) == [b"failures", b"records"]


# --- one writer ------------------------------------------------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from zeroline.scale.store import Store
with Store(Path(sys.argv[1])) as store:
    print("open", flush=True)
    time.sleep(120)
"""


def test_a_second_writer_is_refused_until_the_first_is_gone_even_if_it_was_killed(tmp_path):
    filled(tmp_path, ["a0"])
    before = (tmp_path / "manifest.json").read_bytes()
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        with writer.stdout:
            assert writer.stdout.readline() == "open\n"
            with pytest.raises(UsageError, match=rf"another run writes to .* \(process {writer.pid} on .*, since .*\); wait for it") as refused:
                Store(tmp_path).__enter__()
            assert str(tmp_path) in str(refused.value)
            assert len(open_run(tmp_path)) == 1  # reading needs no lock
            assert (tmp_path / "manifest.json").read_bytes() == before
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    finally:
        writer.kill()
        writer.wait()
    with session(tmp_path) as store:
        store.add(table("b0"), [])
    assert examples(tmp_path) == ["a0", "b0"]


def test_a_second_writer_in_the_same_process_is_refused_too(tmp_path):
    with session(tmp_path) as store:
        with pytest.raises(UsageError, match=f"another run writes to .*process {os.getpid()} on"):
            Store(tmp_path).__enter__()
        store.add(table("a0"), [])
    assert examples(filled(tmp_path, ["b0"])) == ["a0", "b0"]


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match="cannot write a run to"):
            Store(path).__enter__()


# --- whose run it is -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"target": "label"}, "target: 'top' there, 'label' asked"),
        ({"options": {"tolerance": 0.1}}, r"options: {'tolerance': 0.05} there, {'tolerance': 0.1} asked"),
        ({"method": "taylor", "baseline": "zeros"}, "method: 'integrated_gradients' there, 'taylor' asked; baseline: 'black' there, 'zeros' asked"),
        ({"new": 1}, "new: None there, 1 asked"),
    ],
)
def test_a_run_of_other_settings_is_refused_with_what_differs(tmp_path, other, said):
    filled(tmp_path, ["a0"])
    found = Manifest.read(tmp_path)
    found.refuse_other(dict(SETTINGS), tmp_path)
    with pytest.raises(UsageError, match=rf"holds a run of other settings \({said}\); give another folder, or the same settings"):
        found.refuse_other({**SETTINGS, **other}, tmp_path)


def test_a_run_of_another_model_is_refused_with_both(tmp_path):
    found = Manifest.read(filled(tmp_path, ["a0"]))
    found.refuse_other_model("Net@abc", tmp_path)
    assert found.model_hash == "abc"
    with pytest.raises(UsageError, match=r"holds a run of the model Net@abc; asked is Net@abd: give another folder"):
        found.refuse_other_model("Net@abd", tmp_path)


def test_a_manifest_comes_back_as_it_was(tmp_path):
    made = manifest(sessions=({"engine": "local"},), done=3, failed=1, state="interrupted", settings={**SETTINGS, "grid": [2, 3]})
    made.write(tmp_path)
    assert Manifest.read(tmp_path) == replace(made, layout=json.loads(json.dumps(made.layout)))
    assert Layout.from_dict(Manifest.read(tmp_path).layout) == LAYOUT
    assert Manifest.read(tmp_path / "none") is None


def changed(**other):
    return json.dumps({**json.loads(json.dumps(manifest().__dict__)), **other})


def without(name):
    return json.dumps({key: value for key, value in json.loads(changed()).items() if key != name})


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (changed(schema=2), LoadError, "has schema 2; this version reads 1"),
        (changed(schema=0), LoadError, "has schema 0; this version reads 1"),
        ("{", LoadError, "is no manifest of a run"),
        ("", LoadError, "is no manifest of a run"),
        ("[1]", LoadError, "is no manifest of a run"),
        ("{}", LoadError, "is no manifest of a run"),
        (b"\xff\xfe{}", LoadError, "is no manifest of a run"),
        (changed()[:-20], LoadError, "is no manifest of a run"),
        (changed(surprise=1), LoadError, "is a damaged manifest"),
        (without("layout"), LoadError, "is a damaged manifest"),
        (without("sessions"), LoadError, "is a damaged manifest"),
        (None, UsageError, r"holds shards and no manifest.json; give another folder"),
    ],
)
def test_a_folder_whose_manifest_says_nothing_is_refused_and_left_as_it_is(tmp_path, content, kind, said):
    filled(tmp_path, ["a0"])
    manifest_file = tmp_path / "manifest.json"
    good = manifest_file.read_bytes()
    if content is None:
        manifest_file.unlink()
    else:
        manifest_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for _ in range(2):  # the lock is free again
        with pytest.raises(kind, match=said):
            Store(tmp_path).__enter__()
    assert examples(tmp_path) == ["a0"]
    with pytest.raises(LoadError):
        open_run(tmp_path)
    manifest_file.write_bytes(good)
    with session(tmp_path) as store:
        assert store.finished == {"a": "0"}


# --- no room ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_at_most(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


LARGE, LARGE_ROWS = layout_and_rows(attributions(sides=(64, 64)))


def large(*pairs):
    """98 kB of noise an example: it does not compress."""
    return LARGE.table(
        [replace(LARGE_ROWS[ord(one[0]) % 4], example={**LARGE_ROWS[0].example, "id": one[0], "content_hash": one[1:]}) for one in pairs]
    )


def test_where_a_file_cannot_grow_the_run_says_so_and_goes_on_when_it_can(tmp_path):
    start = manifest(layout=LARGE.to_dict())
    with Store(tmp_path, shard_bytes=1) as store:
        store.begin(start)
        store.add(large("a0"), [])
        store.flush(wait=True)
        earlier = (tmp_path / "records" / FIRST).read_bytes()
        assert len(earlier) > 50_000
        with files_at_most(50_000):
            store.add(large("b0"), [failure("x0")])
            said = r"cannot write to .*: .*; what was written before is kept: make room and run it again"
            with pytest.raises(RunError, match=said) as problem:
                store.flush(wait=True)
            assert str(tmp_path) in str(problem.value)
            store.close("failed", SESSION)
    assert kept(tmp_path) == {FIRST: ["a0"]}
    assert (tmp_path / "records" / FIRST).read_bytes() == earlier
    assert leftovers(tmp_path) == []
    with session(tmp_path) as store:
        assert store.finished == {"a": "0"}
        assert told(tmp_path)["done"] == 1
        store.add(large("b0", "c0"), [])
    assert examples(tmp_path) == ["a0", "b0", "c0"]
    for file in (tmp_path / "records").iterdir():
        pq.read_table(file, page_checksum_verification=True)


def test_what_could_not_be_written_is_not_counted_as_done(tmp_path):
    with Store(tmp_path) as store:
        store.begin(manifest(layout=LARGE.to_dict()))
        with files_at_most(50_000):
            store.add(large("b0"), [])
            with pytest.raises(RunError):
                store.flush(wait=True)
            store.close("failed", SESSION)
    assert (kept(tmp_path), told(tmp_path)["done"]) == ({}, 0)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    except OSError:
        pytest.skip("no mount here")
    if made.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def full(disk):
    """A file in all the room that is left."""
    with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def test_on_a_full_disk_the_run_says_so_and_goes_on_when_there_is_room(small_disk):
    folder = small_disk / "run"
    with Store(folder, shard_bytes=1) as store:
        store.begin(manifest(layout=LARGE.to_dict()))
        store.add(large("a0"), [])
        store.flush(wait=True)
        earlier = (folder / "records" / FIRST).read_bytes()
        full(small_disk)
        store.add(large("b0"), [])
        with pytest.raises(RunError, match="cannot write to .*No space left on device; what was written before is kept"):
            store.add(large("c0"), [])
    assert leftovers(folder) == []
    assert (folder / "records" / FIRST).read_bytes() == earlier
    (small_disk / "ballast").unlink()
    with session(folder) as store:
        assert store.finished == {"a": "0"}
        store.add(large("b0"), [])
    assert examples(folder) == ["a0", "b0"]


@pytest.mark.parametrize("step", ["begin", "close"])
def test_on_a_full_disk_the_manifest_too_is_refused_in_words(small_disk, step):
    folder = small_disk / "run"
    with Store(folder) as store:
        if step == "begin":
            full(small_disk)
            with pytest.raises(RunError, match="cannot write to"):
                store.begin(manifest())
        else:
            store.begin(manifest())
            before = (folder / "manifest.json").read_bytes()
            full(small_disk)
            with pytest.raises(RunError, match="cannot write to"):
                store.close("complete", SESSION)
            assert (folder / "manifest.json").read_bytes() == before
    assert leftovers(folder) == []


# --- failures --------------------------------------------------------------------------------------------------------------------


def test_failures_of_examples_that_were_explained_since_leave_the_table(tmp_path):
    with session(tmp_path, shard_bytes=1) as store:
        store.add(table("a0"), [failure("x0"), failure("y0")])
        store.add(None, [failure("z0")])
    assert failed(tmp_path) == [("x0", "no"), ("y0", "no"), ("z0", "no")]
    with session(tmp_path) as store:
        assert store.quarantined == {"x": "0", "y": "0", "z": "0"}
        assert store.retry() == 3
        assert store.quarantined == {}
        store.add(table("x0"), [failure("y0", "still"), failure("z0")])
    assert failed(tmp_path) == [("y0", "still"), ("z0", "no")]
    assert (told(tmp_path)["done"], told(tmp_path)["failed"]) == (2, 2)
    with session(tmp_path) as store:
        assert (store.finished, store.quarantined) == ({"a": "0", "x": "0"}, {"y": "0", "z": "0"})
        store.add(table("y1", "z0"), [])
    assert failed(tmp_path) == []
    assert told(tmp_path)["failed"] == 0
    assert list((tmp_path / "failures").iterdir()) == []


def test_an_example_that_was_explained_just_before_a_kill_is_no_failure(tmp_path):
    """The shard was written, the table of failures not yet."""
    with session(tmp_path) as store:
        store.add(None, [failure("x0"), failure("y0")])
    explained = filled(tmp_path / "other", ["x0"])
    (explained / "records" / FIRST).rename(tmp_path / "records" / FIRST)
    with session(tmp_path) as store:
        assert (store.finished, store.quarantined) == ({"x": "0"}, {"y": "0"})
        assert (told(tmp_path)["done"], told(tmp_path)["failed"]) == (1, 1)
    assert failed(tmp_path) == [("y0", "no")]


@pytest.mark.parametrize("pair", ["x0", "x"])
def test_a_failure_that_is_found_again_unchanged_is_there_once(tmp_path, pair):
    for _ in range(3):
        with session(tmp_path) as store:
            store.add(None, [failure(pair), failure("y0")])
            store.flush()
            store.add(None, [failure(pair)])
    assert failed(tmp_path) == [(pair, "no"), ("y0", "no")]
    assert len(list((tmp_path / "failures").iterdir())) == 1


def test_a_failure_of_changed_contents_is_there_once_with_the_new_reason(tmp_path):
    with session(tmp_path) as store:
        store.add(None, [failure("x0", "old"), failure("y0", "old")])
    with session(tmp_path) as store:
        store.add(None, [failure("x1", "new")])
        assert store.quarantined == {"x": "1", "y": "0"}
    assert failed(tmp_path) == [("x1", "new"), ("y0", "old")]
    with session(tmp_path) as store:
        assert store.quarantined == {"x": "1", "y": "0"}


def test_an_example_whose_new_contents_fail_is_a_failure_once_however_often_it_runs(tmp_path):
    filled(tmp_path, ["a0", "b0"])
    for _ in range(3):
        with session(tmp_path) as store:
            store.add(None, [failure("a1")])
        assert failed(tmp_path) == [("a1", "no")]
    with session(tmp_path) as store:
        store.add(table("a2"), [])
    assert failed(tmp_path) == []
    assert examples(tmp_path) == ["a2", "b0"]


def test_a_failure_says_whose_run_it_was(tmp_path):
    with session(tmp_path) as store:
        store.add(None, [failure("x0", "why")])
    found = pq.read_table(tmp_path / "failures" / FIRST).to_pylist()
    assert found == [
        {
            **{"number": ord("x"), "id": "x", "image": None, "text": None, "content_hash": "0", "stage": "prepare", "error": "LoadError"},
            **{"reason": "why", "settings_hash": "s", "model_hash": "abc"},
        }
    ]


# --- time ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", ["1970-01-01T00:00:00+00:00", "2999-12-31T23:59:59+00:00"])
def test_nothing_is_decided_by_the_clock(tmp_path, monkeypatch, clock):
    filled(tmp_path, ["a0", "b0"], ["c0"])
    other = filled(tmp_path / "other", ["a1"])
    (other / "records" / FIRST).rename(tmp_path / "records" / THIRD)
    (tmp_path / "other" / "manifest.json").unlink()
    for age, file in enumerate(sorted((tmp_path / "records").iterdir())):  # the later the number, the older the file
        os.utime(file, (10_000 - 1000 * age, 10_000 - 1000 * age))
    os.utime(tmp_path / "manifest.json", (0, 0))
    monkeypatch.setattr(stores, "now", lambda: clock)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with session(tmp_path) as store:
        assert store.finished == {"a": "1", "b": "0", "c": "0"}
        store.add(table("c0", "d0"), [failure("x0")])
    for file in tmp_path.rglob("*.parquet"):
        os.utime(file, (0, 0))
    with session(tmp_path) as store:
        assert store.finished == {"a": "1", "b": "0", "c": "0", "d": "0"}
        assert store.quarantined == {"x": "0"}
    assert kept(tmp_path) == {FIRST: ["b0"], SECOND: ["c0"], THIRD: ["a1"], FOURTH: ["d0"]}


# --- read back -------------------------------------------------------------------------------------------------------------------


def test_a_run_is_read_back_record_by_record(tmp_path):
    filled(tmp_path, ["a0", "b1"], ["'2", "c3"])
    run = open_run(tmp_path)
    assert len(run) == 4
    found = dict(run.records())
    expected = dict(zip(("a", "b", "'", "c"), attributions("float32")))
    assert list(found) == list(expected)
    for id, record in expected.items():
        for one in (found[id], run.record(id)):
            assert one.values.tolist() == record.values.tolist()
            assert one.to_dict() == json.loads(json.dumps(record.to_dict()))
    assert [one["id"] for one in run.rows(["id"])] == list(expected)
    assert list(run.rows(["number", "error"])) == [{"number": ord(id), "error": float(one.error)} for id, one in expected.items()]
    assert [one["values"] for one in run.rows()] == [one.values.flatten().tolist() for one in expected.values()]
    assert run.layout == LAYOUT == Layout.from_dict(told(tmp_path)["layout"])
    with pytest.raises(NotFoundError, match=r"no example 'z' among the 4 finished in"):
        run.record("z")
    with pytest.raises(NotFoundError, match="no column 'eror'; nearest: error"):
        list(run.rows(["id", "eror"]))


def test_a_run_says_how_far_it_is(tmp_path):
    with session(tmp_path, "interrupted") as store:
        store.add(table("a0", "b0"), [failure("x0", "why")])
    run = open_run(tmp_path)
    assert [(one["id"], one["stage"], one["reason"]) for one in run.failures.to_pylist()] == [("x", "prepare", "why")]
    assert json.loads(json.dumps(run.to_dict())) == {
        **{"folder": str(tmp_path), "state": "interrupted", "done": 2, "failed": 1, "model": "net", "model_id": "Net@abc", "settings": SETTINGS},
        **{"settings_hash": "s", "source": {"path": "there", "examples": 9}, "batch": 2, "sessions": 1, "last_session": SESSION},
    }
    lines = dict(run.lines())
    assert lines["run"] == f"{tmp_path} (interrupted)"
    assert lines["finished"] == "2 examples, 1 failed"
    assert lines["source"] == "there (9 examples)"
    assert lines["baseline"] == "black"
    assert "site" not in lines
    assert lines["last session"] == "1 examples in 2.0 s, 0.5 per second, local"
    assert f"finished      {lines['finished']}" in repr(run)


def test_a_run_of_which_nothing_is_finished_is_empty_not_an_error(tmp_path):
    with session(tmp_path):
        pass
    run = open_run(tmp_path)
    assert (len(run), list(run.records()), list(run.rows()), run.failures.num_rows) == (0, [], [], 0)
    assert run.dataset.to_table().num_rows == 0
    with pytest.raises(NotFoundError, match="no example 'a' among the 0 finished"):
        run.record("a")


def test_what_is_no_run_is_one_clear_error(tmp_path):
    with pytest.raises(NotFoundError, match="no folder .*; a run is a folder that `zeroline run` wrote"):
        open_run(tmp_path / "none")
    with pytest.raises(LoadError, match=r"holds no run: there is no manifest.json"):
        open_run(tmp_path)
