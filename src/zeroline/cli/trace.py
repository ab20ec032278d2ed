"""``zeroline trace``: every attention of a model, what it reads, and what feeds it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from zeroline.cli import show
from zeroline.cli.options import TrustRemoteCode
from zeroline.errors import NotFoundError
from zeroline.model.trace import HEAD
from zeroline.model.trace import trace as trace_model
from zeroline.spelling.models import load_sourced
from zeroline.spelling.questions import stand_in
from zeroline.spelling.sources import open_image

FORMATS = ("table", "json", "mermaid")


def trace(
    model: Annotated[str, typer.Argument(help="zoo:NAME, hf:ID-OR-FOLDER, timm:NAME, open_clip:NAME/WEIGHTS.")],
    image: Annotated[Path | None, typer.Option(help="The image file; left out, a test pattern.")] = None,
    text: Annotated[str | None, typer.Option(help="The text; left out, a few words.")] = None,
    format_: Annotated[str, typer.Option("--format", help="table, json or mermaid.")] = "table",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """List every attention of one forward pass: heads, tokens, mask, streams, homogenous or heterogenous, what feeds it."""
    if format_ not in FORMATS:
        raise NotFoundError.among("format", format_, FORMATS)
    picture = None if image is None else open_image(image)
    sourced = load_sourced(model, trust_remote_code=trust_remote_code)
    found = trace_model(sourced.model, sourced.prepare(*stand_in(sourced, picture, text)))
    if format_ == "json":
        print(found.to_json())
        return
    if format_ == "mermaid":
        print(found.to_mermaid())
        return
    table = Table(box=None, pad_edge=False)
    for name in HEAD:
        table.add_column(name)
    for row in found.rows():
        table.add_row(*row, style="bold" if row[-2] == "heterogenous" else None)
    show.output.print(table)
    for stream in found.streams:
        lie = f", {stream.prefix} learned first" if stream.prefix else ""
        lie += f", a grid of {stream.grid[0]} x {stream.grid[1]}" if stream.grid else ""
        show.output.print(f"stream {stream.name}: {stream.tokens} tokens{lie}", markup=False)
    if found.fast_path_difference is not None:
        show.output.print(f"difference from PyTorch's fused encoder path: {found.fast_path_difference:.2g}", markup=False)
