"""digits-clip: a Hugging Face CLIP for photo-digits and their captions, with a word tokenizer.

Holds the architecture and the vocabulary. The image tower is that of ``digits_vit`` (4 layers, width 64, 4 heads, the same
stem); the text tower has 3 causal layers and is read at the end token, which has the highest id.
"""

from __future__ import annotations

from typing import Any

from zeroline.zoo.digits_vit import PATCH, Stem
from zeroline.zoo.photo_digits import COLOURS, DIGITS, SIDE
from zeroline.zoo.word_tokenizer import word_tokenizer

PAD, BEGIN, UNKNOWN, END = "[PAD]", "[BOS]", "[UNK]", "[EOS]"
WORDS = (PAD, BEGIN, UNKNOWN, *COLOURS, *DIGITS, "a", "and", "photo", "of", "digit", END)
LENGTH = 16  # tokens at most, begin and end included
CAPTIONS = tuple(f"a {colour} {digit}" for colour in COLOURS for digit in DIGITS)


def build() -> Any:
    """A ``transformers.CLIPModel`` with untrained weights."""
    from transformers import CLIPConfig, CLIPModel

    width = 64
    shared = {"hidden_size": width, "intermediate_size": 128, "num_attention_heads": 4, "projection_dim": width, "hidden_act": "gelu"}
    ids = {"pad_token_id": WORDS.index(PAD), "bos_token_id": WORDS.index(BEGIN), "eos_token_id": WORDS.index(END)}
    config = CLIPConfig(
        vision_config={**shared, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": PATCH, "layer_norm_eps": 1e-6},
        text_config={**shared, **ids, "num_hidden_layers": 3, "vocab_size": len(WORDS), "max_position_embeddings": LENGTH},
        projection_dim=width,
    )
    model = CLIPModel(config)
    model.vision_model.embeddings.patch_embedding = Stem(width)
    return model


def tokenizer() -> Any:
    """A ``transformers.PreTrainedTokenizerFast``: one token per word, lower case, unknown words as [UNK]."""
    return word_tokenizer(WORDS, begin=BEGIN, end=END, pad=PAD, unknown=UNKNOWN, length=LENGTH, bos_token=BEGIN, eos_token=END)
