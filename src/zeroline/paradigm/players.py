"""Players for ``zl.logic``: words of a text, regions of a picture.

Holds the two ways to make ``zl.Player`` records without writing masks by hand. Users find it as ``zl.players``.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.baseline import Baseline, BaselineLike, mask_token, pad_token, unknown_token
from zeroline.errors import InputError, NotFoundError, UsageError
from zeroline.model.families import patches_of
from zeroline.model.inputs import Inputs
from zeroline.model.words import words_of
from zeroline.reasoning import Player

Box = tuple[float, float, float, float]


def words(
    inputs: Mapping[str, Any], tokenizer: Any, chosen: Sequence[str] | None = None, *, input: str = "input_ids", baseline: Baseline | None = None
) -> list[Player]:
    """A player for each word of a text (of the first sample), sub-word tokens joined.

    Args:
        inputs: the model's inputs; tokenizer: the Hugging Face tokenizer that made ``input``.
        chosen: the words that play; default all but punctuation. A word that stands twice is two players, the second called "word (2)".
        baseline: default the tokenizer's mask token, else its unknown, else its padding token.

    Raises NotFoundError for a word that is not in the text.
    """
    if input not in inputs:
        raise NotFoundError.among("input", input, inputs)
    ids = inputs[input][0].tolist()
    found = words_of(tokenizer, ids)
    if chosen is not None:
        known = [word.lower() for word, _ in found]
        for word in chosen:
            if word.lower() not in known:
                raise NotFoundError.among("word", word, [w for w, _ in found], "the text has no such word")
        wanted = {word.lower() for word in chosen}
        found = [(word, numbers) for word, numbers in found if word.lower() in wanted]
    else:
        found = [(word, numbers) for word, numbers in found if word.strip(string.punctuation)]
    baseline = missing_word(tokenizer) if baseline is None else baseline
    players, met = [], dict[str, int]()
    for word, numbers in found:
        met[word] = met.get(word, 0) + 1
        where = torch.zeros(len(ids), dtype=torch.bool)
        where[list(numbers)] = True
        players.append(Player(word if met[word] == 1 else f"{word} ({met[word]})", input, where, baseline))
    return players


def missing_word(tokenizer: Any) -> Baseline:
    """What stands for a word that is not there: the mask token, else the unknown, else the padding token."""
    makers = {"mask_token": mask_token, "unk_token": unknown_token, "pad_token": pad_token}
    for name, maker in makers.items():
        if getattr(tokenizer, name, None) is not None:
            return maker(tokenizer)
    raise InputError("the tokenizer has no mask, unknown or padding token; give baseline=zl.baseline.token(id)")


def missing(model: nn.Module, inputs: Any, tokenizer: Any | None, picture: BaselineLike) -> dict[str, BaselineLike]:
    """What stands for absent sources, by input: ``missing_word`` for ids where there is a tokenizer, ``picture`` for what holds real numbers."""
    found: dict[str, BaselineLike] = {}
    for name, tensor in Inputs.of(model, inputs).tensors.items():
        if tensor.is_floating_point():
            found[name] = picture
        elif tokenizer is not None and tensor.ndim == 2:
            found[name] = missing_word(tokenizer)
    return found


def grid(rows: int, columns: int) -> dict[str, Box]:
    """Cells of a picture by name, columns as letters and rows as numbers: "A1" is upper left. Boxes as shares of the picture.

    >>> grid(2, 2)["B2"]
    (0.5, 0.5, 1.0, 1.0)
    """
    if rows < 1 or not 1 <= columns <= 26:
        raise UsageError(f"a grid of {rows} x {columns} was asked; rows are 1 or more, columns 1 to 26")
    return {
        f"{string.ascii_uppercase[column]}{row + 1}": (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    }


def regions(
    model: nn.Module, inputs: Any, boxes: Mapping[str, Box], *, input: str | None = None, baseline: Baseline | None = None, rest: str | None = None
) -> list[Player]:
    """A player for each region: pixels (or patches) whose centre lies in its box (left, top, right, bottom, as shares of the picture).

    ``input``: the picture; default the one that lies on a grid. ``rest`` names a player for all of the picture that no box holds. Raises
    InputError where a box holds nothing, or no input is a picture.
    """
    wanted = Inputs.of(model, inputs)
    name, (height, width) = picture_of(model, wanted, input)
    y, x = ((torch.arange(n) + 0.5) / n for n in (height, width))
    players = []
    taken = torch.zeros(height, width, dtype=torch.bool)
    for label, (left, top, right, bottom) in boxes.items():
        inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))[None]
        if not bool(inside.any()):
            raise InputError(
                f"region {label!r} ({left:g}, {top:g}, {right:g}, {bottom:g}) holds none of the {height} x {width} positions of {name!r}"
            )
        taken |= inside
        players.append(Player(label, name, laid(inside, wanted.tensors[name]), baseline))
    if rest is not None and not bool(taken.all()):
        players.append(Player(rest, name, laid(~taken, wanted.tensors[name]), baseline))
    return players


def picture_of(model: nn.Module, inputs: Inputs, asked: str | None = None) -> tuple[str, tuple[int, int]]:
    """The input that is a picture, and its rows and columns: pixels [batch, channels, height, width], or features of patches on a grid."""
    if asked is not None and asked not in inputs.tensors:
        raise NotFoundError.among("input", asked, inputs.tensors)
    found = {}
    for name, tensor in inputs.floating().items():
        if asked is not None and name != asked:
            continue
        if tensor.ndim == 4:
            found[name] = (int(tensor.shape[2]), int(tensor.shape[3]))
        elif tensor.ndim == 3 and (lie := patches_of(model, tensor.shape[1])) is not None and lie.prefix == 0 and tensor.shape[2] > 4:
            found[name] = lie.grid
    if len(found) != 1:
        which = ", ".join(found) or "none"
        raise InputError(f"regions need one input that is a picture; found {which} among {', '.join(inputs.tensors)}; give zl.Player records")
    return next(iter(found.items()))


def laid(inside: Tensor, like: Tensor) -> Tensor:
    """A place on a picture as ``zl.Player`` takes it: [height, width] of pixels, [patches] of features."""
    return inside if like.ndim == 4 else inside.flatten()
