"""How the features at a site lie: which tokens are positions, and on which grid.

Holds ``positions_of``: as given, as the model's configuration says (``families``), as a timm model says, or as the tracer sees it
in the running pass. Nothing is guessed from square numbers: where nobody knows, all tokens are positions, on no grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zeroline.errors import SiteError, ZerolineError
from zeroline.model.families import patch_grid, patches_of
from zeroline.model.identity import Memory
from zeroline.model.inputs import Inputs
from zeroline.model.trace import trace
from zeroline.relevance import Tokens, laid

_seen: Memory[Tokens] = Memory()
_LINE = Tokens()


def positions_of(model: nn.Module, inputs: Inputs, features: Tensor, grid: tuple[int, int] | None = None, prefix: int | None = None) -> Tokens:
    """Class and register tokens before the positions, and the rows and columns of the rest (None: a line).

    Features of four dimensions are [batch, channels, height, width], unless the picture's shape says [batch, height, width, channels].

    Raises SiteError or InputError where a grid or prefix is given that does not fit the features.
    """
    if features.ndim == 4:
        height, width = _rows_and_columns(inputs, features)
        if grid not in (None, (height, width)) or prefix:
            raise SiteError(
                f"a grid of {grid} with {prefix or 0} prefix tokens was given; the features are a grid of {height} x {width} by themselves"
            )
        return Tokens(0, (height, width))
    if features.ndim != 3:
        return _LINE
    tokens = int(features.shape[1])
    return laid("the site", tokens, _known(model, inputs, tokens), grid, prefix)


def _rows_and_columns(inputs: Inputs, features: Tensor) -> tuple[int, int]:
    """Of [batch, channels, height, width], or of [batch, height, width, channels] where that is nearer to the picture's shape."""
    _, a, b, c = map(int, features.shape)
    pictures = [t.shape[-2:] for t in inputs.floating().values() if t.ndim == 4]
    first, last = (min((_apart(rows, columns, *size) for size in pictures), default=math.inf) for rows, columns in ((b, c), (a, b)))
    return (a, b) if last < first else (b, c)


def _apart(rows: int, columns: int, height: int, width: int) -> float:
    """How far (rows, columns) is from (height, width) brought down by one stride, as a ratio's logarithm; infinity where no stride does."""
    low = max(height / (rows + 1), width / (columns + 1))
    high = min(height / max(rows - 1, 0.5), width / max(columns - 1, 0.5))
    return abs(math.log(rows * width / (columns * height))) if rows and columns and low < high else math.inf


def _known(model: nn.Module, inputs: Inputs, tokens: int) -> Tokens:
    """What the model's configuration, timm or the running pass says about so many tokens."""
    images = [t for t in inputs.floating().values() if t.ndim == 4]
    if not images:
        return _LINE
    size = (int(images[0].shape[-2]), int(images[0].shape[-1]))
    known = patches_of(model, tokens, size)
    if known is not None:
        return Tokens(known.prefix, known.grid)
    before, grid = getattr(model, "num_prefix_tokens", None), patch_grid(model, size)
    if isinstance(before, int) and grid is not None and before + grid[0] * grid[1] == tokens:
        return Tokens(before, grid)
    key = (tokens, size)
    if _seen.get(model, key) is None:
        _seen.put(model, key, _traced(model, inputs, tokens))
    return _seen.get(model, key) or _LINE


def _traced(model: nn.Module, inputs: Inputs, tokens: int) -> Tokens:
    """The stream of the running pass that has so many tokens on a grid."""
    try:
        streams = trace(model, inputs.rows(torch.zeros(1, dtype=torch.long))).streams
    except (ZerolineError, RuntimeError, ValueError, LookupError, TypeError):
        return _LINE
    found = [s for s in streams if s.tokens == tokens and s.grid is not None]
    return Tokens(found[0].prefix, found[0].grid) if len(found) == 1 else _LINE
