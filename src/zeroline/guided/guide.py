"""External attention guidance: lay a guest of another class on a picture, and ask before and after.

Cui, Fan & Chen 2026 ("guided attention"), our reading: see ``zeroline.guidance``, which holds the record. Here the picture is composed and the
model asked: relevance for the host's class, the guest's, and the one less the other, on the picture as it was and as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import TargetError, ZerolineError
from zeroline.guidance import AFTER, BEFORE, Guidance
from zeroline.maths.compose import compose
from zeroline.methods.attention_relevance import attention_relevance
from zeroline.methods.attention_transfer import attention_transfer
from zeroline.model.ask import labels_of
from zeroline.model.inputs import Inputs
from zeroline.model.pictures import byte, picture, pixels_of, place_seen
from zeroline.model.state import untouched
from zeroline.target import class_scores, contrast, logit

Preprocess = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Guest:
    """What is laid on: pixels [3, h, w] in 0..1, the class that it is of, and its shape ``alpha`` [h, w] (None: all of it)."""

    pixels: Tensor
    label: int | str
    alpha: Tensor | None = None
    name: str = ""


def guide(
    model: nn.Module,
    image: Any,
    guest: Guest,
    *,
    preprocess: Preprocess,
    at: tuple[int, int],
    size: tuple[int, int] | int,
    opacity: float = 1.0,
    host: int | str = "top",
    correction: str = "positive",
    **options: Any,
) -> Guidance:
    """Relevance for host, guest and contrast, before and after a guest is laid on the picture.

    Args:
        model: an image classifier with attention.
        image: a PIL image. preprocess: a PIL image to the model's inputs, its own preprocessing.
        guest: pixels, class and shape.
        at, size: left and top, width and height of the guest in the picture's pixels (one number: a square). opacity: in 0..1.
        host: the host's class; default the model's answer before.
        correction, **options: as in ``zl.attention_relevance``.

    Returns:
        A ``Guidance``: maps before and after per target, how much relevance moved to the guest's place, what appeared on the host.

    Raises:
        InputError for a guest that is off the picture, TargetError where host and guest are one class; and as ``zl.attention_relevance``.
    """
    width, height = (size, size) if isinstance(size, int) else size
    before = pixels_of(image)
    after, where = compose(before, guest.pixels, at, (width, height), opacity, guest.alpha)
    pictures = {BEFORE: byte(before), AFTER: byte(after)}
    inputs = {when: preprocess(picture(p)) for when, p in pictures.items()}
    host_class = _class(model, inputs[BEFORE], host)
    guest_class = _class(model, inputs[BEFORE], guest.label)
    if host_class == guest_class:
        raise TargetError(f"host and guest are both class {host_class}; a guest is of another class")
    targets = {"host": logit(host_class), "guest": logit(guest_class), "contrast": contrast(host_class, guest_class)}
    members: dict[str, dict[str, Any]] = {name: {} for name in targets}
    own, probabilities = {}, {}
    for when, given in inputs.items():
        found = attention_relevance(model, given, target=targets, correction=correction, **options)
        for name in targets:
            members[name][when] = found[name]
        own[when] = _own(model, given, targets["host"])
        probabilities[when] = _probabilities(model, given, {"host": host_class, "guest": guest_class})
    settings = {"guest": guest.name or str(guest.label), "at": list(at), "size": [width, height], "opacity": opacity, "correction": correction}
    return Guidance(
        members,
        pictures,
        place_seen(preprocess, picture(byte(where.float().expand(3, -1, -1)))),
        probabilities,
        own,
        {**settings, "host": host_class, "guest_class": guest_class},
    )


def _own(model: nn.Module, inputs: Any, target: Any) -> Tensor:
    """The mean share of raw attention that stays a token's own, per layer; empty where the model has no stream of its own for it."""
    try:
        return attention_transfer(model, inputs, target=target).curve[:, 0].double().cpu()
    except ZerolineError:
        return torch.zeros(0, dtype=torch.float64)


def _class(model: nn.Module, inputs: Any, asked: int | str) -> int:
    """A class as a number."""
    found = logit(asked).resolve(_answer(model, inputs), labels_of(model)).indices
    assert found is not None
    return int(found[0, 0])


@torch.no_grad()
def _answer(model: nn.Module, inputs: Any) -> Any:
    with untouched(model), torch.no_grad():
        return Inputs.of(model, inputs).call(model)


def _probabilities(model: nn.Module, inputs: Any, classes: Mapping[str, int]) -> dict[str, float]:
    shares = class_scores(_answer(model, inputs)).double().softmax(-1)[0]
    return {name: float(shares[index]) for name, index in classes.items()}
