"""Attention transfer as a picture: the mean own share per call as a curve, and the share of every token per call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from zeroline.relevance import Tokens


class Transfer(Protocol):
    """What is drawn: see ``zeroline.methods.attention_transfer.Transfer``."""

    @property
    def stream(self) -> str: ...
    @property
    def calls(self) -> Sequence[str]: ...
    @property
    def own(self) -> Tensor: ...
    @property
    def tokens(self) -> Tokens: ...


def figure(transfer: Transfer, *, sample: int = 0) -> Any:
    """A ``matplotlib.figure.Figure``: the curve over calls (with the spread over tokens) above, one panel per call below."""
    from matplotlib.figure import Figure

    own = transfer.own[:, sample].double().cpu().numpy()
    count = len(own)
    drawn = Figure(figsize=(max(7, 1.3 * count), 5), dpi=130, facecolor="white", layout="constrained")
    parts = drawn.subfigures(2, 1, height_ratios=[3, 1.4], squeeze=False)[:, 0]
    axis = parts[0].subplots()
    axis.plot(range(count), own.mean(1), marker="o", color="#b2182b", label="mean over tokens")
    axis.fill_between(range(count), np.quantile(own, 0.1, 1), np.quantile(own, 0.9, 1), alpha=0.2, color="#b2182b", label="80 % of tokens")
    axis.set_ylim(0, 1)
    axis.set_xticks(range(count), [name if count <= 4 else str(i) for i, name in enumerate(transfer.calls)], fontsize=8)
    axis.set_ylabel("share from the own position", fontsize=9)
    axis.set_title(f"How much of a token's relevance is still its own: {transfer.stream}", fontsize=11)
    axis.legend(fontsize=8)
    for call, panel in enumerate(parts[1].subplots(1, count, squeeze=False)[0]):
        panel.imshow(_laid(own[call], transfer.tokens), cmap="Reds", vmin=0, vmax=1, interpolation="nearest")
        panel.axis("off")
    return drawn


def _laid(own: Any, tokens: Tokens) -> Any:
    """Shares of the patches on their grid, or of all tokens in a line."""
    if tokens.grid is None:
        return own[None]
    return own[tokens.prefix :].reshape(tokens.grid)
