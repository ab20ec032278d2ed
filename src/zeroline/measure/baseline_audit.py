"""Asking a model what it says on each candidate baseline: the figures behind "which baseline should I use here?"

Holds ``audit_baseline``. The reading of the figures (verdicts, advice) is the record's, ``zeroline.audit``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.audit import Audited, BaselineAudit
from zeroline.baseline import Baseline, BaselineLike, Distribution, as_baseline
from zeroline.errors import BaselineError, NotNeutralError, TargetError
from zeroline.model import identity, normalisation
from zeroline.model.ask import ask, labels_of
from zeroline.model.neutral import require_classes
from zeroline.model.question import Features, Question
from zeroline.site import SiteLike
from zeroline.target import TargetLike, class_scores

Progress = Callable[[int, int | None], None]


def audit_baseline(
    model: nn.Module,
    inputs: Any,
    target: TargetLike,
    baselines: Sequence[BaselineLike] | BaselineLike,
    *,
    site: SiteLike = None,
    progress: Progress | None = None,
) -> BaselineAudit:
    """What the model says on each baseline: f, the class distribution, and how far it is from the input.

    Args:
        model, inputs, target, site: as in ``zl.gradient_x_input``.
        baselines: the candidates; a ``distribution`` is audited draw by draw.
        progress: called with (baselines done, in all).

    Returns:
        A ``BaselineAudit``: it prints as a table with a verdict per baseline; ``.advice()`` says which to use and why. The class
        distribution is the softmax of the model's class scores with the baseline at the site, ``p = softmax(model(do(z := z0)))``.
        A neutral baseline that is not reached is in ``failures``, with the KL reached.

    Raises:
        BaselineError: no baselines, or a model without two classes or more.
        And as ``zl.gradient_x_input``.
    """
    candidates = _candidates(baselines)
    audited: dict[str, Audited] = {}
    failures: dict[str, str] = {}
    frame: dict[str, Any] = {}
    for number, baseline in enumerate(candidates):
        name = baseline.name if baseline.name not in audited and baseline.name not in failures else f"{baseline.name} ({number})"
        try:
            with ask(model, inputs, target=target, site=site, baseline=baseline) as question:
                if not frame:
                    frame = _frame(model, question)
                audited[name] = Audited(
                    output=question.baseline_output,
                    probabilities=_distribution(question, question.baseline_features),
                    distance=_distance(question),
                    reference_output=question.reference_output,
                )
        except NotNeutralError as problem:
            failures[name] = str(problem)
        if progress:
            progress(number + 1, len(candidates))
    if not frame:
        raise NotNeutralError(f"no baseline could be audited: {next(iter(failures.values()))}")
    return BaselineAudit(audited, failures=failures, versions=identity.versions(), **frame)


def _candidates(baselines: Sequence[BaselineLike] | BaselineLike) -> list[Baseline]:
    given = [baselines] if isinstance(baselines, (Baseline, Distribution, Tensor)) else list(baselines)
    found = [draw for one in given for draw in (one.draws if isinstance(one, Distribution) else (as_baseline(one),))]
    if not found:
        raise BaselineError("an audit of no baselines was asked; give at least one, e.g. [zl.baseline.black(), zl.baseline.blur(8)]")
    return found


def _frame(model: nn.Module, question: Question) -> dict[str, Any]:
    """What all rows of the audit share."""
    own = _distribution(question, question.features)
    by_index = {index: name for name, index in labels_of(model).items()}
    count = own.shape[1]
    known = set(by_index) >= set(range(count))
    return {
        "target": question.target.describe(question.batch),
        "site": " + ".join(map(str, question.places)),
        "output": question.output,
        "own": own,
        "classes": tuple(by_index[i] if known else str(i) for i in range(count)),
        "resolution": question.resolution,
        "unit": "pixel values in [0, 1]" if _scales(question) is not None else "units of the features",
        "model": f"{identity.model_class(model)}@{identity.weights_hash(model)()}",
    }


@torch.no_grad()
def _distribution(question: Question, features: Features) -> Tensor:
    """softmax of the class scores with these features at the site: [batch, K], float64."""
    try:
        scores = class_scores(question.outputs(question.inputs, features))
    except TargetError:
        raise BaselineError("an audit reads the model's class scores [batch, classes], and its output has none") from None
    require_classes(scores, "an audit")
    return scores.to(question.output).softmax(-1)


def _scales(question: Question) -> Tensor | None:
    """The standard deviations of the normalisation, to turn steps at an image input into pixel values."""
    known = normalisation.of(question.model)
    image = len(question.places) == 1 and question.places[0].input is not None and question.features[0].ndim == 4
    if known is None or not image or len(known.std) != question.features[0].shape[1]:
        return None
    return torch.tensor(known.std).view(-1, 1, 1)


def _distance(question: Question) -> Tensor:
    """Root mean square of z - z0 over the elements of the site, [batch]; in pixel values at an image input."""
    scales = _scales(question)
    steps = [step.to(question.output) * (1 if scales is None else scales.to(question.output)) for step in question.steps]
    return torch.cat([step.flatten(1) for step in steps], 1).square().mean(1).sqrt()
