"""One image, several texts: a map for each and for their contrasts, and the words of each text coloured."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zeroline.report.figure import Picture
from zeroline.report.panels import Heat, over, photograph
from zeroline.report.relevance_figure import Source, draw_words, lines_of

_PER_LINE = 4


@dataclass(frozen=True)
class Panel:
    """What one text gave: the map over the image, its figures in words, and the text's own words."""

    heat: Heat | None
    below: str
    words: Source | None = None


def figure(panels: Mapping[str, Panel], picture: Picture, title: str) -> Any:
    """A ``matplotlib.figure.Figure``: the photograph and one panel per text or contrast, the coloured words below."""
    from matplotlib.figure import Figure

    said: Sequence[tuple[str, Source]] = [(label, panel.words) for label, panel in panels.items() if panel.words is not None]
    lines = -(-(1 + len(panels)) // _PER_LINE)
    columns = -(-(1 + len(panels)) // lines)
    heights = [3.3 * lines, *(0.45 + 0.34 * lines_of(source) for _, source in said)]
    drawn = Figure(figsize=(max(3.1 * columns, 8.0), 0.7 + sum(heights)), dpi=120, facecolor="white", layout="constrained")
    drawn.suptitle(title, fontsize=12, fontweight="bold")
    rows = drawn.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = rows[0].subplots(lines, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    axes[0].axis("on")
    photograph(axes[0], picture, "image")
    for axis, (label, panel) in zip(axes[1:], panels.items()):
        axis.axis("on")
        over(axis, picture, panel.heat, textwrap.fill(label, 34), panel.below)
    for row, (label, source) in zip(rows[1:], said):
        draw_words(row, replace(source, title=f"{label}: {source.title}"))
    return drawn
