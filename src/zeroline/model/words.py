"""Texts as token ids, with one clear error for what a model cannot read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from zeroline.errors import InputError


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


def whole_words(pieces: Sequence[str], special: Sequence[str] = ()) -> list[tuple[str, tuple[int, ...]]]:
    """The words of a text with the numbers of the tokens that make them, in order; special tokens left out.

    Pieces are joined as their tokenizer marks them: "##" (WordPiece) goes on with a word, "\u0120" and "\u2581" (byte-level BPE, SentencePiece) begin
    one, "</w>" ends one; without marks every token is a word.

    >>> whole_words(["[CLS]", "ber", "##lin", "?", "[SEP]"], ["[CLS]", "[SEP]"])
    [('berlin', (1, 2)), ('?', (3,))]
    """
    begins = ("\u0120", "\u2581")
    marked, ended = any(piece.startswith(begins) for piece in pieces), any(piece.endswith("</w>") for piece in pieces)
    found: list[tuple[str, tuple[int, ...]]] = []
    open_ = False  # does the next piece go on with the last word?
    for number, piece in enumerate(pieces):
        if piece in special:
            open_ = False
            continue
        bare = piece.removeprefix("##").removesuffix("</w>").lstrip("".join(begins))
        goes_on = open_ and (
            piece.startswith("##") or (marked and not piece.startswith(begins)) or (ended and not pieces[number - 1].endswith("</w>"))
        )
        if goes_on:
            word, numbers = found[-1]
            found[-1] = (word + bare, (*numbers, number))
        else:
            found.append((bare, (number,)))
        open_ = True
    return [(word, numbers) for word, numbers in found if word]
