"""How many pictures of a set a budget rewrites, and in which cells the change sits: a curve and a map per model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zeroline.report.panels import blank
from zeroline.thresholds import Robustness

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = "osD^vP"


def figure(found: Sequence[Robustness]) -> Any:
    """A ``matplotlib.figure.Figure``: curves with 95 % bands first, then a map of mean fragility per model."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(5.4 + 3.4 * len(found), 4.2), dpi=130, facecolor="white", layout="constrained")
    axes = drawn.subplots(1, 1 + len(found), squeeze=False, gridspec_kw={"width_ratios": [1.5] + [1] * len(found)})[0]
    scale = 255 if found[0].norm == "linf" else 1
    for one, colour, mark in zip(found, _COLOURS * len(found), _MARKS * len(found)):
        curve = one.curve()
        at = [point["epsilon"] * scale for point in curve]
        label = f"{one.model} ({len(one.names)} pictures)"
        axes[0].plot(at, [point["share"] for point in curve], color=colour, marker=mark, markersize=4, label=label)
        axes[0].fill_between(at, [point["low"] for point in curve], [point["high"] for point in curve], color=colour, alpha=0.18, linewidth=0)
    axes[0].set_ylim(-0.02, 1.02)
    axes[0].set_xlabel("budget: " + ("L-infinity, levels of 1/255" if scale == 255 else "L2, pixels in 0..1"), fontsize=9)
    axes[0].set_ylabel("share of the pictures rewritten", fontsize=9)
    axes[0].set_title("success by budget, with 95 % intervals", fontsize=11)
    axes[0].legend(fontsize=8, loc="lower right")
    for axis, one in zip(axes[1:], found):
        _map(drawn, axis, one)
    return drawn


def _map(drawn: Any, axis: Any, one: Robustness) -> None:
    blank(axis)
    axis.set_title(f"{one.model}: fragile cells", fontsize=11)
    if not bool(one.success.any()):
        axis.set_aspect("equal")
        axis.text(0.5, 0.5, "no picture was\nrewritten", ha="center", va="center", fontsize=9, transform=axis.transAxes)
        return
    heat = np.asarray(one.fragile().numpy())
    shown = axis.imshow(heat, cmap="viridis", interpolation="nearest")
    bar = drawn.colorbar(shown, ax=axis, fraction=0.046, pad=0.03)
    bar.ax.tick_params(labelsize=7)
    together = float(one.additivity()[one.success].median())
    axis.set_xlabel(f"part of the gain that a cell brings alone\n(mean; all cells of a picture together: median {together:.0%})", fontsize=8)
