"""One attribution as one picture: photograph, baseline, signed map, overlay, and the error in the caption.

normalise -> upsample -> overlay -> lay out -> render, each a plain function. The colour scale is diverging and
centred on zero, so that white means "no part in the difference"; what the scale clips is said on the colour bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zeroline.attribution import Attribution
from zeroline.maths.grids import as_map

Picture = NDArray[np.float32]  # [height, width, 3] in 0..1
COLOURS = "RdBu_r"
_CLIP = 0.995
_CELLS = 16  # the overlay shows sums over cells: at most this many per side


@dataclass(frozen=True)
class View:
    """What is drawn of one sample: photograph, its baseline as a picture (or None), and the map [rows, columns]."""

    photograph: Picture
    baseline: Picture | None
    heat: NDArray[np.float64]
    limit: float


def view(
    attribution: Attribution,
    photograph: Picture,
    baseline: Picture | None = None,
    *,
    sample: int = 0,
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
) -> View:
    """The parts of a figure, from a record and the picture that was explained."""
    part = picture_part(attribution)
    heat = as_map(part[sample : sample + 1].double().cpu(), grid, prefix)[0]
    return View(photograph, baseline, heat.numpy(), limit_of(heat.numpy()))


def limit_of(heat: NDArray[np.float64]) -> float:
    """The end of the colour scale: the 99.5th percentile of |map|, or 1 for an empty map."""
    size = np.abs(heat).flatten()
    return float(np.quantile(size, _CLIP)) or float(size.max()) or 1.0


def cells(heat: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Sums over square cells so that at most 16 remain per side, and the side of a cell.

    Neighbouring pixels of opposite sign cancel here as they do in the attribution's own sum.
    """
    side = -(-max(heat.shape) // _CELLS)
    padded = np.pad(heat, [(0, -size % side) for size in heat.shape])
    rows, columns = (size // side for size in padded.shape)
    return padded.reshape(rows, side, columns, side).sum((1, 3)), side


def upsample(heat: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """The map at the size of the photograph (bilinear; for display only)."""
    grown = torch.nn.functional.interpolate(torch.from_numpy(heat)[None, None], (height, width), mode="bilinear", align_corners=False)
    return np.asarray(grown[0, 0].numpy())


def overlay(view: View) -> Picture:
    """The map, summed over cells, on a grey photograph, as opaque as the evidence is strong."""
    from matplotlib import colormaps

    height, width = view.photograph.shape[:2]
    summed, side = cells(view.heat)
    rows = summed.shape[0] * side * height // view.heat.shape[0]
    columns = summed.shape[1] * side * width // view.heat.shape[1]
    strength = upsample(summed, max(rows, height), max(columns, width))[:height, :width] / limit_of(summed)
    colour = colormaps[COLOURS](np.clip(strength, -1, 1) / 2 + 0.5)[..., :3]
    opacity = np.clip(np.abs(strength), 0, 1)[..., None] ** 0.7 * 0.85
    grey = np.repeat(view.photograph.mean(-1, keepdims=True), 3, -1) * 0.6 + 0.35
    return np.asarray(grey * (1 - opacity) + colour * opacity, dtype=np.float32)


def figure(attribution: Attribution, view: View, *, sample: int = 0) -> Any:
    """A ``matplotlib.figure.Figure`` with the panels side by side and the figures of the record below."""
    from matplotlib.figure import Figure

    one = attribution.sample(sample)
    drawn = Figure(figsize=(13.2, 4.1), dpi=130, facecolor="white", layout="constrained")
    axes = drawn.subplots(1, 4)
    headline = f"What the {one.target[0]} is based on, measured from the {one.baseline} baseline"
    drawn.suptitle(headline, fontsize=13, fontweight="bold")
    axes[0].imshow(view.photograph)
    axes[0].set_title(f"image x: f = {float(one.output[0]):.3g}", fontsize=11)
    _baseline_panel(axes[1], view, one)
    extent = (0, view.photograph.shape[1], view.photograph.shape[0], 0)
    shown = axes[2].imshow(view.heat, cmap=COLOURS, vmin=-view.limit, vmax=view.limit, extent=extent, interpolation="nearest")
    axes[2].set_title(f"values at {one.site}", fontsize=11)
    bar = drawn.colorbar(shown, ax=axes[2], fraction=0.046, pad=0.03, extend="both" if np.abs(view.heat).max() > view.limit else "neither")
    bar.set_label(f"part of the difference (scale ends at the {_CLIP:.1%} quantile)", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    axes[3].imshow(overlay(view))
    side = cells(view.heat)[1]
    axes[3].set_title(f"sums over {side} x {side} pixels" if side > 1 else "over the image", fontsize=11)
    axes[3].set_xlabel("red: for, blue: against", fontsize=9)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    drawn.supxlabel(caption(one) + _left_out(one, view), fontsize=10)
    return drawn


def caption(one: Attribution) -> str:
    """The sentence under the figure: from where, to where, and how exact."""
    relative = one.relative_error
    share = "undefined" if relative is None else f"{float(relative[0]):.2%}"
    total, difference = float(one.total[0]), float(one.difference[0])
    return (
        f"values add up to {total:.4g}; f(x) - f(baseline) = {difference:.4g}; attribution error {total - difference:+.2g} ({share})"
        f" from {int(one.evaluations[0])} gradient evaluations"
    )


def _left_out(one: Attribution, view: View) -> str:
    """What the picture cannot show: the values on class and register tokens."""
    rest = float(one.total[0]) - float(view.heat.sum())
    part = picture_part(one)
    return f"; {rest:+.3g} of it lies on tokens that are no patches" if part.ndim == 3 and part.shape[1] != view.heat.size else ""


def save(drawn: Any, path: str | Path) -> None:
    """Write a PNG, or an SVG where the name ends so, to a temporary name, then rename."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.text import Text

    for text in drawn.findobj(Text):
        text.set_parse_math(False)  # a dollar in a user's words is a dollar
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == ".svg":
            with rc_context({"svg.hashsalt": "zeroline"}):  # the same figure, the same file
                FigureCanvasSVG(drawn).print_figure(temporary, format="svg", metadata={"Creator": "zeroline", "Date": None})
        else:
            FigureCanvasAgg(drawn).print_figure(temporary, format="png", metadata={"Software": "zeroline"})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _baseline_panel(axis: Any, view: View, one: Attribution) -> None:
    axis.set_title(f"baseline {one.baseline}: f = {float(one.baseline_output[0]):.3g}", fontsize=11)
    if view.baseline is not None:
        axis.imshow(view.baseline)
        return
    axis.set_facecolor("#eeeeee")
    axis.set_aspect("equal")
    axis.text(0.5, 0.5, f"{one.baseline}\nat {one.site}\n(features: no picture)", ha="center", va="center", fontsize=9, transform=axis.transAxes)


def picture_part(attribution: Attribution) -> Tensor:
    """The part that can be laid on the picture: the only one, or the first with the shape of images or tokens."""
    parts = list(attribution.parts.values())
    shaped = [part for part in parts if part.ndim in (3, 4)]
    return shaped[0] if shaped else parts[0]
