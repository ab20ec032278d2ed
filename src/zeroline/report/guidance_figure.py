"""A picture before and after a guest is laid on it, with the relevance of host, guest and contrast, and the attention transfer of the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from zeroline.guidance import AFTER, BEFORE, Guidance
from zeroline.report.figure import Picture
from zeroline.report.panels import blank, over


def figure(found: Guidance) -> Any:
    """A ``matplotlib.figure.Figure``: a row before and a row after, the pictures first, then a map per target; the transfer curves last."""
    from matplotlib.figure import Figure

    names = list(found.members)
    drawn = Figure(figsize=(3.0 * (2 + len(names)), 7.2), dpi=120, facecolor="white", layout="constrained")
    drawn.suptitle(f"Guided by a guest of {found.settings.get('guest')}", fontsize=12, fontweight="bold")
    axes = drawn.subplots(2, 2 + len(names), squeeze=False)
    for row, when in zip(axes, (BEFORE, AFTER)):
        picture = _picture(found.pictures[when])
        blank(row[0])
        row[0].imshow(picture)
        shares = ", ".join(f"p({name}) {share:.0%}" for name, share in found.probabilities[when].items())
        row[0].set_title(f"{when}: {shares}", fontsize=8)
        for axis, name in zip(row[1:], names):
            one = found.members[name][when]
            heat = np.asarray(one.grid()[0].double().cpu().numpy())
            share = found.on_guest(name, when)
            words = "nothing positive" if share != share else f"{share:.0%} on the guest's place"
            if when == AFTER and found.detail(name) == found.detail(name):
                words += f"\n{found.detail(name):.0%} of the rest is new detail"
            over(axis, picture, heat, f"{name}: {one.target[0]}", f"f {float(one.output[0]):.3g}, {words}")
    _transfer(axes[0, -1], found)
    axes[1, -1].axis("off")
    return drawn


def _transfer(axis: Any, found: Guidance) -> None:
    axis.set_title("attention transfer:\nshare that stays a token's own", fontsize=8)
    for when, mark in ((BEFORE, "o"), (AFTER, "s")):
        axis.plot(found.own[when].tolist(), marker=mark, label=when, color="#0072B2" if when == BEFORE else "#D55E00")
    axis.set_xlabel("self-attention", fontsize=8)
    axis.legend(fontsize=7)


def _picture(pixels: Tensor) -> Picture:
    return np.asarray(pixels.permute(1, 2, 0).float().div(255).numpy())
