"""``zeroline logic``: which words and regions an answer needs, and how they go together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from zeroline.baseline import by_name
from zeroline.cli import show
from zeroline.cli.options import MOST_SEED, AsJson, ModelName, Report, TargetText, TrustRemoteCode
from zeroline.cli.paradigm import Audio, Given, ImageOrNone, Passage, Text, given
from zeroline.errors import UsageError
from zeroline.model.inputs import Inputs
from zeroline.model.words import words_of
from zeroline.paradigm import logic as by_coalitions
from zeroline.paradigm import players as make
from zeroline.reasoning import Player
from zeroline.spelling.questions import image_only, target_for
from zeroline.spelling.reading import grid_of
from zeroline.spelling.sources import open_mask, read_box

SOURCES = "sources"
USUAL_GRID = "2x2"


def logic(
    image: ImageOrNone = None,
    text: Text = None,
    passage: Passage = None,
    audio: Audio = None,
    model: ModelName = "zoo:digits-vqa",
    target: TargetText = "top",
    players: Annotated[str | None, typer.Option(help="sources: each source as one player. Default: words and regions.")] = None,
    words: Annotated[str | None, typer.Option(help="The words that play, 'color, seven'; 'none' for no words. Default: all.")] = None,
    regions: Annotated[str | None, typer.Option(help="A grid of regions, ROWSxCOLUMNS; A1 is upper left. Default: 2x2 without --region.")] = None,
    region: Annotated[list[str] | None, typer.Option(help="A region by itself, NAME=LEFT,TOP,RIGHT,BOTTOM in pixels; can be repeated.")] = None,
    instead: Annotated[str | None, typer.Option(help="Another question of the same length: which dividends change?")] = None,
    baseline: Annotated[str, typer.Option(help="What an absent region is: zeros, black, mean, blur(8), ... Absent words are mask tokens.")] = "zeros",
    threshold: Annotated[str, typer.Option(help="When a coalition counts: a share of the way to f(all), or answer.")] = "0.5",
    max_evaluations: Annotated[int, typer.Option(help="Coalitions at most.")] = 4096,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the random orders, with more than ten players.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for figure.png, logic.safetensors, record.json.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Which words and regions the answer needs: dividends of every coalition, and a sentence."""
    asked = given(model, image, text, passage, audio, trust_remote_code=trust_remote_code)
    chosen = _players(asked, players, words, regions, region or [], baseline)
    other = None
    if instead is not None:
        if text is None or passage is not None:
            raise UsageError("--instead is another text: it goes with --text, without --passage")
        other = asked.sourced.prepare(asked.image, instead)
    with show.results_folder(out):
        with show.progress("coalitions") as told:
            found = by_coalitions(
                asked.sourced.model,
                asked.inputs,
                target=target_for(target, asked.sourced),
                players=chosen,
                baseline=asked.baselines(baseline),
                threshold=_threshold(threshold),
                instead=other,
                max_evaluations=max_evaluations,
                seed=seed,
                progress=told,
            )
        if instead is not None and found.instead is not None and chosen is not None:
            names = _names(asked, other, chosen)
            found = replace(found, instead=replace(found.instead, players=tuple(names)))
        places = {p.name: _place(p, asked) for p in chosen or [] if p.where is not None and p.input != "input_ids"}
        seen = replace(asked.seen(asked=text or "", instead=instead or ""), places=places)
        files = show.write(found, "logic", out, seen, report=report)
    if json_:
        print(json.dumps({**found.to_dict(), "files": [str(p) for p in files]}, indent=2))
        return
    show.table(found.rows())
    show.output.print(f"wrote {', '.join(str(p) for p in files)}", markup=False)


def _names(asked: Given, other: Mapping[str, Any] | None, players: list[Player]) -> list[str]:
    """The players' names with the words of the other question."""
    found: list[str] = []
    for player in players:
        name = player.name
        if other is not None and asked.sourced.tokenizer is not None and player.input == "input_ids" and player.where is not None:
            here, there = (inputs[player.input][0][player.where] for inputs in (asked.inputs, other))
            words = words_of(asked.sourced.tokenizer, there.tolist())
            name = words[0][0] if words and not torch.equal(here, there) else name
        while name in found:  # a word that stands there twice
            name += " (2)"
        found.append(name)
    return found


def _players(asked: Given, kind: str | None, words: str | None, regions: str | None, region: list[str], baseline: str) -> list[Player] | None:
    if kind is not None:
        if kind != SOURCES or words is not None or regions is not None or region:
            raise UsageError(f"--players {kind!r} was given; it is {SOURCES}, and goes without --words, --regions and --region")
        return None
    if words is not None and not words.strip(", "):
        raise UsageError("--words is empty; name words, as in 'color, seven', or write none")
    found: list[Player] = []
    if "input_ids" in asked.inputs and asked.sourced.tokenizer is not None and words != "none":
        named = None if words is None else [word.strip() for word in words.split(",") if word.strip()]
        found += make.words(asked.inputs, asked.sourced.tokenizer, named)
    elif words not in (None, "none"):
        raise UsageError(f"--words was given, and {asked.sourced.name!r} reads no text")
    if asked.picture is None:
        if regions is not None or region:
            raise UsageError(f"--regions was given, and {asked.sourced.name!r} reads no image here")
        return found or None
    boxes = dict(_region(one, asked.image) for one in region)
    if len(boxes) < len(region):
        raise UsageError("two regions have one name")
    if regions is not None or not region:
        rows, columns = grid_of(regions or USUAL_GRID) or (2, 2)
        for name, box in make.grid(rows, columns).items():
            if name in boxes:
                raise UsageError(f"two regions have one name: {name!r} is a --region and a cell of the grid")
            boxes[name] = box
    made = make.regions(asked.sourced.model, asked.inputs, boxes, baseline=by_name(baseline))
    return found + [_as_seen(player, region, asked) for player in made]


def _as_seen(player: Player, region: list[str], asked: Given) -> Player:
    """A --region of an image that the model crops or pads, where the model sees it."""
    text = next((one for one in region if one.partition("=")[0].strip() == player.name), None)
    if text is None or asked.image is None or asked.inputs[player.input].ndim != 4:
        return player
    return replace(player, where=open_mask(image_only(asked.sourced, asked.text), None, text.partition("=")[2], asked.image))


def _region(text: str, image: Any) -> tuple[str, make.Box]:
    name, equals, box = text.partition("=")
    unreadable = f"cannot read --region {text!r}; write NAME=LEFT,TOP,RIGHT,BOTTOM in pixels"
    if not equals or not name.strip():
        raise UsageError(unreadable)
    left, top, right, bottom = read_box(box, image, unreadable, f"the region {text}")
    return name.strip(), (left / image.width, top / image.height, right / image.width, bottom / image.height)


def _place(player: Player, asked: Given) -> Tensor:
    """A region's place as bool [height, width] of its own grid."""
    assert player.where is not None
    if player.where.ndim == 2:
        return player.where
    _, shape = make.picture_of(asked.sourced.model, Inputs.of(asked.sourced.model, asked.inputs), player.input)
    return player.where.view(shape)


def _threshold(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
