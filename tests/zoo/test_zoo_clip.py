"""digits-clip and the labelled test set keep what their cards say; texts that the model cannot read are told so."""

import json
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
import torch

from zeroline import zoo
from zeroline.errors import InputError, UsageError, ZerolineError
from zeroline.zoo import digits_clip
from zeroline.zoo.photo_digits import COLOURS, DIGITS
from zeroline.zoo.train.clip import accuracy


@pytest.fixture(scope="module")
def model():
    return zoo.load("digits-clip")


@pytest.fixture(scope="module")
def test_set():
    return zoo.test_set("digits-clip")


@pytest.fixture(scope="module")
def image(test_set):
    return test_set[0].image


# --- the model --------------------------------------------------------------------------------------------------------------------


def test_at_least_90_percent_of_the_captions_are_right_on_a_fresh_seed(model):
    found = accuracy(model, "test", 4242, 300)
    assert found["zero-shot over 60 captions"] >= 0.90
    assert found["its colour"] >= 0.95
    assert found["its digit"] >= found["zero-shot over 60 captions"]


def test_the_accuracy_is_that_of_the_nearest_of_60_captions(model):
    """Counted again, scene by scene, with the model's own inputs."""
    scenes = zoo.scenes("digits-clip", 40, seed=4242)
    captions = [f"a {colour} {digit}" for colour in COLOURS for digit in DIGITS]
    assert sorted(captions) == sorted(digits_clip.CAPTIONS)
    right = 0
    with torch.no_grad():
        for scene in scenes:
            scores = model(**zoo.preprocess("digits-clip", scene.image, text=captions)).logits_per_image[0]
            right += captions[int(scores.argmax())] == scene.caption
    assert right / 40 == pytest.approx(accuracy(model, "test", 4242, 40)["zero-shot over 60 captions"])


def test_the_card_states_the_figures_that_training_printed():
    folder = files("zeroline.zoo") / "models" / "digits-clip"
    scores = json.loads((folder / "scores.json").read_text())
    card = " ".join((folder / "README.md").read_text().split())
    assert set(scores) == {"zero-shot over 60 captions", "its colour", "its digit"}
    stated = [f"**{share:.1%}**".replace("%", " %") for share in scores.values()]
    for figure, count in Counter(stated).items():
        assert card.count(figure) >= count
    assert scores["zero-shot over 60 captions"] >= 0.90


def test_the_model_is_a_hugging_face_clip_in_evaluation_mode(model):
    import transformers

    assert isinstance(model, transformers.CLIPModel)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(model.vision_model.encoder.layers) == 4
    assert len(model.text_model.encoder.layers) == 3
    assert model.config.text_config.eos_token_id == digits_clip.tokenizer().eos_token_id


def test_a_text_is_read_at_its_end_whatever_follows(model):
    short, long = (zoo.preprocess("digits-clip", text="a red seven", pad=pad) for pad in (False, True))
    assert short["input_ids"].shape == (1, 5)
    assert long["input_ids"].shape == (1, 16)
    with torch.no_grad():
        one, two = (model.get_text_features(**given).pooler_output for given in (short, long))
    assert torch.allclose(one, two, atol=1e-5)


# --- the labelled test set ------------------------------------------------------------------------------------------------------------


def test_the_test_set_has_every_colour_and_digit_twice(test_set):
    assert len(test_set) == 120
    assert Counter((s.colours[0], s.labels[0]) for s in test_set) == {(c, d): 2 for c in COLOURS for d in range(10)}
    assert all(s.caption == f"a {s.colours[0]} {DIGITS[s.labels[0]]}" for s in test_set)
    assert len({s.name for s in test_set}) == 120
    assert len({s.image.tobytes() for s in test_set}) == 120


def test_its_masks_and_boxes_are_right(test_set):
    for s in test_set:
        assert s.image.size == (64, 64)
        assert s.image.mode == "RGB"
        assert s.masks.shape == (1, 64, 64)
        assert s.masks.dtype == torch.bool
        rows, columns = np.where(s.masks[0].numpy())
        assert s.boxes == ((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1),)
        ink = np.asarray(s.image).astype(float)[s.masks[0].numpy()].mean(0)
        assert min(COLOURS, key=lambda name: np.abs(ink - COLOURS[name]).sum()) == s.colours[0]


def test_its_inputs_are_the_image_and_the_caption(test_set):
    for s in test_set[:5]:
        again = zoo.preprocess("digits-clip", s.image, text=s.caption, pad=True)
        assert again.keys() == s.inputs.keys() == {"input_ids", "attention_mask", "pixel_values"}
        assert all(torch.equal(again[name], s.inputs[name]) for name in again)
    batch = zoo.collate(test_set[:7])
    assert {name: tuple(t.shape) for name, t in batch.items()} == {
        "input_ids": (7, 16), "attention_mask": (7, 16), "pixel_values": (7, 3, 64, 64)
    }  # fmt: skip


def test_the_model_is_right_on_most_of_it(model, test_set):
    batch = zoo.collate(test_set)
    captions = list(digits_clip.CAPTIONS)
    texts = zoo.preprocess("digits-clip", text=captions)
    with torch.no_grad():
        best = model(**texts, pixel_values=batch["pixel_values"]).logits_per_image.argmax(1).tolist()
    assert sum(captions[i] == s.caption for i, s in zip(best, test_set)) >= 108


def test_the_same_images_serve_the_classifier(test_set, digits_vit):
    own = zoo.test_set("digits-vit")
    assert [s.labels for s in own] == [s.labels for s in test_set]
    assert own[3].inputs.keys() == {"pixel_values"}
    assert torch.equal(own[3].inputs["pixel_values"], test_set[3].inputs["pixel_values"])


# --- preprocess and the tokenizer ---------------------------------------------------------------------------------------------------------


def test_several_texts_make_pairs_with_the_image(image):
    found = zoo.preprocess("digits-clip", image, text=["a red seven", "a photo of a blue two and a green nine"])
    assert found["pixel_values"].shape == (2, 3, 64, 64)
    assert torch.equal(found["pixel_values"][0], found["pixel_values"][1])
    assert found["attention_mask"].sum(1).tolist() == [5, 12]
    words = zoo.tokenizer("digits-clip")
    assert words.decode(found["input_ids"][0], skip_special_tokens=True) == "a red seven"
    assert words.decode(found["input_ids"][1], skip_special_tokens=True) == "a photo of a blue two and a green nine"


def test_an_image_or_a_text_alone_is_preprocessed_alone(image):
    assert zoo.preprocess("digits-clip", image).keys() == {"pixel_values"}
    assert zoo.preprocess("digits-clip", text="a red seven").keys() == {"input_ids", "attention_mask"}


def test_words_are_lower_case_and_unknown_ones_are_marked():
    words = zoo.tokenizer("digits-clip")
    upper, lower = (zoo.preprocess("digits-clip", text=text)["input_ids"] for text in ("A Red SEVEN", "a red seven"))
    assert torch.equal(upper, lower)
    assert int((zoo.preprocess("digits-clip", text="a red elephant")["input_ids"] == words.unk_token_id).sum()) == 1
    assert max(words.get_vocab().values()) == words.eos_token_id  # the end token has the highest id


@pytest.mark.parametrize(
    ("model", "given", "error", "words"),
    [
        ("digits-clip", {"text": ""}, InputError, "the text is ''; give words"),
        ("digits-clip", {"text": "   "}, InputError, "give words"),
        ("digits-clip", {"text": ["a red seven", ""]}, InputError, "give words"),
        ("digits-clip", {"text": " ".join(["seven"] * 15)}, InputError, r"17 tokens, begin and end included; the model reads 16"),
        ("digits-clip", {"text": ["a"] * 2 + ["a photo of " * 40]}, InputError, "the model reads 16"),
        ("digits-clip", {"text": [5]}, InputError, "a text is a string, not int"),
        ("digits-clip", {}, InputError, "neither an image nor a text was given; 'digits-clip' reads text and image"),
        ("digits-vit", {}, InputError, "neither an image nor a text was given; 'digits-vit' reads image"),
        ("digits-vit", {"text": "a red seven"}, UsageError, "'digits-vit' reads no text"),
        ("digits-clip", {"image": torch.ones(3, 64, 64)}, InputError, "takes a PIL image, not Tensor"),
        ("digits-clip", {"image": torch.ones(3, 64, 64), "text": "a red seven"}, InputError, "takes a PIL image"),
    ],
    ids=range(11),
)
def test_what_cannot_be_read_gets_one_clear_error(model, given, error, words):
    with pytest.raises(error, match=words) as caught:
        zoo.preprocess(model, **given)
    assert isinstance(caught.value, ZerolineError)
    assert "\n" not in str(caught.value)


def test_the_longest_text_fits():
    assert zoo.preprocess("digits-clip", text=" ".join(["seven"] * 14))["input_ids"].shape == (1, 16)


def test_the_classifier_has_no_tokenizer():
    with pytest.raises(UsageError, match="reads no text"):
        zoo.tokenizer("digits-vit")


def test_no_texts_are_no_text():
    with pytest.raises(InputError, match="neither an image nor a text"):
        zoo.preprocess("digits-clip", text=[])
