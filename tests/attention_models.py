"""Small, randomly initialised models of every family that the tracer is to follow: the table behind "Models that work".

Each ``Family`` builds a model with inputs and says what the tracer must find in it: the number of calls, and which of
them are heterogenous. ``eager`` builds the same model with stored attention maps, where one exists.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

SMALL = dict(hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=2)
VOCABULARY = 60


@dataclass(frozen=True)
class Family:
    name: str
    source: str
    build: Callable[[str], tuple[nn.Module, Any]]
    """``build(attention)`` with ``"sdpa"`` or ``"eager"``."""
    calls: int
    heterogenous: tuple[int, ...] = ()
    streams: tuple[str, ...] = ("pixel_values",)
    read: Callable[[Any], torch.Tensor] = lambda output: output.logits[:, 1]
    has_eager: bool = True
    grids: tuple[tuple[str, tuple[int, int]], ...] = ()
    maps: Callable[[Any], list[torch.Tensor]] | None = None
    """The eager twin's stored maps in call order, where the model gives them back."""


def pixels(height: int = 32, width: int = 48, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width)


def words(length: int = 7, batch: int = 2) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, VOCABULARY, (batch, length))
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def hf(kind: str, config: Any, attention: str) -> nn.Module:
    import transformers

    try:
        model = getattr(transformers, kind)._from_config(copy.deepcopy(config), attn_implementation=attention)
    except ValueError:  # a part of the model has no fused attention: each part chooses
        model = getattr(transformers, kind)._from_config(config)
    torch.manual_seed(0)  # the inputs that follow are the same, however the weights were drawn
    return model


def _image_family(kind: str, configuration: str, attention: str, **more: Any) -> tuple[nn.Module, Any]:
    import transformers

    config = getattr(transformers, configuration)(**{**SMALL, "image_size": (32, 48), "patch_size": 16, **more})
    return hf(kind, config, attention), {"pixel_values": pixels()}


def vit(attention):
    return _image_family("ViTForImageClassification", "ViTConfig", attention, num_labels=5)


def deit(attention):
    return _image_family("DeiTForImageClassificationWithTeacher", "DeiTConfig", attention, num_labels=5)


def dinov2(attention):
    more = dict(num_register_tokens=3, num_labels=5, mlp_ratio=2, image_size=48)
    return _image_family("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", attention, **more)


def _clip_parts():
    text = dict(**SMALL, vocab_size=VOCABULARY, max_position_embeddings=16, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    vision = dict(**SMALL, image_size=32, patch_size=8)
    return text, vision


def clip(attention):
    import transformers

    text, vision = _clip_parts()
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    given = words()
    given["input_ids"][:, -3] = 59
    config.text_config.eos_token_id = 59
    return hf("CLIPModel", config, attention), {**given, "pixel_values": pixels(32, 32)}


def siglip(attention):
    import transformers

    text, vision = _clip_parts()
    text["projection_size"] = 32
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    return hf("SiglipModel", config, attention), {"input_ids": words()["input_ids"], "pixel_values": pixels(32, 32)}


def bert(attention):
    import transformers

    return hf("BertForSequenceClassification", transformers.BertConfig(**SMALL, vocab_size=VOCABULARY, num_labels=3), attention), words()


def roberta(attention):
    import transformers

    config = transformers.RobertaConfig(**SMALL, vocab_size=VOCABULARY, num_labels=3)
    return hf("RobertaForSequenceClassification", config, attention), words()


def distilbert(attention):
    import transformers

    config = transformers.DistilBertConfig(dim=32, n_heads=4, hidden_dim=48, n_layers=2, vocab_size=VOCABULARY, num_labels=3)
    return hf("DistilBertForSequenceClassification", config, attention), words()


def gpt2(attention):
    import transformers

    config = transformers.GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=VOCABULARY, n_positions=32)
    return hf("GPT2LMHeadModel", config, attention), {"input_ids": words()["input_ids"]}


def llama(attention):
    import transformers

    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, vocab_size=VOCABULARY)
    return hf("LlamaForCausalLM", config, attention), words()


def t5(attention):
    import transformers

    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=2, vocab_size=VOCABULARY, decoder_start_token_id=0)
    return hf("T5ForConditionalGeneration", config, attention), {**words(), "decoder_input_ids": words(5)["input_ids"]}


def marian(attention):
    import transformers

    config = transformers.MarianConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, vocab_size=VOCABULARY, pad_token_id=0, decoder_start_token_id=0, eos_token_id=1, forced_eos_token_id=1,
        max_position_embeddings=32,
    )  # fmt: skip
    return hf("MarianMTModel", config, attention), {**words(), "decoder_input_ids": words(5)["input_ids"]}


def whisper(attention):
    import transformers

    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, vocab_size=VOCABULARY, num_mel_bins=8, max_source_positions=10, max_target_positions=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return hf("WhisperForConditionalGeneration", config, attention), {
        "input_features": torch.randn(2, 8, 20), "decoder_input_ids": words(5)["input_ids"],
    }  # fmt: skip


def trocr(attention):
    import transformers

    vision = transformers.ViTConfig(**SMALL, image_size=32, patch_size=8)
    text = transformers.TrOCRConfig(
        d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, vocab_size=VOCABULARY, cross_attention_hidden_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig(encoder=vision.to_dict(), decoder=text.to_dict())
    model = hf("VisionEncoderDecoderModel", config, attention)
    return model, {"pixel_values": pixels(32, 32), "decoder_input_ids": words(5)["input_ids"]}


def detr(attention):
    import transformers

    backbone = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, backbone=None, encoder_layers=2, decoder_layers=2, d_model=32,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=5, num_labels=4,
    )  # fmt: skip
    return hf("DetrForObjectDetection", config, attention), {"pixel_values": pixels(32, 48)}


def vilt(attention):
    import transformers

    config = transformers.ViltConfig(**SMALL, vocab_size=VOCABULARY, image_size=32, patch_size=8, num_labels=5, max_position_embeddings=16)
    return hf("ViltForQuestionAnswering", config, attention), {**words(), "pixel_values": pixels(32, 32)}


def lxmert(attention):
    import transformers

    config = transformers.LxmertConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=48, l_layers=2, x_layers=2, r_layers=1, vocab_size=VOCABULARY,
        visual_feat_dim=12, num_qa_labels=5,
    )  # fmt: skip
    return hf("LxmertForQuestionAnswering", config, attention), {**words(), "visual_feats": torch.randn(2, 6, 12), "visual_pos": torch.rand(2, 6, 4)}


def _blip_config():
    import transformers

    text = dict(**SMALL, vocab_size=VOCABULARY, encoder_hidden_size=32, max_position_embeddings=16, bos_token_id=1, pad_token_id=0, sep_token_id=2)
    vision = dict(**SMALL, image_size=32, patch_size=8)
    return transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16)


def blip_matching(attention):
    return hf("BlipForImageTextRetrieval", _blip_config(), attention), {**words(), "pixel_values": pixels(32, 32)}


def blip_vqa(attention):
    model = hf("BlipForQuestionAnswering", _blip_config(), attention)
    return model, {**words(batch=1), "pixel_values": pixels(32, 32, batch=1), "labels": words(4, batch=1)["input_ids"]}


def qformer(attention):
    import transformers

    config = transformers.Blip2Config(
        vision_config=dict(**SMALL, image_size=32, patch_size=8),
        qformer_config=dict(**SMALL, vocab_size=VOCABULARY, encoder_hidden_size=32, cross_attention_frequency=2),
        text_config=dict(model_type="opt", hidden_size=32, num_attention_heads=4, ffn_dim=48, num_hidden_layers=1, vocab_size=VOCABULARY,
                         word_embed_proj_dim=32, max_position_embeddings=32),
        num_query_tokens=4, image_text_hidden_size=16,
    )  # fmt: skip
    config.image_token_index = 50
    ids = words(9)["input_ids"].clamp(max=49)
    ids[:, :4] = 50
    return hf("Blip2ForConditionalGeneration", config, attention), {"pixel_values": pixels(32, 32), "input_ids": ids}


def llava(attention):
    import transformers

    config = transformers.LlavaConfig(
        vision_config=dict(model_type="clip_vision_model", **SMALL, image_size=32, patch_size=16),
        text_config=dict(model_type="llama", **SMALL, num_key_value_heads=2, vocab_size=VOCABULARY),
        image_token_index=50, image_seq_length=4,
    )  # fmt: skip
    ids = words(9)["input_ids"].clamp(max=49)
    ids[:, 1:5] = 50
    return hf("LlavaForConditionalGeneration", config, attention), {"input_ids": ids, "pixel_values": pixels(32, 32)}


def perceiver(attention):
    import transformers

    config = transformers.PerceiverConfig(
        num_latents=6, d_latents=32, d_model=24, num_blocks=1, num_self_attends_per_block=2, num_self_attention_heads=4,
        num_cross_attention_heads=4, vocab_size=VOCABULARY, max_position_embeddings=9, num_labels=3,
    )  # fmt: skip
    return hf("PerceiverForSequenceClassification", config, "eager"), {"inputs": torch.randint(5, VOCABULARY, (2, 9))}


def swin(attention):
    import transformers

    config = transformers.SwinConfig(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, image_size=32, patch_size=4, num_labels=5)
    return hf("SwinForImageClassification", config, attention), {"pixel_values": pixels(32, 32)}


def timm_vit(attention):
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), embed_dim=32, depth=2, num_heads=4, num_classes=5)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = attention == "sdpa"
    return model, pixels()


def open_clip_model(attention):
    import open_clip

    model = open_clip.CLIP(
        embed_dim=16, vision_cfg=dict(layers=2, width=32, head_width=8, patch_size=8, image_size=32),
        text_cfg=dict(context_length=7, vocab_size=VOCABULARY, width=32, heads=4, layers=2),
    )  # fmt: skip
    return model, {"image": pixels(32, 32), "text": words()["input_ids"]}


def torchvision_vit(attention):
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=5), pixels(32, 32)


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x, padding=None):
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


def torch_encoder(attention):
    padding = torch.zeros(2, 6, dtype=torch.bool)
    return _Encoder(), {"x": torch.randn(2, 6, 32), "padding": padding}


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(32, 4, 48)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.head = nn.Linear(32, 5)

    def forward(self, target, memory):
        """Sequence first, as PyTorch has it by default."""
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        out = self.decoder(target.transpose(0, 1), memory.transpose(0, 1), tgt_mask=causal)
        return self.head(out[-1])


def torch_decoder(attention):
    return _Decoder(), {"target": torch.randn(2, 5, 32), "memory": torch.randn(2, 6, 32)}


class HandWritten(nn.Module):
    """Self-attention by einsum, cross-attention by bmm with heads folded into the batch, average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.b = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.head = nn.Linear(32, 5)

    def forward(self, words, regions):
        q, k, v = (layer(words).unflatten(-1, (4, 8)) for layer in self.a[:3])
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
        words = words + self.a[3](torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2))

        def fold(x):
            return x.unflatten(-1, (4, 8)).transpose(1, 2).flatten(0, 1)

        q, k, v = fold(self.b[0](words)), fold(self.b[1](regions)), fold(self.b[2](regions))
        weights = nn.functional.dropout(torch.softmax(torch.bmm(q, k.transpose(1, 2)) * 8**-0.5, dim=-1), 0.1, self.training)
        mixed = torch.bmm(weights, v).unflatten(0, (-1, 4)).transpose(1, 2).flatten(2)
        return self.head((words + self.b[3](mixed)).mean(1))


def hand_written(attention):
    return HandWritten(), {"words": torch.randn(2, 5, 32), "regions": torch.randn(2, 6, 32)}


def _last(output):
    return output.logits[:, -1, 1]


def _plain(output):
    return output[:, 1]


FAMILIES = [
    Family("ViT", "transformers", vit, 2, grids=(("pixel_values", (2, 3)),)),
    Family("DeiT", "transformers", deit, 2, grids=(("pixel_values", (2, 3)),)),
    Family("DINOv2 with registers", "transformers", dinov2, 2, grids=(("pixel_values", (2, 3)),)),
    Family(
        "CLIP",
        "transformers",
        clip,
        4,
        streams=("input_ids", "pixel_values"),
        read=lambda o: o.logits_per_image.diagonal(),
        grids=(("pixel_values", (4, 4)),),
    ),
    Family(
        "SigLIP",
        "transformers",
        siglip,
        5,
        (2,),
        ("input_ids", "pixel_values", "vision_model.head.probe"),
        lambda o: o.logits_per_image.diagonal(),
        grids=(("pixel_values", (4, 4)),),
    ),
    Family("BERT", "transformers", bert, 2, streams=("input_ids",)),
    Family("RoBERTa", "transformers", roberta, 2, streams=("input_ids",)),
    Family("DistilBERT", "transformers", distilbert, 2, streams=("input_ids",)),
    Family("GPT-2", "transformers", gpt2, 2, streams=("input_ids",), read=_last),
    Family("Llama", "transformers", llama, 2, streams=("input_ids",), read=_last),
    Family("T5", "transformers", t5, 6, (3, 5), ("input_ids", "decoder_input_ids"), _last),
    Family("Marian", "transformers", marian, 6, (3, 5), ("input_ids", "decoder_input_ids"), _last),
    Family("Whisper", "transformers", whisper, 6, (3, 5), ("input_features", "decoder_input_ids"), _last),
    Family("TrOCR", "transformers", trocr, 6, (3, 5), ("pixel_values", "decoder_input_ids"), _last, grids=(("pixel_values", (4, 4)),)),
    Family(
        "DETR",
        "transformers",
        detr,
        6,
        (3, 5),
        ("pixel_values", "model.query_position_embeddings.weight"),
        lambda o: o.logits[:, 3, 1],
        grids=(("pixel_values", (4, 6)),),
    ),
    Family("ViLT", "transformers", vilt, 2, streams=("input_ids", "pixel_values"), grids=(("pixel_values", (4, 4)),)),
    Family("LXMERT", "transformers", lxmert, 11, (3, 4, 7, 8), ("input_ids", "visual_feats"), lambda o: o.question_answering_score[:, 1]),
    Family(
        "BLIP, matching",
        "transformers",
        blip_matching,
        6,
        (3, 5),
        ("input_ids", "pixel_values"),
        lambda o: o.itm_score[:, 1],
        grids=(("pixel_values", (4, 4)),),
    ),
    Family(
        "BLIP, question answering",
        "transformers",
        blip_vqa,
        10,
        (3, 5, 7, 9),
        ("input_ids", "pixel_values", "labels"),
        lambda o: -o.loss.reshape(1),
        grids=(("pixel_values", (4, 4)),),
    ),
    Family(
        "BLIP-2's Q-Former", "transformers", qformer, 6, (3,), ("pixel_values", "query_tokens", "input_ids"), _last, grids=(("pixel_values", (4, 4)),)
    ),
    Family("LLaVA", "transformers", llava, 4, (), ("input_ids", "pixel_values"), _last, grids=(("pixel_values", (2, 2)),)),
    Family(
        "Perceiver",
        "transformers",
        perceiver,
        4,
        (0, 3),
        ("inputs", "perceiver.embeddings.latents", "perceiver.decoder.decoder.output_position_encodings.position_embeddings"),
        has_eager=False,
    ),
    Family("Swin", "transformers", swin, 4, grids=(("pixel_values", (8, 8)),)),
    Family("ViT", "timm", timm_vit, 2, streams=("x",), read=_plain, grids=(("x", (2, 3)),)),
    Family(
        "CLIP",
        "open_clip",
        open_clip_model,
        4,
        streams=("image", "text"),
        read=lambda o: (o[0] * o[1]).sum(-1),
        has_eager=False,
        grids=(("image", (4, 4)),),
    ),
    Family("ViT", "torchvision", torchvision_vit, 2, streams=("x",), read=_plain, has_eager=False, grids=(("x", (4, 4)),)),
    Family("nn.TransformerEncoder", "torch", torch_encoder, 2, streams=("x",), read=_plain, has_eager=False),
    Family("nn.TransformerDecoder", "torch", torch_decoder, 4, (1, 3), ("target", "memory"), _plain, has_eager=False),
    Family("hand-written (einsum, bmm)", "torch", hand_written, 2, (1,), ("words", "regions"), _plain, has_eager=False),
]
