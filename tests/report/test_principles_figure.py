"""Two principles of several methods as one figure, from records written by hand: bars, lines, and the verdicts in words."""

import warnings
from itertools import pairwise

import pytest
import torch
from matplotlib.colors import to_hex

from measure.test_principles import hits, implied, made, shuffled
from report.test_panels import shown
from zeroline.report import figure, principles_figure

NOWHERE = torch.full((20,), torch.nan).double()
STAGES = [("head", 4, 0.75), ("last block", 3, 0.5), ("stem", 2, -0.25)]


@pytest.fixture
def two():
    """20 examples, 10 of them wrong. The first implies another model and has a cascade; the second substitutes nothing."""
    base = made(wrong=10)
    stages = tuple(shuffled(base, right, alike, name) for name, right, alike in STAGES)
    put = {"raw": implied(base, 5), "sum to 1": implied(base, 16)}
    first = made(wrong=10, hit=hits(base, 9, 6), substitutes=("attention",), implied=put, stages=stages, target="logit of the label")
    second = made(wrong=10, hit=hits(base, 7, 2), stages=tuple(shuffled(base, 1, 0.1 * k, name) for k, (name, _, _) in enumerate(STAGES)))
    return {"grad_eclip": first, "attention_eclip(weights=attention)": second}


def axes_of(drawn):
    return shown([axis for part in drawn.subfigs for axis in part.axes])


def said(drawn):
    """The words below the panels."""
    (axis,) = (axis for part in drawn.subfigs for axis in part.axes if not axis.axison)
    return " ".join(axis.texts[0].get_text().split())


def bars_of(axis, label):
    """Heights of the bars of one kind, from left to right; NaN where there is none."""
    (found,) = (bars for bars in axis.containers if bars.get_label() == label)
    return [bar.get_height() for bar in sorted(found.patches, key=lambda bar: bar.get_x())]


def ticks(axis):
    """Labels below a panel, however they are folded."""
    return ["".join(label.get_text().split()) for label in axis.get_xticklabels()]


def dotted(axis):
    """Height of the dotted line across a panel."""
    return [float(line.get_ydata()[0]) for line in axis.lines if line.get_linestyle() == ":" and len(set(line.get_ydata())) == 1]


def line_of(axis, label):
    (found,) = (line for line in axis.lines if line.get_label() == label)
    return found


def test_there_are_three_panels_under_what_was_asked(two):
    drawn = principles_figure.figure(two)
    assert [axis.get_title()[:2] for axis in axes_of(drawn)] == ["1:", "2:", "2:"]
    assert drawn.get_suptitle() == "Two principles, 20 examples, logit of the label"


def test_implied_models_have_a_bar_of_answers_and_one_of_accuracy_each(two):
    panel = axes_of(principles_figure.figure(two))[0]
    assert bars_of(panel, "same answer as the original") == pytest.approx([5 / 20, 16 / 20])
    assert bars_of(panel, "accuracy") == pytest.approx([5 / 20, 10 / 20])
    assert ticks(panel) == ["grad_eclipraw", "grad_eclipsumto1"]
    assert dotted(panel) == [pytest.approx(0.5)]  # the accuracy of the original
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["same answer as the original", "accuracy"]


def test_bars_stand_above_their_labels_without_touching(two):
    for panel in axes_of(principles_figure.figure(two))[:2]:
        places = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bars in panel.containers for bar in bars.patches)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(places))
        for place, (begin, _), (_, end) in zip(panel.get_xticks(), places[::2], places[1::2]):
            assert (begin + end) / 2 == pytest.approx(place)


def test_without_an_implied_model_the_panel_says_so(two):
    panel = axes_of(principles_figure.figure({"rollout": two["attention_eclip(weights=attention)"]}))[0]
    assert "nothing is substituted" in panel.texts[0].get_text()
    assert not panel.patches
    assert panel.get_legend() is None
    assert not axes_of(principles_figure.figure(two))[0].texts


def test_pointing_has_a_bar_where_right_and_one_where_wrong(two):
    panel = axes_of(principles_figure.figure(two))[1]
    assert bars_of(panel, "model right") == pytest.approx([0.9, 0.7])
    assert bars_of(panel, "model wrong (10)") == pytest.approx([0.6, 0.2])
    assert ticks(panel) == list(two)
    assert dotted(panel) == [pytest.approx(0.25)]  # a blind guess


def test_the_cascade_is_a_line_per_method_and_the_accuracy_left(two):
    panel = axes_of(principles_figure.figure(two))[2]
    assert line_of(panel, "grad_eclip").get_ydata().tolist() == pytest.approx([0.75, 0.5, -0.25])
    assert line_of(panel, "attention_eclip(weights=attention)").get_ydata().tolist() == pytest.approx([0.0, 0.1, 0.2])
    assert line_of(panel, "accuracy left").get_ydata().tolist() == pytest.approx([4 / 20, 3 / 20, 2 / 20])
    assert ticks(panel) == ["head", "lastblock", "stem"]
    colours = {to_hex(line_of(panel, name).get_color()) for name in two}
    assert len(colours) == len({line_of(panel, name).get_marker() for name in two}) == 2
    assert [text.get_text() for text in panel.get_legend().get_texts()] == [*two, "accuracy left"]


def test_maps_that_are_constant_are_left_out_of_the_mean(two):
    stage = two["grad_eclip"].stages[0]
    stage.alike[:10] = torch.nan
    stage.alike[10:15] = 0.0
    assert line_of(axes_of(principles_figure.figure(two))[2], "grad_eclip").get_ydata()[0] == pytest.approx(0.75 / 2)


def test_the_verdicts_stand_below_in_words(two):
    base = two["grad_eclip"]
    two["third"] = made(wrong=10, hit=hits(base, 9, 2), substitutes=("attention",))
    words = said(principles_figure.figure(two))
    first, second, third = two.values()
    assert words == " ".join(
        [
            f"grad_eclip: principle 1 does not hold; principle 2 does not hold: {first.performance()[1]}",
            f"attention_eclip(weights=attention): principle 1 holds; principle 2 holds: {second.performance()[1]}",
            f"third: principle 1 does not hold; principle 2 holds: {third.performance()[1]}",
        ]
    )


def test_without_masks_and_without_a_cascade_the_figure_is_drawn_without_a_warning(tmp_path):
    bare = {"rollout": made(hit=NOWHERE, chance=NOWHERE)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = principles_figure.figure(bare)
        figure.save(drawn, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    implied_models, pointing, cascade = axes_of(drawn)
    assert dotted(pointing) == []
    assert dotted(implied_models) == [1.0]
    assert [line.get_ydata()[0] for line in cascade.lines if len(line.get_ydata())] == [0]  # the zero line alone
    assert cascade.get_legend() is None


@pytest.mark.parametrize("count", [1, 8, pytest.param(9)])
def test_any_number_of_methods_has_its_bars_and_lines(two, count):
    many = {f"integrated_gradients(baseline=constant(0.{i}))": two["grad_eclip"] for i in range(count)}
    implied_models, pointing, cascade = axes_of(principles_figure.figure(many))
    assert len(bars_of(implied_models, "accuracy")) == 2 * count
    assert len(bars_of(pointing, "model right")) == count
    assert [line.get_label() for line in cascade.lines if line.get_label() in many] == list(many)


@pytest.mark.parametrize("count", [1, 4])
def test_long_names_and_verdicts_are_folded_and_fit_on_the_page(two, tmp_path, count):
    many = {f"integrated_gradients(baseline=constant(0.{i}), path=gausslegendre)": two["grad_eclip"] for i in range(count)}
    drawn = principles_figure.figure(many)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.save(drawn, tmp_path / "figure.png")
    (axis,) = (axis for part in drawn.subfigs for axis in part.axes if not axis.axison)
    box = axis.texts[0].get_window_extent(drawn.canvas.get_renderer())
    width, height = drawn.get_size_inches() * drawn.dpi
    assert box.x0 >= 0
    assert box.x1 <= width
    assert box.y0 >= -1
    assert box.y1 <= height
    assert said(drawn).count("principle 1") == count
