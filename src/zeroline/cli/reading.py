"""What people write on a command line, read: a target, a grid."""

from __future__ import annotations

from collections.abc import Mapping

from zeroline.errors import UsageError
from zeroline.target import Target, box, contrast, detection, logit, whole_number


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
    if one(text) == text.strip() and " - " in text:
        first, _, second = text.partition(" - ")
        return contrast(one(first), one(second))
    return logit(one(text))


SCALES = {"top": "cosine", "cosine": "cosine", "logit": "logit"}


def scale_of(text: str) -> str:
    """``--target`` of a model that compares an image with a text: ``cosine`` (the default) or ``logit``."""
    if text not in SCALES:
        raise UsageError(f"--target {text!r} was given; where an image is compared with a text, the target is the similarity: cosine or logit")
    return SCALES[text]


def grid_of(text: str | None) -> tuple[int, int] | None:
    """``14x14`` as (rows, columns)."""
    if text is None:
        return None
    rows, _, columns = text.lower().partition("x")
    height, width = whole_number(rows), whole_number(columns)
    if height is None or width is None or height < 1 or width < 1:
        raise UsageError(f"cannot read --grid {text!r}; write ROWSxCOLUMNS, e.g. 14x14")
    return height, width
