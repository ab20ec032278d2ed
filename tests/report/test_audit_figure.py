"""The figure of an audit, from records written by hand: a panel per baseline, what the model believes there, and the verdict."""

import warnings

import numpy as np
import pytest
import torch

from report.test_panels import PICTURE, shown, words
from zeroline.audit import Audited, BaselineAudit
from zeroline.report import audit_figure, figure

CLASSES = ("cat", "dog", "ox", "newt")


def audited(*rows, f=1.0, distance=0.5):
    """One baseline, a class distribution per sample."""
    batch = len(rows)
    return Audited(torch.full((batch,), f).double(), torch.tensor(rows).double(), torch.full((batch,), distance).double())


def audit(baselines, own=((0.9, 0.05, 0.03, 0.02),), failures=None):
    batch = len(own)
    return BaselineAudit(
        baselines, tuple(f"logit of sample {b}" for b in range(batch)), "input:x", torch.full((batch,), 5.0).double(), torch.tensor(own).double(),
        CLASSES, 1e-7, "units", failures=failures or {},
    )  # fmt: skip


@pytest.fixture
def four():
    return audit(
        {
            "sure": audited((0.05, 0.9, 0.04, 0.01), f=1.25),
            "same": audited((0.97, 0.01, 0.01, 0.01), f=4.5),
            "even": audited((0.26, 0.25, 0.25, 0.24), f=-0.75),
            "alike": audited((0.1, 0.4, 0.3, 0.2), f=5.0),
        },
        failures={"neutral from sure": "no neutral baseline: KL 1.2"},
    )


def panels_of(drawn):
    """(photograph, bars) per panel, in order of reading."""
    seen = shown(drawn.axes)
    pictures = [axis for axis in seen if axis.get_title()]
    bars = [axis for axis in seen if not axis.get_title()]
    assert len(pictures) == len(bars)
    return list(zip(pictures, bars))


def test_there_is_a_panel_for_x_and_one_for_each_baseline(four):
    titles = [picture.get_title() for picture, _ in panels_of(audit_figure.figure(four, PICTURE, {}))]
    assert [title.split("\n")[0] for title in titles] == ["image x", "sure", "same", "even (advised)", "alike"]
    assert [float(title.split("f = ")[1]) for title in titles] == [5.0, 1.25, 4.5, -0.75, 5.0]


def test_each_panel_has_its_verdict_in_words(four):
    found = [" ".join(bars.get_xlabel().split()) for _, bars in panels_of(audit_figure.figure(four, PICTURE, {}))]
    assert found[0] == "the model's own answer"
    assert found[1:] == [four.verdict(name) for name in four.baselines]
    for text, start in zip(found[1:], ("confident baseline", "keeps the answer", "neutral", "says nothing")):
        assert text.startswith(start)


def test_bars_are_the_largest_probabilities_with_the_names_of_their_classes(four):
    (_, own), (_, sure), *_ = panels_of(audit_figure.figure(four, PICTURE, {}))
    for bars, wanted in ((own, {"cat": 0.9, "dog": 0.05, "ox": 0.03}), (sure, {"dog": 0.9, "cat": 0.05, "ox": 0.04})):
        assert [label.get_text() for label in bars.get_yticklabels()] == list(wanted)
        assert [bar.get_width() for bar in bars.patches] == pytest.approx(list(wanted.values()))
        assert bars.yaxis_inverted()  # the largest on top
        assert bars.lines[0].get_xdata()[0] == 1 / len(CLASSES)  # no opinion


def test_advice_and_what_could_not_be_had_are_said_below(four):
    below = " ".join(audit_figure.figure(four, PICTURE, {}).get_supxlabel().split())
    best, why = four.advice()
    assert best == "even"
    assert f"advice: even: {why}" in below
    assert "neutral from sure: not to be had" in below


def test_without_a_usable_baseline_none_is_marked():
    hopeless = audit({"same": audited((0.97, 0.01, 0.01, 0.01), f=4.5)})
    drawn = audit_figure.figure(hopeless, PICTURE, {})
    assert "none of these" in drawn.get_supxlabel()
    assert "(advised)" not in words(drawn)


def test_pictures_go_to_their_own_baseline_and_features_have_none(four):
    other = 1 - PICTURE
    pictures = [picture for picture, _ in panels_of(audit_figure.figure(four, PICTURE, {"same": other, "even": None}))]
    drawn = {picture.get_title().split("\n")[0]: picture for picture in pictures}
    assert np.array_equal(drawn["image x"].images[0].get_array(), PICTURE)
    assert np.array_equal(drawn["same"].images[0].get_array(), other)
    for name in ("sure", "even (advised)", "alike"):
        assert not drawn[name].images
        assert "no picture" in words(drawn[name])


def test_the_sample_that_is_asked_for_is_drawn():
    own = ((0.9, 0.05, 0.03, 0.02), (0.1, 0.1, 0.1, 0.7))
    two = audit({"sure": audited((0.05, 0.9, 0.04, 0.01), (0.02, 0.08, 0.1, 0.8))}, own)
    for sample, (top, verdict) in enumerate((("cat", "confident baseline"), ("newt", "keeps the answer"))):
        drawn = audit_figure.figure(two, PICTURE, {}, sample=sample)
        (_, first), (_, second) = panels_of(drawn)
        assert first.get_yticklabels()[0].get_text() == top
        assert second.get_xlabel().startswith(verdict)
        assert f"logit of sample {sample}" in drawn.get_suptitle()


@pytest.mark.parametrize("count", [1, 5, 6, 7, 13])
def test_any_number_of_baselines_is_drawn_on_as_many_lines_as_it_needs(tmp_path, count):
    names = [f"noise(seed={i}, 0 to 1)" for i in range(count)]
    many = audit({name: audited((0.1, 0.6, 0.2, 0.1)) for name in names})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = audit_figure.figure(many, PICTURE, dict.fromkeys(names, PICTURE))
        figure.save(drawn, tmp_path / "figure.png")
    titles = [picture.get_title() for picture, _ in panels_of(drawn)]
    assert len(titles) == 1 + count
    assert all(any(title.startswith(name) for title in titles) for name in names)
    places = {tuple(np.round(axis.get_position().bounds, 3)) for axis in shown(drawn.axes)}
    assert len(places) == 2 * (1 + count)  # none hides another


def test_two_classes_have_two_bars():
    both = BaselineAudit(
        {"zeros": audited((0.2, 0.8))}, ("f",), "input:x", torch.ones(1).double(), torch.tensor([[0.7, 0.3]]).double(), ("no", "yes"), 1e-7, "units"
    )  # fmt: skip
    (_, own), (_, there) = panels_of(audit_figure.figure(both, None, {}))
    assert [len(own.patches), len(there.patches)] == [2, 2]
    assert own.lines[0].get_xdata()[0] == 0.5
