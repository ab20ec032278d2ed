"""The linear layer that each attention's output goes through, as it is seen in the pass.

Holds ``Projections``, a mode beside the tracer's: it keeps what every linear layer was given, and finds the one that was given
an attention's output with its heads side by side. No names of modules are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zeroline.errors import TraceError
from zeroline.maths.attention import Maps


class Projections(TorchFunctionMode):
    """Entered around a pass; afterwards ``of`` an attention's output is (weight, bias)."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__name__", "") == "linear":
            named = {**dict(zip(("input", "weight", "bias"), args)), **given}
            self._seen.append((named["input"].detach(), named["weight"].detach(), named.get("bias")))
        return func(*args, **given)

    def of(self, output: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
        """The projection of a call's output [groups, heads, queries, width]. Raises TraceError where none took it as it is."""
        side_by_side = output.transpose(1, 2).flatten(2)
        ways = (side_by_side, side_by_side.transpose(0, 1))  # batch first, or tokens first
        for given, weight, bias in self._seen:
            fits = weight.shape[1] == side_by_side.shape[-1] and given.numel() == output.numel()
            if fits and any(torch.equal(given.flatten(), way.flatten()) for way in ways):
                return weight, None if bias is None else bias.detach()
        raise TraceError(f"no linear layer takes the output of {name} as it is; similarity='projected' needs one")


def projected(maps: Maps, factor: float, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries (times ``factor``) [groups, queries, channels] and keys [groups, keys, channels] sent through an output projection, as if
    they were outputs."""

    def through(part: Tensor) -> Tensor:
        return torch.nn.functional.linear(part.transpose(1, 2).flatten(2), weight, bias)

    return through(maps.query * factor), through(maps.key)
