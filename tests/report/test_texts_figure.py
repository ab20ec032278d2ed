"""An image with a map per text and contrast, from panels written by hand: what stands where, and the words of each text."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_hex

from report.test_panels import PICTURE, shown, words
from zeroline.report import figure, texts_figure
from zeroline.report.relevance_figure import Source, shade
from zeroline.report.texts_figure import Panel


def heat_at(row, column, size=2.0):
    heat = np.zeros((3, 4))
    heat[row, column] = size
    return heat


def spoken(*values, said=("a", "red", "seven")):
    """A text as it is drawn: a number per word."""
    heat = np.array(values)
    return Source("input_ids", "input_ids: 12.0% of the relevance", heat, heat[None], tuple(said))


@pytest.fixture
def three():
    return {
        "a red seven": Panel(heat_at(0, 0), "f(x) 0.25", spoken(1.0, 0.5, -1.0)),
        "a red one": Panel(heat_at(2, 3), "f(x) 0.125", spoken(0.0, 0.5, 1.0, said=("a", "red", "one"))),
        "a red seven - a red one": Panel(heat_at(1, 1, -2.0), "f(x) 0.1"),
    }


def rows_of(drawn):
    """The panels, and the axis of each text below them."""
    above, *below = drawn.subfigs
    return shown(above.axes), [part.axes[0] for part in below]


def grounds(axis):
    """The colour behind each word."""
    return [to_hex(patch.get_facecolor()) for patch in axis.patches]


def test_the_photograph_comes_first_and_each_text_has_a_panel_with_its_figures(three):
    drawn = texts_figure.figure(three, PICTURE, "What it finds")
    photograph, *panels = rows_of(drawn)[0]
    assert np.array_equal(photograph.images[0].get_array(), PICTURE)
    assert photograph.get_title() == "image"
    assert [axis.get_title() for axis in panels] == list(three)
    assert [axis.get_xlabel() for axis in panels] == ["f(x) 0.25", "f(x) 0.125", "f(x) 0.1"]
    assert drawn.get_suptitle() == "What it finds"


def test_each_panel_has_the_map_of_its_own_text(three):
    _, first, second, contrast = (np.asarray(axis.images[0].get_array()) for axis in rows_of(texts_figure.figure(three, PICTURE, ""))[0])
    for drawn, at, sign in ((first, (2, 2), 1), (second, (-3, -3), 1), (contrast, (11, 11), -1)):
        assert drawn.shape == PICTURE.shape
        assert sign * (drawn[at][0] - drawn[at][2]) > 0.2  # red where it speaks for, blue where against
    assert abs(first[-3, -3, 0] - first[-3, -3, 2]) < 0.01  # nothing there: grey
    assert abs(second[2, 2, 0] - second[2, 2, 2]) < 0.01


def test_the_words_of_each_text_are_coloured_below(three):
    _, (first, second) = rows_of(texts_figure.figure(three, PICTURE, ""))
    assert [text.get_text() for text in first.texts] == ["a", "red", "seven"]
    assert [text.get_text() for text in second.texts] == ["a", "red", "one"]
    assert grounds(first) == [to_hex(shade(value, 1.0)) for value in (1.0, 0.5, -1.0)]
    assert grounds(second) == [to_hex(shade(value, 1.0)) for value in (0.0, 0.5, 1.0)]
    red, _, blue = (tuple(int(ground[i : i + 2], 16) for i in (1, 3, 5)) for ground in grounds(first))
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50


def test_a_line_of_words_says_to_which_panel_it_belongs(three):
    said = {label: Panel(panel.heat, panel.below, spoken(1.0, 0.5, 0.0)) for label, panel in three.items()}
    _, below = rows_of(texts_figure.figure(said, PICTURE, ""))
    for axis, label in zip(below, said, strict=True):
        assert label in words(axis)


def test_texts_without_words_have_no_line_below():
    drawn = texts_figure.figure({"a": Panel(heat_at(0, 0), "sum 1")}, PICTURE, "")
    assert len(drawn.subfigs) == 1


def test_values_that_lie_on_no_grid_get_a_panel_that_says_so(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = texts_figure.figure({"a": Panel(None, "sum 1"), "b": Panel(np.zeros((3, 4)), "sum 0")}, PICTURE, "")
        figure.save(drawn, tmp_path / "figure.png")
    _, nowhere, zero = rows_of(drawn)[0]
    assert "on no grid" in words(nowhere)
    assert not nowhere.images
    assert len(zero.images) == 1


@pytest.mark.parametrize(("count", "lines", "columns"), [(1, 1, 2), (3, 1, 4), (4, 2, 3), (7, 2, 4), (9, 3, 4)])
def test_panels_fill_lines_of_four_at_most(count, lines, columns):
    panels = {f"text {i}": Panel(heat_at(0, i % 4), f"f(x) {i}") for i in range(count)}
    drawn = texts_figure.figure(panels, PICTURE, "")
    axes = rows_of(drawn)[0]
    grid = axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (lines, columns)
    assert [axis.get_title() for axis in axes] == ["image", *panels]
    assert len(drawn.subfigs[0].axes) - len(axes) == lines * columns - 1 - count  # the rest is blank


def test_the_page_grows_with_the_lines_of_panels_and_of_words(three):
    def height(panels):
        return float(texts_figure.figure(panels, PICTURE, "").get_size_inches()[1])

    plain = {label: Panel(panel.heat, panel.below) for label, panel in three.items()}
    short, long = ({label: Panel(one.heat, one.below, spoken(*range(n), said=["seven"] * n)) for label, one in three.items()} for n in (3, 30))
    assert height(plain) < height(three) < height(short)
    assert height(long) > height(short) + 1  # of each text three lines more
    assert height({f"{i}": plain["a red one"] for i in range(7)}) > height(plain) + 3


def test_long_texts_are_drawn_without_a_warning(three, tmp_path):
    long = {f"{label} {'word ' * 9}": panel for label, panel in three.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.save(texts_figure.figure(long, PICTURE, "What it finds"), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_long_texts_stay_within_their_panels(three, tmp_path):
    long = {f"{label} {'word ' * 9}": panel for label, panel in three.items()}
    drawn = texts_figure.figure(long, PICTURE, "")
    figure.save(drawn, tmp_path / "figure.png")
    boxes = [axis.title.get_window_extent(drawn.canvas.get_renderer()) for axis in rows_of(drawn)[0]]
    assert all(one.x1 <= other.x0 for one, other in pairwise(boxes))
