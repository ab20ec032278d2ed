"""``zeroline attend``: where a model's attention finds what a target needs, per source and per layer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from zeroline.cli import show
from zeroline.cli.guides import read_guide
from zeroline.cli.options import AsJson, Calls, Direction, Grid, Guide, ModelName, Prefix, Report, TrustRemoteCode
from zeroline.methods import attention_relevance
from zeroline.report import relevance_figure
from zeroline.report.drawing import sources
from zeroline.reporting import beside
from zeroline.spelling.models import load_sourced
from zeroline.spelling.questions import image_only, sources_of, target_for
from zeroline.spelling.reading import grid_of
from zeroline.spelling.sources import open_image


def attend(
    image: Annotated[Path | None, typer.Argument(help="The image file; left out for models that read text alone.")] = None,
    text: Annotated[str | None, typer.Option(help="The text, for models that read one.")] = None,
    model: ModelName = "zoo:digits-vit",
    target: Direction = "top",
    correction: Annotated[str, typer.Option(help="positive, absolute, negative, signed or none (rollout).")] = "positive",
    calls: Calls = "all",
    coverage: Annotated[str, typer.Option(help="complete or incomplete.")] = "complete",
    guide: Guide = None,
    rule: Annotated[str, typer.Option(help="graph or chefer-bimodal.")] = "graph",
    grid: Grid = None,
    prefix: Prefix = None,
    out: Annotated[Path, typer.Option(help="Folder for figure.png, relevance.safetensors, record.json.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Relevance of every patch and word for a target, through all attentions of the model."""
    shape = grid_of(grid)
    picture = None if image is None else open_image(image)
    sourced = load_sourced(model, trust_remote_code=trust_remote_code)
    inputs = sourced.prepare(*sources_of(sourced, picture, text))
    weights = read_guide(guide, image_only(sourced, text), inputs, picture, shape)
    with show.results_folder(out):
        started = time.perf_counter()
        relevance = attention_relevance(
            sourced.model,
            inputs,
            target=target_for(target, sourced),
            correction=correction,
            calls=show.calls_of(calls),
            coverage=coverage,
            guide=weights,
            rule=rule,
            grid=shape,
            prefix=prefix,
        )
        seconds = time.perf_counter() - started
        seen = beside(relevance, sourced, inputs)
        written = show.write(relevance, "relevance", out, seen, report=report)
    if json_:
        print(json.dumps({**relevance.to_dict(), "seconds": seconds, "files": [str(p) for p in written]}, indent=2))
        return
    show.table([("method", relevance.method), *relevance.rows(), ("seconds", f"{seconds:.2f}")])
    for source in sources(relevance, seen):
        if source.words and not source.is_map:
            show.output.print(coloured(source))
    show.output.print(f"wrote {', '.join(str(p) for p in written)}", markup=False)


def coloured(source: relevance_figure.Source) -> Text:
    """Words on a ground as strong as their relevance (plain in a pipe)."""
    line = Text(f"{source.name}: ")
    limit = relevance_figure.word_limit(source)
    for word, value in zip(source.words, source.heat):
        red, green, blue = (int(255 * c) for c in relevance_figure.shade(float(value), limit))
        ink = "white" if abs(value) > 0.75 * limit else "black"
        line.append(word, style=f"{ink} on #{red:02x}{green:02x}{blue:02x}")
        line.append(" ")
    return line
