"""``zeroline layers``: one target from one baseline at many layers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from zeroline import reporting
from zeroline.cli import show
from zeroline.cli.options import (
    AsJson,
    BaselineText,
    BoxText,
    Grid,
    ImageFile,
    MaskFile,
    MaxEvaluations,
    ModelName,
    Prefix,
    Report,
    TargetText,
    Texts,
    Tolerance,
    TrustRemoteCode,
)
from zeroline.measure import layers as at_layers
from zeroline.model.blocks import first_site
from zeroline.model.places import matching
from zeroline.report import layers_figure
from zeroline.report.drawing import LAYERS, MASK
from zeroline.seen import IMAGE, Seen
from zeroline.spelling.questions import question
from zeroline.spelling.reading import grid_of
from zeroline.spelling.sources import open_image, open_mask, read_baseline, split


def layers(
    image: ImageFile,
    text: Texts = None,
    model: ModelName = "zoo:digits-vit",
    target: TargetText = "top",
    baseline: BaselineText = "black",
    sites: Annotated[str | None, typer.Option(help="Sites, with commas; a name may hold *. Default: the input, then every block.")] = None,
    tolerance: Tolerance = None,
    max_evaluations: MaxEvaluations = None,
    mask: MaskFile = None,
    box: BoxText = None,
    grid: Grid = None,
    prefix: Prefix = None,
    out: Annotated[Path, typer.Option(help="Folder for figure.png, layers.safetensors, record.json.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Integrated gradients at every layer: a strip of maps from early to late, each with its difference, error and local error."""
    shape = grid_of(grid)
    picture = open_image(image)
    loaded, inputs, wanted = question(model, picture, text, target, trust_remote_code=trust_remote_code)
    chosen = read_baseline(baseline, loaded, at_input=False)
    where = open_mask(loaded, mask, box, picture)
    given = {"tolerance": tolerance, "max_evaluations": max_evaluations}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with show.results_folder(out):
        chosen = show.settled(loaded, inputs, chosen, None)
        with show.progress("sites") as told, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            asked = None if sites is None else _sites(sites, loaded.model, inputs)
            found = at_layers(loaded.model, inputs, target=wanted, baseline=chosen, sites=asked, grid=shape, prefix=prefix, progress=told, **options)
        for warning in caught:
            show.notes.print(f"warning: {warning.message}", markup=False)
        seen = reporting.picture_among(loaded.model, inputs)
        figures = layers_figure.evidence(found, where)
        places = {} if where is None else {MASK: where}
        around = Seen(reporting.levels({IMAGE: seen}), places=places, facts={"drawn as": LAYERS})
        written = show.write(found, "layers", out, around, report=report)
    if json_:
        shares = {label: [None if share != share else share for share in row] for label, row in figures.items()}
        print(json.dumps({**found.to_dict(), "evidence": shares, "files": [str(p) for p in written]}, indent=2))
        return
    heads = ["in top 10 %", *(["inside", "by chance"] if where is not None else [])]
    words = {label: ["-" if share != share else f"{share:.2f}" for share in row] for label, row in figures.items()}
    show.comparison(found, words, heads)
    show.output.print(f"wrote {', '.join(str(p) for p in written)}", markup=False)


def _sites(text: str, model: Any, inputs: Any) -> list[str]:
    """``"input, vit.layers.*"``: globs are taken apart, one site for each module that matches."""
    found: list[str] = []
    for part in split(text):
        if part == "input":
            found.append(first_site(model, inputs))
        else:
            found += matching(model, part) if "*" in part or "?" in part else [part]
    return found
