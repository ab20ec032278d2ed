"""LayerCAM is its paper's formula; its rectified gradient is in the budget."""

import torch

import zeroline as zl
from methods.cam_reference import features_and_gradients, made, map_of, replaced


def test_the_map_is_the_papers_formula():
    model, x = made()
    a, g, _ = features_and_gradients(model, x, "features", 1)
    for a0 in (torch.zeros_like(a), a.flip(-1)):
        for rectify in (True, False):
            found = zl.layer_cam(model, x, target=1, site="features", baseline=zl.baseline.tensor(a0), rectify=rectify)
            assert torch.allclose(found.per_pixel(), map_of(a, g, a0, weights="positive", rectify=rectify), atol=1e-12)


def test_rectification_holds_both_the_gradient_and_the_map():
    model, x = made()
    a, g, f = features_and_gradients(model, x, "features", 0)
    zero = torch.zeros_like(a)
    found = zl.layer_cam(model, x, target=0, site="features", baseline=zl.baseline.zeros())
    plain, final = map_of(a, g, zero, rectify=False).sum((1, 2)), map_of(a, g, zero, weights="positive").sum((1, 2))
    assert torch.allclose(found.budget["truncation"], plain - (f - replaced(model, x, "features", zero, 0)), atol=1e-10)
    assert torch.allclose(found.budget["rectification"], final - plain, atol=1e-10)
    assert float(found.budget["rectification"].abs().min()) > 1e-3
    assert torch.allclose(sum(found.budget.values()), found.error, atol=1e-6)


def test_off_means_off():
    model, x = made()
    asked = {"target": 0, "site": "features", "baseline": zl.baseline.zeros()}
    off = zl.layer_cam(model, x, rectify_gradient=False, rectify=False, **asked)
    assert torch.equal(off.values, zl.gradient_x_input(model, x, **asked).values)
