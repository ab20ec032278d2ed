"""``zeroline --version``."""

from __future__ import annotations

from typing import Annotated

import typer

from zeroline import __version__


def _say(asked: bool) -> None:
    if asked:
        print(f"zeroline {__version__}")
        raise typer.Exit


def version(asked: Annotated[bool, typer.Option("--version", callback=_say, is_eager=True, help="Print the version and exit.")] = False) -> None:
    """Options that stand before a command."""
