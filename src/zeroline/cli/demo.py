"""``zeroline demo``: a real picture of what a trained Vision Transformer based its answer on, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zeroline import baseline as baselines
from zeroline.cli import show
from zeroline.cli.explain import answer
from zeroline.cli.options import Report
from zeroline.spelling.models import load_model
from zeroline.target import top

MODEL = "digits-vit"
SAMPLE = 3


def demo(out: Annotated[Path, typer.Option(help="Where to write the results.")] = Path("out/demo"), report: Report = False) -> None:
    """Explain a sample image with the model that ships with zeroline."""
    from zeroline import zoo

    loaded = load_model(f"zoo:{MODEL}")
    sample = zoo.samples(MODEL)[SAMPLE]
    show.output.print(f"{MODEL} looks at {sample.caption} (sample {sample.name}, no network needed)\n", markup=False)
    answer(loaded, sample.inputs, "integrated_gradients", top(), None, baselines.black(), {}, out, report=report)
    show.output.print(f"\nopen {out / 'figure.png'}; then: zeroline explain IMAGE, zeroline sites zoo:{MODEL}, zeroline methods", markup=False)
