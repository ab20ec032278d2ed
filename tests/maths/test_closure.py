"""The discrete gradient segment by segment (Gonzalez 1996) against the closed formula."""

import torch

from zeroline.maths.closure import discrete_gradient
from zeroline.maths.quadrature import trapezoid_weights


def test_it_equals_the_discrete_gradient_on_every_segment():
    torch.manual_seed(0)
    weights = torch.randn(6, dtype=torch.float64)

    def f(z):
        return torch.sin(z @ weights) + z.pow(3).sum(-1)

    def gradient(z):
        return torch.cos(z @ weights)[..., None] * weights + 3 * z**2

    x, x0 = torch.randn(2, 6, dtype=torch.float64)
    nodes = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    points = x0 + nodes[:, None] * (x - x0)
    g, step = gradient(points), x - x0
    truth = torch.zeros(6, dtype=torch.float64)
    for k in range(3):
        u, v = points[k], points[k + 1]
        mean = (g[k] + g[k + 1]) / 2
        truth += (v - u) * (mean + (f(v) - f(u) - mean @ (v - u)) * (v - u) / (v - u).square().sum())
    raw = (trapezoid_weights(nodes)[:, None] * g).sum(0) * step
    error = raw.sum() - (f(x) - f(x0))
    assert abs(float(error)) > 1e-2
    closed = discrete_gradient([raw[None]], [step[None]], error[None])[0][0]
    assert torch.allclose(closed, truth, atol=1e-12)
    assert abs(float(closed.sum() - (f(x) - f(x0)))) < 1e-12


def test_no_step_means_no_change():
    zero = torch.zeros(1, 3)
    assert torch.equal(discrete_gradient([zero], [zero], torch.ones(1))[0], zero)


def test_parts_of_a_joint_site_share_one_residual():
    a, b = torch.zeros(1, 2), torch.zeros(1, 3)
    closed = discrete_gradient([a, b], [torch.ones(1, 2), torch.full((1, 3), 2.0)], torch.tensor([-14.0]))
    assert torch.allclose(closed[0], torch.ones(1, 2))
    assert torch.allclose(closed[1], torch.full((1, 3), 4.0))
