"""Records on disk: whole or not at all, and one clear error for what is no record."""

import pytest
import safetensors.torch
import torch

from zeroline import records
from zeroline.errors import LoadError, UsageError


def test_what_was_written_is_read(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    records.write(tmp_path / "r.safetensors", tensors, {"kind": "this"})
    record, found = records.read(tmp_path / "r.safetensors", "a record")
    assert record == {"kind": "this"}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_failure_leaves_what_was_there_and_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "r.safetensors"
    records.write(path, {"a": torch.zeros(1)}, {"version": 1})

    def full(tensors, name, metadata):
        name.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        records.write(path, {"a": torch.ones(1)}, {"version": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]
    assert records.read(path, "a record")[0] == {"version": 1}


def test_what_is_no_record_is_one_clear_error(tmp_path):
    (tmp_path / "text.safetensors").write_text("no record")
    with pytest.raises(LoadError, match=r"text\.safetensors' is not a relevance that zeroline saved"):
        records.read(tmp_path / "text.safetensors", "a relevance")
    with pytest.raises(LoadError, match="no file"):
        records.read(tmp_path / "none", "a record")
    with pytest.raises(UsageError, match="there is no folder"):
        records.write(tmp_path / "none" / "r", {}, {})
