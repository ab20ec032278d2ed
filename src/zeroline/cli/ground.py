"""``zeroline ground``: words against regions, words against time, queries against the image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from zeroline.cli import show
from zeroline.cli.options import AsJson, Calls, Grid, ModelName, Prefix, Report, TargetText, TrustRemoteCode
from zeroline.cli.paradigm import Audio, Correction, Given, ImageOrNone, Passage, Text, given, writes, written
from zeroline.detection import detections
from zeroline.errors import TargetError
from zeroline.model.inputs import Inputs
from zeroline.paradigm import ground as by_paths
from zeroline.spelling.questions import target_for
from zeroline.spelling.reading import grid_of
from zeroline.target import TargetLike, box, detection

SIDES = ("left", "top", "right", "bottom")


def ground(
    image: ImageOrNone = None,
    text: Text = None,
    passage: Passage = None,
    audio: Audio = None,
    model: ModelName = "zoo:digits-vqa",
    target: TargetText = "top",
    rows: Annotated[str | None, typer.Option(help="The stream whose tokens are rows; see `zeroline trace MODEL`.")] = None,
    columns: Annotated[str | None, typer.Option(help="The stream whose tokens are columns.")] = None,
    correction: Correction = "positive",
    calls: Calls = "all",
    coverage: Annotated[str, typer.Option(help="complete or incomplete.")] = "complete",
    grid: Grid = None,
    prefix: Prefix = None,
    out: Annotated[Path, typer.Option(help="Folder for figure.png, grounding.safetensors, record.json.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Which words stand on which regions of the other source (or on which times, words or patches).

    A detector's rows are its detections, each with the sides of its box; a model's that writes, the words that it writes.
    """
    asked = given(model, image, text, passage, audio, trust_remote_code=trust_remote_code)
    wanted: TargetLike | dict[str, TargetLike]
    if target == "top" and rows is None and asked.sourced.is_detector:
        wanted = of_detections(asked)
    elif target == "top" and rows is None and writes(asked):
        asked, wanted = written(asked)
    else:
        wanted = target_for(target, asked.sourced)
    with show.results_folder(out):
        found = by_paths(
            asked.sourced.model,
            asked.inputs,
            target=wanted,
            rows=rows,
            columns=columns,
            words=asked.ids,
            correction=correction,
            calls=show.calls_of(calls),
            coverage=coverage,
            grid=grid_of(grid),
            prefix=prefix,
        )
        seconds = frames_last(asked, found.column_stream)
        times = {"seconds": seconds, "sound": asked.seconds} if seconds is not None else {}
        files = show.write(found, "grounding", out, asked.seen(**times), report=report)
    if json_:
        print(json.dumps({**found.to_dict(), "files": [str(p) for p in files]}, indent=2))
        return
    show.table(found.rows())
    show.output.print(f"wrote {', '.join(str(p) for p in files)}", markup=False)


def of_detections(asked: Given) -> dict[str, TargetLike]:
    """A target for each detection and each side of its box."""
    model = asked.sourced.model
    with torch.no_grad():
        found = detections(Inputs.of(model, asked.inputs).call(model), asked.sourced.labels)
    if not found:
        raise TargetError("no detection: the model says 'no object' at all of its queries")
    targets: dict[str, TargetLike] = {}
    for query, name in found:
        targets[f"{name} (query {query})"] = detection(query)
        targets |= {f"{name} ({query}), {side}": box(query, side) for side in SIDES}
    return targets


def frames_last(asked: Given, stream: str) -> float | None:
    """How many seconds all columns last, where they are the frames of a sound: those of the features that the model is given."""
    features = asked.inputs.get(stream)
    if asked.seconds is None or not isinstance(features, torch.Tensor) or not features.is_floating_point():
        return None
    return float(features.shape[-1] * asked.sourced.hop) if asked.sourced.hop else asked.seconds
