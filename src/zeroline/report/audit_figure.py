"""Baselines in a row as the model sees them, what it believes on each, and the verdict in words."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import torch

from zeroline.audit import BaselineAudit
from zeroline.report.figure import Picture
from zeroline.report.panels import begin, photograph

_BARS = 3
_PER_LINE = 6


def figure(audit: BaselineAudit, picture: Picture | None, pictures: Mapping[str, Picture | None], *, sample: int = 0) -> Any:
    """A ``matplotlib.figure.Figure``: x, then each baseline (``pictures`` by name), its top classes below."""
    from matplotlib.figure import Figure

    names = list(audit.baselines)
    lines = -(-(1 + len(names)) // _PER_LINE)
    columns = -(-(1 + len(names)) // lines)
    drawn = Figure(figsize=(2.4 * columns, 1.1 + 3.9 * lines), dpi=120, facecolor="white", layout="constrained")
    drawn.suptitle(f"What the model believes on each baseline ({audit.target[sample]})", fontsize=12, fontweight="bold")
    axes = drawn.subplots(2 * lines, columns, squeeze=False, height_ratios=[2.2, 1] * lines)
    for axis in axes.flatten():
        axis.axis("off")
    cells = [(audit.target[sample], None), *((name, name) for name in names)]
    best, why = audit.advice(sample)
    for place, (title, name) in enumerate(cells):
        above, below = axes[2 * (place // columns), place % columns], axes[2 * (place // columns) + 1, place % columns]
        above.axis("on")
        below.axis("on")
        if name is None:
            photograph(above, picture, f"image x\nf = {float(audit.output[sample]):.3g}")
            bars(below, audit, audit.own[sample], "the model's own answer")
            continue
        marked = f"{begin(title, 34)} (advised)" if name == best else begin(title, 42)
        photograph(above, pictures.get(name), f"{textwrap.fill(marked, 28)}\nf = {float(audit[name].output[sample]):.3g}")
        bars(below, audit, audit[name].probabilities[sample], audit.verdict(name, sample))
    failed = "".join(f"\n{name}: not to be had" for name in audit.failures)
    drawn.supxlabel(textwrap.fill(f"advice: {best or 'none of these'}: {why}", 26 * columns) + failed, fontsize=9)
    return drawn


def bars(axis: Any, audit: BaselineAudit, probabilities: torch.Tensor, words: str) -> None:
    """The largest probabilities as bars, the verdict below."""
    top = probabilities.topk(min(_BARS, len(probabilities)))
    labels = [begin(audit.classes[int(i)], 14) for i in top.indices]
    axis.barh(range(len(labels)), top.values.tolist(), color="#4393c3")
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.axvline(1 / len(probabilities), color="#777777", linewidth=0.8, linestyle=":")
    axis.tick_params(axis="x", labelsize=6)
    axis.set_xlabel(textwrap.fill(words, 30), fontsize=7)
