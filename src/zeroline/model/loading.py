"""Models from elsewhere: a Hugging Face id or folder, a timm name.

Holds ``Loaded`` (a model with its preprocessing and labels) and one loader per source. Nothing is unpickled and no
remote code runs unless asked by flag. The zoo has its own loader; the command line picks one by scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zeroline.errors import LoadError, NotFoundError


@dataclass(frozen=True)
class Loaded:
    """A model ready to be explained: ``preprocess(PIL image)`` gives its inputs."""

    name: str
    model: nn.Module
    preprocess: Callable[[Any], Mapping[str, Any] | torch.Tensor]
    labels: Mapping[str, int]


def from_hub(name: str, *, trust_remote_code: bool = False) -> Loaded:
    """An image classifier from the Hugging Face hub, its local cache, or a folder."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    if name.startswith((".", "/", "~")):
        name = str(Path(name).expanduser())
        if not (Path(name) / "config.json").is_file():
            raise LoadError(f"no model folder {name!r}: it has no config.json")
    try:
        options = {"trust_remote_code": trust_remote_code}
        model = AutoModelForImageClassification.from_pretrained(name, weights_only=True, **options).eval()
        processor = AutoImageProcessor.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise LoadError(f"cannot load {name!r} as an image classifier: {reason}") from problem
    labels = {str(label): int(index) for index, label in model.config.id2label.items()}
    return Loaded(name, model, lambda image: dict(processor(images=image, return_tensors="pt")), labels)


def from_timm(name: str) -> Loaded:
    """A timm model with its pretrained weights and its own evaluation transform."""
    try:
        import timm
        from timm.data import create_transform, resolve_model_data_config
    except (ImportError, RuntimeError) as problem:
        raise LoadError(f"timm cannot be imported ({problem}); install it: pip install 'zeroline[timm]'") from problem
    if not timm.is_model(name):
        raise NotFoundError.among("timm model", name, timm.list_models())
    try:
        model = timm.create_model(name, pretrained=True).eval()
    except Exception as problem:  # timm passes on whatever its download raised
        raise LoadError(f"cannot load the weights of timm model {name!r}: {str(problem).splitlines()[0]}") from problem
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    labels = (getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ()
    return Loaded(name, model, lambda image: transform(image.convert("RGB"))[None], {str(label): i for i, label in enumerate(labels)})
