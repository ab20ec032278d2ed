"""What the model's own preprocessing does to pixels, read from where models keep it.

Holds a table of places to look: a timm ``pretrained_cfg``, open_clip's ``visual.preprocess_cfg``, and the ``preprocessor_config.json``
beside the weights of a Hugging Face model (its folder, or the local hub cache; nothing is downloaded).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import nn

from zeroline.baseline import Normalisation

FILE = "preprocessor_config.json"


_TOLD: ContextVar[tuple[nn.Module, Normalisation] | None] = ContextVar("_TOLD", default=None)


@contextmanager
def told(model: nn.Module, found: Normalisation | None) -> Iterator[None]:
    """Within the block the pixels of ``model`` are normalised as who prepares them says (a pipeline's processor), whatever its folder says."""
    before = _TOLD.set(_TOLD.get() if found is None else (model, found))
    try:
        yield
    finally:
        _TOLD.reset(before)


def of(model: nn.Module) -> Normalisation | None:
    """The normalisation of pixels in [0, 1] that ``model`` expects, or None where it does not say."""
    known = _TOLD.get()
    if known is not None and known[0] is model:
        return known[1]
    for look in (_timm, _open_clip, _hugging_face):
        found = look(model)
        if found is not None:
            return found
    return None


def _timm(model: nn.Module) -> Normalisation | None:
    return _of_dict(getattr(model, "pretrained_cfg", None))


def _open_clip(model: nn.Module) -> Normalisation | None:
    return _of_dict(getattr(getattr(model, "visual", None), "preprocess_cfg", None))


def _of_dict(config: Any) -> Normalisation | None:
    if not isinstance(config, dict) or "mean" not in config or "std" not in config:
        return None
    return Normalisation(tuple(config["mean"]), tuple(config["std"]))


def _hugging_face(model: nn.Module) -> Normalisation | None:
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    path = file_of(str(name)) if name else None
    return from_config(json.loads(path.read_text())) if path is not None else None


def from_config(config: dict[str, Any]) -> Normalisation:
    """Read ``do_normalize``, ``image_mean`` and ``image_std``.

    Pixels that are not rescaled to [0, 1] keep their 0..255 range: black is then still ``(0 - mean) / std``,
    and white is 255.
    """
    scale = 1.0 if config.get("do_rescale", True) else 255.0
    if not config.get("do_normalize", True):
        return Normalisation((0.0,) * 3, (1 / scale,) * 3)
    mean, std = _per_channel(config.get("image_mean"), 0.0), _per_channel(config.get("image_std"), 1.0)
    return Normalisation(tuple(m / scale for m in mean), tuple(s / scale for s in std))


def _per_channel(found: Any, usual: float) -> Sequence[float]:
    """A processor may hold one number for all channels, or none."""
    if isinstance(found, (int, float)):
        return (float(found),) * 3
    return found or (usual,) * 3


def file_of(name: str) -> Path | None:
    """The ``preprocessor_config.json`` of a Hugging Face folder or a hub name in the local cache, where there is one."""
    folder = Path(name) / FILE
    if folder.is_file():
        return folder
    try:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, FILE)
    except Exception:  # no hub library, or a name that is no repository: the model simply does not say
        return None
    return Path(cached) if isinstance(cached, str) else None
