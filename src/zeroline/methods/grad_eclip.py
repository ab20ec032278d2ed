"""Grad-ECLIP: the gradient at the last attention's output, channel by channel with the values, and a similarity for the attention.

Zhao, Wang, Zeng, Zhao & Chan 2024 ("Gradient-based Visual Explanation for Transformer-based CLIP", ICML), section 3: for the
row r that the embedding is read at (the class token, the end token), with ``w = dS/do_r`` before the output projection,
``map_j = ReLU(sum_c w_c v_jc lambda_j)`` where ``lambda_j`` is the cosine of q_r and k_j, heads side by side, brought to 0..1 over
the tokens shown. The loosened lambda stands in the place of the model's attention: it explains a model with that attention,
not the one that was given (Cui, Fan & Chen 2026, "Debunking Grad-ECLIP"); the record declares it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from zeroline.maths.eclip import channel_evidence
from zeroline.methods.readout_rows import Options, Read, explained
from zeroline.relevance import Relevance
from zeroline.target import TargetLike


def grad_eclip(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike | None = None,
    layers: int = 1,
    similarity: str = "query-key",
    heads: str = "model",
    relu: str = "sum",
    scale_over: str = "shown",
    grid: tuple[int, int] | None = None,
    prefix: int | None = None,
) -> Relevance:
    """Grad-ECLIP of every image and text that the target is read from, on the unmodified model; one forward and one backward pass.

    Args:
        model, inputs: as in ``zl.trace``; for a dual encoder a pair of image and text per sample. ``interpolate_pos_encoding=True``
            among the inputs is how Hugging Face's CLIP takes images of other sizes.
        target: None: each image against its own text (``zl.similarity()``); or any target.
        layers: the last layers, their evidence added up; of each the row that the residual carries on.
        similarity: what lambda compares: ``"query-key"`` (the paper); ``"projected"``, queries and keys sent through the output
            projection first, or ``"none"``, lambda = 1 (both in the published files).
        heads: ``"model"``; or ``"one"``: the gradient of a model whose heads are taken as one in these layers, softmax(q k^T / sqrt(C))
            over all channels, as the published files re-implement the last block. The record's f(x) is then that model's.
        relu: ``"sum"``: over the sum of the layers; ``"each"``: over each layer (published); ``"none"``.
        scale_over: lambda is brought to 0..1 over the tokens ``"shown"``, or over ``"all"`` but class and register tokens (the
            published text side: also tokens that the end token cannot see).
        grid, prefix: as in ``zl.attention_relevance``.

    Returns:
        A ``Relevance``: ``by_source`` per image and text (what the keys of those attentions stand for) [batch, tokens], non-negative,
        without a unit; zero for learned tokens and for the row's own token. ``substituted`` holds lambda. A row that pools (several
        tokens read) is summed over: our extension.

    Raises:
        As ``zl.attention_relevance``; UsageError for more layers than there are.
    """
    options = Options(layers, similarity, heads, relu, scale_over)
    words = "ones" if similarity == "none" else "loosened similarity (cosines of q and k brought to 0..1)"
    return explained(model, inputs, target, "grad_eclip", _evidence, options, settings=asdict(options), substitutes=words, grid=grid, prefix=prefix)


def _evidence(read: Read) -> Tensor:
    return channel_evidence(read.weight, read.value, read.loose)
