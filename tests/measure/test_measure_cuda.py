"""Baselines, the CAM family, audits, layers and curves on a GPU against the CPU. Skipped where there is none."""

import pytest
import torch

import zeroline as zl
from zeroline.model.reference import settle

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
B = zl.baseline


@pytest.fixture(autouse=True)
def no_tf32(exact_kernels):
    """Here figures are compared with the CPU's."""


def both(samples):
    """The zoo's model and three images on the CPU and on the GPU."""
    x = {"pixel_values": torch.cat([sample.inputs["pixel_values"] for sample in samples[:3]])}
    return [(zl.zoo.load("digits-vit").to(where), {n: t.to(where) for n, t in x.items()}) for where in ("cpu", "cuda")]


@pytest.mark.parametrize("name", ["grad_cam", "layer_cam", "odam", "difference_map"])
def test_the_cam_family_is_the_same(samples, name):
    (model, x), (theirs, y) = both(samples)
    asked = {"target": zl.top(), "site": "vit.layers.1", "baseline": B.constant(0.1)}
    ours, found = zl.METHODS[name](model, x, **asked), zl.METHODS[name](theirs, y, **asked)
    assert found.values.device.type == "cuda"
    assert torch.allclose(found.values.cpu(), ours.values, atol=2e-3)
    assert torch.allclose(sum(found.budget.values()), found.error, atol=1e-6)


@pytest.mark.parametrize("make", [lambda x: B.mean_of(x), lambda x: B.distribution(x, draws=2), lambda x: B.blur(8)])
def test_baselines_are_the_same(samples, make):
    (model, x), (theirs, y) = both(samples)
    asked = {"target": zl.top(), "site": "vit.layers.1"}
    ours, found = (zl.integrated_gradients(m, inputs, baseline=make(inputs), **asked) for m, inputs in ((model, x), (theirs, y)))
    assert torch.allclose(found.difference.cpu(), ours.difference, atol=0.05)
    assert bool((found.relative_error <= 0.02).all())


def test_a_neutral_baseline_is_as_neutral_there(samples):
    """The search goes its own way on other kernels, so where it ends is not compared: how neutral that is is, and how exact what is measured from it."""
    for model, inputs in both(samples):
        found = zl.integrated_gradients(model, inputs, target=zl.top(), site="vit.layers.1", baseline=B.neutral(B.black(), kl=0.01))
        assert bool((found.baseline_kl <= 0.01).all())
        assert bool((found.relative_error <= 0.02).all())


def test_audits_layers_and_curves_run_and_agree(samples):
    (model, x), (theirs, y) = both(samples)
    ours, found = (zl.audit_baseline(m, inputs, zl.top(), [B.black(), B.blur(8)]) for m, inputs in ((model, x), (theirs, y)))
    assert [found.verdict(name) for name in found.baselines] == [ours.verdict(name) for name in ours.baselines]
    at_layers = zl.layers(theirs, y, target=zl.top(), baseline=B.black())
    assert all(bool((one.relative_error <= 0.02).all()) for one in at_layers.members.values())
    maps = torch.rand(3, 8, 8)
    here, there = (zl.deletion_insertion(m, inputs, maps, target=zl.top(), baseline=B.black()) for m, inputs in ((model, x), (theirs, y)))
    assert torch.allclose(there.deletion.cpu(), here.deletion, atol=0.05)


def test_neutral_inputs_in_bfloat16(samples):
    (_, _), (model, x) = both(samples)
    settled = settle(model.bfloat16(), {n: t.bfloat16() for n, t in x.items()}, B.neutral(B.black(), kl=0.05))
    assert settled.inputs.tensors["pixel_values"].dtype == torch.bfloat16
    assert bool((settled.kl <= 0.05).all())
