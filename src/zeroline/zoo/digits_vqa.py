"""digits-vqa: a Hugging Face LXMERT that answers questions about photo-digits: two streams that attend to each other.

Holds the architecture, the vocabulary and the region features. As with the published LXMERT (Tan & Bansal 2019) a detector, here
digits-detr, turns the photograph into regions first: 64 cells of an 8 x 8 grid, each with its own pixels (192 numbers), the map of the
frozen detector's convolutions there (64 numbers) and its box. Not what the detector's attention makes of that, which brings every region into
every other; the convolutions reach far too (83 pixels), with less and less weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import unfold

from zeroline.zoo.digits_detr import GRID
from zeroline.zoo.photo_digits import COLOURS, DIGITS, SIDE
from zeroline.zoo.questions import ANSWERS
from zeroline.zoo.questions import WORDS as ASKING
from zeroline.zoo.word_tokenizer import word_tokenizer

PAD, UNKNOWN, BEGIN, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
WORDS = (PAD, UNKNOWN, BEGIN, END, MASK, *COLOURS, *DIGITS, *ASKING)
LENGTH = 10  # tokens at most, begin and end included
CELL = SIDE // GRID
WIDTH = 64
FEATURES = 3 * CELL * CELL + WIDTH  # numbers per region


def build() -> Any:
    """A ``transformers.LxmertForQuestionAnswering`` with untrained weights."""
    from transformers import LxmertConfig, LxmertForQuestionAnswering

    config = LxmertConfig(
        vocab_size=len(WORDS),
        pad_token_id=WORDS.index(PAD),
        mask_token_id=WORDS.index(MASK),
        cls_token_id=WORDS.index(BEGIN),
        sep_token_id=WORDS.index(END),
        image_size=SIDE,  # regions are the cells of a grid, as a ViT's patches are
        patch_size=CELL,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_attention_heads=4,
        l_layers=2,
        r_layers=2,
        x_layers=3,
        visual_feat_dim=FEATURES,
        visual_pos_dim=4,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_qa_labels=len(ANSWERS),
        task_qa=True,
        task_obj_predict=False,
        task_matched=False,
        task_mask_lm=False,
        id2label=dict(enumerate(ANSWERS)),
        label2id={answer: number for number, answer in enumerate(ANSWERS)},
    )
    return LxmertForQuestionAnswering(config)


def tokenizer() -> Any:
    """A ``transformers.PreTrainedTokenizerFast``: one token per word, [CLS] before and [SEP] after."""
    special = {"cls_token": BEGIN, "sep_token": END, "mask_token": MASK}
    return word_tokenizer(WORDS, begin=BEGIN, end=END, pad=PAD, unknown=UNKNOWN, length=LENGTH, **special)


@torch.no_grad()
def regions(detector: Any, pixels: Tensor) -> dict[str, Tensor]:
    """What LXMERT is called with, of ``pixels`` [batch, 3, 64, 64]: ``visual_feats`` [batch, 64, 256] and ``visual_pos`` [batch, 64, 4].

    Cells in reading order; a box is (left, top, right, bottom) as shares of the image.
    """
    own = unfold(pixels, CELL, stride=CELL).transpose(1, 2)
    seen = detector.model.input_projection(detector.model.backbone(pixels, torch.ones_like(pixels[:, 0], dtype=torch.long))[-1][0])
    edge = torch.arange(GRID) / GRID
    top, left = torch.meshgrid(edge, edge, indexing="ij")
    box = torch.stack([left, top, left + 1 / GRID, top + 1 / GRID], -1).reshape(1, GRID * GRID, 4)
    return {"visual_feats": torch.cat([own, seen.flatten(2).transpose(1, 2)], -1), "visual_pos": box.to(pixels).expand(len(pixels), -1, -1)}
