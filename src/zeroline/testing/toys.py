"""Small models that every method must do right on: one per trap that real models set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 3


@dataclass(frozen=True)
class Toy:
    """A model, inputs of a batch of two, and the sites to try (None is the input)."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    sites: tuple[str | None, ...]
    dtype: torch.dtype = torch.float32


class Flat(nn.Module):
    """Linear in every element of an image: the closed form is w * (z - z0)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2 * 3 * 5, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(image.flatten(1))
        return scores


class Convolutional(nn.Module):
    """Convolutions with in-place ReLU on images that are not square."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU(inplace=True))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(image).mean((2, 3)))
        return scores


class Block(nn.Module):
    """Pre-norm residual block with fused attention."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        q, k, v = self.qkv(self.norm1(tokens)).view(batch, count, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
        tokens = tokens + self.out(mixed)
        result: Tensor = tokens + self.mlp(self.norm2(tokens))
        return result


class Transformer(nn.Module):
    """Two blocks without positions, mean pooling: permuting tokens changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        scores: Tensor = self.head(tokens.mean(1))
        return scores


class Structured(nn.Module):
    """Keyword inputs, a mask, tuple outputs inside and a dict output; one module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(4, 6, batch_first=True)
        self.twice = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, features: Tensor, mask: Tensor) -> dict[str, Any]:
        states, last = self.recurrent(features)
        states = torch.tanh(self.twice(torch.tanh(self.twice(states))))
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {"logits": self.head(pooled), "states": (states, last)}


class Words(nn.Module):
    """Ids in, one embedding, mean pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.body(self.embed(ids)).mean(1)
        return scores


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 12), nn.GELU(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, CLASSES))


def _structured_inputs() -> dict[str, Tensor]:
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    return {"features": torch.randn(2, 5, 4), "mask": mask}


TOYS: tuple[Toy, ...] = (
    Toy("linear", Flat, lambda: torch.randn(2, 2, 3, 5), (None,)),
    Toy("mlp", _mlp, lambda: torch.randn(2, 7), (None, "0", "3")),
    Toy("convolutional", Convolutional, lambda: torch.randn(2, 3, 6, 10), (None, "body.0", "body.2", "body")),
    Toy("transformer", Transformer, lambda: (torch.randn(2, 5, 8),), (None, "blocks.0", "blocks.1.mlp", "attention:blocks.1")),
    Toy("structured", Structured, _structured_inputs, ("input:features", "recurrent[0]", "twice#1")),
    Toy("words", Words, lambda: torch.randint(0, 11, (2, 4)), ("embedding:ids", "embed")),
    Toy("mlp in bfloat16", _mlp, lambda: torch.randn(2, 7).bfloat16(), (None, "0"), torch.bfloat16),
)


def made(toy: Toy, seed: int = 0) -> tuple[nn.Module, Any]:
    """The toy's model (evaluation mode) and inputs from a seed; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = toy.build().eval().to(toy.dtype)
        return model, _named(model, toy.inputs())


def _named(model: nn.Module, inputs: Any) -> Any:
    """Ids by name for the models that take them, so that ``embedding:ids`` means the same everywhere."""
    return {"ids": inputs} if isinstance(model, Words) else inputs
