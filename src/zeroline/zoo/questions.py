"""Questions about photo-digits, with their answers and the objects that decide them.

Three kinds: the colour of a digit, the digit of a colour, whether an object is there. It knows scenes only by what is in them, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from zeroline.zoo.photo_digits import COLOURS, DIGITS

Kind = Literal["colour", "digit", "present"]
KINDS: tuple[Kind, ...] = ("colour", "digit", "present")
ANSWERS = (*COLOURS, *DIGITS, "yes", "no")
WORDS = ("what", "which", "color", "digit", "is", "there", "the", "a", "?")  # beside colours and digits


class Thing(Protocol):
    """An object of a scene: its class and its colour."""

    @property
    def digit(self) -> int: ...
    @property
    def colour(self) -> str: ...


@dataclass(frozen=True)
class Named:
    """A ``Thing`` that is no more than that."""

    digit: int
    colour: str


@dataclass(frozen=True)
class Question:
    """``words`` are those that the answer depends on; ``objects`` the numbers of the objects that decide it: none where the answer is "no"."""

    kind: Kind
    text: str
    answer: str
    words: tuple[str, ...]
    objects: tuple[int, ...]


def colour_of(things: Sequence[Thing], number: int) -> Question:
    """ "what color is the seven ?" of object ``number``."""
    word = DIGITS[things[number].digit]
    return Question("colour", f"what color is the {word} ?", things[number].colour, ("color", word), (number,))


def digit_of(things: Sequence[Thing], number: int) -> Question:
    """ "which digit is red ?" of object ``number``."""
    colour = things[number].colour
    return Question("digit", f"which digit is {colour} ?", DIGITS[things[number].digit], ("digit", colour), (number,))


def present(things: Sequence[Thing], colour: str, digit: int) -> Question:
    """ "is there a blue four ?", true or not."""
    found = tuple(n for n, thing in enumerate(things) if (thing.colour, thing.digit) == (colour, digit))
    return Question("present", f"is there a {colour} {DIGITS[digit]} ?", "yes" if found else "no", (colour, DIGITS[digit]), found)


def asked(things: Sequence[Thing], random: np.random.Generator, kind: Kind | None = None) -> Question:
    """A question about a scene; without ``kind``, colour and digit questions twice as often as whether something is there.

    Half of the last are true; a false one has the colour or the digit of an object that is there.
    """
    kind = kind or KINDS[int(random.choice(3, p=(0.4, 0.4, 0.2)))]
    number = int(random.integers(len(things)))
    if kind == "colour":
        return colour_of(things, number)
    if kind == "digit":
        return digit_of(things, number)
    colour, digit = things[number].colour, things[number].digit
    there = {(thing.colour, thing.digit) for thing in things}
    if random.random() < 0.5:
        return present(things, colour, digit)
    others = [(c, digit) for c in COLOURS] if random.random() < 0.5 else [(colour, d) for d in range(len(DIGITS))]
    false = [other for other in others if other not in there]
    return present(things, *false[int(random.integers(len(false)))])
