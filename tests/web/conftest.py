"""A folder with a model whose labels are HTML, and a server that offers it: once for all tests of the page."""

from __future__ import annotations

import pytest

from web.serving import hostile_model, running


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """A tiny image classifier as Hugging Face saves it, whose labels are HTML."""
    return hostile_model(tmp_path_factory.mktemp("models") / "hostile")


@pytest.fixture(scope="session")
def server(hostile):
    """``zeroline serve`` as a process, with that folder beside the zoo; its texts may have 60 letters, its files 1 MB."""
    with running("--model-folder", str(hostile), "--max-letters", "60", "--max-megabytes", "1") as served:
        yield served
