"""Targets of dual encoders: how near an image is to a text.

Holds ``SimilarityTarget`` and ``embeddings``, which finds the two embeddings in what CLIP, SigLIP, open_clip or a
``zl.DualEncoder`` gives. A sample is a pair of an image and a text; another text (or image) to compare with is given as its
embedding, or as inputs, which ``model.targets`` embeds with the model itself. Users find this as ``zl.similarity``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from zeroline.errors import NonFiniteError, TargetError

SCALES = ("cosine", "logit")
IMAGE, TEXT = "image", "text"
_NAMES = {IMAGE: ("image_embeds", "image_features"), TEXT: ("text_embeds", "text_features")}
Other = Tensor | Mapping[str, Tensor] | None  # an embedding (floating point), or inputs of the model to embed


@dataclass(frozen=True, eq=False)
class SimilarityTarget:
    """``cos(a, b)`` of each sample's two embeddings, or ``exp(logit_scale) cos(a, b) + logit_bias``.

    ``side`` is the sample's own embedding that is read; ``other`` stands for the second, None for the sample's own. ``against``
    is another second one whose similarity is taken off: a contrast. ``temperature`` is (exp(logit_scale), logit_bias).
    """

    side: str = IMAGE
    other: Other = None
    against: Other = None
    scale: str = "cosine"
    names: tuple[str, str] = ("", "")
    temperature: tuple[float, float] = (1.0, 0.0)

    @property
    def unknown(self) -> tuple[Other, Other]:
        """What the model has to embed before the target can be read; None where nothing is left to do."""
        one, two = (given if isinstance(given, Mapping) or _is_ids(given) else None for given in (self.other, self.against))
        return one, two

    def resolve(self, output: Any, labels: Mapping[str, int]) -> SimilarityTarget:
        own = embeddings(output)[_index(self.side)]
        if own is None:
            raise TargetError(f"the model gave no {self.side} embedding: the {self.side} is missing from its inputs")
        if any(given is not None for given in self.unknown):
            raise TargetError("a text or image to compare with is given as inputs, and no model has embedded it")
        for given in (self.other, self.against):
            if isinstance(given, Tensor) and not _fits(given, own):
                possible = f"({own.shape[1]},), or one per sample ({len(own)}, {own.shape[1]})"
                raise TargetError(f"an embedding of shape {tuple(given.shape)} was given; the model's are {possible}")
        return self

    def read(self, output: Any, samples: Tensor) -> Tensor:
        found = embeddings(output)
        own, second = found[_index(self.side)], found[1 - _index(self.side)]
        if own is None or len(own) != len(samples):
            count = "no" if own is None else str(len(own))
            raise TargetError(f"the model gave {count} {self.side} embeddings for {len(samples)} rows")
        if self.other is None and (second is None or len(second) != len(own)):
            pair = f"{len(own)} {self.side} and {0 if second is None else len(second)} other embeddings"
            hint = "give each image its own text, or one text for all: zl.similarity(text=tokens or embedding)"
            raise TargetError(f"the model gave {pair}; a sample is a pair: {hint}")
        paired = second if self.other is None else _rows(self.other, samples, own)
        assert paired is not None
        value = _cosine(own, paired, samples)
        factor, bias = self.temperature
        if self.against is not None:
            return factor * (value - _cosine(own, _rows(self.against, samples, own), samples))
        return factor * value + bias

    def size(self, output: Any) -> Tensor:
        """How large what f is made of can be [rows]: cosines of 1. f is rounded by units of it."""
        own = embeddings(output)[_index(self.side)]
        assert own is not None  # read() comes first
        factor, bias = self.temperature
        return torch.full_like(own[:, 0], factor * (1.0 if self.against is None else 2.0) + abs(bias))

    def describe(self, samples: int) -> tuple[str, ...]:
        what = "cosine" if self.scale == "cosine" else "similarity logit"
        second = TEXT if self.side == IMAGE else IMAGE
        other = self.names[0] or (f"its own {second}" if self.other is None else f"{'an' if second == IMAGE else 'a'} {second} given")
        minus = "" if self.against is None else f", minus that with {self.names[1] or f'another {second}'}"
        return (f"{what} of the {self.side} with {other}{minus}",) * samples


def similarity(
    text: Other = None, *, image: Other = None, against: Other = None, scale: str = "cosine", names: tuple[str, str] | str = ("", "")
) -> SimilarityTarget:
    """How near a dual encoder (CLIP, SigLIP, open_clip, ``zl.DualEncoder``) puts an image and a text.

    Args:
        text: None: each sample's own text. Another text for all samples (or one per sample) as its embedding [dim] or
            [batch, dim], or as inputs: a dict such as ``tokenizer("a cat", return_tensors="pt")``, or ids [1 or batch, tokens].
        image: the same for a text among images: the sample's own text is compared with this image.
        against: a second text (image) whose similarity is taken off: why one rather than the other.
        scale: ``"cosine"``, or ``"logit"`` with the model's own ``logit_scale`` and ``logit_bias``.
        names: what to call the text (and the one against it) in records.

    Returns:
        A target: ``cos(a, b)``, in -1..1, from the model's embeddings before or after its own normalisation; 0-norm
        embeddings are an error (TargetError).
    """
    if scale not in SCALES:
        raise TargetError(f"scale={scale!r} was asked; possible: {', '.join(SCALES)}")
    if text is not None and image is not None:
        raise TargetError("a text and an image were given; the sample's own image goes with text=, its own text with image=")
    for given in (text, image, against):
        if isinstance(given, str):
            raise TargetError(f"{given!r} is a string; a text is its tokens, tokenizer({given!r}, return_tensors='pt'), or its embedding")
        if given is not None and not isinstance(given, (Tensor, Mapping)):
            raise TargetError(f"a text or image to compare with is an embedding or inputs, not {type(given).__name__}")
    named = (names, "") if isinstance(names, str) else names
    return SimilarityTarget(TEXT if image is not None else IMAGE, text if image is None else image, against, scale, named)


def embeddings(output: Any) -> tuple[Tensor | None, Tensor | None]:
    """The image and the text embeddings [rows, dim] in a dual encoder's output; None for a side that was not run.

    By name (``image_embeds``, ``text_embeds``; ``image_features``, ``text_features``), or the first two of a tuple.
    """
    if isinstance(output, Mapping):
        found = tuple(next((output[name] for name in names if isinstance(output.get(name), Tensor)), None) for names in _NAMES.values())
        if any(side is not None for side in found):
            return found[0], found[1]
    if isinstance(output, tuple) and len(output) > 1:
        one, two = output[:2]
        if all(side is None or (isinstance(side, Tensor) and side.ndim == 2) for side in (one, two)) and (one is not None or two is not None):
            return one, two
    raise TargetError(
        f"the model gives no image and text embeddings ({type(output).__name__}): zl.similarity is for dual encoders;"
        " put two encoders together with zl.DualEncoder(image=..., text=...)"
    )


def with_embeddings(target: SimilarityTarget, other: Tensor | None, against: Tensor | None, temperature: tuple[float, float]) -> SimilarityTarget:
    """The target once the model has embedded what it is compared with."""
    return replace(
        target,
        other=target.other if other is None else other,
        against=target.against if against is None else against,
        temperature=temperature,
    )


def _index(side: str) -> int:
    return 0 if side == IMAGE else 1


def _is_ids(given: Any) -> bool:
    return isinstance(given, Tensor) and not given.is_floating_point()


def _fits(given: Tensor, own: Tensor) -> bool:
    """Is it one embedding for all samples, or one for each?"""
    return given.ndim in (1, 2) and given.shape[-1] == own.shape[1] and given.shape[:-1].numel() in (1, len(own))


def _rows(given: Other, samples: Tensor, like: Tensor) -> Tensor:
    """The embedding of each row's sample."""
    assert isinstance(given, Tensor)
    given = given.to(like.device)
    if given.ndim == 1 or len(given) == 1:
        return given.reshape(1, -1).expand(len(samples), -1)
    return given.index_select(0, samples.to(given.device))


def _cosine(a: Tensor, b: Tensor, samples: Tensor) -> Tensor:
    """[rows], at least in float32."""
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    for side in (a, b):
        for bad, what, error in (
            ((side.detach() == 0).all(1), "zero; a cosine with it is not defined", TargetError),
            (~side.detach().isfinite().all(1), "not finite (a model that divides a zero embedding by its norm gives NaN)", NonFiniteError),
        ):
            if bool(bad.any()):
                raise error(f"the embedding of sample {int(samples[int(bad.nonzero()[0])])} is {what}")
    cosine: Tensor = (normalize(a, dim=1) * normalize(b, dim=1)).sum(1)
    return cosine
