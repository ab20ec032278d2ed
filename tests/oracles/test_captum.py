"""Captum as an oracle: the same values where it is right, and the difference it misses where it is not.

Captum's convergence delta compares the sum with f(x) - f(x0). At a site that is no cut the sum approximates
f(x) - f(do(z := z0)) instead, and the delta is wrong by f(x0) - f(do).
"""

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerIntegratedGradients
from captum.testing.helpers import basic_models as toys
from torch import nn

import zeroline as zl
from zeroline.testing.toys import Transformer

PAIRS = {"gausslegendre": "gausslegendre", "midpoint": "riemann_middle", "riemann": "riemann_right"}


def column(output):
    return output if output.ndim == 1 else output[:, 0]


def drawn(build):
    """The model with weights that differ from each other: Captum's own are all one, and its softmax is then flat."""

    def make():
        model = build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter).abs() + 0.05 * torch.randn_like(parameter))
        return model

    return make


CASES = [
    ("reused modules", drawn(toys.BasicModelWithReusedModules), (4, 3), None),
    ("reused linear", toys.BasicModelWithReusedLinear, (4, 3), None),
    ("linear relu linear", lambda: toys.BasicLinearReLULinear(5), (4, 5), None),
    ("multilayer", toys.BasicModel_MultiLayer, (4, 3), 1),
    ("multilayer in place", lambda: toys.BasicModel_MultiLayer(inplace=True), (4, 3), 0),
    ("conv net", drawn(toys.BasicModel_ConvNet), (2, 1, 10, 10), 3),
    ("conv net 1d pooling", drawn(toys.BasicModel_ConvNet_MaxPool1d), (2, 1, 10), 2),
]


def close(a, b, share=1e-5):
    assert float(b.abs().max()) > 1e-4, "values this small compare nothing"
    return float((a - b).abs().max()) <= share * float(b.abs().max())


@pytest.mark.parametrize(("name", "build", "shape", "target"), CASES, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("path", sorted(PAIRS))
def test_integrated_gradients_are_captums_on_its_own_models(name, build, shape, target, path):
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(shape)
    x0 = torch.full_like(x, 0.1)
    truth = IntegratedGradients(model).attribute(x, x0, target=target if target is not None else 0, method=PAIRS[path], n_steps=17)
    asked = target if target is not None else zl.target.output(column)
    found = zl.integrated_gradients(model, x, target=asked, baseline=zl.baseline.tensor(x0), path=path, n_steps=17)
    assert close(found.values, truth)


@pytest.mark.parametrize(("name", "build", "shape", "target"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_gradient_x_input_is_captums_on_its_own_models(name, build, shape, target):
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(shape)
    truth = InputXGradient(model).attribute(x.clone().requires_grad_(), target=target if target is not None else 0)
    found = zl.gradient_x_input(model, x, target=target if target is not None else column, baseline=zl.baseline.zeros())
    assert close(found.values, truth.detach())


@pytest.mark.parametrize("layer", ["linear1", "relu", "linear2"])
def test_layer_integrated_gradients_are_captums_at_cuts(layer):
    torch.manual_seed(0)
    model, x, x0 = toys.BasicModel_MultiLayer().eval(), torch.randn(4, 3), torch.full((4, 3), 0.2)
    truth = LayerIntegratedGradients(model, model.get_submodule(layer)).attribute(x, x0, target=1, n_steps=25)
    found = zl.integrated_gradients(model, x, target=1, site=layer, baseline=zl.baseline.of(x0), path="gausslegendre", n_steps=25)
    assert close(found.values, truth)


def test_two_inputs_on_one_path_are_captums():
    torch.manual_seed(0)
    model, x = toys.BasicModel_MultiLayer_MultiInput().eval(), tuple(torch.randn(2, 3) for _ in range(3))
    truth = IntegratedGradients(model).attribute(x, target=0, n_steps=20, additional_forward_args=2)
    site = zl.site.joint("input:x1", "input:x2", "input:x3")
    found = zl.integrated_gradients(model, (*x, 2), target=0, site=site, baseline=zl.baseline.zeros(), path="gausslegendre", n_steps=20)
    for ours, theirs in zip(found.parts.values(), truth):
        assert close(ours, theirs)


@pytest.mark.parametrize("site", [None, "vit.embeddings", "vit.layers.0", "vit.layers.2", "vit.layers.3"])
def test_values_on_the_zoo_are_captums_at_cuts(digits_vit, samples, site):
    from zeroline import zoo

    inputs = zoo.collate(samples[:3])
    black = torch.full_like(inputs["pixel_values"], -1.0)

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = digits_vit

        def forward(self, pixels):
            return self.inner(pixel_values=pixels).logits

    model, classes = Logits(), [s.labels[0] for s in samples[:3]]
    if site is None:
        truth = IntegratedGradients(model).attribute(inputs["pixel_values"], black, target=classes, n_steps=12)
    else:
        layer = LayerIntegratedGradients(model, digits_vit.get_submodule(site))
        truth = layer.attribute(inputs["pixel_values"], black, target=classes, n_steps=12)
    found = zl.integrated_gradients(digits_vit, inputs, target=classes, site=site, baseline=zl.baseline.black(), path="gausslegendre", n_steps=12)
    assert found.is_cut is True
    assert close(found.values, truth)


def test_gradient_x_input_on_the_zoo_is_captums(digits_vit, samples):
    from zeroline import zoo

    inputs = zoo.collate(samples[:3])
    truth = InputXGradient(lambda pixels: digits_vit(pixel_values=pixels).logits).attribute(inputs["pixel_values"].requires_grad_(), target=[7, 6, 0])
    found = zl.gradient_x_input(digits_vit, inputs, target=[7, 6, 0], baseline=zl.baseline.zeros())
    assert close(found.values, truth.detach())


def test_at_a_side_path_captums_delta_is_wrong_and_ours_is_the_difference_that_the_values_add_up_to():
    torch.manual_seed(0)
    model, x = Transformer().eval().double(), torch.randn(3, 5, 8).double()
    x0 = torch.full_like(x, 0.1) + 0.05 * torch.randn_like(x)
    layer = LayerIntegratedGradients(model, model.blocks[0].mlp)
    truth, delta = layer.attribute(x, x0, target=0, n_steps=60, return_convergence_delta=True)
    found = zl.integrated_gradients(model, x, target=0, site="blocks.0.mlp", baseline=zl.baseline.of(x0), path="gausslegendre", n_steps=60)
    assert close(found.values, truth)
    assert found.is_cut is False
    gap = found.reference_output - found.baseline_output  # f(x0) - f(do)
    assert float(found.error.abs().max()) < 1e-6
    assert float(delta.abs().min()) > 1e-2, "Captum's delta says that the sum is off"
    assert torch.allclose(delta, gap, atol=1e-6), "by exactly what it compares with wrongly"
