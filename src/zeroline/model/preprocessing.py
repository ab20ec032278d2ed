"""The preprocessing that a model came with, found from the model alone: a Hugging Face folder or hub name, a timm configuration.

The command line has it from the loader; this is for Python, where a model is often all that is passed on. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from zeroline.errors import InputError
from zeroline.model.normalisation import FILE, file_of

HINT = "give preprocess=, a function from a PIL image to the model's inputs"


def preprocessing_of(model: nn.Module) -> Callable[[Any], Any]:
    """A PIL image to the model's inputs. Raises InputError where the model does not say, or what it says cannot be loaded."""
    if isinstance(getattr(model, "pretrained_cfg", None), dict):
        from timm.data import create_transform, resolve_model_data_config

        transform = create_transform(**resolve_model_data_config(model), is_training=False)
        return lambda image: transform(image.convert("RGB"))[None]
    name = str(getattr(getattr(model, "config", None), "_name_or_path", ""))
    found = file_of(name) if name else None
    if found is None:
        raise InputError(
            f"the model ({type(model).__name__}) does not say how pictures are prepared for it: no {FILE}, no timm configuration; {HINT}"
        )
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(found.parent, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as problem:
        raise InputError(f"the preprocessing in {str(found)!r} cannot be loaded ({str(problem).splitlines()[0]}); {HINT}") from problem
    return lambda image: dict(processor(images=image, return_tensors="pt"))
