"""Figures of rewriting and robustness: the pixels and numbers in them are the record's."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import zeroline as zl
from zeroline import zoo
from zeroline.report import rewriting_figure, robustness_figure


@pytest.fixture(scope="module")
def rewriting(digits_vit):
    return zl.rewrite(digits_vit, zoo.samples("digits-vit")[3].image, to="seven", linf=3 / 255)


@pytest.fixture(scope="module")
def two():
    images = [s.image for s in zoo.test_set("digits-vit")[:4]]
    return [zl.robustness(zoo.load(name), images, name=name) for name in ("digits-vit", "digits-cnn")]


def titled(drawn, words):
    return next(axis for axis in drawn.axes if axis.get_title().startswith(words))


def words_of(drawn):
    return [text.get_text() for text in drawn.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_both_pictures_are_drawn_as_they_are(rewriting):
    drawn = rewriting_figure.figure(rewriting)
    for words, levels in (("original", rewriting.original), ("rewritten", rewriting.rewritten)):
        shown = titled(drawn, words).images[0].get_array()
        assert np.allclose(np.asarray(shown) * 255, levels.permute(1, 2, 0).numpy())


def test_the_difference_is_amplified_as_its_title_says(rewriting):
    axis = titled(rewriting_figure.figure(rewriting), "difference")
    times = int(axis.get_title().split()[-1])
    assert times == 127 // 3
    back = (np.asarray(axis.images[0].get_array()) - 0.5) * 255 / times
    assert np.allclose(back, rewriting.difference.permute(1, 2, 0).numpy(), atol=0.02)


def test_bars_are_the_probabilities(rewriting):
    axis = titled(rewriting_figure.figure(rewriting), "probability")
    widths = [bar.get_width() for bar in axis.patches]
    expected = [rewriting.probabilities[when][which] for when in ("before", "after") for which in ("own", "to")]
    assert widths == pytest.approx(expected)


def test_what_failed_says_so_and_an_unchanged_picture_is_drawn(rewriting):
    stood = replace(rewriting, success=False, answer="nine", rewritten=rewriting.original, psnr=math.inf, relevance={})
    drawn = rewriting_figure.figure(stood)
    assert "is not, within the budget, seven but nine" in drawn._suptitle.get_text()
    assert any("unchanged" in words for words in words_of(drawn))
    assert len(drawn.axes) == 5


def test_handlings_are_listed(rewriting):
    (table,) = titled(rewriting_figure.figure(rewriting), "after ordinary handling").tables
    cells = {place: cell.get_text().get_text() for place, cell in table.get_celld().items()}
    for row, (name, one) in enumerate(rewriting.survival.items(), 1):
        assert [cells[row, column] for column in range(3)] == [name, one.original, one.rewritten]


def test_curves_are_those_of_the_records(two):
    drawn = robustness_figure.figure(two)
    axis = titled(drawn, "success by budget")
    for line, one in zip(axis.lines, two):
        assert line.get_label() == f"{one.model} (4 pictures)"
        assert list(line.get_ydata()) == pytest.approx([one.rate(epsilon)[0] for epsilon in one.budgets()])
        assert list(line.get_xdata()) == pytest.approx([epsilon * 255 for epsilon in one.budgets()])


def test_maps_are_the_mean_fragility_of_the_rewritten(two):
    one = replace(two[0], smallest=two[0].smallest.clone(), fragility=two[0].fragility.clone())
    one.smallest[1], one.fragility[1] = math.inf, math.nan
    axis = titled(robustness_figure.figure([one]), "digits-vit: fragile cells")
    assert np.allclose(np.asarray(axis.images[0].get_array()), one.fragility[[0, 2, 3]].mean(0).numpy())


def test_where_nothing_was_rewritten_there_is_no_map(two):
    one = replace(two[0], smallest=torch.full((4,), math.inf), fragility=torch.full((4, 8, 8), math.nan))
    axis = titled(robustness_figure.figure([one]), "digits-vit: fragile cells")
    assert not axis.images
    assert "no picture was" in axis.texts[0].get_text()
