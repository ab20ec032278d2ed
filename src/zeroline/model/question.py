"""One question put to one model: what ``ask`` hands to a method.

Holds ``Question``: the features z, the baseline features z0, f(x), f(do(z := z0)), f(x0), whether the site is a cut,
the gradient at z, and values and gradients along the straight path. How a question is posed is ``model.ask``;
which arithmetic is done with the answers is the method's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.attribution import Attribution, rounding
from zeroline.baseline import Baseline
from zeroline.errors import BaselineError, GradientError, ModelStateError, NonFiniteError, TargetError
from zeroline.model import identity, memory
from zeroline.model.inputs import Inputs
from zeroline.model.places import Place, run
from zeroline.model.suffix import Prefix
from zeroline.target import Target

Features = tuple[Tensor, ...]


@dataclass
class Nodes:
    """Path points evaluated in one pass, all [n]: rows of the request, samples, t, f, slopes <g, z - z0>; gradients per part."""

    rows: Tensor
    samples: Tensor
    t: Tensor
    values: Tensor
    slopes: Tensor
    gradients: Features


@dataclass
class Question:
    """See ``ask``. Tensors per sample are float64 [batch]; ``features`` has one tensor per place.

    ``size`` [batch] is how large the terms are that f adds up: a contrast near zero is rounded by units of its logits.
    """

    model: nn.Module
    inputs: Inputs
    places: tuple[Place, ...]
    target: Target
    baseline: Baseline
    features: Features
    output: Tensor
    size: Tensor
    resolution: float
    gradient: Features | None = None
    connected: bool = True
    baseline_features: Features = ()
    baseline_output: Tensor = field(default_factory=lambda: torch.empty(0))
    reference_output: Tensor | None = None
    is_cut: bool | None = None
    prefix: Prefix | None = None
    execution: str = "full"
    forward_passes: int = 0
    rows_per_pass: int | None = None

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.inputs.batch

    @property
    def steps(self) -> Features:
        """z - z0, per part."""
        return tuple(z - z0 for z, z0 in zip(self.features, self.baseline_features))

    def everyone(self) -> Tensor:
        """Indices of all samples, in order."""
        return torch.arange(self.batch)

    def forward(self, inputs: Inputs, samples: Tensor, features: Features | None, before: Prefix | None = None) -> tuple[Tensor, Features]:
        """f and the features at the places for one plain pass; ``features`` replaces them where given.

        ``before`` takes up (and keeps) what modules before the site gave for the same inputs.
        """
        seen: dict[int, Tensor] = {}
        output = self.outputs(inputs, features, seen, before)
        return self.read(output, samples), tuple(seen[i] for i in range(len(self.places)))

    @torch.no_grad()
    def outputs(self, inputs: Inputs, features: Features | None, seen: dict[int, Tensor] | None = None, before: Prefix | None = None) -> Any:
        """The model's own output for one plain pass, with ``features`` at the places where given; ``seen`` collects those found there."""

        def transform(i: int, tensor: Tensor) -> Tensor:
            if before is not None:
                before.reached()
            if seen is not None:
                seen[i] = tensor.detach().clone()
            return tensor if features is None else fit(features[i], tensor, self.places[i]).clone()

        self.forward_passes += 1
        with nullcontext() if before is None else before.recorded():
            return run(self.model, inputs, self.places, transform)

    def read(self, output: Any, samples: Tensor, t: Tensor | None = None) -> Tensor:
        """f [rows] in float64, checked: one finite number per row."""
        return double(checked(self.target.read(output, samples), samples, t))

    def along(self, samples: Tensor, t: Tensor) -> Iterator[Nodes]:
        """Values and gradients at the path points ``z0 + t (z - z0)`` of ``samples``, a few rows per pass."""
        if not self.inputs.repeatable:
            yield from self._along_in_whole_batches(samples, t)
            return
        start = 0
        while start < len(samples):
            rows = torch.arange(start, min(start + (self.rows_per_pass or 1), len(samples)))
            yield self._evaluate(rows, samples[rows], t[rows])
            start += len(rows)

    def _along_in_whole_batches(self, samples: Tensor, t: Tensor) -> Iterator[Nodes]:
        """For inputs whose rows cannot be chosen (a key-value cache): every pass holds each sample once, at its next point."""
        waiting = [(samples == b).nonzero().flatten().tolist() for b in range(self.batch)]
        while any(waiting):
            rows = torch.tensor([queue.pop(0) if queue else -1 for queue in waiting])
            found = self._evaluate(rows, self.everyone(), torch.where(rows < 0, 1.0, t[rows]))
            kept = (rows >= 0).nonzero().flatten()
            gradients = tuple(g[kept.to(g.device)] for g in found.gradients)
            yield Nodes(rows[kept], found.samples[kept], found.t[kept], found.values[kept], found.slopes[kept], gradients)

    def _evaluate(self, rows: Tensor, samples: Tensor, t: Tensor) -> Nodes:
        """One pass over the rows, forward and backward to the site."""
        meter = memory.Meter(self.model.parameters()) if self.rows_per_pass is None else None
        points = tuple(_between(z0, z, samples, t).requires_grad_() for z0, z in zip(self.baseline_features, self.features))
        if meter is None:
            values, gradients = self._gradients(points, samples, t)
        else:
            with meter.running():
                values, gradients = self._gradients(points, samples, t)
            self.rows_per_pass = memory.rows_that_fit(meter.bytes // len(samples), points[0].device)
        for end, truth in ((0.0, self.baseline_output), (1.0, self.output)):
            ends = (t == end).nonzero().flatten()
            self.require_same(values[ends], samples[ends], truth)
        steps = tuple(d.index_select(0, samples.to(d.device)) for d in self.steps)
        slopes = torch.stack([(double(g) * double(d)).flatten(1).sum(1) for g, d in zip(gradients, steps)]).sum(0)
        return Nodes(rows, samples, t, values, slopes, gradients)

    def _gradients(self, points: Features, samples: Tensor, t: Tensor) -> tuple[Tensor, Features]:
        def transform(i: int, tensor: Tensor) -> Tensor:
            if self.prefix is not None:
                self.prefix.reached()
            return points[i].clone()  # a module after the site may write on what it gets

        with self.prefix.replayed(samples) if self.prefix is not None else nullcontext():
            output = run(self.model, self.inputs.rows(samples), self.places, transform)
        value = checked(self.target.read(output, samples), samples, t)
        gradients, self.connected = differentiate(value, points)
        self.require_gradient()
        check_gradients(gradients, samples, t)
        return double(value.detach()), gradients

    def require_same(self, values: Tensor, samples: Tensor, truth: Tensor) -> None:
        """Raise where f of some rows is not what it was in the caller's batch (``truth``, per sample)."""
        scale = (self.output - self.baseline_output).abs() if len(self.baseline_output) else truth.abs()
        allowed = 0.05 * scale + rounding(self.resolution, truth, self.size) + 1e-12
        for row, b in enumerate(samples.tolist()):
            if abs(float(values[row]) - float(truth[b])) > float(allowed[b]):
                found = f"{float(truth[b]):.6g} in its own batch and {float(values[row]):.6g} beside other rows"
                raise ModelStateError(f"sample {b} gets {found}: the model draws random numbers or mixes the samples of a batch")

    def require_gradient(self) -> None:
        """Raise where f differs between x and the baseline but has no gradient at the site."""
        moved = (self.output - self.baseline_output).abs() > rounding(self.resolution, self.output, self.baseline_output)
        if not self.connected and bool(moved.any()):
            where = " + ".join(map(str, self.places))
            raise GradientError(f"the target changes with {where!r} but has no gradient there: something after the site detaches, rounds or indexes")

    def budget(self, cause: str, parts: Features) -> dict[str, Tensor]:
        """The attribution error of values ``parts``, all of it put down to one cause: {cause: sum(parts) - D}, [batch]."""
        total = torch.stack([part.to(self.output).flatten(1).sum(1) for part in parts]).sum(0)
        return {cause: total - (self.output - self.baseline_output)}

    def answer(self, parts: Features, *, method: str, settings: Mapping[str, Any], evaluations: Tensor, **figures: Any) -> Attribution:
        """The record of this question with ``parts`` as values; ``budget`` among the figures splits the error by its causes."""
        names = [str(place) for place in self.places]
        return Attribution(
            parts={name: part.detach() for name, part in zip(names, parts)},
            method=method,
            target=self.target.describe(self.batch),
            site=" + ".join(names),
            baseline=self.baseline.name,
            output=self.output,
            baseline_output=self.baseline_output,
            reference_output=self.reference_output,
            evaluations=evaluations,
            forward_passes=self.forward_passes,
            is_cut=self.is_cut,
            resolution=self.resolution,
            seed=self.baseline.seed,
            baseline_kl=None if self.baseline.kl is None else self.baseline.kl.to(self.output),
            execution=self.execution,
            settings=dict(settings),
            versions=identity.versions(),
            model_class=identity.model_class(self.model),
            weights=identity.weights_hash(self.model),
            **figures,
        )


def differentiate(value: Tensor, points: Features) -> tuple[Features, bool]:
    """d value.sum() / d points; zeros, and False, where there is no connection."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(p) for p in points), False
    try:
        found = torch.autograd.grad(value.sum(), points, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as problem:
        raise GradientError(f"the backward pass fails: {str(problem).splitlines()[0]}") from problem
    gradients = tuple(torch.zeros_like(p) if g is None else g for g, p in zip(found, points))
    return gradients, any(g is not None for g in found)


def fit(features: Tensor, like: Tensor, place: Place) -> Tensor:
    if features.shape != like.shape:
        raise BaselineError(f"the baseline features at {str(place)!r} have shape {tuple(features.shape)}; those of x have {tuple(like.shape)}")
    return features


def _between(z0: Tensor, z: Tensor, samples: Tensor, t: Tensor) -> Tensor:
    """z0 + t (z - z0) for each row, exact at t = 0 and t = 1."""
    rows = samples.to(z.device)
    fine = torch.promote_types(z.dtype, torch.float32)  # half precision cannot tell neighbouring t apart
    weight = t.to(z.device, fine).view(-1, *[1] * (z.ndim - 1))
    return torch.lerp(z0.index_select(0, rows).to(fine), z.index_select(0, rows).to(fine), weight).to(z.dtype)


def double(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def checked(value: Tensor, samples: Tensor, t: Tensor | None) -> Tensor:
    rows = len(samples)
    if value.shape != (rows,):
        raise TargetError(f"the target gave shape {tuple(value.shape)} for {rows} samples; it must give one number per sample: ({rows},)")
    if not value.is_floating_point():
        raise TargetError(f"the target gave {value.dtype}; it must give real numbers with a gradient")
    bad = (~value.detach().isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(f"the target is {value.detach()[bad[0]].item()} at {_where(samples, t, bad[0])}")
    return value


def check_gradients(gradients: Features, samples: Tensor, t: Tensor) -> None:
    for gradient in gradients:
        bad = (~gradient.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if bad:
            at_baseline = "; features that are all zero are singular for a LayerNorm: try a baseline at the input, or a path without its ends"
            hint = at_baseline if float(t[bad[0]]) == 0 else ""
            raise NonFiniteError(f"the gradient is not finite at {_where(samples, t, bad[0])}{hint}")


def _where(samples: Tensor, t: Tensor | None, row: int) -> str:
    point = "" if t is None else f", path point t = {float(t[row]):.4g} (0 is the baseline, 1 is x)"
    return f"sample {int(samples[row])}{point}"
