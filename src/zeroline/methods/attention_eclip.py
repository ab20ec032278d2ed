"""Attention-ECLIP: the gradient of the last attention map, weighted. What Grad-ECLIP computes, in two quantities every attention has.

Cui, Fan & Chen 2026 ("Debunking Grad-ECLIP"), our reading: with the row r that the embedding is read at,
``map_j = ReLU(sum_h a_j dS/dA^h[r, j])``. ``a = lambda`` (weights="loosened") equals Grad-ECLIP for any model, since
``dS/dA^h[r, j] = sum over the channels c of head h of w_c v_jc``; ``a = A^h[r, j]``, the model's own attention (weights="attention"),
is the faithful form and substitutes nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from zeroline.errors import NotFoundError
from zeroline.maths.eclip import attention_evidence
from zeroline.methods.readout_rows import Options, Read, explained
from zeroline.relevance import Relevance
from zeroline.target import TargetLike

WEIGHTS = ("loosened", "attention")


def attention_eclip(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike | None = None,
    weights: str = "loosened",
    layers: int = 1,
    relu: str = "sum",
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
) -> Relevance:
    """Attention-ECLIP of every image and text that the target is read from; one forward and one backward pass, fused kernels on.

    Args:
        model, inputs, target, layers, relu, grid, prefix: as in ``zl.grad_eclip``.
        weights: ``"loosened"``: lambda of Grad-ECLIP, the same map; ``"attention"``: the model's own attention.

    Returns:
        A ``Relevance`` as ``zl.grad_eclip`` gives it; with ``weights="attention"`` nothing is substituted.

    Raises:
        As ``zl.grad_eclip``.
    """
    if weights not in WEIGHTS:
        raise NotFoundError.among("weights", str(weights), WEIGHTS)
    options = Options(layers=layers, relu=relu)
    loose = weights == "loosened"
    words = "loosened similarity (cosines of q and k brought to 0..1)" if loose else None
    evidence = _loosened if loose else _own
    settings = {**asdict(options), "weights": weights}
    return explained(model, inputs, target, "attention_eclip", evidence, options, settings=settings, substitutes=words, grid=grid, prefix=prefix)


def _loosened(read: Read) -> Tensor:
    return attention_evidence(read.gradient, read.loose[:, None])


def _own(read: Read) -> Tensor:
    return attention_evidence(read.gradient, read.attention * read.shown[:, None])
