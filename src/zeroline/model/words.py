"""Texts as token ids, with one clear error for what a model cannot read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from zeroline.errors import InputError

_BEGINS = ("\u0120", "\u2581")  # what byte-level BPE and SentencePiece write for a space before a word


def tokens(tokenizer: Any, texts: Sequence[str], *, pad: bool = False, longest: int | None = None) -> Mapping[str, Tensor]:
    """A Hugging Face tokenizer's ids and mask for ``texts``, [texts, tokens]; ``pad`` brings all to the greatest length.

    ``longest`` is the model's context where the tokenizer does not know it. Raises InputError for an empty text, or one that is longer
    than the context: nothing is cut off silently.
    """
    limit = min(int(tokenizer.model_max_length), longest or int(tokenizer.model_max_length))
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"the text is {text!r}; give words" if isinstance(text, str) else f"a text is a string, not {type(text).__name__}")
    lengths = [len(ids) for ids in tokenizer(list(texts))["input_ids"]]
    for text, length in zip(texts, lengths):
        if length > limit:
            begin = text if len(text) <= 40 else f"{text[:37]}..."
            raise InputError(f"the text {begin!r} has {length} tokens, begin and end included; the model reads {limit}")
    full = {"padding": "max_length", "max_length": limit} if pad else {"padding": True}
    found: Mapping[str, Tensor] = tokenizer(list(texts), return_tensors="pt", **full)
    return found


def whole_words(
    pieces: Sequence[str], special: Sequence[str] = (), string: Callable[[list[str]], str] | None = None
) -> list[tuple[str, tuple[int, ...]]]:
    """The words of a text with the numbers of the tokens that make them, in order; special tokens left out.

    ``string`` makes text of tokens (``tokenizer.convert_tokens_to_string``): a token goes on with a word where no space comes between. Marks
    count too: "##" goes on with a word (WordPiece) and "</w>" ends one; "\u0120" and "\u2581" begin one. Where nothing says so every token is
    a word.

    >>> whole_words(["[CLS]", "ber", "##lin", "?", "[SEP]"], ["[CLS]", "[SEP]"])
    [('berlin', (1, 2)), ('?', (3,))]
    """
    found: list[tuple[str, tuple[int, ...]]] = []
    goes_on = _by_marks(pieces)
    if string is not None:
        goes_on = [a or b for a, b in zip(goes_on, _by_spaces(pieces, special, string))]
    words: list[list[int]] = []
    for number, piece in enumerate(pieces):
        if piece in special:
            continue
        if words and goes_on[number] and words[-1][-1] == number - 1:
            words[-1].append(number)
        else:
            words.append([number])
    for numbers in words:
        own = [pieces[n] for n in numbers]
        text = "" if string is None else string(own).strip()
        word = text if text and " " not in text else "".join(map(_bare, own))  # a tokenizer without a decoder puts spaces between tokens
        if word:
            found.append((word, tuple(numbers)))
    return found


def _bare(piece: str) -> str:
    return piece.removeprefix("##").removesuffix("</w>").lstrip("".join(_BEGINS))


def _by_marks(pieces: Sequence[str]) -> list[bool]:
    """Does a piece go on with the word before it, by its tokenizer's marks?"""
    marked, ended = any(piece.startswith(_BEGINS) for piece in pieces), any(piece.endswith("</w>") for piece in pieces)
    return [
        piece.startswith("##") or (marked and not piece.startswith(_BEGINS)) or (ended and number > 0 and not pieces[number - 1].endswith("</w>"))
        for number, piece in enumerate(pieces)
    ]


def _by_spaces(pieces: Sequence[str], special: Sequence[str], string: Callable[[list[str]], str]) -> list[bool]:
    """The same, by whether a space comes between in the text that the tokenizer makes of them."""
    goes_on: list[bool] = []
    run: list[str] = []
    for piece in pieces:
        before, run = string(run) if run else "", [] if piece in special else [*run, piece]
        after = string(run) if run else ""
        added = after[len(before) :] if after.startswith(before) else ""  # half a letter becomes a whole one: no space
        goes_on.append(len(run) > 1 and not before.endswith(" ") and not added.startswith(" "))
    return goes_on


def words_of(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
    """The words of ids, with the numbers of their tokens; markers left out, words that the tokenizer does not know kept."""
    markers = [token for token in tokenizer.all_special_tokens if token != tokenizer.unk_token]
    kind = type(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)).__name__
    by_spaces = kind in ("BPE", "Unigram")  # WordPiece's own text has signs joined to words, and its marks say everything
    pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(list(ids))]
    return whole_words(pieces, markers, tokenizer.convert_tokens_to_string if by_spaces else None)
