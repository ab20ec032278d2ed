"""Grounding as one picture: the photograph once per word and the words once per region; or, without a photograph, the matrix.

Drawn is the coupling: relevance that passed between a row and a column in either direction. Each photograph has a colour scale of its own, from
zero to its largest size, and its share of all below it; signed relevance gets the diverging scale.
"""

from __future__ import annotations

from textwrap import fill
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeroline.circuit import shortest
from zeroline.grounding import Grounding
from zeroline.report.figure import COLOURS, Picture
from zeroline.report.panels import begin, blank, short
from zeroline.report.relevance_figure import POSITIVE, Source, overlaid, shade, word_limit

PER_LINE = 8  # photographs in a line
WORDS, REGIONS = 24, 4  # rows and regions that are drawn
LABELLED = 48  # columns of a matrix that still have room for words
Heat = NDArray[np.float64]


def figure(one: Grounding, *, sample: int = 0, picture: Picture | None = None, seconds: float | None = None, sound: float | None = None) -> Any:
    """A ``matplotlib.figure.Figure``. ``picture`` is drawn below maps; ``seconds`` is what all columns last, where they are times, and ``sound`` what
    the sound lasts: silence after it is not drawn."""
    from matplotlib.figure import Figure

    record = one.sample(sample)
    rows = _strongest(record)
    head = f"What grounds what: {_many(record.target)} ({record.settings.get('correction', '')} correction)"
    if record.gridded:
        regions, calls = (_regions(record), _calls(record)) if record.row_stream else ([], [])
        heights = [1.95 * -(-len(rows) // PER_LINE), *([0.42 * len(regions) + 0.1] if regions else []), *([1.5] if calls else [])]
        drawn = Figure(figsize=(1.65 * PER_LINE, 1.0 + sum(heights)), dpi=130, facecolor="white", layout="constrained")
        parts = list(drawn.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
        _photographs(parts.pop(0), record, rows, picture)
        if regions:
            _words(parts.pop(0), record, rows, regions)
        if calls:
            _by_call(parts.pop(0), record, calls)
    else:
        drawn = Figure(figsize=(12.5, 1.8 + 0.3 * len(rows)), dpi=130, facecolor="white", layout="constrained")
        _matrix(drawn.subplots(), record, rows, seconds, sound)
    drawn.suptitle(fill(head, 110), fontsize=12, fontweight="bold")
    drawn.supxlabel(fill(caption(record, len(rows)), 150), fontsize=9)
    return drawn


def caption(record: Grounding, shown: int) -> str:
    """What the matrix adds up to, and what is not drawn."""
    left = len(record.row_words) - shown
    more = f"; {left} rows with less or nothing are not drawn" if left else ""
    if not record.row_stream:
        return f"each row: relevance of {record.column_stream} for a target of its own; relevance has no unit{more}"
    matrix, past, back = (float(part.sum()) for part in (record.matrix, record.direct, record.back))
    return (
        f"relevance of {record.column_stream} {matrix + past:.3g} = {matrix:.3g} through tokens of {record.row_stream} + {past:.3g} past them;"
        f" of {record.row_stream} {back:.3g} through {record.column_stream}; relevance has no unit;"
        f" read at {record.readout[0] if record.readout else '-'}{more}"
    )


def _percent(share: float) -> str:
    """Two digits: 100%, 67%, 2.4%, 0.013%."""
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.2g}%"


def _many(targets: tuple[str, ...]) -> str:
    return targets[0] if len(targets) == 1 else f"{len(targets)} targets"


def _strongest(record: Grounding) -> list[int]:
    size = record.coupling[0].double().abs().sum(1)
    return sorted(i for i in size.argsort(descending=True)[:WORDS].tolist() if size[i] > 0) or [0]


def _photographs(part: Any, record: Grounding, rows: list[int], picture: Picture | None) -> None:
    maps = record.grid("coupling")[0].double().cpu().numpy()
    signed = bool((maps < 0).any())
    total = float(np.abs(maps).sum()) or 1.0
    height, width = picture.shape[:2] if picture is not None else (16 * maps.shape[1], 16 * maps.shape[2])
    axes = part.subplots(-(-len(rows) // PER_LINE), PER_LINE, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, row in zip(axes, rows):
        axis.axis("on")
        blank(axis)
        axis.imshow(overlaid(Source("", "", maps[row], maps[row], picture=picture), height, width, float(np.abs(maps[row]).max()) or 1.0))
        axis.set_title(begin(record.row_words[row], 22), fontsize=10, fontweight="bold")
        axis.set_xlabel(f"{_percent(float(np.abs(maps[row]).sum()) / total)} of all", fontsize=8)
    scale = ": red for, blue against" if signed else ""
    part.suptitle(f"the image once per row (each with a colour scale of its own{scale})", fontsize=9, x=0.01, ha="left")


def _calls(record: Grounding) -> list[int]:
    """The calls at which most passed, in their order."""
    size = (record.per_call + record.back_per_call)[:, 0].double().abs().sum((1, 2))
    return sorted(int(c) for c in size.argsort(descending=True)[:PER_LINE] if size[c] > 0)


def _by_call(part: Any, record: Grounding, calls: list[int]) -> None:
    """A map per attention: what passed there between all rows and each region."""
    maps = (record.grid("per_call") + record.grid("back_per_call"))[:, 0].double().sum(1).cpu().numpy()
    limit, signed = float(np.abs(maps).max()) or 1.0, bool((maps < 0).any())
    total = float(np.abs(maps).sum()) or 1.0
    names = shortest(list(record.calls))
    for axis in (axes := part.subplots(1, PER_LINE, squeeze=False)[0]):
        axis.axis("off")
    for axis, call in zip(axes, calls):
        colours = COLOURS if signed else POSITIVE
        axis.imshow(maps[call], cmap=colours, vmin=-limit if signed else 0, vmax=limit, interpolation="nearest")
        axis.set_title(f"{short(names[record.calls[call]], 36)}\n{_percent(float(np.abs(maps[call]).sum()) / total)}", fontsize=6)
    part.suptitle(f"what passed at each attention, all rows together (one colour scale, up to {limit:.2g})", fontsize=9, x=0.01, ha="left")


def _regions(record: Grounding) -> list[int]:
    """The columns with the most relevance."""
    size = record.coupling[0].double().abs().sum(0)
    size[: record.lie.prefix] = 0
    return [int(c) for c in size.argsort(descending=True)[:REGIONS] if size[c] > 0]


def _words(part: Any, record: Grounding, rows: list[int], regions: list[int]) -> None:
    from matplotlib.patches import Rectangle

    axis = part.subplots()
    axis.axis("off")
    matrix = record.coupling[0].double().cpu().numpy()
    axis.set_title(f"the rows once per region: the {len(regions)} with the most relevance (colours as for words in a line)", fontsize=9, loc="left")
    axis.set_ylim(len(regions), 0)
    reach = 14.0
    for y, region in enumerate(regions):
        x = 14.0
        axis.text(0, y + 0.5, record.where(region), va="center", fontsize=9)
        limit = word_limit(Source("", "", matrix[rows, region], matrix[rows, region]))
        for row in rows:
            word, value = begin(record.row_words[row], 16), float(matrix[row, region])
            axis.add_patch(Rectangle((x, y + 0.1), len(word) + 0.6, 0.8, facecolor=shade(value, limit), edgecolor="#cccccc", linewidth=0.4))
            ink = "white" if abs(value) > 0.75 * limit else "black"
            axis.text(x + len(word) / 2 + 0.3, y + 0.5, word, ha="center", va="center", family="monospace", fontsize=9, color=ink)
            x += len(word) + 1.4
        reach = max(reach, x)
    axis.set_xlim(0, max(reach, 110))


def _matrix(axis: Any, record: Grounding, rows: list[int], seconds: float | None, sound: float | None) -> None:
    whole: Heat = record.coupling[0].double().cpu().numpy()[rows]
    columns = whole.shape[1]
    shown_columns = columns if seconds is None or sound is None else min(columns, max(1, round(columns * sound / seconds)))
    matrix = whole[:, :shown_columns]
    sizes = np.abs(matrix).max(1, keepdims=True)
    signed = bool((matrix < 0).any())
    end = shown_columns if seconds is None else seconds * shown_columns / columns
    axis.imshow(
        matrix / np.where(sizes > 0, sizes, 1),
        cmap=COLOURS if signed else POSITIVE,
        vmin=-1 if signed else 0,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
        extent=(0, end, len(rows), 0),
    )
    axis.set_yticks(np.arange(len(rows)) + 0.5, [begin(record.row_words[row], 28) for row in rows], fontsize=9)
    if record.row_stream:
        total = float(np.abs(record.coupling[0].double().cpu().numpy()).sum()) or 1.0
        shares = axis.secondary_yaxis("right")
        shares.set_yticks(np.arange(len(rows)) + 0.5, [_percent(float(np.abs(row).sum()) / total) for row in whole], fontsize=8)
    silent = float(np.abs(whole[:, shown_columns:]).sum() / max(float(np.abs(whole).sum()), 1e-300))
    beyond = f"; {silent:.0%} of all relevance lies on what is padded behind the sound" if shown_columns < columns else ""
    axis.set_title(f"each row with a colour scale of its own{beyond}", fontsize=9, loc="left")
    if seconds is not None:
        axis.set_xlabel("seconds", fontsize=9)
    elif columns <= LABELLED:
        axis.set_xticks(np.arange(columns) + 0.5, [begin(record.where(c), 16) for c in range(columns)], rotation=60, ha="right", fontsize=8)
    else:
        axis.set_xlabel(f"tokens of {record.column_stream}", fontsize=9)
