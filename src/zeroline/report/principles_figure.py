"""The two principles of several methods side by side: the implied model, where the maps point, and what shuffled weights leave."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from itertools import cycle
from typing import Any

from zeroline.principles import Principles

# colours that colour-blind readers tell apart (Okabe & Ito 2008)
LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
_TOP = 1.2  # of the bars' axis: room for the legend above 1
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def figure(reports: Mapping[str, Principles]) -> Any:
    """A ``matplotlib.figure.Figure`` with three panels, one colour and mark per method, and the verdicts below."""
    from matplotlib.figure import Figure

    said = [textwrap.fill(f"{name}: {_verdict(report)}", 200, subsequent_indent="    ") for name, report in reports.items()]
    height = 0.3 + 0.17 * sum(line.count("\n") + 1 for line in said)
    drawn = Figure(figsize=(13, 4.6 + height), dpi=120, facecolor="white", layout="constrained")
    first = next(iter(reports.values()))
    drawn.suptitle(f"Two principles, {len(first.label)} examples, {first.target}", fontsize=12, fontweight="bold")
    above, below = drawn.subfigures(2, 1, height_ratios=[4.6, height], squeeze=False)[:, 0]
    one, two, three = above.subplots(1, 3)
    _implied(one, reports)
    _pointing(two, reports)
    _shuffled(three, reports)
    text = below.subplots()
    text.axis("off")
    text.text(0, 1, "\n".join(said), va="top", fontsize=8, transform=text.transAxes)
    return drawn


def _verdict(report: Principles) -> str:
    words = [f"principle {n} {'holds' if holds else 'does not hold'}" for n, (holds, _) in ((1, report.original_model()), (2, report.performance()))]
    return f"{words[0]}; {words[1]}: {report.performance()[1]}"


def _implied(axis: Any, reports: Mapping[str, Principles]) -> None:
    """Same answer and accuracy of the implied models; the original's accuracy as a line."""
    first = next(iter(reports.values()))
    axis.axhline(first.accuracy, color="#777777", linestyle=":", linewidth=1)
    bars = [(f"{_folded(name)}\n{way}", r.agreement(way), r.implied_accuracy(way)) for name, r in reports.items() for way in r.implied]
    if not bars:
        axis.text(0.5, 0.5, "nothing is substituted:\nno implied model", ha="center", va="center", fontsize=9, transform=axis.transAxes)
    places = range(len(bars))
    axis.bar([p - 0.2 for p in places], [b[1] for b in bars], 0.38, color=LINES[0], label="same answer as the original")
    axis.bar([p + 0.2 for p in places], [b[2] for b in bars], 0.38, color=LINES[1], label="accuracy")
    axis.set_xticks(list(places), [b[0] for b in bars], fontsize=6)
    axis.set_ylim(0, _TOP)
    axis.set_title("1: the model that the explanation implies\n(dotted: accuracy of the original)", fontsize=9)
    if bars:
        axis.legend(fontsize=7, loc="upper right", ncols=2)


def _pointing(axis: Any, reports: Mapping[str, Principles]) -> None:
    """How often the map points at the object, where the model is right and where it is wrong."""
    first = next(iter(reports.values()))
    wrong = int((~first.right).sum())
    places = range(len(reports))
    axis.bar([p - 0.2 for p in places], [r.pointing(True) for r in reports.values()], 0.38, color=LINES[2], label="model right")
    axis.bar([p + 0.2 for p in places], [r.pointing(False) for r in reports.values()], 0.38, color=LINES[4], label=f"model wrong ({wrong})")
    if bool(first.chance.isfinite().any()):
        axis.axhline(float(first.chance.nanmean()), color="#777777", linestyle=":", linewidth=1)
    axis.set_xticks(list(places), [_folded(name) for name in reports], fontsize=6)
    axis.set_ylim(0, _TOP)
    axis.set_title("2: points at the object\n(dotted: a blind guess)", fontsize=9)
    axis.legend(fontsize=7, loc="upper right", ncols=2)


def _folded(name: str) -> str:
    """A method's name in short lines, to stand below a bar."""
    return textwrap.fill(name.replace("(", " ("), 12)


def _shuffled(axis: Any, reports: Mapping[str, Principles]) -> None:
    """Likeness of the maps with the original's as weights are shuffled, and the accuracy that is left."""
    for (name, report), colour, mark in zip(reports.items(), cycle(LINES), cycle((*MARKS, None))):
        axis.plot([float(stage.alike.nanmean()) for stage in report.stages], color=colour, marker=mark, markersize=4, label=name)
    first = next(iter(reports.values()))
    if first.stages:
        left = [float((stage.answer == first.label).double().mean()) for stage in first.stages]
        axis.plot(left, color="#777777", linestyle=":", label="accuracy left")
        axis.set_xticks(range(len(left)), [textwrap.fill(stage.name, 12) for stage in first.stages], fontsize=6)
        axis.legend(fontsize=7)
    axis.axhline(0, color="#bbbbbb", linewidth=0.8)
    axis.set_ylim(-0.4, 1.05)
    axis.set_title("2: likeness with the map of the trained model\n(rank correlation), weights shuffled down to", fontsize=9)
