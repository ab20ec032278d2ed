"""The commands of ``zeroline`` and their options, as Markdown: ``python docs/command_line.py``.

Read from the commands themselves, so that it says what ``--help`` says.
"""

from __future__ import annotations

from typing import Any

import typer

from zeroline.cli import app


def described() -> str:
    """A section per command: what it does, how it is called, its options."""
    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    given = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and "--help" not in one.opts]
    words = [f"{one.name.upper()}{'...' if one.nargs == -1 else ''}" for one in given]
    usage = " ".join(["zeroline", name, *(word if one.required else f"[{word}]" for one, word in zip(given, words)), "[OPTIONS]"])
    lines = [f"## {name}", " ".join((command.help or "").split()), f"```\n{usage}\n```"]
    if options:
        rows = [f"| {_names(one)} | {_default(one)} | {_plain(one.help or '')} |" for one in options]
        lines.append("\n".join(["| option | default | |", "|---|---|---|", *rows]))
    return "\n\n".join(lines)


def _names(option: Any) -> str:
    return ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))


def _default(option: Any) -> str:
    if option.required:
        return "required"
    known = option.default
    return "" if known is None or known is False or callable(known) or known == () else f"`{known}`"


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    print(described())
