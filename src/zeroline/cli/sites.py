"""``zeroline sites``: what can be a site in a model, with shapes and whether it is a cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from zeroline.cli import show
from zeroline.cli.options import TrustRemoteCode
from zeroline.model.listing import sites as list_sites
from zeroline.spelling.models import load_sourced
from zeroline.spelling.questions import stand_in
from zeroline.spelling.sources import open_image


def sites(
    model: Annotated[str, typer.Argument(help="zoo:NAME, hf:ID-OR-FOLDER, timm:NAME, open_clip:NAME/WEIGHTS.")],
    image: Annotated[Path | None, typer.Option(help="An image to run the model on; default: a test pattern.")] = None,
    text: Annotated[str | None, typer.Option(help="The text, for models that read one; left out, a few words.")] = None,
    match: Annotated[str | None, typer.Option(help="Only modules that match, e.g. 'vit.layers.*'.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """List the sites of a model. At a cut, f(baseline at the site) equals f of the baseline input."""
    picture = None if image is None else open_image(image)
    sourced = load_sourced(model, trust_remote_code=trust_remote_code)
    inputs = sourced.prepare(*stand_in(sourced, picture, text))
    with show.progress("sites") as report:
        found = list(list_sites(sourced.model, inputs, match=match, progress=report))
    if json_:
        print(json.dumps([{"site": s.site, "kind": s.kind, "shape": s.shape, "is_cut": s.is_cut} for s in found], indent=2))
        return
    table = Table("site", "kind", "shape", "cut", box=None, pad_edge=False)
    for s in found:
        table.add_row(Text(s.site), Text(s.kind), " x ".join(map(str, s.shape)), {True: "yes", False: "no", None: "?"}[s.is_cut])
    show.output.print(table)
