"""Two encoders as one model: for pairs of towers that come without a model around them.

Holds ``DualEncoder``, whose forward pass calls the two as they are and gives their embeddings under the names that CLIP uses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import InputError, UsageError

Encoder = Callable[..., Any]


class DualEncoder(nn.Module):
    """``forward(image, text) -> {"image_embeds": [batch, dim], "text_embeds": [batch, dim]}``.

    ``image`` and ``text`` are modules, or bound methods of one (``clip.encode_image``), or functions; each takes one argument, the
    text encoder also an ``attention_mask`` by name where one is given. Modules that a function uses are given in
    ``modules``, so that they can be followed and frozen. Embeddings are as the encoders give them, not normalised; of an output
    with several fields, ``pooler_output`` or the one of the side's name is taken.

    >>> pair = DualEncoder(image=nn.Linear(4, 2), text=nn.EmbeddingBag(10, 2)).eval()
    >>> {name: tuple(e.shape) for name, e in pair(torch.zeros(3, 4), torch.zeros(3, 5, dtype=torch.long)).items()}
    {'image_embeds': (3, 2), 'text_embeds': (3, 2)}
    """

    def __init__(self, *, image: Encoder, text: Encoder, logit_scale: float | Tensor | None = None, modules: tuple[nn.Module, ...] = ()) -> None:
        super().__init__()
        owners = [module for encoder in (image, text) if (module := _owner(encoder)) is not None]
        self.towers = nn.ModuleList(dict.fromkeys([*owners, *modules]))
        self._image, self._text = ((image,), (text,))  # in tuples: a module among them is registered once, in towers
        if logit_scale is not None:
            self.register_buffer("logit_scale", torch.as_tensor(logit_scale).detach().clone())
        self.training = any(module.training for module in self.towers)  # of the pair alone: the towers keep their own mode

    def __deepcopy__(self, memo: dict[int, Any]) -> DualEncoder:
        """A copy with towers of its own. Functions cannot be copied with the modules that they call: UsageError."""
        if any(_owner(encoder) is None for (encoder,) in (self._image, self._text)):
            raise UsageError("a pair of functions cannot be copied (to shuffle its weights, say); make it of modules or of their bound methods")
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return copied

    def forward(self, image: Any = None, text: Any = None, attention_mask: Any = None) -> dict[str, Tensor]:
        found = {}
        if image is not None:
            found["image_embeds"] = _embedding(self._image[0](image), "image")
        if text is not None:
            more = {} if attention_mask is None else {"attention_mask": attention_mask}
            found["text_embeds"] = _embedding(self._text[0](text, **more), "text")
        return found


def _owner(encoder: Encoder) -> nn.Module | None:
    """The module that an encoder is, or is a method of."""
    owner = encoder if isinstance(encoder, nn.Module) else getattr(encoder, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _embedding(output: Any, side: str) -> Tensor:
    if isinstance(output, Mapping):
        names = (f"{side}_embeds", f"{side}_features", "pooler_output")
        output = next((output[name] for name in names if isinstance(output.get(name), Tensor)), output)
    if not isinstance(output, Tensor) or output.ndim != 2:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"the {side} encoder gave {found}; an embedding is a tensor [batch, dim]")
    return output
