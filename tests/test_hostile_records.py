"""Files of records that are damaged, cut, or made to do harm: they are opened, or there is one clear error; no traceback, no hang, no half file.

How files are spoilt is in ``hostile_files``. By hand, with many more examples: HOSTILE_EXAMPLES=5000 pytest tests/test_hostile_records.py
"""

import contextlib
import functools
import io
import json
import math
import os
import signal
import struct
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hostile_files import KINDS, WAYS, apart, saved, spoilt, together
from report.page_records import every
from zeroline.cli import main
from zeroline.errors import LoadError, ZerolineError
from zeroline.records import kind_of
from zeroline.report.opened import LOAD, open_record
from zeroline.seen import Seen

SECONDS = 60  # against a hang; one file takes milliseconds
MORE = int(os.environ.get("HOSTILE_EXAMPLES", "0"))


class TooLateError(BaseException):
    """More than the seconds that one file may take; no ``Exception``, so that nobody catches it."""


@contextlib.contextmanager
def in_time(seconds=SECONDS):
    def late(*_):
        raise TooLateError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@functools.cache
def all_files():
    with tempfile.TemporaryDirectory() as folder:
        return saved(Path(folder))


@pytest.fixture(scope="module")
def files():
    return all_files()


def loads(content, kind, folder):
    """The file is opened by its class, by ``open_record`` and ``Seen.of``, or each gives one clear error."""
    path = folder / "r.safetensors"
    path.write_bytes(content)
    found = []
    with in_time():
        for read in (LOAD[kind], open_record, Seen.of):
            try:
                read(path)
                found.append(True)
            except ZerolineError as problem:
                found.append(False)
                said = str(problem)
                assert said.strip()
                assert "\n" not in said
                assert not isinstance(problem, LoadError) or "r.safetensors" in said
    assert [p.name for p in folder.iterdir()] == ["r.safetensors"]
    return found


def reported(content, folder):
    """(exit status, what is on standard error) of ``zeroline report`` of the file; what it leaves behind is checked."""
    path, page = folder / "r.safetensors", folder / "out" / "report.html"
    path.write_bytes(content)
    page.parent.mkdir(exist_ok=True)
    page.unlink(missing_ok=True)
    err, out, status = io.StringIO(), io.StringIO(), 0
    with in_time(), warnings.catch_warnings(), contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        warnings.simplefilter("ignore")  # of matplotlib and numpy, about numbers that are none
        try:
            main(["report", str(path), "--out", str(page)])
        except SystemExit as ended:
            status = ended.code or 0
    left = sorted(p.name for p in page.parent.iterdir())
    if status == 0:
        assert left == ["report.html"]
        assert err.getvalue() == ""
        assert page.read_text(encoding="utf-8").endswith("</html>")
    else:
        assert left == []
        assert out.getvalue() == ""
    return status, err.getvalue()


def clean(status, err):
    """A page, or one clear line that says what is wrong."""
    if status == 0:
        return
    assert status in (1, 2)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert "unexpected" not in err, err


@settings(
    max_examples=MORE or 250,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
    derandomize=not MORE,
    database=None,
)
@given(found=st.deferred(lambda: spoilt(all_files())))
def test_a_spoilt_file_is_opened_or_is_one_clear_error(tmp_path_factory, found):
    _, content, name = found
    kind = name.partition(" of")[0]
    loads(content, kind, tmp_path_factory.mktemp("one"))


@settings(
    max_examples=MORE or 150, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate], derandomize=not MORE, report_multiple_bugs=False,
    database=None,
)  # fmt: skip
@given(found=st.deferred(lambda: spoilt(all_files(), ("told", "figured", "tensors", "tensors", "text", "cut", "flipped"))))
def test_a_report_of_a_spoilt_file_is_a_page_or_one_clear_line(tmp_path_factory, found):
    clean(*reported(found[1], tmp_path_factory.mktemp("one")))


# --- one by one ------------------------------------------------------------------------------------------------------------------


def test_saved_records_of_all_kinds_are_here_and_make_a_page(files, tmp_path):
    kinds = {kind_of(json.loads(apart(content)[0]["zeroline"])) for content in files.values()}
    assert kinds == set(KINDS) == set(LOAD)
    for content in files.values():
        assert len(content) < 10_000
    status, err = reported(files["mechanism"], tmp_path)
    assert (status, err) == (0, "")


@pytest.mark.parametrize("name", list(every()))
def test_a_file_that_is_cut_anywhere_is_one_clear_error(files, tmp_path, name):
    content = files[name]
    for size in {0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 9, len(content) - 1}:
        assert loads(content[:size], name.partition(" of")[0], tmp_path) == [False, False, False]
    status, err = reported(content[: len(content) // 2], tmp_path)
    assert status == 1
    assert "is not a record that zeroline saved" in err
    clean(status, err)


@pytest.mark.parametrize("name", list(every()))
def test_another_version_and_another_kind_are_said(files, tmp_path, name):
    texts, tensors = apart(files[name])
    record = json.loads(texts["zeroline"])
    kind = name.partition(" of")[0]
    for form in (0, 99, None, "1", [1], 1e300):
        path = tmp_path / "r.safetensors"
        path.write_bytes(together({**texts, "zeroline": json.dumps({**record, "format": form})}, tensors))
        with pytest.raises(LoadError, match=f"holds {kind} .*, not {kind} of format"):
            open_record(path)
    for other in KINDS:
        if other != kind:
            path.write_bytes(together({**texts, "zeroline": json.dumps({**record, "kind": other})}, tensors))
            with pytest.raises(LoadError):
                open_record(path)
    path.write_bytes(together({**texts, "zeroline": json.dumps({**record, "kind": "a new one"})}, tensors))
    with pytest.raises(LoadError, match="holds a new one; possible are attribution, audit"):
        open_record(path)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", '"a"', "5", "[" * 200_000, '{"a":' * 200_000, "[" * 200_000 + "]" * 200_000, "NaN", "1" * 5000]
)
@pytest.mark.parametrize("key", ["zeroline", "seen"])
def test_text_that_is_no_record_is_one_clear_error(files, tmp_path, key, text):
    texts, tensors = apart(files["relevance"])
    found = loads(together({**texts, key: text}, tensors), "relevance", tmp_path)
    assert found == ([False, False, True] if key == "zeroline" else [True, False, False])
    clean(*reported(together({**texts, key: text}, tensors), tmp_path))


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**62, 2**63, 2**64 - 1])
def test_a_header_that_claims_another_size_is_one_clear_error_at_once(files, tmp_path, size):
    with in_time():
        found = loads(struct.pack("<Q", size) + files["relevance"][8:], "relevance", tmp_path)
    assert found == [False, False, False]


def test_a_tensor_that_claims_to_be_huge_is_one_clear_error_at_once(files, tmp_path):
    content = files["relevance"]
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    for shape, ends in (([1 << 40], [0, 1 << 42]), ([2**62, 4], [0, 8]), ([-1], [0, 8]), ([1], [8, 0]), ([1], [0, 10**18])):
        header["output"] = {"dtype": "F32", "shape": shape, "data_offsets": ends}
        text = json.dumps(header).encode()
        assert loads(struct.pack("<Q", len(text)) + text + content[8 + size :], "relevance", tmp_path) == [False, False, False]


def test_nothing_in_a_file_is_ever_unpickled(files, tmp_path):
    """A pickle that would write a file is no record, whatever its name."""
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    path = tmp_path / "r.safetensors"
    for content in (pickle.dumps(Evil()), _zipped(Evil(), tmp_path)):
        path.write_bytes(content)
        for read in (open_record, *LOAD.values()):
            with pytest.raises(ZerolineError):
                read(path)
    assert not (tmp_path / "written").exists()


def _zipped(what, folder):
    torch.save(what, folder / "evil.pt")
    return (folder / "evil.pt").read_bytes()


def test_one_bad_file_among_good_ones_is_named_and_no_page_is_written(files, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.safetensors").write_bytes(files["mechanism"])
    (tmp_path / "b.safetensors").write_bytes(files["mechanism"][:500])
    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path), "--out", str(tmp_path / "out" / "report.html")])
    assert ended.value.code == 1
    clean(1, err.getvalue())
    assert "b.safetensors" in err.getvalue()
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_is_named_whatever_does_not_fit(files, tmp_path):
    texts, tensors = apart(files["corrections"])
    tensors["0/by_source/pixels"] = torch.zeros(0, 7)
    path = tmp_path / "r.safetensors"
    path.write_bytes(together(texts, tensors))
    with pytest.raises(LoadError, match=r"r\.safetensors' is a damaged corrections"):
        open_record(path)


# --- what the fuzz found: each opens, and then has no chapter ---------------------------------------------------------------------


def told(*changes):
    """A change of the record's JSON: (way, value) pairs."""

    def change(texts, tensors, key="zeroline"):
        record = json.loads(texts[key])
        for way, value in changes:
            holder = record
            for part in way[:-1]:
                holder = holder[part]
            holder[way[-1]] = value
        return {**texts, key: json.dumps(record)}, tensors

    return change


def beside(*changes):
    """A change of what was seen."""
    return lambda texts, tensors: told(*changes)(texts, tensors, "seen")


def put(**changes):
    """Other tensors; None takes one away."""

    def change(texts, tensors):
        found = {**tensors, **{name.replace("__", "/"): tensor for name, tensor in changes.items()}}
        return texts, {name: tensor for name, tensor in found.items() if tensor is not None}

    return change


def filled(name, value):
    """A tensor of another content."""
    return lambda texts, tensors: (texts, {**tensors, name: torch.full_like(tensors[name], value)})


FOUND = {
    "no evaluations": ("attribution", put(evaluations=None)),
    "a site that is no text": ("attribution", told((("site",), {"a": 1}))),
    "is_cut that is neither": ("attribution", told((("is_cut",), {"a": 0}))),
    "a budget of nobody": ("attribution", put(budget__quadrature=torch.zeros(0))),
    "values that are no numbers": ("attribution", filled("values/layer", math.nan)),
    "failures in a list": ("audit", told((("failures",), []))),
    "classes that are none": ("audit", told((("classes",), {"": [], "a": []}))),
    "a distance of nobody": ("audit", put(**{"0/distance": torch.tensor(1.0)})),
    "a grid of one number": ("comparison", told((("lies", "layer_cam", "grid"), [2]))),
    "no name for a call": ("grounding", told((("calls",), []))),
    "a grid in halves": ("grounding", told((("columns", "grid"), [2, 0.5]))),
    "an output of nobody": ("grounding", put(output=torch.tensor(1.0))),
    "a matrix of no numbers": ("grounding", filled("matrix", math.nan)),
    "settings in a list": ("guidance", told((("settings",), []))),
    "an answer of nobody": ("logic", put(output=torch.tensor(1.0))),
    "no calls of a stream": ("relevance", put(per_call__words=None)),
    "a grid beyond the tokens": ("relevance", told((("streams", "pixels", "grid"), [10**9, 3]))),
    "more words than tokens": ("relevance", beside((("words", "words"), ["a", "b", "c", "d", "e"]))),
    "words that are no numbers": ("relevance", filled("by_source/words", math.nan)),
    "four axes": ("relevance", put(by_source__pixels=torch.zeros(1, 1, 0, 1))),
    "pictures of two sizes": ("rewriting", put(rewritten=torch.zeros(3, 2, 2, dtype=torch.uint8))),
    "a picture that is flat": ("rewriting", put(original=torch.zeros(1, dtype=torch.uint8))),
    "a grid of nothing": ("rewriting", told((("grid",), []))),
    "a probability beyond all": ("rewriting", told((("probabilities", "after", "own"), -(10**30)))),
    "evaluations in a list": ("rewriting", told((("ssim",), [True]))),
    "a map of one number": ("summary", put(map__0=torch.tensor(1.0))),
    "an edge below zero": ("summary", told((("histogram", 0, 10), -1))),
    "edges without counts": ("summary", told((("histogram", 1), [1, 2]))),
    "half a surrogate pair": ("summary", told((("folder",), "\ud800"))),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_the_fuzz_found_is_one_clear_line(files, tmp_path, what):
    name, change = FOUND[what]
    status, err = reported(together(*change(*apart(files[name]))), tmp_path)
    clean(status, err)
    assert status in (0, 1)


@pytest.mark.parametrize("what", FOUND)
def test_what_the_fuzz_found_opens_or_is_one_clear_error(files, tmp_path, what):
    name, change = FOUND[what]
    loads(together(*change(*apart(files[name]))), name, tmp_path)


def test_ways_to_spoil_a_file_all_change_it(files):
    """The fuzz is no better than what it does: every way gives files that are not the one before, most of the time."""

    for way in WAYS:
        words = _changes(files, way)
        assert len(words) >= 4, way


def _changes(files, way):
    """What a way of spoiling did to files, where it did anything."""
    words = set()

    @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(found=spoilt(files, (way,)))
    def look(found):
        if found[1] != files[found[2]]:
            words.add(found[0])

    look()
    return words
