"""The result: values at a site, and how far their sum is from the truth.

Holds the ``Attribution`` record: what was asked (target, site, baseline), what came out (values), and the
figures that say how exact it is. It saves, loads and prints; it never draws itself and never runs a model.

Notation as in ``docs/concepts.md``: D = f(x) - f(do) is the difference, sum(a) the total, E = sum(a) - D
the attribution error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroline import records
from zeroline.errors import SiteError

FORMAT = 2
KIND = "attribution"  # its files name no kind: the others do
UNDEFINED = "the difference is within the rounding of the two outputs: the target does not tell x from this baseline"
_UNITS = 8  # a difference below this many units in the last place of the outputs is rounding


@dataclass(frozen=True, eq=False)
class Attribution:
    """Values ``a`` at a site with everything needed to judge and to repeat them.

    Per sample, in float64, shape [batch]: ``output`` f(x); ``baseline_output`` f(do(z := z0));
    ``reference_output`` f(x0) where the baseline is an input; ``local_error`` sum of |segment defects|
    (bounds |error|, cannot cancel between segments); ``map_error`` |a_fine - a_coarse|_1 / |a_fine|_1 (NaN below three nodes);
    ``raw_error`` the error before ``closure``; ``evaluations`` gradient evaluations (int64); ``baseline_kl`` KL from uniform
    of the class distribution at a neutral baseline; ``error_spread`` the standard deviation of the error over the draws of a
    distribution of baselines, of which all other figures are means (evaluations: the sum).
    ``budget`` splits the error by what brought it, name -> [batch], in the order in which the method did it; the parts add up to E.
    ``resolution`` is the relative rounding of f: the epsilon of the coarser of the dtypes of features and output.
    ``forward_passes`` counts the model's runs of the whole call, batches counted once, gradients excluded.
    What a method does not know is None.
    """

    parts: Mapping[str, Tensor]
    method: str
    target: tuple[str, ...]
    site: str
    baseline: str
    output: Tensor
    baseline_output: Tensor
    evaluations: Tensor
    forward_passes: int
    is_cut: bool | None
    resolution: float
    reference_output: Tensor | None = None
    local_error: Tensor | None = None
    map_error: Tensor | None = None
    raw_error: Tensor | None = None
    baseline_kl: Tensor | None = None
    error_spread: Tensor | None = None
    budget: Mapping[str, Tensor] = field(default_factory=dict)
    closure: str | None = None
    stopped: tuple[str, ...] = ()
    execution: str = "full"
    substitutes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    model_class: str = ""
    weights: Callable[[], str] | str = ""

    @property
    def values(self) -> Tensor:
        """The attribution, with the shape, dtype and device of the features at the site."""
        if len(self.parts) > 1:
            raise SiteError(f"a joint site has several values: use .parts[name] with {', '.join(map(repr, self.parts))}")
        return next(iter(self.parts.values()))

    @property
    def difference(self) -> Tensor:
        """D = f(x) - f(do(z := z0)): what the values are to add up to, [batch]."""
        return self.output - self.baseline_output

    @cached_property
    def total(self) -> Tensor:
        """sum(a), accumulated in float64, [batch]."""
        sums = [part.to(self.output).flatten(1).sum(1) for part in self.parts.values()]
        return torch.stack(sums).sum(0)

    @property
    def error(self) -> Tensor:
        """The attribution error E = sum(a) - D, [batch]."""
        return self.total - self.difference

    @property
    def reference_gap(self) -> Tensor | None:
        """f(x0) - f(do(z := z0)), [batch]: 0 at a cut, and what a delta against f(x0) adds to E elsewhere; None without an x0."""
        return None if self.reference_output is None else self.reference_output - self.baseline_output

    @property
    def relative_error(self) -> Tensor | None:
        """|E| / |D|, [batch]; NaN for samples where it is undefined, None where it is for all of them."""
        defined = self.is_defined
        if not bool(defined.any()):
            return None
        ratio = self.error.abs() / self.difference.abs()
        return torch.where(defined, ratio, torch.full_like(ratio, torch.nan))

    @property
    def relative_error_reason(self) -> str | None:
        """Why ``relative_error`` is undefined (for the samples where it is), or None."""
        return None if bool(self.is_defined.all()) else UNDEFINED

    @property
    def is_defined(self) -> Tensor:
        """Per sample: is |D| above the rounding of f(x) and f(do)? [batch], bool."""
        return self.difference.abs() > rounding(self.resolution, self.output, self.baseline_output)

    @property
    def model_id(self) -> str:
        """Model class and a hash of its weights (computed when first asked for)."""
        return f"{self.model_class}@{self.weights if isinstance(self.weights, str) else self.weights()}"

    def per_token(self) -> Tensor:
        """Values of [batch, tokens, width] summed over the width: [batch, tokens], signed."""
        if self.values.ndim != 3:
            raise SiteError(f"per_token() reads [batch, tokens, width]; the values at {self.site!r} are {tuple(self.values.shape)}")
        return self.values.sum(-1)

    def per_pixel(self) -> Tensor:
        """Values of [batch, channels, height, width] summed over the channels: [batch, height, width], signed."""
        if self.values.ndim != 4:
            raise SiteError(f"per_pixel() reads [batch, channels, height, width]; the values at {self.site!r} are {tuple(self.values.shape)}")
        return self.values.sum(1)

    def sample(self, index: int) -> Attribution:
        """The record of one sample of the batch (shapes keep a batch of 1)."""
        size = len(self.output)
        pick = records.picked(index, size)
        index %= size
        cut: dict[str, Any] = {name: figure[pick] for name in _PER_SAMPLE if (figure := getattr(self, name)) is not None}
        parts, budget = ({name: part[pick] for name, part in of.items()} for of in (self.parts, self.budget))
        return replace(self, parts=parts, budget=budget, target=self.target[pick], stopped=self.stopped[pick], **cut)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values, as JSON types."""
        figures = {name: records.numbers(getattr(self, name)) for name in _PER_SAMPLE}
        return {
            "format": FORMAT,
            "method": self.method,
            "target": list(self.target),
            "site": self.site,
            "baseline": self.baseline,
            **figures,
            "difference": records.numbers(self.difference),
            "total": records.numbers(self.total),
            "error": records.numbers(self.error),
            "relative_error": records.numbers(self.relative_error),
            "relative_error_reason": self.relative_error_reason,
            "reference_gap": records.numbers(self.reference_gap),
            "budget": {name: records.numbers(part) for name, part in self.budget.items()},
            "forward_passes": self.forward_passes,
            "is_cut": self.is_cut,
            "resolution": self.resolution,
            "closure": self.closure,
            "stopped": list(self.stopped),
            "execution": self.execution,
            "substitutes": list(self.substitutes),
            "settings": dict(self.settings),
            "seed": self.seed,
            "versions": dict(self.versions),
            "model": self.model_id,
            "shapes": {name: list(part.shape) for name, part in self.parts.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write values and record to one safetensors file (to a temporary name first, then renamed)."""
        records.write(path, *self.packed())

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON types, for a file of one record or of several."""
        tensors = {f"values/{name}": part for name, part in self.parts.items()}
        tensors |= {f"budget/{name}": part for name, part in self.budget.items()}
        figures = {name: getattr(self, name) for name in _PER_SAMPLE}
        tensors |= {name: figure for name, figure in figures.items() if figure is not None}
        return tensors, {k: v for k, v in self.to_dict().items() if k not in _PER_SAMPLE}

    @classmethod
    def load(cls, path: str | Path) -> Attribution:
        """Read a record that ``save`` wrote. Raises LoadError where the file is not one."""
        return records.load(path, "an attribution", cls.unpacked)

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], where: str) -> Attribution:
        """What ``packed`` gave, as a record again; ``where`` is named in errors."""
        records.check(record, KIND, FORMAT, where)
        parts, budget = ({name: tensors[f"{kind}/{name}"] for name in record[kept]} for kind, kept in (("values", "shapes"), ("budget", "budget")))
        model_class, _, weights = record["model"].rpartition("@")
        known: dict[str, Any] = {name: tuple(record[name]) for name in ("target", "stopped", "substitutes")}
        plain = ("method", "site", "baseline", "forward_passes", "is_cut", "resolution", "closure", "execution", "settings", "seed", "versions")
        known |= {name: record[name] for name in plain} | {name: tensors.get(name) for name in _PER_SAMPLE}
        return cls(parts=parts, budget=budget, model_class=model_class, weights=weights, **known)

    def rows(self, sample: int = 0) -> list[tuple[str, str]]:
        """The figures of one sample in words, for tables: (label, value) pairs."""
        relative = self.relative_error
        share = "undefined" if relative is None or bool(relative[sample].isnan()) else f"{float(relative[sample]):.2%}"
        lines = [
            ("target", self.target[sample]),
            ("site", self.site + {True: " (a cut)", False: " (not a cut)", None: ""}[self.is_cut]),
            ("baseline", self.baseline),
            ("f(x)", f"{float(self.output[sample]):.6g}"),
            ("f(baseline)", f"{float(self.baseline_output[sample]):.6g}"),
            ("difference", f"{float(self.difference[sample]):.6g}"),
            ("sum of values", f"{float(self.total[sample]):.6g}"),
            ("attribution error", f"{float(self.error[sample]):+.3g} ({share})"),
        ]
        if self.reference_output is not None and self.is_cut is False:
            lines.insert(5, ("f(x0)", f"{float(self.reference_output[sample]):.6g} (differs from f(baseline): the site is not a cut)"))
        if self.error_spread is not None:
            lines.append(("spread of the error", f"{float(self.error_spread[sample]):.3g} over {self.settings.get('draws')} draws"))
        if len(self.budget) > 1:
            lines += [(f"  from {name}", f"{float(part[sample]):+.3g}") for name, part in self.budget.items()]
        if self.baseline_kl is not None:
            lines.append(("KL at the baseline", f"{float(self.baseline_kl[sample]):.3g} nats from uniform"))
        if self.raw_error is not None:
            lines.append((f"error before {self.closure}", f"{float(self.raw_error[sample]):+.3g}"))
        if self.local_error is not None:
            lines.append(("local error", f"{float(self.local_error[sample]):.3g}"))
        if self.map_error is not None and not bool(self.map_error[sample].isnan()):
            lines.append(("map error", f"{float(self.map_error[sample]):.3g}"))
        lines.append(("gradient evaluations", str(int(self.evaluations[sample]))))
        if self.stopped:
            lines.append(("stopped by", self.stopped[sample]))
        return lines

    def __repr__(self) -> str:
        size = len(self.output)
        head = f"Attribution by {self.method}, {' and '.join(f'{n} {tuple(p.shape)}' for n, p in self.parts.items())}"
        body = "\n".join(f"  {label:<22}{value}" for label, value in self.rows())
        more = f"\n  ... and {size - 1} more samples: .sample(i)" if size > 1 else ""
        return f"{head}\n{body}{more}"

    def _repr_html_(self) -> str:
        return records.as_html(f"Attribution by {self.method}", self.rows())


_PER_SAMPLE = (
    "output",
    "baseline_output",
    "reference_output",
    "local_error",
    "map_error",
    "raw_error",
    "baseline_kl",
    "error_spread",
    "evaluations",
)


def rounding(resolution: float, *outputs: Tensor) -> Tensor:
    """A few units in the last place of the largest of the outputs, per sample: what cannot be told apart."""
    largest = torch.stack([output.abs() for output in outputs]).amax(0)
    return _UNITS * resolution * largest
