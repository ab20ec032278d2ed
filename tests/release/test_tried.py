"""Which Pythons the wheel is tried on; the trial itself is ``make dist``."""

import os
import sys
from pathlib import Path

from tried import python_of

OURS = ".".join(map(str, sys.version_info[:2]))


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_this_python_is_found_and_one_that_is_not_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert python_of(OURS) == Path(sys.executable)
    assert python_of("3.99") is None


def test_a_name_on_the_path_that_does_not_run_is_passed_over_for_one_of_pyenv(monkeypatch, tmp_path):
    executable(tmp_path / "bin/python3.99", "exit 127")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert python_of("3.99") is None
    there = executable(tmp_path / "pyenv/versions/3.99.1/bin/python", "echo 3.99")
    assert python_of("3.99") == there


def test_a_python_of_another_version_under_the_name_is_not_taken(monkeypatch, tmp_path):
    executable(tmp_path / "python3.99", "echo 3.98")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "none"))
    assert python_of("3.99") is None
