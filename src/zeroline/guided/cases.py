"""What is asked of a rewriting: the budget, and each picture with its classes, its pixel path and where it may change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import InputError, TargetError, UsageError, ZerolineError
from zeroline.guided.classifier import Classifier
from zeroline.guided.likeness import WINDOW
from zeroline.maths.budgets import LEVELS, whole_levels
from zeroline.methods.attention_relevance import attention_relevance
from zeroline.model.families import patch_size
from zeroline.model.inputs import placed
from zeroline.model.pictures import eight_bit
from zeroline.model.pixel_path import PixelPath, measured
from zeroline.relevance import Relevance
from zeroline.target import logit

ANY, SECOND = "any", "second"
DEFAULT_LINF = 4 / 255
CELLS = 8  # rows and columns to count changed pixels in, where the model has no patches


@dataclass(frozen=True)
class Asked:
    """A budget as asked; ``linf`` in whole levels of 1/255."""

    linf: float | None = None
    l2: float | None = None
    patches: int | None = None
    ssim: float | None = None

    @classmethod
    def checked(cls, linf: float | None, l2: float | None, patches: int | None, ssim: float | None, *, placed: bool = False) -> Asked:
        """The budget; L-infinity 4/255 where nothing is bounded, neither in size nor in place. Raises UsageError for a budget of nothing."""
        for name, value in (("linf", linf), ("l2", l2), ("patches", patches)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name}={value:g}: a budget of nothing changes nothing; give more than 0")
        if ssim is not None and not 0 < ssim < 1:
            raise UsageError(f"ssim={ssim:g} was asked; the least similarity lies between 0 and 1 (1 is the same picture)")
        if linf is None and l2 is None and ssim is None and patches is None and not placed:
            linf = DEFAULT_LINF
        if l2 is not None and l2 < (1 - 1e-6) / LEVELS:
            raise UsageError(f"l2={l2:.3g} is less than 1/255, one level of one channel: nothing that is saved could differ")
        if linf is not None:
            if linf > 1:
                raise UsageError(f"linf={linf:g}: pixels lie in 0..1; write {linf:g} levels as {linf:g}/255")
            if not whole_levels(linf):
                raise UsageError(f"linf={linf:.3g} is less than 1/255, one level of an 8-bit picture: nothing that is saved could differ")
            linf = whole_levels(linf) / LEVELS
        return cls(linf, l2, patches, ssim)

    @property
    def epsilon(self) -> float:
        """What ``smallest`` bisects: the L2 budget, else L-infinity."""
        return self.l2 or self.linf or 1.0

    def to_dict(self) -> dict[str, float]:
        """What was bounded."""
        return {name: float(value) for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Search:
    """How to look: see ``zeroline.rewrite``."""

    steps: int = 40
    restarts: int = 1
    lead: float = 0.0
    seed: int = 0
    smallest: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UsageError(f"{self.steps} steps and {self.restarts} restarts were asked; at least 1 of each")
        if not math.isfinite(self.lead) or self.lead < 0:
            raise UsageError(f"lead={self.lead:g} logits was asked; at least 0")


@dataclass(frozen=True, eq=False)
class Case:
    """One picture: ``note`` says how it was converted; ``to`` is -1 for any class; ``probabilities`` [classes] before; ``where`` it may change
    [1, height, width]; ``grid`` of the cells that changed pixels are counted in."""

    image: Any
    note: str
    own: int
    to: int
    probabilities: Tensor
    path: PixelPath
    where: Tensor
    grid: tuple[int, int]


class Cases:
    """Makes cases for one classifier and one budget; pictures of one size share a measured path."""

    def __init__(self, said: Classifier, asked: Asked) -> None:
        self.said, self.asked = said, asked
        self._paths: dict[tuple[int, int], PixelPath] = {}

    def of(self, image: Any, to: int | str, place: Tensor | None = None) -> Case:
        """Raises InputError and TargetError as ``zeroline.rewrite``."""
        image, note = eight_bit(image)
        least = max(WINDOW, *(patch_size(self.said.model) or (1, 1)))
        if min(image.size) < least:
            raise InputError(f"the picture is {image.width} x {image.height}; at least {least} x {least} pixels are needed (a patch, SSIM's window)")
        row = self.said.scores([image])[0]
        if len(row) < 2:
            raise TargetError("the model has one class; there is none to rewrite to")
        known = self._paths.get(image.size)
        path = measured(self.said.preprocess, image) if known is None else known.checked_on(self.said.preprocess, image)
        self._paths[image.size] = path
        own, wanted = int(row.argmax()), _class(self.said, row, to)
        grid = cells_of(self.said.model, path)
        where = self._where(image, path, grid, own, place)
        return Case(image, note, own, wanted, row.softmax(-1), path, where, grid)

    def _where(self, image: Any, path: PixelPath, grid: tuple[int, int], own: int, place: Tensor | None) -> Tensor:
        """Pixels that may change: bool [1, height, width]."""
        everywhere = torch.ones(1, image.height, image.width, dtype=torch.bool)
        if place is not None:
            place = torch.as_tensor(place).bool()
            if place.shape != everywhere.shape[1:]:
                raise InputError(f"where is {tuple(place.shape)}; the picture is {image.height} x {image.width}")
            if not bool(place.any()):
                raise InputError("where holds no pixel of the picture; nothing could be changed")
        if self.asked.patches is None:
            return everywhere if place is None else place[None]
        cells, count = path.cells(grid), grid[0] * grid[1]
        if self.asked.patches > count:
            raise UsageError(f"{self.asked.patches} patches were asked; the model has {grid[0]} x {grid[1]} = {count}")
        inside = None if place is None else torch.bincount(cells[place & (cells >= 0)], minlength=count).double()
        weights = _ranking(self.said, image, own, grid) if inside is None else inside
        best = weights.topk(self.asked.patches).indices
        return torch.isin(cells, best[weights[best] > 0])[None]


def cells_of(model: nn.Module, path: PixelPath) -> tuple[int, int]:
    """Rows and columns to count changed pixels in: the model's patches, else 8 x 8."""
    size, height, width = patch_size(model), *path.offset.shape[1:]
    return (CELLS, CELLS) if size is None else (max(1, height // size[0]), max(1, width // size[1]))


def relevance_of(said: Classifier, image: Any, target: int) -> Relevance | str:
    """Attention relevance of a picture for a class, or why there is none."""
    try:
        found: Relevance = attention_relevance(said.model, placed(said.model, said.preprocess(image)), target=target)
        found.grid()
    except ZerolineError as reason:
        return str(reason)
    return found


def _class(said: Classifier, row: Tensor, to: int | str) -> int:
    """The class asked for; -1 for any."""
    own = int(row.argmax())
    if to == ANY and ANY not in said.labels:
        return -1
    if to == SECOND and SECOND not in said.labels:
        return int(row.topk(2).indices[1])
    indices = logit(to).resolve(row[None], said.labels).indices
    assert indices is not None
    if int(indices[0, 0]) == own:
        raise TargetError(f"the model says {said.name(own)!r} of this picture already; ask for another class, or for 'second' or 'any'")
    return int(indices[0, 0])


def _ranking(said: Classifier, image: Any, own: int, grid: tuple[int, int]) -> Tensor:
    """Attention relevance of each patch for the present class."""
    found = relevance_of(said, image, own)
    if isinstance(found, str):
        raise UsageError(f"patches are ranked by attention relevance, which this model has none of ({found}); say where= they may lie")
    values = found.grid()[0].double().cpu()
    if tuple(values.shape) != grid:
        raise UsageError(
            f"attention relevance lies on {values.shape[0]} x {values.shape[1]} tokens, the patches on {grid[0]} x {grid[1]}; say where="
        )
    return values.flatten()
