"""digits-cnn and digits-detr keep what their cards say."""

import json
from importlib.resources import files

import pytest
import torch

import zeroline as zl
from zeroline import zoo
from zeroline.zoo.train import detr, vit


@pytest.mark.parametrize("name", ["digits-cnn", "digits-detr"])
def test_the_card_states_what_training_printed(name):
    folder = files("zeroline.zoo") / "models" / name
    scores = json.loads((folder / "scores.json").read_text())
    card = " ".join((folder / "README.md").read_text().split())
    for what, share in scores.items():
        words = f"**{share:.2f}**" if "sure" in what else f"**{share:.1%}**".replace("%", " %")
        assert words in card, what


def test_the_control_names_at_least_95_percent_of_single_digits_on_a_fresh_seed():
    assert vit.accuracy(zoo.load("digits-cnn"), "test", 991, 400, 1) >= 0.95


@pytest.mark.parametrize("objects", [1, 2])
def test_the_detector_finds_at_least_93_percent_with_class_and_box_on_a_fresh_seed(objects):
    found = detr.detected(zoo.load("digits-detr"), "test", 992, 300, objects)
    assert found["class and box"] >= 0.93
    assert found["sure queries per object"] < 1.5


def test_overlap_is_intersection_over_union():
    one = torch.tensor([[0.5, 0.5, 0.4, 0.4]])
    others = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.7, 0.5, 0.4, 0.4], [0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]])
    assert detr.overlap(one, others)[0].tolist() == pytest.approx([1, 1 / 3, 0.5, 0])


def test_the_weights_are_those_of_the_plain_class():
    from transformers import DetrForObjectDetection

    model = zoo.load("digits-detr")
    assert type(model) is DetrForObjectDetection
    assert not any(p.requires_grad for n, p in model.named_parameters() if "backbone" in n and "norm" in n)
    assert not model.training


def test_detections_of_the_zoo_can_be_explained():
    sample = zoo.samples("digits-detr")[0]
    found = zl.attention_relevance(zoo.load("digits-detr"), sample.inputs, target=zl.target.detection(0))
    assert found.output.isfinite().all()
