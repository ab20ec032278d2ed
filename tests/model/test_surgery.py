"""capture and replaced against plain PyTorch; joint sites of layers against full runs."""

import pytest
import torch
from torch import nn

import zeroline as zl
from zeroline.errors import ModelStateError, SiteError
from zeroline.testing.toys import Structured, Transformer


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return Transformer().eval().double(), torch.randn(2, 5, 8).double()


def test_captured_features_and_gradients_are_pytorchs(transformer):
    model, x = transformer
    found = zl.capture(model, x, "blocks.0", target=[1, 2])
    z = model.blocks[0](x).detach().requires_grad_()
    model.head(model.blocks[1](z).mean(1))[[0, 1], [1, 2]].sum().backward()
    assert torch.allclose(found.features["blocks.0"], z.detach())
    assert torch.allclose(found.gradients["blocks.0"], z.grad)
    assert zl.capture(model, x, "blocks.0").gradients == {}


def test_replacing_features_is_running_the_rest_on_them(transformer):
    model, x = transformer
    z0 = torch.randn(2, 5, 8).double()
    assert torch.allclose(zl.replaced(model, x, {"blocks.0": z0}), model.head(model.blocks[1](z0).mean(1)))
    assert torch.equal(zl.replaced(model, x, {"blocks.0": model.blocks[0](x)}), model(x))
    with pytest.raises(SiteError, match=r"shape \(1, 2\) is given for 'blocks.0'"):
        zl.replaced(model, x, {"blocks.0": torch.ones(1, 2)})


def test_an_element_of_a_tuple_is_replaced_and_the_rest_kept():
    torch.manual_seed(0)
    model = Structured().eval()
    inputs = {"features": torch.randn(2, 5, 4), "mask": torch.ones(2, 5)}
    output = zl.replaced(model, inputs, {"recurrent[0]": torch.zeros(2, 5, 6)})
    assert not torch.equal(output["states"][0], model(**inputs)["states"][0])
    assert torch.allclose(output["states"][1], model(**inputs)["states"][1])


def test_a_joint_site_of_layers_is_the_integral_with_all_of_them_replaced(transformer):
    """Both mlp outputs move together; the reference replaces them with plain hooks, at 60 Gauss-Legendre nodes."""
    import numpy as np

    model, x = transformer
    found = zl.integrated_gradients(model, x, target=0, site="all:blocks.*.mlp", baseline=zl.baseline.zeros(), path="gausslegendre", n_steps=20)
    assert list(found.parts) == ["blocks.0.mlp", "blocks.1.mlp"]
    assert found.execution.startswith("suffix")
    z = [zl.capture(model, x, name).features[name] for name in found.parts]
    sums = [torch.zeros_like(part) for part in z]
    nodes, weights = np.polynomial.legendre.leggauss(60)
    for t, w in zip((nodes + 1) / 2, weights / 2):
        points = [(t * part).requires_grad_() for part in z]
        hooks = [model.blocks[i].mlp.register_forward_hook(lambda m, a, o, p=p: p) for i, p in enumerate(points)]
        gradients = torch.autograd.grad(model(x)[:, 0].sum(), points)
        for hook in hooks:
            hook.remove()
        for total, gradient in zip(sums, gradients):
            total += w * gradient
    for part, total, value in zip(z, sums, found.parts.values()):
        assert torch.allclose(value, part * total, atol=1e-7)
    assert float(found.error.abs().max()) < 1e-6


def test_word_embeddings_and_pixels_move_on_one_path():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.see, self.head = nn.Embedding(9, 4), nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, pixels, ids):
            return self.head(torch.tanh(self.see(pixels) * self.embed(ids).mean(1)))

    torch.manual_seed(0)
    inputs = {"pixels": torch.randn(2, 6), "ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}
    site = zl.site.joint("input:pixels", "embedding:ids")
    found = zl.integrated_gradients(Both(), inputs, target=[0, 1], site=site, baseline=zl.baseline.zeros(), tolerance=1e-3)
    assert {name: tuple(part.shape) for name, part in found.parts.items()} == {"input:pixels": (2, 6), "embed": (2, 3, 4)}
    assert bool((found.relative_error <= 1e-3).all())


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.5), nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True), nn.LSTM(4, 4, 2, dropout=0.5, batch_first=True), nn.BatchNorm1d(3)],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("method", sorted(zl.METHODS))
def test_a_training_model_that_answers_at_random_is_refused_whatever_hides_the_dropout(layer, method):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = layer, nn.Linear(4, 2)

        def forward(self, x):
            x = self.layer(x, x, x)[0] if isinstance(layer, nn.MultiheadAttention) else self.layer(x)
            return self.head(x[0] if isinstance(x, tuple) else x).mean(1)

    torch.manual_seed(0)
    with pytest.raises(ModelStateError, match=r"training mode.*eval\(\)"):
        zl.METHODS[method](Model().train(), torch.randn(2, 3, 4), target=0, baseline=zl.baseline.zeros())


def test_a_training_model_without_randomness_is_explained():
    model = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)).train()
    assert zl.taylor(model, torch.randn(2, 4), target=0, baseline=zl.baseline.zeros()).method == "taylor"
    assert model.training
