"""``zeroline serve``: the web page, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zeroline.cli import show
from zeroline.web.limits import Limits
from zeroline.web.serve import HERE
from zeroline.web.serve import serve as run

USUAL = Limits()


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on; the default can be reached from this machine alone.")] = HERE,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port.")] = 7860,
    model_folder: Annotated[list[Path] | None, typer.Option(help="A model folder to offer beside the zoo; can be repeated.")] = None,
    max_megabytes: Annotated[float, typer.Option(help="Of an uploaded file.")] = USUAL.megabytes,
    max_megapixels: Annotated[float, typer.Option(help="Of an uploaded picture.")] = USUAL.megapixels,
    max_letters: Annotated[int, typer.Option(help="Of a text.")] = USUAL.letters,
    max_seconds: Annotated[float, typer.Option(help="Of an answer.")] = USUAL.seconds,
    max_waiting: Annotated[int, typer.Option(help="Questions in the queue.")] = USUAL.waiting,
) -> None:
    """Serve the web page: pick or upload a picture, ask, compare two, ground words, rewrite, take report and record along."""
    limits = Limits(max_megabytes, max_megapixels, max_letters, max_seconds, max_waiting)
    run(
        host=host,
        port=port,
        folders=model_folder or [],
        limits=limits,
        ready=lambda address: show.output.print(f"{address}  (Ctrl-C ends it)", markup=False),
    )
