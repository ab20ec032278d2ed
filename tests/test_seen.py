"""What was seen beside a record: it comes back as it was, the record does not notice, and a file is whole or as it was before."""

import json
import os
from dataclasses import fields

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from report.page_records import attribution, every, photo, save, seen
from zeroline import Attribution, records
from zeroline.errors import LoadError, UsageError
from zeroline.report.opened import LOAD, open_record, record_files
from zeroline.seen import BASELINE, IMAGE, Seen


def one():
    return attribution(torch.arange(12.0).view(1, 3, 2, 2))


def raw(path):
    """Texts and tensors of a file, read by safetensors alone."""
    with safe_open(str(path), "pt") as file:
        names = list(file.keys())
        return dict(file.metadata()), {name: file.get_tensor(name) for name in names}


def same(found, truth):
    """Bit for bit, whatever it is made of; NaN equals NaN."""
    if isinstance(truth, torch.Tensor):
        assert found.dtype == truth.dtype
        assert found.shape == truth.shape
        assert found.contiguous().numpy().tobytes() == truth.contiguous().numpy().tobytes()
    elif isinstance(truth, dict):
        assert list(found) == list(truth)
        for name in truth:
            same(found[name], truth[name])
    elif isinstance(truth, (list, tuple)):
        assert len(found) == len(truth)
        for a, b in zip(found, truth):
            same(a, b)
    elif isinstance(truth, float):
        assert found == truth or (found != found and truth != truth)
    elif hasattr(truth, "__dataclass_fields__"):
        assert type(found) is type(truth)
        for part in fields(truth):
            same(getattr(found, part.name), getattr(truth, part.name))
    else:
        assert found == truth


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT, lambda inner: st.lists(inner, max_size=3)
)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(TEXT, st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=3),
    st.dictionaries(TEXT, st.lists(TEXT, max_size=4).map(tuple), max_size=3),
    st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.none() | st.integers(0, 9),
    st.lists(TEXT, max_size=5).map(tuple),
    st.dictionaries(TEXT, JSON, max_size=3),
)
def test_what_was_attached_comes_back_as_it_was(tmp_path_factory, sizes, words, grid, prefix, command, facts):
    path = tmp_path_factory.mktemp("seen") / "r.safetensors"
    given_ = Seen(
        pictures={name: photo(*size, seed=i) for i, (name, size) in enumerate(sizes.items())}, words=words, grid=grid, prefix=prefix,
        places={name: photo(*size, seed=9)[..., 0] > 128 for name, size in sizes.items()}, command=command, facts=facts,
    )  # fmt: skip
    one().save(path)
    given_.attach(path)
    found = Seen.of(path)
    assert (dict(found.words), found.grid, found.prefix, found.command, dict(found.facts)) == (words, grid, prefix, command, facts)
    assert set(found.pictures) == set(found.places) == set(sizes)
    for name in sizes:
        same(found.pictures[name], given_.pictures[name])
        same(found.places[name], given_.places[name])
    same(Attribution.load(path), _again(path))


def _again(path):
    """The record of the same file without what lies beside it."""
    texts, tensors = raw(path)
    bare = path.with_name("bare.safetensors")
    safetensors.torch.save_file({n: t for n, t in tensors.items() if not n.startswith("seen/")}, bare, {"zeroline": texts["zeroline"]})
    return Attribution.load(bare)


def test_records_of_every_kind_load_bit_for_bit_with_it_attached(tmp_path):
    for name, (record, _) in every().items():
        path = save(record, seen(), tmp_path, name.replace(" ", "-"))
        found, around = open_record(path)
        kind = json.loads(raw(path)[0]["zeroline"]).get("kind", "attribution")
        bare = _bare(path)
        same(found, LOAD[kind](bare))
        same(dict(around.pictures), dict(sorted(seen().pictures.items())))
        assert around.command == ("explain", "a b.png", "--target", "newt")


def _bare(path):
    texts, tensors = raw(path)
    bare = path.with_name(f"bare-{path.name}")
    safetensors.torch.save_file({n: t for n, t in tensors.items() if not n.startswith("seen/")}, bare, {"zeroline": texts["zeroline"]})
    return bare


def test_tensors_and_text_of_the_record_are_the_same_bytes_afterwards(tmp_path):
    path = tmp_path / "r.safetensors"
    one().save(path)
    before_texts, before = raw(path)
    seen(facts={"zeroline": "not this"}).attach(path)
    after_texts, after = raw(path)
    assert after_texts["zeroline"] == before_texts["zeroline"]
    assert set(records.read(path, "a record")[1]) == set(before)  # what lies beside is not even read
    assert {name for name in after if not name.startswith("seen/")} == set(before)
    for name, tensor in before.items():
        same(after[name], tensor)
    assert {name for name in after if name.startswith("seen/")} == {
        "seen/pictures/image", "seen/pictures/baseline", "seen/pictures/baseline/zeros", "seen/pictures/baseline/blur(8)", "seen/places/left",
        "seen/places/mask",
    }  # fmt: skip


def test_attaching_twice_keeps_the_second(tmp_path):
    path = tmp_path / "r.safetensors"
    one().save(path)
    Seen(command=("first",), facts={"a": 1}, grid=(1, 2)).attach(path)
    Seen(command=("second",), facts={"b": 2}).attach(path)
    found = Seen.of(path)
    assert (found.command, found.facts, found.grid) == (("second",), {"b": 2}, None)
    Attribution.load(path)


def test_attaching_again_takes_away_pictures_that_are_not_there_any_more(tmp_path):
    path = tmp_path / "r.safetensors"
    one().save(path)
    Seen(pictures={IMAGE: photo(), "old": photo()}).attach(path)
    Seen(pictures={IMAGE: photo(seed=5)}).attach(path)
    assert set(Seen.of(path).pictures) == {IMAGE}


def test_a_file_with_nothing_beside_it_has_nothing(tmp_path):
    path = tmp_path / "r.safetensors"
    one().save(path)
    found = Seen.of(path)
    assert (found.pictures, found.words, found.grid, found.prefix, found.places, found.command, found.facts) == ({}, {}, None, None, {}, (), {})
    assert found.image is None
    same(open_record(path)[0], one())


def test_the_image_is_the_picture_of_that_name():
    assert Seen().image is None
    assert Seen({BASELINE: photo()}).image is None
    picture = photo()
    assert Seen({IMAGE: picture}).image is picture


def test_places_are_kept_as_true_and_false(tmp_path):
    path = tmp_path / "r.safetensors"
    one().save(path)
    where = torch.zeros(2, 3, dtype=torch.bool)
    where[1, 2] = True
    Seen(places={"a": where}).attach(path)
    assert Seen.of(path).places["a"].dtype == torch.bool
    assert Seen.of(path).places["a"].tolist() == [[False, False, False], [False, False, True]]


def test_a_disk_that_is_full_leaves_the_record_as_it_was_and_no_half_file(tmp_path, monkeypatch):
    path = tmp_path / "r.safetensors"
    one().save(path)
    before = path.read_bytes()

    def full(tensors, name, metadata):
        name.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        seen().attach(path)
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]
    assert path.read_bytes() == before


def test_the_file_is_never_there_half_written(tmp_path, monkeypatch):
    """While it is written, the file of that name is still the one before."""
    path = tmp_path / "r.safetensors"
    one().save(path)
    before, write, during = path.read_bytes(), safetensors.torch.save_file, []

    def watched(tensors, name, metadata):
        write(tensors, name, metadata)
        during.append((path.read_bytes() == before, name != path, name.parent == path.parent))

    monkeypatch.setattr(safetensors.torch, "save_file", watched)
    seen().attach(path)
    assert during == [(True, True, True)]
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_attaching_keeps_who_may_read_the_file(tmp_path, mode):
    path = tmp_path / "r.safetensors"
    one().save(path)
    path.chmod(mode)
    seen().attach(path)
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_record_may_be_read_by_whom_any_new_file_may(tmp_path, mask):
    """Also where a save that was killed left its partial file."""
    path = tmp_path / "r.safetensors"
    left = tmp_path / ".r.safetensors.partial"
    left.write_bytes(b"half")
    left.chmod(0o666)
    before = os.umask(mask)
    try:
        one().save(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert not left.exists()


def test_attaching_to_what_is_no_record_is_one_clear_error_and_leaves_it_alone(tmp_path):
    path = tmp_path / "text.safetensors"
    path.write_text("no record")
    with pytest.raises(LoadError, match=r"text\.safetensors' is not a record that zeroline saved"):
        seen().attach(path)
    assert path.read_text() == "no record"
    with pytest.raises(LoadError, match="no file"):
        seen().attach(tmp_path / "none.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["text.safetensors"]


TOLD = {"words": {}, "grid": None, "prefix": None, "command": [], "facts": {}}


@pytest.mark.parametrize(
    ("texts", "tensors", "said"),
    [
        ("{", {}, "damaged record"),
        ("[]", {}, "seen is no JSON object"),
        ("null", {}, "seen is no JSON object"),
        (json.dumps({**TOLD, "words": [1]}), {}, "damaged record"),
        (json.dumps({**TOLD, "words": {"a": 5}}), {}, "damaged record"),
        (json.dumps({**TOLD, "grid": [3]}), {}, "damaged record"),
        (json.dumps({**TOLD, "grid": "ab"}), {}, "damaged record"),
        (json.dumps({**TOLD, "grid": {"a": 1}}), {}, "damaged record"),
        (json.dumps({**TOLD, "prefix": "x"}), {}, "damaged record"),
        (json.dumps({**TOLD, "command": 5}), {}, "damaged record"),
        (json.dumps({**TOLD, "facts": 5}), {}, "damaged record"),
        ("[" * 100_000, {}, "damaged record"),
        (json.dumps(TOLD), {"seen/pictures/image": torch.zeros(2, 3)}, r"the picture 'image' is \(2, 3\) of torch.float32"),
        (json.dumps(TOLD), {"seen/pictures/image": torch.zeros(2, 3, 4, dtype=torch.uint8)}, r"\(2, 3, 4\)"),
        (json.dumps(TOLD), {"seen/pictures/image": torch.zeros(2, 3, 3)}, "not .height, width, 3. of torch.uint8"),
    ],
)
def test_what_is_damaged_is_one_clear_error_and_the_record_still_loads(tmp_path, texts, tensors, said):
    path = tmp_path / "r.safetensors"
    one().save(path)
    records.add(path, tensors, {"seen": texts})
    with pytest.raises(LoadError, match=said) as problem:
        Seen.of(path)
    assert "\n" not in str(problem.value)
    same(Attribution.load(path), one())
    with pytest.raises(LoadError, match=said):
        open_record(path)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), ()])
def test_a_place_of_another_shape_is_damaged(tmp_path, shape):
    path = tmp_path / "r.safetensors"
    one().save(path)
    records.add(path, {"seen/places/mask": torch.ones(shape, dtype=torch.uint8)}, {"seen": json.dumps(TOLD)})
    with pytest.raises(LoadError, match="damaged"):
        Seen.of(path)


@pytest.mark.parametrize("grid", [[-1, -6], [0, 3], [1e300, 1]])
def test_a_grid_that_is_none_is_damaged(tmp_path, grid):
    path = tmp_path / "r.safetensors"
    one().save(path)
    records.add(path, {}, {"seen": json.dumps({**TOLD, "grid": grid, "prefix": -1})})
    with pytest.raises(LoadError, match="damaged"):
        Seen.of(path)


# --- files of records ------------------------------------------------------------------------------------------------------------


def test_folders_are_opened_by_name_and_files_taken_as_given(tmp_path):
    for name in ("b", "a"):
        one().save(tmp_path / f"{name}.safetensors")
    (tmp_path / ".c.safetensors").write_bytes(b"")
    (tmp_path / "record.json").write_text("{}")
    odd = tmp_path / "odd name"
    odd.write_bytes(b"")
    assert record_files([odd, tmp_path]) == [odd, tmp_path / "a.safetensors", tmp_path / "b.safetensors"]


def test_what_is_not_there_is_said_with_what_is_near(tmp_path):
    one().save(tmp_path / "attribution.safetensors")
    with pytest.raises(UsageError, match=r"no record '.*atribution.safetensors'; (nearest|possible): attribution.safetensors"):
        record_files([tmp_path / "atribution.safetensors"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="the folder '.*empty' holds no record"):
        record_files([tmp_path / "empty"])
    with pytest.raises(UsageError, match="no record '.*none/x'$"):
        record_files([tmp_path / "none" / "x"])


def test_of_many_files_the_nearest_is_named(tmp_path):
    folder = tmp_path / "a folder with a long name of its own"
    folder.mkdir()
    for i in range(20):
        (folder / f"r{i:02}.safetensors").write_bytes(b"")
    one().save(folder / "zebra.safetensors")
    with pytest.raises(UsageError, match="nearest: zebra.safetensors"):
        record_files([folder / "zebr.safetensors"])


def test_a_kind_that_nobody_knows_is_said_with_those_that_are(tmp_path):
    records.write(tmp_path / "r.safetensors", {"a": torch.zeros(1)}, {"kind": "of its own"})
    with pytest.raises(LoadError, match="holds of its own; possible are attribution, audit, comparison, .*, summary$"):
        open_record(tmp_path / "r.safetensors")
