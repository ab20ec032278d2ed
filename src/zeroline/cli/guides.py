"""Guides and masks on the command line: a mask image, a box, or a saved explanation, as weights for the patches of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from zeroline.errors import UsageError
from zeroline.model.inputs import Inputs
from zeroline.model.loading import Loaded
from zeroline.model.trace import trace
from zeroline.relevance import Relevance
from zeroline.spelling.sources import open_mask


def read_guide(text: str | None, loaded: Loaded, inputs: Any, image: Any, grid: tuple[int, int] | None) -> Tensor | None:
    """Weights [rows, columns] in 0..1: the share of each patch inside a mask (image file) or box (LEFT,TOP,RIGHT,BOTTOM), or a saved
    relevance divided by its largest value, negative values 0."""
    if text is None:
        return None
    if text.endswith(".safetensors"):
        known = Relevance.load(text).grid()[0].double().clamp(min=0)
        if not float(known.max()) > 0:
            raise UsageError(f"the guide {text!r} has no positive relevance on the patches")
        return known / known.max()
    path = Path(text)
    where = open_mask(loaded, path if path.suffix else None, None if path.suffix else text, image)
    assert where is not None
    return adaptive_avg_pool2d(where[None, None].double(), grid or grid_of_model(loaded.model, inputs))[0, 0]


def grid_of_model(model: Any, inputs: Any) -> tuple[int, int]:
    """Rows and columns of the one stream that lies on a grid."""
    found = [stream.grid for stream in trace(model, Inputs.of(model, inputs).rows(torch.tensor([0]))).streams if stream.grid is not None]
    if len(found) != 1:
        raise UsageError(f"{len(found)} streams of the model lie on a grid; give --grid ROWSxCOLUMNS")
    return found[0]
