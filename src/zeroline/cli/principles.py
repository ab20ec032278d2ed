"""``zeroline principles``: is an explanation of the original model, and does it follow the model's performance?"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from zeroline.baseline import by_name
from zeroline.cli import show
from zeroline.cli.labelled import labelled
from zeroline.cli.options import MOST_SEED, AsJson, ModelName, Report, TrustRemoteCode
from zeroline.errors import UsageError
from zeroline.measure import check_principles
from zeroline.methods import METHODS, ROUTES, check_options
from zeroline.principles import Principles
from zeroline.report import principles_figure
from zeroline.spelling.models import load_sourced, scheme_of
from zeroline.spelling.sources import split

DEFAULT = ["grad_eclip", "attention_eclip(weights=attention)", "attention_relevance"]


def principles(
    source: Annotated[Path | None, typer.Argument(help="CSV file: image, label, mask. Left out: the set that ships with a zoo model.")] = None,
    model: ModelName = "zoo:digits-clip",
    method: Annotated[list[str] | None, typer.Option(help="A method, or NAME(option=value, ...); several may be given.")] = None,
    count: Annotated[int | None, typer.Option(help="Examples at most.")] = None,
    cascade: Annotated[bool, typer.Option("--cascade/--no-cascade", help="Also shuffle weights from the top down.")] = True,
    batch_size: Annotated[int, typer.Option(help="Examples at once.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the shuffling.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for figure.png, record.json and a NAME.safetensors per method.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Hold methods against two principles, on a labelled set: a table with a verdict in words for each, and a figure."""
    asked = {text: read_method(text) for text in method or DEFAULT}
    for name, options in asked.values():
        if name in METHODS or name in ROUTES:
            check_options(name, options)
    sourced = load_sourced(model, trust_remote_code=trust_remote_code)
    data = labelled(sourced, scheme_of(model), source, count)
    found: dict[str, Principles] = {}
    with show.results_folder(out):
        for label, (name, options) in asked.items():
            with show.progress(f"{label}: examples") as told:
                found[label] = check_principles(
                    name, sourced.model, data, cascading=cascade, batch_size=batch_size, seed=seed, progress=told, **options
                )
        record = {label: one.to_dict() for label, one in found.items()}
        files = {_file(label): one for label, one in found.items()}
        written = show.write_several(files, record, out, {}, principles_figure.figure(found), report=report)
    if json_:
        print(json.dumps({"methods": record, "files": [str(p) for p in written]}, indent=2))
        return
    for label, one in found.items():
        show.table([("method", label), *one.rows()])
        show.output.print("")
    show.output.print(f"wrote {', '.join(str(p) for p in written)}", markup=False)


def read_method(text: str) -> tuple[str, dict[str, Any]]:
    """``attention_eclip(weights=attention, layers=2)`` as a name and options; a baseline by its name."""
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return name, {}
    if not rest.endswith(")"):
        raise UsageError(f"cannot read --method {text!r}; write NAME or NAME(option=value, option=value)")
    options: dict[str, Any] = {}
    for part in split(rest[:-1]):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key.isidentifier():
            raise UsageError(f"cannot read {part!r} in --method {text!r}; write option=value")
        options[key] = by_name(value) if key == "baseline" else _value(value)
    return name, options


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _file(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-=" else "-" for letter in label).strip("-")
