"""Shared set-up of the tests: threads, packages that only tests need, and the zoo's model and samples."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the models are small, and threads that wait for each other are slower than one

_ONLY = Path(sys.prefix) / "test-only"  # see the Makefile
if _ONLY.is_dir() and str(_ONLY) not in sys.path:
    sys.path.append(str(_ONLY))
if find_spec("torchvision") is not None and torch.version.cuda is None:
    # torchvision on the registry is built for CUDA; beside a CPU torch its operators do not register, and the import
    # fails. Nothing here calls them: their schemas are enough.
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture(scope="session")
def digits_vit():
    from zeroline import zoo

    return zoo.load("digits-vit")


@pytest.fixture(scope="session")
def samples():
    from zeroline import zoo

    return zoo.samples("digits-vit")


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    """Every test draws from the same seed, whatever ran before it."""
    torch.manual_seed(0)
