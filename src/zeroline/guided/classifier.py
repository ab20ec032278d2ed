"""A model, its own preprocessing and its labels: what it says of pictures, and of pictures that lie on disk.

Everything runs on the model as it is; the caller holds it with ``untouched``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import GradientError, NonFiniteError
from zeroline.model.inputs import placed
from zeroline.model.pictures import picture
from zeroline.model.pixel_path import PixelPath
from zeroline.rewriting import write_png
from zeroline.target import class_scores

BATCH = 32


@dataclass(frozen=True, eq=False)
class Classifier:
    """``labels`` names to indices, as a model's configuration has them; empty where there are none."""

    model: nn.Module
    preprocess: Callable[[Any], Any]
    labels: Mapping[str, int]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def name(self, index: int) -> str:
        """A class as its label, or as a number."""
        return next((label for label, i in self.labels.items() if i == index), str(index))

    def scores(self, pictures: Sequence[Any]) -> Tensor:
        """Logits [pictures, classes] (float64, CPU) of PIL images through the model's own preprocessing."""
        found = []
        for start in range(0, len(pictures), BATCH):
            inputs = [self.preprocess(image) for image in pictures[start : start + BATCH]]
            with torch.no_grad():
                found += [class_scores(self._call(batch)).double().cpu() for batch in _joined(inputs)]
        return _finite(torch.cat(found))

    def scores_on_disk(self, levels: Tensor, folder: Path) -> Tensor:
        """Logits of pictures uint8 [rows, 3, height, width], each written as a PNG and read back first."""
        from PIL import Image

        read = []
        for number, one in enumerate(levels):
            path = folder / f"{number}.png"
            write_png(picture(one), path)
            with Image.open(path) as opened:
                read.append(opened.convert("RGB"))
        return self.scores(read)

    def through(self, path: PixelPath, pixels: Tensor) -> Tensor:
        """Logits [rows, classes] with a graph back to the pixels."""
        found = class_scores(self._call(path.inputs(pixels)))
        if pixels.requires_grad and not found.requires_grad:
            raise GradientError(
                "the model's scores have no gradient with respect to its image: something on the way is detached or not differentiable"
            )
        return _finite(found)

    def _call(self, inputs: Any) -> Any:
        given = placed(self.model, inputs)
        return self.model(**given) if isinstance(given, dict) else self.model(given)


def margin(scores: Tensor, to: Tensor, own: Tensor) -> Tensor:
    """How far a class leads: logit_to - max of the others [rows]; where ``to`` is -1, how far any class leads ``own``.

    >>> margin(torch.tensor([[3.0, 1.0, 2.0]] * 2), torch.tensor([2, -1]), torch.tensor([0, 0])).tolist()
    [-1.0, -1.0]
    """
    chosen = torch.where(to >= 0, to, own).to(scores.device)[:, None]
    mine = scores.gather(1, chosen)[:, 0]
    others = scores.scatter(1, chosen, -torch.inf).amax(1)
    return torch.where((to >= 0).to(scores.device), mine - others, others - mine)


def _joined(inputs: list[Any]) -> list[Any]:
    """Inputs of one picture each as one batch, where their shapes allow."""
    first = inputs[0]
    tensors = [list(one.values()) if isinstance(one, Mapping) else [one] for one in inputs]
    shapes = {tuple(v.shape if isinstance(v, Tensor) else None for v in one) for one in tensors}
    if len(shapes) > 1:
        return inputs
    if isinstance(first, Tensor):
        return [torch.cat(inputs)]
    return [{name: torch.cat([one[name] for one in inputs]) if isinstance(value, Tensor) else value for name, value in first.items()}]


def _finite(scores: Tensor) -> Tensor:
    if not bool(scores.isfinite().all()):
        raise NonFiniteError(f"the model's scores hold NaN or infinity ({int((~scores.isfinite()).sum())} of {scores.numel()})")
    return scores
