"""Every kind of record as a picture: a table from the record's class to the function that draws it.

``draw`` needs the record and what was seen beside it (``zeroline.seen``), and no model: a saved file can be drawn anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from zeroline.attribution import Attribution
from zeroline.audit import BaselineAudit
from zeroline.circuit import Mechanism
from zeroline.comparison import Comparison
from zeroline.corrected import Corrections
from zeroline.errors import SiteError
from zeroline.grounding import Grounding
from zeroline.guidance import Guidance
from zeroline.principles import Principles
from zeroline.reasoning import Logic
from zeroline.relevance import Relevance
from zeroline.report import (
    audit_figure,
    comparison_figure,
    corrections_figure,
    figure,
    grounding_figure,
    guidance_figure,
    layers_figure,
    logic_figure,
    mechanism_figure,
    principles_figure,
    relevance_figure,
    rewriting_figure,
    robustness_figure,
    summary_figure,
)
from zeroline.report.figure import Picture
from zeroline.rewriting import Rewriting
from zeroline.seen import BASELINE, IMAGE, Seen
from zeroline.summary import Summary
from zeroline.thresholds import Robustness

LAYERS = "layers"  # a comparison that is drawn as a strip from early to late says so: facts["drawn as"]
MASK = "mask"


def draw(record: Any, seen: Seen) -> Any:
    """A ``matplotlib.figure.Figure`` of the first sample. Raises SiteError where there is nothing to draw it on."""
    return DRAW[type(record)](record, seen)


def picture(tensor: Tensor | None) -> Picture | None:
    """uint8 [height, width, 3] as a picture in 0..1."""
    return None if tensor is None else np.asarray(tensor.numpy(), dtype=np.float32) / np.float32(255)


def needed(seen: Seen) -> Picture:
    """The picture that the model saw. Raises SiteError where there is none."""
    found = picture(seen.image)
    if found is None:
        raise SiteError("the model's inputs hold no image")
    return found


def sources(record: Relevance, seen: Seen) -> list[relevance_figure.Source]:
    """The sources of a relevance, each with its picture or its words."""
    pictures = {name: picture(tensor) for name, tensor in seen.pictures.items() if name not in (IMAGE, BASELINE)}
    gridded = [name for name, tokens in record.tokens.items() if tokens.grid is not None]
    if len(gridded) == 1 and seen.image is not None:
        pictures.setdefault(gridded[0], picture(seen.image))
    return relevance_figure.sources(record, pictures={n: p for n, p in pictures.items() if p is not None}, words=seen.words)


def _attribution(record: Attribution, seen: Seen) -> Any:
    view = figure.view(record, needed(seen), picture(seen.pictures.get(BASELINE)), grid=seen.grid, prefix=seen.prefix)
    return figure.figure(record, view)


def _comparison(record: Comparison, seen: Seen) -> Any:
    if seen.facts.get("drawn as") == LAYERS:
        return layers_figure.figure(record, needed(seen), seen.places.get(MASK))
    return comparison_figure.figure(record, needed(seen))


def _audit(record: BaselineAudit, seen: Seen) -> Any:
    pictures = {name: picture(seen.pictures.get(f"{BASELINE}/{name}")) for name in record.baselines}
    return audit_figure.figure(record, picture(seen.image), pictures)


def _grounding(record: Grounding, seen: Seen) -> Any:
    return grounding_figure.figure(record, picture=picture(seen.image), seconds=seen.facts.get("seconds"), sound=seen.facts.get("sound"))


def _logic(record: Logic, seen: Seen) -> Any:
    asked, instead = (str(seen.facts.get(name, "")) for name in ("asked", "instead"))
    places = {name: np.asarray(where.numpy()) for name, where in seen.places.items() if name in record.players}
    return logic_figure.figure(record, picture=picture(seen.image), places=places, asked=asked, instead=instead)


DRAW: Mapping[type, Callable[[Any, Seen], Any]] = {
    Attribution: _attribution,
    BaselineAudit: _audit,
    Comparison: _comparison,
    Corrections: lambda record, seen: corrections_figure.figure(record, needed(seen)),
    Grounding: _grounding,
    Guidance: lambda record, seen: guidance_figure.figure(record),
    Logic: _logic,
    Mechanism: lambda record, seen: mechanism_figure.figure(record),
    Principles: lambda record, seen: principles_figure.figure({record.method: record}),
    Relevance: lambda record, seen: relevance_figure.figure(record, sources(record, seen)),
    Rewriting: lambda record, seen: rewriting_figure.figure(record),
    Robustness: lambda record, seen: robustness_figure.figure([record]),
    Summary: lambda record, seen: summary_figure.figure(record),
}
