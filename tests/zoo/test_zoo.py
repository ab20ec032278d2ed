"""The zoo keeps what its cards say: truth about the images, accuracy on a fresh seed, the same data from a seed."""

import json
from importlib.resources import files

import numpy as np
import pytest
import torch

from zeroline import zoo
from zeroline.errors import InputError, NotFoundError
from zeroline.zoo.photo_digits import COLOURS, PHOTOGRAPHS, PhotoDigits
from zeroline.zoo.train.vit import accuracy


def test_the_model_names_at_least_95_percent_of_single_digits_on_a_fresh_seed(digits_vit):
    assert accuracy(digits_vit, "test", 991, 400, 1) >= 0.95


def test_the_card_states_the_accuracy_that_training_printed():
    folder = files("zeroline.zoo") / "models" / "digits-vit"
    scores = json.loads((folder / "scores.json").read_text())
    card = " ".join((folder / "README.md").read_text().split())
    for share in scores.values():
        assert f"**{share:.1%}**".replace("%", " %") in card


def test_samples_carry_the_truth(samples):
    assert len(samples) == 24
    assert [len(s.labels) for s in samples] == [1] * 12 + [2] * 12
    for s in samples:
        assert s.image.size == (64, 64)
        assert s.masks.shape == (len(s.labels), 64, 64)
        pixels = np.asarray(s.image).astype(float)
        for mask, box, colour in zip(s.masks.numpy(), s.boxes, s.colours):
            rows, columns = np.where(mask)
            assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            ink = pixels[mask].mean(0)
            nearest = min(COLOURS, key=lambda name: np.abs(ink - COLOURS[name]).sum())
            assert nearest == colour


def test_inputs_are_the_preprocessed_image(samples):
    again = zoo.preprocess("digits-vit", samples[0].image)["pixel_values"]
    assert torch.equal(again, samples[0].inputs["pixel_values"])
    truth = torch.from_numpy(np.asarray(samples[0].image).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    assert torch.allclose(again, truth, atol=1e-6)


def test_scenes_are_the_same_for_a_seed():
    a, b = PhotoDigits("test", 5).scene(2), PhotoDigits("test", 5).scene(2)
    assert np.array_equal(a.pixels, b.pixels)
    assert a.caption == b.caption
    assert not np.array_equal(a.pixels, PhotoDigits("test", 6).scene(2).pixels)


def test_train_and_test_share_no_photograph_and_no_digit_image():
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["test"])
    from zeroline.zoo.photo_digits import _glyphs

    train, test = (_glyphs(split)[0][24] for split in ("train", "test"))
    seen = {glyph.tobytes() for glyph in train}
    assert sum(glyph.tobytes() in seen for glyph in test) <= 1  # the data set itself may hold a duplicate


def test_unknown_names_and_wrong_images_are_one_clear_error():
    with pytest.raises(NotFoundError, match="nearest: digits-vit"):
        zoo.load("digit-vit")
    with pytest.raises(InputError, match="PIL image"):
        zoo.preprocess("digits-vit", torch.ones(3, 64, 64))
