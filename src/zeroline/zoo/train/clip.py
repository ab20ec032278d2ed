"""Trains digits-clip, from the weights of digits-vit, on captions of photo-digits.

A caption names all objects of a scene, one of them, or only a colour or a digit; the loss of CLIP (Radford et al. 2021) is
taken with every image that a caption is true of as its match. The accuracy in the model card is measured once, at the end:
60 captions ("a red seven"), one object per image, a seed that nothing else uses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zeroline.zoo import digits_clip
from zeroline.zoo.photo_digits import DIGITS, PhotoDigits, Scene, Split
from zeroline.zoo.train.common import FRESH_SEED, POOL, TEST_SEED, TRAIN_SEED, learn, pixels

STEPS, BATCH = 5_000, 96
Claim = tuple[str | None, str | None]  # colour and digit that a caption names of one object


def start_from_vit(model: Any) -> None:
    """The image tower with the weights of digits-vit; what digits-vit lacks (the norm before the layers) stays as it is."""
    from safetensors.torch import load_file

    from zeroline.zoo.train.common import MODELS

    known = load_file(MODELS / "digits-vit" / "model.safetensors")
    tower = model.vision_model
    renamed = {
        "patch_embeddings.projection": "patch_embedding",
        "attention.q_proj": "self_attn.q_proj",
        "attention.k_proj": "self_attn.k_proj",
        "attention.v_proj": "self_attn.v_proj",
        "attention.o_proj": "self_attn.out_proj",
        "layernorm_before": "layer_norm1",
        "layernorm_after": "layer_norm2",
        "vit.layernorm.": "post_layernorm.",
        "vit.layers": "encoder.layers",
    }
    own = tower.state_dict()
    found = {}
    for name, tensor in known.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        found[name.removeprefix("vit.")] = tensor
    found["embeddings.class_embedding"] = known["vit.embeddings.cls_token"][0, 0]
    found["embeddings.position_embedding.weight"] = known["vit.embeddings.position_embeddings"][0]
    taken = {name: found[name] for name in own if name in found}
    missing = sorted(name for name in own if name not in taken and "pre_layrnorm" not in name and "position_ids" not in name)
    if missing:
        raise RuntimeError(f"digits-vit has no weights for {', '.join(missing)}")
    tower.load_state_dict({**own, **taken})
    nn.init.constant_(tower.pre_layrnorm.weight, 0.3)  # about the size of digits-vit's own embeddings


def caption(scene: Scene, random: torch.Generator) -> tuple[str, tuple[Claim, ...]]:
    """A caption that is true of the scene, and what it claims."""
    whole, detail, prefix = torch.rand(3, generator=random).tolist()
    things = scene.objects if whole < 0.6 else scene.objects[:1] if whole < 0.8 else scene.objects[-1:]
    claims: tuple[Claim, ...] = tuple((thing.colour, DIGITS[thing.digit]) for thing in things)
    if len(claims) == 1 and detail < 0.3:
        claims = ((None, claims[0][1]),) if detail < 0.15 else ((claims[0][0], None),)
    words = " and ".join(f"a {colour} {digit or 'digit'}" if colour else f"a {digit}" for colour, digit in claims)
    return ("a photo of " if prefix < 0.3 else "") + words, claims


def matches(scenes: list[Scene], claims: list[tuple[Claim, ...]]) -> Tensor:
    """Is caption t true of image i? [images, captions], 0 or 1."""

    def holds(scene: Scene, claim: Claim) -> bool:
        colour, digit = claim
        return any(colour in (None, o.colour) and digit in (None, DIGITS[o.digit]) for o in scene.objects)

    return torch.tensor([[float(all(holds(scene, claim) for claim in each)) for each in claims] for scene in scenes])


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, seed: int, count: int) -> dict[str, float]:
    """Zero-shot over 60 captions, one object per image: the whole caption, its colour, its digit."""
    data = PhotoDigits(split, seed)
    scenes = [data.scene(1) for _ in range(count)]
    model.eval()
    texts = digits_clip.tokenizer()(list(digits_clip.CAPTIONS), return_tensors="pt", padding=True)
    best = model(**texts, pixel_values=pixels(scenes)).logits_per_image.argmax(1).tolist()
    named = [digits_clip.CAPTIONS[i].split()[1:] for i in best]
    truth = [[s.objects[0].colour, DIGITS[s.objects[0].digit]] for s in scenes]
    whole = sum(a == b for a, b in zip(named, truth))
    colour, digit = (sum(a[part] == b[part] for a, b in zip(named, truth)) for part in (0, 1))
    return {"zero-shot over 60 captions": whole / count, "its colour": colour / count, "its digit": digit / count}


def trained() -> Any:
    """The model after all steps."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    model, words = digits_clip.build(), digits_clip.tokenizer()
    start_from_vit(model)
    data = PhotoDigits("train", TRAIN_SEED)
    pool = [data.scene(1 + i % 2) for i in range(POOL)]
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    for step in range(STEPS):
        scenes = [pool[i] for i in torch.randint(len(pool), (BATCH,), generator=random)]
        texts, claims = zip(*(caption(scene, random) for scene in scenes))
        model.train()
        output = model(**words(list(texts), return_tensors="pt", padding=True), pixel_values=pixels(scenes))
        true = matches(scenes, list(claims))
        by_image, by_text = true / true.sum(1, keepdim=True), (true / true.sum(0)).T
        loss = (cross_entropy(output.logits_per_image, by_image) + cross_entropy(output.logits_per_text, by_text)) / 2
        decay = min(1.0, (1 - step / STEPS) / 0.7)
        learn(optimiser, model, loss, 1e-3 * min(1.0, (step + 1) / 100) * max(0.01, decay))
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6)
        if (step + 1) % 500 == 0:
            found = accuracy(model, "test", TEST_SEED, 300)
            print(f"step {step + 1}: loss {loss.item():.3f}, while training {found}", flush=True)
    return model


def scores(model: nn.Module) -> dict[str, float]:
    """What the model card says, on a seed that nothing else uses."""
    return accuracy(model, "test", FRESH_SEED, 2000)
