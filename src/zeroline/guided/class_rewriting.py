"""Class rewriting: the same picture to a person, another class to the model.

Cui, Fan & Chen 2026 ("guided attention"), our reading: the gap between what a Vision Transformer uses and what we see lets a class be rewritten
almost invisibly. Here it is a measurement of one's own model: projected gradient steps (``descent``) on the picture's own pixels, through the
model's own preprocessing (``model.pixel_path``), within a stated budget. **Success is judged on the PNG**: written, read back, and put through the
real preprocessing, rounding and resizing included. Nothing here replaces or edits anything in the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import InputError, UsageError
from zeroline.guided import descent
from zeroline.guided.cases import Asked, Case, Cases, Search, relevance_of
from zeroline.guided.classifier import BATCH, Classifier, margin
from zeroline.guided.likeness import decibels, similarity
from zeroline.guided.survival import HANDLINGS
from zeroline.maths.budgets import LEVELS, Budget, l2, linf, quantised
from zeroline.model.ask import labels_of
from zeroline.model.pictures import byte, picture, pixels_of
from zeroline.model.preprocessing import preprocessing_of
from zeroline.model.state import untouched
from zeroline.relevance import Relevance
from zeroline.rewriting import AFTER, BEFORE, Rewriting, Survival

SPARE = 0.02  # of 1 - SSIM
HALVINGS = 5  # of the way back to the original
CLOSE = 1.05  # an L2 budget is bisected until two neighbours differ by less
Report = Callable[[int, int | None], None]


def rewrite(
    model: nn.Module,
    image: Any,
    *,
    to: int | str | Sequence[int | str],
    linf: float | None = None,
    l2: float | None = None,
    patches: int | None = None,
    ssim: float | None = None,
    where: Tensor | Sequence[Tensor | None] | None = None,
    smallest: bool = False,
    steps: int = 40,
    restarts: int = 1,
    lead: float = 0.0,
    seed: int = 0,
    preprocess: Callable[[Any], Any] | None = None,
    labels: Mapping[str, int] | None = None,
    relevance: bool = True,
    report: Report | None = None,
) -> Any:
    """The smallest change found, within a budget, that makes the model say ``to``.

    Args:
        model: an image classifier with a gradient. image: a PIL image, or several (then a list is returned); what is not 8-bit RGB is converted,
            and the record says so.
        to: a class (index or label), ``"second"`` (the runner-up) or ``"any"`` (whichever is reached first); or one per image.
        linf: the most that any channel of any pixel may change, of 1 (``2 / 255``): rounded down to whole levels. l2: the Euclidean length of the
            change over all pixels and channels, pixels in 0..1. ssim: the least structural similarity. They may be combined; with none of the
            three, L-infinity 4/255, or where ``patches`` or every image's ``where`` is given, no bound on the pixels that may be changed.
        patches: so many patches may be changed: those where ``where`` has most pixels, or without it those with the most attention relevance for the
            present class. where: bool [height, width] per image; without ``patches``, only its pixels may be changed.
        smallest: look by bisection for the least epsilon that succeeds: whole levels under L-infinity, to 5 % under L2; the budget is the most.
            What is found is an upper bound of the least that exists: no search by gradient can show that nothing smaller does it.
        steps: gradient evaluations per attempt. restarts: attempts. lead: logits by which ``to`` must lead. seed: of the restarts.
        preprocess: a PIL image to the model's inputs; default: what the model came with. labels: class names; default: the model's own.
        relevance: explain both pictures by attention relevance, where the model has attention. report: called with (done, total) images.

    Returns:
        A ``Rewriting`` per image: ``success``, ``image``, ``psnr``, ``ssim``, ``linf``, ``save_image(path)``, ``save(folder)``. Without success it
        holds the picture within the budget that came nearest.

    Raises:
        TargetError: ``to`` is what the model says already, or no class. UsageError: a budget of nothing, options that do not go together.
        InputError: what is no picture, one smaller than a patch, preprocessing that has no pixel path (``model.pixel_path``).
        GradientError, NonFiniteError: scores without a gradient; NaN or infinite scores.
    """
    many = isinstance(image, Sequence)
    images = list(image) if many else [image]
    chosen = list(to) if isinstance(to, Sequence) and not isinstance(to, str) else [to] * len(images)
    places = list(where) if isinstance(where, Sequence) else [where] * len(images)
    for what, given in (("classes", chosen), ("masks", places)):
        if len(given) != len(images):
            raise UsageError(f"{len(given)} {what} were given for {len(images)} images")
    if not images:
        raise UsageError("no image was given")
    asked = Asked.checked(linf, l2, patches, ssim, placed=all(place is not None for place in places))
    search = Search(steps, restarts, lead, seed, smallest)
    if smallest and asked.linf is None and asked.l2 is None:
        raise UsageError("smallest looks for the least epsilon of an L-infinity or L2 budget; give linf= or l2= as the most to try")
    with untouched(model):
        said = Classifier(model, preprocess or preprocessing_of(model), labels_of(model) if labels is None else labels)
        cases = Cases(said, asked)
        made = [cases.of(*one) for one in zip(images, chosen, places)]
        found: list[Rewriting] = [None] * len(made)  # type: ignore[list-item]
        for done, (number, one) in enumerate(rewritten(said, made, asked, search)):
            found[number] = _explained(said, one, made[number]) if relevance else one
            if report is not None:
                report(done + 1, len(made))
    return found if many else found[0]


def rewritten(said: Classifier, cases: Sequence[Case], asked: Asked, search: Search) -> Iterator[tuple[int, Rewriting]]:
    """(number of the case, its record), batch by batch of pictures of one size."""
    groups: dict[tuple[Any, bool], list[int]] = {}
    for number, case in enumerate(cases):
        groups.setdefault((case.path.size, case.path.clamped), []).append(number)
    with tempfile.TemporaryDirectory() as folder:
        for group in groups.values():
            for start in range(0, len(group), BATCH):
                numbers = group[start : start + BATCH]
                yield from zip(numbers, _Batch(said, [cases[n] for n in numbers], asked, search, Path(folder)).run())


class _Batch:
    """Pictures of one size, rewritten together."""

    def __init__(self, said: Classifier, cases: Sequence[Case], asked: Asked, search: Search, folder: Path) -> None:
        self.said, self.cases, self.asked, self.search, self.folder = said, cases, asked, search, folder
        self.device = said.device
        self.original = torch.stack([pixels_of(case.image) for case in cases]).to(self.device)
        self.own, self.to = (torch.tensor([getattr(case, name) for case in cases]) for name in ("own", "to"))
        self.where = torch.stack([case.where for case in cases]).to(self.device)

    def run(self) -> list[Rewriting]:
        """One attempt within the budget; for the smallest, bisection below what it took; then the way back as far as it goes."""
        count = len(self.cases)
        most = torch.full((count,), self.asked.epsilon, dtype=torch.float64)
        found = self._attempt(torch.arange(count), most, None)
        tried: list[list[tuple[float, bool]]] = [[] for _ in self.cases]
        if self.search.smallest:
            for row, fine in enumerate(found.success.tolist()):
                tried[row].append((self.asked.epsilon, fine))
            self._bisect(found, most, tried)
        self._shorten(found)
        return self._records(found, tried)

    def _shorten(self, found: descent.Search) -> None:
        """Bring what succeeded back towards the original along its own line, by bisection, as far as the saved picture still does it."""
        rows = found.success.nonzero()[:, 0]
        change = found.pixels[rows] - self.original[rows]
        low, high = torch.zeros(len(rows)), torch.ones(len(rows))
        for _ in range(HALVINGS if len(rows) else 0):
            middle = (low + high) / 2
            shorter = quantised(self.original[rows] + change * middle.to(change)[:, None, None, None])
            fine = self._judge(shorter, rows)
            found.judged[rows] += 1
            found.pixels[rows[fine]] = shorter[fine]
            low, high = torch.where(fine, low, middle), torch.where(fine, middle, high)

    def _bisect(self, found: descent.Search, most: Tensor, tried: list[list[tuple[float, bool]]]) -> None:
        """Halve between the largest epsilon that failed and the smallest that did it, from what did it scaled down."""
        low, high = torch.zeros_like(most), self._needed(found.pixels, most)
        while len(rows := (found.success & self._open(low, high)).nonzero()[:, 0]):
            middle = self._middle(low[rows], high[rows])
            start = (found.pixels[rows] - self.original[rows]) * (middle / high[rows]).to(found.pixels)[:, None, None, None]
            again = self._attempt(rows, middle, start)
            found.evaluations[rows] += again.evaluations
            found.judged[rows] += again.judged
            good, bad = rows[again.success], rows[~again.success]
            found.pixels[good] = again.pixels[again.success]
            high[good] = self._needed(found.pixels, high)[good].minimum(middle[again.success])
            low[bad] = middle[~again.success]
            for row, epsilon, fine in zip(rows.tolist(), middle.tolist(), again.success.tolist()):
                tried[row].append((epsilon, fine))

    def _attempt(self, rows: Tensor, epsilon: Tensor, start: Tensor | None) -> descent.Search:
        """Steps for some rows, each within its own epsilon."""
        asked, count = self.asked, len(rows)
        epsilon = epsilon.to(self.device, torch.float32)
        linf = None if asked.linf is None else epsilon if asked.l2 is None else torch.full((count,), asked.linf, device=self.device)
        # on the way a fast similarity, with some to spare; the judge takes the exact one
        ssim = None if asked.ssim is None else torch.full((count,), asked.ssim + SPARE * (1 - asked.ssim), device=self.device)
        budget = Budget(self.where[rows], linf, None if asked.l2 is None else epsilon, ssim, partial(similarity, exact=False))

        def lead(pixels: Tensor, index: Tensor) -> Tensor:
            return margin(self.said.through(self.cases[0].path, pixels), self.to[rows[index]], self.own[rows[index]])

        def judge(pixels: Tensor, index: Tensor) -> Tensor:
            return self._judge(pixels, rows[index])

        how = {name: getattr(self.search, name) for name in ("steps", "restarts", "lead", "seed")}
        return descent.descend(self.original[rows], budget, lead, judge, start=start, **how)

    def _judge(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """Do the saved pictures do it, within the similarity asked? bool [rows]"""
        scores = self.said.scores_on_disk(byte(pixels).cpu(), self.folder)
        done = margin(scores, self.to[rows], self.own[rows]) > self.search.lead
        if self.asked.ssim is None:
            return done
        return done & (similarity(pixels, self.original[rows]) >= self.asked.ssim).cpu()

    def _needed(self, pixels: Tensor, most: Tensor) -> Tensor:
        """The epsilon that a picture needs, at most that of its budget."""
        norm = linf if self.asked.l2 is None else l2
        return norm(pixels - self.original).double().cpu().minimum(most)

    def _open(self, low: Tensor, high: Tensor) -> Tensor:
        """Is there an epsilon between that is worth trying? bool [rows]"""
        if self.asked.l2 is not None:
            return high > (CLOSE * low).clamp_min(1 / LEVELS)  # no 8-bit picture is nearer than one level of one channel
        return (high * LEVELS).round() > (low * LEVELS).round() + 1

    def _middle(self, low: Tensor, high: Tensor) -> Tensor:
        if self.asked.l2 is not None:
            return torch.where(low > 0, (low * high).sqrt(), high / 2)
        return ((low + high) * LEVELS / 2).round().clamp(max=(high * LEVELS).round() - 1) / LEVELS

    def _records(self, found: descent.Search, tried: Sequence[Sequence[tuple[float, bool]]]) -> list[Rewriting]:
        levels = byte(found.pixels).cpu()
        scores = self.said.scores_on_disk(levels, self.folder)
        leads = margin(scores, self.to, self.own)
        ratio, alike = decibels(found.pixels, self.original), similarity(found.pixels, self.original)
        records = []
        for i, case in enumerate(self.cases):
            answer = int(scores[i].argmax())
            to = case.to if case.to >= 0 else answer if answer != case.own else int(scores[i].topk(2).indices[1])
            shares = {BEFORE: case.probabilities, AFTER: scores[i].softmax(-1)}
            before = byte(self.original[i]).cpu()
            change = levels[i].double() - before.double()
            cells = case.path.cells(case.grid)[(levels[i] != before).any(0)]
            settings = {**asdict(self.search), "own": case.own, "to": to, "asked": "any" if case.to < 0 else self.said.name(case.to)}
            survival, missing = self._survival(case.image, picture(levels[i]), to)
            records.append(
                Rewriting(
                    original=before,
                    rewritten=levels[i],
                    own=self.said.name(case.own),
                    to=self.said.name(to),
                    answer=self.said.name(answer),
                    success=bool(leads[i] > self.search.lead) and float(alike[i]) >= (self.asked.ssim or -1),
                    probabilities={when: {"own": float(p[case.own]), "to": float(p[to])} for when, p in shares.items()},
                    psnr=float(ratio[i]),
                    ssim=float(alike[i]),
                    linf=float(change.abs().max()) / LEVELS,
                    l2=float(change.square().sum().sqrt()) / LEVELS,
                    touched=len(set(cells.tolist()) - {-1}),
                    grid=case.grid,
                    evaluations=int(found.evaluations[i]),
                    judged=int(found.judged[i]),
                    budget=self.asked.to_dict(),
                    settings={**settings, "gap": case.path.gap},
                    tried=tuple(tried[i]),
                    survival=survival,
                    notes=tuple(note for note in (case.note, *missing) if note),
                )
            )
        return records

    def _survival(self, original: Any, rewritten: Any, to: int) -> tuple[dict[str, Survival], list[str]]:
        """The answers after each handling, and a note for each whose picture the model does not take (one of another size, say)."""
        found, missing = {}, []
        for name, handled in HANDLINGS.items():
            try:
                before, after = (int(self.said.scores([handled(image)])[0].argmax()) for image in (original, rewritten))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, InputError) as reason:
                missing.append(f"{name}: the model does not take the picture ({str(reason).splitlines()[0]})")
                continue
            found[name] = Survival(self.said.name(before), self.said.name(after), after == to)
        return found, missing


def _explained(said: Classifier, one: Rewriting, case: Case) -> Rewriting:
    """The record with relevance for the class before on the original, and for the class after on the rewritten picture."""
    found = {BEFORE: relevance_of(said, case.image, case.own), AFTER: relevance_of(said, one.image, int(one.settings["to"]))}
    kept = {when: known for when, known in found.items() if isinstance(known, Relevance)}
    if len(kept) < len(found):
        return replace(one, notes=(*one.notes, f"no attention relevance: {next(r for r in found.values() if isinstance(r, str))}"))
    return replace(one, relevance=kept)
