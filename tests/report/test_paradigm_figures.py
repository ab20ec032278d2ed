"""Figures of logic, grounding and mechanism: what is drawn are the numbers of the record, read back from the drawn figure."""

import math
import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from zeroline.circuit import Edge, Mechanism
from zeroline.grounding import Grounding
from zeroline.maths.coalitions import members
from zeroline.reasoning import Logic
from zeroline.relevance import Tokens
from zeroline.report import figure, grounding_figure, logic_figure, mechanism_figure

ODD = "$x_{1$ costs 5$ & <b> \\frac " + "very " * 40 + "long"
GREY_PICTURE = np.full((8, 8, 3), 0.5, np.float32)
RED, BLUE, GREY = "#b2182b", "#2166ac", "#9a9a9a"


def saved(drawn, tmp_path):
    """The figure as PNG (an array) and as the text of its SVG."""
    for kind in ("png", "svg"):
        figure.save(drawn, tmp_path / f"figure.{kind}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "figure.svg"]
    with Image.open(tmp_path / "figure.png") as opened:
        pixels = np.asarray(opened.convert("L"))
    assert np.ptp(pixels) > 150
    return pixels, (tmp_path / "figure.svg").read_text()


def labelled(drawn, words):
    """The axis that says ``words`` in a title or a label."""

    def said(axis):
        return (axis.get_title(), axis.get_title("left"), axis.get_xlabel(), axis.get_ylabel())

    return next(axis for axis in drawn.axes if any(words in text for text in said(axis)))


def flat(text):
    return " ".join(text.split())


# --- logic -------------------------------------------------------------------------------------------------------------------------


def game(k=3, batch=1, seed=0, values=None, **more):
    """A record of all coalitions of k players."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.randn(batch, 1 << k, generator=draw, dtype=torch.float64) if values is None else torch.as_tensor(values, dtype=torch.float64)
    known = {
        "players": tuple("abcdefghij"[:k]), "baselines": ("zeros",) * k, "coalitions": torch.arange(1 << k), "values": found,
        "holds": found > 0, "threshold": "f(T) is at least 50% of the way", "target": tuple(f"logit of {n}" for n in range(len(found))),
        "output": found[:, -1], "evaluations": 1 << k, "forward_passes": 1,
    }  # fmt: skip
    return Logic(**{**known, **more})


def many(k=62, half=0.25):
    """A record of one and two of many players."""
    coalitions = [0, *(1 << i for i in range(k)), *((1 << i) | (1 << j) for i in range(k) for j in range(i)), (1 << k) - 1]
    values = torch.tensor([[float(c.bit_count() % 7) + 0.01 * (c % 11) for c in coalitions]], dtype=torch.float64)
    return game(
        2, values=values, players=tuple(f"player {i}" for i in range(k)), baselines=("zeros",) * k, coalitions=torch.tensor(coalitions),
        evaluations=len(coalitions), estimate=torch.linspace(-1, 1, k, dtype=torch.float64)[None],
        half_width=torch.full((1, k), half, dtype=torch.float64), orders=5,
    )  # fmt: skip


def slow_dividends(values, k):
    """By the definition: d(S) = sum over T within S of (-1)^(|S| - |T|) f(T)."""
    found = {}
    for s in range(1, 1 << k):
        found[s] = sum((-1) ** (s.bit_count() - t.bit_count()) * float(values[t]) for t in range(1 << k) if t & s == t)
    return found


def bars_of(drawn):
    axis = labelled(drawn, "dividend (units")
    return axis, [(bar.get_x() + bar.get_width() / 2, bar.get_height(), to_hex(bar.get_facecolor())) for bar in axis.patches]


def dots_of(drawn):
    """Players of each column that have a dark dot, and those that have any."""
    axis = next(axis for axis in drawn.axes if axis.collections and not axis.images and not axis.get_xlabel() and not axis.get_ylabel())
    dark, grey = {}, {}
    for dots in axis.collections:
        into = dark if to_hex(dots.get_facecolor()[0]) == "#222222" else grey
        for x, y in dots.get_offsets().tolist():
            into.setdefault(int(x), set()).add(int(y))
    lines = {int(line.get_xdata()[0]): tuple(int(y) for y in line.get_ydata()) for line in axis.lines}
    return dark, grey, lines


@pytest.mark.parametrize("sample", [0, 1])
def test_bars_are_the_dividends_the_largest_first_and_dots_say_whose(sample):
    record = game(3, batch=2)
    drawn = logic_figure.figure(record, sample=sample)
    expected = sorted(slow_dividends(record.values[sample], 3).items(), key=lambda pair: -abs(pair[1]))
    axis, bars = bars_of(drawn)
    assert [x for x, _, _ in bars] == pytest.approx(range(7))
    assert [height for _, height, _ in bars] == pytest.approx([value for _, value in expected])
    assert [colour for _, _, colour in bars] == [RED if value >= 0 else BLUE for _, value in expected]
    assert [text.get_text() for text in axis.texts] == [f"{value:+.2g}" for _, value in expected]
    dark, grey, lines = dots_of(drawn)
    assert dark == {x: set(members(c)) for x, (c, _) in enumerate(expected)}
    assert all(grey[x] == {0, 1, 2} for x in range(7))
    assert lines == {x: (min(members(c)), max(members(c))) for x, (c, _) in enumerate(expected)}
    assert axis.get_title("left") == "the 7 largest dividends"
    assert f"logit of {sample}" in drawn.get_supxlabel()


def test_the_caption_states_sum_difference_error_and_rule():
    record = game(2, values=[[1.0, 2.5, -3.25, 7.0]], threshold="f(T) is odd")
    words = logic_figure.caption(record)
    assert "logit of 0: dividends add up to 6; f(all) - f(none) = 7 - 1 = 6; attribution error +0;" in words
    assert words.endswith("true where f(T) is odd; 4 evaluations")
    drawn = logic_figure.figure(record)
    assert flat(drawn.get_supxlabel()) == words
    assert flat(drawn.get_suptitle()) == flat(record.reading[0])


def test_of_many_players_the_error_is_what_larger_groups_hold_and_bars_have_intervals():
    record = many(12)
    words = logic_figure.caption(record)
    total, difference = float(record.total), float(record.difference)
    assert abs(total - difference) > 1
    assert f"dividends add up to {total:.4g}; " in words
    assert f"= {difference:.4g}; attribution error {total - difference:+.2g}; " in words
    assert words.endswith("; 12 players: singles and pairs are exact, Shapley values estimated from 5 orders (95 %)")
    axis = labelled(logic_figure.figure(record), "Shapley value")
    assert [bar.get_width() for bar in axis.patches] == pytest.approx(record.estimate[0].tolist())
    (spread,) = axis.collections
    ends = [segment[:, 0].tolist() for segment in spread.get_segments()]
    assert ends == [pytest.approx([v - 0.25, v + 0.25]) for v in record.estimate[0].tolist()]


def test_exact_values_have_no_interval():
    record = game(3, estimate=torch.zeros(1, 3).double(), half_width=torch.ones(1, 3).double(), orders=4)
    assert record.exact
    axis = labelled(logic_figure.figure(record), "Shapley value")
    assert not axis.collections or all(float(np.ptp(segment[:, 0])) == 0 for segment in axis.collections[0].get_segments())


def test_an_unknown_interval_is_not_drawn(tmp_path):
    record = many(12, math.inf)
    drawn = logic_figure.figure(record)
    axis = labelled(drawn, "Shapley value")
    (spread,) = axis.collections
    assert all(float(np.ptp(segment[:, 0])) == 0 for segment in spread.get_segments())
    saved(drawn, tmp_path)


def test_shapley_values_are_bars_beside_the_names_of_the_players():
    record = game(3, seed=4)
    axis = labelled(logic_figure.figure(record), "Shapley value")
    dividends = slow_dividends(record.values[0], 3)
    expected = [sum(d / c.bit_count() for c, d in dividends.items() if c >> i & 1) for i in range(3)]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx(expected)
    assert [to_hex(bar.get_facecolor()) for bar in axis.patches] == [RED if v >= 0 else BLUE for v in expected]
    assert [bar.get_y() + bar.get_height() / 2 for bar in axis.patches] == pytest.approx(range(3))
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b", "c"]
    assert axis.get_ylim() == (2.5, -0.5)  # the first player on top, as the dots have it
    dots = next(axis for axis in logic_figure.figure(record).axes if axis.collections and not axis.get_xlabel())
    assert dots.get_ylim() == (2.5, -0.5)


def test_no_more_than_fourteen_dividends_are_drawn_and_the_rest_is_said():
    record = game(5, seed=1)
    drawn = logic_figure.figure(record)
    axis, bars = bars_of(drawn)
    sizes = sorted((abs(d) for d in slow_dividends(record.values[0], 5).values()), reverse=True)
    assert [abs(height) for _, height, _ in bars] == pytest.approx(sizes[:14])
    assert axis.get_title("left") == f"the 14 largest dividends (17 more, {sum(sizes[14:]):.2g} in size together)"
    assert not axis.texts  # no room for numbers


def test_another_question_has_a_second_bar_for_every_dividend():
    record = game(2, values=[[0.0, 1, 2, 4]])
    other = game(2, values=[[0.0, -5, 2, 1]])
    drawn = logic_figure.figure(replace(record, instead=other), asked="what $ is it ?", instead="which ?")
    _, bars = bars_of(drawn)
    here, there = slow_dividends(record.values[0], 2), slow_dividends(other.values[0], 2)
    order = sorted(here, key=lambda c: -max(abs(here[c]), abs(there[c])))
    assert order[0] == 1  # a, large in the other alone
    assert [height for _, height, _ in bars] == pytest.approx([*(here[c] for c in order), *(there[c] for c in order)])
    assert [colour for _, _, colour in bars[3:]] == [GREY] * 3
    assert [x for x, _, _ in bars] == pytest.approx([*(n - 0.2 for n in range(3)), *(n + 0.2 for n in range(3))])
    legend = labelled(drawn, "dividend (units").get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["what $ is it ?", "which ?"]
    dark, _, _ = dots_of(drawn)
    assert dark == {x: set(members(c)) for x, c in enumerate(order)}


def half(height, width, side):
    place = np.zeros((height, width), bool)
    place[:, : width // 2] = side == "left"
    place[:, width // 2 :] = side == "right"
    return place


def outlines(axis):
    """Each outline's extent (left, top, right, bottom)."""
    found = []
    for drawn in axis.collections:
        points = np.concatenate([path.vertices for path in drawn.get_paths() if len(path.vertices)])
        found.append((*points.min(0), *points.max(0)))
    return found


def test_only_regions_are_outlined_on_the_photograph_where_they_are():
    places = {"b": half(8, 8, "left"), "c": half(8, 8, "right")}
    picture = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    drawn = logic_figure.figure(game(3), picture=picture, places=places, asked="is it there ?")
    axis = labelled(drawn, "is it there ?")
    assert np.array_equal(axis.images[0].get_array(), picture)
    assert [text.get_text() for text in axis.texts] == ["b", "c"]
    assert [text.get_position() for text in axis.texts] == [(0, 0), (32, 0)]
    left, right = outlines(axis)
    assert left == pytest.approx((-0.5, -0.5, 31.5, 63.5), abs=0.51)
    assert right == pytest.approx((31.5, -0.5, 63.5, 63.5), abs=0.51)
    colours = [to_hex(drawn.get_edgecolor()[0]) for drawn in axis.collections]
    assert len(set(colours)) == 2
    assert [to_hex(text.get_bbox_patch().get_facecolor()) for text in axis.texts] == colours


@pytest.mark.parametrize("given", [{}, {"picture": GREY_PICTURE}, {"places": {"a": half(8, 8, "left")}}, {"picture": GREY_PICTURE, "places": {}}])
def test_without_picture_or_places_there_is_no_photograph(given):
    drawn = logic_figure.figure(game(3), **given)
    assert len(drawn.axes) == 3
    assert not any(axis.images for axis in drawn.axes)


def test_a_region_is_where_it_is_on_a_picture_of_any_size():
    picture = np.zeros((60, 100, 3), np.float32)
    drawn = logic_figure.figure(game(3), picture=picture, places={"a": half(8, 8, "right")}, asked="where")
    (right,) = outlines(labelled(drawn, "where"))
    assert right == pytest.approx((49.5, -0.5, 99.5, 59.5), abs=1)


def test_sixty_two_players_have_their_names(tmp_path):
    drawn = logic_figure.figure(many())
    axis = labelled(drawn, "Shapley value")
    assert len(axis.get_yticklabels()) == 62
    assert axis.get_yticklabels()[61].get_text() == "player 61"
    dark, _, _ = dots_of(drawn)
    assert len(dark) == 14
    saved(drawn, tmp_path)


def test_dollars_in_names_are_drawn_as_they_are(tmp_path):
    record = game(2, players=("$a_{1$", "5$"), target=("$y$ " * 40,), labels=("$y$",))
    other = replace(game(2), players=("$a_{1$", "6$"))
    picture, places = np.zeros((16, 16, 3), np.float32), {"5$": half(4, 4, "left")}
    _, svg = saved(logic_figure.figure(replace(record, instead=other), picture=picture, places=places, asked="$5 ?", instead="$6_{ ?"), tmp_path)
    assert svg.count("<!-- 5$ -->") == 2  # beside its bar, and on its region
    assert "<!-- $a_{1$ -->" in svg


@pytest.mark.parametrize("what", ["name", "question"])
def test_very_long_names_and_questions_leave_room_for_the_bars(tmp_path, what):
    record = game(2, players=(ODD if what == "name" else "a", "b"))
    given = {"picture": np.zeros((16, 16, 3), np.float32), "places": {"b": half(4, 4, "left")}}
    if what == "question":
        record, given = replace(record, instead=game(2, seed=1)), {**given, "asked": ODD, "instead": ODD}
    saved(logic_figure.figure(record, **given), tmp_path)


# --- grounding -----------------------------------------------------------------------------------------------------------------------


def grounded(matrix, back=None, *, grid=None, prefix=0, rows=None, columns=(), stream="ids", **more):
    """A record of one call: ``matrix`` [batch, rows, columns]."""
    matrix = torch.as_tensor(matrix, dtype=torch.float32)
    back = torch.zeros_like(matrix) if back is None else torch.as_tensor(back, dtype=torch.float32)
    count = matrix.shape[1]
    known = {
        "matrix": matrix, "per_call": matrix[None], "direct": torch.full((len(matrix), matrix.shape[2]), 0.125), "back": back,
        "back_per_call": back[None], "calls": ("cross",), "row_stream": stream, "column_stream": "image", "row_tokens": tuple(range(count)),
        "column_tokens": tuple(range(matrix.shape[2])), "row_words": tuple(rows or (f"word{n}" for n in range(count))),
        "column_words": tuple(columns), "lie": Tokens(prefix, grid), "target": tuple(f"logit of {n}" for n in range(len(matrix))),
        "output": torch.zeros(len(matrix)), "readout": tuple(f"token {n}" for n in range(len(matrix))), "settings": {"correction": "positive"},
    }  # fmt: skip
    return Grounding(**{**known, **more})


def photographs(drawn):
    """[(title, share, the overlay)] of each photograph that is drawn."""
    found = [(axis.get_title(), axis.get_xlabel(), axis.images[0].get_array()) for axis in drawn.axes if axis.images and axis.axison]
    return [one for one in found if "of all" in one[1]]


def hot(rows, columns, places, batch=1):
    """Relevance of 1 at a cell of each row: places = [(row, column) or None]."""
    values = torch.zeros(batch, len(places), rows * columns)
    for n, place in enumerate(places):
        if place is not None:
            values[:, n, place[0] * columns + place[1]] = 1.0
    return values


def test_the_photograph_is_drawn_once_per_word_with_its_share_of_all():
    values = hot(3, 4, [(0, 3), None, (2, 1)])
    values[0, 0] *= 3
    picture = np.full((30, 40, 3), 0.5, np.float32)
    drawn = grounding_figure.figure(grounded(values, grid=(3, 4)), picture=picture)
    found = photographs(drawn)
    assert [(title, share) for title, share, _ in found] == [("word0", "75% of all"), ("word2", "25% of all")]
    for (_, _, shown), (row, column) in zip(found, [(0, 3), (2, 1)]):
        assert shown.shape == (30, 40, 3)
        redness = np.asarray(shown)[..., 0] - np.asarray(shown)[..., 2]
        y, x = np.unravel_index(np.argmax(redness), redness.shape)
        assert (y // 10, x // 10) == (row, column)
        assert redness.max() > 0.2  # each with a scale of its own: the weaker word is as red
        assert abs(redness[(5 if row else 25), 5]) < 0.01
    assert "1 rows with less or nothing are not drawn" in flat(drawn.get_supxlabel())


def test_both_directions_are_drawn_together():
    one, other = hot(2, 2, [(0, 0), None]), hot(2, 2, [None, (1, 1)])
    found = photographs(grounding_figure.figure(grounded(one, other, grid=(2, 2))))
    assert [(title, share) for title, share, _ in found] == [("word0", "50% of all"), ("word1", "50% of all")]
    assert found[0][2].shape == (32, 32, 3)  # without a photograph


def test_signed_relevance_has_two_colours_and_says_so():
    values = hot(2, 2, [(0, 0), (1, 1)])
    values[0, 1] *= -2
    drawn = grounding_figure.figure(grounded(values, grid=(2, 2)), picture=np.full((20, 20, 3), 0.5, np.float32))
    (_, _, first), (_, share, second) = photographs(drawn)
    assert share == "67% of all"
    assert first[2, 2, 0] - first[2, 2, 2] > 0.2
    assert second[17, 17, 2] - second[17, 17, 0] > 0.2
    assert any("red for, blue against" in flat(part.get_suptitle()) for part in drawn.subfigs)
    plain = grounding_figure.figure(grounded(values.abs(), grid=(2, 2)))
    assert not any("blue against" in flat(part.get_suptitle()) for part in plain.subfigs)


def test_the_caption_states_what_adds_up_and_of_targets_that_nothing_does():
    values = torch.arange(8.0).reshape(1, 2, 4) / 8
    record = grounded(values, values / 2, grid=(2, 2))
    words = grounding_figure.caption(record, 2)
    assert (
        "relevance of image 4 = 3.5 through tokens of ids + 0.5 past them; of ids 1.75 through image; relevance has no unit; read at token 0" in words
    )
    assert "not drawn" not in words
    assert "1 rows with less or nothing are not drawn" in grounding_figure.caption(record, 1)
    of_targets = replace(record, row_stream="", target=("a", "b"))
    assert grounding_figure.caption(of_targets, 2) == "each row: relevance of image for a target of its own; relevance has no unit"
    assert "what grounds what: 2 targets (positive correction)" in flat(grounding_figure.figure(of_targets).get_suptitle()).lower()
    assert flat(grounding_figure.figure(record).get_supxlabel()) == words


def test_the_words_are_drawn_once_for_each_of_the_strongest_regions():
    values = torch.zeros(1, 3, 7)
    values[0, :, 0] = 50  # a class token before the patches is no region
    values[0, 0, 6], values[0, 1, 6], values[0, 2, 2] = 4, -1, 2
    drawn = grounding_figure.figure(grounded(values, grid=(2, 3), prefix=1, rows=("up", "a rather long word indeed", "down")))
    axis = labelled(drawn, "the rows once per region: the 2 with the most relevance")
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["patch (1, 2)", "up", "a rather long...", "down", "patch (0, 1)", "up", "a rather long...", "down"]
    assert len(axis.patches) == 6
    shade = [patch.get_facecolor()[:3] for patch in axis.patches]
    red = [r - b for r, _, b in shade]
    assert red[0] == max(red)
    assert red[1] < 0
    assert red[2] == pytest.approx(0, abs=0.02)
    assert red[5] > 0.2
    places = [patch.get_bbox() for patch in axis.patches]
    assert all(a.x1 <= b.x0 for a, b in pairwise(places[:3]))  # beside each other
    assert axis.get_xlim()[1] >= max(place.x1 for place in places)


def test_targets_have_no_words_per_region():
    drawn = grounding_figure.figure(grounded(hot(2, 2, [(0, 0), (1, 1)]), grid=(2, 2), stream="", target=("a", "b")))
    assert len(drawn.subfigs) == 1


def test_one_sample_of_a_batch_is_drawn():
    values = hot(2, 2, [(0, 0), (0, 1)], batch=2)
    values[1] = hot(2, 2, [None, (1, 0)])[0]
    record = grounded(values, grid=(2, 2))
    assert [title for title, _, _ in photographs(grounding_figure.figure(record))] == ["word0", "word1"]
    drawn = grounding_figure.figure(record, sample=1)
    assert [title for title, _, _ in photographs(drawn)] == ["word1"]
    assert "logit of 1" in drawn.get_suptitle()
    assert "token 1" in drawn.get_supxlabel()


def test_no_more_than_24_words_are_drawn_the_strongest_in_their_order():
    strength = list(range(1, 31))
    random.Random(0).shuffle(strength)
    values = torch.zeros(1, 30, 4)
    values[0, :, 1] = torch.tensor(strength, dtype=torch.float32)
    drawn = grounding_figure.figure(grounded(values, grid=(2, 2)))
    expected = [f"word{n}" for n in range(30) if strength[n] > 6]
    assert [title for title, _, _ in photographs(drawn)] == expected
    assert "6 rows with less or nothing are not drawn" in flat(drawn.get_supxlabel())
    assert photographs(drawn)[0][1] == f"{100 * strength[int(expected[0][4:])] / sum(strength):.2g}% of all"


def matrix_of(drawn):
    axis = next(axis for axis in drawn.axes if axis.images)
    return axis, np.asarray(axis.images[0].get_array())


def test_columns_that_lie_on_no_grid_are_a_matrix_with_their_words():
    values = torch.tensor([[[1.0, 0, 3], [0, 0, 0], [0, 0.5, 0.25]]])
    drawn = grounding_figure.figure(grounded(values, columns=("ein", "paar", "Worte")))
    axis, shown = matrix_of(drawn)
    assert shown.shape == (2, 3)  # the row without relevance is left out
    assert np.allclose(shown / shown.max(1, keepdims=True), [[1 / 3, 0, 1], [0, 1, 0.5]])
    assert [text.get_text() for text in axis.get_yticklabels()] == ["word0", "word2"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["ein", "paar", "Worte"]
    assert axis.images[0].get_cmap().name == "Reds"
    assert axis.images[0].get_clim()[0] == 0
    assert "1 rows with less or nothing" in flat(drawn.get_supxlabel())


def test_a_signed_matrix_has_a_scale_that_is_centred_on_zero():
    axis, shown = matrix_of(grounding_figure.figure(grounded(torch.tensor([[[1.0, -2], [0, 0.5]]]))))
    assert axis.images[0].get_cmap().name == "RdBu_r"
    low, high = axis.images[0].get_clim()
    assert low == -high < 0
    assert np.sign(shown).tolist() == [[1, -1], [0, 1]]


def test_times_have_an_axis_of_seconds_that_ends_with_the_sound():
    values = torch.ones(1, 2, 100)
    values[:, :, 40:] = 0.5
    axis, shown = matrix_of(grounding_figure.figure(grounded(values), seconds=2.0))
    assert axis.get_xlabel() == "seconds"
    assert axis.images[0].get_extent() == [0, 2.0, 2, 0]
    assert shown.shape == (2, 100)
    axis, shown = matrix_of(grounding_figure.figure(grounded(values), seconds=2.0, sound=0.8))
    assert axis.images[0].get_extent()[1] == pytest.approx(0.8)
    assert shown.shape == (2, 40)
    assert "43% of all relevance lies on what is padded behind the sound" in axis.get_title("left")
    axis, shown = matrix_of(grounding_figure.figure(grounded(values), seconds=2.0, sound=9.0))  # cut off by the model
    assert shown.shape == (2, 100)
    assert "padded" not in axis.get_title("left")


def test_rows_of_a_matrix_have_their_share_of_all_beside_them():
    drawn = grounding_figure.figure(grounded(torch.tensor([[[1.0, 0, 2], [0, 0, 1]]])))
    axis, _ = matrix_of(drawn)
    shares = next(child for child in axis.child_axes)
    assert [text.get_text() for text in shares.get_yticklabels()] == ["75%", "25%"]
    of_targets = grounding_figure.figure(grounded(torch.tensor([[[1.0, 0, 2], [0, 0, 1]]]), stream="", target=("a", "b")))
    assert not matrix_of(of_targets)[0].child_axes


def test_more_columns_than_have_room_are_not_named():
    axis, _ = matrix_of(grounding_figure.figure(grounded(torch.ones(1, 2, 49))))
    assert axis.get_xlabel() == "tokens of image"
    axis, _ = matrix_of(grounding_figure.figure(grounded(torch.ones(1, 2, 48))))
    assert len(axis.get_xticklabels()) == 48
    assert axis.get_xticklabels()[3].get_text() == "token 3"


@pytest.mark.parametrize("grid", [(2, 2), None])
def test_the_only_row_has_all(grid):
    drawn = grounding_figure.figure(grounded(torch.ones(1, 1, 4), grid=grid))
    said = [axis.get_xlabel() for axis in drawn.axes] if grid else [text.get_text() for text in matrix_of(drawn)[0].child_axes[0].get_yticklabels()]
    assert any(text.startswith("100%") for text in said)


@pytest.mark.parametrize("grid", [(2, 2), None])
def test_odd_grounding_is_drawn(tmp_path, grid):
    """Nothing relevant at all, words with dollars, one row."""
    nothing = grounded(torch.zeros(1, 2, 4), grid=grid)
    drawn = grounding_figure.figure(nothing)
    assert "1 rows with less or nothing" in flat(drawn.get_supxlabel())
    assert "nan" not in flat(" ".join(axis.get_xlabel() for axis in drawn.axes))
    saved(drawn, tmp_path)
    (tmp_path / "figure.png").unlink()
    (tmp_path / "figure.svg").unlink()
    one = grounded(torch.ones(1, 1, 4), grid=grid, rows=(ODD,), columns=() if grid else (ODD, "$", "a$b$", "_"), target=(ODD,))
    saved(grounding_figure.figure(one), tmp_path)


# --- mechanism -------------------------------------------------------------------------------------------------------------------------


def edges(kinds, heads=2):
    """An edge per (queries, keys)."""
    return tuple(
        Edge(n, f"model.layers.{n}.attention", "homogenous" if q == k else "heterogenous", q, k, heads, (), (k,)) for n, (q, k) in enumerate(kinds)
    )


def circuit(kinds, batch=1, heads=2, seed=0, **more):
    draw = torch.Generator().manual_seed(seed)
    count = len(kinds)
    known = {
        "edges": edges(kinds, heads), "streams": (("words", 5), ("image", 17)), "relevance": torch.rand(batch, count, generator=draw).double(),
        "effect": torch.randn(batch, count, generator=draw).double(), "head_effect": torch.randn(batch, count, heads, generator=draw).double(),
        "target": tuple(f"logit of {n}" for n in range(batch)), "output": torch.full((batch,), 3.0).double(),
        "joint": torch.full((batch,), 0.5).double(), "baselines": {"words": "[MASK]", "image": "zeros"}, "readout": ("token 0",) * batch,
        "evaluations": count, "forward_passes": count,
    }  # fmt: skip
    return Mechanism(**{**known, **more})


CROSSED = [("words", "words"), ("image", "image"), ("words", "image"), ("image", "words"), ("words", "words")]


def test_every_attention_stands_in_the_lane_of_its_queries_with_its_size_and_mark():
    record = circuit(CROSSED)
    drawn = mechanism_figure.figure(record)
    axis = labelled(drawn, "circles: homogenous, diamonds and arrows: heterogenous")
    assert [text.get_text() for text in axis.get_yticklabels()] == ["words\n(5 tokens)", "image\n(17 tokens)"]
    assert axis.get_ylim() == (1.5, -0.5)
    marks = axis.collections
    assert [mark.get_offsets()[0].tolist() for mark in marks] == [[0, 0], [1, 1], [2, 0], [3, 1], [4, 0]]
    corners = [len(mark.get_paths()[0].vertices) for mark in marks]
    assert [count < 10 for count in corners] == [False, False, True, True, False]  # diamonds
    sizes = np.array([float(mark.get_sizes()[0]) for mark in marks])
    effects = record.effect[0].abs().numpy()
    assert sizes == pytest.approx(20 + 260 * effects / effects.max())
    reds = [mark.get_facecolor()[0][1] for mark in marks]  # the more relevance the less green
    assert np.argsort(reds).tolist() == np.argsort(-record.relevance[0].numpy()).tolist()


def arrows(axis):
    return [(text.xyann, text.xy, text.arrow_patch.get_linewidth()) for text in axis.texts if text.arrow_patch is not None]


def test_heterogenous_attentions_have_an_arrow_from_the_lane_that_they_read():
    record = circuit(CROSSED)
    axis = mechanism_figure.figure(record).axes[0]
    found = arrows(axis)
    assert [(start, end) for start, end, _ in found] == [((2, 1), (2, 0)), ((3, 0), (3, 1))]
    size = record.effect[0].abs()
    assert [width for _, _, width in found] == pytest.approx([0.8 + 4 * float(size[n] / size.max()) for n in (2, 3)])


def test_joined_sources_are_a_lane_of_their_own_below_the_known_ones():
    joined = "words + image"
    record = circuit([(joined, joined), ("image", "image"), ("query", "image"), ("words", "words")])
    axis = mechanism_figure.figure(record).axes[0]
    labels = [text.get_text() for text in axis.get_yticklabels()]
    assert labels == ["words\n(5 tokens)", "image\n(17 tokens)", "words +\nimage", "query"]
    assert [(start, end) for start, end, _ in arrows(axis)] == [((2, 1), (2, 3))]


@pytest.mark.parametrize("sample", [0, 1])
def test_bars_are_relevance_and_effect_and_every_head_is_a_cell(sample):
    record = circuit(CROSSED, batch=2, heads=3)
    drawn = mechanism_figure.figure(record, sample=sample)
    flow, effect = labelled(drawn, "relevance"), labelled(drawn, "effect of cutting")
    flow = next(axis for axis in drawn.axes if axis.get_ylabel() == "relevance")
    assert [bar.get_height() for bar in flow.patches] == pytest.approx(record.relevance[sample].tolist())
    assert [bar.get_height() for bar in effect.patches] == pytest.approx(record.effect[sample].tolist())
    assert [to_hex(bar.get_facecolor()) for bar in effect.patches] == [RED if v >= 0 else BLUE for v in record.effect[sample]]
    heads = next(axis for axis in drawn.axes if axis.get_ylabel() == "head")
    assert np.allclose(np.asarray(heads.images[0].get_array()), record.head_effect[sample].T.numpy())
    low, high = heads.images[0].get_clim()
    assert (low, high) == pytest.approx((-float(record.head_effect[sample].abs().max()), float(record.head_effect[sample].abs().max())))
    assert heads.images[0].get_cmap().name == "RdBu_r"
    assert [text.get_text() for text in heads.get_xticklabels()] == [f"layers.{n}.attention" for n in range(5)]
    assert f"logit of {sample}" in flat(drawn.get_suptitle())
    assert flat(drawn.get_supxlabel()).startswith(flat(record.reading(sample)))


def test_the_caption_states_baselines_sum_difference_and_rank_correlation():
    record = circuit(CROSSED, effect=torch.tensor([[0.5, 1.0, 1.5, 2.0, -4.0]]).double(), relevance=torch.tensor([[1.0, 2, 3, 4, 5]]).double())
    words = mechanism_figure.caption(record)
    assert "(words absent: [MASK]; image absent: zeros), in units of the target" in words
    assert "effects add up to 1, f(x) - f(baselines) is 2.5: cuts overlap; Spearman's rho of relevance and size of effect +1.00" in words
    assert flat(mechanism_figure.figure(record).get_supxlabel()) == f"{record.reading()}. {words}"
    few = circuit(CROSSED[:3])
    assert "rho" not in mechanism_figure.caption(few)


def test_what_was_not_cut_has_no_effect_and_no_head(tmp_path):
    nan = math.nan
    record = circuit(
        CROSSED, effect=torch.tensor([[nan, nan, 2.0, nan, -1.0]]).double(),
        head_effect=torch.tensor([[[nan, nan], [nan, nan], [1.0, nan], [nan, nan], [-3.0, 0.5]]]).double(),
    )  # fmt: skip
    drawn = mechanism_figure.figure(record)
    effect = labelled(drawn, "effect of cutting")
    assert [bar.get_height() for bar in effect.patches] == [0, 0, 2, 0, -1]
    heads = next(axis for axis in drawn.axes if axis.get_ylabel() == "head")
    assert heads.images[0].get_clim() == (-3, 3)
    assert "effects add up to 1, f(x) - f(baselines) is 2.5" in flat(drawn.get_supxlabel())
    assert "nan" not in flat(drawn.get_supxlabel())
    assert [width for _, _, width in arrows(drawn.axes[0])] == pytest.approx([4.8, 0.8])
    saved(drawn, tmp_path)


def test_without_effects_of_heads_there_is_no_panel_for_them():
    record = circuit(CROSSED)
    drawn = mechanism_figure.figure(replace(record, head_effect=torch.full_like(record.head_effect, math.nan)))
    assert [axis.get_ylabel() for axis in drawn.axes[1:]] == ["relevance", "effect of cutting"]
    assert len(drawn.axes) == 3
    assert drawn.axes[-1].get_xticklabels()[0].get_text() == "layers.0.attention"


@pytest.mark.parametrize("how", ["one edge", "nothing", "odd names"])
def test_odd_mechanisms_are_drawn(tmp_path, how):
    record = circuit([("words", "image")] if how == "one edge" else CROSSED)
    if how == "nothing":
        record = replace(record, **{name: torch.zeros_like(getattr(record, name)) for name in ("relevance", "effect", "head_effect")})
    if how == "odd names":
        named = tuple(replace(edge, name=ODD, queries=ODD, keys="$k$ + $q") for edge in record.edges)
        record = replace(record, edges=named, streams=((ODD, 3),), target=(ODD,), baselines={ODD: "$"})
    drawn = mechanism_figure.figure(record)
    assert len(drawn.axes[0].collections) == len(record.edges)
    saved(drawn, tmp_path)


def test_many_attentions_are_numbered_and_few_are_named():
    drawn = mechanism_figure.figure(circuit([("words", "image")] * 41))
    assert [text.get_text() for text in drawn.axes[3].get_xticklabels()] == [str(n) for n in range(41)]
    drawn = mechanism_figure.figure(circuit([("words", "image")] * 40))
    assert drawn.axes[3].get_xticklabels()[39].get_text() == "layers.39.attention"


def test_a_map_per_attention_shows_what_passed_there_in_both_directions():
    record = grounded(torch.rand(1, 3, 4), grid=(2, 2))
    generator = torch.Generator().manual_seed(0)
    calls = {"per_call": torch.rand(3, 1, 3, 4, generator=generator), "back_per_call": torch.rand(3, 1, 3, 4, generator=generator)}
    calls["per_call"][1], calls["back_per_call"][1] = 0, 0  # nothing passed at the second
    record = replace(record, **calls, calls=("block.0.att", "block.1.att", "block.2.att"))
    drawn = grounding_figure.figure(record)
    strips = [axis for axis in drawn.axes if axis.images and axis.get_title().startswith("block.")]
    assert [axis.get_title().partition("\n")[0] for axis in strips] == ["block.0.att", "block.2.att"]
    both = (calls["per_call"] + calls["back_per_call"])[:, 0].sum(1).view(3, 2, 2)
    for axis, call in zip(strips, (0, 2)):
        assert np.allclose(axis.images[0].get_array(), both[call].numpy())
        assert float(axis.get_title().partition("\n")[2].rstrip("%")) == pytest.approx(100 * float(both[call].sum() / both.sum()), abs=1)
