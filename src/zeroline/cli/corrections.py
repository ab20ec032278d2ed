"""``zeroline corrections``: every correction of the attention side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from zeroline import reporting
from zeroline.cli import show
from zeroline.cli.guides import read_guide
from zeroline.cli.options import AsJson, BoxText, Calls, Direction, Grid, Guide, ImageFile, MaskFile, ModelName, Prefix, Report, TrustRemoteCode
from zeroline.corrected import HEAD
from zeroline.errors import InputError
from zeroline.measure import corrections as by_correction
from zeroline.seen import IMAGE, Seen
from zeroline.spelling.models import load_sourced
from zeroline.spelling.questions import image_only, sources_of, target_for
from zeroline.spelling.reading import grid_of
from zeroline.spelling.sources import open_image, open_mask


def corrections(
    image: ImageFile,
    text: Annotated[str | None, typer.Option(help="The text, for models that read one.")] = None,
    model: ModelName = "zoo:digits-vit",
    target: Direction = "top",
    calls: Calls = "all",
    guide: Guide = None,
    mask: MaskFile = None,
    box: BoxText = None,
    grid: Grid = None,
    prefix: Prefix = None,
    out: Annotated[Path, typer.Option(help="Folder for figure.png, corrections.safetensors, record.json.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Positive, absolute, negative and signed attention relevance, complete and incomplete, with the numbers that tell them apart."""
    shape, picture = grid_of(grid), open_image(image)
    sourced = load_sourced(model, trust_remote_code=trust_remote_code)
    inputs = sourced.prepare(*sources_of(sourced, picture, text))
    loaded = image_only(sourced, text)
    where = open_mask(loaded, mask, box, picture)
    weights = read_guide(guide, loaded, inputs, picture, shape)
    with show.results_folder(out):
        options = {"calls": show.calls_of(calls), "grid": shape, "prefix": prefix}
        found = by_correction(sourced.model, inputs, target=target_for(target, sourced), mask=where, guide=weights, **options)
        seen = reporting.picture_among(sourced.model, inputs)
        if seen is None:
            raise InputError("the model's inputs hold no image")
        written = show.write(found, "corrections", out, Seen(reporting.levels({IMAGE: seen})), report=report)
    if json_:
        print(json.dumps({**found.to_dict(), "files": [str(p) for p in written]}, indent=2))
        return
    show.output.print(f"target  {next(iter(found.members.values())).target[0]}", markup=False)
    table = Table(*HEAD, box=None, pad_edge=False)
    for row in found.rows():
        table.add_row(*map(Text, row))
    show.grid(table)
    show.output.print(f"wrote {', '.join(str(p) for p in written)}", markup=False)
