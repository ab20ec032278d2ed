"""Grad-CAM is its paper's formula, with the baseline said and the error accounted for."""

import pytest
import torch
from torch import nn

import zeroline as zl
from methods.cam_reference import Net, Tokens, features_and_gradients, made, map_of, replaced
from zeroline.errors import UsageError


@pytest.mark.parametrize("baseline", [0.0, 0.3])
@pytest.mark.parametrize("rectify", [True, False])
def test_the_map_is_the_papers_formula(baseline, rectify):
    model, x = made()
    a, g, f = features_and_gradients(model, x, "features", 1)
    a0 = torch.full_like(a, baseline)
    found = zl.grad_cam(model, x, target=1, site="features", baseline=zl.baseline.constant(baseline), rectify=rectify)
    assert torch.allclose(found.per_pixel(), map_of(a, g, a0, weights="mean", rectify=rectify), atol=1e-12)
    assert torch.allclose(found.difference, f - replaced(model, x, "features", a0, 1), atol=1e-12)


def test_its_budget_is_the_difference_that_each_change_makes():
    model, x = made()
    a, g, f = features_and_gradients(model, x, "features", 2)
    zero = torch.zeros_like(a)
    found = zl.error_budget("grad_cam", model, x, target=2, site="features", baseline=zl.baseline.zeros(), normalise=True)
    sums = {
        "truncation": map_of(a, g, zero, rectify=False).sum((1, 2)),
        "pooling": map_of(a, g, zero, weights="mean", rectify=False).sum((1, 2)),
        "rectification": map_of(a, g, zero, weights="mean").sum((1, 2)),
    }
    final = map_of(a, g, zero, weights="mean")
    sums["normalisation"] = (final / final.amax((1, 2), keepdim=True)).sum((1, 2))
    before = f - replaced(model, x, "features", zero, 2)
    for name, total in sums.items():
        assert torch.allclose(found.parts[name], total - before, atol=1e-10), name
        before = total
    assert not found.parts["smoothing"].any()
    assert list(found.parts) == ["truncation", "pooling", "smoothing", "rectification", "normalisation"]
    assert torch.allclose(torch.stack(list(found.parts.values())).sum(0), found.error, atol=1e-6)


def test_off_means_off():
    model, x = made()
    asked = {"target": 0, "site": "features", "baseline": zl.baseline.zeros()}
    off = zl.grad_cam(model, x, pool=False, rectify=False, **asked)
    assert torch.equal(off.values, zl.gradient_x_input(model, x, **asked).values)
    assert not any(off.budget[name].any() for name in ("pooling", "smoothing", "rectification", "normalisation"))


def test_patch_tokens_are_pooled_without_the_class_token():
    model, x = made(Tokens, (2, 3, 4, 6))
    a, g, _ = features_and_gradients(model, x, "block", 1)
    found = zl.grad_cam(model, x, target=1, site="block", baseline=zl.baseline.zeros(), grid=(2, 3))
    grid_a, grid_g = (t[:, 1:].transpose(1, 2).reshape(2, 4, 2, 3) for t in (a, g))
    truth = map_of(grid_a, grid_g, torch.zeros_like(grid_a), weights="mean")
    assert torch.allclose(found.values[:, 1:].sum(-1).view(2, 2, 3), truth, atol=1e-12)
    assert torch.allclose(found.values[:, 0], (a * g)[:, 0], atol=1e-12)  # the class token keeps its first-order value
    assert found.settings["prefix"] == 1


def test_the_class_token_is_found_in_the_running_pass():
    model, x = made(Tokens, (2, 3, 4, 6))
    asked = {"target": 1, "site": "block", "baseline": zl.baseline.zeros()}
    found = zl.grad_cam(model, x, **asked)
    assert (found.settings["prefix"], found.settings["grid"]) == (1, [2, 3])
    assert torch.equal(found.values, zl.grad_cam(model, x, grid=(2, 3), prefix=1, **asked).values)


@pytest.mark.parametrize(
    ("kind", "shape", "more", "message"),
    [
        (Net, (2, 3, 6, 10), {"site": "head.3"}, r"\(2, 3\) have no positions"),
        (Net, (2, 3, 6, 10), {"site": "features", "grid": (5, 3)}, "are a grid of 3 x 5"),
        (Tokens, (2, 3, 4, 6), {"site": "block", "grid": (3, 3)}, "a grid of 3 x 3 with 1 prefix tokens has 10 tokens; 'the site' has 7"),
        (Tokens, (2, 3, 4, 6), {"site": "block", "prefix": 7}, "with 7 prefix tokens has 13 tokens; 'the site' has 7"),
        (Tokens, (2, 3, 4, 6), {"site": "block", "grid": (2, 3), "prefix": 2}, "with 2 prefix tokens has 8 tokens"),
    ],
)
def test_a_site_that_is_no_grid_is_one_clear_error(kind, shape, more, message):
    model, x = made(kind, shape)
    with pytest.raises(UsageError, match=message):
        zl.grad_cam(model, x, target=0, baseline=zl.baseline.zeros(), **more)


class ChannelsLast(nn.Module):
    """Features [batch, height, width, channels], as in timm's Swin."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 3)
        self.last = nn.Identity()

    def forward(self, x):
        return self.head(self.last(self.features(x).permute(0, 2, 3, 1)).tanh().mean((1, 2)))


@pytest.mark.parametrize("shape", [(2, 3, 12, 20), (2, 3, 16, 16)])
def test_features_with_channels_last_are_pooled_over_their_positions(shape):
    model, x = made(ChannelsLast, shape)
    asked = {"target": 1, "baseline": zl.baseline.zeros()}
    first, last = (zl.grad_cam(model, x, site=site, **asked) for site in ("features", "last"))
    assert last.settings["grid"] == [shape[2] // 4, shape[3] // 4]
    assert torch.allclose(last.values, first.values.permute(0, 2, 3, 1), atol=1e-12)
    smooth = [zl.odam(model, x, site=site, smooth=0.7, **asked).values for site in ("features", "last")]
    assert torch.allclose(smooth[1], smooth[0].permute(0, 2, 3, 1), atol=1e-12)


def test_a_timm_swin_is_read_as_its_own_layout_says():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=12, depths=(1, 1), num_heads=(1, 2), img_size=(56, 84), num_classes=5).eval()
    x = torch.randn(1, 3, 56, 84)
    found = zl.grad_cam(model, x, target=0, site="layers.1", baseline=zl.baseline.zeros())
    seen = zl.capture(model, x, "layers.1", target=0)
    a, g = seen.features["layers.1"], seen.gradients["layers.1"]
    assert a.shape == (1, 7, 11, 24)
    truth = (g.mean((1, 2), keepdim=True) * a).sum(-1).clamp(min=0)
    assert torch.allclose(found.values.sum(-1), truth, atol=1e-6)
    at_layers = zl.layers(model, x, target=0, baseline=zl.baseline.zeros(at="input"), sites=["layers.1"], method="gradient_x_input")
    assert at_layers.lies["layers.1"].grid == (7, 11)
