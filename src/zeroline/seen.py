"""What a reader must see beside the numbers of a record: the picture as the model saw it, the words, how the values lie, how to ask again.

Holds ``Seen``. A record knows what was asked and what came out, and no picture; a figure of it needs one. ``attach`` puts what was seen into the file
of a saved record, so that the file alone can be drawn later (``zeroline report FILE``); what reads the record does not notice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroline import records

KEY = records.ASIDE.rstrip("/")
IMAGE = "image"
BASELINE = "baseline"


@dataclass(frozen=True, eq=False)
class Seen:
    """Pictures and words around a record; every part may be missing.

    ``pictures``: name -> uint8 [height, width, 3]; ``image`` is what the model saw, ``baseline`` what stands for nothing (``baseline/NAME`` of
    several), a stream's name its own picture. ``words``: stream -> its tokens as text. ``grid`` and ``prefix``: how the positions of an attribution
    lie. ``places``: name -> bool [height, width] on the picture, of an object (``mask``) or of the players of a logic. ``command``: the words of the
    command line that asked. ``facts``: what else a figure says (JSON types).
    """

    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    prefix: int | None = None
    places: Mapping[str, Tensor] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> Tensor | None:
        """The picture that the model saw."""
        return self.pictures.get(IMAGE)

    def attach(self, path: str | Path) -> None:
        """Put this into the file of a saved record, beside what is there (to a temporary name first, then renamed)."""
        pictures = {f"{KEY}/pictures/{name}": tensor for name, tensor in self.pictures.items()}
        places = {f"{KEY}/places/{name}": tensor.to(torch.uint8) for name, tensor in self.places.items()}
        told = {
            "words": {name: list(words) for name, words in self.words.items()},
            "grid": None if self.grid is None else list(self.grid),
            "prefix": self.prefix,
            "command": list(self.command),
            "facts": dict(self.facts),
        }
        records.add(path, {**pictures, **places}, {KEY: json.dumps(told)})

    @classmethod
    def of(cls, path: str | Path) -> Seen:
        """What was attached to a file; nothing where nothing was. Raises LoadError where the file is no record, or what was attached is damaged."""
        told, tensors = records.aside(path, KEY)
        with records.intact(str(path), "record"):
            starts = [f"{KEY}/{kind}/" for kind in ("pictures", "places")]
            pictures, places = ({n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)} for start in starts)
            for name, tensor in pictures.items():
                if tensor.ndim != 3 or tensor.shape[2] != 3 or tensor.dtype != torch.uint8:
                    raise ValueError(f"the picture {name!r} is {tuple(tensor.shape)} of {tensor.dtype}, not [height, width, 3] of torch.uint8")
            for name, tensor in places.items():
                if tensor.ndim != 2:
                    raise ValueError(f"the place {name!r} is {tuple(tensor.shape)}, not [height, width]")
            grid = None if told.get("grid") is None else (int(told["grid"][0]), int(told["grid"][1]))
            prefix = None if told.get("prefix") is None else int(told["prefix"])
            if (grid is not None and min(grid) < 1) or (prefix is not None and prefix < 0):
                raise ValueError(f"grid {grid} and prefix {prefix} are no numbers of rows, columns and tokens")
            return cls(
                pictures=pictures,
                words={str(name): tuple(map(str, words)) for name, words in told.get("words", {}).items()},
                grid=grid,
                prefix=prefix,
                places={name: tensor.bool() for name, tensor in places.items()},
                command=tuple(map(str, told.get("command", ()))),
                facts=dict(told.get("facts", {})),
            )
