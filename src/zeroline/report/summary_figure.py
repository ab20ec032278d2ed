"""A run as one picture: how exact it is, where its evidence lies, and the mean map of each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from zeroline.report.figure import COLOURS, limit_of
from zeroline.report.panels import blank, short
from zeroline.summary import QUANTILES, Spread, Summary

_PER_ROW = 6
_MAPS = 60  # mean maps that are drawn: those of the classes with the most examples
_BLUE, _GREY = "#0072B2", "#999999"


def figure(found: Summary) -> Any:
    """A ``matplotlib.figure.Figure``: distributions above, mean maps below."""
    from matplotlib.figure import Figure

    maps = _shown(found)
    rows = -(-len(maps) // _PER_ROW)
    drawn = Figure(figsize=(11, 3.4 + 2 * rows), dpi=130, facecolor="white", layout="constrained")
    above, *below = drawn.subfigures(1 + bool(rows), 1, height_ratios=[3.0, 2.0 * rows][: 1 + bool(rows)], squeeze=False)[:, 0]
    left, right = above.subplots(1, 2, gridspec_kw={"width_ratios": [1.2, 1]})
    _errors(left, found)
    _spreads(right, found)
    if below:
        _maps(below[0].subplots(rows, _PER_ROW, squeeze=False), found, maps)
        if len(maps) < len(found.maps):
            below[0].supxlabel(f"{len(maps)} of {len(found.maps)} classes, those with the most examples; the record has all", fontsize=9)
    asked = found.settings
    question = f"{asked.get('method')} of {found.model}, target {asked.get('target')}, baseline {asked.get('baseline')}"
    drawn.suptitle(f"{found.examples} examples, {question}", fontsize=10)
    return drawn


def _shown(found: Summary) -> dict[str, Tensor]:
    """The mean maps of the classes with the most examples, in the order of the record."""
    most = set(sorted(found.maps, key=lambda name: -found.counts[name])[:_MAPS])
    return {name: map_ for name, map_ in found.maps.items() if name in most}


def _maps(axes: Any, found: Summary, maps: Mapping[str, Tensor]) -> None:
    """The mean map of each class, on one scale."""
    limit = limit_of(np.stack([map_.double().numpy() for map_ in maps.values()]))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, map_) in zip(axes.flat, maps.items()):
        axis.set_axis_on()
        blank(axis)
        axis.imshow(map_.numpy(), cmap=COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(f"{short(name)} (mean of {found.counts[name]})", fontsize=8)


def _errors(axis: Any, found: Summary) -> None:
    axis.set_title("how far the sum of the values is from the difference", fontsize=9)
    if found.histogram is None:
        blank(axis)
        unknown = "no example has a difference\nto compare its error with"
        said = unknown if "|attribution error|" in found.spreads else "relevance has no unit,\nso there is no attribution error"
        axis.text(0.5, 0.5, said, ha="center", va="center", fontsize=9, transform=axis.transAxes)
        return
    edges, counts = (np.array(side) for side in found.histogram)
    axis.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=_BLUE, edgecolor="white", linewidth=0.5)
    axis.set_xscale("log")
    decades = [edge for edge in edges if abs(np.log10(edge) - round(np.log10(edge))) < 1e-9]
    axis.set_xticks(decades, [f"{100 * edge:g}%" for edge in decades])
    axis.set_xlabel("|attribution error| / |difference| (outer bars: and beyond)", fontsize=8)
    axis.set_ylabel("examples", fontsize=8)
    axis.tick_params(labelsize=7)
    middle = found.spreads["|error| / |difference|"].median
    axis.axvline(max(middle, edges[0]), color="black", linewidth=1, linestyle="--")
    axis.text(max(middle, edges[0]), axis.get_ylim()[1] * 0.95, f" median {middle:.2%}", fontsize=8, va="top")


def _spreads(axis: Any, found: Summary) -> None:
    """Shares between 0 and 1 as boxes: 5 to 95 %, quartiles, median."""
    other = found.against.spreads if found.against is not None else {}
    names = ("map error", "evidence inside the object", "chance")
    shown = {name: found.spreads[name] for name in names if name in found.spreads}
    shown |= {f"{name}, two runs": spread for name, spread in other.items() if name != "|f(x) here - there|"}
    axis.set_title("over the examples: 5 to 95 %, quartiles, median", fontsize=9)
    if not shown:
        blank(axis)
        axis.text(0.5, 0.5, "no map errors, no masks or boxes,\nno other run", ha="center", va="center", fontsize=9, transform=axis.transAxes)
        return
    axis.bxp([_box(name, spread) for name, spread in reversed(shown.items())], orientation="horizontal", showfliers=False, patch_artist=True,
             boxprops={"facecolor": "#cfe3f2"}, medianprops={"color": _BLUE, "linewidth": 2})  # fmt: skip
    axis.tick_params(labelsize=8)


def _box(name: str, spread: Spread) -> dict[str, Any]:
    at = dict(zip(QUANTILES, spread.quantiles))
    return {"label": name, "whislo": at[0.05], "q1": at[0.25], "med": at[0.5], "q3": at[0.75], "whishi": at[0.95]}
