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
