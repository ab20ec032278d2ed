"""Real trained models from registry packages: MiniLM on sentences, EfficientNet-Lite0 on photographs, timm by name."""

import pytest
import torch

import zeroline as zl
from oracles import real_models
from oracles.real_models import photograph, similarity_to

pytest.importorskip("timm", reason="tests/packages.txt is not installed")


@pytest.fixture(scope="module")
def minilm():
    return real_models.minilm()


@pytest.fixture(scope="module")
def efficientnet():
    return real_models.efficientnet()


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


ESPRESSO = 967


def test_efficientnet_knows_the_coffee_and_is_explained_at_the_input_and_at_a_layer(efficientnet):
    x = photograph("coffee.png")
    assert int(efficientnet(x).argmax()) == ESPRESSO
    black = zl.baseline.black(*real_models.BLACK)
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


def test_text_baselines_of_a_real_tokenizer(minilm):
    """[MASK], [PAD] and [UNK] for every word; the record's f(x0) is the model's own on those ids."""
    model, tokenizer = minilm
    tokens, anchor = (dict(tokenizer(text, return_tensors="pt")) for text in ("the kitten sleeps on the warm sofa", "a cat naps"))
    target = similarity_to(model, tokens, anchor)
    for make, word in ((zl.baseline.mask_token, "[MASK]"), (zl.baseline.pad_token, "[PAD]"), (zl.baseline.unknown_token, "[UNK]")):
        baseline = make(tokenizer)
        assert baseline.name == f"{word} for every word"
        found = zl.integrated_gradients(model, tokens, target=target, site="embedding:input_ids", baseline=baseline)
        ids = torch.where(torch.isin(tokens["input_ids"], torch.tensor([101, 102])), tokens["input_ids"], tokenizer.convert_tokens_to_ids(word))
        with torch.no_grad():
            truth = target.function(model(**{**tokens, "input_ids": ids}))
        assert torch.allclose(found.reference_output, truth.double(), atol=1e-6)
        assert float(found.relative_error) <= 0.01


def test_an_audit_of_a_real_cnn_names_its_classes(efficientnet):
    """On a photograph of a coffee cup; grey pixels leave this model undecided, black ones do not."""
    x = photograph("coffee.png")
    black, grey = zl.baseline.black(*real_models.BLACK), zl.baseline.zeros()
    found = zl.audit_baseline(efficientnet, x, zl.top(), [black, grey, zl.baseline.blur(1)])
    assert found.verdict("blur(1)").startswith("keeps the answer: the model still sees 967")
    assert float(found["zeros"].kl) < float(found["black"].kl)
    assert found.advice()[0] == "zeros"
