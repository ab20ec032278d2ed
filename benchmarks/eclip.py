"""Grad-ECLIP and Attention-ECLIP on an unmodified CLIP beside the published way, which writes the last block's forward pass again. Part of
``make bench``.

Prints a table of docs/performance.md. Times are CPU seconds of the process, the sides taking turns in one run and compared by their
medians. *Published* runs the text tower, the image tower up to its last block under no_grad, then its own last block (one head, as
in the published files), and takes one gradient. *Bare* is one forward pass of both towers and one backward pass to the pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

import zeroline as zl
from attention import cpu_seconds

THREADS = 2


def clip_base() -> Any:
    """CLIP ViT-B/32's configuration with random weights: 12 + 12 layers."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config={"eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 1})).eval().requires_grad_(False)


def pairs(batch: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, 40_000, (batch, 12), generator=random)
    ids[:, 0], ids[:, -1] = 49406, 49407
    return {"pixel_values": torch.randn(batch, 3, 224, 224, generator=random), "input_ids": ids}


def bare(model: Any, inputs: dict[str, Tensor]) -> None:
    pixels = inputs["pixel_values"].clone().requires_grad_()
    output = model(input_ids=inputs["input_ids"], pixel_values=pixels)
    torch.autograd.grad(cosine_similarity(output.image_embeds, output.text_embeds).sum(), pixels)


def published(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Grad-ECLIP as its files compute it: the last block written out, with one head."""
    tower, last = model.vision_model, model.vision_model.encoder.layers[-1]
    with torch.no_grad():
        text = normalize(model.get_text_features(input_ids=inputs["input_ids"]).pooler_output, dim=-1)
        hidden = tower.pre_layrnorm(tower.embeddings(inputs["pixel_values"]))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, attention_mask=None)
        normed = last.layer_norm1(hidden)
        attention = last.self_attn
        query, key, value = (linear(normed) for linear in (attention.q_proj, attention.k_proj, attention.v_proj))
        weights = (query @ key.transpose(1, 2) * query.shape[-1] ** -0.5).softmax(-1)
    output = (weights @ value).requires_grad_()
    hidden = hidden + attention.out_proj(output)
    hidden = hidden + last.mlp(last.layer_norm2(hidden))
    image = model.visual_projection(tower.post_layernorm(hidden[:, 0]))
    gradient = torch.autograd.grad(cosine_similarity(image, text).sum(), output)[0][:, 0]
    cosine = (normalize(query[:, :1], dim=-1) * normalize(key[:, 1:], dim=-1)).sum(-1)
    low, high = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
    return ((gradient[:, None] * value[:, 1:]).sum(-1) * (cosine - low) / (high - low)).relu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    model = clip_base()
    print("\n## ECLIP: an unmodified CLIP (ViT-B/32's shape) beside the published way, CPU time over one forward and backward pass\n")
    heads = ("batch", "published, image side", "`grad_eclip`, both sides", "`attention_eclip`, both sides")
    print(f"| {' | '.join(heads)} | apart in float64 |\n|---|---|---|---|---|")
    for batch in arguments.batches:
        inputs = pairs(batch)
        sides: dict[str, Callable[[], Any]] = {
            "bare": lambda x=inputs: bare(model, x),
            "published": lambda x=inputs: published(model, x),
            "grad": lambda x=inputs: zl.grad_eclip(model, x),
            "attention": lambda x=inputs: zl.attention_eclip(model, x),
        }
        took = cpu_seconds(sides, arguments.rounds)
        exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
        text = model.double().get_text_features(input_ids=exact["input_ids"]).pooler_output  # as published: of the model as it is
        ours, theirs = zl.grad_eclip(model, exact, target=zl.similarity(text=text), heads="one"), published(model, exact)
        apart = float((ours.grid("pixel_values").flatten(1) - theirs).abs().max() / theirs.abs().max())
        model.float()
        ratios = " | ".join(f"{took[name] / took['bare']:.2f}" for name in ("published", "grad", "attention"))
        print(f'| {batch} | {ratios} | `heads="one"` and published: {apart:.0e} |', flush=True)


if __name__ == "__main__":
    main()
