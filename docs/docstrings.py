"""Docstrings as Markdown, for the reference pages: a griffe extension.

The docstrings are written to be read in an editor. Three of their habits are no Markdown: sections of what is raised that are sentences rather
than "Name: why" pairs (they would be dropped), tables of equals signs, and ``::`` before something indented.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_TABLE = re.compile(r"^=+(?: +=+)+$\n.*?^=+(?: +=+)+$(?:\n.*?^=+(?: +=+)+$)?", flags=re.DOTALL | re.MULTILINE)
_RAISES = re.compile(r"^Raises:\n((?:[ ]{4}.*\n?|\n(?=[ ]{4}))+)", flags=re.MULTILINE)


class AsMarkdown(griffe.Extension):
    """Rewrites every docstring as it is found."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """A docstring with what Markdown does not know said in Markdown."""
    text = _TABLE.sub(lambda found: f"```\n{found[0]}\n```", text)
    text = re.sub(r"^::$\n", "", text, flags=re.MULTILINE)
    return _RAISES.sub(_raises, text)


def _raises(found: re.Match[str]) -> str:
    lines = [line[4:] for line in found[1].rstrip().splitlines()]
    items: list[str] = []
    for line in lines:
        if line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        elif items and not re.match(r"(\w+(Error|Warning)\b|As |And as |The )", line):
            items[-1] += " " + line
        else:
            items.append(line)
    return "**Raises:**\n\n" + "\n".join(f"- {item}" for item in items) + "\n"
