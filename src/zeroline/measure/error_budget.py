"""Where an attribution error comes from: each change that a method makes to the exact sum, one at a time.

Holds ``error_budget`` and its record. A method knows what it changes and in which order (``Attribution.budget``); here it is asked by
name, and its parts are laid beside the error that they add up to. Our reading of Cui & Fan 2026 ("The Neglected Baseline"), who
judge methods by the attribution error: the budget says which of their flaws it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zeroline.attribution import Attribution
from zeroline.baseline import BaselineLike
from zeroline.methods import METHODS, require_options
from zeroline.site import SiteLike
from zeroline.target import TargetLike


@dataclass(frozen=True, eq=False)
class ErrorBudget:
    """``parts`` name -> [batch], float64, in the order in which the changes are made; they add up to ``error`` [batch].

    =====================  ==================================================================================
    truncation             the first (second) order expansion instead of the function: Taylor, the CAM family
    pooling                the gradient replaced by its mean over positions
    smoothing              the gradient blurred over the grid
    rectification          negative gradients, then negative positions, set to zero
    normalisation          values divided by the largest of the map
    quadrature             finitely many nodes along the path: integrated gradients
    discrete_gradient      the error shared out by a closure (minus what was left)
    rounding               of means over the draws of a distribution to the features' dtype
    unaccounted            a method that does not say: all of its error
    =====================  ==================================================================================

    ``reference_gap`` = f(x0) - f(do(z := z0)) is no part of the sum: it is what a delta against f(x0) would have added.
    """

    attribution: Attribution

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """What each change brought, [batch] each."""
        return self.attribution.budget or {"unaccounted": self.error}

    @property
    def error(self) -> Tensor:
        """The attribution error that the parts add up to, [batch]."""
        return self.attribution.error

    @property
    def difference(self) -> Tensor:
        """f(x) - f(do(z := z0)), [batch]."""
        return self.attribution.difference

    @property
    def reference_gap(self) -> Tensor | None:
        """f(x0) - f(do(z := z0)), [batch]; None where the baseline is no input."""
        return self.attribution.reference_gap

    def rows(self, sample: int = 0) -> list[tuple[str, str, str]]:
        """(cause, part, share of the difference) of one sample, the error last."""
        scale = float(self.difference[sample].abs())
        found = [*self.parts.items(), ("attribution error", self.error)]
        if self.reference_gap is not None and self.attribution.is_cut is False:
            found.append(("no part of it: f(x0) - f(do)", self.reference_gap))
        known = bool(self.attribution.is_defined[sample])
        return [(name, f"{float(p[sample]):+.4g}", f"{float(p[sample]) / scale:+.1%}" if known else "undefined") for name, p in found]

    def to_dict(self) -> dict[str, Any]:
        """The attribution's record as JSON types, its budget included."""
        return self.attribution.to_dict()

    def save(self, path: str | Path) -> None:
        """Write the attribution, which holds the budget, to one safetensors file."""
        self.attribution.save(path)

    @classmethod
    def load(cls, path: str | Path) -> ErrorBudget:
        """Read what ``save`` wrote, or any saved attribution. Raises LoadError where the file is not one."""
        return cls(Attribution.load(path))

    def __repr__(self) -> str:
        one = self.attribution
        head = f"Error budget of {one.method} at {one.site} from {one.baseline}: {one.target[0]}, difference {float(one.difference[0]):.6g}"
        return "\n".join([head, *(f"  {name:<30}{part:>12}  {share}" for name, part, share in self.rows())])


def error_budget(
    method_name: str, model: nn.Module, inputs: Any, *, target: TargetLike, site: SiteLike = None, baseline: BaselineLike, **options: Any
) -> ErrorBudget:
    """A method's attribution error, split by what brought it.

    Args:
        method_name: a name of ``zl.METHODS``.
        model, inputs, target, site, baseline: as in ``zl.gradient_x_input``.
        **options: the method's own.

    Returns:
        An ``ErrorBudget``: ``parts`` in the stated order, which add up to ``error``, in units of the target. With a distribution of
        baselines, means over its draws.

    Raises:
        NotFoundError: no method of that name, or no such option of it.
        And as the method.
    """
    require_options(method_name, options)
    return ErrorBudget(METHODS[method_name](model, inputs, target=target, site=site, baseline=baseline, **options))
