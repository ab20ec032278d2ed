"""What a page is made of: chapters of plain frozen parts, each with everything that is shown, in words and numbers.

Making them from records is ``chapters``; turning them into HTML is ``render``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeroline.report.figure import Picture

Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Panel:
    """One map, or one line of words: ``values`` [choices, cells] with ``cells = rows x columns``, the ends of its colour scales [choices]."""

    label: str
    caption: str
    shape: tuple[int, int]
    values: Values
    limits: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Viewer:
    """Panels that a reader goes through with a slider, on a picture or as words; where there are ``choices``, one of them at a time.

    The first choice is all of the others together.
    ``cell`` says what a cell is ("patch", "pixel", "token"); ``unit`` what its number is a part of; ``total`` that whole, where it has one.
    """

    title: str
    panels: tuple[Panel, ...]
    cell: str
    unit: str
    total: float | None = None
    slider: str = "layer"
    picture: Picture | None = None
    words: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    choice: str = "row"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """How a sum compares with what it should be: ``parts`` name -> what each brought of the error, in order."""

    title: str
    total: float
    difference: float
    parts: tuple[tuple[str, float], ...]
    said: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; ``head`` is empty where the first cell of each row names it."""

    caption: str
    rows: tuple[tuple[str, ...], ...]
    head: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture with its caption; ``alt`` says what is on it to those who do not see it."""

    source: str
    caption: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Chapter:
    """One record: the question in words, how exact the answer is, what can be looked at, the numbers, and how to ask again."""

    kind: str
    question: str
    lead: tuple[str, ...] = ()
    pictures: tuple[Shown, ...] = ()
    viewers: tuple[Viewer, ...] = ()
    budgets: tuple[Budget, ...] = ()
    figure: Shown | None = None
    tables: tuple[Table, ...] = ()
    record: str = ""
    command: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
