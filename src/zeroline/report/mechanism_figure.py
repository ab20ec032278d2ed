"""A mechanism as one picture: streams as lanes, attentions in the order that they run, relevance and effect on each.

An attention stands in the lane of its queries. Homogenous ones are dots in their lane; heterogenous ones have an arrow from the lane that they
read. Size is the causal effect, colour the relevance; below are both numbers as bars, and the effect of every head.
"""

from __future__ import annotations

from textwrap import fill
from typing import Any

import numpy as np

from zeroline.circuit import HETEROGENOUS, Mechanism, shortest
from zeroline.report.panels import short

FLOW, FOR, AGAINST = "Reds", "#b2182b", "#2166ac"
NAMED = 40  # attentions whose names still fit


def figure(mechanism: Mechanism, *, sample: int = 0) -> Any:
    """A ``matplotlib.figure.Figure`` of one sample."""
    from matplotlib.figure import Figure

    one = mechanism.sample(sample)
    lanes = _lanes(one)
    count = len(one.edges)
    with_heads = bool(one.head_effect.isfinite().any())
    heights = [0.9 * len(lanes) + 0.6, 1.1, 1.1] + [0.16 * one.head_effect.shape[2] + 0.4] * with_heads
    drawn = Figure(figsize=(min(26.0, max(9.0, 2.6 + 0.42 * count)), 2.0 + sum(heights)), dpi=130, facecolor="white", layout="constrained")
    drawn.suptitle(f"What attention does for the {one.target[0]}", fontsize=12, fontweight="bold")
    axes = drawn.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    _graph(axes[0], one, lanes)
    _bars(axes[1], one.relevance[0].numpy(), "relevance", [FOR] * count)
    effects = one.effect[0].nan_to_num(0).numpy()
    _bars(axes[2], effects, "effect of cutting", [FOR if v >= 0 else AGAINST for v in effects])
    if with_heads:
        _heads(drawn, axes[3], one)
    names = shortest([edge.name for edge in one.edges])
    axes[-1].set_xticks(range(count), [short(names[edge.name], 34) if count <= NAMED else str(edge.number) for edge in one.edges])
    axes[-1].tick_params(axis="x", labelrotation=90, labelsize=7)
    axes[-1].set_xlim(-0.7, count - 0.3)
    drawn.supxlabel(fill(f"{one.reading()}. {caption(one)}", int(13 * drawn.get_figwidth())), fontsize=9)
    return drawn


def caption(one: Mechanism) -> str:
    """What was cut, what effects are in, and whether relevance predicts them."""
    said = [f"{name} absent: {baseline}" for name, baseline in one.baselines.items()]
    total, difference = float(one.effect[0].nansum()), float(one.difference[0])
    rho = float(one.rank_correlation()[0])
    words = "" if np.isnan(rho) else f"; Spearman's rho of relevance and size of effect {rho:+.2f}"
    return (
        f"Effect: f(x) - f with the attention's output as it is under the baseline of what it reads ({'; '.join(said)}), in units of the target;"
        f" effects add up to {total:.3g}, f(x) - f(baselines) is {difference:.3g}: cuts overlap{words}"
    )


def _lanes(one: Mechanism) -> list[str]:
    """Streams that an attention reads or writes, in the order of the record; joint ones ("a + b") are lanes of their own."""
    used = list(dict.fromkeys(name for edge in one.edges for name in (edge.keys, edge.queries)))
    known = [name for name, _ in one.streams]
    return sorted(used, key=lambda name: known.index(name) if name in known else len(known))


def _graph(axis: Any, one: Mechanism, lanes: list[str]) -> None:
    from matplotlib import colormaps

    flow, effect = one.relevance[0].numpy(), one.effect[0].nan_to_num(0).abs().numpy()
    colours, most = colormaps[FLOW], float(flow.max(initial=0)) or 1.0
    largest = float(effect.max(initial=0)) or 1.0
    tokens = dict(one.streams)
    for lane, name in enumerate(lanes):
        mine = [edge.number for edge in one.edges if name in (edge.queries, edge.keys)]
        axis.plot([min(mine) - 0.5, len(one.edges) - 0.5], [lane, lane], color="#cccccc", linewidth=1, zorder=0)
    for edge in one.edges:
        colour = colours(0.15 + 0.85 * float(flow[edge.number]) / most)
        size = 20 + 260 * float(effect[edge.number]) / largest
        y = lanes.index(edge.queries)
        across = edge.kind == HETEROGENOUS
        if across and edge.keys != edge.queries:
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 0.8 + 4 * float(effect[edge.number]) / largest, "shrinkA": 0, "shrinkB": 5}
            axis.annotate("", (edge.number, y), (edge.number, lanes.index(edge.keys)), arrowprops=arrow, zorder=2)
        axis.scatter([edge.number], [y], s=size, color=[colour], edgecolors="black", linewidths=0.6, marker="D" if across else "o", zorder=3)
    labels = [f"{short(name, 40)}\n({tokens[name]} tokens)" if name in tokens else short(name, 40).replace(" + ", " +\n") for name in lanes]
    axis.set_yticks(range(len(lanes)), labels, fontsize=8)
    axis.set_ylim(len(lanes) - 0.5, -0.5)
    axis.set_title("circles: homogenous, diamonds and arrows: heterogenous; size: effect, colour: relevance", fontsize=9, loc="left")
    for side in ("top", "right", "bottom", "left"):
        axis.spines[side].set_visible(False)


def _bars(axis: Any, values: Any, label: str, colours: list[str]) -> None:
    axis.bar(range(len(values)), values, 0.7, color=colours)
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set_ylabel(label, fontsize=8)
    axis.tick_params(labelsize=7)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _heads(drawn: Any, axis: Any, one: Mechanism) -> None:
    heads = one.head_effect[0].T.numpy()
    limit = float(np.nanmax(np.abs(heads))) or 1.0
    shown = axis.imshow(heads, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axis.set_ylabel("head", fontsize=8)
    axis.tick_params(axis="y", labelsize=7)
    drawn.colorbar(shown, ax=axis, fraction=0.02, pad=0.01).ax.tick_params(labelsize=7)
