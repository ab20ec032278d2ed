"""``zeroline rewrite``: the same picture to a person, another class to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zeroline.cli import show
from zeroline.cli.options import MOST_SEED, AsJson, BoxText, ImageFile, MaskFile, ModelName, Report, TrustRemoteCode
from zeroline.guided import rewrite as rewritten
from zeroline.report import figure, page, rewriting_figure
from zeroline.seen import Seen
from zeroline.spelling.models import load_model
from zeroline.spelling.reading import read_epsilon
from zeroline.spelling.sources import open_as_is, place_on
from zeroline.target import whole_number


def rewrite(
    image: ImageFile,
    to: Annotated[str, typer.Option(help="The class to rewrite to: a label, a number, second (the runner-up) or any.")],
    model: ModelName = "zoo:digits-vit",
    linf: Annotated[str | None, typer.Option(help="Most change of any channel of any pixel, e.g. 2/255. Default, without any budget: 4/255.")] = None,
    l2: Annotated[str | None, typer.Option(help="Most Euclidean length of the change, pixels in 0..1.")] = None,
    patches: Annotated[int | None, typer.Option(help="So many patches may change: the most relevant, or those in --mask or --box.")] = None,
    ssim: Annotated[float | None, typer.Option(help="Least structural similarity, e.g. 0.99.")] = None,
    mask: MaskFile = None,
    box: BoxText = None,
    smallest: Annotated[bool, typer.Option("--smallest", help="Look for the least epsilon that succeeds, by bisection.")] = False,
    steps: Annotated[int, typer.Option(help="Gradient evaluations per attempt.")] = 40,
    restarts: Annotated[int, typer.Option(help="Attempts; each after the first begins at a random change.")] = 1,
    lead: Annotated[float, typer.Option(help="Logits by which the new class must lead.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the restarts.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for original.png, rewritten.png, figure.png, rewriting.safetensors, record.json.")] = Path("out"),
    report: Report = False,
    json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Rewrite a picture's class within a budget; judged on the PNG that is written, read back through the model's own preprocessing."""
    picture = open_as_is(image)
    loaded = load_model(model, trust_remote_code=trust_remote_code)
    number = whole_number(to)
    with show.results_folder(out):
        with show.progress("rewriting") as told:
            found = rewritten(
                loaded.model,
                picture,
                to=to if number is None else number,
                linf=read_epsilon(linf, "--linf"),
                l2=read_epsilon(l2, "--l2"),
                patches=patches,
                ssim=ssim,
                where=place_on(mask, box, picture),
                smallest=smallest,
                steps=steps,
                restarts=restarts,
                lead=lead,
                seed=seed,
                preprocess=loaded.preprocess,
                labels=loaded.labels,
                report=told,
            )
        with show.fresh(out) as folder:
            found.save(folder)
            seen = show.asked(Seen())
            seen.attach(folder / "rewriting.safetensors")
            figure.save(rewriting_figure.figure(found), folder / "figure.png")
            if report:
                page.save([page.chapter(found, seen)], folder / "report.html")
            written = sorted(out / path.name for path in folder.iterdir())
    for note in found.notes:
        show.notes.print(f"note: {note}", markup=False)
    if json_:
        print(json.dumps({**found.to_dict(), "files": [str(p) for p in written]}, indent=2))
        return
    show.table(found.rows())
    show.output.print(f"wrote {', '.join(str(p) for p in written)}", markup=False)
