"""Packages that only tests and benchmarks need, made importable: see the Makefile's ``test-only`` folder."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

_ONLY = Path(sys.prefix) / "test-only"
_kept: list[torch.library.Library] = []


def make_importable() -> None:
    """Put the folder on the path; beside a CPU build of torch define the two operator schemas that torchvision's import asks for.

    torchvision on the registry is built for CUDA; beside a CPU torch its operators do not register, and the import fails.
    Nothing here calls them: their schemas are enough.
    """
    if _ONLY.is_dir() and str(_ONLY) not in sys.path:
        sys.path.append(str(_ONLY))
    if find_spec("torchvision") is not None and torch.version.cuda is None and not _kept:
        _kept.append(torch.library.Library("torchvision", "DEF"))
        _kept[0].define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept[0].define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def plain(value: object) -> str:
    """A value as the name of a test, without addresses: workers that run tests side by side must find the same names."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
