"""``zeroline compare``: several methods side by side, each with its baseline, site, sum and error."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Annotated

import typer

from zeroline import reporting
from zeroline.cli import show
from zeroline.cli.options import BASELINES, AsJson, Grid, ImageFile, ModelName, Prefix, Report, TargetText, Texts, TrustRemoteCode
from zeroline.comparison import Comparison
from zeroline.maths.cam import STAGES
from zeroline.measure import compare as side_by_side
from zeroline.measure.compare import DEFAULT
from zeroline.seen import IMAGE, Seen
from zeroline.spelling.questions import question
from zeroline.spelling.reading import grid_of
from zeroline.spelling.sources import is_input, open_image, read_baseline, split


def compare(
    image: ImageFile,
    text: Texts = None,
    model: ModelName = "zoo:digits-vit",
    target: TargetText = "top",
    methods: Annotated[str, typer.Option(help="Methods, with commas; see `zeroline methods`.")] = ", ".join(DEFAULT),
    baseline: Annotated[str, typer.Option(help=f"Of the methods that imply none: {BASELINES}")] = "black",
    site: Annotated[str | None, typer.Option(help="Of the methods outside the CAM family; default: the input.")] = None,
    grid_site: Annotated[str | None, typer.Option(help="Of the CAM family; default: the last block with gradients at its positions.")] = None,
    grid: Grid = None,
    prefix: Prefix = None,
    out: Annotated[Path, typer.Option(help="Folder for figure.png, comparison.safetensors, record.json.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Compare methods on one image and target; Grad-CAM, LayerCAM and ODAM are measured from zero features, as published."""
    shape = grid_of(grid)
    picture = open_image(image)
    loaded, inputs, wanted = question(model, picture, text, target, trust_remote_code=trust_remote_code)
    chosen = read_baseline(baseline, loaded, at_input=is_input(site))
    with show.results_folder(out):
        chosen = show.settled(loaded, inputs, chosen, site)
        with show.progress("methods") as told, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = side_by_side(
                loaded.model,
                inputs,
                target=wanted,
                baseline=chosen,
                methods=split(methods),
                site=site,
                grid_site=grid_site,
                grid=shape,
                prefix=prefix,
                progress=told,
            )
        for warning in caught:
            show.notes.print(f"warning: {warning.message}", markup=False)
        seen = reporting.picture_among(loaded.model, inputs)
        written = show.write(found, "comparison", out, Seen(reporting.levels({IMAGE: seen})), report=report)
    if json_:
        print(json.dumps({**found.to_dict(), "files": [str(p) for p in written]}, indent=2))
        return
    show.comparison(found, {label: _budget(found, label) for label in found.labels}, ["budget"])
    show.output.print(f"wrote {', '.join(str(p) for p in written)}", markup=False)


def _budget(found: Comparison, label: str) -> list[str]:
    """``truncation -3.1, pooling +0.2``: the parts that are not zero, in the order in which they are made."""
    parts = found[label].budget
    order = [*(name for name in STAGES if name in parts), *(name for name in parts if name not in STAGES)]
    return [", ".join(f"{name} {float(parts[name][0]):+.3g}" for name in order if float(parts[name][0])) or "none"]
