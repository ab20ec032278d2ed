"""The adapters on a GPU: inputs go where the model is, and the values are those of the CPU."""

import numpy as np
import pytest
import torch
from torch import nn

import zeroline as zl
from zeroline import zoo
from zeroline.compat.captum import IntegratedGradients, LayerIntegratedGradients
from zeroline.compat.quantus import explain_func

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).eval().double()


@pytest.mark.parametrize("target", [1, [0, 3, 2], torch.tensor([0, 3, 2])], ids=["one", "a list", "a tensor"])
def test_captums_classes_give_the_same_values_on_a_gpu(target):
    here, there, x = network(), network().cuda(), torch.randn(3, 6).double()
    for make in (lambda net: IntegratedGradients(lambda x: net(x)), lambda net: LayerIntegratedGradients(net, net[0])):
        (a, da), (b, db) = (make(net).attribute(given, 0.1, target, return_convergence_delta=True) for net, given in ((here, x), (there, x.cuda())))
        assert b.device.type == db.device.type == "cuda"
        assert torch.allclose(a, b.cpu(), atol=1e-10)
        assert torch.allclose(da, db.cpu(), atol=1e-10)


def test_quantus_hands_over_arrays_and_gets_arrays():
    x, y = np.random.default_rng(0).normal(size=(3, 6)), np.array([0, 3, 2])
    a, b = (
        explain_func(model=net, inputs=x, targets=y, baseline="zeros", device=next(net.parameters()).device) for net in (network(), network().cuda())
    )
    assert isinstance(b, np.ndarray)
    assert np.allclose(a, b, atol=1e-6)


def test_a_model_on_a_gpu_is_explained_there():
    picture, there = zoo.samples("digits-vit")[12].image, zl.load("zoo:digits-vit")
    there.model.cuda()
    found = zl.explain(there, picture, path="midpoint", n_steps=8)
    truth = zl.explain("zoo:digits-vit", picture, path="midpoint", n_steps=8)
    assert found.values.device.type == "cuda"
    assert torch.allclose(found.values.cpu(), truth.values, atol=1e-3)
