"""Which model was explained: its class, and a hash of its weights.

The hash is lazy (hashing a large model takes longer than a gradient) and cached until the weights change.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

_cache: WeakKeyDictionary[nn.Module, tuple[int, str]] = WeakKeyDictionary()


def model_class(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


def weights_version(model: nn.Module) -> int:
    """A number that changes when a weight is written to or replaced."""
    return hash(tuple((id(t), t._version) for t in (*model.parameters(), *model.buffers()) if not t.is_inference()))


def weights_hash(model: nn.Module) -> Callable[[], str]:
    """A function that gives the first 16 hex digits of the SHA-256 of the weights as they are now.

    The record keeps no reference to the model. If the weights change, or the model is gone, before the hash
    is asked for, the answer says so: ``"unknown: ..."``.
    """
    there, then = ref(model), weights_version(model)
    known: list[str] = []

    def compute() -> str:
        if not known:
            model = there()
            if model is None:
                return "unknown: the model is gone"
            if weights_version(model) != then:
                return "unknown: the weights have changed since"
            known.append(_hash(model, then))
        return known[0]

    return compute


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the numbers depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("zeroline", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hash(model: nn.Module, current: int) -> str:
    cached = _cache.get(model)
    if cached is not None and cached[0] == current:
        return cached[1]
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8) if tensor.numel() else None
        if raw is not None:
            digest.update(memoryview(raw.numpy()))
    _cache[model] = (current, digest.hexdigest()[:16])
    return _cache[model][1]
