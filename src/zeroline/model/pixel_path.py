"""A model's own preprocessing as a differentiable function of the picture's pixels, measured on the preprocessing itself.

Holds ``measured``, which shows a preprocessing (any callable from a PIL image to a model's inputs) a few test pictures and reads off what it
does, and ``PixelPath``, what it read: resize, crop, pad and flip are one matrix per axis, colour order, range and normalisation one matrix of
channels and an offset:

    inputs[c] = sum_k colours[c, k] * rows @ pixels[k] @ columns^T + offset[c]

No configuration is read and no library's transform is written again, so there is nothing to fall behind; what a preprocessing does beyond this
(equalise, sharpen, crop at random) shows as a difference on the picture itself, and is refused. 8-bit rounding between its steps has no
gradient and is left out: ``gap`` says what that comes to, in levels of 1/255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zeroline.errors import InputError
from zeroline.model.pictures import image_among, picture, pixels_of

Preprocess = Callable[[Any], Any]
LOW, HIGH = 64, 192  # levels of the test pictures: what a sharp filter over- and undershoots stays within 0..255
_NOISE = 32
SPAN = 255 / (HIGH - LOW)
_TAPS = 6  # a Lanczos kernel spans six input pixels per unit of zoom, the widest filter in use
_AVERAGED = 64  # positions, at least, that a weight is averaged over
_NOTHING = 2e-3  # a weight below it is rounding, where an output is one input wide
_WHOLE = 0.99  # of an output that pixels reach, not padding beside them
_MOST = 1.5, 6.0  # levels that the path may be off: root mean square, and anywhere


@dataclass(frozen=True, eq=False)
class PixelPath:
    """Pixels [batch, 3, height, width] in 0..1 to the model's image [batch, channels, h, w].

    ``rows`` [h, height], ``columns`` [w, width], ``colours`` [channels, 3], ``offset`` [channels, h, w]; ``clamped``: resized pixels are kept in
    0..1, as 8-bit ones are. ``name`` is the input's (None: the preprocessing gives a tensor), ``rest`` what it gives beside it, ``gap`` the root
    mean square difference from the preprocessing itself on the picture that it was measured for, in levels of 1/255.
    """

    rows: Tensor
    columns: Tensor
    colours: Tensor
    offset: Tensor
    clamped: bool
    name: str | None
    rest: Mapping[str, Any]
    gap: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures that it takes."""
        return self.rows.shape[1], self.columns.shape[1]

    def image(self, pixels: Tensor) -> Tensor:
        """The model's image input."""
        seen = _resized(pixels, self.rows.to(pixels), self.columns.to(pixels), self.clamped)
        return torch.einsum("ck,bkhw->bchw", self.colours.to(pixels), seen) + self.offset.to(pixels)

    def inputs(self, pixels: Tensor) -> Any:
        """What the model is called with."""
        if self.name is None:
            return self.image(pixels)
        rest = {n: _repeated(v, len(pixels)) if isinstance(v, Tensor) else v for n, v in self.rest.items()}
        return {**rest, self.name: self.image(pixels)}

    def cells(self, grid: tuple[int, int]) -> Tensor:
        """Which cell of a grid over the model's image a pixel of the picture goes to: int64 [height, width], -1 where to none (cropped away)."""
        along = [_parts(axis, parts) for axis, parts in zip((self.rows, self.columns), grid)]
        cell = along[0][:, None] * grid[1] + along[1][None, :]
        return torch.where((along[0][:, None] < 0) | (along[1][None, :] < 0), -1, cell)

    def checked_on(self, preprocess: Preprocess, image: Any) -> PixelPath:
        """The same path with the gap that it has on another picture of this size, clamped or not, whichever fits; else an InputError."""
        truth = image_among(preprocess(image))[1]
        either = [replace(self, clamped=clamped) for clamped in (True, False)]
        best = min(either, key=lambda path: path._off(truth, image)[0])
        gap, worst = best._off(truth, image)
        if not (gap <= _MOST[0] and worst <= _MOST[1]):
            raise InputError(
                f"the preprocessing does more than resize, crop, pad and normalise: rebuilt as such it is off by {gap:.1f} levels of 255 on this"
                f" picture ({worst:.0f} at most); a gradient through it would be wrong. Give a preprocess= without the rest"
            )
        return replace(best, gap=gap)

    def _off(self, truth: Tensor, image: Any) -> tuple[float, float]:
        """Root mean square and largest difference from a preprocessed picture, in levels of 1/255."""
        level = self.colours.abs().sum(1).clamp_min(1e-12)[:, None, None] / 255
        off = (self.image(pixels_of(image)[None])[0] - truth[0].cpu()) / level
        return float(off.square().mean().sqrt()), float(off.abs().max())


def measured(preprocess: Preprocess, image: Any) -> PixelPath:
    """The path of pictures of this one's size.

    Args:
        preprocess: a PIL image to the model's inputs: a tensor, or a mapping that holds one image [1, channels, h, w].
        image: an RGB picture; its own pixels, and those of a textured test picture, are what the path is checked on.

    Raises:
        InputError: the preprocessing gives no image, is not the same twice, or does more than resize, crop, pad and normalise (how far off).
    """
    name, given = image_among(preprocess(image))
    if given.shape[0] != 1:
        raise InputError(f"the preprocessing makes {given.shape[0]} images of one picture; rewriting needs one")
    if not torch.equal(given, image_among(preprocess(image))[1]):
        raise InputError("the preprocessing is not the same twice on one picture; give the one of evaluation, without random crops or flips")

    def shown(pixels: Tensor) -> Tensor:
        found = image_among(preprocess(picture(pixels)))[1][0].double().cpu()
        if found.shape != given.shape[1:]:
            raise InputError(f"the preprocessing gives {tuple(found.shape)} and {tuple(given.shape[1:])} for pictures of one size")
        return found

    height, width = image.height, image.width
    dark, light = (shown(torch.full((3, height, width), level, dtype=torch.uint8)) for level in (LOW, HIGH))
    span = (light - dark) * SPAN  # from black to white, had nothing been clipped on the way
    offset = dark - span * LOW / 255
    channel, row, column = (int(i) for i in torch.unravel_index(span.abs().argmax(), span.shape))
    if float(span.abs().max()) < 1e-6:
        raise InputError("the preprocessing gives the same for black and for white pictures; a pixel path cannot be measured through it")
    colours = torch.stack([(shown(_flat(k, height, width)) - dark)[:, row, column] * SPAN for k in range(3)], 1)
    share = span[channel] / span[channel, row, column]  # 1 where pixels arrive, 0 where it pads

    def profile(pixels: Tensor, along: int) -> Tensor:
        """Mean response along one axis, over the positions of the other that pixels reach."""
        seen = (shown(pixels) - offset)[channel] / span[channel, row, column]
        return seen.movedim(along, 0)[:, share.amax(along) > _WHOLE].mean(1)

    rows, columns = (
        _axis(profile, along, (height, width), share.amax(1 - along), repeats=-(-_AVERAGED // share.shape[1 - along])) for along in (0, 1)
    )
    full = preprocess(image)
    others = {} if name is None else {n: value for n, value in full.items() if n != name}
    path = PixelPath(rows.float(), columns.float(), colours.float(), offset.float(), True, name, others)
    path.checked_on(preprocess, picture(_textured(128, height, width)))  # a flat picture says little about what else is done
    return path.checked_on(preprocess, image)


def _axis(profile: Callable[[Tensor, int], Tensor], along: int, size: tuple[int, int], sums: Tensor, repeats: int) -> Tensor:
    """The matrix [outputs, inputs] of one axis, from combs: every K-th line of the picture is light, K wider than any filter."""
    length = size[along]

    def answer(levels: Tensor) -> Tensor:
        pictures = (_textured(levels[:, None] if along == 0 else levels[None, :], *size, seed) for seed in range(repeats))
        return torch.stack([profile(one, along) for one in pictures]).mean(0)

    ramp = torch.linspace(LOW, HIGH, length, dtype=torch.float64)
    dark = answer(torch.full_like(ramp, LOW))
    centre = (answer(ramp) - dark) * SPAN * (length - 1)  # the input line that an output is centred on
    centre = centre / sums.clamp_min(1e-3)
    reached = sums > _WHOLE
    zoom = float(centre[reached].diff().abs().median()) if int(reached.sum()) > 1 else float(length)
    step = min(length, math.ceil(_TAPS * max(zoom, 1.0)) + 2)
    found = torch.zeros(len(sums), length, dtype=torch.float64)
    for shift in range(step):
        levels = torch.full_like(ramp, LOW)
        levels[shift::step] = HIGH
        weight = (answer(levels) - dark) * SPAN
        lit = (((centre - shift) / step).round().long() * step + shift).clamp(min=shift, max=shift + (length - 1 - shift) // step * step)
        found[torch.arange(len(sums)), lit] = torch.where(weight.abs() > _NOTHING / max(zoom, 1.0), weight, 0.0)
    total = found.sum(1)
    return found * torch.where(total.abs() > _NOTHING, sums / total, 0.0)[:, None]


def _resized(pixels: Tensor, rows: Tensor, columns: Tensor, clamped: bool) -> Tensor:
    """Along the width first, as image libraries do, each pass kept in 0..1 where pixels are 8-bit between them."""
    for matrix, spec in ((columns, "oi,bkhi->bkho"), (rows, "oi,bkiw->bkow")):
        if matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)):
            continue
        pixels = torch.einsum(spec, matrix, pixels)
        pixels = pixels.clamp(0, 1) if clamped else pixels
    return pixels


def _parts(axis: Tensor, parts: int) -> Tensor:
    """The part of the output [outputs, inputs] that each input weighs most in, -1 where in none: [inputs]."""
    outputs = axis.shape[0]
    part = torch.arange(outputs) * parts // outputs
    weight = torch.zeros(parts, axis.shape[1]).index_add_(0, part, axis.abs().float().cpu())
    return torch.where(weight.amax(0) > 0, weight.argmax(0), -1)


def _repeated(value: Tensor, count: int) -> Tensor:
    return value.expand(count, *value.shape[1:]) if value.ndim and value.shape[0] == 1 else value


def _textured(levels: Tensor | int, height: int, width: int, seed: int = 0) -> Tensor:
    """Grey levels with noise upon them, the same every time: what 8-bit steps round then differs from pixel to pixel, and averages out."""
    noise = torch.randint(-_NOISE, _NOISE + 1, (height, width), generator=torch.Generator().manual_seed(seed))
    return (levels + noise).round().clamp(0, 255).to(torch.uint8).expand(3, -1, -1)


def _flat(channel: int, height: int, width: int) -> Tensor:
    found = torch.full((3, height, width), LOW, dtype=torch.uint8)
    found[channel] = HIGH
    return found
