"""Which model was explained: its class, and a hash of its weights.

The hash is lazy (hashing a large model takes longer than a gradient) and cached until the weights change.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

T = TypeVar("T")


def model_class(model: nn.Module) -> str:
    """Dotted name of the model's class."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def weights_version(model: nn.Module) -> int:
    """A number that changes when a weight is replaced or written to (in place through ``.data`` it does not: PyTorch keeps no count)."""
    return hash(tuple((id(t), t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in (*model.parameters(), *model.buffers())))


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
            known.append(_hash(model))
        return known[0]

    return compute


class Memory(Generic[T]):
    """Facts about models that hold until a weight changes; a model that is gone takes its facts along."""

    def __init__(self) -> None:
        self._facts: WeakKeyDictionary[nn.Module, tuple[int, dict[object, T]]] = WeakKeyDictionary()

    def get(self, model: nn.Module, key: object) -> T | None:
        """The fact, or None where it is not known for the weights as they are."""
        version, facts = self._facts.get(model, (0, {}))
        return facts.get(key) if version == weights_version(model) else None

    def put(self, model: nn.Module, key: object, fact: T) -> None:
        """Keep a fact; those of other weights are forgotten."""
        version, facts = self._facts.get(model, (0, {}))
        current = weights_version(model)
        self._facts[model] = (current, {**(facts if version == current else {}), key: fact})


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the numbers depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("zeroline", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


_hashes: Memory[str] = Memory()


def _hash(model: nn.Module) -> str:
    cached = _hashes.get(model, "hash")
    if cached is not None:
        return cached
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8) if tensor.numel() else None
        if raw is not None:
            digest.update(memoryview(raw.numpy()))
    found = digest.hexdigest()[:16]
    _hashes.put(model, "hash", found)
    return found
