"""Pictures, preprocessings and tiny classifiers for the tests of class rewriting, with what can be said of them in closed form."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

R = Image.Resampling


def photo(height: int, width: int, seed: int = 0, low: int = 0, high: int = 255) -> Image.Image:
    """Coarse colours with some noise on top, levels within ``low``..``high``."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (max(2, height // 6), max(2, width // 6), 3), dtype=np.uint8)).resize((width, height), R.BICUBIC)
    noisy = np.asarray(coarse).astype(float) + draw.integers(-12, 13, (height, width, 3))
    return Image.fromarray((low + (high - low) * np.clip(noisy, 0, 255) / 255).round().astype(np.uint8))


def levels(image: Image.Image) -> np.ndarray:
    """int64 [height, width, 3]."""
    return np.asarray(image.convert("RGB")).astype(np.int64)


def tensor(image: Image.Image) -> Tensor:
    """[1, 3, height, width] in 0..1, no size changed."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)[None].float() / 255


def sized(width: int, height: int, how: Image.Resampling = R.BICUBIC):
    """A preprocessing to one size; nothing is done to pictures that have it."""
    return lambda image: tensor(image.convert("RGB").resize((width, height), how))


class Linear(nn.Module):
    """scores = W @ flatten(pixels) + b"""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1) @ self.weight.T + self.bias


def two_classes(image: Image.Image, seed: int = 0) -> tuple[Linear, np.ndarray]:
    """A linear model that says class 0 of the picture, and w = w_1 - w_0 (float64). ``lagging`` sets the margin."""
    draw = np.random.default_rng(seed)
    weight = draw.uniform(0.2, 1.0, (2, 3 * image.height * image.width)) * draw.choice([-1.0, 1.0], (2, 3 * image.height * image.width))
    return Linear(torch.from_numpy(weight), torch.zeros(2, dtype=torch.float64)).eval(), weight[1] - weight[0]


def lagging(model: Linear, image: Image.Image, by: float) -> Linear:
    """The model with its bias such that class 1 is behind class 0 by so many logits on the picture."""
    with torch.no_grad():
        scores = model(tensor(image).double())[0] - model.bias
        model.bias.copy_(torch.stack([torch.zeros(()).double(), scores[0] - scores[1] - by]))
    return model


class Bent(nn.Module):
    """A smooth classifier of few numbers: tanh of a random projection of the pixels, then linear."""

    def __init__(self, height: int, width: int, classes: int = 4, seed: int = 0, hidden: int = 12, gain: float = 3.0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(hidden, 3 * height * width, generator=draw) * gain / (3 * height * width) ** 0.5)
        self.second = nn.Parameter(torch.randn(classes, hidden, generator=draw))

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh((pixels.flatten(1) - 0.5) @ self.first.T) @ self.second.T


def changed(rewritten: Image.Image, original: Image.Image) -> np.ndarray:
    """Which pixels differ: bool [height, width]."""
    return (levels(rewritten) != levels(original)).any(-1)
