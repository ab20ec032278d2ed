"""Targets of detectors: the class score of one detection, or one coordinate of its box.

Holds ``DetectionTarget``. It reads what Hugging Face's DETR family gives, ``logits`` [rows, queries, classes] and ``pred_boxes``
[rows, queries, 4] as (centre x, centre y, width, height) in shares of the image. Other detectors are read by a callable,
``zl.target.output(fn)``. Users find these as ``zl.target.detection`` and ``zl.target.box``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zeroline.errors import NotFoundError, TargetError

BEST = "top"
# a coordinate from (centre x, centre y, width, height), [rows, 4] -> [rows]
COORDINATES: dict[str, Callable[[Tensor], Tensor]] = {
    "cx": lambda b: b[:, 0],
    "cy": lambda b: b[:, 1],
    "width": lambda b: b[:, 2],
    "height": lambda b: b[:, 3],
    "left": lambda b: b[:, 0] - b[:, 2] / 2,
    "top": lambda b: b[:, 1] - b[:, 3] / 2,
    "right": lambda b: b[:, 0] + b[:, 2] / 2,
    "bottom": lambda b: b[:, 1] + b[:, 3] / 2,
}


@dataclass(frozen=True)
class DetectionTarget:
    """The logit of a class, or a coordinate, read at one query. ``queries`` and ``classes`` are [samples] once resolved."""

    index: int | str
    label: int | str = BEST
    coordinate: str | None = None
    queries: Tensor | None = None
    classes: Tensor | None = None
    names: tuple[str, ...] = ()

    def resolve(self, output: Any, labels: Mapping[str, int]) -> DetectionTarget:
        scores = _outputs(output)[0].detach()
        objects = _objects(scores, labels)
        queries = torch.tensor([self._query(row, scores[i], labels) for i, row in enumerate(objects)], device=scores.device)
        picked = objects[torch.arange(len(objects), device=scores.device), queries]
        classes = picked.argmax(-1) if self.label == BEST else torch.full_like(queries, self._class(labels, objects.shape[-1]))
        by_index = {index: name for name, index in reversed(list(labels.items()))}
        names = tuple(by_index.get(int(c), str(int(c))) for c in classes)
        return replace(self, queries=queries, classes=classes, names=names)

    def read(self, output: Any, samples: Tensor) -> Tensor:
        assert self.queries is not None
        assert self.classes is not None
        scores, boxes = _outputs(output)
        at = samples.to(scores.device)
        rows = torch.arange(len(samples), device=scores.device)
        if self.coordinate is not None:
            return COORDINATES[self.coordinate](boxes[rows, self.queries[at]])
        return scores[rows, self.queries[at], self.classes[at]]

    def describe(self, samples: int) -> tuple[str, ...]:
        assert self.queries is not None
        what = "logit of {name} at" if self.coordinate is None else f"{self.coordinate} of the box of {{name}} at"
        return tuple(f"{what.format(name=name)} detection {int(query)}" for name, query in zip(self.names, self.queries))

    def _query(self, objects: Tensor, scores: Tensor, labels: Mapping[str, int]) -> int:
        """The query number in one sample; an error where the model detects nothing there."""
        found = _detected(objects, scores)
        count = len(scores)
        listed = ", ".join(map(str, found)) or "none"
        if isinstance(self.index, str):
            if not found:
                raise TargetError(f"no detection: the model says 'no object' at all of its {count} queries")
            return max(found, key=lambda query: float(objects[query].max()))
        index = self.index
        if not 0 <= index < count:
            raise TargetError(f"detection {index} asked; the model has {count} queries: 0 to {count - 1}; detections: {listed}")
        if index not in found:
            share = float(scores[index].softmax(-1)[-1])
            raise TargetError(f"no detection at {index}: the model says 'no object' there ({share:.2f}); detections: {listed}")
        return index

    def _class(self, labels: Mapping[str, int], count: int) -> int:
        if isinstance(self.label, str):
            lower = {name.lower(): index for name, index in labels.items()}
            if self.label.lower() not in lower:
                raise NotFoundError.among("class", self.label, labels)
            return lower[self.label.lower()]
        if not 0 <= self.label < count:
            raise TargetError(f"class {self.label} asked; the detector has {count}: 0 to {count - 1}")
        return int(self.label)


def detection(index: int | str = BEST, label: int | str = BEST) -> DetectionTarget:
    """The class logit of one detection: a query number, or ``"top"``; of its own top class on x, or of ``label``."""
    return DetectionTarget(_known(index), label)


def box(index: int | str, coordinate: str) -> DetectionTarget:
    """A coordinate of one detection's box, in shares of the image: cx, cy, width, height, left, top, right or bottom."""
    if coordinate not in COORDINATES:
        raise NotFoundError.among("box coordinate", coordinate, COORDINATES)
    return DetectionTarget(_known(index), coordinate=coordinate)


def detections(output: Any, labels: Mapping[str, int], sample: int = 0) -> list[tuple[int, str]]:
    """What a detector finds in a sample: (query, class), the surest first."""
    scores = _outputs(output)[0][sample].detach()
    objects = _objects(scores[None], labels)[0]
    names = {index: name for name, index in reversed(list(labels.items()))}
    found = sorted(_detected(objects, scores), key=lambda query: -float(objects[query].max()))
    return [(query, names.get(int(objects[query].argmax()), str(int(objects[query].argmax())))) for query in found]


def _known(index: int | str) -> int | str:
    if index == BEST or (isinstance(index, int) and not isinstance(index, bool)):
        return index
    raise TargetError(f"detection {index!r} asked; give a query number, or 'top' for the one with the highest class score")


def _outputs(output: Any) -> tuple[Tensor, Tensor]:
    """(scores [rows, queries, classes], boxes [rows, queries, 4])."""
    fields = output if isinstance(output, Mapping) else {}
    scores, boxes = fields.get("logits"), fields.get("pred_boxes")
    if isinstance(scores, Tensor) and isinstance(boxes, Tensor) and scores.ndim == 3 and boxes.shape == (*scores.shape[:2], 4):
        return scores, boxes
    raise TargetError(
        f"a detection target reads logits [batch, queries, classes] and pred_boxes [batch, queries, 4]; the model gave"
        f" {type(output).__name__}; for other detectors give a callable: zl.target.output(fn)"
    )


def _objects(scores: Tensor, labels: Mapping[str, int]) -> Tensor:
    """Scores of real classes: the last column is DETR's 'no object' where there is one more than the model has labels."""
    has_none = bool(labels) and scores.shape[-1] == max(labels.values()) + 2
    return scores[..., :-1] if has_none else scores


def _detected(objects: Tensor, scores: Tensor) -> list[int]:
    """Queries whose top class is an object (all of them where the model has no 'no object')."""
    if objects.shape[-1] == scores.shape[-1]:
        return list(range(len(scores)))
    return (scores.argmax(-1) < objects.shape[-1]).nonzero().flatten().tolist()
