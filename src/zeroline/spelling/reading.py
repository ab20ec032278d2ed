"""What people write on a command line, read: a target, a grid."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from zeroline.errors import UsageError
from zeroline.target import Target, box, contrast, detection, logit, mix, whole_number


def read_target(text: str, labels: Mapping[str, int]) -> Target:
    """``top``, ``7``, ``seven``, ``seven - one``; of a detector ``detection 3``, ``detection top cat``, ``box 3 left``."""

    def one(word: str) -> int | str:
        word = word.strip()
        by_lower = {name.lower(): index for name, index in labels.items()}
        number = whole_number(word)
        return by_lower.get(word.lower(), word if number is None else number)

    words = text.split()
    if one(text) == text.strip() and words and words[0] in ("detection", "box") and len(words) in (2, 3):
        number = whole_number(words[1])
        index: int | str = words[1] if number is None else number
        if words[0] == "detection":
            return detection(index, one(words[2]) if len(words) == 3 else "top")
        if len(words) == 3:
            return box(index, words[2])
    if one(text) == text.strip() and re.search(" [-+] ", text):
        return _mix(text, one)
    return logit(one(text))


def _mix(text: str, one: Callable[[str], int | str]) -> Target:
    """``A - B`` as a contrast; ``2 A - B + 0.5 C`` as a mix of logits."""
    parts = re.split(" ([-+]) ", text.strip())
    weights: dict[int | str, float] = {}
    for sign, part in zip(["+", *parts[1::2]], parts[::2]):
        number, _, rest = part.strip().partition(" ")
        weighed = bool(rest.strip()) and re.fullmatch(r"[0-9]*\.?[0-9]+", number) is not None
        name = one(rest if weighed else part)
        if name in weights:
            raise UsageError(f"class {name!r} is named twice in {text!r}")
        weights[name] = (-1 if sign == "-" else 1) * (float(number) if weighed else 1.0)
    if list(weights.values()) == [1.0, -1.0]:
        return contrast(*weights)
    return mix(weights)


SCALES = {"top": "cosine", "cosine": "cosine", "logit": "logit"}


def scale_of(text: str) -> str:
    """``--target`` of a model that compares an image with a text: ``cosine`` (the default) or ``logit``."""
    if text not in SCALES:
        raise UsageError(f"--target {text!r} was given; where an image is compared with a text, the target is the similarity: cosine or logit")
    return SCALES[text]


def read_epsilon(text: str | None, option: str) -> float | None:
    """A budget such as ``2/255`` or ``0.5``."""
    if text is None:
        return None
    number = r"[0-9]*\.?[0-9]+(?:[eE]-?[0-9]+)?"
    found = re.fullmatch(rf"\s*({number})\s*(?:/\s*({number})\s*)?", text)
    if found is None or (found[2] is not None and float(found[2]) == 0):
        raise UsageError(f"cannot read {option} {text!r}; write a number or a fraction, e.g. 2/255")
    return float(found[1]) / float(found[2] or 1)


def grid_of(text: str | None) -> tuple[int, int] | None:
    """``14x14`` as (rows, columns)."""
    if text is None:
        return None
    rows, _, columns = text.lower().partition("x")
    height, width = whole_number(rows), whole_number(columns)
    if height is None or width is None or height < 1 or width < 1:
        raise UsageError(f"cannot read --grid {text!r}; write ROWSxCOLUMNS, e.g. 14x14")
    return height, width
