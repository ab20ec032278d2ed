"""What the zoo's trainings share: seeds, scenes as tensors, one optimiser's steps, and where results are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zeroline.zoo.digits_vit import MEAN, STD
from zeroline.zoo.photo_digits import Scene

POOL = 24_000
TRAIN_SEED, TEST_SEED, FRESH_SEED = 1, 2, 20_261_123
MODELS = Path(__file__).parents[1] / "models"


def pixels(scenes: list[Scene]) -> Tensor:
    """[n, 3, 64, 64], normalised as the models expect."""
    stacked = torch.from_numpy(np.stack([s.pixels for s in scenes])).permute(0, 3, 1, 2)
    return (stacked.float() / 255 - MEAN) / STD


def learn(optimiser: torch.optim.Optimizer, model: nn.Module, loss: Tensor, rate: float) -> None:
    """One step with the learning rate ``rate``, gradients clipped to norm 1."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


def save(model: Any, scores: Mapping[str, float], folder: Path) -> None:
    """Weights and scores, into the model's folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
