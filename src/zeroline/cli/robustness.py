"""``zeroline robustness``: how small a change rewrites each picture of a folder, for one model or several side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from zeroline.cli import show
from zeroline.cli.options import MOST_SEED, AsJson, Report, TrustRemoteCode
from zeroline.errors import LoadError, UsageError
from zeroline.guided import robustness as measured
from zeroline.report import robustness_figure
from zeroline.spelling.models import load_model
from zeroline.spelling.reading import read_epsilon
from zeroline.spelling.sources import image_files, open_as_is
from zeroline.target import whole_number
from zeroline.thresholds import HEAD, SUMMARY, Robustness

_SHOWN = 20


def robustness(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of images.")],
    model: Annotated[list[str] | None, typer.Option(help="zoo:NAME, hf:ID-OR-FOLDER or timm:NAME; give several to compare.")] = None,
    to: Annotated[str, typer.Option(help="any (whichever class is reached first), second, a label or a number.")] = "any",
    linf: Annotated[str | None, typer.Option(help="The most that is tried. Default: 16/255.")] = None,
    l2: Annotated[str | None, typer.Option(help="The same in the Euclidean norm, instead.")] = None,
    steps: Annotated[int, typer.Option(help="Gradient evaluations per attempt.")] = 40,
    restarts: Annotated[int, typer.Option(help="Attempts per budget.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the restarts.")] = 0,
    count: Annotated[int | None, typer.Option(help="Images at most.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for figure.png, record.json and a robustness.safetensors per model.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """The smallest rewriting of every picture: a table per model, the share that each budget rewrites, and the fragile patches."""
    if count is not None and count < 1:
        raise UsageError(f"--count {count} was asked; 1 or more")
    pictures, unreadable = {}, {}
    for path in image_files(source)[:count]:
        try:
            pictures[path.name] = open_as_is(path)
        except LoadError as reason:
            unreadable[path.name] = str(reason)
    if not pictures:
        raise UsageError(f"no image of {str(source)!r} can be read: {next(iter(unreadable.values()))}")
    number, asked = whole_number(to), list(dict.fromkeys(model or ["zoo:digits-vit"]))
    epsilons = {"linf": read_epsilon(linf, "--linf"), "l2": read_epsilon(l2, "--l2")}
    found: list[Robustness] = []
    with show.results_folder(out):
        for text in asked:
            loaded = load_model(text, trust_remote_code=trust_remote_code)
            with show.progress(f"{loaded.name}: pictures") as told:
                found.append(
                    measured(
                        loaded.model,
                        list(pictures.values()),
                        to=to if number is None else number,
                        **epsilons,
                        steps=steps,
                        restarts=restarts,
                        seed=seed,
                        names=list(pictures),
                        name=loaded.name,
                        preprocess=loaded.preprocess,
                        labels=loaded.labels,
                        report=told,
                    )
                )
        record = {"models": [one.to_dict() for one in found], "unreadable": unreadable}
        files = {"robustness" if len(found) == 1 else f"robustness-{i}": one for i, one in enumerate(found)}
        written = show.write_several(files, record, out, {}, robustness_figure.figure(found), report=report)
    for one in found:
        for name, why in {**unreadable, **one.failures}.items():
            show.notes.print(f"note: {one.model}: {name} left out: {why}", markup=False)
    if json_:
        print(json.dumps({**record, "files": [str(p) for p in written]}, indent=2))
        return
    _print(found)
    show.output.print(f"wrote {', '.join(str(p) for p in written)}", markup=False)


def _print(found: list[Robustness]) -> None:
    table = Table(*SUMMARY, box=None, pad_edge=False)
    for one in found:
        table.add_row(*map(Text, one.summary()))
    show.grid(table)
    for one in found:
        show.output.print(f"\n{one.model}, the most fragile first", markup=False)
        each = Table(*HEAD, box=None, pad_edge=False)
        for row in one.rows()[:_SHOWN]:
            each.add_row(*map(Text, row))
        show.grid(each)
        if len(one.names) > _SHOWN:
            show.output.print(f"... and {len(one.names) - _SHOWN} more, in record.json", markup=False)
