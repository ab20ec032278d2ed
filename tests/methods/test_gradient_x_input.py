"""Gradient x input against the product written out in float64, at inputs and at layers."""

import pytest
import torch
from torch import nn

import zeroline as zl


def reference(head, z, z0, target):
    """a = (z - z0) * df/dz(z), for the part of the model after the site."""
    z = z.clone().requires_grad_()
    head(z)[torch.arange(len(z)), target].sum().backward()
    return (z.detach() - z0) * z.grad


@pytest.fixture
def parts():
    torch.manual_seed(1)
    body = nn.Sequential(nn.Linear(5, 8), nn.Tanh()).double()
    head = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3)).double()
    return body, head, torch.randn(4, 5).double(), torch.randn(4, 8).double()


def test_values_are_step_times_gradient_at_a_layer(parts):
    body, head, x, z0 = parts
    target = torch.tensor([0, 2, 1, 1])
    found = zl.gradient_x_input(nn.Sequential(body, head), x, target=target, site="0", baseline=zl.baseline.tensor(z0))
    z = body(x).detach()
    assert torch.allclose(found.values, reference(head, z, z0, target), atol=1e-14)
    difference = (head(z) - head(z0))[torch.arange(4), target]
    assert torch.allclose(found.difference, difference.detach(), atol=1e-13)


def test_a_baseline_input_is_run_through_the_model_to_the_layer(parts):
    body, head, x, _ = parts
    x0 = torch.randn_like(x)
    found = zl.gradient_x_input(nn.Sequential(body, head), x, target=1, site="0", baseline=zl.baseline.of(x0))
    assert torch.allclose(found.values, reference(head, body(x).detach(), body(x0).detach(), torch.ones(4, dtype=int)), atol=1e-14)
    assert torch.allclose(found.reference_output, head(body(x0))[:, 1].detach())
    assert found.is_cut is True


def test_it_takes_one_gradient_and_two_forward_passes_once_the_model_is_known(parts):
    body, head, x, _ = parts
    model = nn.Sequential(body, head).eval()
    zl.gradient_x_input(model, x, target=1, baseline=zl.baseline.zeros())  # tests once that samples do not mix
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    found = zl.gradient_x_input(model, x, target=1, baseline=zl.baseline.zeros())
    assert found.evaluations.tolist() == [1, 1, 1, 1]
    assert len(passes) == 2
    assert found.forward_passes == 1
