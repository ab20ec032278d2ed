"""The models that a page offers: those of the zoo, and folders named when the server starts. Nothing else can be asked.

A folder is offered under its own name, so that no path of the server is shown. A model is loaded when it is first asked, or at the start for
folders (a broken one stops the start), and answers one question at a time: explaining hooks into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock

from zeroline import zoo
from zeroline.errors import LoadError, NotFoundError, UsageError
from zeroline.model.blocks import default_sites
from zeroline.model.loading import Sourced
from zeroline.spelling.models import load_sourced
from zeroline.spelling.questions import stand_in


class Offered:
    """Names and what they stand for: ``zoo:NAME``, and ``folder:NAME`` for the folders given."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self._meant: dict[str, str] = {f"zoo:{name}": f"zoo:{name}" for name in zoo.MODELS}
        self._loaded: dict[str, Sourced] = {}
        self._sites: dict[str, tuple[str, ...]] = {}
        for folder in folders:
            name = f"folder:{folder.resolve().name}"
            if name in self._meant:
                raise UsageError(f"two model folders are called {folder.resolve().name!r}; the page tells them apart by that name")
            if not (folder / "config.json").is_file():
                raise LoadError(f"no model folder {str(folder)!r}: it has no config.json")
            self._meant[name] = f"hf:{folder.resolve()}"
        self._locks: Mapping[str, Lock] = {name: Lock() for name in self._meant}
        for name in self._meant:
            if name.startswith("folder:"):
                with self.asked(name):
                    pass

    @property
    def names(self) -> tuple[str, ...]:
        """What can be asked."""
        return tuple(self._meant)

    @contextmanager
    def asked(self, name: str) -> Iterator[Sourced]:
        """The model of a name, for one question at a time. Raises NotFoundError for what is not offered."""
        if name not in self._meant:
            raise NotFoundError(f"the model {name!r} is not offered here; possible are {', '.join(self._meant)}")
        with self._locks[name]:
            if name not in self._loaded:
                self._loaded[name] = replace(load_sourced(self._meant[name]), name=name)  # a folder's path is not shown
            yield self._loaded[name]

    def sites(self, name: str) -> tuple[str, ...]:
        """Where a model can be explained: its input, then its blocks."""
        with self.asked(name) as sourced:
            if name not in self._sites:
                inputs = sourced.prepare(*stand_in(sourced, None, None))
                self._sites[name] = tuple(default_sites(sourced.model, inputs))
            return self._sites[name]
