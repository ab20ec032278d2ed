"""From a source's examples to a model's inputs: files read, hashed, decoded, preprocessed.

Holds ``Preparer``. It may run in a thread beside the one that explains, but in one alone: tokenizers do not share. What goes wrong with an example
becomes a ``Failure`` with the stage and the reason, and stops nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zeroline.errors import InputError, UsageError
from zeroline.model.loading import Sourced
from zeroline.model.pictures import eight_bit, place_seen, upright
from zeroline.scale.source import Example, Source, content_hash
from zeroline.spelling.questions import image_only
from zeroline.spelling.sources import drawn_box, read_image

Pixels = Mapping[str, bytes | None]  # "image" and, where the source says where objects are, "mask"


@dataclass(frozen=True)
class Failure:
    """An example that could not be explained: at which ``stage`` (read, prepare, explain) and why."""

    number: int
    id: str
    image: str | None
    text: str | None
    content_hash: str | None
    stage: str
    error: str
    reason: str

    @classmethod
    def of(cls, example: Example, hashed: str | None, stage: str, problem: Exception, before: str = "") -> Failure:
        """What an exception says, on one line."""
        reason = " ".join(str(problem).split()) or type(problem).__name__
        return cls(example.number, example.id, example.image, example.text, hashed, stage, type(problem).__name__, (before + reason)[:500])


@dataclass(frozen=True, eq=False)
class Ready:
    """An example whose inputs are made (on the CPU, a batch of one). ``mask`` is where its object is, as the model sees it."""

    example: Example
    content_hash: str
    inputs: Any
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class Prepared:
    """Some examples: those that are ready, those that failed, how many were done before and have not changed."""

    ready: tuple[Ready, ...]
    failures: tuple[Failure, ...] = ()
    unchanged: int = 0


class Preparer:
    """Makes the inputs of one model from one source. Raises UsageError where the source has nothing of what the model reads."""

    def __init__(self, sourced: Sourced, source: Source) -> None:
        self._sourced, self._source = sourced, source
        there = {"image"} if source.embedded else set()
        there |= {"image", "text"} & set(source.rows.column_names)
        for what in sourced.reads:
            if what not in there:
                columns, reads = ", ".join(source.columns.values()) or "images alone", " and ".join(sourced.reads)
                raise UsageError(f"{sourced.name!r} reads {reads}; the source has no {what} ({columns}); say columns {what}=NAME")

    def prepared(self, start: int, stop: int, known: Mapping[str, str | None]) -> Prepared:
        """The examples ``start`` to ``stop``; those that ``known`` (id -> content hash) has, unchanged, are only counted."""
        ready: list[Ready] = []
        failures: list[Failure] = []
        unchanged = 0
        for example in self._source.examples(start, stop):
            hashed = None
            try:
                pixels = self._pixels(example)
                hashed = content_hash(example, pixels)
                if known.get(example.id) == hashed:
                    unchanged += 1
                    continue
                ready.append(self._ready(example, hashed, pixels))
            except Exception as problem:  # whatever a decoder or a processor raises belongs to its example
                failures.append(Failure.of(example, hashed, "prepare" if hashed else "read", problem))
        return Prepared(tuple(ready), tuple(failures), unchanged)

    def one(self, number: int) -> Ready:
        """One example; raises what is wrong with it."""
        example = self._source.examples(number, number + 1)[0]
        pixels = self._pixels(example)
        return self._ready(example, content_hash(example, pixels), pixels)

    def has_one_picture_size(self, ready: Ready) -> bool:
        """Does every picture give inputs of one shape? Asked of two sizes, with the text of an example."""
        if "image" not in self._sourced.reads:
            return False
        from PIL import Image

        try:
            text = self._text(ready.example)
            other = [shapes_of(self._sourced.prepare(Image.new("RGB", size, "white"), text)) for size in ((64, 96), (200, 120))]
        except Exception:  # a processor that wants other pictures: then shapes are not known beforehand
            return False
        return all(shapes == shapes_of(ready.inputs) for shapes in other)

    @property
    def reads_text(self) -> bool:
        """Texts have lengths, so that shapes differ."""
        return "text" in self._sourced.reads

    def _pixels(self, example: Example) -> Pixels:
        image = {"image": self._source.pixels(example) if "image" in self._sourced.reads else None}
        return {**image, "mask": self._source.pixels(example, "mask")} if self._source.has_places else image

    def _ready(self, example: Example, hashed: str, pixels: Pixels) -> Ready:
        image = self._image(example, pixels["image"]) if "image" in self._sourced.reads else None
        text = self._text(example)
        return Ready(example, hashed, self._sourced.prepare(image, text), self._mask(example, pixels.get("mask"), image, text))

    def _text(self, example: Example) -> Any:
        if not self.reads_text:
            return None
        if not example.text:
            raise InputError("there is no text")
        return example.text if example.passage is None else (example.text, example.passage)

    def _image(self, example: Example, raw: bytes | None) -> Any:
        if raw is None:
            raise InputError("no image is named")
        return eight_bit(upright(read_image(io.BytesIO(raw), example.image or example.id)))[0]

    def _mask(self, example: Example, raw: bytes | None, image: Any, text: Any) -> Tensor | None:
        if image is None or (raw is None and not example.box):
            return None
        given = None if raw is None else eight_bit(upright(read_image(io.BytesIO(raw), f"the mask of {example.id}")))[0]
        drawn = drawn_box(example.box or "", image) if given is None else given
        if drawn.size != image.size:
            raise InputError(f"the mask is {drawn.width} x {drawn.height}; the image is {image.width} x {image.height}")
        try:
            return place_seen(image_only(self._sourced, text).preprocess, drawn)
        except InputError:
            return None  # a model whose inputs hold no picture (regions as features)


def by_shape(ready: Sequence[Ready]) -> Iterator[list[Ready]]:
    """Examples that can share a batch."""
    groups: dict[tuple[Any, ...], list[Ready]] = {}
    for one in ready:
        groups.setdefault(shapes_of(one.inputs), []).append(one)
    yield from groups.values()


def shapes_of(inputs: Any) -> tuple[Any, ...]:
    """What inputs must have in common to go into one batch: names, shapes, dtypes, and the values that are no tensors."""
    named = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs if isinstance(inputs, (tuple, list)) else (inputs,))
    return tuple((name, (tuple(v.shape), str(v.dtype)) if isinstance(v, Tensor) else repr(v)) for name, v in named)
