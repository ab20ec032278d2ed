"""Both pictures of a rewriting, their difference made visible, what the model says of each, and what it looks at in each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from zeroline.report.figure import Picture
from zeroline.report.panels import blank, over
from zeroline.rewriting import AFTER, BEFORE, Rewriting, amount

_BLUE, _RED = "#0072B2", "#D55E00"
_STEEPEST = 64  # times that a difference is drawn at most


def figure(one: Rewriting) -> Any:
    """A ``matplotlib.figure.Figure``: pictures and difference, then probabilities; below, attention relevance where there is any."""
    from matplotlib.figure import Figure

    first = ["original", "rewritten", "difference", "probability"]
    panels: list[Any] = [first, [BEFORE, AFTER, "handling", "handling"]] if one.relevance else [[*first, "handling"]]
    drawn = Figure(figsize=(13.2 if one.relevance else 16.2, 3.9 * len(panels)), dpi=130, facecolor="white", layout="constrained")
    outcome = "is" if one.success else f"is not, within the budget, {one.to} but"
    drawn.suptitle(f"{one.own} -> {one.to}: the saved picture {outcome} {one.answer} to the model", fontsize=13, fontweight="bold")
    axes = drawn.subplot_mosaic(panels)
    pictures = {BEFORE: _picture(one.original), AFTER: _picture(one.rewritten)}
    decibels = "unchanged" if math.isinf(one.psnr) else f"PSNR {one.psnr:.1f} dB"
    words = {
        "original": ("original", BEFORE, f"p({one.own}) = {one.probabilities[BEFORE]['own']:.3f}"),
        "rewritten": ("rewritten, as saved", AFTER, f"p({one.to}) = {one.probabilities[AFTER]['to']:.3f}; {decibels}, SSIM {one.ssim:.4f}"),
    }
    for name, (title, when, below) in words.items():
        blank(axes[name])
        axes[name].imshow(pictures[when], interpolation="nearest")
        axes[name].set_title(title, fontsize=11)
        axes[name].set_xlabel(below, fontsize=9)
    _difference(axes["difference"], one)
    _probabilities(axes["probability"], one)
    _survival(axes["handling"], one)
    for when, relevance in one.relevance.items():
        heat = np.asarray(relevance.grid()[0].double().cpu().numpy())
        over(axes[when], pictures[when], heat, f"attention relevance {when}: {relevance.target[0]}", f"f = {float(relevance.output[0]):.3g}")
    return drawn


def _difference(axis: Any, one: Rewriting) -> None:
    """Grey where nothing changed; as many times the change as fits."""
    blank(axis)
    largest = int(one.difference.abs().max())
    times = max(1, min(_STEEPEST, 127 // max(largest, 1)))
    axis.imshow(np.clip(0.5 + times * one.difference.permute(1, 2, 0).numpy() / 255, 0, 1), interpolation="nearest")
    axis.set_title(f"difference x {times}", fontsize=11)
    axis.set_xlabel(f"L-infinity {amount('linf', one.linf)}, L2 {one.l2:.3g}; {one.touched} of {one.grid[0]} x {one.grid[1]} cells", fontsize=9)


def _probabilities(axis: Any, one: Rewriting) -> None:
    names, places = [one.own, one.to], np.arange(2)
    for offset, when, colour in ((-0.2, BEFORE, _BLUE), (0.2, AFTER, _RED)):
        values = [one.probabilities[when][which] for which in ("own", "to")]
        bars = axis.barh(places + offset, values, 0.38, color=colour, label=when)
        axis.bar_label(bars, [f"{value:.3f}" for value in values], fontsize=8, padding=2)
    axis.set_yticks(places, names)
    axis.set_xlim(0, 1.18)
    axis.invert_yaxis()
    axis.set_title("probability", fontsize=11)
    axis.legend(fontsize=8, loc="lower right")


def _survival(axis: Any, one: Rewriting) -> None:
    """What the model says after ordinary handling, as a table."""
    axis.axis("off")
    axis.set_title("after ordinary handling", fontsize=11)
    rows = [[name, kept.original, kept.rewritten] for name, kept in one.survival.items()]
    if rows:
        drawn = axis.table(rows, colLabels=["", "original", "rewritten"], loc="upper center", cellLoc="left", colWidths=[0.44, 0.28, 0.28])
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(9)
        drawn.scale(1, 1.5)


def _picture(levels: Tensor) -> Picture:
    return np.asarray(levels.permute(1, 2, 0).float().div(255).numpy())
