"""The maps of records, for a column of their own: positions of a picture, one number each."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zeroline.attribution import Attribution
from zeroline.errors import InputError, SiteError, UsageError
from zeroline.maths.grids import as_map
from zeroline.model.inputs import Inputs
from zeroline.model.positions import positions_of
from zeroline.relevance import Relevance
from zeroline.report.figure import picture_part


def maps_of(model: nn.Module, inputs: Any, found: Any, grid: tuple[int, int] | None, prefix: int | None) -> Tensor | None:
    """The signed maps of a record [batch, rows, columns] in float32, or None where its values lie on no grid."""
    try:
        if isinstance(found, Relevance):
            stream = found.gridded()
            return found.grid(stream).float() if len(found.of(stream)) == len(found.output) else None
        if not isinstance(found, Attribution) or found.site.startswith("attention"):
            return None
        part = picture_part(found)
        if part.ndim not in (3, 4):
            return None
        lie = positions_of(model, Inputs.of(model, inputs), part, grid, prefix)
        return None if part.ndim == 3 and lie.grid is None else as_map(part, lie.grid, lie.prefix).float()
    except (SiteError, InputError, UsageError):
        return None
