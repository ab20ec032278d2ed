"""Trains digits-vit. Phase 1 shows the model only the 5 x 5 window of patch tokens around the digit, which breaks the plateau
at chance in a few hundred steps; phase 2 shows all 64 tokens and one or two digits. The accuracy in the
model card is measured once, at the end, on test scenes of a seed that nothing else uses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zeroline.zoo import digits_vit
from zeroline.zoo.photo_digits import SIDE, PhotoDigits, Scene, Split
from zeroline.zoo.train.common import FRESH_SEED, POOL, TEST_SEED, TRAIN_SEED, learn, pixels

STEPS = (1_500, 5_000)  # phase 1, phase 2
WINDOW = 5


def classes(scenes: list[Scene]) -> Tensor:
    """The true distribution over the ten classes, equal shares where a scene holds two digits: [n, 10]."""
    shares = torch.zeros(len(scenes), 10)
    for row, scene in zip(shares, scenes):
        for thing in scene.objects:
            row[thing.digit] += 1 / len(scene.objects)
    return shares


def window(scenes: list[Scene], random: torch.Generator) -> Tensor:
    """Indices of the patch tokens in a jittered 5 x 5 window around each scene's digit: [n, 25]."""
    grid = SIDE // digits_vit.PATCH
    boxes = torch.tensor([s.objects[0].box for s in scenes]) / digits_vit.PATCH
    jitter = torch.rand(len(scenes), 2, generator=random) - 0.5
    centre = torch.stack([boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], 1) / 2
    corner = (centre - WINDOW / 2 + jitter).round().clamp(0, grid - WINDOW).long()
    steps = torch.arange(WINDOW)
    rows, columns = corner[:, 1, None, None] + steps[:, None], corner[:, 0, None, None] + steps[None, :]
    return (rows * grid + columns).flatten(1)


def forward_window(model: Any, images: Tensor, index: Tensor) -> Tensor:
    """The model's logits from the class token and the patch tokens in ``index`` only."""
    embeddings = model.vit.embeddings
    tokens = embeddings.patch_embeddings(images) + embeddings.position_embeddings[:, 1:]
    tokens = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
    first = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(len(images), -1, -1)
    hidden = torch.cat([first, tokens], 1)
    for layer in model.vit.layers:
        hidden = layer(hidden)
    logits: Tensor = model.classifier(model.vit.layernorm(hidden)[:, 0])
    return logits


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, seed: int, count: int, objects: int) -> float:
    """Share of the objects that are among the model's ``objects`` top classes."""
    data = PhotoDigits(split, seed)
    scenes = [data.scene(objects) for _ in range(count)]
    model.eval()
    top = model(pixels(scenes)).logits.topk(objects).indices
    hits = [thing.digit in row for row, scene in zip(top.tolist(), scenes) for thing in scene.objects]
    return sum(hits) / len(hits)


def trained() -> Any:
    """The model after both phases."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    model = digits_vit.build()
    data = PhotoDigits("train", TRAIN_SEED)
    pool = [data.scene(1 + i % 2) for i in range(POOL)]
    single, every = pool[::2], pool
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.02, betas=(0.9, 0.98))
    first, second = STEPS
    for step in range(first + second):
        focused = step < first
        decay = 1.0 if focused else max(0.01, 1 - (step - first) / second)
        source, size = (single, 96) if focused else (every, 64)
        scenes = [source[i] for i in torch.randint(len(source), (size,), generator=random)]
        images = pixels(scenes)
        model.train()
        logits = forward_window(model, images, window(scenes, random)) if focused else model(images).logits
        loss = cross_entropy(logits, classes(scenes))
        learn(optimiser, model, loss, 1.5e-3 * min(1.0, (step + 1) / 200) * decay)
        if (step + 1) % 500 == 0:
            score = accuracy(model, "test", TEST_SEED, 300, 1)
            print(f"step {step + 1}: loss {loss.item():.3f}, one-digit accuracy while training {score:.3f}", flush=True)
    return model


def scores(model: nn.Module) -> dict[str, float]:
    """What the model card says, on a seed that nothing else uses."""
    return {
        "one digit, top 1": accuracy(model, "test", FRESH_SEED, 2000, 1),
        "two digits, share of digits in the top 2": accuracy(model, "test", FRESH_SEED + 1, 1000, 2),
    }
