"""Difference Map: gradient x (features - features of a reference), nothing rectified."""

import torch

import zeroline as zl
from methods.cam_reference import features_and_gradients, made, map_of, replaced


def test_the_map_is_the_gradient_times_the_difference_to_the_features_of_a_reference():
    model, x = made()
    reference = x.flip(0) * 0.5
    a, g, f = features_and_gradients(model, x, "features", 1)
    a0 = model.features(reference).detach()
    found = zl.difference_map(model, x, target=1, site="features", baseline=zl.baseline.of(reference))
    assert torch.allclose(found.per_pixel(), map_of(a, g, a0, rectify=False), atol=1e-12)
    truncation = (g * (a - a0)).flatten(1).sum(1) - (f - replaced(model, x, "features", a0, 1))
    assert torch.allclose(found.budget["truncation"], truncation, atol=1e-10)
    assert torch.allclose(found.error, truncation, atol=1e-10)


def test_rectifying_and_normalising_are_options_with_a_price():
    model, x = made()
    a, g, _ = features_and_gradients(model, x, "features", 1)
    zero = torch.zeros_like(a)
    found = zl.difference_map(model, x, target=1, site="features", baseline=zl.baseline.zeros(), rectify=True, normalise=True)
    final = map_of(a, g, zero)
    assert torch.allclose(found.per_pixel(), final / final.amax((1, 2), keepdim=True), atol=1e-12)
    assert torch.allclose(found.budget["rectification"], (final - map_of(a, g, zero, rectify=False)).sum((1, 2)), atol=1e-10)
    assert torch.allclose(sum(found.budget.values()), found.error, atol=1e-6)
