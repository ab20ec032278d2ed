"""Logic, ground and mechanism give the same numbers on a GPU, in single and in half precision."""

import pytest
import torch

import zeroline as zl
from zeroline import zoo

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def both():
    """Model and inputs on the CPU and on the GPU; four questions."""
    samples = zoo.samples("digits-vqa")[12:16]
    inputs = zoo.collate(samples)
    here, there = zoo.load("digits-vqa"), zoo.load("digits-vqa").cuda()
    return samples, (here, inputs), (there, {name: value.cuda() for name, value in inputs.items()})


def players():
    cells = torch.arange(64)
    return [zl.Player("word", "input_ids", torch.arange(10) == 5), *(zl.Player(f"{i}", "visual_feats", cells // 16 == i) for i in range(4))]


def test_logic_is_the_same_on_a_gpu(both):
    samples, here, there = both
    answers = [sample.question.answer for sample in samples]
    a, b = (zl.logic(*side, target=answers, players=players()) for side in (here, there))
    assert torch.allclose(a.values, b.values, atol=1e-3)
    assert a.reading == b.reading


def test_ground_is_the_same_on_a_gpu(both):
    samples, here, there = both
    a, b = (zl.ground(*side, target=[sample.question.answer for sample in samples]) for side in (here, there))
    assert torch.allclose(a.coupling, b.coupling.cpu(), atol=1e-4)
    assert b.matrix.is_cuda


def test_mechanism_is_the_same_on_a_gpu(both):
    samples, here, there = both
    a, b = (zl.mechanism(*side, target=[sample.question.answer for sample in samples]) for side in (here, there))
    assert torch.allclose(a.effect, b.effect, atol=1e-3)
    assert torch.allclose(a.relevance, b.relevance.cpu(), atol=1e-4)
    assert set(b.execution) == {"suffix"}


def test_the_three_run_in_bfloat16_on_a_gpu(both):
    samples, _, (model, inputs) = both
    half = zoo.load("digits-vqa").cuda().bfloat16()
    given = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    answers = [sample.question.answer for sample in samples]
    exact, found = (zl.logic(m, x, target=answers, players=players()) for m, x in ((model, inputs), (half, given)))
    assert float((exact.values - found.values).abs().max()) < 0.1 * float(exact.values.abs().max())
    assert bool(zl.ground(half, given, target=answers).coupling.isfinite().all())
    assert bool(zl.mechanism(half, given, target=answers, heads=False).effect.isfinite().all())
