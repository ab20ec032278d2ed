"""An audit says what the model says on each baseline, and its advice follows from those figures."""

import math

import pytest
import torch
from torch import nn

import zeroline as zl
from zeroline.audit import Audited, BaselineAudit
from zeroline.errors import BaselineError, LoadError, NotFoundError, NotNeutralError


@pytest.fixture(scope="module")
def audit(digits_vit, samples):
    x = torch.cat([s.inputs["pixel_values"] for s in samples[:2]])
    candidates = [
        zl.baseline.black(),
        zl.baseline.blur(1),
        zl.baseline.blur(8),
        zl.baseline.neutral(zl.baseline.black()),
        zl.baseline.neutral(zl.baseline.zeros()),
    ]
    return zl.audit_baseline(digits_vit, {"pixel_values": x}, zl.top(), candidates), x


def test_its_figures_are_those_of_the_model_on_the_baseline(digits_vit, audit):
    found, x = audit
    black = torch.full_like(x, -1.0)
    with torch.no_grad():
        own, there = digits_vit(pixel_values=x).logits, digits_vit(pixel_values=black).logits
    rows, classes = torch.arange(2), own.argmax(1)
    p = there.double().softmax(-1)
    entropy = torch.tensor([-sum(float(q) * math.log(float(q)) for q in row) for row in p], dtype=torch.float64)
    one = found["black"]
    assert torch.allclose(one.output, there[rows, classes].double(), atol=1e-5)
    assert torch.allclose(found.difference("black"), (own - there)[rows, classes].double(), atol=1e-5)
    assert torch.allclose(one.kl, math.log(10) - entropy, atol=1e-5)
    assert torch.allclose(one.opinion, 1 - entropy / math.log(10), atol=1e-5)
    assert found.top("black") == (digits_vit.config.id2label[int(p[0].argmax())], pytest.approx(float(p[0].max()), abs=1e-5))
    pixels = (x - black) * 0.5  # this model's standard deviation
    assert torch.allclose(one.distance, pixels.double().square().flatten(1).mean(1).sqrt(), atol=1e-6)
    assert found.unit == "pixel values in [0, 1]"


def test_verdicts_are_in_plain_words(audit):
    found, _ = audit
    top, share = found.top("black")
    assert found.verdict("black") == f"confident baseline: the model sees {top} with {share:.2f}"
    assert found.verdict("blur(1)").startswith("keeps the answer: the model still sees seven with")
    assert found.verdict("neutral from black").startswith("neutral: no class above 0.1")
    assert "neutral from zeros" in found.failures
    assert "KL from uniform is 1." in found.failures["neutral from zeros"]
    assert "not to be had" in repr(found)


def audited(p, output=1.0, distance=1.0):
    return Audited(torch.tensor([output], dtype=torch.float64), torch.tensor([p], dtype=torch.float64), torch.tensor([distance], dtype=torch.float64))


def made(own=(0.9, 0.05, 0.05), output=5.0, **rows):
    own, output = torch.tensor([own], dtype=torch.float64), torch.tensor([output], dtype=torch.float64)
    return BaselineAudit(rows, ("logit of a",), "input:x", output, own, ("a", "b", "c"), 1e-7, "units of the features")


def test_the_advice_is_the_least_opinion():
    found = made(sure=audited((0.0, 0.9, 0.1)), torn=audited((0.1, 0.5, 0.4)), none=audited((0.34, 0.33, 0.33), distance=9.0))
    assert found.advice()[0] == "none"
    assert "next is torn" in found.advice()[1]


def test_between_baselines_alike_it_is_the_nearest():
    found = made(far=audited((0.33, 0.34, 0.33), distance=3.0), near=audited((0.34, 0.35, 0.31), distance=0.5))
    assert found.advice() == ("near", "far, near leave the model about as undecided, and near is nearest to x")


def test_a_baseline_that_keeps_the_answer_or_tells_nothing_is_not_advised():
    same, silent = audited((0.6, 0.2, 0.2), output=4.0), audited((0.33, 0.34, 0.33), output=5.0)
    found = made(same=same, silent=silent, sure=audited((0.0, 1.0, 0.0)))
    assert found.verdict("silent") == "says nothing: the target does not tell x from it"
    assert found.advice()[0] == "sure"
    assert "confident even there" in found.advice()[1]
    assert made(same=same, silent=silent).advice()[0] is None


def test_a_target_that_is_higher_at_the_baseline_is_said():
    assert made(b=audited((0.0, 1.0, 0.0), output=7.0)).verdict("b").endswith("; f is higher there than on x")
    assert made(b=audited((0.1, 0.48, 0.42))).verdict("b") == "leans to b (0.48)"


def test_it_survives_saving(audit, tmp_path):
    found, _ = audit
    found.save(tmp_path / "a.safetensors")
    again = BaselineAudit.load(tmp_path / "a.safetensors")
    assert again.to_dict() == found.to_dict()
    assert repr(again) == repr(found)
    zl.gradient_x_input(nn.Linear(2, 2), torch.ones(1, 2), target=0, baseline=zl.baseline.zeros()).save(tmp_path / "b.safetensors")
    with pytest.raises(LoadError, match="holds attribution"):
        BaselineAudit.load(tmp_path / "b.safetensors")


def test_a_distribution_is_audited_draw_by_draw(digits_vit, samples):
    draws = zl.baseline.distribution(zl.baseline.noise, draws=3)
    found = zl.audit_baseline(digits_vit, samples[0].inputs, "seven", draws)
    assert list(found.baselines) == [draw.name for draw in draws.draws]
    assert len({float(one.output) for one in found.baselines.values()}) == 3


def test_a_layer_is_audited_with_the_baseline_at_the_layer(digits_vit, samples):
    x = samples[0].inputs
    found = zl.audit_baseline(digits_vit, x, "seven", [zl.baseline.constant(0.1)], site="vit.layers.2")
    z0 = torch.full((1, 65, 64), 0.1)
    logits = zl.replaced(digits_vit, x, {"vit.layers.2": z0}).logits
    assert torch.allclose(found["constant(0.1)"].probabilities, logits.double().softmax(-1), atol=1e-6)
    assert found.unit == "units of the features"


@pytest.mark.parametrize(
    ("model", "target", "baselines", "message"),
    [
        (nn.Linear(3, 1), 0, [zl.baseline.zeros()], "an audit needs a distribution over two classes or more; the model has 1 score"),
        (nn.Linear(3, 2), 0, [], "an audit of no baselines"),
        (nn.Unflatten(1, (3, 1)), lambda o: o.sum((1, 2)), [zl.baseline.zeros()], r"an audit reads the model's class scores \[batch, classes\]"),
    ],
)
def test_what_cannot_be_audited_is_one_clear_error(model, target, baselines, message):
    with pytest.raises(BaselineError, match=message):
        zl.audit_baseline(model, torch.ones(1, 3), target, baselines)


def test_no_baseline_at_all_is_the_error_of_the_first(digits_vit, samples):
    with pytest.raises(NotNeutralError, match="no baseline could be audited: no neutral baseline from 'zeros'"):
        zl.audit_baseline(digits_vit, samples[0].inputs, 7, zl.baseline.neutral(zl.baseline.zeros()))


def test_an_unknown_name_gets_the_nearest(audit):
    with pytest.raises(NotFoundError, match="no audited baseline 'blak'; nearest: black"):
        audit[0]["blak"]


def test_failures_and_successes_of_one_name_are_told_apart(digits_vit, samples):
    hard, easy = zl.baseline.neutral(zl.baseline.black(), kl=1e-9, max_steps=1), zl.baseline.neutral(zl.baseline.black())
    found = zl.audit_baseline(digits_vit, samples[0].inputs, 7, [hard, hard, easy, easy])
    assert list(found.failures) == ["neutral from black", "neutral from black (1)"]
    assert list(found.baselines) == ["neutral from black (2)", "neutral from black (3)"]


def test_two_classes_have_a_threshold_of_their_own():
    own, output = torch.tensor([[0.9, 0.1]], dtype=torch.float64), torch.tensor([5.0], dtype=torch.float64)
    rows = {"leaning": audited((0.3, 0.7)), "sure": audited((0.1, 0.9))}
    found = BaselineAudit(rows, ("logit of a",), "input:x", output, own, ("a", "b"), 1e-7, "units of the features")
    assert found.verdict("leaning") == "leans to b (0.70)"
    assert found.verdict("sure").startswith("confident baseline")
