"""From a record to a chapter of a page: one function per kind, and the table that names them.

Only the record and what was seen beside it are read. Relevance has no error and says so; everything else states its own.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zeroline import audit as audits
from zeroline import circuit, comparison, corrected, guidance, rewriting, summary, thresholds
from zeroline.attribution import Attribution
from zeroline.audit import BaselineAudit
from zeroline.circuit import Mechanism
from zeroline.comparison import Comparison
from zeroline.corrected import Corrections
from zeroline.errors import NonFiniteError, SiteError
from zeroline.grounding import Grounding
from zeroline.guidance import Guidance
from zeroline.principles import Principles
from zeroline.reasoning import Logic
from zeroline.relevance import Relevance, Tokens
from zeroline.report import drawing
from zeroline.report.drawing import picture
from zeroline.report.figure import Picture, picture_part
from zeroline.report.page import encode
from zeroline.report.page.fit import fitted, limits
from zeroline.report.page.parts import Budget, Chapter, Panel, Shown, Table, Viewer
from zeroline.report.panels import aside, heat_of
from zeroline.rewriting import Rewriting
from zeroline.seen import BASELINE, Seen
from zeroline.summary import Summary
from zeroline.thresholds import Robustness

NO_UNIT = "Relevance has no unit and adds up to nothing in particular, so there is no attribution error: it says where, not how much."
_MOST_ROWS = 200  # rows of a table


def chapter(record: Any, seen: Seen) -> Chapter:
    """The chapter of the first sample of a record; a record of several says that the others are not shown."""
    count = samples(record)
    one = record.sample(0) if count > 1 and isinstance(record, (Attribution, Relevance, Logic, Mechanism, Grounding)) else record
    made = CHAPTERS[type(record)](one, seen)
    notes = [f"the record holds {count} samples; this is the first (`.sample(i)` gives another)"] if count > 1 else []
    figure = None
    try:
        figure = encode.figure(drawing.draw(one, seen), f"{made.question} {' '.join(made.lead)}")
    except SiteError as reason:
        notes.append(f"no figure: {reason}")
    told = one.to_dict()
    return replace(
        made,
        record=encode.text_of(told),
        pictures=made.pictures or _pictures(one, seen),
        viewers=tuple(fitted(viewer) for viewer in made.viewers),
        figure=figure,
        tables=tuple(_shorter(table) for table in made.tables),
        command=shlex.join(("zeroline", *seen.command)) if seen.command else "",
        facts=_facts(told),
        notes=tuple(notes),
    )


def samples(record: Any) -> int:
    """How many samples a record holds; 1 for those that are of one, or of a whole set."""
    match record:
        case Comparison() | Corrections():
            first: Any = next(iter(record.members.values()))
            return len(first.output)
        case Grounding():
            return len(record.matrix)
        case Attribution() | Relevance() | Logic() | Mechanism() | BaselineAudit():
            return len(record.output)
    return 1


def _attribution(one: Attribution, seen: Seen) -> Chapter:
    viewers = (viewer,) if (viewer := _map_of(one, seen)) is not None else ()
    return Chapter(
        "attribution",
        f"What is the {one.target[0]} based on, measured from the {one.baseline} baseline?",
        (_exact(one),),
        viewers=viewers,
        budgets=(budget(one, f"{one.method} at {one.site}"),),
        tables=(Table("The record", (("method", one.method), *one.rows())),),
    )


def _exact(one: Attribution) -> str:
    relative = one.relative_error
    share = "" if relative is None or bool(relative[0].isnan()) else f", {float(relative[0]):.2%} of the difference"
    values = sum(part.numel() for part in one.parts.values())
    undefined = "" if share else f" ({one.relative_error_reason or 'no share of the difference'})"
    output, nothing, difference = (float(figure[0]) for figure in (one.output, one.baseline_output, one.difference))
    return (
        f"The model's answer f(x) = {output:.4g}; at the baseline it is {nothing:.4g}. What is explained is the difference, {difference:.4g}."
        f" The {values:,} values at {one.site} add up to {float(one.total[0]):.4g}: an attribution error of"
        f" {float(one.error[0]):+.2g}{share}{undefined}."
    )


def budget(one: Attribution, title: str) -> Budget:
    """The error and what brought it, of a record of one sample."""
    parts = one.budget or {"unaccounted": one.error}
    if not bool(torch.stack([one.total, one.difference, *parts.values()]).isfinite().all()):
        raise NonFiniteError(f"{title}: the sum, the difference or a part of the error is NaN or infinite")
    share = "undefined" if one.relative_error is None else f"{float(one.relative_error[0]):.2%}"
    said = f"sum {float(one.total[0]):.4g}, difference {float(one.difference[0]):.4g}, error {float(one.error[0]):+.2g} ({share})"
    found = tuple((name, float(part[0])) for name, part in parts.items() if float(part[0]))
    return Budget(title, float(one.total[0]), float(one.difference[0]), found, said)


def _map_of(one: Attribution, seen: Seen) -> Viewer | None:
    """Values on the picture; values of tokens in a line as words; None for what is neither."""
    lie = None if seen.grid is None else Tokens(seen.prefix or 0, seen.grid)
    shown = picture(seen.image)
    heat = None if shown is None else heat_of(one, lie)
    total = float(one.difference[0])
    if heat is not None:
        panel = _panel(one.site, _figures(one) + _elsewhere(one, heat), heat[None])
        return Viewer("Where the values lie", (panel,), _cell(heat, shown), "the difference", total, "site", shown)
    part = picture_part(one)
    if part.ndim != 3:
        return None
    line = part[0].double().sum(-1).cpu().numpy()
    words = next((words for words in seen.words.values() if len(words) == len(line)), tuple(str(i) for i in range(len(line))))
    panel = _panel(one.site, _figures(one), line[None, None])
    return Viewer("Which tokens the values lie on", (panel,), "token", "the difference", total, words=words)


def _cell(heat: Any, shown: Picture | None) -> str:
    return "pixel" if shown is not None and heat.shape == shown.shape[:2] else "patch"


def _figures(one: Attribution) -> str:
    relative = one.relative_error
    share = "undefined" if relative is None else f"{float(relative[0]):.2%}"
    return f"difference {float(one.difference[0]):.4g}, error {float(one.error[0]):+.2g} ({share})"


def _elsewhere(one: Attribution, heat: Any) -> str:
    """What the map does not show: the values on class and register tokens."""
    words = aside(float(one.total[0]), heat).strip()
    return f"; {words} (class or register tokens), so not on the map" if words else ""


def _panel(label: str, caption: str, maps: Any) -> Panel:
    """Maps [choices, rows, columns] as a panel."""
    values = np.asarray(maps, dtype=np.float32)
    if not bool(np.isfinite(values).all()):
        raise NonFiniteError(f"the values at {label!r} hold NaN or infinity: there is nothing to draw")
    flat = values.reshape(len(values), -1)
    return Panel(label, caption, (int(values.shape[1]), int(values.shape[2])), flat, limits(flat))


def _comparison(found: Comparison, seen: Seen) -> Chapter:
    shown = picture(seen.image)
    panels = []
    for label, member in found.members.items():
        one = member.sample(0)
        heat = None if shown is None else heat_of(one, found.lies.get(label))
        if heat is not None:
            panels.append(_panel(label, f"at {one.site} from {one.baseline}: {_figures(one)}{_elsewhere(one, heat)}", heat[None]))
    layers = seen.facts.get("drawn as") == drawing.LAYERS
    what = f"at {len(found.labels)} sites" if layers else f"by {len(found.labels)} methods"
    first = next(iter(found.members.values())).sample(0)
    start = f" from the {first.baseline} baseline" if layers else ", each from its own baseline"
    viewer = Viewer(
        "Layer by layer" if layers else "Method by method", tuple(panels), "cell", "the difference", None, "site" if layers else "method", shown
    )
    failed = tuple((label, why) for label, why in found.failures.items())
    return Chapter(
        "comparison",
        f"What is the {found.target[0]} based on, {what}{start}?",
        ("Each row has a difference of its own to explain, and an error of its own: compare those before you compare maps.",),
        viewers=(viewer,) if panels else (),
        budgets=tuple(budget(member.sample(0), label) for label, member in found.members.items()),
        tables=(
            Table("The record", tuple(found.rows()), comparison.HEAD),
            *([Table("What failed", failed)] if failed else []),
        ),
    )


def _relevance(one: Relevance, seen: Seen) -> Chapter:
    viewers = []
    for source in drawing.sources(one, seen):
        size = source.heat.shape if source.is_map else (1, len(source.heat))
        whole = _panel("all attentions together", source.aside, source.heat.reshape(1, *size))
        moved = [call for call in range(len(source.layers)) if bool(np.any(source.layers[call]))]
        each = [_panel(f"{call}: {one.calls[call][0]}", one.calls[call][1], source.layers[call].reshape(1, *size)) for call in moved]
        cell = "patch" if source.is_map else "token"
        viewers.append(
            Viewer(source.title, (whole, *each), cell, "the relevance", None, "attention", source.picture, () if source.is_map else source.words)
        )
    return Chapter(
        "relevance",
        f"Where does attention find the {one.target[0]}?",
        (f"By {one.method}: f(x) = {float(one.output[0]):.4g}, read at {one.readout[0] if one.readout else '-'}.", NO_UNIT),
        viewers=tuple(viewers),
        tables=(Table("The record", (("method", one.method), *one.rows())),),
    )


def _grounding(record: Grounding, seen: Seen) -> Chapter:
    one = record.sample(0)
    names = [f"{i + 1} {word}" if one.row_words.count(word) > 1 else word for i, word in enumerate(one.row_words)]
    shown = picture(seen.image) if one.gridded else None
    both, each = (_as_maps(one, part) for part in (one.coupling[0], (one.per_call + one.back_per_call)[:, 0]))
    panels = [_panel("all attentions together", "", _with_sum(both[0]))]
    panels += [_panel(name, "", _with_sum(maps)) for name, maps in zip(one.calls, each) if bool(np.any(maps))]
    words = () if one.gridded else tuple(one.where(c) for c in range(len(one.column_tokens)))
    what = one.row_stream or "targets"
    viewer = Viewer(
        f"{what} against {one.column_stream}",
        tuple(panels),
        "patch" if one.gridded else "token",
        "the relevance",
        None,
        "attention",
        shown,
        words,
        ("all of them", *names),
        "row",
    )
    return Chapter(
        "grounding",
        f"Which {'words' if one.row_stream else 'targets'} go with which part of {one.column_stream}?",
        (f"For the {one.target[0]}." if one.row_stream else f"For {len(one.row_words)} targets.", NO_UNIT),
        viewers=(viewer,),
        tables=(Table("The record", tuple(one.rows())),),
    )


def _as_maps(one: Grounding, part: Tensor) -> Any:
    """A part [..., rows, columns] as [panels, rows, height, width]; columns that lie on no grid are one line."""
    values = part.double().cpu().numpy()
    if one.gridded and one.lie.grid is not None:
        values, shape = values[..., one.lie.prefix :], one.lie.grid
    else:
        shape = (1, values.shape[-1])
    return values.reshape(-1, values.shape[-2], *shape)


def _with_sum(maps: Any) -> Any:
    """Maps [rows, height, width] with their sum in front."""
    return np.concatenate([maps.sum(0, keepdims=True), maps])


def _corrections(found: Corrections, seen: Seen) -> Chapter:
    first = next(iter(found.members.values()))
    panels = tuple(_panel(label, "", found.maps(label)[:1].double().cpu().numpy()) for label in found.members)
    return Chapter(
        "corrections",
        f"Where does attention find the {first.target[0]}, by each correction?",
        (NO_UNIT,),
        viewers=(Viewer("Correction by correction", panels, "patch", "the relevance", None, "correction", picture(seen.image)),),
        tables=(Table("The record", tuple(found.rows()), corrected.HEAD),),
    )


def _guidance(found: Guidance, seen: Seen) -> Chapter:
    viewers = []
    for when in (guidance.BEFORE, guidance.AFTER):
        maps = {f"{name}: {each[when].target[0]}": each[when].grid()[:1].double().cpu().numpy() for name, each in found.members.items()}
        panels = tuple(_panel(label, "", heat) for label, heat in maps.items())
        shown = _upright(found.pictures[when])
        viewers.append(Viewer(f"{when} the guest", panels, "patch", "the relevance", None, "target", shown))
    return Chapter(
        "guidance",
        f"What does attention show once a guest of {found.settings.get('guest')} lies on the picture?",
        (NO_UNIT,),
        viewers=tuple(viewers),
        tables=(Table("The record", tuple(found.rows()), guidance.HEAD),),
    )


def _upright(levels: Tensor) -> Picture:
    """uint8 [3, height, width] as a picture in 0..1."""
    return np.asarray(levels.permute(1, 2, 0).cpu().numpy(), dtype=np.float32) / np.float32(255)


def _logic(one: Logic, seen: Seen) -> Chapter:
    parts = tuple((name, value) for name, value in one.largest(0))
    left = (("left over", float(one.error[0])),) if float(one.error[0]) else ()
    sums = Budget("dividends", float(one.total[0]), float(one.difference[0]), left, f"{len(parts)} largest below")
    return Chapter(
        "logic",
        f"What does the {one.target[0]} need?",
        (
            one.reading[0][:1].upper() + one.reading[0][1:] + ".",
            f"f(all) - f(none) = {float(one.difference[0]):.4g}; the dividends add up to {float(one.total[0]):.4g}: an attribution error of"
            f" {float(one.error[0]):+.2g}. Absent players are {', '.join(sorted(set(one.baselines)))}.",
        ),
        budgets=(sums,),
        tables=(
            Table("Largest dividends", tuple((name, f"{value:+.4g}") for name, value in parts)),
            Table("The record", tuple(one.rows())),
        ),
    )


def _mechanism(one: Mechanism, seen: Seen) -> Chapter:
    baselines = ", ".join(f"{name}: {what}" for name, what in one.baselines.items())
    lead = (f"{one.reading()[:1].upper()}{one.reading()[1:]}.", f"An effect is what f loses without an edge; the baselines are {baselines}.")
    tables = (Table("Every attention", tuple(one.table()), circuit.HEAD), Table("The record", tuple(one.rows())))
    return Chapter("mechanism", f"Through which attentions does the {one.target[0]} come?", lead, tables=tables)


def _audit(audit: BaselineAudit, seen: Seen) -> Chapter:
    best, why = audit.advice()
    shown = []
    for name in audit.baselines:
        found = picture(seen.pictures.get(f"{BASELINE}/{name}"))
        if found is not None:
            words = f"{name}: f = {float(audit[name].output[0]):.3g}; {audit.verdict(name)}"
            shown.append(encode.picture(found, words, f"the baseline {name} as the model sees it"))
    tables = (Table("The record", tuple(audit.rows()), audits.HEAD),)
    lead = (f"Advice: {best or 'none of these'}: {why}.",)
    return Chapter("audit", f"Which baseline for the {audit.target[0]}?", lead, pictures=tuple(shown), tables=tables)


def _principles(found: Principles, seen: Seen) -> Chapter:
    judged = [f"Principle {number} {'holds' if holds else 'does not hold'}: {why}." for number, (holds, why) in _verdicts(found)]
    tables = (Table("The record", (("method", found.method), *found.rows())),)
    return Chapter("principles", f"Does {found.method} explain the original model, and follow its performance?", tuple(judged), tables=tables)


def _verdicts(found: Principles) -> list[tuple[int, tuple[bool, str]]]:
    return [(1, found.original_model()), (2, found.performance())]


def _rewriting(one: Rewriting, seen: Seen) -> Chapter:
    pictures = {rewriting.BEFORE: one.original, rewriting.AFTER: one.rewritten}
    shown = tuple(
        encode.picture(_upright(levels), f"{when}: {answer}", f"the picture {when} rewriting")
        for (when, levels), answer in zip(pictures.items(), (one.own, one.answer))
    )
    lead = (f"The saved picture is {one.answer} to the model: {'success' if one.success else 'no success within the budget'}.", *one.notes)
    tables = (Table("The record", tuple(one.rows())),)
    return Chapter("rewriting", f"How little makes {one.own} into {one.to}?", lead, pictures=shown, tables=tables)


def _robustness(found: Robustness, seen: Seen) -> Chapter:
    tables = (
        Table("The model", (found.summary(),), thresholds.SUMMARY),
        Table("Every picture, the most fragile first", tuple(found.rows()), thresholds.HEAD),
    )
    return Chapter("robustness", f"How little changes the answers of {found.model}?", (), tables=tables)


def _summary(found: Summary, seen: Seen) -> Chapter:
    tables = (Table("Spreads", tuple(found.table()), summary.HEAD), Table("The record", tuple(found.rows())))
    return Chapter("summary", f"How exact is the run {found.folder}?", (f"{found.examples:,} examples, {found.failed:,} failed.",), tables=tables)


CHAPTERS: Mapping[type, Callable[[Any, Seen], Chapter]] = {
    Attribution: _attribution,
    BaselineAudit: _audit,
    Comparison: _comparison,
    Corrections: _corrections,
    Grounding: _grounding,
    Guidance: _guidance,
    Logic: _logic,
    Mechanism: _mechanism,
    Principles: _principles,
    Relevance: _relevance,
    Rewriting: _rewriting,
    Robustness: _robustness,
    Summary: _summary,
}


def _pictures(one: Any, seen: Seen) -> tuple[Shown, ...]:
    """What the model saw, and what stands for nothing beside it."""
    found = []
    shown, nothing = picture(seen.image), picture(seen.pictures.get(BASELINE))
    if shown is not None:
        value = f": f = {float(one.output[0]):.4g}" if isinstance(one, Attribution) else ""
        found.append(encode.picture(shown, f"x, as the model sees it{value}", "the picture that was explained, as the model sees it"))
    if nothing is not None and isinstance(one, Attribution):
        words = f"the baseline {one.baseline}: f = {float(one.baseline_output[0]):.4g}"
        found.append(encode.picture(nothing, words, f"the baseline, {one.baseline}: what counts as nothing here"))
    return tuple(found)


def _facts(told: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What makes a record repeatable: the model and a hash of its weights, the seed, the settings, the versions."""
    found = [(name, str(told[name])) for name in ("model", "seed") if told.get(name) not in (None, "")]
    settings = told.get("settings") or {}
    found += [(f"setting {name}", str(value)) for name, value in settings.items() if value is not None]
    versions = told.get("versions") or {}
    return tuple(found + ([("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))] if versions else []))


def _shorter(table: Table) -> Table:
    """At most 200 rows; what is left out is said in the caption."""
    if len(table.rows) <= _MOST_ROWS:
        return table
    caption = f"{table.caption} (the first {_MOST_ROWS} of {len(table.rows):,} rows)"
    return Table(caption, table.rows[:_MOST_ROWS], table.head)
