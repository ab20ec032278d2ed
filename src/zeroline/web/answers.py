"""Questions of the web page, answered: records, what was seen beside them, and the page that shows them. No Gradio here.

Every word that came from a browser is read by the same readers as the command line's; baselines and sites are of lists that the server made, so that
no word of a browser becomes a path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zeroline import reporting
from zeroline.attribution import Attribution
from zeroline.baseline import by_name
from zeroline.errors import InputError, NotFoundError, RunError, UsageError
from zeroline.front_door import explain
from zeroline.guided import rewrite as rewritten
from zeroline.methods import METHODS, ROUTES
from zeroline.model.reference import settle
from zeroline.paradigm import ground as by_paths
from zeroline.report import page
from zeroline.seen import Seen
from zeroline.spelling.questions import sources_of, target_for
from zeroline.spelling.reading import read_epsilon
from zeroline.target import whole_number
from zeroline.web.limits import Limits
from zeroline.web.offered import Offered

BASELINES = ("black", "zeros", "mean", "blur(4)", "blur(8)", "blur(16)", "constant(0.5)", "noise(0)", "neutral(black)", "neutral(blur(8))")
ATTENTION = ("attention_relevance", "rollout", "grad_eclip", "attention_eclip")
ASKABLE = (*METHODS, *(name for name in ATTENTION if name in ROUTES))
BUDGETS = ("1/255", "2/255", "4/255", "8/255", "16/255")
MOST_EVALUATIONS = 256


@dataclass(frozen=True)
class Asked:
    """One question: a picture (PIL), a text or none, and the words of the page."""

    picture: Any
    model: str
    text: str = ""
    method: str = "integrated_gradients"
    target: str = "top"
    site: str = ""
    baseline: str = "black"


@dataclass(frozen=True, eq=False)
class Answer:
    """Records with what was seen beside them; ``said`` is how it went, in a sentence."""

    records: tuple[tuple[Any, Seen], ...]
    said: str
    notes: tuple[str, ...] = ()

    def html(self) -> str:
        """The page of a report, a chapter per record."""
        return page.html([page.chapter(record, seen) for record, seen in self.records])


class Answers:
    """What a page can be asked, over the models that it offers and within its limits."""

    def __init__(self, offered: Offered, limits: Limits) -> None:
        self.offered, self.limits = offered, limits

    def explained(self, asked: Asked) -> Answer:
        """Where the evidence for a target lies, measured from a baseline; or what attention finds."""
        record, seen = self._one(asked)
        return Answer(((record, seen),), _said(record))

    def compared(self, first: Asked, second: Asked) -> tuple[Answer, Answer]:
        """Two questions on one picture, side by side."""
        found = [self._one(asked) for asked in (first, second)]
        a, b = (Answer((one,), _said(one[0])) for one in found)
        return a, b

    def grounded(self, asked: Asked) -> Answer:
        """Which words stand on which part of the picture."""
        text = self.limits.text(asked.text)
        if not text:
            raise InputError("there is no text; grounding sets the words of a text against the picture")
        with self.offered.asked(asked.model) as sourced:
            if "text" not in sourced.reads or "image" not in sourced.reads:
                raise UsageError(f"{sourced.name!r} reads {' and '.join(sourced.reads)}; grounding needs a model that reads an image and a text")
            inputs = sourced.prepare(*sources_of(sourced, asked.picture, text))
            words = reporting.words_of(sourced, inputs)
            record = by_paths(sourced.model, inputs, target=target_for(self.limits.text(asked.target) or "top", sourced), words=words)
            return Answer(((record, reporting.beside(record, sourced, inputs, photograph=asked.picture)),), "The words against the picture.")

    def rewritten(self, asked: Asked, to: str, budget: str) -> Answer:
        """How little makes the picture another class to the model."""
        _among("budget", budget, BUDGETS)
        to = self.limits.text(to) or "second"
        number = whole_number(to)
        with self.offered.asked(asked.model) as sourced:
            if "text" in sourced.reads or sourced.is_detector:
                raise UsageError(f"{sourced.name!r} is no image classifier; rewriting changes the class of a picture")
            record = rewritten(
                sourced.model,
                asked.picture,
                to=to if number is None else number,
                linf=read_epsilon(budget, "the budget"),
                preprocess=lambda image: sourced.prepare(image, None),
                labels=sourced.labels,
            )
        reached = "success" if record.success else "no success within the budget"
        return Answer(((record, Seen()),), f"The saved picture is {record.answer} to the model: {reached}.", record.notes)

    def _one(self, asked: Asked) -> tuple[Any, Seen]:
        _among("method", asked.method, ASKABLE)
        _among("baseline", asked.baseline, BASELINES)
        target, text = self.limits.text(asked.target) or "top", self.limits.text(asked.text)
        sites = self.offered.sites(asked.model)
        site = asked.site or sites[0]
        _among("site", site, sites)
        with self.offered.asked(asked.model) as sourced:
            words = text or None
            if words is not None and "text" not in sourced.reads:
                raise UsageError(f"{sourced.name!r} reads no text; leave the text empty")
            inputs = sourced.prepare(*sources_of(sourced, asked.picture, words))
            if asked.method in ROUTES:
                record = explain(sourced, asked.picture, method=asked.method, target=target, text=words)
                return record, reporting.beside(record, sourced, inputs, photograph=asked.picture)
            baseline = settle(sourced.model, inputs, by_name(asked.baseline), site, self._clock())
            record = explain(
                sourced, asked.picture, method=asked.method, target=target, site=site, baseline=baseline, text=words, **self._bounded(asked.method)
            )
            return record, reporting.beside(record, sourced, inputs, baseline)

    def _bounded(self, method: str) -> dict[str, Any]:
        """Options that keep an answer within its time."""
        return {"max_evaluations": MOST_EVALUATIONS, "progress": self._clock()} if method == "integrated_gradients" else {}

    def _clock(self) -> Callable[[int, int | None], None]:
        """A progress function that stops an answer which takes too long."""
        end = time.monotonic() + self.limits.seconds

        def tick(done: int, total: int | None) -> None:
            if time.monotonic() > end:
                raise RunError(
                    f"stopped after {self.limits.seconds:g} seconds, at step {done}; ask at a later site, from another baseline, or a smaller model"
                )

        return tick


def _among(what: str, given: str, possible: tuple[str, ...]) -> None:
    if given not in possible:
        raise NotFoundError.among(what, given, possible)


def _said(record: Any) -> str:
    if not isinstance(record, Attribution):
        return f"The {record.target[0]} by {record.method}: relevance, which has no unit and no attribution error."
    relative = record.relative_error
    share = "undefined as a share" if relative is None else f"{float(relative[0]):.2%} of the difference"
    return (
        f"The {record.target[0]} from the {record.baseline} baseline: f(x) - f(baseline) = {float(record.difference[0]):.4g}, attribution error"
        f" {float(record.error[0]):+.2g} ({share})."
    )
