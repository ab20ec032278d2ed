"""Looking into a forward pass, and changing one, by hand: the two tools that ``ask`` is made of, for users.

Holds ``capture`` (features and gradients at sites) and ``replaced`` (the do-operator). The model is left as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import SiteError
from zeroline.model.ask import labels_of
from zeroline.model.inputs import Inputs
from zeroline.model.places import resolve, run
from zeroline.model.question import checked, differentiate
from zeroline.model.state import untouched
from zeroline.model.targets import target_of
from zeroline.site import SiteLike, as_site
from zeroline.target import TargetLike


@dataclass(frozen=True)
class Captured:
    """Tensors by site, and the model's output. ``gradients`` is empty unless a target was given."""

    features: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    output: Any


def capture(model: nn.Module, inputs: Any, site: SiteLike, *, target: TargetLike | None = None) -> Captured:
    """The features z at a site (or a joint site) in one forward pass and, with a target, df/dz.

    Gradients are those of the sum of the target over the batch, so each sample's own where samples do not mix.
    Raises as ``zl.gradient_x_input``.
    """
    with untouched(model):
        wanted = Inputs.of(model, inputs)
        places = resolve(model, wanted, as_site(site))
        points: dict[int, Tensor] = {}

        def keep(i: int, tensor: Tensor) -> Tensor:
            points[i] = tensor.detach().clone().requires_grad_(target is not None)
            return points[i].clone()

        with torch.set_grad_enabled(target is not None):
            output = run(model, wanted, places, keep)
        ordered = tuple(points[i] for i in range(len(places)))
        names = [str(place) for place in places]
        gradients: tuple[Tensor, ...] = ()
        if target is not None:
            everyone = torch.arange(wanted.batch)
            resolved = target_of(model, wanted, target).resolve(output, labels_of(model))
            gradients, _ = differentiate(checked(resolved.read(output, everyone), everyone, None), ordered)
        return Captured(dict(zip(names, (p.detach() for p in ordered))), dict(zip(names, gradients)), output)


def replaced(model: nn.Module, inputs: Any, features: Mapping[str, Tensor]) -> Any:
    """The model's output on ``inputs`` with the tensor at each site replaced: ``f(do(z := z0))`` before the target.

    ``features`` maps the spelling of a site to a tensor of the same shape. Everything else in the pass comes as it
    comes. Raises SiteError where a shape differs or a site is not reached.
    """
    with untouched(model), torch.no_grad():
        wanted = Inputs.of(model, inputs)
        places = resolve(model, wanted, as_site(" + ".join(features)))
        given = list(features.values())

        def put(i: int, tensor: Tensor) -> Tensor:
            if given[i].shape != tensor.shape:
                raise SiteError(f"a tensor of shape {tuple(given[i].shape)} is given for {str(places[i])!r}, which has {tuple(tensor.shape)}")
            return given[i].to(tensor).clone()

        return run(model, wanted, places, put)
