"""Captum's ``target``: which element of each sample's output is explained.

Holds ``Selected``, the target that an int, a tuple, a list or a tensor of them means. A class by its name, or a contrast, is
``zl.target``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zeroline.errors import TargetError
from zeroline.target import logits

Index = tuple[int | slice, ...]
Given = int | tuple[Any, ...] | list[Any] | Tensor | None


@dataclass(frozen=True)
class Selected:
    """``output[sample, *index]``: one index for all samples (``common``), or one each (``each``).

    An empty ``common`` index is Captum's None: the output is one number per sample. ``names`` [samples] once resolved.
    """

    common: Index | None
    each: tuple[tuple[int, ...], ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, target: Given) -> Selected:
        """The target that Captum's argument means. Raises TargetError for what it does not take."""
        if target is None:
            return cls(())
        if isinstance(target, Tensor):
            if target.is_floating_point() or (target.ndim > 1 and target.numel() != 1):
                raise TargetError(
                    f"a target of shape {tuple(target.shape)} and {target.dtype} was given; whole numbers, one for all or one per sample"
                )
            return cls((int(target),)) if target.numel() == 1 else cls(None, tuple((int(i),) for i in target.tolist()))
        if isinstance(target, int):
            return cls((target,))
        if isinstance(target, tuple):
            return cls(target)
        if isinstance(target, list) and target and all(isinstance(one, (int, tuple)) for one in target):
            return cls(None, tuple(one if isinstance(one, tuple) else (one,) for one in target))
        raise TargetError(f"target={target!r} was given; possible: None, an int, a tuple, a tensor of ints, or a list of ints or tuples")

    def resolve(self, output: Any, labels: Mapping[str, int]) -> Selected:
        scores = _scores(output)
        rows = scores.shape[0]
        if self.common is None and len(self.each) != rows:
            raise TargetError(f"{len(self.each)} targets were given for a batch of {rows}; give one, or one per sample")
        for index in {self.common} if self.common is not None else set(self.each):
            self._check(index, scores)
        by_index = {index: name for name, index in labels.items()} if scores.ndim == 2 else {}
        names = tuple(_name(self.each[row] if self.common is None else self.common, by_index) for row in range(rows))
        return Selected(self.common, self.each, names)

    def read(self, output: Any, samples: Tensor) -> Tensor:
        scores = _scores(output)
        if scores.ndim == 0 or len(scores) != len(samples):
            raise TargetError(f"forward_func gave {tuple(scores.shape)} for {len(samples)} rows; it must give one row for each")
        if self.common is not None:
            found = scores[(slice(None), *self.common)]
        else:
            places = torch.tensor([self.each[int(sample)] for sample in samples], device=scores.device).unbind(1)
            found = scores[(torch.arange(len(scores), device=scores.device), *places)]
        return found.reshape(len(samples), -1)[:, 0] if found.numel() == len(samples) else found

    def describe(self, samples: int) -> tuple[str, ...]:
        return self.names

    def _check(self, index: Index, scores: Tensor) -> None:
        sizes = scores.shape[1:]
        possible = f"forward_func gives {tuple(sizes)} per sample"
        if len(index) > len(sizes):
            raise TargetError(f"target {_plain(index)} was asked; {possible}")
        for number, size in zip(index, sizes):
            if isinstance(number, int) and not -size <= number < size:
                raise TargetError(f"target {_plain(index)} was asked; {possible}")
        left = scores[(slice(None), *index)][:1]
        if left.numel() != 1:
            raise TargetError(f"target {_plain(index)} leaves {left.numel()} numbers per sample; {possible}; name one of them")


def _scores(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else logits(output)


def _plain(index: Index) -> str:
    return "None" if not index else str(index[0]) if len(index) == 1 else str(index)


def _name(index: Index, labels: Mapping[Any, str]) -> str:
    if not index:
        return "the output"
    label = labels.get(index[0]) if len(index) == 1 else None
    return f"output {_plain(index)}" + (f" ({label})" if label is not None and label != _plain(index) else "")
