"""A Hugging Face tokenizer of whole words, for the small vocabularies of the zoo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def word_tokenizer(words: Sequence[str], *, begin: str, end: str, pad: str, unknown: str, length: int, **special: str) -> Any:
    """A ``transformers.PreTrainedTokenizerFast``: one token per word, lower case, unknown words as ``unknown``, ``begin`` and ``end`` around.

    A word's id is its place in ``words``; ``length`` is the most tokens that the model reads; ``special`` names more tokens
    (``mask_token="[MASK]"``).
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(words)}
    whole = Tokenizer(models.WordLevel(numbers, unk_token=unknown))
    whole.normalizer = normalizers.Lowercase()
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=[(begin, numbers[begin]), (end, numbers[end])])
    return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token=pad, unk_token=unknown, model_max_length=length, **special)
