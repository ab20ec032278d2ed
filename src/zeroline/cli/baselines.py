"""``zeroline baselines``: what the model believes on each candidate baseline, and which to use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from zeroline import reporting
from zeroline.audit import HEAD, BaselineAudit
from zeroline.baseline import Baseline, Distribution
from zeroline.cli import show
from zeroline.cli.options import AsJson, ImageFile, ModelName, Report, TargetText, TrustRemoteCode
from zeroline.errors import NotNeutralError, UsageError
from zeroline.measure import audit_baseline
from zeroline.model.loading import Loaded
from zeroline.seen import BASELINE, IMAGE, Seen
from zeroline.spelling.models import load_model, load_sourced, sourced
from zeroline.spelling.questions import target_for, texts_as_classes
from zeroline.spelling.reading import read_target
from zeroline.spelling.sources import is_input, open_image, read_baseline, split
from zeroline.target import ClassTarget, Target

CANDIDATES = "black, zeros, mean, blur(8), noise(0), neutral(black), neutral(blur(8))"


def baselines(
    image: ImageFile,
    text: Annotated[list[str] | None, typer.Option(help="Of dual encoders: the classes that there are; two or more.")] = None,
    model: ModelName = "zoo:digits-vit",
    target: TargetText = "top",
    baselines: Annotated[str, typer.Option(help="Candidates, with commas; see --baseline of `zeroline explain`.")] = CANDIDATES,
    site: Annotated[str | None, typer.Option(help="Where the features are; default: the input.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for figure.png, audit.safetensors, record.json.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Audit baselines: f, class distribution, distance and a verdict for each, and an advice. Exit status 1 if one cannot be had."""
    names = split(baselines)
    if not names:
        raise UsageError(f"--baselines is empty; e.g. --baselines '{CANDIDATES}'")
    picture = open_image(image)
    loaded = (
        texts_as_classes(load_sourced(model, trust_remote_code=trust_remote_code), text)
        if text
        else load_model(model, trust_remote_code=trust_remote_code)
    )
    asked = [read_baseline(name, loaded, at_input=is_input(site)) for name in names]
    inputs = loaded.preprocess(picture)
    if sourced(loaded).is_detector:
        raise UsageError(f"{loaded.name!r} is a detector: it has a class per query, and an audit asks what a model believes of the whole picture")
    wanted = _of_texts(target, loaded.labels) if text else target_for(target, sourced(loaded))
    with show.results_folder(out):
        known, failures = _settled(loaded, inputs, asked, site)
        with show.progress("baselines") as told:
            audit = audit_baseline(loaded.model, inputs, wanted, list(known.values()), site=site, progress=told)
            audit = replace(audit, failures={**audit.failures, **failures}, classes=tuple(loaded.labels) if text else audit.classes)
        pictures = {f"{BASELINE}/{name}": reporting.baseline_picture(loaded.model, inputs, known[name], audit.site) for name in audit.baselines}
        seen = Seen(reporting.levels({IMAGE: reporting.picture_among(loaded.model, inputs), **pictures}))
        written = show.write(audit, "audit", out, seen, report=report)
    if json_:
        print(json.dumps({**audit.to_dict(), "files": [str(p) for p in written]}, indent=2))
    else:
        show.table([(f"class {number}", label) for label, number in loaded.labels.items()] if text else [])
        _print(audit)
        show.output.print(f"wrote {', '.join(str(p) for p in written)}", markup=False)
    if audit.failures:
        for why in audit.failures.values():
            show.notes.print(f"error: {why}", markup=False)
        raise typer.Exit(1)


def _settled(loaded: Loaded, inputs: Any, asked: Sequence[Baseline | Distribution], site: str | None) -> tuple[dict[str, Baseline], dict[str, str]]:
    """Baselines with their recipes followed, so that the picture is of what was audited, under names of their own; and why others failed.

    Raises NotNeutralError where none is left.
    """
    known: dict[str, Baseline] = {}
    failures: dict[str, str] = {}
    for one in (draw for each in asked for draw in (each.draws if isinstance(each, Distribution) else (each,))):
        name = one.name if one.name not in known and one.name not in failures else f"{one.name} ({len(known) + len(failures)})"
        try:
            found = show.settled(loaded, inputs, one, site)
            assert isinstance(found, Baseline)  # as ``one`` is
            known[name] = replace(found, name=name)
        except NotNeutralError as problem:
            failures[name] = str(problem)
    if not known:
        raise NotNeutralError(next(iter(failures.values())))
    return known, failures


def _of_texts(target: str, texts: Mapping[str, int]) -> Target:
    """``--target`` where the classes are texts, which name them."""
    found = read_target(target, texts)
    return replace(found, labels=tuple(texts)) if isinstance(found, ClassTarget) else found


def _print(audit: BaselineAudit) -> None:
    show.table([("target", audit.target[0]), ("site", audit.site), ("f(x)", f"{float(audit.output[0]):.6g}"), ("distance in", audit.unit)])
    table = Table(*HEAD, box=None, pad_edge=False)
    best, why = audit.advice()
    for row in audit.rows():
        table.add_row(*map(Text, row), style="bold" if row[0] == best else None)
    show.grid(table)
    show.output.print(f"advice: {best or 'none of these'}: {why}", markup=False)
