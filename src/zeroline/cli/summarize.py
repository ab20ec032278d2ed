"""``zeroline summarize``: what a run found, and what two runs disagree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from zeroline.cli import show
from zeroline.cli.options import AsJson, Report
from zeroline.scale import summarize as read
from zeroline.seen import Seen
from zeroline.summary import HEAD


def summarize(
    folder: Annotated[Path, typer.Argument(help="The folder of a run.")],
    against: Annotated[Path | None, typer.Option(help="Another run over the same examples.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for figure.png, summary.safetensors, record.json.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
) -> None:
    """Distributions of errors, the least exact and the slowest examples, mean maps per class, evidence inside objects."""
    found = read(folder, against=against)
    with show.results_folder(out):
        written = show.write(found, "summary", out, Seen(), report=report)
    if json_:
        print(json.dumps({**found.to_dict(), "files": [str(p) for p in written]}, indent=2))
        return
    show.table(found.rows())
    drawn = Table(*HEAD, box=None, pad_edge=False)
    for row in found.table():
        drawn.add_row(*map(Text, row))
    show.grid(drawn)
    show.output.print(f"wrote {', '.join(str(p) for p in written)}", markup=False)
