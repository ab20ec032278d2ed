"""Every correction of the attention for one target, complete and incomplete: one trace, one backward pass per way.

Holds ``corrections``; the record is ``zeroline.corrected``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zeroline.corrected import Corrections
from zeroline.errors import InputError, NotFoundError
from zeroline.methods.attention_relevance import COVERAGES, Guide, attention_relevance
from zeroline.target import TargetLike

CHANGES = ("positive", "absolute", "negative", "signed")


def corrections(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    mask: Tensor | None = None,
    source: str | None = None,
    guide: Guide | None = None,
    **options: Any,
) -> Corrections:
    """Positive, absolute, negative and signed attention relevance, with complete and incomplete coverage.

    Args:
        model, inputs, target, guide: as in ``zl.attention_relevance``; **options: its others, but correction and coverage.
        mask: where the object is, bool [batch, height, width] (or [height, width] for a batch of 1), as the model sees the image.
        source: the stream whose maps are compared; default the one on a grid, or the only one.

    Returns:
        A ``Corrections``: eight ``Relevance`` records; with a mask the share of positive relevance inside the object, whether the largest
        lies on it, and how much of the object the fewest tokens cover that hold half of the mass; Spearman's rho between all maps.

    Raises:
        NotFoundError for a source that does not exist, InputError for a mask of another shape; and as ``zl.attention_relevance``.
    """
    members = {
        f"{change}, {coverage}": attention_relevance(model, inputs, target=target, correction=change, coverage=coverage, guide=guide, **options)
        for coverage in COVERAGES
        for change in CHANGES
    }
    first = next(iter(members.values()))
    if source is not None and source not in first.by_source:
        raise NotFoundError.among("stream", source, first.by_source)
    gridded = [name for name, lie in first.tokens.items() if lie.grid]
    stream = source or (gridded[0] if len(gridded) == 1 else next(iter(first.by_source)))
    if mask is not None:
        mask = mask[None] if mask.ndim == 2 else mask
        if mask.ndim != 3 or len(mask) != len(first.output):
            raise InputError(f"a mask [batch, height, width] is needed for {len(first.output)} samples; found {tuple(mask.shape)}")
        if first.tokens[stream].grid is None:
            raise InputError(f"a mask was given, and {stream!r} lies on no grid; give grid=(rows, columns)")
    return Corrections(members, stream, mask)
