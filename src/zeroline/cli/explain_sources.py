"""``zeroline explain`` through a model's attentions, and of pairs of an image and a text: a map per text, their contrast, coloured words."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroline.attribution import Attribution
from zeroline.cli import attend, show
from zeroline.errors import UsageError
from zeroline.methods import METHODS, ROUTES
from zeroline.model.loading import Sourced
from zeroline.relevance import Relevance, Tokens
from zeroline.report import texts_figure
from zeroline.report.drawing import draw, sources
from zeroline.report.panels import heat_of
from zeroline.reporting import beside, picture_among
from zeroline.seen import Seen
from zeroline.spelling.questions import image_only, sources_of, target_for, target_of
from zeroline.spelling.sources import is_input, read_baseline
from zeroline.target import Target

Found = Attribution | Relevance


@dataclass(frozen=True)
class Question:
    """What was asked on the command line."""

    image: Any
    texts: tuple[str, ...]
    method: str
    target: str
    site: str | None
    baseline: str
    options: Mapping[str, Any]


def answer(sourced: Sourced, asked: Question, out: Path, *, as_json: bool = False, report: bool = False) -> None:
    """One record per text, and per contrast of the first text with another; the figure, and the tables."""
    sources_of(sourced, asked.image, asked.texts[0] if asked.texts else None)
    parts = _questions(sourced, asked)
    found: dict[str, tuple[Found, Mapping[str, Any]]] = {}
    several = len(parts) > 1
    started = time.perf_counter()
    with show.results_folder(out):
        for label, (text, inputs, target) in parts.items():
            found[label] = (_ask(sourced, asked, text, inputs, target), inputs)
        records = {label: one.to_dict() for label, (one, _) in found.items()}
        shown = {"texts": records} if several else next(iter(records.values()))
        seen = {label: beside(one, sourced, inputs) for label, (one, inputs) in found.items()}
        files = {_file(one, number, len(found)): label for number, (label, (one, _)) in enumerate(found.items())}
        written = show.write_several(
            {file: found[label][0] for file, label in files.items()},
            records if several else shown,
            out,
            {file: seen[label] for file, label in files.items()},
            _figure(sourced, asked, found, seen),
            report=report,
        )
    seconds = time.perf_counter() - started
    if as_json:
        print(json.dumps({**shown, "seconds": seconds, "files": [str(path) for path in written]}, indent=2))
        return
    for label, (one, _) in found.items():
        named = [("text", label)] if asked.texts else []
        show.table([*named, ("method", one.method), *one.rows()])
        if isinstance(one, Relevance):
            for source in sources(one, seen[label]):
                if source.words and not source.is_map:
                    show.output.print(attend.coloured(source))
    show.output.print(f"wrote {', '.join(str(path) for path in written)}  ({seconds:.2f} s)", markup=False)


def _questions(sourced: Sourced, asked: Question) -> dict[str, tuple[str | None, Mapping[str, Any], Target]]:
    """Text, inputs and target by label: each text, then the first against each other."""
    if not asked.texts:
        return {asked.target: (None, sourced.prepare(asked.image, None), target_for(asked.target, sourced))}
    if len(set(asked.texts)) < len(asked.texts):
        raise UsageError("the same --text was given twice")
    if len(asked.texts) > 1 and not sourced.is_dual_encoder:
        raise UsageError(f"{len(asked.texts)} texts were given; {sourced.name!r} takes one here")
    pairs = {text: sourced.prepare(asked.image, text) for text in asked.texts}
    found: dict[str, tuple[str | None, Mapping[str, Any], Target]] = {
        text: (text, pair, target_of(sourced, asked.target, text)) for text, pair in pairs.items()
    }
    first = asked.texts[0]
    for other in asked.texts[1:]:
        label = f"{first} - {other}"
        while label in found:  # a text that reads like a contrast
            label += " (contrast)"
        found[label] = (first, pairs[first], target_of(sourced, asked.target, first, other))
    return found


def _ask(sourced: Sourced, asked: Question, text: str | None, inputs: Mapping[str, Any], target: Target) -> Found:
    options = dict(asked.options)
    if asked.method in ROUTES:
        found: Relevance = ROUTES[asked.method](sourced.model, inputs, target=target, **options)
        return found
    loaded = image_only(sourced, text)
    baseline = read_baseline(asked.baseline, loaded, at_input=is_input(asked.site))
    baseline = show.settled(loaded, inputs, baseline, asked.site)
    with show.progress("gradient evaluations") as report, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if asked.method == "integrated_gradients":
            options["progress"] = report
        result = METHODS[asked.method](sourced.model, inputs, target=target, site=asked.site, baseline=baseline, **options)
    for warning in caught:
        show.notes.print(f"warning: {warning.message}", markup=False)
    return result


def _figure(sourced: Sourced, asked: Question, found: Mapping[str, tuple[Found, Mapping[str, Any]]], seen: Mapping[str, Seen]) -> Any | None:
    """One record that has sources as `attend` draws it; several side by side."""
    if len(found) == 1:
        label, (one, _) = next(iter(found.items()))
        if isinstance(one, Relevance):
            return draw(one, seen[label])
    panels = {label: _panel(one, seen[label]) for label, (one, _) in found.items()}
    inputs = next(iter(found.values()))[1]
    picture = picture_among(sourced.model, inputs)
    if picture is None:
        show.notes.print("no figure: the model's inputs hold no image")
        return None
    return texts_figure.figure(panels, picture, f"What {asked.method} finds in the image for each text")


def _panel(one: Found, seen: Seen) -> texts_figure.Panel:
    output = f"f(x) {float(one.output[0]):.3g}"
    if isinstance(one, Relevance):
        drawn = sources(one, seen)
        heat = next((source.heat for source in drawn if source.is_map), None)
        return texts_figure.Panel(heat, output, next((source for source in drawn if not source.is_map and source.words), None))
    share = "undefined" if one.relative_error is None else f"{float(one.relative_error[0]):.1%}"
    below = f"{output}, from {one.baseline}\nsum {float(one.total[0]):.3g} of difference {float(one.difference[0]):.3g}\nerror {share}"
    return texts_figure.Panel(heat_of(one, None if seen.grid is None else Tokens(seen.prefix or 0, seen.grid)), below)


def _file(one: Found, number: int, count: int) -> str:
    kind = "relevance" if isinstance(one, Relevance) else "attribution"
    return kind if count == 1 else f"{kind}-{number + 1}"
