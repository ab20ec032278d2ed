"""What is explained: a target reads one number per sample off the model's output.

Holds the target records and the shorthands that users type (``7``, ``"seven"``, ``zl.top()``). A target is
first *resolved* on the model's output for x, which fixes its classes per sample; from then on it reads the
same classes wherever the path goes. It never runs the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from zeroline.detection import DetectionTarget, box, detection
from zeroline.errors import NotFoundError, TargetError

__all__ = [
    "ClassTarget",
    "DetectionTarget",
    "OutputTarget",
    "Target",
    "TargetLike",
    "TokenTarget",
    "as_target",
    "box",
    "class_scores",
    "contrast",
    "detection",
    "log_probability",
    "logit",
    "logits",
    "mix",
    "output",
    "probability",
    "sequence",
    "token",
    "top",
    "top_token",
    "whole_number",
]

TOP = "top"
Class = int | str
Classes = Class | Sequence[Class] | Tensor
Labels = Mapping[str, int]


@runtime_checkable
class Target(Protocol):
    """One scalar per sample. ``describe`` has one line per sample once resolved."""

    def resolve(self, output: Any, labels: Labels) -> Target:
        """Fix everything that depends on the output for x (the top class, label names)."""
        ...

    def read(self, output: Any, samples: Tensor) -> Tensor:
        """f: [rows]. Row r of ``output`` belongs to sample ``samples[r]``."""
        ...

    def describe(self, samples: int) -> tuple[str, ...]:
        """What is read, in words, once resolved: one line per sample."""
        ...


@dataclass(frozen=True)
class ClassTarget:
    """``sum_i weights[i] * scale(logits)[class i]``, the classes chosen per sample.

    ``scale`` is ``"logit"`` (as the model gives it), ``"probability"`` (softmax) or ``"log-probability"``.
    ``indices`` is [terms, samples] once resolved. ``labels`` name the classes where the model does not (the texts of a dual encoder).
    """

    classes: tuple[Classes, ...]
    weights: tuple[float, ...] = (1.0,)
    scale: str = "logit"
    indices: Tensor | None = None
    names: tuple[tuple[str, ...], ...] = ()
    labels: tuple[str, ...] = ()

    def resolve(self, output: Any, labels: Labels) -> ClassTarget:
        if self.labels:
            labels = {name: index for index, name in enumerate(self.labels)}
        scores = class_scores(output)
        rows = [_indices(chosen, scores, labels) for chosen in self.classes]
        by_index = {index: name for name, index in reversed(list(labels.items()))}
        names = tuple(tuple(by_index.get(int(i), str(int(i))) for i in row) for row in rows)
        return replace(self, indices=torch.stack(rows), names=names)

    def read(self, output: Any, samples: Tensor) -> Tensor:
        assert self.indices is not None  # resolve() comes first: zeroline.model.ask sees to it
        scores = class_scores(output)
        if len(scores) != len(samples):
            raise TargetError(f"the model gave scores for {len(scores)} rows of {len(samples)} samples; give a callable: zl.target.output(fn)")
        if self.scale == "probability":
            scores = scores.softmax(-1)
        elif self.scale == "log-probability":
            scores = scores.log_softmax(-1)
        chosen = self.indices.to(scores.device)[:, samples]
        terms = [w * scores.gather(1, row[:, None])[:, 0] for w, row in zip(self.weights, chosen)]
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]

    def size(self, output: Any) -> Tensor:
        """How large what f is made of is [rows]: the largest score (1 for probabilities) by the weights. f is rounded by units of it."""
        scores = class_scores(output)
        largest = torch.ones_like(scores[:, 0]) if self.scale == "probability" else scores.abs().amax(1)
        return largest * sum(map(abs, self.weights))

    def describe(self, samples: int) -> tuple[str, ...]:
        def term(weight: float, name: str, first: bool) -> str:
            sign = "-" if weight < 0 else "" if first else "+"
            size = "" if abs(weight) == 1 else f"{abs(weight):g} "
            return f"{sign}{'' if first else ' '}{size}{name}"

        def line(sample: int) -> str:
            terms = (term(w, names[sample], i == 0) for i, (w, names) in enumerate(zip(self.weights, self.names)))
            return f"{self.scale} of {' '.join(terms)}"

        return tuple(line(s) for s in range(samples))


@dataclass(frozen=True)
class TokenTarget:
    """Sum of the log-probabilities of ``tokens`` read at the logits' positions ``start, start + 1, ...``

    For a causal model the logits at position p predict token p + 1; for a masked model, token p itself.
    The model's logits are [batch, positions, vocabulary]. Without ``tokens``, each sample's own top token at ``start``
    on x (``picked`` [samples] once resolved).
    """

    tokens: tuple[int, ...]
    start: int
    picked: Tensor | None = None

    def resolve(self, output: Any, labels: Labels) -> TokenTarget:
        scores = logits(output)
        if scores.ndim != 3:
            raise TargetError(f"a token target reads logits [batch, positions, vocabulary]; found {tuple(scores.shape)}")
        length, vocabulary = scores.shape[1:]
        start = self.start + length if self.start < 0 else self.start
        count = len(self.tokens) or 1
        if not 0 <= start <= length - count:
            raise TargetError(f"positions {self.start} to {self.start + count - 1} asked; the logits have {length}")
        if not self.tokens:
            return replace(self, start=start, picked=scores[:, start].detach().argmax(-1))
        if not all(0 <= token < vocabulary for token in self.tokens):
            raise TargetError(f"tokens {self.tokens} asked; the vocabulary has {vocabulary} entries")
        return replace(self, start=start)

    def read(self, output: Any, samples: Tensor) -> Tensor:
        window = logits(output)[:, self.start : self.start + (len(self.tokens) or 1)].log_softmax(-1)
        if self.picked is not None:
            index = self.picked.to(window.device)[samples][:, None]
        else:
            index = torch.tensor(self.tokens, device=window.device).expand(len(window), -1)
        return window.gather(2, index[..., None])[..., 0].sum(1)

    def describe(self, samples: int) -> tuple[str, ...]:
        if self.picked is not None:
            return tuple(f"log-probability of token {int(token)} at position {self.start}" for token in self.picked)
        where = f"at position {self.start}" if len(self.tokens) == 1 else f"from position {self.start}"
        return (f"log-probability of token {' '.join(map(str, self.tokens))} {where}",) * samples


@dataclass(frozen=True)
class OutputTarget:
    """Any function of the model's output that gives one number per row: ``function(output) -> [rows]``."""

    function: Callable[[Any], Tensor]
    name: str

    def resolve(self, output: Any, labels: Labels) -> OutputTarget:
        return self

    def read(self, output: Any, samples: Tensor) -> Tensor:
        try:
            value = self.function(output)
        except (LookupError, RuntimeError) as problem:
            raise TargetError(f"target {self.name!r} failed on {len(samples)} rows ({problem}); it must work for any number of rows") from problem
        if not isinstance(value, Tensor):
            raise TargetError(f"target {self.name!r} gave {type(value).__name__}; it must give a tensor [batch]")
        return value

    def describe(self, samples: int) -> tuple[str, ...]:
        return (self.name,) * samples


def top() -> ClassTarget:
    """The logit of the model's own top class, chosen once, on x, for each sample."""
    return logit(TOP)


def logit(classes: Classes) -> ClassTarget:
    """The logit of a class: an int, a label of the model, ``"top"``, or one of these per sample."""
    return ClassTarget((classes,))


def probability(classes: Classes) -> ClassTarget:
    """The softmax probability of a class."""
    return ClassTarget((classes,), scale="probability")


def log_probability(classes: Classes) -> ClassTarget:
    """The log of the softmax probability of a class."""
    return ClassTarget((classes,), scale="log-probability")


def contrast(a: Classes, b: Classes) -> ClassTarget:
    """logit of ``a`` minus logit of ``b``: why a rather than b."""
    return ClassTarget((a, b), (1.0, -1.0))


def mix(weights: Mapping[Class, float]) -> ClassTarget:
    """A weighted sum of class logits."""
    if not weights:
        raise TargetError("a mix of no classes was asked; give {class: weight, ...}")
    return ClassTarget(tuple(weights), tuple(map(float, weights.values())))


def token(token_id: int, position: int = -1) -> TokenTarget:
    """log-probability of a token, read at one position of the logits."""
    return TokenTarget((int(token_id),), position)


def top_token(position: int = -1) -> TokenTarget:
    """log-probability of the token that the model itself puts first at a position of its logits, for each sample."""
    return TokenTarget((), position)


def sequence(token_ids: Sequence[int], start: int) -> TokenTarget:
    """log-probability of a sequence of tokens, read at the logits' positions from ``start`` on."""
    if not len(token_ids):
        raise TargetError("a sequence of no tokens was asked")
    return TokenTarget(tuple(int(t) for t in token_ids), start)


def output(function: Callable[[Any], Tensor], name: str | None = None) -> OutputTarget:
    """Any callable of the model's output: ``function(output) -> [batch]``."""
    return OutputTarget(function, name or str(getattr(function, "__name__", type(function).__name__)))


TargetLike = Target | Classes | Callable[[Any], Tensor]


def as_target(target: TargetLike) -> Target:
    """The target that a user's argument means: a class is its logit, a callable reads the output."""
    if isinstance(target, Target):
        return target
    if isinstance(target, (int, str, Tensor, list, tuple)):
        return logit(target)
    if callable(target):
        return output(target)
    raise TargetError(f"a target is a class, zl.top(), zl.contrast(a, b) or a callable, not {type(target).__name__}")


def logits(output: Any) -> Tensor:
    """The tensor that holds the model's scores: the output itself, its ``logits``, or its first tensor."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for name in ("logits", "logits_per_image", "question_answering_score"):
            if isinstance(output.get(name), Tensor):
                return output[name]  # type: ignore[no-any-return]
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        for element in output:
            if isinstance(element, Tensor) and element.is_floating_point():
                return element
    raise TargetError(f"no logits in the model's output ({type(output).__name__}); give a callable: zl.target.output(fn)")


def class_scores(output: Any) -> Tensor:
    """The model's class scores [rows, classes]."""
    scores = logits(output)
    if scores.ndim == 2:
        return scores
    shape = tuple(scores.shape)
    hint = "zl.target.token(id, position)" if scores.ndim == 3 else "zl.target.output(fn)"
    raise TargetError(f"a class target reads scores [batch, classes]; the model gave {shape}; try {hint}")


def whole_number(text: str) -> int | None:
    """The whole number that a text is, written in digits, or None.

    >>> whole_number("-3"), whole_number("three")
    (-3, None)
    """
    return int(text) if re.fullmatch(r"-?[0-9]+", text.strip()) else None


def _indices(chosen: Classes, scores: Tensor, labels: Labels) -> Tensor:
    """Class indices [samples] for one term of the target."""
    samples, count = scores.shape
    if isinstance(chosen, str) and chosen == TOP:
        return scores.detach().argmax(1)
    if isinstance(chosen, Tensor):
        chosen = chosen.flatten().tolist()
    each: Sequence[Class] = [chosen] * samples if isinstance(chosen, (int, str)) else list(chosen)
    if len(each) == 1:
        each = list(each) * samples
    if len(each) != samples:
        raise TargetError(f"{len(each)} classes given for a batch of {samples}; give one, or one per sample")
    top = scores.detach().argmax(1).tolist()
    picked = [top[i] if c == TOP else _index(c, count, labels) for i, c in enumerate(each)]
    return torch.tensor(picked, device=scores.device)


def _index(chosen: Class, count: int, labels: Labels) -> int:
    if isinstance(chosen, str):
        lower = {name.lower(): index for name, index in labels.items()}
        if chosen.lower() in lower:
            return lower[chosen.lower()]
        number = whole_number(chosen)
        if number is not None:
            return _index(number, count, labels)
        raise NotFoundError.among("class", chosen, labels, "" if labels else f"the model has no labels: give 0 to {count - 1}")
    if isinstance(chosen, bool) or not isinstance(chosen, int):
        raise TargetError(f"a class is an int or a label, not {type(chosen).__name__}")
    if not -count <= chosen < count:
        raise TargetError(f"class {chosen} asked; the model has {count}: 0 to {count - 1}")
    return chosen % count
