"""Methods side by side: a map each with its site, baseline, sum and error, and the error budgets as bars."""

from __future__ import annotations

from typing import Any

from zeroline.comparison import Comparison
from zeroline.report.figure import Picture
from zeroline.report.panels import aside, heat_of, over, photograph, short

# colours that colour-blind readers tell apart (Okabe & Ito 2008)
PARTS = {
    "truncation": "#0072B2",
    "pooling": "#E69F00",
    "smoothing": "#56B4E9",
    "rectification": "#D55E00",
    "normalisation": "#CC79A7",
    "quadrature": "#009E73",
    "discrete_gradient": "#F0E442",
    "rounding": "#000000",
    "unaccounted": "#999999",
}
_PER_LINE = 4


def figure(comparison: Comparison, picture: Picture, *, sample: int = 0) -> Any:
    """A ``matplotlib.figure.Figure``: the photograph and one panel per method, the budgets below."""
    from matplotlib.figure import Figure

    labels = comparison.labels
    lines = -(-(1 + len(labels)) // _PER_LINE)
    columns = -(-(1 + len(labels)) // lines)
    drawn = Figure(figsize=(3.1 * columns, 3.5 * lines + 0.45 * len(labels) + 1.6), dpi=120, facecolor="white", layout="constrained")
    drawn.suptitle(f"The {comparison.target[sample]} by {len(labels)} methods, each from its own baseline", fontsize=12, fontweight="bold")
    above, below = drawn.subfigures(2, 1, height_ratios=[3.5 * lines, 0.45 * len(labels) + 1.2], squeeze=False)[:, 0]
    axes = above.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    axes[0].axis("on")
    output = float(next(iter(comparison.members.values())).output[sample])
    photograph(axes[0], picture, f"x: f = {output:.3g}")
    for axis, label in zip(axes[1:], labels):
        axis.axis("on")
        one = comparison[label].sample(sample)
        share = "undefined" if one.relative_error is None else f"{float(one.relative_error[0]):.1%}"
        heat = heat_of(one, comparison.lies.get(label))
        words = (
            f"at {short(one.site, 34)}\nfrom {short(one.baseline, 34)}\nsum {float(one.total[0]):.3g} of difference"
            f" {float(one.difference[0]):.3g}\nerror {float(one.error[0]):+.2g} ({share})"
            f"{aside(float(one.total[0]), heat)}"
        )
        over(axis, picture, heat, label, words)
    _budgets(below.subplots(), comparison, sample)
    return drawn


def _budgets(axis: Any, comparison: Comparison, sample: int) -> None:
    """Parts of each error as shares of the difference, negative to the left, positive to the right, the error as a mark."""
    seen: set[str] = set()
    for row, (_, member) in enumerate(comparison.members.items()):
        one = member.sample(sample)
        scale = abs(float(one.difference[0])) or 1.0
        ends = [0.0, 0.0]
        for name, part in (one.budget or {"unaccounted": one.error}).items():
            size = float(part[0]) / scale
            if size:
                side = int(size > 0)
                axis.barh(row, size, left=ends[side], color=PARTS.get(name, "#999999"), label=None if name in seen else name, height=0.6)
                ends[side] += size
                seen.add(name)
        axis.plot([float(one.error[0]) / scale], [row], marker="D", markersize=4, color="black")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(comparison.labels)), comparison.labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("parts of the attribution error as shares of the difference (diamond: the error itself)", fontsize=8)
    if seen:
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
