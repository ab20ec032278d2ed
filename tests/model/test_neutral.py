"""A neutral baseline is one on which the model has no opinion, within the KL that was asked, or an error that says what was reached."""

import math

import pytest
import torch
from torch import nn

import zeroline as zl
from zeroline.errors import BaselineError, NotNeutralError
from zeroline.model.neutral import divergence
from zeroline.model.reference import settle


def kl_of(scores):
    """log K - H(p), entry by entry."""
    p = scores.double().softmax(-1)
    return torch.stack([sum(float(q) * math.log(float(q) * len(row)) for q in row if q > 0) * torch.ones(()) for row in p]).double()


def test_the_divergence_is_log_k_minus_the_entropy():
    scores = torch.randn(5, 7)
    assert torch.allclose(divergence(scores), kl_of(scores), atol=1e-6)
    assert divergence(torch.tensor([[1000.0, 0.0, 0.0]])).tolist() == pytest.approx([math.log(3)])


@pytest.fixture(scope="module")
def batch(samples):
    return torch.cat([s.inputs["pixel_values"] for s in samples[:3]])


@pytest.mark.parametrize("start", [zl.baseline.black(), zl.baseline.blur(8)])
def test_a_neutral_input_stays_a_picture_and_the_model_has_no_opinion_on_it(digits_vit, batch, start):
    settled = settle(digits_vit, {"pixel_values": batch}, zl.baseline.neutral(start, kl=0.02))
    x0 = settled.inputs.tensors["pixel_values"]
    with torch.no_grad():
        assert torch.allclose(kl_of(digits_vit(pixel_values=x0).logits), settled.kl, atol=1e-4)
    assert bool((settled.kl <= 0.02).all())
    assert float(x0.min()) >= -1
    assert float(x0.max()) <= 1
    found = zl.gradient_x_input(digits_vit, {"pixel_values": batch}, target=zl.top(), baseline=settled)
    gradient = zl.capture(digits_vit, {"pixel_values": batch}, None, target=zl.top()).gradients["input:pixel_values"]
    assert torch.allclose(found.values, (batch - x0) * gradient)
    assert torch.equal(found.baseline_kl, settled.kl)
    assert "KL at the baseline" in repr(found)
    assert found.sample(2).baseline_kl.shape == (1,)


def test_a_batch_finds_what_its_samples_find(batch):
    """In float64; in float32 the search amplifies the rounding of kernels at other batch sizes."""
    model, x = zl.zoo.load("digits-vit").double(), batch.double()
    baseline = zl.baseline.neutral(zl.baseline.blur(8))
    together, *alone = (settle(model, {"pixel_values": pixels}, baseline) for pixels in (x, x[:1], x[1:2], x[2:]))
    for index, one in enumerate(alone):
        assert torch.allclose(one.inputs.tensors["pixel_values"][0], together.inputs.tensors["pixel_values"][index], atol=1e-8)
        assert float(one.kl) == pytest.approx(float(together.kl[index]), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_reaches_what_float32_reaches(dtype):
    """Points and moments are kept in float32: in bfloat16 their small changes would be rounded away."""
    reached = {torch.float32: [], dtype: []}
    for seed in range(6):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 3
        x, baseline = torch.randn(1, 3, 7, 9), zl.baseline.neutral(zl.baseline.zeros(), at="site")
        for kind, found in reached.items():
            try:
                one = zl.gradient_x_input(model.to(kind), x.to(kind), target=0, site="0", baseline=baseline)
            except NotNeutralError:
                continue
            assert one.values.dtype == kind
            assert float(one.baseline_kl) <= 0.01
            found.append(seed)
    assert reached[dtype] == reached[torch.float32]
    assert len(reached[dtype]) >= 3


def test_the_sample_that_is_stuck_is_the_one_that_is_named():
    class Stuck(nn.Module):
        """No gradient for the first sample, which has less of an opinion than the second."""

        def forward(self, x):
            flat = torch.tensor([0.4, 0.0, -0.4]).expand(len(x), 3)
            return torch.where(x[:, :1] > 0, 4 * x, flat)

    x = torch.tensor([[-1.0, -1.0, -1.0], [2.0, -1.0, 0.0]])
    with pytest.raises(NotNeutralError, match=r"the gradient is zero there.*for sample 0 "):
        zl.gradient_x_input(Stuck(), x, target=0, baseline=zl.baseline.neutral(zl.baseline.of(x), low=-3.0, high=3.0))


class Two(nn.Module):
    """Two inputs; the model says that the first is its main one."""

    main_input_name = "a"

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, a, b):
        return 3 * (self.a(a) + self.b(b)).tanh()


@pytest.mark.parametrize("site", ["input:b", "input:a + input:b"])
def test_the_inputs_that_the_site_names_are_made_neutral_or_mean(site):
    torch.manual_seed(0)
    model, x = Two().eval(), (torch.randn(2, 4), torch.randn(2, 2))
    neutral = zl.baseline.neutral(zl.baseline.zeros(at="input"), low=-9.0, high=9.0, kl=0.05)
    found = zl.integrated_gradients(model, x, target=0, site=site, baseline=neutral)
    assert bool((found.difference.abs() > 1e-3).all())
    assert bool((found.baseline_kl <= 0.05).all())
    settled = settle(model, x, neutral, site).inputs.tensors
    assert torch.equal(settled["a"], x[0]) == (site == "input:b")
    assert not torch.equal(settled["b"], x[1])
    members = [(torch.randn(3, 4), torch.randn(3, 2)) for _ in range(2)]
    mean = settle(model, x, zl.baseline.mean_of(members, at="input"), site).inputs.tensors
    assert torch.allclose(mean["b"][0], torch.cat([b for _, b in members]).mean(0))
    assert torch.equal(mean["a"], x[0]) == (site == "input:b")


def test_features_can_be_neutral_too(digits_vit, batch):
    baseline = zl.baseline.neutral(zl.baseline.zeros(at="input"), at="site")
    found = zl.integrated_gradients(digits_vit, {"pixel_values": batch}, target=zl.top(), site="vit.layers.1", baseline=baseline)
    assert bool((found.baseline_kl <= 0.01).all())
    assert float(found.relative_error.max()) <= 0.01
    assert "at the site" in found.baseline


def test_a_start_without_a_gradient_is_said_with_the_kl_reached(digits_vit, batch):
    """Grey pixels switch every unit of this model's stem off."""
    with pytest.raises(
        NotNeutralError, match=r"from 'zeros' and the gradient is zero there.*KL from uniform is 1\.\d+ nats for sample 0 \(asked: 0.01\)"
    ) as caught:
        zl.gradient_x_input(digits_vit, {"pixel_values": batch}, target=0, baseline=zl.baseline.neutral(zl.baseline.zeros()))
    with torch.no_grad():
        grey = digits_vit(pixel_values=torch.zeros_like(batch)).logits
    assert caught.value.kl == pytest.approx(kl_of(grey).tolist(), abs=1e-4)


def test_the_search_reports_its_steps(digits_vit, batch):
    seen = []
    settle(digits_vit, {"pixel_values": batch}, zl.baseline.neutral(zl.baseline.black()), progress=lambda done, most: seen.append((done, most)))
    assert seen == [(i + 1, 500) for i in range(len(seen))]
    assert len(seen) > 5


def test_too_few_steps_are_said_with_the_kl_reached(digits_vit, batch):
    with pytest.raises(NotNeutralError, match="after 2 steps: KL from uniform is"):
        zl.gradient_x_input(digits_vit, {"pixel_values": batch}, target=0, baseline=zl.baseline.neutral(zl.baseline.black(), max_steps=2))


def test_the_model_is_left_as_it_was(digits_vit, batch):
    from zeroline.testing.laws import fingerprint

    before = fingerprint(digits_vit)
    for steps in (500, 2):
        try:
            zl.gradient_x_input(digits_vit, {"pixel_values": batch[:1]}, target=0, baseline=zl.baseline.neutral(zl.baseline.black(), max_steps=steps))
        except NotNeutralError:
            assert steps == 2
        assert fingerprint(digits_vit) == before


def test_a_range_is_kept_where_the_model_does_not_say_its_own():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).eval(), torch.rand(2, 5)
    with pytest.raises(BaselineError, match=r"give neutral\(..., low=..., high=...\)"):
        zl.gradient_x_input(model, x, target=0, baseline=zl.baseline.neutral(zl.baseline.zeros()))
    found = zl.integrated_gradients(model, x, target=0, baseline=zl.baseline.neutral(zl.baseline.constant(3.0), low=0.0, high=1.0))
    assert bool((found.baseline_kl <= 0.01).all())


def test_an_input_that_is_neutral_already_is_not_moved():
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.bias)
    found = zl.gradient_x_input(model, torch.ones(1, 4), target=0, baseline=zl.baseline.neutral(zl.baseline.zeros(), low=-1.0, high=1.0))
    assert torch.allclose(found.values, model.weight[0])
    assert float(found.baseline_kl) < 1e-12


@pytest.mark.parametrize(
    ("model", "message"),
    [(nn.Linear(4, 1), "two classes or more; the model has 1 score"), (nn.Unflatten(1, (2, 2)), r"needs class scores \[batch, classes\]")],
)
def test_a_model_without_classes_has_no_neutral_input(model, message):
    with pytest.raises(BaselineError, match=message):
        zl.gradient_x_input(
            model,
            torch.ones(1, 4),
            target=lambda out: out.flatten(1).sum(1),
            baseline=zl.baseline.neutral(zl.baseline.zeros(), low=0.0, high=1.0),
        )
