"""Small models with known ground truth, and the images to try them on. Everything here works without a network.

Holds ``load``, ``preprocess`` and ``tokenizer``; ``samples``, ``test_set`` and ``scenes``; and the table of models. The weights ship
as safetensors with a model card; ``zeroline.zoo.train`` makes them again from seeds.

>>> from zeroline import zoo
>>> model = zoo.load("digits-vit")
>>> first = zoo.samples("digits-vit")[0]
>>> model.config.id2label[int(model(**first.inputs).logits.argmax())], first.caption
('seven', 'a cyan seven')
>>> clip = zoo.load("digits-clip")
>>> pairs = zoo.preprocess("digits-clip", first.image, text=["a cyan seven", "a red seven"])
>>> {name: tuple(value.shape) for name, value in pairs.items()}
{'input_ids': (2, 5), 'attention_mask': (2, 5), 'pixel_values': (2, 3, 64, 64)}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zeroline.errors import InputError, NotFoundError, UsageError
from zeroline.model.pictures import raw_pixels
from zeroline.model.words import tokens
from zeroline.zoo import digits_clip, digits_cnn, digits_detr, digits_vit, digits_vqa, questions
from zeroline.zoo.photo_digits import DIGITS, SIDE
from zeroline.zoo.questions import KINDS, Kind, Question

if TYPE_CHECKING:
    from PIL.Image import Image

_HERE = Path(__file__).parent
SHEET = 12  # images in a row of the test set's sheet


@dataclass(frozen=True)
class Entry:
    """How to build one model, and what it says about itself."""

    build: Callable[[], Any]
    task: str
    tokenizer: Callable[[], Any] | None = None
    see: Callable[[Tensor], dict[str, Tensor]] = lambda pixels: {"pixel_values": pixels}
    asks: bool = False  # is its text a question?

    @property
    def reads(self) -> tuple[str, ...]:
        """What its inputs are made from."""
        return ("image",) if self.tokenizer is None else ("text", "image")


def _eyes() -> Any:
    """digits-detr, whose convolutions give digits-vqa its regions."""
    return _loaded("digits-detr")


MODELS: dict[str, Entry] = {
    "digits-vit": Entry(digits_vit.build, "which digit is in the photograph? ViT, 4 layers, 8 x 8 patch tokens and a class token"),
    "digits-cnn": Entry(digits_cnn.build, "the same question: a ResNet, 3 stages, the control beside digits-vit"),
    "digits-detr": Entry(digits_detr.build, "which digits, and where? DETR, 2 encoder and 3 decoder layers, 5 queries that attend to the image"),
    "digits-clip": Entry(digits_clip.build, "which caption is true of the photograph? CLIP, 4 and 3 layers", digits_clip.tokenizer),
    "digits-vqa": Entry(
        digits_vqa.build,
        "what color is the seven? LXMERT, 2 language, 2 vision and 3 cross layers, 64 regions",
        digits_vqa.tokenizer,
        lambda pixels: digits_vqa.regions(_eyes(), pixels),
        asks=True,
    ),
}


@dataclass(frozen=True)
class Sample:
    """An image with the truth about it.

    ``inputs`` is what the model is called with (a batch of 1; where it reads text, the caption, or the ``question`` where it answers one, padded
    to the model's length). Per object: ``labels`` classes, ``colours``, ``boxes`` (left, top, right, bottom) in pixels, ``masks`` bool
    [objects, 64, 64].
    """

    name: str
    image: Image
    inputs: dict[str, Tensor]
    labels: tuple[int, ...]
    colours: tuple[str, ...]
    boxes: tuple[tuple[int, int, int, int], ...]
    masks: Tensor
    caption: str
    question: Question | None = None


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

    folder = _HERE / "samples"
    found: list[Sample] = []
    for entry in json.loads((folder / "samples.json").read_text()):
        image = Image.open(folder / entry["image"]).convert("RGB")
        objects = entry["objects"]
        masks = [raw_pixels(Image.open(folder / thing["mask"]).convert("L"))[..., 0] > 127 for thing in objects]
        number = len(found)
        found.append(_sample(name, entry["name"], image, objects, torch.stack(masks), entry["caption"], (number,), KINDS[number % len(KINDS)]))
    return found


def test_set(name: str) -> list[Sample]:
    """The labelled images that ship with the package: 120 with one digit each, every colour and digit twice."""
    from PIL import Image

    folder = _HERE / "test_set"
    entries = json.loads((folder / "test_set.json").read_text())
    sheet, masks = (Image.open(folder / f"{part}.png") for part in ("images", "masks"))
    found = []
    for number, thing in enumerate(entries):
        top, left = (SIDE * n for n in divmod(number, SHEET))
        place = (left, top, left + SIDE, top + SIDE)
        mask = raw_pixels(masks.crop(place).convert("L"))[..., 0] > 127
        caption = f"a {thing['colour']} {DIGITS[thing['digit']]}"
        kind = KINDS[number % len(KINDS)]
        found.append(_sample(name, f"{number:03d}", sheet.crop(place).convert("RGB"), [thing], mask[None], caption, (number,), kind))
    return found


def scenes(name: str, count: int, *, seed: int, objects: int = 1, kind: Kind | None = None) -> list[Sample]:
    """Fresh images of the test split, drawn from a seed; with a question each (of one ``kind``) for a model that answers some.

    Needs scikit-learn and scikit-image: ``pip install zeroline[zoo]``.
    """
    from PIL import Image

    from zeroline.zoo.photo_digits import PhotoDigits

    data = PhotoDigits("test", seed)
    found = []
    for number in range(count):
        scene = data.scene(objects)
        things = [{"digit": o.digit, "colour": o.colour, "box": o.box} for o in scene.objects]
        masks = torch.stack([torch.from_numpy(o.mask.copy()) for o in scene.objects])
        found.append(_sample(name, f"{number:04d}", Image.fromarray(scene.pixels), things, masks, scene.caption, (seed, number), kind))
    return found


def _sample(
    model: str, name: str, image: Image, objects: list[dict[str, Any]], masks: Tensor, caption: str, seed: tuple[int, ...], kind: Kind | None
) -> Sample:
    question = None
    if _entry(model).asks:
        question = questions.asked([questions.Named(thing["digit"], thing["colour"]) for thing in objects], np.random.default_rng(seed), kind)
    text = question.text if question is not None else caption if "text" in _entry(model).reads else None
    return Sample(
        name=name,
        image=image,
        inputs=preprocess(model, image, text=text, pad=True),
        labels=tuple(thing["digit"] for thing in objects),
        colours=tuple(thing["colour"] for thing in objects),
        boxes=tuple(tuple(thing["box"]) for thing in objects),
        masks=masks,
        caption=caption,
        question=question,
    )


def tokenizer(name: str) -> Any:
    """The Hugging Face tokenizer of a model that reads words."""
    entry = _entry(name)
    if entry.tokenizer is None:
        raise UsageError(f"zoo model {name!r} reads no text")
    return entry.tokenizer()


def preprocess(name: str, image: Image | None = None, text: str | Sequence[str] | None = None, *, pad: bool = False) -> dict[str, Tensor]:
    """An image, a text or both as the model's inputs: ``pixel_values`` [batch, 3, 64, 64], ``input_ids`` [batch, tokens] and its mask.

    For digits-vqa the image becomes ``visual_feats`` [batch, 64, 256] and ``visual_pos`` [batch, 64, 4], through digits-detr. Several texts make a
    batch of pairs, each with the image. ``pad`` brings texts to the model's length, so that batches can be joined.
    Raises InputError for what is no image, an empty text or one that is too long.
    """
    entry = _entry(name)
    if text is not None and entry.tokenizer is None:
        raise UsageError(f"zoo model {name!r} reads no text")
    if not text and text != "" and image is None:
        raise InputError(f"neither an image nor a text was given; {name!r} reads {' and '.join(entry.reads)}")
    texts = [text] if isinstance(text, str) else list(text or ())
    inputs = dict(tokens(tokenizer(name), texts, pad=pad)) if texts else {}
    if image is not None:
        inputs |= entry.see(_picture(name, image).repeat(max(len(texts), 1), 1, 1, 1))
    return inputs


def _picture(name: str, image: Any) -> Tensor:
    """[1, 3, 64, 64]."""
    from PIL import Image

    config = _preprocessor(name)
    size = (config["size"]["width"], config["size"]["height"])
    if not isinstance(image, Image.Image):
        raise InputError(f"preprocess takes a PIL image, not {type(image).__name__}")
    pixels = raw_pixels(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)) / 255
    mean, std = torch.tensor(config["image_mean"]), torch.tensor(config["image_std"])
    return ((pixels - mean) / std).permute(2, 0, 1)[None].contiguous()


def collate(chosen: list[Sample]) -> dict[str, Tensor]:
    """The inputs of several samples as one batch."""
    return {key: torch.cat([sample.inputs[key] for sample in chosen]) for key in chosen[0].inputs}


def _entry(name: str) -> Entry:
    if name not in MODELS:
        raise NotFoundError.among("zoo model", name, MODELS, "see `zeroline models`")
    return MODELS[name]


@cache
def _loaded(name: str) -> Any:
    return load(name)


@cache
def _preprocessor(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((_HERE / "models" / name / "preprocessor_config.json").read_text())
    return loaded
