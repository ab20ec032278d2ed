"""A job's question put to its model: the model loaded and placed, targets and baselines made, the method called on a batch.

Holds ``Asking``. What comes back is the method's own record; taking it apart is ``explainer``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.baseline import Baseline, BaselineLike, by_name
from zeroline.errors import NotFoundError, TargetError, UsageError
from zeroline.methods import METHODS, ROUTES
from zeroline.model.ask import labels_of
from zeroline.model.loading import Loaded, Sourced
from zeroline.model.preprocessing import preprocessing_of
from zeroline.paradigm import ground, logic, mechanism
from zeroline.paradigm import players as make
from zeroline.scale.job import LABEL, PLAYERS, Job
from zeroline.scale.prepare import Ready
from zeroline.spelling.models import load_sourced
from zeroline.spelling.questions import target_for
from zeroline.spelling.reading import grid_of
from zeroline.spelling.sources import is_input, read_baseline
from zeroline.target import Target, logit


class Asking:
    """A job with its model on its device. ``is_copy``: a module in the job came from another process, so that it may be moved."""

    def __init__(self, job: Job, *, is_copy: bool = False) -> None:
        self._job = job
        self.sourced, self.device, self.dtype = _loaded(job, is_copy=is_copy)
        self._baseline = self._measured_from()

    @property
    def one_at_a_time(self) -> bool:
        """Words and regions are other players in every example."""
        return self._job.method == "logic" and self._job.options.get("players") != "sources"

    def joined(self, parts: Sequence[Any]) -> Any:
        """Batches of one as one batch, on the device; floating-point inputs in the model's dtype."""
        first = parts[0]
        if isinstance(first, Mapping):
            return {name: self._cat([part[name] for part in parts]) for name in first}
        if isinstance(first, (tuple, list)):
            return tuple(self._cat(values) for values in zip(*parts))
        return self._cat(parts)

    def _cat(self, values: Sequence[Any]) -> Any:
        if not isinstance(values[0], Tensor):
            return values[0]
        found = torch.cat(list(values)) if len(values) > 1 else values[0]
        return found.to(self.device, self.dtype) if found.is_floating_point() else found.to(self.device)

    def target(self, ready: Sequence[Ready]) -> Target:
        """The target of some examples: the same for all, or each one's own label."""
        asked = self._job.target
        if not isinstance(asked, str):
            return asked
        return logit([self._class(one) for one in ready]) if asked == LABEL else target_for(asked, self.sourced)

    def _class(self, one: Ready) -> int | str:
        label = (one.example.label or "").strip()
        if not label:
            raise TargetError("the target is the label, and the example has none")
        by_name = {name.lower(): index for name, index in self.sourced.labels.items()}
        if label.lower() not in by_name and not label.isdecimal():
            raise NotFoundError.among("class", label, self.sourced.labels, "the target is the label")
        return by_name.get(label.lower(), int(label) if label.isdecimal() else label)

    def record(self, inputs: Any, ready: Sequence[Ready]) -> Any:
        """What the method answers for a batch."""
        job, model, target = self._job, self.sourced.model, self.target(ready)
        options = dict(job.options)
        if job.grid is not None or job.prefix is not None:
            options |= {"grid": job.grid, "prefix": job.prefix}
        if job.method in METHODS:
            return METHODS[job.method](model, inputs, target=target, site=job.site, baseline=self._baseline, **options)
        if job.method in ROUTES:
            return ROUTES[job.method](model, inputs, target=target, **options)
        if job.method == "ground":
            return ground(model, inputs, target=target, **options)
        assert self._baseline is not None  # the job has one for these two
        absent = make.missing(model, inputs, self.sourced.tokenizer, self._baseline)
        if job.method == "mechanism":
            return mechanism(model, inputs, target=target, baseline=absent, **options)
        kind, regions = options.pop("players", PLAYERS[0]), options.pop("regions", "2x2")
        players = None if kind == "sources" else self._players(inputs, kind, regions)
        return logic(model, inputs, target=target, players=players, baseline=absent, **options)

    def _players(self, inputs: Any, kind: str, regions: str) -> list[Any]:
        found: list[Any] = []
        if "words" in kind and self.sourced.tokenizer is not None:
            found += make.words(inputs, self.sourced.tokenizer)
        if "regions" in kind and "image" in self.sourced.reads:
            assert isinstance(self._baseline, Baseline)
            found += make.regions(self.sourced.model, inputs, make.grid(*(grid_of(regions) or (2, 2))), baseline=self._baseline)
        return found

    def _measured_from(self) -> BaselineLike | None:
        asked = self._job.measured_from
        if not isinstance(asked, str):
            return asked
        if self._job.method not in METHODS:
            return by_name(asked)

        def preprocess(image: Any) -> Any:
            return self.joined([self.sourced.prepare(image, None)])

        placed = Loaded(self.sourced.name, self.sourced.model, preprocess, self.sourced.labels)
        return read_baseline(asked, placed, at_input=is_input(self._job.site))


def _loaded(job: Job, *, is_copy: bool) -> tuple[Sourced, torch.device, torch.dtype]:
    """The model, its device and the dtype of its inputs. A module of the caller's stays as it is, unless it ``is_copy``."""
    if isinstance(job.model, str):
        sourced = load_sourced(job.model, trust_remote_code=job.trust_remote_code)
    else:
        sourced = job.model if isinstance(job.model, Sourced) else _of_module(job.model, job)
        if not is_copy:
            first = next(sourced.model.parameters(), torch.zeros(()))
            return sourced, first.device, first.dtype
    device, dtype = _device(job.device), getattr(torch, job.dtype)
    sourced.model.to(device, dtype)
    return sourced, device, dtype


def _device(asked: str) -> torch.device:
    there = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if there else "cpu") if asked == "auto" else asked)
    except RuntimeError:
        raise UsageError(f"device {asked!r} was asked; auto, cpu, cuda or cuda:NUMBER are possible") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {asked!r} was asked; auto, cpu, cuda or cuda:NUMBER are possible")
    if device.type == "cuda" and not there:
        raise UsageError(f"device {asked!r} was asked; torch sees no GPU here")
    return device


def _of_module(model: nn.Module, job: Job) -> Sourced:
    preprocess = job.preprocess or preprocessing_of(model)
    return Sourced(type(model).__name__, model, lambda image, _: preprocess(image), labels_of(model))
