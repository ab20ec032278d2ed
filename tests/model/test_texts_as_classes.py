"""Texts as classes: a dual encoder with some pictures and another number of texts, as processors give them, is a classifier over the texts.

The oracle is a plain module around the model that holds the texts: a function of the pictures alone.
"""

import pytest
import torch
from torch import nn

import zeroline as zl
from attention_models import FAMILIES
from zeroline import zoo
from zeroline.errors import InputError, SiteError, TargetError
from zeroline.model.ask import labels_of
from zeroline.model.inputs import Inputs

TEXTS = ("a cyan seven", "a cyan one", "a red six")
BLOCK = "vision_model.encoder.layers.1"
HALF = (0.5, 0.5, 0.5)


class Held(nn.Module):
    """Scores [pictures, texts] of pictures alone; the texts are held."""

    def __init__(self, model, texts):
        super().__init__()
        self.model, self.texts = model, texts

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values, **self.texts).logits_per_image


@pytest.fixture(scope="module")
def clip():
    return zoo.load("digits-clip").double()


@pytest.fixture(scope="module")
def pixels():
    return torch.cat([zoo.preprocess("digits-clip", s.image, TEXTS[0])["pixel_values"] for s in zoo.samples("digits-clip")[:2]]).double()


@pytest.fixture(scope="module")
def texts():
    found = zoo.tokenizer("digits-clip")(list(TEXTS), return_tensors="pt", padding=True)
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def black(model):
    return zl.baseline.black(HALF, HALF) if isinstance(model, Held) else zl.baseline.black()


TARGETS = {
    "a text": 2,
    "top": zl.top(),
    "one each": [0, 2],
    "contrast": zl.contrast(0, 1),
    "probability": zl.target.probability(1),
    "mix": zl.target.mix({0: 1.0, 2: -0.5}),
}
ASKED = {
    "adaptive": (zl.integrated_gradients, {}),
    "as many nodes as texts": (zl.integrated_gradients, {"path": "midpoint", "n_steps": 3}),
    "taylor": (zl.taylor, {"order": 2}),
    "grad_cam": (zl.grad_cam, {}),
    "odam": (zl.odam, {}),
}


CASES = [
    (target, asked, site, count)
    for target in TARGETS
    for asked in ASKED
    for site in (None, BLOCK)
    for count in (1, 2)
    if (site is not None or asked not in ("grad_cam", "odam")) and (count > 1 or target != "one each")
]


@pytest.mark.parametrize("text_first", [True, False])
@pytest.mark.parametrize(("target", "asked", "site", "count"), CASES)
def test_values_are_those_of_a_classifier_that_holds_the_texts(clip, pixels, texts, target, asked, site, count, text_first):
    method, options = ASKED[asked]
    x = pixels[:count]
    inputs = {**texts, "pixel_values": x} if text_first else {"pixel_values": x, **texts}
    held = Held(clip, texts).eval()
    ask = dict(target=TARGETS[target], **options)
    found = method(clip, inputs, site=site, baseline=black(clip), **ask)
    expected = method(held, x, site=None if site is None else f"model.{site}", baseline=black(held), **ask)
    assert torch.allclose(found.values, expected.values, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.error, expected.error, rtol=1e-9, atol=1e-9)
    assert found.target == expected.target
    with torch.no_grad():
        scores = clip(pixel_values=x, **texts).logits_per_image
    if target == "a text":
        assert found.output.tolist() == pytest.approx(scores[:, 2].tolist())


def test_baselines_are_audited_over_the_texts(clip, pixels, texts):
    held = Held(clip, texts).eval()
    found = zl.audit_baseline(clip, {**texts, "pixel_values": pixels}, zl.top(), [zl.baseline.black(), zl.baseline.zeros()])
    expected = zl.audit_baseline(held, pixels, zl.top(), [black(held), zl.baseline.zeros()])
    assert [row[1:7] for row in found.rows()] == [row[1:7] for row in expected.rows()]  # the distance is in pixels where the normalisation is known
    with torch.no_grad():
        shares = clip(pixel_values=torch.full_like(pixels[:1], -1), **texts).logits_per_image[0].softmax(-1)
    black_row = found.rows()[0]
    assert float(black_row[3]) == pytest.approx(float((shares * (shares * 3).log()).sum()), abs=1e-3)
    assert black_row[6:8] == (str(int(shares.argmax())), f"{float(shares.max()):.2f}")


def test_a_neutral_baseline_is_one_that_makes_every_text_as_likely(clip, pixels, texts):
    inputs = {**texts, "pixel_values": pixels[:1]}
    found = zl.integrated_gradients(clip, inputs, target=0, baseline=zl.baseline.neutral(zl.baseline.blur(8)))
    assert float(found.baseline_kl) <= 0.01
    assert abs(float(found.relative_error)) < 0.01


def test_other_families_too():
    model, inputs = next(f for f in FAMILIES if f.name == "SigLIP").build("sdpa")
    model = model.eval()
    x = inputs["pixel_values"][:1]
    words = {name: torch.cat([value[:1], value[:1].flip(1), value[:1].roll(1, 1)]) for name, value in inputs.items() if name != "pixel_values"}
    found = zl.gradient_x_input(model, {**words, "pixel_values": x}, target=1, baseline=zl.baseline.zeros(at="input"))
    expected = zl.gradient_x_input(Held(model, words).eval(), x, target=1, baseline=zl.baseline.zeros(at="input"))
    assert torch.equal(found.values, expected.values)


def test_a_sample_is_a_picture_and_a_class_has_no_label_of_a_configuration(clip, pixels, texts):
    for inputs in ({**texts, "pixel_values": pixels}, {"pixel_values": pixels, **texts}):
        assert Inputs.of(clip, inputs).batch == 2
    assert Inputs.of(clip, texts).batch == 3
    assert clip.config.id2label
    assert labels_of(clip) == {}
    found = zl.gradient_x_input(clip, {**texts, "pixel_values": pixels[:1]}, target=1, baseline=zl.baseline.black())
    assert found.target == ("logit of 1",)


def test_as_many_texts_as_pictures_are_pairs(clip, pixels, texts):
    two = {name: value[:2] for name, value in texts.items()}
    for target in (0, 1, zl.top(), zl.contrast(0, 1), "0"):
        with pytest.raises(TargetError, match=r"2 pictures with 2 texts, which are pairs: zl\.similarity\(\) asks each with its own"):
            zl.gradient_x_input(clip, {**two, "pixel_values": pixels}, target=target, baseline=zl.baseline.black())
    for target in (0, zl.top()):
        with pytest.raises(TargetError, match="which are pairs"):
            zl.attention_relevance(clip, {**two, "pixel_values": pixels}, target=target)
    found = zl.gradient_x_input(clip, {**two, "pixel_values": pixels}, target=zl.similarity(scale="logit"), baseline=zl.baseline.black())
    with torch.no_grad():
        assert found.output.tolist() == pytest.approx(clip(pixel_values=pixels, **two).logits_per_image.diag().tolist())
    one = {name: value[:1] for name, value in texts.items()}
    assert zl.gradient_x_input(clip, {**one, "pixel_values": pixels[:1]}, target=0, baseline=zl.baseline.black()).target == ("logit of 0",)


def test_what_a_shared_text_cannot_be_asked_is_said(clip, pixels, texts):
    inputs = {**texts, "pixel_values": pixels[:1]}
    with pytest.raises(SiteError, match="input 'input_ids' has 3 rows for 1 samples; a site has a row per sample"):
        zl.gradient_x_input(clip, inputs, target=0, site="embedding:input_ids", baseline=zl.baseline.zeros())
    with pytest.raises(
        InputError, match="input 'input_ids' has 3 rows for 1 of the picture; through attentions each picture is asked about one text"
    ):
        zl.attention_relevance(clip, inputs, target=0)
    with pytest.raises(TargetError, match="1 image and 3 other embeddings; a sample is a pair"):
        zl.gradient_x_input(clip, inputs, target=zl.similarity(), baseline=zl.baseline.black())
    with pytest.raises(TargetError, match="class 3 asked; the model has 3"):
        zl.gradient_x_input(clip, inputs, target=3, baseline=zl.baseline.black())


@pytest.mark.parametrize("value", [0.5, 1])
def test_black_of_one_number_is_one_clear_error(value):
    with pytest.raises(zl.errors.BaselineError, match=r"mean and std are one number per channel, e\.g\. \(0\.5, 0\.5, 0\.5\)"):
        zl.baseline.black(mean=value, std=value)
