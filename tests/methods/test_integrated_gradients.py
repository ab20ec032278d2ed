"""Integrated gradients against the integral in float64; the adaptive path keeps its promises; figures mean what they say."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import zeroline as zl
from zeroline.errors import NotConvergedWarning
from zeroline.testing.toys import Convolutional, Transformer

X0 = zl.baseline.constant(0.2)


def reference(f, z, z0, steps=2000):
    """a = (z - z0) * integral of the gradient over the straight path, by Gauss-Legendre with many nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = torch.zeros_like(z)
    for t, w in zip((nodes + 1) / 2, weights / 2):
        point = (z0 + t * (z - z0)).requires_grad_()
        total += w * torch.autograd.grad(f(point), point)[0]
    return (z - z0) * total


@pytest.fixture(scope="module")
def smooth():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 3)).double()
    return model, 2 * torch.randn(3, 5).double()


@pytest.mark.parametrize(
    ("path", "steps", "close"), [("gausslegendre", 30, 1e-9), ("midpoint", 300, 1e-4), ("trapezoid", 300, 1e-4), ("riemann", 3000, 1e-3)]
)
def test_fixed_rules_are_the_integral(smooth, path, steps, close):
    model, x = smooth
    found = zl.integrated_gradients(model, x, target=[0, 1, 2], baseline=X0, path=path, n_steps=steps)
    for i in range(3):
        truth = reference(lambda z, c=i: model(z)[c], x[i], torch.full_like(x[i], 0.2), 100)
        assert torch.allclose(found.values[i], truth, atol=close)
    assert found.evaluations.tolist() == [steps] * 3


def test_the_adaptive_path_is_the_integral_within_its_tolerance(smooth):
    model, x = smooth
    found = zl.integrated_gradients(model, x, target=1, baseline=X0, tolerance=1e-5, local_tolerance=1e-4)
    for i in range(3):
        truth = reference(lambda z: model(z)[1], x[i], torch.full_like(x[i], 0.2), 100)
        assert torch.allclose(found.values[i], truth, atol=1e-4)
    assert bool((found.relative_error <= 1e-5).all())


def test_each_sample_refines_its_own_path(smooth):
    model, x = smooth
    x = torch.stack([x[0], torch.full_like(x[0], 0.21), x[0] * 40])
    found = zl.integrated_gradients(model, x, target=0, baseline=X0)
    assert found.evaluations[1] == 5
    assert found.evaluations[2] > found.evaluations[1]
    for i in range(3):
        alone = zl.integrated_gradients(model, x[i : i + 1], target=0, baseline=X0)
        assert alone.evaluations[0] == found.evaluations[i]


def test_the_local_error_is_the_sum_of_absolute_defects_and_bounds_the_error(smooth):
    model, x = smooth
    found = zl.integrated_gradients(model, x, target=0, baseline=X0, path="trapezoid", n_steps=6)
    nodes = torch.linspace(0, 1, 6, dtype=torch.float64)
    for i in range(3):
        z0 = torch.full_like(x[i], 0.2)
        points = (z0 + nodes[:, None] * (x[i] - z0)).requires_grad_()
        f = model(points)[:, 0]
        s = torch.autograd.grad(f.sum(), points)[0] @ (x[i] - z0)
        f = f.detach()
        r = [f[k + 1] - f[k] - 0.2 * (s[k] + s[k + 1]) / 2 for k in range(5)]
        assert float(found.local_error[i]) == pytest.approx(sum(abs(float(v)) for v in r), abs=1e-12)
        assert float(found.error[i]) == pytest.approx(-sum(float(v) for v in r), abs=1e-12)
        assert abs(float(found.error[i])) <= float(found.local_error[i]) + 1e-12


def test_the_map_error_compares_with_every_second_node(smooth):
    model, x = smooth
    fine = zl.integrated_gradients(model, x, target=0, baseline=X0, path="trapezoid", n_steps=9)
    coarse = zl.integrated_gradients(model, x, target=0, baseline=X0, path="trapezoid", n_steps=5)
    truth = (fine.values - coarse.values).abs().sum(1) / fine.values.abs().sum(1)
    assert torch.allclose(fine.map_error, truth, atol=1e-12)


def test_rules_without_ends_know_no_local_error(smooth):
    model, x = smooth
    found = zl.integrated_gradients(model, x, target=0, baseline=X0, path="gausslegendre", n_steps=5)
    assert found.local_error is None
    assert found.map_error is None


def test_two_nodes_know_no_map_error(smooth):
    model, x = smooth
    assert zl.integrated_gradients(model, x, target=0, baseline=X0, path="trapezoid", n_steps=2).map_error is None
    with pytest.warns(NotConvergedWarning):
        found = zl.integrated_gradients(model, x, target=0, baseline=X0, max_evaluations=2, tolerance=1e-9)
    assert found.map_error.isnan().all()
    assert "map error" not in repr(found)


def test_closing_the_sum_is_exact_named_and_keeps_the_raw_error(smooth):
    model, x = smooth
    options = {"target": 0, "baseline": X0, "path": "trapezoid", "n_steps": 3}
    plain = zl.integrated_gradients(model, x, **options)
    closed = zl.integrated_gradients(model, x, closure="discrete_gradient", **options)
    assert float(closed.error.abs().max()) < 1e-12
    assert torch.allclose(closed.raw_error, plain.error)
    assert float(plain.error.abs().min()) > 1e-5
    assert closed.closure == "discrete_gradient"
    assert torch.equal(closed.map_error, plain.map_error), "closing the sum does not make the map better"


def test_running_out_of_evaluations_is_said_and_kept(smooth):
    model, x = smooth
    with pytest.warns(NotConvergedWarning, match="max_evaluations=6"):
        found = zl.integrated_gradients(model, x, target=0, baseline=X0, tolerance=1e-9, local_tolerance=1e-9, max_evaluations=6)
    assert found.evaluations.tolist() == [6, 6, 6]
    assert set(found.stopped) == {"max_evaluations"}


@pytest.mark.parametrize("rows", [1, 2, 7, None])
def test_the_internal_batch_size_changes_nothing(smooth, rows):
    model, x = smooth
    truth = zl.integrated_gradients(model, x, target=0, baseline=X0, internal_batch_size=100)
    found = zl.integrated_gradients(model, x, target=0, baseline=X0, internal_batch_size=rows)
    assert torch.allclose(found.values, truth.values, atol=1e-12)
    assert torch.equal(found.evaluations, truth.evaluations)


def test_no_pass_holds_more_rows_than_asked(smooth):
    model, x = smooth
    rows = []
    hook = model.register_forward_pre_hook(lambda m, a: rows.append(len(a[0])))
    zl.integrated_gradients(model, x[:1], target=0, baseline=X0, internal_batch_size=2, path="midpoint", n_steps=9)
    hook.remove()
    assert max(rows) == 2


@pytest.mark.parametrize("site", ["blocks.0", "blocks.0.mlp", "blocks.1"])
def test_suffix_execution_gives_what_full_runs_give(site, monkeypatch):
    torch.manual_seed(0)
    model, x = Transformer().eval().double(), torch.randn(2, 5, 8).double()
    asked = {"target": [0, 2], "site": site, "baseline": zl.baseline.constant(0.1), "path": "gausslegendre", "n_steps": 8}
    fast = zl.integrated_gradients(model, x, **asked)
    assert fast.execution == f"suffix after {site}"
    monkeypatch.setattr("zeroline.model.suffix._before", lambda *_: [])
    slow = zl.integrated_gradients(model, x, **asked)
    assert slow.execution == "full"
    assert torch.allclose(fast.values, slow.values, atol=1e-13)


def test_modules_before_the_site_do_not_run_along_the_path():
    torch.manual_seed(0)
    model, x = Transformer().eval(), torch.randn(1, 5, 8)
    counts = {0: 0, 1: 0}
    for i in (0, 1):
        model.blocks[i].mlp[0].register_forward_hook(lambda *_, i=i: counts.__setitem__(i, counts[i] + 1))
    zl.integrated_gradients(
        model, x, target=0, site="blocks.0", baseline=zl.baseline.constant(0.1), path="midpoint", n_steps=20, internal_batch_size=1
    )
    assert counts[1] >= 20
    assert counts[0] <= 6


def test_an_in_place_operation_after_the_site_does_not_spoil_the_features():
    torch.manual_seed(0)
    model, x = Convolutional().eval().double(), torch.randn(2, 3, 6, 10).double()
    found = zl.integrated_gradients(model, x, target=0, site="body.0", baseline=X0, tolerance=1e-2, local_tolerance=3e-3)
    z = model.body[0](x).detach()

    def rest(z):
        return model.head(model.body[4](model.body[3](model.body[2](z.relu()))).mean((2, 3)))[0, 0]

    truth = reference(rest, z[:1], torch.full_like(z[:1], 0.2))
    assert torch.allclose(found.values[:1], truth, atol=1e-3 * float(truth.abs().max()))


def test_a_joint_site_moves_its_parts_on_one_path():
    class Two(nn.Module):
        def forward(self, a, b):
            return torch.stack([(a.sum(1) * b.sum(1)), a.sum(1)], 1)

    a, b = torch.randn(2, 3).double(), torch.randn(2, 4).double()
    found = zl.integrated_gradients(Two(), (a, b), target=0, site=zl.site.joint("input:a", "input:b"), baseline=zl.baseline.zeros())
    # f = (sum a)(sum b): both parts get half of the product
    assert torch.allclose(found.parts["input:a"].sum(1), a.sum(1) * b.sum(1) / 2)
    assert torch.allclose(found.parts["input:b"].sum(1), a.sum(1) * b.sum(1) / 2)
    assert float(found.error.abs().max()) < 1e-12
    with pytest.raises(zl.errors.SiteError, match="parts"):
        _ = found.values


def test_a_zero_difference_has_no_relative_error_and_a_reason():
    class Even(nn.Module):
        def forward(self, x):
            return torch.stack([(x**2).sum(1)] * 2, 1)

    x = torch.tensor([[1.0, 2.0]])
    found = zl.integrated_gradients(Even(), x, target=0, baseline=zl.baseline.tensor(-x))
    assert found.relative_error is None
    assert "rounding" in found.relative_error_reason
    assert found.difference.tolist() == [0.0]
    assert found.stopped == ("tolerance",)


def test_half_precision_stops_at_its_rounding_floor():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 3)).bfloat16()
    x = torch.randn(2, 8).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = zl.integrated_gradients(model, x, target=0, baseline=zl.baseline.zeros(), tolerance=1e-6, local_tolerance=1e-6)
    assert set(found.stopped) == {"rounding floor"}
    assert int(found.evaluations.max()) < 100
    assert found.values.dtype == torch.bfloat16


def test_a_detached_model_is_an_error_not_a_zero():
    class Detached(nn.Module):
        def forward(self, x):
            return torch.stack([x.detach().sum(1)] * 2, 1)

    for method in zl.METHODS.values():
        with pytest.raises(zl.errors.GradientError, match="has no gradient there"):
            method(Detached(), torch.ones(1, 3), target=0, baseline=zl.baseline.zeros())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0}, "tolerance=0"),
        ({"max_evaluations": 1}, "2 or more"),
        ({"closure": "share"}, "discrete_gradient"),
        ({"internal_batch_size": 0}, "1 or more"),
        ({"path": "gauss"}, "nearest: gausslegendre"),
    ],
)
def test_bad_options_are_one_clear_error(smooth, options, message):
    model, x = smooth
    with pytest.raises(zl.errors.UsageError, match=message):
        zl.integrated_gradients(model, x, target=0, baseline=X0, **options)
