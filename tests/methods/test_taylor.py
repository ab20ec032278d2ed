"""Taylor's second order against the full Hessian in float64; exact on quadratics; fused attention included."""

import pytest
import torch
from torch import nn

import zeroline as zl
from methods.once import OnceDifferentiable
from zeroline.errors import GradientError
from zeroline.testing.toys import Transformer


def reference(f, z, z0):
    """a = (z - z0) g(z) - 1/2 (z - z0) H(z)(z - z0), with the whole Hessian."""
    shape, d = z.shape, (z - z0).flatten()
    gradient = torch.autograd.functional.jacobian(f, z).flatten()
    hessian = torch.autograd.functional.hessian(f, z).reshape(d.numel(), d.numel())
    return (d * gradient - d * (hessian @ d) / 2).view(shape)


def test_second_order_is_the_hessian_of_the_features():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3), nn.Softplus()).double()
    x, x0 = torch.randn(2, 5).double(), torch.randn(2, 5).double()
    found = zl.taylor(model, x, target=[0, 2], baseline=zl.baseline.tensor(x0), order=2)
    for i, target in enumerate((0, 2)):
        assert torch.allclose(found.values[i], reference(lambda z, t=target: model(z)[t], x[i], x0[i]), atol=1e-12)


def test_it_is_exact_on_a_quadratic():
    class Quadratic(nn.Module):
        def forward(self, x):
            return torch.stack([(x**2).sum(1) + x[:, 0] * x[:, 1], x.sum(1)], 1)

    x, x0 = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    second = zl.taylor(Quadratic(), x, target=0, baseline=zl.baseline.tensor(x0))
    first = zl.taylor(Quadratic(), x, target=0, baseline=zl.baseline.tensor(x0), order=1)
    assert float(second.error.abs().max()) < 1e-12
    assert float(first.error.abs().min()) > 1e-3


def test_fused_attention_has_a_second_order_through_the_math_kernel():
    torch.manual_seed(0)
    model, x = Transformer().double().eval(), torch.randn(1, 4, 8).double()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        truth = reference(lambda z: model(z[None])[0, 1], x[0], torch.full((4, 8), 0.3).double())
    found = zl.taylor(model, x, target=1, baseline=zl.baseline.constant(0.3))
    assert torch.allclose(found.values[0], truth, atol=1e-9)
    assert found.settings["attention_kernel"] == "math"


def test_first_order_is_gradient_x_input():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)), torch.randn(2, 4)
    first = zl.taylor(model, x, target=0, baseline=zl.baseline.zeros(), order=1)
    assert torch.equal(first.values, zl.gradient_x_input(model, x, target=0, baseline=zl.baseline.zeros()).values)
    assert (first.method, first.settings) == ("taylor", {"order": 1})


def test_an_infinite_gradient_is_an_error():
    class Root(nn.Module):
        def forward(self, x):
            return torch.stack([x.sqrt().sum(1)] * 2, 1)

    with pytest.raises(zl.errors.NonFiniteError, match="gradient is not finite at sample 0"):
        zl.taylor(Root(), torch.tensor([[0.0, 1.0]]), target=0, baseline=zl.baseline.constant(2.0))


def test_a_third_order_does_not_exist():
    with pytest.raises(zl.errors.UsageError, match="1 and 2 are possible"):
        zl.taylor(nn.Linear(2, 2), torch.ones(1, 2), target=0, baseline=zl.baseline.zeros(), order=3)


def test_a_missing_second_derivative_is_one_clear_error():
    class Distances(nn.Module):
        def forward(self, x):
            return torch.cdist(x, torch.eye(3)[None], p=1.5).flatten(1)

    with pytest.raises(zl.errors.GradientError, match="second derivative"):
        zl.taylor(Distances(), torch.rand(1, 2, 3), target=0, baseline=zl.baseline.zeros())


def test_a_function_that_is_differentiable_once_is_refused_not_left_out():
    with pytest.raises(GradientError, match="differentiable only once"):
        zl.taylor(OnceDifferentiable(), torch.ones(1, 3), target=0, baseline=zl.baseline.zeros())
