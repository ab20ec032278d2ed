"""Logic as one picture, the form of an upset plot: a bar per dividend, dots below it that say whose, a sentence on top.

Where a picture is given, the players that are regions of it are outlined on it. With ``instead`` every dividend has a second bar.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeroline.maths.coalitions import members
from zeroline.reasoning import Logic
from zeroline.report.figure import Picture
from zeroline.report.panels import begin, blank

MOST = 14  # dividends that are drawn
NAME, ASKED, READ = 28, 72, 300  # letters of a player's name, of a question, of a reading
FOR, AGAINST, OTHER = "#b2182b", "#2166ac", "#9a9a9a"
Places = Mapping[str, NDArray[np.bool_]]


def figure(logic: Logic, *, sample: int = 0, picture: Picture | None = None, places: Places | None = None, asked: str = "", instead: str = "") -> Any:
    """A ``matplotlib.figure.Figure``. ``places``: player -> bool [height, width] on the picture; ``asked`` and ``instead`` name the two inputs."""
    from matplotlib.figure import Figure

    one = logic.sample(sample)
    drawn = Figure(figsize=(12.5, 3.6 + 0.3 * len(one.players)), dpi=130, facecolor="white", layout="constrained")
    drawn.suptitle(fill(begin(one.reading[0], READ), 100), fontsize=13, fontweight="bold")
    with_picture = picture is not None and bool(places)
    columns = ([2.2] if with_picture else []) + [1.6, 6]
    grid = drawn.add_gridspec(2, len(columns), width_ratios=columns, height_ratios=(3.2, 0.3 * len(one.players) + 0.3))
    if with_picture and picture is not None and places is not None:
        _regions(drawn.add_subplot(grid[:, 0]), picture, places, asked)
    bars, dots = drawn.add_subplot(grid[0, -1]), drawn.add_subplot(grid[1, -1])
    shown = _largest(one)
    _bars(bars, one, shown, asked, instead)
    _dots(dots, one, shown)
    _shapley(drawn.add_subplot(grid[1, -2]), one)
    drawn.supxlabel(fill(begin(caption(one), 2 * READ), 150), fontsize=9)
    return drawn


def caption(one: Logic) -> str:
    """What the dividends add up to, and how a coalition counts as true."""
    total, difference = float(one.total[0]), float(one.difference[0])
    more = "" if one.exact else f"; {len(one.players)} players: singles and pairs are exact, Shapley values estimated from {one.orders} orders (95 %)"
    return (
        f"{one.target[0]}: dividends add up to {total:.4g}; f(all) - f(none) = {float(one.value[0]):.4g} - {float(one.baseline_value[0]):.4g} = "
        f"{difference:.4g}; attribution error {total - difference:+.2g}; true where {one.threshold}; {one.evaluations} evaluations{more}"
    )


def _largest(one: Logic) -> list[int]:
    """The coalitions with the largest dividends (of the two games, where there are two)."""
    size = {c: abs(float(d[0])) for c, d in one._dividends.items()}
    if one.instead is not None:
        size = {c: max(s, abs(float(one.instead._dividends[c][0]))) for c, s in size.items()}
    return sorted(size, key=lambda c: -size[c])[:MOST]


def _bars(axis: Any, one: Logic, shown: list[int], asked: str, instead: str) -> None:
    values = [float(one._dividends[c][0]) for c in shown]
    place = np.arange(len(shown))
    width = 0.7 if one.instead is None else 0.38
    shift = 0.0 if one.instead is None else -0.2
    colours = [FOR if v >= 0 else AGAINST for v in values]
    axis.bar(place + shift, values, width, color=colours)
    if one.instead is not None:
        from matplotlib.patches import Patch

        other = [float(one.instead._dividends[c][0]) for c in shown]
        axis.bar(place + 0.2, other, width, color=OTHER)
        axis.legend(
            handles=[Patch(color=FOR, label=begin(asked, ASKED) or "asked"), Patch(color=OTHER, label=begin(instead, ASKED) or "instead")],
            fontsize=8,
            frameon=False,
        )
    if len(shown) <= 8 and one.instead is None:
        for x, value in zip(place, values):
            axis.annotate(f"{value:+.2g}", (x, value), ha="center", va="bottom" if value >= 0 else "top", fontsize=8)
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set_xlim(-0.6, len(shown) - 0.4)
    axis.set_xticks([])
    axis.margins(y=0.12)
    axis.set_ylabel("dividend (units of the target)", fontsize=8)
    left = len(one._dividends) - len(shown)
    rest = sum(abs(float(d[0])) for c, d in one._dividends.items() if c not in shown)
    axis.set_title(f"the {len(shown)} largest dividends" + (f" ({left} more, {rest:.2g} in size together)" if left else ""), fontsize=9, loc="left")
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


def _dots(axis: Any, one: Logic, shown: list[int]) -> None:
    for row in range(len(one.players)):
        axis.axhspan(row - 0.5, row + 0.5, color="#f3f3f3" if row % 2 else "white", zorder=0)
    for x, coalition in enumerate(shown):
        there = members(coalition)
        axis.scatter([x] * len(one.players), range(len(one.players)), color="#d9d9d9", s=28, zorder=2)
        axis.scatter([x] * len(there), there, color="#222222", s=40, zorder=3)
        axis.plot([x, x], [min(there), max(there)], color="#222222", linewidth=1.6, zorder=3)
    axis.set_ylim(len(one.players) - 0.5, -0.5)
    axis.set_xlim(-0.6, len(shown) - 0.4)
    axis.set_yticks([])
    axis.set_xticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _shapley(axis: Any, one: Logic) -> None:
    values = one.shapley[0].tolist()
    spread = None if one.half_width is None or one.exact else one.half_width[0].tolist()
    spread = None if spread is None else [0.0 if np.isinf(w) else w for w in spread]
    axis.barh(range(len(values)), values, 0.6, xerr=spread, color=[FOR if v >= 0 else AGAINST for v in values], error_kw={"linewidth": 0.8})
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.set_yticks(range(len(values)), [begin(name, NAME) for name in one.players], fontsize=9)
    axis.tick_params(axis="x", labelsize=7)
    axis.set_xlabel("Shapley value", fontsize=8)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _regions(axis: Any, picture: Picture, places: Places, asked: str) -> None:
    from matplotlib import colormaps

    blank(axis)
    axis.imshow(picture)
    height, width = picture.shape[:2]
    colours = colormaps["tab10"]
    for number, (name, place) in enumerate(places.items()):
        colour = colours(number % 10)
        rows_, columns_ = (np.arange(n) * own // n for n, own in zip((height, width), place.shape))
        grown = np.asarray(place, dtype=float)[rows_][:, columns_]
        grown = np.pad(grown, 1)  # so that an outline closes at the border
        axis.contour(np.arange(-1, grown.shape[1] - 1), np.arange(-1, grown.shape[0] - 1), grown, [0.5], colors=[colour], linewidths=2)
        rows, columns = np.nonzero(grown[1:-1, 1:-1])
        label = {"facecolor": colour, "edgecolor": "none", "pad": 1.5}
        axis.text(columns.min(), rows.min(), begin(name, NAME), color="white", fontsize=8, va="top", ha="left", bbox=label)
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    axis.set_title(fill(begin(asked, ASKED), 36), fontsize=9)
