"""``CheckFailed``, and programs whose failure is one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_NOT_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


class CheckFailed(Exception):
    """A check that does not hold, in one sentence."""


def run(command: Sequence[str], otherwise: str, *, folder: Path | None = None, more: Mapping[str, str] | None = None) -> str:
    """Standard output of a program that must succeed. It sees no PYTHONPATH and no packages of the user."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_OURS} | {"PYTHONNOUSERSITE": "1"} | dict(more or {})
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()[-1].removeprefix("FAILED  ")
        raise CheckFailed(f"{otherwise}: {last} (exit status {done.returncode} of {' '.join(command)})")
    return done.stdout
