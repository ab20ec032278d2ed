"""Structural similarity and the signal-to-noise ratio against scikit-image in float64."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from guided.rewriting_toys import levels, photo, tensor
from zeroline.guided.likeness import WINDOW, decibels, similarity


def noisy(image, size, seed=0):
    found = levels(image) + np.random.default_rng(seed).integers(-size, size + 1, (image.height, image.width, 3))
    return Image.fromarray(np.clip(found, 0, 255).astype(np.uint8))


def by_skimage(a, b):
    how = dict(channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    return structural_similarity(levels(a).astype(float), levels(b).astype(float), **how)


SIZES = [(40, 52), (11, 11), (12, 30), (64, 64)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strength", [1, 9, 60])
def test_similarity_is_that_of_scikit_image(size, strength):
    image = photo(*size, 1)
    other = noisy(image, strength)
    assert float(similarity(tensor(image), tensor(other))[0]) == pytest.approx(by_skimage(image, other), abs=1e-7)


def test_a_change_of_the_border_counts_as_little_as_there():
    image = photo(24, 30, 1)
    outer, inner = levels(noisy(image, 25)), levels(image).copy()
    inner[5:-5, 5:-5] = outer[5:-5, 5:-5]
    outer[5:-5, 5:-5] = levels(image)[5:-5, 5:-5]
    for values in (outer, inner):
        other = Image.fromarray(values.astype(np.uint8))
        assert float(similarity(tensor(image), tensor(other))[0]) == pytest.approx(by_skimage(image, other), abs=1e-7)


@pytest.mark.parametrize("level", [3, 128, 250])
def test_flat_pictures_lose_no_digits(level):
    flat = Image.new("RGB", (52, 40), (level, level, level))
    other = noisy(flat, 2)
    assert float(similarity(tensor(flat), tensor(other))[0]) == pytest.approx(by_skimage(flat, other), abs=1e-6)


def test_equal_pictures_are_wholly_similar_and_infinitely_near():
    image = tensor(photo(20, 30))
    assert float(similarity(image, image)[0]) == pytest.approx(1, abs=1e-6)
    assert decibels(image, image).tolist() == [float("inf")]


def test_decibels_are_those_of_scikit_image_row_by_row():
    images = [photo(20, 30, seed) for seed in range(3)]
    others = [noisy(image, size) for image, size in zip(images, (1, 5, 50))]
    found = decibels(*(torch.cat([tensor(one) for one in group]) for group in (images, others)))
    expected = [peak_signal_noise_ratio(levels(a), levels(b), data_range=255) for a, b in zip(images, others)]
    assert found.tolist() == pytest.approx(expected, abs=1e-3)


def test_similarity_of_rows_is_theirs_alone():
    images = [photo(20, 30, seed) for seed in range(3)]
    others = [noisy(image, size) for image, size in zip(images, (1, 5, 50))]
    together = similarity(*(torch.cat([tensor(one) for one in group]) for group in (images, others)))
    assert together.shape == (3,)
    assert together.tolist() == pytest.approx([float(similarity(tensor(a), tensor(b))[0]) for a, b in zip(images, others)], abs=1e-6)
    assert together.tolist() == sorted(together.tolist(), reverse=True)


def test_the_window_is_the_least_size():
    assert WINDOW == 11
    small = tensor(photo(WINDOW, WINDOW))
    assert similarity(small, small).isfinite().all()
