"""The parts of a budget add up to the attribution error, and each is what its change brings."""

import pytest
import torch
from torch import nn

import zeroline as zl
from methods.cam_reference import Net, made
from zeroline.errors import NotFoundError

ASKED = {"target": 1, "site": "features", "baseline": zl.baseline.zeros()}


@pytest.mark.parametrize("name", sorted(zl.METHODS))
@pytest.mark.parametrize("options", [{}, {"normalise": True, "smooth": 0.5, "rectify": True, "closure": "discrete_gradient", "order": 2}])
def test_parts_add_up_to_the_error(name, options):
    import inspect

    model, x = made()
    known = inspect.signature(zl.METHODS[name]).parameters
    found = zl.error_budget(name, model, x, **ASKED, **{k: v for k, v in options.items() if k in known})
    total = torch.stack(list(found.parts.values())).sum(0)
    assert torch.allclose(total, found.error, atol=1e-6, rtol=0)
    assert torch.allclose(found.error, found.attribution.values.flatten(1).sum(1) - found.difference, atol=1e-12)


def test_integrated_gradients_have_quadrature_and_what_a_closure_shares_out():
    model, x = made()
    found = zl.error_budget("integrated_gradients", model, x, **ASKED, path="riemann", n_steps=3, closure="discrete_gradient")
    raw = zl.integrated_gradients(model, x, **ASKED, path="riemann", n_steps=3).error
    assert torch.allclose(found.parts["quadrature"], raw, atol=1e-12)
    assert torch.allclose(found.parts["discrete_gradient"], -raw, atol=1e-9)
    assert float(raw.abs().min()) > 1e-4


class Residual(nn.Module):
    """``side`` is no cut: the input goes around it."""

    def __init__(self):
        super().__init__()
        self.side, self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(x + self.side(x))


def test_the_reference_gap_is_what_a_delta_against_the_baseline_input_would_have_added():
    from captum.attr import LayerIntegratedGradients

    torch.manual_seed(0)
    model, x, x0 = Residual().double(), torch.randn(2, 4).double(), torch.randn(2, 4).double()
    found = zl.error_budget("integrated_gradients", model, x, target=1, site="side", baseline=zl.baseline.of(x0), path="gausslegendre", n_steps=20)
    values, delta = LayerIntegratedGradients(model, model.side).attribute(x, x0, target=1, n_steps=20, return_convergence_delta=True)
    assert torch.allclose(found.attribution.values, values, atol=1e-9)
    assert found.attribution.is_cut is False
    assert float(found.reference_gap.abs().min()) > 0.01
    assert torch.allclose(delta, found.error + found.reference_gap, atol=1e-9)
    assert "no part of it: f(x0) - f(do)" in repr(found)
    at_a_cut = zl.error_budget("gradient_x_input", model, x, target=1, baseline=zl.baseline.of(x0))
    assert not at_a_cut.reference_gap.any()
    assert "no part of it" not in repr(at_a_cut)


def test_a_second_order_leaves_what_is_beyond_it():
    model, x = made()
    first, second = (zl.error_budget("taylor", model, x, **ASKED, order=order) for order in (1, 2))
    assert list(first.parts) == list(second.parts) == ["truncation"]
    assert not torch.allclose(first.parts["truncation"], second.parts["truncation"])


def test_it_survives_saving(tmp_path):
    model, x = made()
    found = zl.error_budget("grad_cam", model, x, **ASKED)
    found.save(tmp_path / "b.safetensors")
    again = zl.ErrorBudget.load(tmp_path / "b.safetensors")
    assert repr(again) == repr(found)
    assert {k: v.tolist() for k, v in again.parts.items()} == {k: v.tolist() for k, v in found.parts.items()}
    one = found.attribution.sample(1)
    assert torch.allclose(sum(one.budget.values()), one.error)


def test_a_method_that_says_nothing_has_all_of_it_unaccounted():
    model, x = made(Net)
    silent = zl.ErrorBudget(zl.Attribution(**{**vars(zl.gradient_x_input(model, x, **ASKED)), "budget": {}}))
    assert list(silent.parts) == ["unaccounted"]
    assert torch.equal(silent.parts["unaccounted"], silent.error)


def test_an_unknown_method_gets_the_nearest():
    model, x = made()
    with pytest.raises(NotFoundError, match="no method 'gradcam'; nearest: grad_cam"):
        zl.error_budget("gradcam", model, x, **ASKED)


def test_an_option_that_the_method_does_not_have_is_named_with_the_nearest(digits_vit, samples):
    with pytest.raises(NotFoundError, match="no option of taylor 'ordr'; nearest: order"):
        zl.error_budget("taylor", digits_vit, samples[0].inputs, target=0, baseline=zl.baseline.zeros(), ordr=2)
