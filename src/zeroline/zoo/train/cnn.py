"""Trains digits-cnn: the scenes, labels, batch size and optimiser of digits-vit's second phase, from the first step on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from zeroline.zoo import digits_cnn
from zeroline.zoo.photo_digits import PhotoDigits
from zeroline.zoo.train import vit
from zeroline.zoo.train.common import POOL, TEST_SEED, TRAIN_SEED, learn, pixels

STEPS = 5_000


def trained() -> Any:
    """The model after its training."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    model = digits_cnn.build()
    data = PhotoDigits("train", TRAIN_SEED)
    pool = [data.scene(1 + i % 2) for i in range(POOL)]
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.02, betas=(0.9, 0.98))
    for step in range(STEPS):
        scenes = [pool[i] for i in torch.randint(len(pool), (64,), generator=random)]
        model.train()
        loss = cross_entropy(model(pixels(scenes)).logits, vit.classes(scenes))
        learn(optimiser, model, loss, 1.5e-3 * min(1.0, (step + 1) / 200) * max(0.01, 1 - step / STEPS))
        if (step + 1) % 500 == 0:
            score = vit.accuracy(model, "test", TEST_SEED, 300, 1)
            print(f"step {step + 1}: loss {loss.item():.3f}, one-digit accuracy while training {score:.3f}", flush=True)
    return model


def scores(model: nn.Module) -> dict[str, float]:
    """What the model card says, on a seed that nothing else uses."""
    return vit.scores(model)
