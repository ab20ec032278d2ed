"""Methods side by side, from records written by hand: a panel each, and the parts of each error as bars."""

import warnings

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from report.test_panels import PICTURE, record, shown, words
from zeroline.comparison import Comparison
from zeroline.maths.cam import STAGES
from zeroline.relevance import Tokens
from zeroline.report import comparison_figure, figure


def by(name, total, site="stage", baseline="black", **more):
    """A record of a map of 3 x 4 that adds up to ``total``."""
    values = torch.zeros(1, 2, 3, 4)
    values[0, 0, 1, 2], values[0, 1, 0, 0] = total + 1, -1
    return record(values, method=name, site=site, baseline=baseline, **more)


@pytest.fixture
def three():
    """Difference 2 each. grad_cam: -1 + 0.5 + 1.5 = 1 too much; taylor: -0.5; other says nothing of its error of 0.25."""
    members = {
        "grad_cam": by("grad_cam", 3.0, "stage", "zeros", budget={"truncation": -1.0, "pooling": 0.5, "smoothing": 0.0, "rectification": 1.5}),
        "taylor": by("taylor", 1.5, "input:x", budget={"truncation": -0.5}),
        "other": by("other", 2.25, "input:x"),
    }
    return Comparison(members, {name: Tokens(0, (3, 4)) for name in members})


def axes_of(drawn):
    return shown([axis for part in drawn.subfigs for axis in part.axes])


def bars_of(axis, row):
    """(colour, left, width) of the bars in a row."""
    return [(to_hex(b.get_facecolor()), b.get_x(), b.get_width()) for b in axis.patches if round(b.get_y() + b.get_height() / 2) == row]


def test_panels_are_the_photograph_the_methods_and_the_budgets(three):
    drawn = comparison_figure.figure(three, PICTURE)
    photograph, *methods, budgets = axes_of(drawn)
    assert np.array_equal(photograph.images[0].get_array(), PICTURE)
    assert photograph.get_title() == "x: f = 3"
    assert [axis.get_title() for axis in methods] == ["grad_cam", "taylor", "other"]
    assert [label.get_text() for label in budgets.get_yticklabels()] == ["grad_cam", "taylor", "other"]
    assert "logit of a newt by 3 methods" in drawn.get_suptitle()


def test_each_panel_says_where_from_what_and_how_far_off(three):
    _, *methods, _ = [words(axis) for axis in axes_of(comparison_figure.figure(three, PICTURE))]
    assert "at stage from zeros sum 3 of difference 2 error +1 (50.0%)" in methods[0]
    assert "at input:x from black sum 1.5 of difference 2 error -0.5 (25.0%)" in methods[1]
    assert "sum 2.25 of difference 2 error +0.25 (12.5%)" in methods[2]


def test_the_parts_of_an_error_are_stacked_as_shares_of_the_difference(three):
    colours = comparison_figure.PARTS
    budgets = axes_of(comparison_figure.figure(three, PICTURE))[-1]
    assert bars_of(budgets, 0) == [
        (colours["truncation"].lower(), 0.0, -0.5),
        (colours["pooling"].lower(), 0.0, 0.25),
        (colours["rectification"].lower(), 0.25, 0.75),
    ]
    assert bars_of(budgets, 1) == [(colours["truncation"].lower(), 0.0, -0.25)]
    assert bars_of(budgets, 2) == [(colours["unaccounted"].lower(), 0.0, 0.125)]
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in budgets.lines if line.get_marker() == "D"]
    assert marks == [(0.5, 0), (-0.25, 1), (0.125, 2)]
    assert budgets.yaxis_inverted()  # as the panels: the first method on top


def test_the_legend_names_the_parts_that_are_there_once_each(three):
    legend = axes_of(comparison_figure.figure(three, PICTURE))[-1].get_legend()
    assert sorted(text.get_text() for text in legend.get_texts()) == ["pooling", "rectification", "truncation", "unaccounted"]


def test_every_part_has_a_colour_of_its_own():
    colours = comparison_figure.PARTS
    assert set(STAGES) < set(colours)
    assert len(set(colours.values())) == len(colours)


def test_the_budget_is_a_share_of_the_size_of_a_negative_difference():
    one = Comparison({"taylor": by("taylor", -3.0, output=1.0, there=3.0, budget={"truncation": -1.0})})
    budgets = axes_of(comparison_figure.figure(one, PICTURE))[-1]
    assert [width for _, _, width in bars_of(budgets, 0)] == [-0.5]


def test_where_nothing_differs_the_share_is_undefined_and_without_parts_there_is_no_legend(tmp_path):
    exact = record(torch.zeros(1, 2, 3, 4), output=1.0, there=1.0, budget={"quadrature": 0.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = comparison_figure.figure(Comparison({"exact": exact}), PICTURE)
        figure.save(drawn, tmp_path / "figure.png")
    _, panel, budgets = axes_of(drawn)
    assert "(undefined)" in words(panel)
    assert budgets.get_legend() is None
    assert not budgets.patches


def test_values_without_a_grid_and_maps_of_zeros_each_get_a_panel(tmp_path):
    members = {
        "head": record(torch.ones(1, 5)),
        "line": record(torch.ones(1, 9, 2)),
        "tokens": record(torch.ones(1, 7, 2)),
        "zeros": record(torch.zeros(1, 2, 3, 4)),
    }
    lies = {"head": Tokens(), "line": Tokens(), "tokens": Tokens(1, (2, 3)), "zeros": Tokens(0, (3, 4))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = comparison_figure.figure(Comparison(members, lies), PICTURE)
        figure.save(drawn, tmp_path / "figure.png")
    _, *panels, _ = axes_of(drawn)
    assert ["on no grid" in words(axis) for axis in panels] == [True, True, False, False]
    assert [len(axis.images) for axis in panels] == [0, 0, 1, 1]


def test_the_sample_that_is_asked_for_is_drawn():
    values = torch.zeros(2, 1, 3, 4)
    values[0, 0, 0, 0], values[1, 0, 2, 3] = 1.0, 6.0
    two = Comparison({"a": record(values)}, {"a": Tokens(0, (3, 4))})
    for sample, (total, error) in enumerate((("sum 1 ", "-1 (50.0%)"), ("sum 6 ", "+4 (200.0%)"))):
        said = words(axes_of(comparison_figure.figure(two, PICTURE, sample=sample))[1])
        assert total in said
        assert error in said


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_any_number_of_methods_is_drawn(tmp_path, count):
    names = [f"integrated_gradients from draw {i}" for i in range(count)]
    many = Comparison({name: by(name, 1.0, "model.encoder.layers.11.attention.output.dense", budget={"quadrature": -1.0}) for name in names})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = comparison_figure.figure(many, PICTURE)
        figure.save(drawn, tmp_path / "figure.png")
    _, *panels, budgets = axes_of(drawn)
    assert [axis.get_title() for axis in panels] == names
    assert all("output.dense" in words(axis) for axis in panels)
    assert len(budgets.patches) == count
