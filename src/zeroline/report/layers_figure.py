"""One target at many layers: a strip of maps from early to late, and where the evidence concentrates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zeroline.comparison import Comparison
from zeroline.maths.evidence import chance, concentration, inside
from zeroline.report.figure import Picture
from zeroline.report.panels import aside, heat_of, over, photograph, short

SHARE = 0.1
_PER_LINE = 7


def evidence(comparison: Comparison, mask: Tensor | None = None, *, sample: int = 0) -> dict[str, tuple[float, ...]]:
    """Per site with positions: share of the positive values in the top 10 % of positions and, with a mask [height, width], the share
    inside it and what an even map would have there."""
    found = {}
    for label, one in comparison.members.items():
        heat = heat_of(one, comparison.lies.get(label), sample)
        if heat is None:
            continue
        maps = torch.from_numpy(heat)[None]
        figures = [float(concentration(maps, SHARE)[0])]
        if mask is not None:
            figures += [float(inside(maps, mask[None])[0]), float(chance(maps, mask[None])[0])]
        found[label] = tuple(figures)
    return found


def figure(comparison: Comparison, picture: Picture, mask: Tensor | None = None, *, sample: int = 0) -> Any:
    """A ``matplotlib.figure.Figure``: the photograph and one panel per site, the curve of concentration below."""
    from matplotlib.figure import Figure

    labels = comparison.labels
    lines = -(-(1 + len(labels)) // _PER_LINE)
    columns = -(-(1 + len(labels)) // lines)
    drawn = Figure(figsize=(1.95 * columns, 2.5 * lines + 3.2), dpi=130, facecolor="white", layout="constrained")
    first = next(iter(comparison.members.values())).sample(sample)
    drawn.suptitle(f"The {first.target[0]} from the {first.baseline} baseline, layer by layer", fontsize=12, fontweight="bold")
    above, below = drawn.subfigures(2, 1, height_ratios=[2.5 * lines, 2.6], squeeze=False)[:, 0]
    axes = above.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    axes[0].axis("on")
    photograph(axes[0], picture, f"x: f = {float(first.output[0]):.3g}")
    for axis, label in zip(axes[1:], labels):
        axis.axis("on")
        one = comparison[label].sample(sample)
        heat = heat_of(one, comparison.lies.get(label))
        local = "" if one.local_error is None else f"\nlocal error {float(one.local_error[0]):.2g}"
        words = f"difference {float(one.difference[0]):.3g}\nerror {float(one.error[0]):+.2g}{local}{aside(float(one.total[0]), heat)}"
        over(axis, picture, heat, short(label), words)
    _curve(below.subplots(), comparison, mask, sample)
    return drawn


def _curve(axis: Any, comparison: Comparison, mask: Tensor | None, sample: int) -> None:
    found = evidence(comparison, mask, sample=sample)
    places = range(len(found))
    values = np.array(list(found.values())) if found else np.zeros((0, 1))
    axis.plot(places, values[:, 0], marker="o", color="#2166ac", label=f"positive values in\nthe top {SHARE:.0%} of positions")
    if mask is not None and len(values):
        axis.plot(places, values[:, 1], marker="s", color="#b2182b", label="positive values\ninside the object")
        axis.plot(places, values[:, 2], color="#777777", linestyle=":", label="the object's share\nof positions")
    axis.set_xticks(places, [short(label, 18) for label in found], fontsize=7, rotation=20, ha="right")
    axis.set_ylim(0, 1.02)
    axis.set_title("where the evidence concentrates", fontsize=9)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
