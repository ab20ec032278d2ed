"""``zeroline mechanism``: relevance and causal effect of every attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text as Styled

from zeroline.circuit import HEAD
from zeroline.cli import show
from zeroline.cli.options import AsJson, Calls, ModelName, Report, TargetText, TrustRemoteCode
from zeroline.cli.paradigm import Audio, Correction, ImageOrNone, Passage, Text, given
from zeroline.paradigm import mechanism as by_cutting
from zeroline.spelling.questions import target_for


def mechanism(
    image: ImageOrNone = None,
    text: Text = None,
    passage: Passage = None,
    audio: Audio = None,
    model: ModelName = "zoo:digits-vqa",
    target: TargetText = "top",
    baseline: Annotated[str, typer.Option(help="What an absent image is: zeros, black, mean, blur(8), ... Absent words are mask tokens.")] = "zeros",
    calls: Calls = "all",
    heads: Annotated[bool, typer.Option("--heads/--no-heads", help="Cut every head by itself too.")] = True,
    correction: Correction = "positive",
    max_evaluations: Annotated[int, typer.Option(help="Cuts at most.")] = 4096,
    out: Annotated[Path, typer.Option(help="Folder for figure.png, figure.svg, mechanism.safetensors, record.json.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """The model's attention as a graph: what flows along every edge, and what the answer loses without it."""
    asked = given(model, image, text, passage, audio, trust_remote_code=trust_remote_code)
    with show.results_folder(out):
        with show.progress("cuts") as told:
            found = by_cutting(
                asked.sourced.model,
                asked.inputs,
                target=target_for(target, asked.sourced),
                baseline=asked.baselines(baseline),
                calls=show.calls_of(calls),
                heads=heads,
                correction=correction,
                max_evaluations=max_evaluations,
                progress=told,
            )
        written = show.write(found, "mechanism", out, asked.seen(), ("png", "svg"), report=report)
    if json_:
        print(json.dumps({**found.to_dict(), "files": [str(p) for p in written]}, indent=2))
        return
    table = Table(*HEAD, box=None, pad_edge=False)
    for row in found.table():
        table.add_row(*map(Styled, row))
    show.grid(table)
    show.table(found.rows())
    show.output.print(f"wrote {', '.join(str(p) for p in written)}", markup=False)
