"""Models from elsewhere: a Hugging Face id, folder or pipeline, a timm name, an open_clip architecture with its weights.

Holds ``Loaded`` (a model with its preprocessing and labels), ``Sourced`` (the same for models that read words, or words and
a picture), and one loader per source. Nothing is unpickled and no
remote code runs unless asked by flag. The zoo has its own loader; the command line picks one by scheme.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from zeroline.baseline import Normalisation
from zeroline.errors import LoadError, NotFoundError, UsageError
from zeroline.model.inputs import is_dual_encoder
from zeroline.model.normalisation import from_config
from zeroline.model.words import tokens

# families that are trained on texts brought to full length, by ``config.model_type``
PADDED = ("siglip", "siglip2")


@dataclass(frozen=True)
class Loaded:
    """A model ready to be explained: ``preprocess(PIL image)`` gives its inputs."""

    name: str
    model: nn.Module
    preprocess: Callable[[Any], Mapping[str, Any] | torch.Tensor]
    labels: Mapping[str, int]


@dataclass(frozen=True)
class Sourced:
    """A model of any sources: ``prepare(image or None, text or None)`` gives its inputs, ``words(ids)`` their tokens as text.

    Of a text a (text, passage) pair makes the two segments of a cross-encoder. ``hear(samples)`` gives what a model of sound reads of them, at
    ``rate`` samples per second; its frames are ``hop`` seconds apart (0: it reads samples). ``normalisation`` is what ``prepare`` does to pixels,
    where that may be other than what the model's own folder says.
    """

    name: str
    model: nn.Module
    prepare: Callable[[Any, Any], Mapping[str, Any]]
    labels: Mapping[str, int]
    reads: tuple[str, ...] = ("image",)
    words: Callable[[list[int]], list[str]] | None = None
    tokenizer: Any | None = None
    hear: Callable[[Any], Mapping[str, Any]] | None = None
    rate: int = 0
    hop: float = 0.0
    normalisation: Normalisation | None = None

    @property
    def is_detector(self) -> bool:
        """Does the model give a class and a box per query (DETR)?"""
        return type(self.model).__name__.endswith("ForObjectDetection")

    @property
    def is_dual_encoder(self) -> bool:
        """Does the model compare an image with a text (CLIP, SigLIP)?"""
        return is_dual_encoder(self.model)

    @property
    def predicts_tokens(self) -> bool:
        """Does the model write words (its logits have a position) rather than choose a class?"""
        kinds = ("CausalLM", "LMHead", "ConditionalGeneration", "MaskedLM", "MTModel", "EncoderDecoder")
        return any(kind in type(self.model).__name__ for kind in kinds)


def any_from_hub(name: str, *, trust_remote_code: bool = False) -> Sourced:
    """Any model of the Hugging Face hub, by the class that its configuration names, with its processor or tokenizer."""
    import transformers

    name = _folder(name)
    options = {"trust_remote_code": trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(name, **options)
        kind = next((getattr(transformers, a) for a in config.architectures or () if hasattr(transformers, a)), transformers.AutoModel)
        model = kind.from_pretrained(name, weights_only=True, **options).eval()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as problem:
        raise LoadError(f"cannot load {name!r}: {_reason(problem)}") from problem
    except UnpicklingError as problem:
        raise LoadError(_refused(name)) from problem
    makers = (transformers.AutoImageProcessor, transformers.AutoTokenizer, transformers.AutoFeatureExtractor)
    return _assembled(name, model, *(_part(maker, name, options) for maker in makers))


def from_pipeline(pipeline: Any) -> Sourced:
    """The model of a Hugging Face pipeline, prepared for by the pipeline's own image processor and tokenizer, on its device.

    Raises UsageError for what is no pipeline of torch, or has neither part.
    """
    import transformers

    if not isinstance(pipeline, transformers.Pipeline) or not isinstance(pipeline.model, nn.Module):
        raise UsageError(f"{type(pipeline).__name__} was given; a model is a pipeline, a name such as 'zoo:digits-vit', or zl.load(name)")
    picture, tokenizer = pipeline.image_processor, pipeline.tokenizer
    if picture is None and tokenizer is None:
        raise UsageError(f"the {pipeline.task} pipeline has no image processor and no tokenizer: zl.explain reads images and texts")
    model: Any = pipeline.model
    found = _assembled(str(model.config._name_or_path or type(model).__name__), model, picture, tokenizer, None)
    return found if picture is None else replace(found, normalisation=from_config(picture.to_dict()))


def _assembled(name: str, model: Any, picture: Any | None, tokenizer: Any | None, ear: Any | None) -> Sourced:
    """A Hugging Face model with the parts that prepare its inputs."""
    config = model.config
    known = inspect.signature(model.forward).parameters
    sounds = "input_features" in known or "input_values" in known
    parts = {
        "text": tokenizer if "input_ids" in known else None,
        "image": picture if "pixel_values" in known else None,
        "audio": ear if sounds else None,
    }

    def prepare(image: Any, text: Any) -> Mapping[str, Any]:
        given: dict[str, Any] = {}
        if isinstance(text, tuple) and tokenizer is not None:
            given |= dict(tokenizer(*text, return_tensors="pt"))
        elif text is not None and tokenizer is not None:
            given |= dict(tokens(tokenizer, [text], pad=config.model_type in PADDED, longest=_longest(config)))
        if image is not None and picture is not None:
            given |= dict(picture(images=image, return_tensors="pt"))
        return with_decoder({n: v for n, v in given.items() if n in known})

    def with_decoder(given: dict[str, Any]) -> Mapping[str, Any]:
        if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" not in given:
            start = getattr(config, "decoder_start_token_id", None)
            start = start if start is not None else getattr(getattr(config, "decoder", None), "decoder_start_token_id", None)
            given["decoder_input_ids"] = torch.tensor([[0 if start is None else start]])
        return given

    labels = {str(label): int(index) for index, label in (getattr(config, "id2label", None) or {}).items()}
    words = None if tokenizer is None else tokenizer.convert_ids_to_tokens
    rate = int(getattr(ear, "sampling_rate", 0)) if sounds else 0

    def hear(samples: Any) -> Mapping[str, Any]:
        found = dict(ear(samples, sampling_rate=rate, return_tensors="pt"))  # type: ignore[misc]
        return with_decoder({n: v for n, v in found.items() if n in known})

    reads = tuple(what for what, part in parts.items() if part is not None)
    return Sourced(
        name, model, prepare, labels, reads, words, tokenizer, hear if rate else None, rate, getattr(ear, "hop_length", 0) / rate if rate else 0.0
    )


def _longest(config: Any) -> int | None:
    """The text context that a configuration states; position tables with an offset are longer, and their tokenizers know."""
    text = getattr(config, "text_config", None) or config
    found = getattr(text, "max_position_embeddings", None)
    return int(found) if isinstance(found, int) else None


def _part(maker: Any, name: str, options: Mapping[str, Any]) -> Any | None:
    try:
        return maker.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError):
        return None


def _folder(name: str) -> str:
    if name.startswith((".", "/", "~")):
        name = str(Path(name).expanduser())
        if not (Path(name) / "config.json").is_file():
            raise LoadError(f"no model folder {name!r}: it has no config.json")
    return name


def _reason(problem: Exception) -> str:
    return str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__


def _refused(name: str) -> str:
    """Of a weight file that ``weights_only`` stops; torch's own words would advise to run it."""
    return f"cannot load {name!r}: its weights are a pickle that holds more than tensors, which could run code; use a model saved as safetensors"


def from_hub(name: str, *, trust_remote_code: bool = False) -> Loaded:
    """An image classifier, or a detector, from the Hugging Face hub, its local cache, or a folder."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, AutoModelForObjectDetection

    name = _folder(name)
    try:
        options = {"trust_remote_code": trust_remote_code}
        kinds = AutoConfig.from_pretrained(name, **options).architectures or ()
        kind = AutoModelForObjectDetection if any("ObjectDetection" in known for known in kinds) else AutoModelForImageClassification
        model, info = kind.from_pretrained(name, weights_only=True, output_loading_info=True, **options)
        processor = AutoImageProcessor.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as problem:
        raise LoadError(f"cannot load {name!r} as an image classifier or detector: {_reason(problem)}") from problem
    except UnpicklingError as problem:
        raise LoadError(_refused(name)) from problem
    if missing := sorted(info["missing_keys"]):
        what = f"{name!r} ({', '.join(kinds) or 'no architecture named'}) has no trained weights for {', '.join(missing[:3])}"
        raise UsageError(f"{what}: it is no image classifier; a model that compares an image with a text takes --text")
    labels = {str(label): int(index) for index, label in model.config.id2label.items()}
    model.eval()
    return Loaded(name, model, lambda image: dict(processor(images=image, return_tensors="pt")), labels)


def from_open_clip(name: str) -> Sourced:
    """``ARCHITECTURE/PRETRAINED`` of open_clip: a tag of its own (``ViT-B-32/laion2b_s34b_b79k``), or a checkpoint file.

    Weights are loaded by open_clip's own code with ``weights_only``. Raises LoadError where the package or the weights are missing.
    """
    try:
        import open_clip
    except (ImportError, RuntimeError) as problem:
        raise LoadError(f"open_clip cannot be imported ({problem}); install it: pip install 'zeroline[open_clip]'") from problem
    kind, _, weights = name.partition("/")
    if kind not in open_clip.list_models():
        raise NotFoundError.among("open_clip architecture", kind, open_clip.list_models(), "write open_clip:ARCHITECTURE/PRETRAINED")
    tags = open_clip.list_pretrained_tags_by_model(kind)
    if not weights or (weights not in tags and not Path(weights).expanduser().is_file()):
        raise NotFoundError.among(f"open_clip weights of {kind}", weights, tags, f"write open_clip:{kind}/TAG or open_clip:{kind}/CHECKPOINT-FILE")
    try:
        source = weights if weights in tags else str(Path(weights).expanduser())
        model, _, see = open_clip.create_model_and_transforms(kind, pretrained=source, weights_only=True)
        read = open_clip.get_tokenizer(kind)
    except Exception as problem:  # open_clip passes on whatever its download or unpickling raised
        raise LoadError(f"cannot load {name!r} with open_clip: {_reason(problem)}") from problem

    def prepare(image: Any, text: Any) -> Mapping[str, Any]:
        given = {} if image is None else {"image": see(image.convert("RGB"))[None]}
        return given if text is None else given | {"text": read([text])}

    def words(ids: list[int]) -> list[str]:
        inner = getattr(read, "tokenizer", None)  # a Hugging Face tokenizer inside, for some architectures
        if inner is not None:
            return list(inner.convert_ids_to_tokens(ids))
        end = ids.index(read.eot_token_id) if read.eot_token_id in ids else len(ids)  # what follows is padding, by an id that is also "!"
        return [read.decoder[i] if place <= end else "" for place, i in enumerate(ids)]

    return Sourced(name, model.eval(), prepare, {}, ("text", "image"), words)


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
