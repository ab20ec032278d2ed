"""Relevance as one picture: a heat map on the photograph per image source, coloured words per text source, a layer strip.

Relevance has no unit: colours run from zero to the largest size shown, white where there is none. Signed relevance gets the
diverging scale, blue against and red for. What lies on class and register tokens is said in words, not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeroline.relevance import Relevance
from zeroline.report.figure import COLOURS, Picture, upsample

Heat = NDArray[np.float64]
POSITIVE = "Reds"
_PER_STRIP = 12  # panels per line of a layer strip
_PER_LINE = 60  # characters of words per line
_CALLS = 60  # panels of a layer strip: of more calls, those that moved the most
_LINES = 40  # lines of words that are drawn: of a longer text, those with the most relevance


@dataclass(frozen=True)
class Source:
    """One stream of one sample: a map [rows, columns] on a picture, or a number per word."""

    name: str
    title: str
    heat: Heat
    layers: NDArray[np.float64]
    words: tuple[str, ...] = ()
    picture: Picture | None = None
    aside: str = ""

    @property
    def is_map(self) -> bool:
        """Is it drawn on a grid?"""
        return self.heat.ndim == 2


def sources(
    relevance: Relevance, *, sample: int = 0, pictures: Mapping[str, Picture] | None = None, words: Mapping[str, Sequence[str]] | None = None
) -> list[Source]:
    """What is drawn of a record: maps where tokens lie on a grid, else words (or token numbers)."""
    pictures, words = pictures or {}, words or {}
    found = []
    for name, r in relevance.by_source.items():
        index = sample if len(r) == len(relevance.output) else 0
        values = r[index].double().cpu()
        alone = len(relevance.by_source) == 1 or len(r) != len(relevance.output)
        share = "" if alone else f"{float(relevance.share(name)[sample]):.1%} of the relevance"
        layers = relevance.per_call[name][:, index].double().cpu()
        title = f"{name}: {share}" if share else name
        if relevance.tokens[name].grid is not None:
            heat = relevance.grid(name)[index].double().cpu().numpy()
            aside = f"{float(values.sum() - heat.sum()):.3g} of {float(values.sum()):.3g} lies on class and register tokens"
            drawn = relevance.call_grid(name)[:, index].double().cpu().numpy()
            found.append(Source(name, title, heat, drawn, (), pictures.get(name), aside if relevance.tokens[name].prefix else ""))
        else:
            labels = tuple(words.get(name, ())) or tuple(str(i) for i in range(len(values)))
            found.append(Source(name, title, values.numpy(), layers.numpy(), labels))
    return found


def figure(relevance: Relevance, drawn: Sequence[Source], *, sample: int = 0) -> Any:
    """A ``matplotlib.figure.Figure``: sources above, one small panel per call (layer strip) below."""
    from matplotlib.figure import Figure

    maps, lines = [s for s in drawn if s.is_map], [s for s in drawn if not s.is_map]
    strips = _strips(drawn)
    heights = ([3.6] if maps else []) + [0.5 + 0.34 * lines_of(s) for s in lines] + [_strip_height(s) for s in strips]
    picture = Figure(figsize=(12, 0.9 + sum(heights)), dpi=130, facecolor="white", layout="constrained")
    record = relevance.sample(sample)
    picture.suptitle(f"What attention finds for the {record.target[0]} ({relevance.method}, {_settings(relevance)})", fontsize=13, fontweight="bold")
    rows = picture.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    at = 0
    if maps:
        _draw_maps(rows[0], maps)
        at = 1
    for source in lines:
        draw_words(rows[at], source)
        at += 1
    for row, source in zip(rows[at:], strips):
        _draw_strip(row, relevance, source)
    picture.supxlabel(f"read at {record.readout[0]}; relevance has no unit and adds up to nothing in particular", fontsize=9)
    return picture


def shade(value: float, limit: float) -> tuple[float, float, float]:
    """The colour of a word: white at zero, red for, blue against."""
    from matplotlib import colormaps

    red, green, blue, _ = colormaps[COLOURS](0.5 + 0.42 * float(np.clip(value / limit if limit else 0.0, -1, 1)))
    return float(red), float(green), float(blue)


def word_limit(source: Source) -> float:
    """The end of the colour scale of words: the largest size, or the next where one word is more than three times it.

    The word that a target is read at has the whole of its own relevance, beside which the others would be white.
    """
    sizes = np.sort(np.abs(source.heat))[::-1]
    if len(sizes) > 1 and 0 < 3 * sizes[1] < sizes[0]:
        return float(sizes[1])
    return float(sizes[0]) or 1.0


def _draw_maps(row: Any, maps: Sequence[Source]) -> None:
    axes = row.subplots(1, 2 * len(maps), squeeze=False)[0]
    for source, plain, over in zip(maps, axes[::2], axes[1::2]):
        signed = bool((source.heat < 0).any())
        limit = float(np.abs(source.heat).max()) or 1.0
        height, width = source.picture.shape[:2] if source.picture is not None else (16 * source.heat.shape[0], 16 * source.heat.shape[1])
        shown = plain.imshow(
            source.heat,
            cmap=COLOURS if signed else POSITIVE,
            vmin=-limit if signed else 0,
            vmax=limit,
            extent=(0, width, height, 0),
            interpolation="nearest",
        )
        row.colorbar(shown, ax=plain, fraction=0.046, pad=0.03).ax.tick_params(labelsize=7)
        plain.set_title(source.title, fontsize=10)
        plain.set_xlabel(source.aside, fontsize=8)
        over.set_title("on the picture" if source.picture is not None else "smoothed", fontsize=10)
        over.imshow(overlaid(source, height, width, limit))
        for axis in (plain, over):
            axis.set_xticks([])
            axis.set_yticks([])


def overlaid(source: Source, height: int, width: int, limit: float) -> Picture:
    """A source's map over its picture in grey, as opaque as its relevance is strong."""
    from matplotlib import colormaps

    strength = upsample(source.heat, height, width) / limit
    colour = colormaps[COLOURS](np.clip(strength, -1, 1) / 2 + 0.5)[..., :3]
    ground = np.ones((height, width, 3)) if source.picture is None else np.repeat(source.picture.mean(-1, keepdims=True), 3, -1) * 0.6 + 0.35
    opacity = np.clip(np.abs(strength), 0, 1)[..., None] ** 0.7 * 0.85
    return np.asarray(ground * (1 - opacity) + colour * opacity, dtype=np.float32)


def _wrapped(source: Source) -> list[list[int]]:
    """Word numbers per line, of at most 40 lines."""
    lines: list[list[int]] = [[]]
    used = 0
    for i, word in enumerate(source.words):
        if used and used + len(word) + 1 > _PER_LINE:
            lines.append([])
            used = 0
        lines[-1].append(i)
        used += len(word) + 1
    size = [float(np.abs(source.heat[line]).sum()) for line in lines]
    kept = sorted(sorted(range(len(lines)), key=lambda i: -size[i])[:_LINES])
    return [lines[i] for i in kept]


def lines_of(source: Source) -> int:
    """How many lines its words take."""
    return len(_wrapped(source))


def draw_words(row: Any, source: Source) -> None:
    """A text on grounds as strong as its relevance."""
    axis = row.subplots()
    lines, limit = _wrapped(source), word_limit(source)
    most = float(np.abs(source.heat).max())
    beyond = f"; one word is beyond the scale: {source.words[int(np.abs(source.heat).argmax())]} {most:.3g}" if most > limit else ""
    drawn = sum(map(len, lines))
    left = "" if drawn == len(source.words) else f"; {drawn:,} of {len(source.words):,} words, in the lines with the most"
    axis.set_title(f"{source.title} (colours end at {limit:.2g}{beyond}{left})", fontsize=10, loc="left")
    axis.set_xlim(0, _PER_LINE * 1.02)
    axis.set_ylim(len(lines), 0)
    axis.axis("off")
    for y, line in enumerate(lines):
        x = 0.0
        for i in line:
            word = source.words[i]
            axis.add_patch(_box(x, y, len(word), shade(float(source.heat[i]), limit)))
            colour = "white" if abs(source.heat[i]) > 0.75 * limit else "black"
            axis.text(x + len(word) / 2, y + 0.5, word, ha="center", va="center", family="monospace", fontsize=10, color=colour)
            x += len(word) + 1


def _box(x: float, y: float, width: float, colour: tuple[float, float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.2, y + 0.1), width + 0.4, 0.8, facecolor=colour, edgecolor="#cccccc", linewidth=0.4)


def _moved(source: Source) -> list[int]:
    """The calls that moved something onto a source, more than rounding: at most 60, those that moved the most."""
    sizes = np.abs(source.layers).reshape(len(source.layers), -1).sum(1)
    moved = [int(call) for call in np.nonzero(sizes > 1e-6 * max(float(sizes.max(initial=0.0)), 1e-30))[0]]
    return sorted(sorted(moved, key=lambda call: -sizes[call])[:_CALLS])


def _strips(drawn: Sequence[Source]) -> list[Source]:
    """The sources of the layer strips: all that calls moved anything onto."""
    return [source for source in drawn if _moved(source)]


def _strip_height(source: Source) -> float:
    lines = -(-len(_moved(source)) // _PER_STRIP)
    return (1.35 if source.is_map else 0.7) * lines + 0.3


def _draw_strip(row: Any, relevance: Relevance, source: Source) -> None:
    calls = _moved(source)
    lines = -(-len(calls) // _PER_STRIP)
    axes = row.subplots(lines, _PER_STRIP, squeeze=False).flatten()
    limit = float(np.abs(source.layers).max()) or 1.0
    for axis in axes:
        axis.axis("off")
    for axis, call in zip(axes, calls):
        heat = source.layers[call] if source.is_map else source.layers[call][None]
        axis.imshow(heat, cmap=COLOURS, vmin=-limit, vmax=limit, interpolation="nearest", aspect="equal" if source.is_map else "auto")
        axis.set_title(f"{call}: {_short(relevance.calls[call][0])}", fontsize=6)
    which = "each call" if len(calls) < _CALLS else f"the {_CALLS} strongest of {len(source.layers)} calls"
    row.suptitle(f"what {which} moved onto {source.name} (one colour scale, -{limit:.2g} to {limit:.2g})", fontsize=9, x=0.01, ha="left")


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"...{name[3 - most :]}"


def _settings(relevance: Relevance) -> str:
    known = relevance.settings
    if "correction" in known:
        return f"{known['correction']} correction, {known.get('coverage', '')} coverage"
    return ", ".join(f"{name} {value}" for name, value in known.items() if name in ("weights", "similarity", "layers"))
