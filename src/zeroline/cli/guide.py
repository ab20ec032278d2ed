"""``zeroline guide``: lay a guest of another class on a picture and see what attention shows then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from zeroline.cli import show
from zeroline.cli.options import AsJson, ImageFile, ModelName, Report, TrustRemoteCode
from zeroline.errors import NotFoundError, UsageError
from zeroline.guidance import HEAD
from zeroline.guided import Guest
from zeroline.guided import guide as guided
from zeroline.model.loading import Loaded
from zeroline.model.pictures import pixels_of
from zeroline.seen import Seen
from zeroline.spelling.models import load_model
from zeroline.spelling.sources import open_image
from zeroline.target import whole_number


def guide(
    image: ImageFile,
    with_: Annotated[str, typer.Option("--with", help="The guest: an image file, or a class of the zoo's digits.")],
    at: Annotated[str, typer.Option(help="LEFT,TOP of the guest in the image's pixels.")],
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the guest in pixels, or one number for a square.")] = "24",
    opacity: Annotated[float, typer.Option(help="Of the guest, above 0 up to 1.")] = 1.0,
    guest: Annotated[str | None, typer.Option(help="The guest's class, where --with is an image: a label or number.")] = None,
    host: Annotated[str, typer.Option(help="The host's class; top: the model's own answer.")] = "top",
    model: ModelName = "zoo:digits-vit",
    correction: Annotated[str, typer.Option(help="positive, absolute, negative or signed.")] = "positive",
    out: Annotated[Path, typer.Option(help="Folder for figure.png, guidance.safetensors, record.json.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """External attention guidance: relevance for host, guest and contrast before and after a guest is laid on the picture."""
    picture = open_image(image)
    loaded = load_model(model, trust_remote_code=trust_remote_code)
    laid = read_guest(with_, guest, loaded)
    place, extent = _pair(at, ",", "--at", "LEFT,TOP"), _pair(size if "x" in size.lower() else f"{size}x{size}", "x", "--size", "WIDTHxHEIGHT")
    with show.results_folder(out):
        found = guided(
            loaded.model,
            picture,
            laid,
            preprocess=loaded.preprocess,
            at=place,
            size=extent,
            opacity=opacity,
            host=_class(host),
            correction=correction,
        )
        written = show.write(found, "guidance", out, Seen(), report=report)
    if json_:
        print(json.dumps({**found.to_dict(), "files": [str(p) for p in written]}, indent=2))
        return
    table = Table(*HEAD, box=None, pad_edge=False)
    for row in found.rows():
        table.add_row(*map(Text, row))
    show.grid(table)
    show.output.print(f"wrote {', '.join(str(p) for p in written)}", markup=False)


def read_guest(text: str, label: str | None, loaded: Loaded) -> Guest:
    """An image file with its class, or a class: then a digit of the zoo's test set, cut out along its mask."""
    if Path(text).suffix:
        if label is None:
            raise UsageError(f"--with {text!r} is an image; say its class with --guest LABEL")
        return Guest(pixels_of(open_image(Path(text))), _class(label), name=Path(text).name)
    from zeroline import zoo
    from zeroline.zoo.photo_digits import DIGITS

    number = whole_number(text)
    digit = DIGITS[number] if number is not None and 0 <= number < len(DIGITS) else text.lower()
    if digit not in DIGITS:
        raise NotFoundError.among("digit", text, DIGITS, "or give an image file and its class: --with FILE --guest LABEL")
    if digit not in loaded.labels:
        raise UsageError(f"{loaded.name!r} has no class {digit!r}; give an image file and its class: --with FILE --guest LABEL")
    sample = next(s for s in zoo.test_set("digits-vit") if s.labels[0] == DIGITS.index(digit))
    left, top, right, bottom = sample.boxes[0]
    pixels = pixels_of(sample.image)[:, top:bottom, left:right]
    return Guest(pixels, digit, sample.masks[0][top:bottom, left:right].float(), f"{sample.colours[0]} {digit}")


def _class(text: str) -> Any:
    number = whole_number(text)
    return text if number is None else number


def _pair(text: str, mark: str, option: str, form: str) -> tuple[int, int]:
    numbers = [whole_number(part) for part in text.lower().split(mark)]
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        raise UsageError(f"cannot read {option} {text!r}; write {form}")
    return numbers[0], numbers[1]
