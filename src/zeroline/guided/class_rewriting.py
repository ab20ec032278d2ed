"""Class rewriting: the same picture to a person, another class to the model.

Cui, Fan & Chen 2026 ("guided attention"), our reading: the gap between what a Vision Transformer uses and what we see lets a class be rewritten
almost invisibly. Here it is a measurement of one's own model: projected gradient steps (``descent``) on the picture's own pixels, through the
model's own preprocessing (``model.pixel_path``), within a stated budget. **Success is judged on the PNG**: written, read back, and put through the
real preprocessing, rounding and resizing included. Nothing here replaces or edits anything in the model.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import InputError, TargetError, UsageError, ZerolineError
from zeroline.maths.budgets import LEVELS, Budget, l2, linf, whole_levels
from zeroline.methods.attention_relevance import attention_relevance
from zeroline.model.ask import labels_of
from zeroline.model.families import patch_size
from zeroline.model.pictures import byte, eight_bit, picture, pixels_of
from zeroline.model.pixel_path import PixelPath, measured
from zeroline.model.preprocessing import preprocessing_of
from zeroline.model.state import untouched
from zeroline.relevance import Relevance
from zeroline.guided.classifier import BATCH, Classifier, margin
from zeroline.guided.descent import descend
from zeroline.guided.survival import HANDLINGS
from zeroline.rewriting import AFTER, BEFORE, Rewriting, Survival
from zeroline.target import logit

ANY, SECOND = "any", "second"
DEFAULT_LINF = 4 / 255
WINDOW = 11  # of structural similarity, in pixels
CELLS = 8  # rows and columns to count changed pixels in, where the model has no patches
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
            three, L-infinity 4/255, or where ``patches`` or ``where`` is given, no bound on the pixels that may be changed.
        patches: so many patches may be changed: those where ``where`` has most pixels, or without it those with the most attention relevance for the
            present class. where: bool [height, width] per image; without ``patches``, only its pixels may be changed.
        smallest: look by bisection for the least epsilon that succeeds: whole levels under L-infinity, to 5 % under L2; the budget is the most.
        steps: gradient evaluations per attempt. restarts: attempts. lead: logits by which ``to`` must lead. seed: of the restarts.
        preprocess: a PIL image to the model's inputs; default: what the model came with. labels: class names; default: the model's own.
        relevance: explain both pictures by attention relevance, where the model has attention. report: called with (done, total) attempts.

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
    asked = Asked.checked(linf, l2, patches, ssim, any(place is not None for place in places))
    if steps < 1 or restarts < 1:
        raise UsageError(f"{steps} steps and {restarts} restarts were asked; at least 1 of each")
    if smallest and asked.linf is None and asked.l2 is None:
        raise UsageError("smallest looks for the least epsilon of an L-infinity or L2 budget; give linf= or l2= as the most to try")
    with untouched(model), tempfile.TemporaryDirectory() as folder:
        known = labels_of(model) if labels is None else labels
        said = Classifier(model, preprocess or preprocessing_of(model), known)
        cases = _cases(said, images, chosen, places, asked)
        settings = {"steps": steps, "restarts": restarts, "lead": lead, "seed": seed, "smallest": smallest}
        groups: dict[tuple[int, int], list[int]] = {}
        for number, case in enumerate(cases):
            groups.setdefault(case.path.size, []).append(number)
        batches = [g[i : i + BATCH] for g in groups.values() for i in range(0, len(g), BATCH)]
        done: dict[int, Rewriting] = {}
        for numbers in batches:
            part = [cases[n] for n in numbers]
            found = _Batch(said, part, asked, settings, Path(folder)).run()
            for number, one in zip(numbers, found):
                done[number] = _explained(said, one, cases[number]) if relevance else one
                if report is not None:
                    report(len(done), len(cases))
    results = [done[number] for number in range(len(cases))]
    return results if many else results[0]


@dataclass(frozen=True)
class Asked:
    """The budget as asked; ``linf`` in whole levels of 1/255."""

    linf: float | None
    l2: float | None
    patches: int | None
    ssim: float | None

    @classmethod
    def checked(cls, linf: float | None, l2: float | None, patches: int | None, ssim: float | None, placed: bool) -> Asked:
        """Raises UsageError for a budget of nothing."""
        for name, value in (("linf", linf), ("l2", l2), ("patches", patches)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name}={value:g}: a budget of nothing changes nothing; give more than 0")
        if ssim is not None and not 0 < ssim < 1:
            raise UsageError(f"ssim={ssim:g} was asked; the least similarity lies between 0 and 1 (1 is the same picture)")
        if linf is None and l2 is None and ssim is None and patches is None and not placed:
            linf = DEFAULT_LINF
        if linf is not None:
            if linf > 1:
                raise UsageError(f"linf={linf:g}: pixels lie in 0..1; write {linf:g} levels as {linf:g}/255")
            if not whole_levels(linf):
                raise UsageError(f"linf={linf:.3g} is less than 1/255, one level of an 8-bit picture: nothing that is saved could differ")
            linf = whole_levels(linf) / LEVELS
        return cls(linf, l2, patches, ssim)

    def to_dict(self) -> dict[str, float]:
        """What was bounded."""
        return {name: float(value) for name, value in vars(self).items() if value is not None} or {"linf": 1.0}


@dataclass(frozen=True, eq=False)
class Case:
    """One picture: its levels [3, height, width], classes (``to`` -1: any), path, where it may change [1, height, width], and cells for counting."""

    image: Any
    note: str
    own: int
    to: int
    probabilities: Tensor
    path: PixelPath
    where: Tensor
    grid: tuple[int, int]


def _cases(said: Classifier, images: Sequence[Any], chosen: Sequence[int | str], places: Sequence[Tensor | None], asked: Asked) -> list[Case]:
    converted = [eight_bit(image) for image in images]
    smallest = max(WINDOW, *(patch_size(said.model) or (1, 1)))
    for image, _ in converted:
        if min(image.size) < smallest:
            raise InputError(
                f"the picture is {image.width} x {image.height}; at least {smallest} x {smallest} pixels are needed (a patch, and SSIM's window of 11)"
            )
    scores = said.scores([image for image, _ in converted])
    paths: dict[tuple[int, int], PixelPath] = {}
    found = []
    for (image, note), row, to, place in zip(converted, scores, chosen, places):
        known = paths.get(image.size)
        path = paths[image.size] = measured(said.preprocess, image) if known is None else known.checked_on(said.preprocess, image)
        own, wanted = int(row.argmax()), _class(said, row, to)
        grid = _grid(said.model, path)
        where = _where(said, image, path, grid, own, place, asked)
        found.append(Case(image, note, own, wanted, row.softmax(-1), path, where, grid))
    return found


def _class(said: Classifier, row: Tensor, to: int | str) -> int:
    """The class asked for; -1 for any."""
    own = int(row.argmax())
    if to == ANY and ANY not in said.labels:
        return -1
    if to == SECOND and SECOND not in said.labels:
        return int(row.topk(2).indices[1])
    indices = logit(to).resolve(row[None], said.labels).indices
    assert indices is not None
    if int(indices[0, 0]) == own:
        raise TargetError(f"the model says {said.name(own)!r} of this picture already; ask for another class, or for 'second' or 'any'")
    return int(indices[0, 0])


def _grid(model: nn.Module, path: PixelPath) -> tuple[int, int]:
    """Rows and columns to count changed pixels in: the model's patches, else 8 x 8."""
    size, height, width = patch_size(model), *path.offset.shape[1:]
    return (CELLS, CELLS) if size is None else (max(1, height // size[0]), max(1, width // size[1]))


def _where(said: Classifier, image: Any, path: PixelPath, grid: tuple[int, int], own: int, place: Tensor | None, asked: Asked) -> Tensor:
    """Pixels that may change: bool [1, height, width]."""
    everywhere = torch.ones(1, image.height, image.width, dtype=torch.bool)
    if place is not None:
        place = torch.as_tensor(place).bool()
        if place.shape != everywhere.shape[1:]:
            raise InputError(f"where is {tuple(place.shape)}; the picture is {image.height} x {image.width}")
        if not bool(place.any()):
            raise InputError("where holds no pixel of the picture; nothing could be changed")
    if asked.patches is None:
        return everywhere if place is None else place[None]
    cells = path.cells(grid)
    count = grid[0] * grid[1]
    if asked.patches > count:
        raise UsageError(f"{asked.patches} patches were asked; the model has {grid[0]} x {grid[1]} = {count}")
    if place is not None:
        weights = torch.bincount(cells[place & (cells >= 0)], minlength=count).double()
    else:
        weights = _ranking(said, image, own, grid)
    best = weights.topk(asked.patches).indices
    return torch.isin(cells, best[weights[best] > 0])[None]


def _ranking(said: Classifier, image: Any, own: int, grid: tuple[int, int]) -> Tensor:
    """Attention relevance of each patch for the present class."""
    found = _relevance(said, image, own)
    if isinstance(found, str):
        raise UsageError(f"patches are ranked by attention relevance, which this model has none of ({found}); say where= they may lie")
    values = found.grid()[0].double().cpu()
    if tuple(values.shape) != grid:
        raise UsageError(
            f"attention relevance lies on {values.shape[0]} x {values.shape[1]} tokens, the patches on {grid[0]} x {grid[1]}; say where="
        )
    return values.flatten()


def _relevance(said: Classifier, image: Any, target: int) -> Relevance | str:
    """Attention relevance of a picture for a class, or why there is none."""
    try:
        found: Relevance = attention_relevance(said.model, said.moved(said.preprocess(image)), target=target)
        found.grid()
    except ZerolineError as reason:
        return str(reason)
    return found


class _Batch:
    """Pictures of one size, rewritten together."""

    def __init__(self, said: Classifier, cases: Sequence[Case], asked: Asked, settings: Mapping[str, Any], folder: Path) -> None:
        self.said, self.cases, self.asked, self.settings, self.folder = said, cases, asked, settings, folder
        self.device = next((p.device for p in said.model.parameters()), torch.device("cpu"))
        self.path = cases[0].path
        self.original = torch.stack([pixels_of(case.image) for case in cases]).to(self.device)
        self.own = torch.tensor([case.own for case in cases])
        self.to = torch.tensor([case.to for case in cases])
        self.where = torch.stack([case.where for case in cases]).to(self.device)

    def run(self) -> list[Rewriting]:
        """One attempt within the budget, or several to find the smallest."""
        count = len(self.cases)
        most = torch.full((count,), (self.asked.linf if self.asked.l2 is None else self.asked.l2) or 1.0, dtype=torch.float64)
        found = self._attempt(torch.arange(count), most, None)
        pixels, success = found.pixels, found.success
        evaluations, judged = found.evaluations, found.judged
        tried: list[list[tuple[float, bool]]] = (
            [[(float(most[i]), bool(success[i]))] for i in range(count)] if self.settings["smallest"] else [[]] * count
        )
        if self.settings["smallest"]:
            low = torch.zeros(count, dtype=torch.float64)
            high = self._reached(pixels, most)
            while len(rows := (success & self._open(low, high)).nonzero()[:, 0]):
                middle = self._middle(low[rows], high[rows])
                start = (pixels[rows] - self.original[rows]) * (middle / high[rows]).to(pixels)[:, None, None, None]
                again = self._attempt(rows, middle, start)
                evaluations[rows] += again.evaluations
                judged[rows] += again.judged
                good, bad = rows[again.success], rows[~again.success]
                pixels[good] = again.pixels[again.success]
                high[good], low[bad] = self._reached(pixels, high)[good].minimum(middle[again.success]), middle[~again.success]
                for row, epsilon, fine in zip(rows.tolist(), middle.tolist(), again.success.tolist()):
                    tried[row].append((epsilon, fine))
        return self._records(pixels, evaluations, judged, tried)

    def _attempt(self, rows: Tensor, epsilon: Tensor, start: Tensor | None) -> Any:
        """Steps for some rows, each within its own epsilon."""
        asked = self.asked
        count = len(rows)
        budget = Budget(
            where=self.where[rows],
            linf=None if asked.linf is None else (epsilon if asked.l2 is None else torch.full((count,), asked.linf)).float().to(self.device),
            l2=None if asked.l2 is None else epsilon.to(self.device),
            ssim=None if asked.ssim is None else torch.full((count,), asked.ssim, device=self.device),
            similarity=similarity,
        )

        def lead(pixels: Tensor, index: Tensor) -> Tensor:
            return margin(self.said.through(self.path, pixels), self.to[rows[index]], self.own[rows[index]])

        def judge(pixels: Tensor, index: Tensor) -> Tensor:
            scores = self.said.scores_on_disk(byte(pixels).cpu(), self.folder)
            return margin(scores, self.to[rows[index]], self.own[rows[index]]) > self.settings["lead"]

        chosen = {name: self.settings[name] for name in ("steps", "restarts", "lead", "seed")}
        return descend(self.original[rows], budget, lead, judge, start=start, **chosen)

    def _reached(self, pixels: Tensor, most: Tensor) -> Tensor:
        """The epsilon that a picture needs, at most that of its budget."""
        norm = linf if self.asked.l2 is None else l2
        return norm(pixels - self.original).double().cpu().minimum(most)

    def _open(self, low: Tensor, high: Tensor) -> Tensor:
        """Is there an epsilon between, that is worth trying? bool [rows]"""
        if self.asked.l2 is not None:
            return high > (CLOSE * low).clamp_min(1 / LEVELS)  # no 8-bit picture is nearer than one level of one channel
        return (high * LEVELS).round() > (low * LEVELS).round() + 1

    def _middle(self, low: Tensor, high: Tensor) -> Tensor:
        if self.asked.l2 is not None:
            return torch.where(low > 0, (low * high).sqrt(), high / 2)
        return ((low + high) * LEVELS / 2).round().clamp(max=(high * LEVELS).round() - 1) / LEVELS

    def _records(self, pixels: Tensor, evaluations: Tensor, judged: Tensor, tried: Sequence[Sequence[tuple[float, bool]]]) -> list[Rewriting]:
        levels = byte(pixels).cpu()
        scores = self.said.scores_on_disk(levels, self.folder)
        leads = margin(scores, self.to, self.own)
        ratio, alike = decibels(pixels, self.original), similarity(pixels, self.original)
        change = pixels - self.original
        found = []
        for i, case in enumerate(self.cases):
            answer = int(scores[i].argmax())
            to = case.to if case.to >= 0 else answer if answer != case.own else int(scores[i].topk(2).indices[1])
            shares = {BEFORE: case.probabilities, AFTER: scores[i].softmax(-1)}
            touched = case.path.cells(case.grid)[(levels[i] != byte(self.original[i]).cpu()).any(0)]
            found.append(
                Rewriting(
                    original=byte(self.original[i]).cpu(),
                    rewritten=levels[i],
                    own=self.said.name(case.own),
                    to=self.said.name(to),
                    answer=self.said.name(answer),
                    success=bool(leads[i] > self.settings["lead"]),
                    probabilities={when: {"own": float(p[case.own]), "to": float(p[to])} for when, p in shares.items()},
                    psnr=float(ratio[i]),
                    ssim=float(alike[i]),
                    linf=float(linf(change[i : i + 1])),
                    l2=float(l2(change[i : i + 1])),
                    touched=int(touched[touched >= 0].unique().numel()),
                    grid=case.grid,
                    evaluations=int(evaluations[i]),
                    judged=int(judged[i]),
                    budget=self.asked.to_dict(),
                    settings={
                        **self.settings,
                        "own": case.own,
                        "to": to,
                        "asked": "any" if case.to < 0 else self.said.name(case.to),
                        "gap": case.path.gap,
                    },
                    tried=tuple(tried[i]),
                    survival=self._survival(case.image, picture(levels[i]), to),
                    notes=(case.note,) if case.note else (),
                )
            )
        return found

    def _survival(self, original: Any, rewritten: Any, to: int) -> dict[str, Survival]:
        found = {}
        for name, handled in HANDLINGS.items():
            before, after = (int(self.said.scores([handled(image)])[0].argmax()) for image in (original, rewritten))
            found[name] = Survival(self.said.name(before), self.said.name(after), after == to)
        return found


def _explained(said: Classifier, one: Rewriting, case: Case) -> Rewriting:
    """The record with relevance for the class before on the original, and for the class after on the rewritten picture."""
    found = {BEFORE: _relevance(said, case.image, case.own), AFTER: _relevance(said, one.image, int(one.settings["to"]))}
    kept = {when: known for when, known in found.items() if isinstance(known, Relevance)}
    if len(kept) < len(found):
        return replace(one, notes=(*one.notes, f"no attention relevance: {next(r for r in found.values() if isinstance(r, str))}"))
    return replace(one, relevance=kept)


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004: Gaussian window of 11, sigma 1.5) of pixels in 0..1: [rows]."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    found: Tensor = structural_similarity_index_measure(a.float(), b.float(), data_range=1.0, reduction="none")  # type: ignore[assignment]
    return found.reshape(-1)


def decibels(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pixels in 0..1 in dB, [rows]; infinite for equal pictures."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return torch.stack([peak_signal_noise_ratio(x.float(), y.float(), data_range=1.0) for x, y in zip(a, b)])
