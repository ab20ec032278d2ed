"""A target on a pass that the tracer follows: its value, and its gradient at the attentions' outputs, one backward pass for all of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from zeroline.errors import InputError, NonFiniteError, TargetError
from zeroline.model.ask import labels_of
from zeroline.model.inputs import is_dual_encoder
from zeroline.model.maps import name_of
from zeroline.model.question import checked
from zeroline.model.trace import Followed
from zeroline.target import Target


def value_of(pass_: Followed, target: Target) -> tuple[Tensor, Target]:
    """f(x) [batch] with its graph, and the target resolved.

    Raises TargetError where no gradient leads back from it, InputError where a dual encoder was given other than pairs.
    """
    everyone = torch.arange(pass_.inputs.batch)
    resolved = target.resolve(pass_.recording.output, labels_of(pass_.model))
    value = checked(resolved.read(pass_.recording.output, everyone), everyone, None)
    _check_pairs(pass_)
    if not value.requires_grad:
        raise TargetError("the target needs no gradient: it is detached, or read from integers; give one that the model computes")
    return value, resolved


def _check_pairs(pass_: Followed) -> None:
    """Relevance is of samples, and of a dual encoder a sample is a picture with a text: several texts for each would have no sample."""
    batch = pass_.inputs.batch
    odd = {name: len(tensor) for name, tensor in pass_.inputs.tensors.items() if tensor.ndim and len(tensor) not in (1, batch)}
    if odd and is_dual_encoder(pass_.model):
        name, rows = next(iter(odd.items()))
        raise InputError(f"input {name!r} has {rows} rows for {batch} of the picture; through attentions each picture is asked about one text")


def output_gradients(pass_: Followed, value: Tensor, calls: Iterable[int], *, keep: bool = False) -> dict[int, Tensor]:
    """df/do of each call, in the shape of its output; zeros where the target does not depend on it.

    ``value`` is the target [batch], its graph alive; the graph goes with the pass unless ``keep``. Raises TargetError where
    the backward pass fails and NonFiniteError where a gradient is not finite.
    """
    wanted = sorted(set(calls))
    outputs = [pass_.graph.calls[i].output for i in wanted]
    edges = [output.edge for output in outputs if output.edge is not None]
    try:
        found = iter(torch.autograd.grad(value.sum(), edges, allow_unused=True, retain_graph=keep) if edges else ())
    except RuntimeError as problem:
        if isinstance(problem, torch.OutOfMemoryError):
            raise
        raise TargetError(f"the backward pass fails: {str(problem).splitlines()[0]}") from problem
    gradients = {}
    for i, output in zip(wanted, outputs):
        gradient = next(found) if output.edge is not None else None
        if gradient is not None and not bool(gradient.isfinite().all()):
            raise NonFiniteError(f"the gradient of the target is not finite at the output of {name_of(pass_.graph.calls[i])}")
        gradients[i] = torch.zeros_like(output.tensor) if gradient is None else gradient
    return gradients
