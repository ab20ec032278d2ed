"""Shared set-up of the tests: threads, packages that only tests need, and the zoo's model and samples."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from only import make_importable

torch.set_num_threads(1)  # the models are small, and threads that wait for each other are slower than one
os.environ["OMP_NUM_THREADS"] = "1"  # so too in the processes that tests start
make_importable()


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


@pytest.fixture
def exact_kernels():
    """Convolutions on a GPU in full float32, as on the CPU: torch's default there, TF32, keeps ten bits of the mantissa."""
    kept = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = kept


@pytest.fixture(scope="session")
def chromium():
    """A running Chromium: that of the machine (``CHROMIUM`` names another); skipped where there is none."""
    found = os.environ.get("CHROMIUM") or next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    quiet += ("--disable-features=IsolateSandboxedIframes",)  # else driven clicks beside a sandboxed frame go astray once the page was scrolled
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found, args=list(quiet))
        yield browser
        browser.close()


def pytest_collection_modifyitems(items):
    """The longest file first, so that on several processes none waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_ray_engine.py")
