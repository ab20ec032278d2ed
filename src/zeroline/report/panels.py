"""Panels that several figures share: a photograph, and a map laid over it.

Maps of any grid are resampled to the photograph for display only; the records keep their own shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeroline.attribution import Attribution
from zeroline.errors import SiteError
from zeroline.maths.grids import as_map
from zeroline.relevance import Tokens
from zeroline.report.figure import Picture, View, limit_of, overlay, picture_part

Heat = NDArray[np.float64]


def heat_of(one: Attribution, lie: Tokens | None, sample: int = 0) -> Heat | None:
    """The signed map of a record [rows, columns], or None where its values have no positions on a grid."""
    part = picture_part(one)[sample : sample + 1].double().cpu()
    grid = None if lie is None else lie.grid
    if part.ndim == 3 and grid is None:
        return None
    try:
        return np.asarray(as_map(part, grid, None if lie is None else lie.prefix)[0].numpy())
    except SiteError:
        return None


def photograph(axis: Any, picture: Picture | None, title: str) -> None:
    """A picture, or grey where there is none."""
    blank(axis)
    axis.set_title(title, fontsize=8)
    if picture is None:
        axis.set_facecolor("#eeeeee")
        axis.set_aspect("equal")
        axis.text(0.5, 0.5, "(features:\nno picture)", ha="center", va="center", fontsize=8, transform=axis.transAxes)
    else:
        axis.imshow(picture)


def over(axis: Any, picture: Picture, heat: Heat | None, title: str, below: str) -> None:
    """A map over the photograph, or a word that there is none."""
    blank(axis)
    axis.set_title(title, fontsize=8)
    axis.set_xlabel(below, fontsize=7)
    if heat is None:
        axis.set_aspect("equal")
        axis.text(0.5, 0.5, "values that lie\non no grid", ha="center", va="center", fontsize=8, transform=axis.transAxes)
    else:
        axis.imshow(overlay(View(picture, None, heat, limit_of(heat))))


def aside(total: float, heat: Heat | None) -> str:
    """What the map does not show, as a line of its own: values on class and register tokens, where they are more than rounding."""
    rest = 0.0 if heat is None else total - float(heat.sum())
    return f"\n{rest:+.2g} on no patch" if abs(rest) > 1e-3 * max(abs(total), 1e-12) else ""


def blank(axis: Any) -> None:
    """No ticks."""
    axis.set_xticks([])
    axis.set_yticks([])


def begin(name: str, most: int) -> str:
    """A name that fits: its beginning."""
    return name if len(name) <= most else f"{name[: most - 3]}..."


def short(name: str, most: int = 24) -> str:
    """A name that fits above a panel: its end, which tells sites apart."""
    return name if len(name) <= most else f"...{name[3 - most :]}"
