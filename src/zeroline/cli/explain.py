"""``zeroline explain``: one image, one model, one question."""

from __future__ import annotations

import inspect
import json
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from zeroline.attribution import Attribution
from zeroline.baseline import Baseline, Distribution
from zeroline.cli import explain_sources, show
from zeroline.cli.options import (
    AsJson,
    BaselineOrNone,
    Grid,
    ImageFile,
    MaxEvaluations,
    ModelName,
    Prefix,
    Report,
    TargetText,
    Tolerance,
    TrustRemoteCode,
)
from zeroline.errors import NotFoundError, UsageError
from zeroline.methods import CAMS, METHODS, NO_MAP, ROUTES
from zeroline.model.loading import Loaded
from zeroline.reporting import around
from zeroline.spelling.models import load_model, load_sourced, sourced
from zeroline.spelling.questions import target_for
from zeroline.spelling.reading import grid_of
from zeroline.spelling.sources import is_input, open_image, read_baseline
from zeroline.target import Target


def explain(
    image: ImageFile,
    text: Annotated[list[str] | None, typer.Option(help="For dual encoders: what to compare with; several give a map each, and contrasts.")] = None,
    model: ModelName = "zoo:digits-vit",
    method: Annotated[str, typer.Option(help="See `zeroline methods`.")] = "integrated_gradients",
    target: TargetText = "top",
    site: Annotated[str | None, typer.Option(help="Where the features are; see `zeroline sites MODEL`. Default: the input.")] = None,
    baseline: BaselineOrNone = None,
    tolerance: Tolerance = None,
    max_evaluations: MaxEvaluations = None,
    path: Annotated[str | None, typer.Option(help="adaptive, gausslegendre, midpoint, trapezoid or riemann.")] = None,
    n_steps: Annotated[int | None, typer.Option(help="Nodes of a fixed path.")] = None,
    closure: Annotated[str | None, typer.Option(help="discrete_gradient closes the sum.")] = None,
    order: Annotated[int | None, typer.Option(help="Order of the Taylor expansion.")] = None,
    pool: Annotated[bool | None, typer.Option("--pool/--no-pool", help="Grad-CAM: mean gradients.")] = None,
    smooth: Annotated[float | None, typer.Option(help="ODAM: sigma of the gradient's blur, in positions.")] = None,
    rectify: Annotated[bool | None, typer.Option("--rectify/--no-rectify", help="CAM family: no negative positions.")] = None,
    rectify_gradient: Annotated[
        bool | None, typer.Option("--rectify-gradient/--no-rectify-gradient", help="LayerCAM: no negative gradients.")
    ] = None,
    normalise: Annotated[bool | None, typer.Option("--normalise/--no-normalise", help="CAM family: divide by the largest.")] = None,
    weights: Annotated[str | None, typer.Option(help="Attention-ECLIP: loosened or attention.")] = None,
    layers: Annotated[int | None, typer.Option(help="ECLIP: the last layers, added up.")] = None,
    similarity: Annotated[str | None, typer.Option(help="Grad-ECLIP: query-key, projected or none.")] = None,
    correction: Annotated[str | None, typer.Option(help="Attention relevance: positive, absolute, negative, signed or none.")] = None,
    grid: Grid = None,
    prefix: Prefix = None,
    out: Annotated[Path, typer.Option(help="Folder for figure.png, attribution.safetensors, record.json.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Explain what a prediction is based on, measured from a stated baseline."""
    options = {"tolerance": tolerance, "max_evaluations": max_evaluations, "path": path, "n_steps": n_steps, "closure": closure, "order": order}
    options |= {"pool": pool, "smooth": smooth, "rectify": rectify, "rectify_gradient": rectify_gradient, "normalise": normalise}
    options |= {"weights": weights, "layers": layers, "similarity": similarity, "correction": correction}
    asked = _options(method, options)
    shape = grid_of(grid)
    if method in CAMS or method in ROUTES:
        asked |= {"grid": shape, "prefix": prefix}
    if method in ROUTES:
        for option, given in (("--site", site), ("--baseline", baseline)):
            if given is not None:
                raise UsageError(f"{option} means nothing to {method}, which goes through attentions; it belongs to {', '.join(METHODS)}")
    baseline = baseline or "black"
    if text or method in ROUTES:
        question = explain_sources.Question(open_image(image), tuple(text or ()), method, target, site, baseline, asked)
        explain_sources.answer(load_sourced(model, trust_remote_code=trust_remote_code), question, out, as_json=json_, report=report)
        return
    picture = open_image(image)
    loaded = load_model(model, trust_remote_code=trust_remote_code)
    chosen = read_baseline(baseline, loaded, at_input=is_input(site))
    inputs, wanted = loaded.preprocess(picture), target_for(target, sourced(loaded))
    answer(loaded, inputs, method, wanted, site, chosen, asked, out, as_json=json_, report=report, grid=shape, prefix=prefix)


def answer(
    loaded: Loaded,
    inputs: Any,
    method: str,
    target: Target,
    site: str | None,
    baseline: Baseline | Distribution,
    options: dict[str, Any],
    out: Path,
    *,
    as_json: bool = False,
    report: bool = False,
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
) -> Attribution:
    """Call the method, print the record, write the three files."""
    with show.results_folder(out):
        started = time.perf_counter()
        baseline = show.settled(loaded, inputs, baseline, site)
        with show.progress("gradient evaluations") as told, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if "progress" in inspect.signature(METHODS[method]).parameters:
                options = {**options, "progress": told}
            attribution = METHODS[method](loaded.model, inputs, target=target, site=site, baseline=baseline, **options)
        seconds = time.perf_counter() - started
        for warning in caught:
            show.notes.print(f"warning: {warning.message}", markup=False)
        seen = around(attribution, loaded.model, inputs, baseline, grid=grid, prefix=prefix)
        written = show.write(attribution, "attribution", out, seen, report=report)
    if as_json:
        print(json.dumps({**attribution.to_dict(), "seconds": seconds, "files": [str(p) for p in written]}, indent=2))
    else:
        show.record(attribution, seconds)
        show.output.print(f"wrote {', '.join(str(p) for p in written)}", markup=False)
        if attribution.relative_error is None:
            show.notes.print(f"note: no relative error: {attribution.relative_error_reason}", markup=False)
    return attribution


def _options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; an error where the method does not take one of them."""
    every = {**METHODS, **{name: route for name, route in ROUTES.items() if name not in NO_MAP}}
    if method not in every:
        why = f"{method} gives no map of one question; in Python, zl.{method}" if method in NO_MAP else "see `zeroline methods`"
        raise NotFoundError.among("method", method, every, why)
    possible = inspect.signature(every[method]).parameters
    asked = {name: value for name, value in given.items() if value is not None}
    for name in asked:
        if name not in possible:
            takers = ", ".join(m for m, f in every.items() if name in inspect.signature(f).parameters)
            raise UsageError(f"--{name.replace('_', '-')} means nothing to {method}; it belongs to {takers}")
    if "n_steps" in asked and asked.get("path", "adaptive") == "adaptive":
        raise UsageError("--n-steps belongs to a fixed path; add --path gausslegendre, midpoint, trapezoid or riemann")
    return asked
