"""Targets that need the model before they can be read: another text to compare an image with is embedded by the model itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import InputError, TargetError
from zeroline.model.inputs import Inputs, is_dual_encoder
from zeroline.model.state import untouched
from zeroline.similarity import TEXT, Other, SimilarityTarget, embeddings, with_embeddings
from zeroline.target import ClassTarget, Target, TargetLike, as_target


def target_of(model: nn.Module, inputs: Any, target: TargetLike) -> Target:
    """The target that a user's argument means, ready to be read: a similarity's other texts or images embedded.

    A forward pass for each of those that is given as inputs. Raises InputError where they do not fit the model's.
    """
    known = as_target(target)
    if isinstance(known, ClassTarget) and is_dual_encoder(model):
        _check_texts(Inputs.of(model, inputs))
    if not isinstance(known, SimilarityTarget):
        return known
    temperature = _temperature(model) if known.scale == "logit" else (1.0, 0.0)
    other, against = (None if given is None else embedded(model, inputs, given, _second(known)) for given in known.unknown)
    return with_embeddings(known, other, against, temperature)


def _check_texts(inputs: Inputs) -> None:
    """The classes of a dual encoder are its texts: as many texts as pictures would be pairs, and one of them no class."""
    if inputs.batch > 1 and inputs.ids():
        raise TargetError(
            f"a class was asked of {inputs.batch} pictures with {inputs.batch} texts, which are pairs: zl.similarity() asks each with its own;"
            " classes are texts of another number, or give one picture at a time"
        )


def embedded(model: nn.Module, inputs: Any, given: Other, side: str) -> Tensor:
    """Embeddings [rows, dim] that the model gives for a text (or image) of its own inputs; the other side stays as it is."""
    with untouched(model), torch.no_grad():
        wanted = Inputs.of(model, inputs)
        values: dict[str, Tensor] = dict(given) if isinstance(given, Mapping) else {} if given is None else {_id_input(wanted): given}
        possible = {**dict(wanted.named), **inspect.signature(model.forward).parameters}
        unknown = sorted(name for name in values if name not in possible)
        if unknown:
            raise InputError(f"{', '.join(unknown)} was given to be embedded; the model's inputs are {', '.join(wanted.named)}")
        values = {**_unmasked(wanted, values), **values}
        try:
            output = wanted.with_values(values).call(model)
        except (RuntimeError, ValueError, LookupError) as problem:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in values.items() if isinstance(value, Tensor))
            raise InputError(f"the model cannot embed {shapes}: {str(problem).splitlines()[0]}") from problem
    found = embeddings(output)[1 if side == TEXT else 0]
    if found is None:
        raise TargetError(f"the model gave no {side} embedding for {', '.join(values)}")
    return found.detach()


def _unmasked(inputs: Inputs, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of the sample's own ids, all open for other ids that come without one."""
    found = {}
    for name in (n for n in values if n in inputs.tensors and not values[n].is_floating_point()):
        for mask, tensor in inputs.tensors.items():
            if mask.endswith("mask") and mask not in values and tensor.shape == inputs.tensors[name].shape:
                found[mask] = torch.ones_like(values[name], dtype=tensor.dtype)
    return found


def _second(target: SimilarityTarget) -> str:
    return TEXT if target.side != TEXT else "image"


def _id_input(inputs: Inputs) -> str:
    ids = [name for name, tensor in inputs.tensors.items() if not tensor.is_floating_point() and not name.endswith("mask")]
    if len(ids) != 1:
        raise InputError(f"ids were given to be embedded, and the model has {len(ids)} inputs of ids ({', '.join(ids) or 'none'}); give a dict")
    return ids[0]


def _temperature(model: nn.Module) -> tuple[float, float]:
    """(exp(logit_scale), logit_bias) as CLIP and SigLIP keep them."""
    scale, bias = (getattr(model, name, None) for name in ("logit_scale", "logit_bias"))
    if not isinstance(scale, Tensor):
        raise TargetError("scale='logit' was asked, and the model has no logit_scale; use scale='cosine'")
    return float(scale.detach().double().exp()), float(bias.detach().double()) if isinstance(bias, Tensor) else 0.0
