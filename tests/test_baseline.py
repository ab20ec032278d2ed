"""Baselines are what their names say."""

import numpy as np
import pytest
import torch

from zeroline import baseline
from zeroline.baseline import Normalisation
from zeroline.errors import BaselineError, NotFoundError

NORM = Normalisation((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
IMAGE = torch.rand(2, 3, 6, 9, generator=torch.Generator().manual_seed(0))


def test_black_is_zero_pixels_after_normalisation():
    black = baseline.black()(IMAGE, NORM)
    assert torch.allclose(black * torch.tensor(NORM.std).view(3, 1, 1) + torch.tensor(NORM.mean).view(3, 1, 1), torch.zeros_like(IMAGE), atol=1e-7)
    assert not torch.equal(black, baseline.zeros()(IMAGE))


def test_black_without_a_known_normalisation_says_what_to_give():
    with pytest.raises(BaselineError, match=r"black\(mean=..., std=...\)"):
        baseline.black()(IMAGE, None)
    assert torch.equal(baseline.black((0, 0, 0), (1, 1, 1))(IMAGE, None), torch.zeros_like(IMAGE))


def test_the_mean_is_per_channel_and_sample():
    found = baseline.mean()(IMAGE)
    assert torch.allclose(found[1, 2], IMAGE[1, 2].mean().expand(6, 9))
    tokens = torch.randn(2, 5, 4)
    assert torch.allclose(baseline.mean(at="site")(tokens)[1, 3], tokens[1].mean(0))


def test_blur_is_the_gaussian_filter_of_scipy():
    from scipy.ndimage import gaussian_filter1d

    image = torch.rand(1, 2, 20, 31, dtype=torch.float64)
    truth = gaussian_filter1d(gaussian_filter1d(image.numpy(), 1.5, -1, mode="mirror"), 1.5, -2, mode="mirror")
    assert np.allclose(baseline.blur(1.5)(image).numpy(), truth, atol=1e-12)


def test_noise_is_the_same_for_a_seed_and_differs_between_seeds():
    first = baseline.noise(3)(IMAGE, NORM)
    assert torch.equal(first, baseline.noise(3)(IMAGE, NORM))
    assert torch.equal(first[0], baseline.noise(3)(IMAGE[:1], NORM)[0])
    assert not torch.equal(first, baseline.noise(4)(IMAGE, NORM))
    pixels = first * torch.tensor(NORM.std).view(3, 1, 1) + torch.tensor(NORM.mean).view(3, 1, 1)
    assert float(pixels.min()) >= -1e-6
    assert float(pixels.max()) <= 1 + 1e-6


def test_noise_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    baseline.noise(1)(IMAGE)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tensor_of_one_sample_serves_the_batch():
    one = torch.rand(1, 3, 6, 9)
    assert torch.equal(baseline.tensor(one)(IMAGE)[1], one[0])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda: baseline.tensor(torch.rand(3, 4))(IMAGE), r"shape \(3, 4\); the features have \(2, 3, 6, 9\)"),
        (lambda: baseline.constant(float("inf"))(IMAGE), "NaN or infinite"),
        (lambda: baseline.blur(0), "above 0"),
        (lambda: baseline.blur()(torch.rand(2, 5)), "needs images"),
        (lambda: baseline.black(mean=(0, 0, 0)), "mean and std together"),
        (lambda: baseline.black()(torch.rand(2, 1, 4, 4), NORM), "3 channels"),
        (lambda: baseline.as_baseline("black"), "not str"),
        (lambda: baseline.by_name("blur(x)"), "cannot read the baseline"),
    ],
)
def test_baselines_that_do_not_fit_are_one_clear_error(asked, message):
    with pytest.raises(BaselineError, match=message):
        asked()


def test_unknown_names_get_the_nearest():
    with pytest.raises(NotFoundError, match="nearest: black"):
        baseline.by_name("blak")


@pytest.mark.parametrize("draws", [0, -1, 10_001, 10**13])
def test_a_number_of_draws_that_nobody_could_wait_for_is_refused_at_once(draws):
    with pytest.raises(BaselineError, match=f"distribution\\(draws={draws}\\) was asked; 1 to 10,000 are possible"):
        baseline.distribution(baseline.noise, draws=draws)
    assert len(baseline.distribution(baseline.noise, draws=10_000).draws) == 10_000


def test_neutral_without_a_start_begins_at_black():
    assert baseline.by_name("neutral").name == baseline.by_name("neutral()").name == "neutral from black"
    assert baseline.by_name("neutral(blur(4))").name == "neutral from blur(4)"
