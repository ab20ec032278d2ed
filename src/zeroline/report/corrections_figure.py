"""All corrections of the attention side by side: a map each, complete above, incomplete below, and how far they agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from zeroline.corrected import Corrections
from zeroline.report.figure import COLOURS, Picture
from zeroline.report.panels import over, photograph


def figure(found: Corrections, picture: Picture, *, sample: int = 0) -> Any:
    """A ``matplotlib.figure.Figure``: the photograph, the maps with their figures below, the agreement matrix."""
    from matplotlib.figure import Figure

    labels = list(found.members)
    columns = len(labels) // 2
    first = next(iter(found.members.values()))
    drawn = Figure(figsize=(2.6 * columns + 5.6, 6.6), dpi=120, facecolor="white", layout="constrained")
    drawn.suptitle(f"What attention finds for the {first.target[sample]}, by correction", fontsize=12, fontweight="bold")
    left, right = drawn.subfigures(1, 2, width_ratios=[2.6 * columns, 5.6], squeeze=False)[0]
    axes = left.subplots(2, columns, squeeze=False).flatten()
    for axis, label, row in zip(axes, labels, found.rows(sample)):
        heat = np.asarray(found.maps(label)[sample].double().cpu().numpy())
        words = "" if found.mask is None else f"inside {row[2]}, points at it: {row[3]}\nobject covered {row[4]}"
        over(axis, picture, heat, label, words)
    above, below = right.subplots(2, 1, height_ratios=[1, 1.5])
    photograph(above, picture, "image")
    _agreement(below, found, labels, sample)
    return drawn


def _agreement(axis: Any, found: Corrections, labels: list[str], sample: int) -> None:
    matrix = found.agreement()[sample].numpy()
    axis.imshow(matrix, cmap=COLOURS, vmin=-1, vmax=1)
    short = [label.replace(", ", "\n") for label in labels]
    axis.set_xticks(range(len(labels)), short, fontsize=5.5, rotation=45)
    axis.set_yticks(range(len(labels)), short, fontsize=5.5)
    for (i, j), rho in np.ndenumerate(matrix):
        axis.text(j, i, "-" if rho != rho else f"{rho:.1f}", ha="center", va="center", fontsize=6, color="white" if abs(rho) > 0.7 else "black")
    axis.set_title("agreement (rank correlation of the maps)", fontsize=9)
