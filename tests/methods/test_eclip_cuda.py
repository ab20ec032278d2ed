"""ECLIP and the principles on a GPU agree with the CPU (skipped where there is none)."""

import pytest
import torch

import zeroline as zl
from zeroline import zoo
from zeroline.cli.labelled import from_zoo

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def pairs():
    return zoo.collate(zoo.test_set("digits-clip")[:4])


@pytest.mark.parametrize("method", ["grad_eclip", "attention_eclip"])
def test_maps_on_the_gpu_are_those_of_the_cpu(method, pairs):
    model = zoo.load("digits-clip")
    own = zl.ROUTES[method](model, pairs)
    there = zl.ROUTES[method](model.cuda(), {name: tensor.cuda() for name, tensor in pairs.items()})
    for name, values in own.by_source.items():
        assert there.by_source[name].device.type == "cuda"
        assert torch.allclose(values, there.by_source[name].cpu(), atol=1e-3 * float(values.max()))


def test_half_precision_on_the_gpu_is_near(pairs):
    model = zoo.load("digits-clip").cuda().bfloat16()
    inputs = {name: (t.bfloat16() if t.is_floating_point() else t).cuda() for name, t in pairs.items()}
    own, there = zl.grad_eclip(zoo.load("digits-clip"), pairs).grid(), zl.grad_eclip(model, inputs).grid().float().cpu()
    assert torch.cosine_similarity(own.flatten(1), there.flatten(1)).min() > 0.9


def test_principles_run_on_the_gpu():
    data = from_zoo("digits-clip", 8)
    moved = zl.LabelledSet({n: t.cuda() for n, t in data.inputs.items()}, data.labels, {n: t.cuda() for n, t in data.captions.items()}, data.masks)
    own = zl.check_principles("grad_eclip", zoo.load("digits-clip"), data, cascading=False)
    there = zl.check_principles("grad_eclip", zoo.load("digits-clip").cuda(), moved, cascading=False)
    assert there.unchanged
    assert torch.allclose(own.score, there.score, atol=1e-3)
