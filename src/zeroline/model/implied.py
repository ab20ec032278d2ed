"""The implied model: the original with the weights that an explanation puts in the place of its attention, run through the tracer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import InputError, NotFoundError
from zeroline.model.capture import Seen, watched
from zeroline.model.inputs import Inputs
from zeroline.model.maps import name_of, with_rows
from zeroline.model.state import untouched
from zeroline.relevance import Substitution

WAYS = ("raw", "sum to 1")


@torch.no_grad()
def implied_output(model: nn.Module, inputs: Any, substituted: Sequence[Substitution], way: str = "raw") -> Any:
    """What the model answers with the substituted weights in place: ``o[row] = sum_j weights_j v_j`` for every head.

    ``way``: ``"raw"``, the weights as they are, or ``"sum to 1"``, divided by their sum (all-zero weights stay zero). Everything else
    in the pass comes as it comes. Raises NotFoundError for a call that the pass does not have, InputError for weights that do not fit it.
    """
    if way not in WAYS:
        raise NotFoundError.among("way to put weights in place", way, WAYS)
    waiting = {one.call: one for one in substituted}
    with untouched(model), torch.no_grad():
        wanted = Inputs.of(model, inputs)

        def put(seen: Seen, output: Tensor) -> Tensor:
            one = waiting.pop(name_of(seen), None)
            if one is None:
                return output
            weights, device = one.weights.to(output.device), output.device
            if way == "sum to 1":
                weights = weights / weights.sum(1, keepdim=True).masked_fill(weights.sum(1, keepdim=True) == 0, 1)
            if weights.shape[1] != seen.value.shape[-2]:
                raise InputError(f"{weights.shape[1]} weights are to be put into {one.call}, which has {seen.value.shape[-2]} keys")
            return with_rows(seen, output, one.group.to(device), one.row.to(device), weights, wanted.batch)

        with watched(model, wanted, graph=False, replace_output=put) as recording:
            answer = recording.output
    if waiting:
        raise NotFoundError(f"the pass has no attention call {', '.join(waiting)} to put weights into")
    return answer
