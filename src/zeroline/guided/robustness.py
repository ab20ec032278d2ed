"""How robust a model's answers are to changes that nobody sees: the smallest rewriting of every picture of a set.

Cui, Fan & Chen 2026 ("guided attention") say that a Vision Transformer's class can be rewritten almost invisibly. The same search over a set, and
over two models, says how small the change has to be, for which share of the pictures, and in which patches it sits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import UsageError, ZerolineError
from zeroline.guided.cases import Asked, Case, Cases, Search, relevance_of
from zeroline.guided.class_rewriting import Report, rewritten
from zeroline.guided.classifier import BATCH, Classifier, margin
from zeroline.guided.survival import HANDLINGS
from zeroline.maths.rank import spearman
from zeroline.model.ask import labels_of
from zeroline.model.preprocessing import preprocessing_of
from zeroline.model.state import untouched
from zeroline.rewriting import Rewriting
from zeroline.thresholds import Robustness

DEFAULT_MOST = 16 / 255


def robustness(
    model: nn.Module,
    images: Sequence[Any],
    *,
    to: int | str = "any",
    linf: float | None = None,
    l2: float | None = None,
    steps: int = 40,
    restarts: int = 1,
    seed: int = 0,
    names: Sequence[str] | None = None,
    name: str = "",
    preprocess: Callable[[Any], Any] | None = None,
    labels: Mapping[str, int] | None = None,
    report: Report | None = None,
) -> Robustness:
    """The smallest epsilon found for each picture, and what follows from it.

    Args:
        model, preprocess, labels, to, steps, restarts, seed: as in ``zl.rewrite``.
        images: PIL images. names: of the pictures, in order. name: of the model.
        linf, l2: the most that is tried, one of the two; default L-infinity 16/255.
        report: called with (done, total) pictures.

    Returns:
        A ``Robustness``. A picture that cannot be asked about (of class ``to`` already, too small) is among its ``failures``.

    Raises:
        UsageError: no image, both norms, or none of the pictures can be asked about; and as ``zl.rewrite``.
    """
    if linf is not None and l2 is not None:
        raise UsageError("robustness is measured in one norm; give linf= or l2=")
    if not len(images):
        raise UsageError("no image was given")
    titles = [str(i) for i in range(len(images))] if names is None else list(names)
    if len(titles) != len(images):
        raise UsageError(f"{len(titles)} names were given for {len(images)} images")
    asked = Asked.checked(DEFAULT_MOST if linf is None and l2 is None else linf, l2, None, None)
    search = Search(steps, restarts, 0.0, seed, smallest=True)
    with untouched(model):
        said = Classifier(model, preprocess or preprocessing_of(model), labels_of(model) if labels is None else labels)
        cases, kept, failures = _askable(Cases(said, asked), images, titles, to)
        found: list[Rewriting] = [None] * len(cases)  # type: ignore[list-item]
        for done, (number, one) in enumerate(rewritten(said, cases, asked, search)):
            found[number] = one
            if report is not None:
                report(done + 1, len(cases))
        fragility = torch.stack([_fragility(said, case, one) for case, one in zip(cases, found)])
        agreement = torch.tensor([_agreement(said, case, map_) for case, map_ in zip(cases, fragility)], dtype=torch.float64)
    handled = {title: [one.survival[title].kept for one in found if one.success and title in one.survival] for title in HANDLINGS}
    survived = {title: sum(kept) / len(kept) for title, kept in handled.items() if kept}
    smallest = [(one.linf if asked.l2 is None else one.l2) if one.success else math.inf for one in found]
    return Robustness(
        model=name or type(model).__name__,
        names=tuple(kept),
        own=tuple(one.own for one in found),
        to=tuple(one.to for one in found),
        norm="linf" if asked.l2 is None else "l2",
        most=asked.epsilon,
        smallest=torch.tensor(smallest, dtype=torch.float64),
        psnr=torch.tensor([one.psnr for one in found], dtype=torch.float64),
        ssim=torch.tensor([one.ssim for one in found], dtype=torch.float64),
        evaluations=torch.tensor([one.evaluations for one in found]),
        fragility=fragility,
        agreement=agreement,
        survived=survived,
        settings={"to": str(to), "steps": steps, "restarts": restarts, "seed": seed, "grid": list(cases[0].grid)},
        failures=failures,
    )


def _askable(cases: Cases, images: Sequence[Any], names: Sequence[str], to: int | str) -> tuple[list[Case], list[str], dict[str, str]]:
    """The cases, their names, and why the others are none."""
    made, kept, failures = [], [], {}
    for image, name in zip(images, names):
        try:
            made.append(cases.of(image, to))
            kept.append(name)
        except ZerolineError as reason:
            failures[name] = str(reason)
    if not made:
        first, why = next(iter(failures.items()))
        raise UsageError(f"none of the {len(images)} pictures can be asked about; {first}: {why}")
    return made, kept, failures


def _fragility(said: Classifier, case: Case, one: Rewriting) -> Tensor:
    """The part of the margin's gain that each cell's change alone brings: float64 [rows, columns], NaN without success."""
    rows, columns = case.grid
    if not one.success:
        return torch.full(case.grid, torch.nan, dtype=torch.float64)
    original, changed = ((levels.float() / 255).to(said.device) for levels in (one.original, one.rewritten))
    cells = case.path.cells(case.grid).to(said.device)
    places = [torch.zeros_like(cells, dtype=torch.bool), torch.ones_like(cells, dtype=torch.bool), *(cells == i for i in range(rows * columns))]
    to, own = torch.tensor([int(one.settings["to"])]), torch.tensor([case.own])
    leads = []
    with torch.no_grad():
        for start in range(0, len(places), BATCH):
            part = torch.stack([torch.where(place, changed, original) for place in places[start : start + BATCH]])
            count = len(part)
            leads.append(margin(said.through(case.path, part), to.expand(count), own.expand(count)).double().cpu())
    before, after, *alone = torch.cat(leads)
    share: Tensor = (torch.stack(alone) - before) / (after - before)
    return share.view(rows, columns)


def _agreement(said: Classifier, case: Case, fragility: Tensor) -> float:
    """Spearman's rho of fragility and attention relevance; NaN where either is not there."""
    if not bool(fragility.isfinite().all()):
        return math.nan
    found = relevance_of(said, case.image, case.own)
    if isinstance(found, str) or tuple(found.grid().shape[1:]) != case.grid:
        return math.nan
    return float(spearman(fragility.flatten(), found.grid()[0].double().cpu().flatten()))
