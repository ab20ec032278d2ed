"""``zeroline report``: saved records as one page to look into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zeroline import records
from zeroline.cli import show
from zeroline.errors import UsageError
from zeroline.report import page
from zeroline.report.opened import open_record, record_files


def report(
    record: Annotated[list[Path], typer.Argument(metavar="RECORD...", help="Saved records (.safetensors), or folders of them.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Of the window. Default: the first question.")] = "",
) -> None:
    """One self-contained HTML page of saved records: questions in words, maps to look into, errors, tables, how to reproduce."""
    if out.is_dir():
        raise UsageError(f"--out {str(out)!r} is a folder; give the file to write, e.g. {str(out / 'report.html')!r}")
    chapters = []
    with show.results_folder(out.parent):
        with show.progress("records") as told:
            files = record_files(record)
            for number, file in enumerate(files):
                one, seen = open_record(file)
                with records.intact(str(file), "record"):
                    chapters.append(page.chapter(one, seen))
                told(number + 1, len(files))
        page.save(chapters, out, title)
    show.output.print(f"wrote {out}", markup=False)
