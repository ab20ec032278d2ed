"""Holding an explanation against two principles: is it of the original model, and does it follow the model's performance?

Holds ``LabelledSet`` and ``check_principles``; the record and its verdicts are ``zeroline.principles``. Works for every method that
gives an ``Attribution`` or a ``Relevance``: what it substitutes it declares in its record, and here the implied model is run.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.attribution import Attribution
from zeroline.baseline import black, zeros
from zeroline.errors import InputError, NotFoundError, UsageError
from zeroline.maths.evidence import chance, pointing
from zeroline.maths.grids import as_map
from zeroline.maths.rank import spearman
from zeroline.measure.compare import IMPLIED
from zeroline.measure.layers import lie_of
from zeroline.methods import CAMS, METHODS, ROUTES, check_options
from zeroline.model import identity
from zeroline.model.ask import labels_of
from zeroline.model.blocks import cam_site
from zeroline.model.implied import WAYS, implied_output
from zeroline.model.inputs import Inputs
from zeroline.model.randomised import cascade, stages
from zeroline.model.state import untouched
from zeroline.model.targets import embedded, target_of
from zeroline.principles import Implied, Principles, Stage
from zeroline.relevance import Relevance, Substitution
from zeroline.similarity import TEXT, embeddings, similarity
from zeroline.target import Target, class_scores, logit

Explain = Callable[..., Any]
Progress = Callable[[int, int | None], None]
WITHOUT = ("attention_transfer",)  # gives no map of the sources


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """n examples with the right answers.

    ``inputs`` is one batch of all of them; ``labels`` [n] the right answers: classes, or, with ``captions``, which of these is true.
    ``captions`` are a dual encoder's inputs for the K texts among which it answers; each example's own text, in ``inputs``, is then
    that of its label. ``masks`` bool [n, height, width]: where the object is.
    """

    inputs: Any
    labels: Tensor
    captions: Mapping[str, Tensor] | None = None
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        labels = torch.as_tensor(self.labels)
        if labels.ndim != 1 or not len(labels):
            raise InputError(f"labels [n] of at least one example are needed; found {tuple(labels.shape)}")
        if self.masks is not None and (self.masks.ndim != 3 or len(self.masks) != len(labels)):
            raise InputError(f"masks [n, height, width] are needed for {len(labels)} examples; found {tuple(self.masks.shape)}")
        object.__setattr__(self, "labels", labels)


def check_principles(
    method: str | Explain,
    model: nn.Module,
    dataset: LabelledSet,
    *,
    target: Target | None = None,
    source: str | None = None,
    cascading: bool = True,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Principles:
    """Two principles, measured for one method over a labelled set.

    Principle 1, the original model: what the method substitutes for the model's own quantities (its record says) is put in their place
    in the forward pass: change of the score, cosine of the embeddings, answers and accuracy of that implied model, with the weights as
    they are and brought to sum 1. Outputs while and after explaining are compared with the bare model's, bit for bit.
    Principle 2, the model's performance: Spearman's rho of the evidence (the sum of the values) with the score over the set; how often the
    map points at the object where the model is right and where it is wrong; and what is left of the map as the weights are shuffled from
    the top down (Adebayo et al. 2018).

    Args:
        method: a name of ``zl.METHODS`` or ``zl.ROUTES``, or a function ``(model, inputs, target=..., **options) -> record``.
        model: any; a dual encoder where the set has captions.
        dataset: a ``zl.LabelledSet``.
        target: what is explained of each example; default: the similarity with its own text, or the logit of its label.
        source: the stream whose map is looked at; default the one on a grid.
        cascading: shuffle weights too; costs one explanation of the set per block.
        batch_size: examples at once. seed: of the shuffling. progress: called with (examples explained, in all).
        **options: the method's own. By default a baseline of black (zero features for Grad-CAM, LayerCAM, ODAM), and for the CAM family
            the last block with positions.

    Returns:
        A ``Principles`` record: prints as a table with a verdict in words per principle, saves and loads.

    Raises:
        NotFoundError for a method that does not exist, UsageError for one that gives no map of the sources, InputError for sets that do not
        fit the model; and as the method.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size} was asked; 1 or more")
    known = Inputs.of(model, dataset.inputs)
    if known.batch != len(dataset.labels):
        raise InputError(f"{known.batch} inputs and {len(dataset.labels)} labels were given")
    name = method if isinstance(method, str) else str(getattr(method, "__name__", "a function"))
    explain, settings = _explainer(method, model, known, dataset, target, options)
    run = _Set(model, known, dataset, target, source, batch_size)
    run.check_labels()
    first = known.rows(torch.tensor([0]))
    total, done = run.size * (1 + (len(stages(model, first)) if cascading else 0)), 0

    def count(examples: int) -> None:
        nonlocal done
        done += examples
        if progress:
            progress(done, total)

    original = run.explained(explain, count, check=True)
    implied = run.implied(original) if original.substituted else {}
    found = []
    if cascading:
        for stage, changed in cascade(model, first, seed):
            again = replace(run, model=changed).explained(explain, count)
            alike = spearman(original.maps.flatten(1), again.maps.flatten(1))
            found.append(Stage(stage, alike, again.hit, again.evidence, again.score, again.answer))
    return Principles(
        method=name,
        settings=settings,
        target="logit of the label" if target is None and dataset.captions is None else original.target,
        source=original.source,
        score=original.score,
        evidence=original.evidence,
        answer=original.answer,
        label=dataset.labels,
        hit=original.hit,
        chance=original.chance,
        apart=original.apart,
        substitutes=original.substitutes,
        implied=implied,
        stages=tuple(found),
        versions=identity.versions(),
        model=f"{identity.model_class(model)}@{identity.weights_hash(model)()}",
    )


@dataclass(frozen=True, eq=False)
class _Explained:
    """One pass of a method over the set."""

    score: Tensor
    evidence: Tensor
    answer: Tensor
    embedding: Tensor
    maps: Tensor
    hit: Tensor
    chance: Tensor
    apart: float
    target: str
    source: str
    substitutes: tuple[str, ...]
    substituted: tuple[tuple[Substitution, ...], ...]


@dataclass(frozen=True, eq=False)
class _Set:
    """The labelled set on one model, in batches."""

    model: nn.Module
    inputs: Inputs
    data: LabelledSet
    target: Target | None
    source: str | None
    batch_size: int

    @property
    def _precision(self) -> torch.dtype:
        """What the model computes in."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    @property
    def size(self) -> int:
        return len(self.data.labels)

    def batches(self) -> Iterator[Tensor]:
        return iter(torch.split(torch.arange(self.size), self.batch_size))

    def target_of(self, rows: Tensor) -> Target:
        if self.target is not None:
            return self.target
        return similarity() if self.data.captions is not None else logit([int(label) for label in self.data.labels[rows]])

    def captions(self) -> Tensor | None:
        """Embeddings of the captions [K, dim], as this model gives them."""
        if self.data.captions is None:
            return None
        return torch.nn.functional.normalize(embedded(self.model, self.inputs.rows(torch.tensor([0])), self.data.captions, TEXT).double(), dim=1)

    def check_labels(self) -> None:
        """Raise for labels that are no answer."""
        captions = self.captions()
        low, high = int(self.data.labels.min()), int(self.data.labels.max())
        if low < 0:
            raise InputError(f"class {low} was given as a label; labels are 0 or more")
        if captions is not None and high >= len(captions):
            raise InputError(f"caption {high} was given as a label; there are {len(captions)}: 0 to {len(captions) - 1}")

    def explained(self, explain: Explain, count: Callable[[int], None], *, check: bool = False) -> _Explained:
        """The method over the set; with ``check`` its passes, its f(x) and the model after it are compared with the bare model."""
        captions, parts, apart, first = self.captions(), [], 0.0, None
        put: tuple[tuple[Substitution, ...], ...] = ()
        for rows in self.batches():
            inputs = self.inputs.rows(rows)
            bare = self._bare(inputs, (True, False) if check else (True,))
            with _nearest(self.model, bare if check else ()) as passes, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of maps that are not exact enough: their error is in their records
                record = explain(self.model, inputs.named, target=self.target_of(rows))
            maps, source, gridded = _map(self.model, inputs, record, self.source)
            score, answer, embedding = self._read(bare[0], rows, captions)
            if check:
                after = max(map(_apart, bare, self._bare(inputs, (True, False))))
                apart = max(
                    apart, min(passes, default=math.inf), _apart(record.output.cpu(), score.cpu(), self._precision), math.inf if after else 0.0
                )
            first = first or (record, source)
            if self.data.masks is None or not gridded:
                pointed = [torch.full((len(rows),), torch.nan, dtype=torch.float64)] * 2
            else:
                pointed = [measured(maps, self.data.masks[rows]) for measured in (pointing, chance)]
            evidence = record.total if isinstance(record, Attribution) else maps.flatten(1).sum(1)
            substituted = record.substituted if isinstance(record, Relevance) else ()
            parts.append((score, evidence.double().cpu(), answer, embedding, maps, *pointed))
            put += (substituted,) if substituted else ()
            count(len(rows))
        assert first is not None
        score, evidence, answer, embedding, maps, hit, odds = (torch.cat(each).cpu() for each in zip(*parts))
        record, source = first
        return _Explained(score, evidence, answer, embedding, maps, hit, odds, apart, record.target[0], source, record.substitutes, put)

    def implied(self, original: _Explained) -> dict[str, Implied]:
        """The implied model over the set, with its weights put in place in each way."""
        captions, found = self.captions(), {}
        for way in WAYS:
            parts = []
            for rows, substituted in zip(self.batches(), original.substituted):
                inputs = self.inputs.rows(rows)
                put = implied_output(self.model, inputs, substituted, way)
                score, answer, embedding = self._read(put, rows, captions)
                parts.append((score, torch.cosine_similarity(embedding.cpu(), original.embedding[rows]), answer))
            found[way] = Implied(*(torch.cat(each).cpu() for each in zip(*parts)))
        return found

    def _bare(self, inputs: Inputs, gradients: tuple[bool, ...]) -> list[Any]:
        """What the model answers by itself, with gradients on and off as asked (kernels may differ)."""
        found = []
        with untouched(self.model):
            for on in gradients:
                with torch.set_grad_enabled(on):
                    found.append(inputs.call(self.model))
        return found

    @torch.no_grad()
    def _read(self, output: Any, rows: Tensor, captions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Score [rows], answer [rows] and embedding [rows, dim] (the class scores of a classifier)."""
        target = target_of(self.model, self.inputs.rows(rows), self.target_of(rows)).resolve(output, labels_of(self.model))
        score = target.read(output, torch.arange(len(rows))).double()
        if captions is None:
            scores = class_scores(output).double()
            return score, scores.argmax(1), scores
        image, _ = embeddings(output)
        assert image is not None
        own = torch.nn.functional.normalize(image.double(), dim=1)
        return score, (own @ captions.T).argmax(1), own


def _explainer(
    method: str | Explain, model: nn.Module, inputs: Inputs, data: LabelledSet, target: Target | None, options: Mapping[str, Any]
) -> tuple[Explain, dict[str, Any]]:
    """The method with its options, and these in words."""
    if not isinstance(method, str):
        given = dict(options)
        return (lambda m, x, target: method(m, x, target=target, **given)), {k: str(v) for k, v in given.items()}
    if method in WITHOUT:
        raise UsageError(f"{method} gives no map of the sources; possible: {', '.join(n for n in (*METHODS, *ROUTES) if n not in WITHOUT)}")
    if method not in METHODS and method not in ROUTES:
        raise NotFoundError.among("method", method, (*METHODS, *ROUTES), "see `zeroline methods`")
    check_options(method, options)
    given = dict(options)
    if method in METHODS:
        given.setdefault("baseline", zeros() if method in IMPLIED else black())
        if method in CAMS and given.get("site") is None:
            one = inputs.rows(torch.tensor([0]))
            wanted = target or (similarity() if data.captions is not None else logit(int(data.labels[0])))
            given["site"] = cam_site(model, one.named, wanted)
    call = METHODS.get(method) or ROUTES[method]

    def explain(m: nn.Module, x: Any, target: Target) -> Any:
        return call(m, x, target=target, **given)

    return explain, {k: getattr(v, "name", None) or str(v) for k, v in given.items()}


def _map(model: nn.Module, inputs: Inputs, record: Any, source: str | None) -> tuple[Tensor, str, bool]:
    """The map that is looked at, float64 [batch, rows, columns] (one row where it lies on no grid of a picture), what it is over, and whether
    it does lie on one."""
    if isinstance(record, Relevance):
        gridded = [name for name, tokens in record.tokens.items() if tokens.grid]
        name = source or (gridded[0] if len(gridded) == 1 else next(iter(record.by_source)))
        values, on_grid = record.of(name), record.tokens[name].grid is not None
        return (record.grid(name) if on_grid else values[:, None]).double().cpu(), name, on_grid
    if not isinstance(record, Attribution):
        raise UsageError(f"the method gave {type(record).__name__}; it must give an Attribution or a Relevance")
    if source is not None and source not in record.parts:
        raise NotFoundError.among("part of the values", source, record.parts)
    values = next(iter(record.parts.values())) if source is None else record.parts[source]
    lie = lie_of(model, inputs, record, None, None)
    if record.site.startswith("attention:") or values.ndim not in (3, 4):
        return values.double().flatten(1)[:, None].cpu(), record.site, False
    if values.ndim == 3 and lie.grid is None:
        return values.double().sum(-1)[:, None].cpu(), record.site, False
    return as_map(values.double(), lie.grid, lie.prefix).cpu(), record.site, True


@contextmanager
def _nearest(model: nn.Module, bare: Sequence[Any]) -> Iterator[list[float]]:
    """How far each forward pass of the model inside the block is from the nearer of its bare outputs."""
    found: list[float] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if bare:
            found.append(min(_apart(output, one) for one in bare))

    hook = model.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def _apart(a: Any, b: Any, precision: torch.dtype | None = None) -> float:
    """0 where two outputs are the same bit for bit; else how far apart, over the largest value and in units of the precision's rounding."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape):
            return math.inf
        one, two = a.detach(), b.detach()
        if torch.equal(one, two):
            return 0.0
        if not one.is_floating_point() or not bool(one.isfinite().all()):
            return math.inf
        size = float(two.double().abs().max()) or 1.0
        return float((one.double() - two.double()).abs().max()) / size / torch.finfo(precision or one.dtype).eps
    if isinstance(a, Mapping):
        return max((_apart(a[key], b[key]) for key in a), default=0.0) if isinstance(b, Mapping) and a.keys() == b.keys() else math.inf
    if isinstance(a, (tuple, list)):
        return max(map(_apart, a, b), default=0.0) if isinstance(b, (tuple, list)) and len(a) == len(b) else math.inf
    return 0.0
