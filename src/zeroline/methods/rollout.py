"""Attention rollout (Abnar & Zuidema 2020): attention maps multiplied along the layers, identity for the residual.

``R_h = I + sum_i A_i R_{v_i}``: the graph rule without a correction. Their section 3.1 averages each layer with the identity,
``0.5 A + 0.5 I``, and renormalises; we keep ``A + I``, which differs by a factor per layer and by no ranking of tokens
within a layer, so that rollout and ``attention_relevance`` are one rule. It looks at no target but for where to read.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from zeroline.methods.attention_relevance import attention_relevance
from zeroline.target import TargetLike


def rollout(model: nn.Module, inputs: Any, *, target: TargetLike, **options: Any) -> Any:
    """``attention_relevance`` with ``correction="none"``: non-negative, and the same for every target read at one place.

    Takes the other options of ``attention_relevance``, returns and raises as it does. Rows of R_h add up to 2^L for L layers of
    self-attention on one stream.
    """
    return attention_relevance(model, inputs, target=target, correction="none", **options)
