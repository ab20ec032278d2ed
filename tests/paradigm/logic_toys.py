"""Models whose logic is known, and what a game on any model must give: every coalition of every sample asked alone, by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import zeroline as zl


class Facts(nn.Module):
    """Scores [rows, 2]: a rule of the numbers x [rows, k], and a half. ``asked`` holds the rows of every call."""

    def __init__(self, rule: Callable[..., Tensor]) -> None:
        super().__init__()
        self.rule = rule
        self.asked: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        said = self.rule(*x.unbind(1))
        return torch.stack([said, torch.full_like(said, 0.5)], 1)


def numbered(count: int) -> list[zl.Player]:
    """A player for each of the numbers of ``Facts``: a, b, c, ... z, p26, p27, ..."""
    return [zl.Player(chr(ord("a") + i) if i < 26 else f"p{i}", "x", torch.arange(count) == i) for i in range(count)]


WORDS, CHANNELS, HEIGHT, WIDTH, REGIONS = 5, 3, 4, 6, 3
MASK = {"mask_token_id": 2, "pad_token_id": 1}  # of Several: words are 3 to 11


class Several(nn.Module):
    """Words, a picture that is not square and regions in, three classes out: everything acts on everything. Float64."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.embed = nn.Embedding(12, 3)
            self.words = nn.Linear(WORDS * 3, 8)
            self.picture = nn.Linear(CHANNELS * HEIGHT * WIDTH, 8)
            self.regions = nn.Linear(REGIONS * 2, 8)
            self.head = nn.Linear(8, 3, bias=False)
        self.double().eval()
        self.config = SimpleNamespace(**config)
        self.asked: list[int] = []

    def forward(self, ids: Tensor, image: Tensor, boxes: Tensor) -> Tensor:
        self.asked.append(len(ids))
        words, picture, regions = self.words(self.embed(ids).flatten(1)), self.picture(image.flatten(1)), self.regions(boxes.flatten(1))
        scores: Tensor = 3 * self.head(torch.tanh(words + picture) * torch.tanh(regions + 0.5 * words))
        return scores


def several(batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of ``Several``."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "ids": torch.randint(3, 12, (batch, WORDS), generator=draw),
        "image": torch.randn(batch, CHANNELS, HEIGHT, WIDTH, generator=draw, dtype=torch.float64),
        "boxes": torch.randn(batch, REGIONS, 2, generator=draw, dtype=torch.float64),
    }


Absence = tuple[str, Callable[[tuple[int, ...]], bool], Tensor]
"""An input, whether a position of it (sample first) is the player's, and what stands there in its absence."""


def slow_game(model: nn.Module, inputs: Mapping[str, Tensor], absences: Sequence[Absence], read: Callable[[Tensor, int], Any]) -> list[list[Any]]:
    """``read(scores of one row, sample)`` for every sample and coalition, one call of the model for each."""
    games = []
    for sample in range(len(next(iter(inputs.values())))):
        game = []
        for coalition in range(2 ** len(absences)):
            row = {name: tensor[sample].clone() for name, tensor in inputs.items()}
            for player, (name, own, stands) in enumerate(absences):
                if coalition // 2**player % 2:
                    continue
                for position in itertools.product(*map(range, row[name].shape)):
                    if own((sample, *position)):
                        row[name][position] = stands[sample][position]
            with torch.no_grad():
                game.append(read(model(**{name: tensor[None] for name, tensor in row.items()})[0], sample))
        games.append(game)
    return games


def tokenizer(**ids: int) -> SimpleNamespace:
    """What a tokenizer says of its special tokens: 0 begins, 1 ends, 2 is no word, 11 is the mask."""
    return SimpleNamespace(
        **{"mask_token_id": 11, "pad_token_id": 2, "unk_token_id": None, "mask_token": "[MASK]", "all_special_ids": [0, 1, 2, 11], **ids}
    )
