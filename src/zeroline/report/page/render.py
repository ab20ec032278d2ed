"""Chapters as HTML: a Jinja template with everything escaped, the style and the script inline, and a policy that lets nothing else run.

The script is allowed by its hash alone, so that text of a record that looks like a script stays text; pictures are data addresses; no address of
anywhere else can be asked.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zeroline.errors import UsageError
from zeroline.report.comparison_figure import PARTS
from zeroline.report.figure import COLOURS
from zeroline.report.page import encode
from zeroline.report.page.parts import Budget, Chapter, Viewer

HERE = Path(__file__).parent
_STOPS = 33  # of the colour scale
_WIDE = 600.0  # units of a budget's bars


def html(chapters: Sequence[Chapter], title: str = "") -> str:
    """The page. ``title``: of the window; the first question where there is none."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    script = (HERE / "page.js").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["bars"] = bars
    environment.filters["shown"] = lambda picture: encode.picture(picture, "", "").source
    return environment.get_template("page.html").render(
        title=title or (chapters[0].question if chapters else "zeroline"),
        chapters=chapters,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        policy=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_data([viewer for one in chapters for viewer in one.viewers]),
    )


def save(chapters: Sequence[Chapter], path: str | Path, title: str = "") -> None:
    """Write the page to a temporary name, then rename. Raises UsageError where the folder does not exist."""
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")
    text = html(chapters, title)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def bars(budget: Budget) -> dict[str, Any]:
    """Places and sizes of a budget's bars, in 0..600: difference and sum on one scale from zero, the parts of the error on a scale of their own."""
    low, high = min(0.0, budget.difference, budget.total), max(0.0, budget.difference, budget.total)
    whole = [_bar(name, 0.0, value, low, high) for name, value in (("f(x) - f(baseline)", budget.difference), ("sum of the values", budget.total))]
    span, ends, pieces = high - low, [0.0, 0.0], []
    for name, size in budget.parts:
        side = int(size > 0)
        pieces.append((name, ends[side], ends[side] + size))
        ends[side] += size
    share, times = abs(budget.difference) or 1.0, span / (ends[1] - ends[0]) if ends[1] > ends[0] else 1.0
    return {
        "times": f", magnified {times:,.0f} times" if times >= 1.5 else "",
        "whole": whole,
        "zero": _at(0.0, low, high),
        "parts": [{**_bar(name, a, b, *ends), "colour": PARTS.get(name, "#999999"), "share": f"{(b - a) / share:+.2%}"} for name, a, b in pieces],
        "parts_zero": _at(0.0, *ends),
    }


def _bar(name: str, start: float, end: float, low: float, high: float) -> dict[str, Any]:
    a, b = sorted((_at(start, low, high), _at(end, low, high)))
    return {"name": name, "value": f"{end - start:+.3g}", "x": f"{a:.2f}", "width": f"{max(b - a, 0.5):.2f}"}


def _at(value: float, low: float, high: float) -> float:
    return _WIDE * (value - low) / (high - low) if high > low else 0.0


def _data(viewers: Sequence[Viewer]) -> str:
    """What the script reads, as JSON that cannot end the element it stands in."""
    from matplotlib import colormaps

    scale = [[int(round(255 * c)) for c in colormaps[COLOURS](i / (_STOPS - 1))[:3]] for i in range(_STOPS)]
    told = [
        {
            "cell": viewer.cell,
            "unit": viewer.unit,
            "total": viewer.total,
            "words": list(viewer.words),
            "choices": list(viewer.choices),
            "panels": [
                {"label": p.label, "caption": p.caption, "shape": list(p.shape), "limits": list(p.limits), "values": encode.numbers(p.values)}
                for p in viewer.panels
            ],
        }
        for viewer in viewers
    ]
    text = json.dumps({"colours": scale, "viewers": told}, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
