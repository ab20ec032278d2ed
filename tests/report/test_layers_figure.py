"""The strip of layers, from records written by hand: a panel per site with its figures, and the curve of concentration."""

import math
import warnings

import numpy as np
import pytest
import torch

from report.test_panels import PICTURE, record, shown, words
from zeroline.comparison import Comparison
from zeroline.relevance import Tokens
from zeroline.report import figure, layers_figure

MASK = torch.zeros(24, 32, dtype=torch.bool)
MASK[:12, :8] = True  # the upper left: rows 0 to 11, columns 0 to 7


def at(name, values, **more):
    return record(values, site=name, method="integrated_gradients", **more)


@pytest.fixture
def strip():
    """An image [4, 8] in three channels, tokens on a grid of 2 x 4 after a class token, and a head without positions."""
    image = torch.zeros(1, 3, 4, 8)
    image[0, 0, 0, 0], image[0, 1, 3, 7], image[0, 2, 1, 5] = 3.0, 1.0, -2.0
    tokens = torch.tensor([[1000.0, 2.0, 1.0, 0.0, -4.0, 1.0, 0.0, 0.0, 0.0]])[..., None].expand(1, 9, 2) / 2
    members = {"input": at("input", image, local_error=0.25), "block": at("block", tokens), "head": at("head", torch.ones(1, 5))}
    return Comparison(members, {"input": Tokens(0, (4, 8)), "block": Tokens(1, (2, 4)), "head": Tokens()})


def axes_of(drawn):
    return shown([axis for part in drawn.subfigs for axis in part.axes])


def test_the_evidence_is_that_of_hand_counting(strip):
    found = layers_figure.evidence(strip, MASK)
    assert list(found) == ["input", "block"]  # the head has no positions
    # input: 3 of 32 positions are its top 10 % and hold all of 3 + 1; inside lies 3 of 4; the mask is 2 x 2 of 4 x 8 positions
    assert found["input"] == pytest.approx((1.0, 0.75, 4 / 32))
    # block: one of 8 positions, 2 of 2 + 1 + 1; inside is position (0, 0) of 2 x 4
    assert found["block"] == pytest.approx((0.5, 0.5, 1 / 8))


def test_without_a_mask_there_is_one_figure_and_it_is_the_same(strip):
    with_mask, without = layers_figure.evidence(strip, MASK), layers_figure.evidence(strip)
    assert without == {name: figures[:1] for name, figures in with_mask.items()}


def test_the_evidence_of_the_sample_that_is_asked_for():
    two = torch.zeros(2, 1, 2, 5)
    two[0, 0, 0, 0], two[1, 0, 1] = 1.0, 1.0
    both = Comparison({"a": at("a", two)}, {"a": Tokens(0, (2, 5))})
    assert [layers_figure.evidence(both, sample=b)["a"] for b in (0, 1)] == [pytest.approx((1.0,)), pytest.approx((0.2,))]


def test_panels_are_the_photograph_the_sites_and_the_curve(strip):
    photograph, *sites, curve = axes_of(layers_figure.figure(strip, PICTURE))
    assert np.array_equal(photograph.images[0].get_array(), PICTURE)
    assert photograph.get_title() == "x: f = 3"
    assert [axis.get_title() for axis in sites] == ["input", "block", "head"]
    assert [len(axis.images) for axis in sites] == [1, 1, 0]
    assert "on no grid" in words(sites[2])
    assert "where the evidence concentrates" in curve.get_title()


def test_each_panel_says_difference_error_local_error_and_what_lies_off_the_grid(strip):
    _, first, second, third, _ = [words(axis) for axis in axes_of(layers_figure.figure(strip, PICTURE))]
    assert "difference 2 error +0 local error 0.25" in first  # the values add up to 3 + 1 - 2
    assert "error +1e+03" in second
    assert "+1e+03 on no patch" in second
    assert "local error" not in second
    assert "error +3" in third
    assert "on no patch" not in first + third


def test_the_headline_names_the_target_and_the_baseline(strip):
    drawn = layers_figure.figure(strip, PICTURE)
    assert "logit of a newt from the black baseline" in drawn.get_suptitle()


def test_the_curve_is_the_evidence(strip):
    found = layers_figure.evidence(strip, MASK)
    plain, marked = (axes_of(layers_figure.figure(strip, PICTURE, mask))[-1] for mask in (None, MASK))
    assert [line.get_ydata().tolist() for line in plain.lines] == [[figures[0] for figures in found.values()]]
    assert [line.get_ydata().tolist() for line in marked.lines] == [list(column) for column in zip(*found.values())]
    assert [label.get_text() for label in marked.get_xticklabels()] == ["input", "block"]
    assert "inside the object" in words(marked.get_legend())
    assert "inside the object" not in words(plain.get_legend())


@pytest.mark.parametrize("mask", [None, MASK])
def test_maps_of_zeros_and_sites_without_a_grid_draw_without_a_warning(tmp_path, mask):
    members = {"zero": at("zero", torch.zeros(1, 3, 4, 8)), "head": at("head", torch.zeros(1, 5), output=1.0, there=1.0)}
    empty = Comparison(members, {"zero": Tokens(0, (4, 8)), "head": Tokens()})
    assert math.isnan(layers_figure.evidence(empty)["zero"][0])
    for found in (empty, Comparison({"head": members["head"]}, {})):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure.save(layers_figure.figure(found, PICTURE, mask), tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("count", [1, 6, 7, 14, 25])
def test_any_number_of_sites_is_drawn(tmp_path, count):
    names = [f"encoder.layers.{i}.attention.output.dense" for i in range(count)]
    many = Comparison({n: at(n, torch.randn(1, 2, 3, 4)) for n in names}, {n: Tokens(0, (3, 4)) for n in names})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = layers_figure.figure(many, PICTURE, MASK)
        figure.save(drawn, tmp_path / "figure.png")
    _, *sites, curve = axes_of(drawn)
    assert len(sites) == count
    assert all(name.endswith(axis.get_title().removeprefix("...")) and axis.images for axis, name in zip(sites, names))
    assert len(curve.lines[0].get_xdata()) == count
