"""Targets read the number that their name says, for each sample its own."""

import pytest
import torch

from zeroline import target
from zeroline.errors import NotFoundError, TargetError

LABELS = {"cat": 0, "dog": 1, "tabby cat": 2}
SCORES = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, -1.0]])
BOTH = torch.tensor([0, 1])


def read(asked, output=SCORES, samples=BOTH):
    return target.as_target(asked).resolve(SCORES if output is SCORES else output, LABELS).read(output, samples)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (1, [3.0, 0.0]),
        (-1, [2.0, -1.0]),
        ("Dog", [3.0, 0.0]),
        ("tabby cat", [2.0, -1.0]),
        ("2", [2.0, -1.0]),
        ([2, "cat"], [2.0, 5.0]),
        (torch.tensor([1, 1]), [3.0, 0.0]),
        (target.top(), [3.0, 5.0]),
        (target.contrast("top", 2), [1.0, 6.0]),
        (target.mix({0: 0.5, "dog": -2}), [-5.5, 2.5]),
        (target.output(lambda out: out.sum(1)), [6.0, 4.0]),
    ],
)
def test_a_target_reads_its_number(asked, expected):
    assert read(asked).tolist() == expected


def test_probability_and_its_log_are_the_softmax():
    truth = SCORES.exp() / SCORES.exp().sum(1, keepdim=True)
    assert torch.allclose(read(target.probability(0)), truth[:, 0])
    assert torch.allclose(read(target.log_probability(0)), truth[:, 0].log())


def test_the_top_class_is_chosen_once_on_x():
    resolved = target.top().resolve(SCORES, LABELS)
    elsewhere = SCORES.flip(1)
    assert resolved.read(elsewhere, BOTH).tolist() == [elsewhere[0, 1].item(), elsewhere[1, 0].item()]
    assert resolved.describe(2) == ("logit of dog", "logit of cat")


def test_rows_of_one_sample_read_that_samples_class():
    resolved = target.logit([2, 0]).resolve(SCORES, LABELS)
    rows = torch.tensor([1, 0, 1])
    assert resolved.read(SCORES[rows], rows).tolist() == [5.0, 2.0, 5.0]


def test_token_and_sequence_log_probabilities_add_up():
    logits = torch.randn(2, 4, 7)
    log = logits.log_softmax(-1)
    output = {"loss": None, "logits": logits}
    assert torch.allclose(read(target.token(5, -1), output), log[:, 3, 5])
    assert torch.allclose(read(target.sequence([1, 6], 1), output), log[:, 1, 1] + log[:, 2, 6])


def test_descriptions_say_what_is_read():
    described = target.mix({"cat": 1, "dog": -0.5}).resolve(SCORES, LABELS).describe(1)
    assert described == ("logit of cat - 0.5 dog",)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ("dgo", NotFoundError, "nearest: dog"),
        (9, TargetError, "the model has 3: 0 to 2"),
        ([0, 1, 2], TargetError, "3 classes given for a batch of 2"),
        (1.5, TargetError, "a target is a class"),
        (target.token(3), TargetError, "positions, vocabulary"),
    ],
)
def test_bad_targets_are_one_clear_error(asked, error, message):
    with pytest.raises(error, match=message):
        read(asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [(target.token(1, 9), "the logits have 4"), (target.token(99, 0), "vocabulary has 7"), (target.logit(0), r"try zl\.target\.token")],
)
def test_bad_token_targets_are_one_clear_error(asked, message):
    with pytest.raises(TargetError, match=message):
        read(asked, torch.randn(2, 4, 7))


def test_an_output_without_scores_is_one_clear_error():
    with pytest.raises(TargetError, match="no logits in the model's output"):
        target.logits({"loss": None})
