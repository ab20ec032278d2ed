"""The arithmetic of Grad-ECLIP and Attention-ECLIP, for rows of one attention; pure tensors.

Shapes: n rows that a target reads, K keys, H heads, D channels per head, C = H D channels of all heads side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def loosened(query: Tensor, key: Tensor, counted: Tensor) -> Tensor:
    """lambda [n, K]: cosines of a row's query [n, C] with the keys [n, K, C], brought to 0..1 over the keys that are counted.

    ``counted`` is bool [n, K]; other keys get 0. Where all cosines are equal lambda is 1.

    >>> loosened(torch.tensor([[1.0, 0.0]]), torch.tensor([[[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]]]), torch.ones(1, 3, dtype=torch.bool)).tolist()
    [[1.0, 0.5, 0.0]]
    """
    cosine = (normalize(query, dim=-1)[:, None] * normalize(key, dim=-1)).sum(-1)
    high = cosine.masked_fill(~counted, -torch.inf).amax(1, keepdim=True)
    low = cosine.masked_fill(~counted, torch.inf).amin(1, keepdim=True)
    spread = high - low
    scaled = torch.where(spread > 0, (cosine - low) / spread.masked_fill(spread <= 0, 1), torch.ones_like(cosine))
    return scaled.masked_fill(~counted, 0)


def channel_evidence(weight: Tensor, value: Tensor, loose: Tensor) -> Tensor:
    """Grad-ECLIP before its ReLU: ``lambda_j sum_c w_c v_jc`` [n, K] from w [n, C], v [n, K, C]."""
    return torch.einsum("nc,nkc,nk->nk", weight, value, loose)


def attention_evidence(gradient: Tensor, weights: Tensor) -> Tensor:
    """Attention-ECLIP before its ReLU: ``sum_h a^h_j dS/dA^h_j`` [n, K] from dS/dA [n, H, K] and a [n, H, K] or [n, 1, K]."""
    return (gradient * weights).sum(1)
