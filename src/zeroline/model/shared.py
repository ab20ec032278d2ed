"""Passes that several questions about one input share.

Holds ``sharing``, the block in which ``ask`` keeps what modules gave for an input and takes it up again for the next question about
the same input: for x at every site of ``zl.layers``, and for x0. Outside the block nothing is kept. What makes taking up sound is said in
``suffix``: outputs are copied, and the replayed model is compared with a full run for every question.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.model.identity import weights_version
from zeroline.model.inputs import Inputs
from zeroline.model.suffix import Key, Shapes


class Shared:
    """Module outputs by input, and the shapes of all module outputs at one row more (to find their batch dimensions)."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.version = model, weights_version(model)
        self._kept: list[tuple[Inputs, dict[Key, Any]]] = []
        self.longer: dict[object, Shapes] = {}

    def outputs(self, inputs: Inputs) -> dict[Key, Any]:
        """What modules gave for these inputs so far; what is put in is there for the next question."""
        for known, outputs in self._kept:
            if _same(known, inputs):
                return outputs
        self._kept.append((inputs, {}))
        return self._kept[-1][1]


_current: ContextVar[Shared | None] = ContextVar("shared passes", default=None)


@contextmanager
def sharing(model: nn.Module) -> Iterator[None]:
    """Within the block, questions about this model and equal inputs share what runs before their sites."""
    token = _current.set(Shared(model))
    try:
        yield
    finally:
        _current.reset(token)


def current(model: nn.Module) -> Shared | None:
    """What is shared for this model, if anything is and its weights are as they were."""
    found = _current.get()
    return found if found is not None and found.model is model and found.version == weights_version(model) else None


def _same(a: Inputs, b: Inputs) -> bool:
    return a.named.keys() == b.named.keys() and all(_equal(value, b.named[name]) for name, value in a.named.items())


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))
    return type(a) is type(b) and isinstance(a, (bool, int, float, str, type(None), torch.dtype)) and a == b
