"""The figure of a whole run: what is drawn are the numbers of the summary, read back from the drawn figure."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from zeroline.report import figure, summary_figure
from zeroline.summary import QUANTILES, Disagreement, Spread, Summary

EDGES = tuple(10.0 ** (exponent / 4) for exponent in range(-20, 5))
COUNTS = tuple((7 * n) % 11 for n in range(24))


def spread(low, high, count=40):
    """Even between two values."""
    return Spread(count, (low + high) / 2, tuple(low + (high - low) * q for q in QUANTILES))


def maps(count, side=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {f"class {n}": torch.randn(side, side, generator=draw) * (n + 1) for n in range(count)}


def summary(classes=3, **asked):
    """A record of everything."""
    found = maps(classes)
    given = {
        "folder": "out/run", "model": "digits-vit", "examples": 120, "failed": 2, "reasons": {"read, LoadError": 2},
        "settings": {"method": "integrated_gradients", "target": "label", "baseline": "blur(8)"},
        "spreads": {
            "|error| / |difference|": spread(1e-4, 0.02), "map error": spread(0.05, 0.3), "evidence inside the object": spread(0.2, 0.9),
            "chance": spread(0.1, 0.15), "seconds per example": spread(0.1, 3),
        },
        "stopped": {"tolerance": 120}, "slowest": (), "least_exact": (), "histogram": (EDGES, COUNTS),
        "counts": {name: 10 * (n + 1) for n, name in enumerate(found)}, "maps": found,
    }  # fmt: skip
    return Summary(**{**given, **asked})


def other():
    spreads = {"|f(x) here - there|": spread(0, 9), "cosine of the maps": spread(-0.2, 0.95), "distance of the maps": spread(0.1, 1.4)}
    return Disagreement("out/other", 100, 20, 3, 1, 90, spreads, (), ())


def titled(drawn, words):
    """The axis whose title holds ``words``."""
    (found,) = [axis for axis in drawn.axes if words in axis.get_title()]
    return found


def bars(drawn):
    return titled(drawn, "how far the sum")


def boxes(drawn):
    """Label -> (5 %, quartile, median, quartile, 95 %) as drawn."""
    axis = titled(drawn, "5 to 95 %, quartiles, median")
    names = [label.get_text() for label in axis.get_yticklabels()]
    medians = [line for line in axis.lines if line.get_linewidth() == 2]
    assert len(medians) == len(axis.patches) == len(names)
    found = {}
    for number, (name, patch, median) in enumerate(zip(names, axis.patches, medians), 1):
        xs = patch.get_path().vertices[:, 0]
        whiskers = [x for line in axis.lines if line is not median and set(line.get_ydata()) == {float(number)} for x in line.get_xdata()]
        found[name] = (min(whiskers), xs.min(), median.get_xdata()[0], xs.max(), max(whiskers))
    return found


def panels(drawn):
    """Axes with a map, in order."""
    return [axis for axis in drawn.axes if axis.images]


def test_the_title_says_what_was_asked_of_which_model():
    drawn = summary_figure.figure(summary())
    assert drawn.get_suptitle() == "120 examples, integrated_gradients of digits-vit, target label, baseline blur(8)"


def test_bars_are_the_histogram():
    axis = bars(summary_figure.figure(summary()))
    assert [bar.get_height() for bar in axis.patches] == list(COUNTS)
    assert [bar.get_x() for bar in axis.patches] == pytest.approx(EDGES[:-1])
    assert [bar.get_x() + bar.get_width() for bar in axis.patches] == pytest.approx(EDGES[1:])
    assert axis.get_xscale() == "log"
    assert axis.get_ylabel() == "examples"


def test_decades_are_labelled_in_percent():
    axis = bars(summary_figure.figure(summary()))
    said = dict(zip(axis.get_xticks(), [label.get_text() for label in axis.get_xticklabels()]))
    assert {round(math.log10(at)): text for at, text in said.items()} == {
        -5: "0.001%", -4: "0.01%", -3: "0.1%", -2: "1%", -1: "10%", 0: "100%", 1: "1000%",
    }  # fmt: skip


@pytest.mark.parametrize("middle", [0.0123, 1e-9])
def test_the_median_is_marked_where_it_is_and_at_the_edge_where_it_is_below(middle):
    spreads = {"|error| / |difference|": Spread(9, 1.0, (0.0, 0.0, 0.0, middle, 1.0, 2.0, 3.0))}
    axis = bars(summary_figure.figure(summary(spreads=spreads)))
    (line,) = axis.lines
    assert list(line.get_xdata()) == [max(middle, EDGES[0])] * 2
    (text,) = axis.texts
    assert text.get_text().strip() == f"median {middle:.2%}"
    assert text.get_position()[0] == max(middle, EDGES[0])


def test_boxes_are_the_quantiles_of_the_record():
    found = summary(against=other())
    drawn = boxes(summary_figure.figure(found))
    expected = {name: found.spreads[name] for name in ("map error", "evidence inside the object", "chance")}
    expected |= {f"{name} of the maps, two runs": found.against.spreads[f"{name} of the maps"] for name in ("cosine", "distance")}
    assert list(drawn)[::-1] == list(expected)  # the first on top
    for name, spread in expected.items():
        assert drawn[name] == pytest.approx(spread.quantiles[1:6]), name


def test_maps_are_the_mean_maps_on_one_scale():
    found = summary(classes=8)
    drawn = panels(summary_figure.figure(found))
    assert len(drawn) == 8
    limits = set()
    for axis, (name, map_) in zip(drawn, found.maps.items()):
        (image,) = axis.images
        np.testing.assert_array_equal(np.asarray(image.get_array()), map_.numpy())
        assert axis.get_title() == f"{name} (mean of {found.counts[name]})"
        limits.add(image.get_clim())
        assert image.get_cmap().name == getattr(figure.COLOURS, "name", figure.COLOURS)
    everything = np.abs(np.stack([map_.numpy() for map_ in found.maps.values()])).flatten().astype(np.float64)
    limit = np.quantile(everything, 0.995)
    ((low, high),) = limits
    assert (low, high) == (pytest.approx(-limit), pytest.approx(limit))


@pytest.mark.parametrize("classes", [1, 6, 7, 12])
def test_six_maps_stand_in_a_row_and_empty_places_are_blank(classes):
    drawn = summary_figure.figure(summary(classes=classes))
    rows = -(-classes // 6)
    assert len(drawn.axes) == 2 + 6 * rows
    assert [axis.axison for axis in drawn.axes[2:]] == [True] * classes + [False] * (6 * rows - classes)
    assert drawn.get_size_inches()[1] == pytest.approx(3.4 + 2 * rows)


def test_a_long_name_of_a_class_is_shortened():
    name = "a very long name of a class that no panel has room for"
    drawn = summary_figure.figure(summary(maps={name: torch.ones(4, 4)}, counts={name: 3}))
    (axis,) = panels(drawn)
    title = axis.get_title()
    assert title.endswith(f"{name[-21:]} (mean of 3)")
    assert len(title) < len(name)


def test_maps_of_nothing_are_drawn_as_nothing():
    drawn = summary_figure.figure(summary(maps={"zero": torch.zeros(4, 4)}, counts={"zero": 3}))
    (axis,) = panels(drawn)
    low, high = axis.images[0].get_clim()
    assert low == -high < 0


def test_a_run_without_maps_has_no_panels():
    drawn = summary_figure.figure(summary(maps={}, counts={}))
    assert len(drawn.axes) == 2
    assert not panels(drawn)
    assert [bar.get_height() for bar in bars(drawn).patches] == list(COUNTS)


def test_relevance_has_no_bars_and_says_why():
    found = summary(histogram=None, spreads={"seconds per example": spread(0, 1)}, settings={"method": "attention_relevance", "target": "top"})
    drawn = summary_figure.figure(found)
    assert not bars(drawn).patches
    (text,) = bars(drawn).texts
    assert " ".join(text.get_text().split()) == "relevance has no unit, so there is no attribution error"
    axis = titled(drawn, "5 to 95 %")
    assert not axis.patches
    assert "no map errors, no masks or boxes" in axis.texts[0].get_text()
    assert len(panels(drawn)) == 3


def test_a_run_of_logic_is_not_called_relevance():
    spreads = {"|attribution error|": spread(0, 1), "|difference|": spread(1, 2)}
    found = summary(histogram=None, spreads=spreads, maps={}, counts={}, settings={"method": "logic", "target": "top", "baseline": "zeros"})
    assert "relevance" not in bars(summary_figure.figure(found)).texts[0].get_text()


@pytest.mark.parametrize("without", ["map error", "evidence inside the object", "chance"])
def test_figures_that_are_not_there_have_no_box(without):
    found = summary()
    drawn = boxes(summary_figure.figure(replace(found, spreads={n: s for n, s in found.spreads.items() if n != without})))
    assert set(drawn) == {"map error", "evidence inside the object", "chance"} - {without}


@pytest.mark.parametrize("kind", ["whole", "bare", "relevance", "odd words"])
def test_the_saved_picture_is_not_blank(tmp_path, kind):
    found = {
        "whole": lambda: summary(against=other()),
        "bare": lambda: summary(maps={}, counts={}, spreads={"|error| / |difference|": spread(0, 1)}),
        "relevance": lambda: summary(histogram=None, spreads={}),
        "odd words": lambda: summary(maps={"$x_{1$ & <b> \\frac": torch.ones(4, 4)}, counts={"$x_{1$ & <b> \\frac": 1}, model="$m_{$ 5$"),
    }[kind]()
    figure.save(summary_figure.figure(found), tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as opened:
        pixels = np.asarray(opened.convert("L"))
    assert np.ptp(pixels) > 150
    above, below = pixels[: pixels.shape[0] // 2], pixels[pixels.shape[0] // 2 :]
    for part in (above, below):
        assert float((part < 200).mean()) > 0.003


def test_of_many_classes_those_with_the_most_examples_are_drawn(tmp_path):
    from report.page_records import summary

    one = summary()
    maps = {f"class {i}": torch.full((4, 4), float(i)) for i in range(100)}
    drawn = summary_figure.figure(replace(one, maps=maps, counts={f"class {i}": i for i in range(100)}))
    titles = {axis.get_title() for part in drawn.subfigs for axis in part.axes}
    assert {f"class {i} (mean of {i})" for i in range(40, 100)} <= titles
    assert not any(title.startswith("class 39 ") for title in titles)
    assert any("60 of 100 classes" in text.get_text() for text in drawn.findobj(lambda one: hasattr(one, "get_text")))
