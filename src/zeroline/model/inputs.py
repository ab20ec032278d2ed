"""What a model is called with: one shape for tensors, tuples and dicts.

Holds ``Inputs``, the arguments of ``model(...)`` with their names, and the choice of rows: how a batch of other
samples, or the same sample many times, is made from them. It runs nothing.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import InputError, NotFoundError


@dataclass(frozen=True)
class Inputs:
    """Arguments by name; the first ``positional`` of them are passed by position."""

    named: Mapping[str, Any]
    positional: int
    batch: int

    @classmethod
    def of(cls, model: nn.Module, inputs: Any) -> Inputs:
        """A tensor, a tuple (positional arguments) or a mapping (keyword arguments) as ``Inputs``; what is one already stays."""
        if isinstance(inputs, Inputs):
            return inputs
        if isinstance(inputs, Tensor):
            inputs = (inputs,)
        if isinstance(inputs, Mapping):
            named, positional = dict(inputs), 0
        elif isinstance(inputs, (tuple, list)):
            named, positional = dict(zip(_parameters(model, len(inputs)), inputs)), len(inputs)
        else:
            raise InputError(f"inputs are a tensor, a tuple or a dict of them, not {type(inputs).__name__}")
        tensors = [value for value in named.values() if isinstance(value, Tensor)]
        if not tensors:
            raise InputError("the inputs hold no tensor")
        if any(t.ndim == 0 for t in tensors[:1]):
            raise InputError("the first input has no batch dimension; give [batch, ...]")
        _check_devices(model, named)
        lead = tensors[0]
        if is_dual_encoder(model):  # a sample is a picture; texts of another number are what every picture is compared with
            lead = next((tensor for tensor in tensors if tensor.is_floating_point() and tensor.ndim), lead)
        named = {name: _ordinary(value) for name, value in named.items()}
        if "use_cache" not in named and "use_cache" in inspect.signature(model.forward).parameters:
            named["use_cache"] = False  # a cache that grows from pass to pass would change the model's answer
        return cls(named, positional, lead.shape[0])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The arguments that are tensors."""
        return {name: value for name, value in self.named.items() if isinstance(value, Tensor)}

    def floating(self) -> dict[str, Tensor]:
        """The inputs that a path can move along: floating point, one row per sample."""
        return {n: t for n, t in self.tensors.items() if t.is_floating_point() and t.ndim and t.shape[0] == self.batch}

    def ids(self) -> dict[str, Tensor]:
        """The integer inputs [batch, ...]: token ids, masks, positions."""
        return {n: t for n, t in self.tensors.items() if not t.is_floating_point() and t.ndim and t.shape[0] == self.batch}

    def with_values(self, values: Mapping[str, Any]) -> Inputs:
        """The same call with some arguments replaced."""
        return replace(self, named={**self.named, **values})

    def rows(self, samples: Tensor) -> Inputs:
        """The call for ``samples`` (indices into the batch, with repeats): [rows, ...] where it was [batch, ...]."""
        if _is_identity(samples, self.batch):
            return self

        def pick(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == self.batch:
                return value.index_select(0, samples.to(value.device))
            return value

        return Inputs({name: pick(value) for name, value in self.named.items()}, self.positional, len(samples))

    @property
    def repeatable(self) -> bool:
        """Can rows be chosen? Not where an argument hides a batch inside an object (a key-value cache)."""
        plain = (Tensor, bool, int, float, str, type(None), torch.dtype)
        return all(isinstance(value, plain) for value in self.named.values())

    def call(self, model: nn.Module) -> Any:
        """``model(...)``. Objects that a forward pass may change (caches) are copied first."""
        values = [v if isinstance(v, Tensor) else copy.deepcopy(v) for v in self.named.values()]
        names = list(self.named)
        keywords = dict(zip(names[self.positional :], values[self.positional :]))
        return model(*values[: self.positional], **keywords)

    def only_floating(self, asked: str | None = None) -> str:
        """The name of the floating-point input that is meant; an error where there is none, or a choice."""
        possible = self.floating()
        if asked is not None:
            if asked in possible:
                return asked
            if asked in self.tensors:
                found = self.tensors[asked]
                kind = "integers" if not found.is_floating_point() else f"a tensor of shape {tuple(found.shape)}, not one row per sample"
                hint = f"; use zl.site.embedding({asked!r})" if not found.is_floating_point() else ""
                raise InputError(f"input {asked!r} holds {kind} ({found.dtype}) and cannot be a site{hint}")
            raise NotFoundError.among("input", asked, self.tensors)
        if len(possible) == 1:
            return next(iter(possible))
        if not possible:
            ids = ", ".join(self.ids()) or "none"
            raise InputError(f"the model has no floating-point input to attribute to (integer inputs: {ids}); use zl.site.embedding(name)")
        choices = ", ".join(f"input:{name}" for name in possible)
        raise InputError(f"the model has {len(possible)} floating-point inputs; name one ({choices}) or join them with zl.site.joint")


def is_dual_encoder(model: nn.Module) -> bool:
    """Does the model compare pictures with texts (CLIP, SigLIP)? Its scores have a row per picture and a column per text."""
    return isinstance(getattr(model, "logit_scale", None), Tensor)


def placed(model: nn.Module, inputs: Any) -> Any:
    """The inputs on the model's device, real numbers in its dtype."""
    like = next(model.parameters(), torch.zeros(()))

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(like.device, like.dtype) if value.is_floating_point() else value.to(like.device)

    return {name: place(value) for name, value in inputs.items()} if isinstance(inputs, Mapping) else place(inputs)


def _parameters(model: nn.Module, count: int) -> list[str]:
    """Names of the first ``count`` positional parameters of ``forward``."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds]
    return (names + [f"arg{i}" for i in range(len(names), count)])[:count]


def _check_devices(model: nn.Module, named: Mapping[str, Any]) -> None:
    home = next((p.device for p in model.parameters()), None)
    for name, value in named.items():
        if isinstance(value, Tensor) and home is not None and value.device != home:
            raise InputError(f"input {name!r} is on {value.device}, the model on {home}; move one of them with .to(...)")


def _ordinary(value: Any) -> Any:
    """A tensor that autograd can work with: not an inference tensor, not part of the caller's graph."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()


def _is_identity(samples: Tensor, batch: int) -> bool:
    return len(samples) == batch and bool((samples == torch.arange(batch, device=samples.device)).all())
