"""Arguments and options that several commands take: one spelling and one help text each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BASELINES = "black, zeros, mean, blur(8), constant(0.5), noise(0), neutral(black), mean_of(FOLDER), distribution(FOLDER, 8)."

MOST_SEED = 2**63 - 1  # what torch takes

ImageFile = Annotated[Path, typer.Argument(help="The image file.")]
ModelName = Annotated[str, typer.Option(help="zoo:NAME, hf:ID-OR-FOLDER, timm:NAME, open_clip:NAME/WEIGHTS.")]
Texts = Annotated[
    list[str] | None,
    typer.Option("--text", help="For models that read a text with the image; of dual encoders a second one: why the first rather than the second."),
]
TargetText = Annotated[str, typer.Option(help="top, a class number, a label, or a contrast 'A - B'.")]
Direction = Annotated[
    str, typer.Option("--target", "--direction", help="top, a class number, a label, a contrast 'A - B', or a mix '2 A - B + 0.5 C'.")
]
Guide = Annotated[str | None, typer.Option(help="Weights for patches: a mask image, a box LEFT,TOP,RIGHT,BOTTOM, or a saved relevance.")]
BaselineText = Annotated[str, typer.Option(help=BASELINES)]
BaselineOrNone = Annotated[str | None, typer.Option(help=f"{BASELINES} Default: black.")]
Tolerance = Annotated[float | None, typer.Option(help="Attribution error to stop at, as a share of the difference.")]
MaxEvaluations = Annotated[int | None, typer.Option(help="Gradient evaluations at most, per site.")]
MaskFile = Annotated[Path | None, typer.Option(help="Where the object is: an image of the same size, white inside.")]
BoxText = Annotated[str | None, typer.Option(help="Where the object is: LEFT,TOP,RIGHT,BOTTOM in pixels.")]
Calls = Annotated[str, typer.Option(help="all, numbers '0,3', or a name with *; see `zeroline trace MODEL`.")]
Grid = Annotated[str | None, typer.Option(help="Patch grid ROWSxCOLUMNS of token sites, if the model does not say.")]
Prefix = Annotated[int | None, typer.Option(help="Tokens before the patches (class, registers).")]
Report = Annotated[bool, typer.Option("--report", help="Also write report.html: the result as one page to look into, which needs no network.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the record as JSON instead of a table.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Let a hub model run its own code.")]
