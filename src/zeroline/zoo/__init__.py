"""Small models with known ground truth, and the images to try them on. Everything here works without a network.

Holds ``load``, ``samples`` and ``preprocess``, and the table of models. The weights ship as safetensors with a
model card; ``zeroline.zoo.train`` makes them again from seeds.

>>> from zeroline import zoo
>>> model = zoo.load("digits-vit")
>>> first = zoo.samples("digits-vit")[0]
>>> model.config.id2label[int(model(**first.inputs).logits.argmax())], first.caption
('seven', 'a cyan seven')
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zeroline.errors import InputError, NotFoundError
from zeroline.zoo import digits_vit

if TYPE_CHECKING:
    from PIL.Image import Image

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """How to build one model, and what it says about itself."""

    build: Callable[[], Any]
    task: str


MODELS: dict[str, Entry] = {
    "digits-vit": Entry(digits_vit.build, "which digit is in the photograph? ViT, 4 layers, 8 x 8 patch tokens and a class token"),
}


@dataclass(frozen=True)
class Sample:
    """An image with the truth about it.

    ``inputs`` is what the model is called with (a batch of 1). Per object: ``labels`` classes, ``colours``,
    ``boxes`` (left, top, right, bottom) in pixels, ``masks`` bool [objects, 64, 64].
    """

    name: str
    image: Image
    inputs: dict[str, Tensor]
    labels: tuple[int, ...]
    colours: tuple[str, ...]
    boxes: tuple[tuple[int, int, int, int], ...]
    masks: Tensor
    caption: str


def load(name: str) -> Any:
    """The trained model, in evaluation mode, on the CPU, in float32."""
    from safetensors.torch import load_file

    model = _entry(name).build()
    folder = _HERE / "models" / name
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.config._name_or_path = str(folder)  # where preprocessor_config.json is, as for any Hugging Face folder
    return model.eval()


def samples(name: str) -> list[Sample]:
    """The images that ship with the package: 12 with one digit, then 12 with two."""
    from PIL import Image

    _entry(name)
    folder = _HERE / "samples"
    found = []
    for entry in json.loads((folder / "samples.json").read_text()):
        image = Image.open(folder / entry["image"]).convert("RGB")
        objects = entry["objects"]
        masks = [_pixels(Image.open(folder / thing["mask"]).convert("L"))[..., 0] > 127 for thing in objects]
        found.append(
            Sample(
                name=entry["name"],
                image=image,
                inputs=preprocess(name, image),
                labels=tuple(thing["digit"] for thing in objects),
                colours=tuple(thing["colour"] for thing in objects),
                boxes=tuple(tuple(thing["box"]) for thing in objects),
                masks=torch.stack(masks),
                caption=entry["caption"],
            )
        )
    return found


def preprocess(name: str, image: Image) -> dict[str, Tensor]:
    """A PIL image as the model's inputs: ``{"pixel_values": [1, 3, 64, 64]}``."""
    from PIL import Image as pil

    _entry(name)
    config = _preprocessor(name)
    size = (config["size"]["width"], config["size"]["height"])
    if not isinstance(image, pil.Image):
        raise InputError(f"preprocess takes a PIL image, not {type(image).__name__}")
    pixels = _pixels(image.convert("RGB").resize(size, pil.Resampling.BICUBIC)) / 255
    mean, std = torch.tensor(config["image_mean"]), torch.tensor(config["image_std"])
    return {"pixel_values": ((pixels - mean) / std).permute(2, 0, 1)[None].contiguous()}


def collate(chosen: list[Sample]) -> dict[str, Tensor]:
    """The inputs of several samples as one batch."""
    return {key: torch.cat([sample.inputs[key] for sample in chosen]) for key in chosen[0].inputs}


def _pixels(image: Image) -> Tensor:
    """float32 [height, width, channels] in 0..255."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, -1).float()


def _entry(name: str) -> Entry:
    if name not in MODELS:
        raise NotFoundError.among("zoo model", name, MODELS, "see `zeroline models`")
    return MODELS[name]


@cache
def _preprocessor(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((_HERE / "models" / name / "preprocessor_config.json").read_text())
    return loaded
