"""Chapters and their HTML: sentences, bars, packed values and notes, each worked out again by hand; texts are shown, never run."""

import base64
import hashlib
import io
import json
import math
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from report.page_records import (
    attribution,
    audit,
    chapters,
    comparison,
    corrections,
    draw,
    every,
    grounding,
    guidance,
    logic,
    mechanism,
    photo,
    relevance,
    rewriting,
    robustness,
    seen,
    summary,
)
from zeroline.audit import Audited
from zeroline.errors import UsageError, ZerolineError
from zeroline.relevance import Tokens
from zeroline.report import page
from zeroline.report.page.fit import fitted, limits
from zeroline.report.page.parts import Budget, Chapter, Panel, Viewer
from zeroline.report.page.render import bars
from zeroline.seen import IMAGE, Seen

VOID = {"meta", "link", "img", "input", "br"}
MEGABYTE = 1_000_000


class Read(HTMLParser):
    """Elements in order as (tag, attributes), the open ones above each, and the text of each element."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.above, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.above.append([self.elements[i][0] for i in self._open])
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.above.append([self.elements[i][0] for i in self._open])
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_endtag(self, tag):
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data):
        for i in self._open:
            self.texts[i] += data

    def all(self, tag, **asked):
        """Attributes and text of every element of a tag with these attributes."""
        found = zip(self.elements, self.texts)
        return [(attrs, " ".join(text.split())) for (t, attrs), text in found if t == tag and all(attrs.get(k) == v for k, v in asked.items())]

    def data(self):
        """What the script reads."""
        ((_, text),) = self.all("script", id="data")
        return json.loads(text)

    def maps(self):
        """The values of every panel of every viewer: [viewers][panels] arrays [choices, rows, columns]."""
        return [
            [np.frombuffer(base64.b64decode(p["values"]), "<f4").reshape(-1, *p["shape"]) for p in viewer["panels"]]
            for viewer in self.data()["viewers"]
        ]


@pytest.fixture
def quick(monkeypatch):
    """Figures, which take most of the time, are small and empty."""
    monkeypatch.setattr("zeroline.report.drawing.draw", lambda record, seen: Figure(figsize=(1, 1), dpi=10))


@pytest.fixture(scope="session")
def drawn():
    """A page with a chapter of every kind, figures and all, read."""
    made = list(chapters().values())
    return Read(page.html(made)), made


def read(record, around=None):
    """The page of one record, read, and its chapter."""
    made = page.chapter(record, Seen() if around is None else around)
    return Read(page.html([made])), made


def exactly(found, truth):
    """Bit for bit the float32 of the truth."""
    wanted = np.asarray(truth, dtype=np.float64).astype(np.float32)
    assert found.shape == wanted.shape
    assert found.tobytes() == wanted.tobytes()


# --- sentences -------------------------------------------------------------------------------------------------------------------


def test_the_sentence_of_an_attribution_holds_its_numbers(quick):
    values = draw(1, 3, 4, 6)
    record = attribution(values, output=3.5, there=-1.25, budget={"truncation": 0.5})
    total = math.fsum(values.flatten().tolist())
    error = total - 4.75
    found, made = read(record, seen())
    assert made.question == "What is the logit of newt 0 based on, measured from the black baseline?"
    assert found.all("h1") == [({}, made.question)]
    (lead,) = [text for _, text in found.all("p", **{"class": "lead"})]
    assert lead == (
        f"The model's answer f(x) = 3.5; at the baseline it is -1.25. What is explained is the difference, 4.75. The 72 values at layer add up to"
        f" {total:.4g}: an attribution error of {error:+.2g}, {abs(error) / 4.75:.2%} of the difference."
    )


def test_where_the_difference_is_rounding_the_sentence_says_why_there_is_no_share(quick):
    found, _ = read(attribution(draw(1, 4, 2), output=1.0, there=1.0))
    (lead,) = [text for _, text in found.all("p", **{"class": "lead"})]
    assert "the difference, 0." in lead
    assert "of the difference." not in lead
    assert lead.endswith("(the difference is within the rounding of the two outputs: the target does not tell x from this baseline).")
    assert "nan" not in lead
    assert "(undefined)" in found.all("p")[-1][1] or any("(undefined)" in text for _, text in found.all("p"))


def test_relevance_says_that_it_has_no_error_and_shows_no_budget(quick):
    for record in (relevance(), grounding(), corrections(), guidance()):
        found, made = read(record, seen())
        assert "there is no attribution error" in " ".join(text for _, text in found.all("p", **{"class": "lead"}))
        assert not made.budgets
        assert "How exact" not in [text for _, text in found.all("h2")]


def test_the_sentence_of_a_logic_holds_difference_sum_and_error(quick):
    values = [1.0, 2.5, -3.25, 7.0, 0.5, 1.5, 2.0, 9.25]
    _, made = read(logic(values=[values]))
    assert made.lead[1] == ("f(all) - f(none) = 8.25; the dividends add up to 8.25: an attribution error of +0. Absent players are mask, zeros.")
    dividends = {}
    for s in range(1, 8):
        dividends[s] = sum((-1) ** (s.bit_count() - t.bit_count()) * values[t] for t in range(8) if t & s == t)
    names = ("left", "right", "nine")
    wanted = sorted(dividends.items(), key=lambda pair: -abs(pair[1]))
    rows = [(" + ".join(names[i] for i in range(3) if s >> i & 1), f"{d:+.4g}") for s, d in wanted]
    assert sorted(made.tables[0].rows) == sorted(rows)
    assert [abs(float(value)) for _, value in made.tables[0].rows] == sorted((abs(d) for d in dividends.values()), reverse=True)
    assert "need" in made.lead[0]


def test_other_chapters_say_what_their_records_say(quick):
    asked = {
        "audit": "Which baseline for the logit of newt?",
        "comparison": "What is the logit of newt 0 based on, by 2 methods, each from its own baseline?",
        "comparison of layers": "What is the logit of newt 0 based on, at 2 sites from the black baseline?",
        "corrections": "Where does attention find the logit of newt 0, by each correction?",
        "grounding": "Which words go with which part of pixels?",
        "guidance": "What does attention show once a guest of seven lies on the picture?",
        "logic": "What does the logit of newt 0 need?",
        "mechanism": "Through which attentions does the logit of newt 0 come?",
        "principles": "Does grad_eclip explain the original model, and follow its performance?",
        "relevance": "Where does attention find the logit of newt 0?",
        "rewriting": "How little makes nine into seven?",
        "robustness": "How little changes the answers of digits-vit?",
        "summary": "How exact is the run out/run?",
    }
    leads = {
        "audit": "Advice: zeros: ",
        "grounding": "For the logit of newt 0.",
        "relevance": "By attention_relevance: f(x) = 0.5, read at token 0.",
        "rewriting": "The saved picture is seven to the model: success.",
        "summary": "1,200 examples, 2 failed.",
        "principles": "Principle 1 does not hold: ",
    }
    told = every()
    for name, question in asked.items():
        made = page.chapter(*told[name])
        assert made.question == question
        assert made.lead[0].startswith(leads[name]) if name in leads else True
        assert made.kind == name.partition(" of")[0]


def test_the_record_is_shown_as_a_table_and_as_json(drawn):
    found, made_of = drawn
    shown = [text for (tag, _), text in zip(found.elements, found.texts) if tag == "code"]
    for (name, (record, _)), made in zip(every().items(), made_of):
        said = json.loads(made.record)
        truth = json.loads(json.dumps(record.to_dict()))
        if name != "summary":  # one number of it is none
            assert said == truth
        assert made.record in shown
        assert any(table.rows for table in made.tables), name
    cells = [text for _, text in found.all("th", scope="row")]
    for label in ("target", "site", "attribution error", "f(x)", "difference"):
        assert label in cells
    assert "f(left)" not in cells


def test_the_command_reads_back_as_the_words_that_were_typed(quick):
    words = ("explain", "a b.png", "--target", "it's $5 - `nine`", "--baseline", "blur(8)")
    found, made = read(attribution(draw(1, 4, 2)), Seen(command=words))
    assert shlex.split(made.command) == ["zeroline", *words]
    (code,) = [text for _, text in found.all("code") if text.startswith("zeroline")]
    assert shlex.split(code) == ["zeroline", *words]
    found, made = read(attribution(draw(1, 4, 2)))
    assert made.command == ""
    assert "The record was made in Python, with what stands below." in [text for _, text in found.all("p")]


def test_what_makes_it_repeatable_is_listed(quick):
    found, _ = read(attribution(draw(1, 4, 2)))
    names, values = ([text for _, text in found.all(tag)] for tag in ("dt", "dd"))
    assert dict(zip(names, values)) == {
        "model": "toys.Model@abc", "seed": "11", "setting path": "adaptive", "setting steps": "3", "versions": "torch 2.0",
    }  # fmt: skip


# --- the budget ------------------------------------------------------------------------------------------------------------------


def places(found):
    return {bar["name"]: (float(bar["x"]), float(bar["width"])) for bar in [*found["whole"], *found["parts"]]}


def test_bars_by_hand_a_sum_beyond_the_difference():
    """600 units are 5: the difference is 4 of them. 600 units are 2 of the error: from -0.5 to 1.5."""
    found = bars(Budget("", 5.0, 4.0, (("truncation", 1.25), ("pooling", -0.5), ("quadrature", 0.25)), ""))
    assert places(found) == {
        "f(x) - f(baseline)": (0, 480), "sum of the values": (0, 600), "truncation": (150, 375), "pooling": (0, 150), "quadrature": (525, 75),
    }  # fmt: skip
    assert (found["zero"], found["parts_zero"]) == (0, 150)
    assert [part["share"] for part in found["parts"]] == ["+31.25%", "-12.50%", "+6.25%"]
    assert [part["value"] for part in found["parts"]] == ["+1.25", "-0.5", "+0.25"]
    assert [part["colour"].lower() for part in found["parts"]] == ["#0072b2", "#e69f00", "#009e73"]
    assert [bar["value"] for bar in found["whole"]] == ["+4", "+5"]
    assert found["times"] == ", magnified 2 times"  # 5 / 2


def test_bars_by_hand_a_sum_on_the_other_side_of_zero():
    found = bars(Budget("", -3.0, 1.0, (("unaccounted", -4.0),), ""))
    assert places(found) == {"f(x) - f(baseline)": (450, 150), "sum of the values": (0, 450), "unaccounted": (0, 600)}
    assert (found["zero"], found["parts_zero"], found["times"]) == (450, 600, "")
    assert found["parts"][0]["share"] == "-400.00%"


def test_bars_by_hand_a_negative_difference():
    found = bars(Budget("", -2.0, -4.0, (("unaccounted", 2.0),), ""))
    assert places(found) == {"f(x) - f(baseline)": (0, 600), "sum of the values": (300, 300), "unaccounted": (0, 600)}
    assert (found["zero"], found["parts_zero"], found["times"]) == (600, 0, ", magnified 2 times")
    assert found["parts"][0]["share"] == "+50.00%"  # of the size of the difference


def test_bars_of_nothing_are_thin_lines_at_zero():
    found = bars(Budget("", 0.0, 0.0, (), ""))
    assert places(found) == {"f(x) - f(baseline)": (0, 0.5), "sum of the values": (0, 0.5)}
    assert (found["parts"], found["times"]) == ([], "")


SIZES = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda size: size == 0 or abs(size) > 1e-3)


@settings(max_examples=150, deadline=None)
@given(SIZES, SIZES, st.lists(SIZES.filter(bool), max_size=6))
def test_bars_tile_from_zero_without_gaps_and_as_wide_as_they_are_large(difference, total, parts):
    found = bars(Budget("", total, difference, tuple((str(i), size) for i, size in enumerate(parts)), ""))
    low, high = min(0, difference, total), max(0, difference, total)
    for bar, value in zip(found["whole"], (difference, total)):
        if high > low:
            assert float(bar["x"]) == pytest.approx(600 * (min(0, value) - low) / (high - low), abs=0.01)
            assert float(bar["width"]) == pytest.approx(max(0.5, 600 * abs(value) / (high - low)), abs=0.01)
    minus, plus = -sum(p for p in parts if p < 0), sum(p for p in parts if p > 0)
    ends = {1: minus, -1: minus}
    for bar, size in zip(found["parts"], parts):
        side = 1 if size > 0 else -1
        start, ends[side] = ends[side], ends[side] + size
        assert float(bar["x"]) == pytest.approx(600 * min(start, ends[side]) / (minus + plus), abs=0.02)
        assert float(bar["width"]) == pytest.approx(max(0.5, 600 * abs(size) / (minus + plus)), abs=0.02)
        assert float(bar["share"].rstrip("%")) == pytest.approx(100 * size / (abs(difference) or 1), rel=1e-9, abs=0.006)
    if parts:
        assert found["parts_zero"] == pytest.approx(600 * minus / (minus + plus))


def test_the_bars_of_a_page_are_those_of_its_records_budget(quick):
    values = torch.zeros(1, 3, 4, 6)
    values[0, 0, 0, 0] = 5
    found, made = read(attribution(values, output=4.0, there=0.0, budget={"truncation": 1.25, "pooling": -0.5, "rounding": 0.0, "odd": 0.25}))
    assert [budget.said for budget in made.budgets] == ["sum 5, difference 4, error +1 (25.00%)"]
    assert [name for name, _ in made.budgets[0].parts] == ["truncation", "pooling", "odd"]  # zero brought nothing
    drawn = [(float(a["x"]), float(a["width"]), a.get("class"), a.get("fill")) for a, _ in found.all("rect") if "x" in a]
    assert drawn == [
        (0, 480, "difference", None), (0, 600, "total", None), (150, 375, "part", "#0072B2"), (0, 150, "part", "#E69F00"),
        (525, 75, "part", "#999999"),
    ]  # fmt: skip
    assert [float(a["x1"]) for a, _ in found.all("line")] == [0, 150]
    labels = [a["aria-label"] for a, _ in found.all("svg", role="img")]
    assert labels == [
        "by_hand at layer: difference +4, sum of the values +5",
        "the error by what brought it: truncation +1.25 (+31.25%), pooling -0.5 (-12.50%), odd +0.25 (+6.25%)",
    ]
    legend = [text for _, text in found.all("li")]
    assert legend == ["truncation +1.25 (+31.25%)", "pooling -0.5 (-12.50%)", "odd +0.25 (+6.25%)"]


def test_an_error_that_no_budget_splits_is_unaccounted(quick):
    values = torch.zeros(1, 1, 2, 2)
    values[0, 0, 0, 0] = 3.0
    _, made = read(attribution(values, output=2.0, there=0.0))
    assert made.budgets[0].parts == (("unaccounted", 1.0),)


def test_a_comparison_has_a_budget_per_member(quick):
    record = comparison()
    _, made = read(record, seen())
    assert [budget.title for budget in made.budgets] == ["taylor", "layer_cam"]
    for budget, one in zip(made.budgets, record.members.values()):
        total = math.fsum(next(iter(one.parts.values())).flatten().tolist())
        assert budget.total == pytest.approx(total, rel=1e-9)
        assert budget.difference == float(one.output[0]) - float(one.baseline_output[0])
    assert made.tables[1].caption == "What failed"
    assert made.tables[1].rows == (("odam", "it has no gradient"),)


# --- packed values ---------------------------------------------------------------------------------------------------------------


def test_values_at_pixels_are_their_sums_over_channels(quick):
    values = draw(1, 3, 4, 6)
    found, made = read(attribution(values), seen())
    ((maps,),) = found.maps()
    exactly(maps, [[[sum(float(values[0, c, y, x]) for c in range(3)) for x in range(6)] for y in range(4)]])
    (told,) = found.data()["viewers"]
    assert (told["cell"], told["total"], told["words"], told["choices"]) == ("pixel", 2.0, [], [])
    assert (made.viewers[0].title, made.viewers[0].panels[0].label) == ("Where the values lie", "layer")


def test_values_at_patches_leave_the_tokens_before_them_out(quick):
    values = draw(1, 8, 5)
    values[0, :2] = 1000
    found, _ = read(attribution(values), seen(grid=(2, 3), prefix=2))
    ((maps,),) = found.maps()
    exactly(maps, [[[sum(float(v) for v in values[0, 2 + 3 * y + x].double()) for x in range(3)] for y in range(2)]])
    assert found.data()["viewers"][0]["cell"] == "patch"


def test_values_at_words_are_a_line_with_its_words(quick):
    values = draw(1, 4, 3)
    found, _ = read(attribution(values), seen(pictures={}))
    ((maps,),) = found.maps()
    exactly(maps, [[[sum(float(v) for v in values[0, t].double()) for t in range(4)]]])
    assert found.data()["viewers"][0]["words"] == ["w0", "w1", "w2", "w3"]
    assert [a["class"] for a, _ in found.all("div", role="listbox")] == ["words"]
    found, _ = read(attribution(draw(1, 5, 3)), seen(pictures={}))
    assert found.data()["viewers"][0]["words"] == ["0", "1", "2", "3", "4"]  # no stream has five words


def test_values_that_lie_nowhere_have_no_viewer(quick):
    found, made = read(attribution(draw(1, 9)), Seen())
    assert (found.maps(), made.viewers) == ([], ())


def test_relevance_has_a_panel_for_all_attentions_and_one_for_each_that_moved_something(quick):
    record = relevance()
    found, _ = read(record, seen())
    (pixels, words), told = found.maps(), found.data()["viewers"]
    assert [panel["label"] for panel in told[0]["panels"]] == ["all attentions together", "0: layer.0.att", "1: layer.1.att"]
    assert [panel["caption"] for panel in told[1]["panels"]] == ["", "homogenous", "heterogenous"]
    for maps, r, calls in (
        (pixels, record.by_source["pixels"][0, 1:], record.per_call["pixels"][:, 0, 1:]),
        (words, record.by_source["words"][0], record.per_call["words"][:, 0]),
    ):
        shape = (1, 2, 3) if len(r) == 6 else (1, 1, 4)
        exactly(maps[0], r.reshape(shape))
        exactly(maps[1], calls[0].reshape(shape))
        exactly(maps[2], calls[1].reshape(shape))
    assert told[1]["words"] == ["w0", "w1", "w2", "w3"]
    total, left = float(record.by_source["pixels"].double().sum()), float(record.by_source["pixels"][0, 0])
    assert told[0]["panels"][0]["caption"] == f"{left:.3g} of {total:.3g} lies on class and register tokens"
    sizes = [sum(abs(float(v)) for v in r[0]) for r in record.by_source.values()]
    assert [text for _, text in found.all("h2")][:2] == [f"{n}: {s / sum(sizes):.1%} of the relevance" for n, s in zip(("pixels", "words"), sizes)]


def test_grounding_has_a_map_per_word_and_their_sum_first(quick):
    record = grounding(row_words=("what", "seven", "what"))
    found, _ = read(record, seen())
    ((both, *calls),) = found.maps()
    (told,) = found.data()["viewers"]
    assert told["choices"] == ["all of them", "1 what", "seven", "3 what"]
    matrix = [[float(record.matrix[0, r, c]) + float(record.back[0, r, c]) for c in range(1, 7)] for r in range(3)]
    for row in range(3):
        exactly(both[1 + row], np.reshape(matrix[row], (2, 3)))
    exactly(both[0], np.reshape([matrix[0][c] + matrix[1][c] + matrix[2][c] for c in range(6)], (2, 3)))
    assert len(calls) == 2
    for call, maps in enumerate(calls):
        part = (record.per_call[call, 0] + record.back_per_call[call, 0])[:, 1:]
        exactly(maps[1:], part.reshape(3, 2, 3))
        exactly(maps[0], (part[0] + part[1] + part[2]).reshape(2, 3))
    assert [panel["label"] for panel in told["panels"]] == ["all attentions together", "layer.0.cross", "layer.1.cross"]
    assert [a["aria-label"].partition(":")[0] for a, _ in found.all("div", **{"class": "choices"})] == ["rows"]


def test_grounding_on_no_grid_is_a_line_of_words(quick):
    record = grounding(columns=5, lie=Tokens(), column_words=tuple("abcde"))
    found, _ = read(record, seen())
    (told,) = found.data()["viewers"]
    assert (told["words"], told["panels"][0]["shape"]) == (list("abcde"), [1, 5])
    exactly(found.maps()[0][0][2], (record.matrix + record.back)[0, 1][None])


def test_comparisons_corrections_and_guidance_have_a_panel_per_member(quick):
    record = comparison()
    found, _ = read(record, seen())
    ((pixels, patches),) = found.maps()
    one, two = (next(iter(member.parts.values())) for member in record.members.values())
    exactly(pixels, one.double().sum(1))
    exactly(patches, two.double().sum(-1)[:, 1:].reshape(1, 2, 3))
    record = corrections()
    (maps,) = read(record, seen())[0].maps()
    for panel, member in zip(maps, record.members.values()):
        exactly(panel, member.by_source["pixels"][:, 1:].reshape(1, 2, 3))
    record = guidance()
    viewers = read(record)[0].maps()
    assert len(viewers) == 2
    for when, maps in zip(("before", "after"), viewers):
        for panel, member in zip(maps, record.members.values()):
            exactly(panel, member[when].by_source["pixels"][:, 1:].reshape(1, 2, 3))


def test_what_the_model_saw_is_on_the_page_pixel_by_pixel(quick):
    found, made = read(attribution(draw(1, 3, 4, 6)), seen())
    sources = [a["src"] for a, _ in found.all("img") if a.get("class") != "ground" and a.get("alt") != made.figure.alt]
    for source, truth in zip(sources, (photo(), photo(seed=1)), strict=True):
        kind, _, content = source.partition(";base64,")
        assert kind == "data:image/png"
        with Image.open(io.BytesIO(base64.b64decode(content))) as opened:
            assert np.array_equal(np.asarray(opened), truth.numpy())
    assert [text for _, text in found.all("figcaption")] == ["x, as the model sees it: f = 3", "the baseline black: f = 1"]
    (ground,) = [a["src"] for a, _ in found.all("img") if a.get("class") == "ground"]
    assert ground == sources[0]


def test_both_pictures_of_a_rewriting_and_the_baselines_of_an_audit_are_shown(quick):
    record = rewriting()
    _, made = read(record)
    for shown, levels in zip(made.pictures, (record.original, record.rewritten), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(shown.source.partition(",")[2]))) as opened:
            assert np.array_equal(np.asarray(opened), levels.permute(1, 2, 0).numpy())
    assert [shown.caption for shown in made.pictures] == ["before: nine", "after: seven"]
    _, made = read(audit(), seen())
    assert [shown.caption.partition(";")[0] for shown in made.pictures] == ["blur(8): f = 1.25", "zeros: f = -0.75"]


def test_a_large_picture_is_brought_down_and_says_so(quick):
    large = torch.zeros(1500, 2048, 3, dtype=torch.uint8)
    _, made = read(attribution(draw(1, 3, 4, 6)), Seen({IMAGE: large}))
    assert (made.pictures[0].width, made.pictures[0].height) == (1024, 750)
    assert made.pictures[0].caption.endswith("(brought down to 1024 x 750)")


@pytest.mark.parametrize("count", [1, 2, 7, 200, 1001])
def test_colours_end_at_the_99_5th_percentile_of_the_sizes(count):
    values = draw(2, count).numpy()
    wanted = []
    for row in values:
        sizes = sorted(abs(float(v)) for v in row)
        place = 0.995 * (count - 1)
        low = int(place)
        high = min(low + 1, count - 1)
        wanted.append(sizes[low] + (sizes[high] - sizes[low]) * (place - low))
    assert limits(values) == pytest.approx(wanted, rel=1e-5)


def test_colours_of_an_almost_empty_map_end_at_its_largest_and_of_an_empty_one_at_1():
    values = np.zeros((3, 1000), dtype=np.float32)
    values[0, 5] = -4
    assert limits(values) == (4.0, 1.0, 1.0)
    assert limits(np.zeros((2, 0), dtype=np.float32)) == (1.0, 1.0)


# --- what does not fit -----------------------------------------------------------------------------------------------------------


def viewer(*shapes, choices=(), words=(), seed=0, slider="layer"):
    made = []
    for i, (rows, columns) in enumerate(shapes):
        values = draw(max(len(choices), 1), rows * columns, seed=seed + i).numpy()
        made.append(Panel(f"panel {i}", "", (rows, columns), values, limits(values)))
    return Viewer("title", tuple(made), "patch", "the relevance", choices=choices, words=words, slider=slider)


def test_what_fits_is_left_as_it_is():
    asked = viewer((256, 200), (3, 4))
    found = fitted(asked)
    assert found.notes == ()
    assert all(a is b for a, b in zip(found.panels, asked.panels))


@pytest.mark.parametrize(("rows", "columns", "step"), [(257, 1, 2), (300, 500, 2), (513, 7, 3), (1024, 1024, 4), (5, 600, 3)])
def test_large_maps_are_sums_over_square_cells_that_still_add_up(rows, columns, step):
    asked = viewer((rows, columns), choices=("all", "a", "b"))
    found = fitted(asked, most=10**9)
    (panel,) = found.panels
    height, width = -(-rows // step), -(-columns // step)
    assert panel.shape == (height, width)
    assert max(panel.shape) <= 256
    for row in range(3):
        before = asked.panels[0].values[row].astype(np.float64).reshape(rows, columns)
        after = panel.values[row].reshape(height, width)
        assert after.sum(dtype=np.float64) == pytest.approx(before.sum(), abs=1e-3)
        for y, x in ((0, 0), (height - 1, width - 1), (height // 2, width // 2)):
            cell = sum(float(v) for v in before[step * y : step * (y + 1), step * x : step * (x + 1)].flatten())
            assert after[y, x] == pytest.approx(cell, rel=1e-5, abs=1e-6)
        assert panel.limits[row] == pytest.approx(float(np.quantile(np.abs(after), 0.995)), rel=1e-5)
    assert found.notes == ("maps of more than 256 positions along a side are shown as sums over square cells",)


def test_words_are_never_summed_over():
    asked = viewer((1, 5000), words=tuple(map(str, range(5000))))
    assert fitted(asked).panels[0] is asked.panels[0]


def test_of_many_rows_the_strongest_stay_in_their_order_and_all_together_stays_first():
    choices = ("all of them", *(f"word {i}" for i in range(20)))
    asked = viewer((2, 5), (2, 5), choices=choices)
    found = fitted(asked, most=2 * 10 * 6)
    size = {i: sum(abs(float(v)) for v in asked.panels[0].values[i]) for i in range(1, 21)}
    strongest = sorted(sorted(size, key=lambda i: -size[i])[:5])
    assert found.choices == ("all of them", *(f"word {i - 1}" for i in strongest))
    for before, after in zip(asked.panels, found.panels):
        assert np.array_equal(after.values, before.values[[0, *strongest]])
        assert after.limits == tuple(before.limits[i] for i in (0, *strongest))
    assert found.notes == ("5 of 20 rows are here, those with the most",)


def test_of_many_panels_the_first_and_the_strongest_stay_in_their_order():
    asked = viewer(*[(1, 10)] * 12, words=tuple("abcdefghij"), slider="attention")
    found = fitted(asked, most=45)
    size = {i: sum(abs(float(v)) for v in panel.values.flatten()) for i, panel in enumerate(asked.panels)}
    strongest = sorted(sorted(range(1, 12), key=lambda i: -size[i])[:3])
    assert [panel.label for panel in found.panels] == [f"panel {i}" for i in (0, *strongest)]
    assert found.notes == ("4 of 12 attentions are here, the first and the strongest",)


def test_one_map_that_is_still_too_large_is_summed_further_and_says_so():
    asked = viewer((200, 200))
    found = fitted(asked, most=1000)
    assert max(found.panels[0].shape) <= 31
    assert float(found.panels[0].values.sum(dtype=np.float64)) == pytest.approx(float(asked.panels[0].values.sum(dtype=np.float64)), abs=1e-3)
    assert found.notes == ("maps are shown as sums over square cells, at most 31 along a side",)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.integers(0, 9),
    st.integers(100, 4000),
)
def test_whatever_is_asked_the_first_panel_keeps_its_sum_and_losses_are_said(shapes, rows, most):
    choices = ("all", *map(str, range(rows))) if rows else ()
    asked = viewer(*shapes, choices=choices)
    found = fitted(asked, most)
    before, after = asked.panels[0].values[0], found.panels[0].values[0]
    assert float(after.sum(dtype=np.float64)) == pytest.approx(float(before.sum(dtype=np.float64)), abs=1e-3)
    assert found.panels[0].label == "panel 0"
    changed = len(found.panels) < len(asked.panels) or len(found.choices) < len(choices) or found.panels[0].shape != asked.panels[0].shape
    assert bool(found.notes) == changed
    for panel in found.panels:
        assert panel.values.shape == (max(len(found.choices), 1), panel.shape[0] * panel.shape[1])
        assert len(panel.limits) == len(panel.values)


def test_relevance_of_ten_thousand_tokens_stays_below_five_megabytes_and_says_what_is_left_out():
    calls, count = 48, 10_000
    per_call = draw(calls, 1, count)
    record = relevance(
        tokens=4, only="words", by_source={"words": per_call.sum(0)}, per_call={"words": per_call},
        calls=tuple((f"layer.{i}.att", "homogenous") for i in range(calls)),
    )  # fmt: skip
    words = tuple(f"word{i}" for i in range(count))
    made = page.chapter(record, Seen(words={"words": words}, command=("attend",)))
    text = page.html([made])
    assert len(text.encode()) < 5 * MEGABYTE
    found = Read(text)
    (told,) = found.data()["viewers"]
    assert told["words"] == list(words)
    exactly(found.maps()[0][0], record.by_source["words"].reshape(1, 1, -1))
    notes = [note for _, note in found.all("p", **{"class": "note"})]
    assert "Note: 30 of 49 attentions are here, the first and the strongest." in notes
    for panel, maps in zip(told["panels"][1:], found.maps()[0][1:], strict=True):
        exactly(maps, per_call[int(panel["label"].partition(":")[0])].reshape(1, 1, -1))


def test_grounding_of_ten_thousand_tokens_stays_below_five_megabytes_and_says_what_is_left_out():
    rows, side = 60, 100
    matrix = draw(1, rows, 1 + side * side).double()
    record = grounding(
        rows=rows, columns=1 + side * side, calls=1, matrix=matrix, per_call=matrix[None], back=torch.zeros_like(matrix),
        back_per_call=torch.zeros_like(matrix)[None], direct=torch.zeros(1, 1 + side * side).double(), lie=Tokens(1, (side, side)),
    )  # fmt: skip
    made = page.chapter(record, Seen(pictures={IMAGE: photo()}))
    text = page.html([made])
    assert len(text.encode()) < 5 * MEGABYTE
    found = Read(text)
    maps = found.maps()[0]
    assert maps[0].sum(dtype=np.float64) / 2 != 0
    exactly(maps[0][0], matrix[0, :, 1:].sum(0).reshape(side, side).numpy())
    (told,) = found.data()["viewers"]
    assert len(told["choices"]) < rows
    assert any("of 60 rows are here, those with the most" in note for _, note in found.all("p", **{"class": "note"}))


def test_long_tables_and_long_records_are_cut_and_say_so(quick):
    found, made = read(robustness(n=450))
    assert len(made.tables[1].rows) == 200
    assert made.tables[1].caption == "Every picture, the most fragile first (the first 200 of 450 rows)"
    said = json.loads(made.record)
    assert said["pictures"][-1] == "... 250 more, in the saved record"
    assert len(said["pictures"]) == 201
    assert len(found.all("tr")) < 450
    _, made = read(attribution(draw(1, 4, 2), settings={"long": "x" * 5000}))
    assert json.loads(made.record)["settings"]["long"] == "x" * 2000 + "... 3,000 more letters"


# --- batches ---------------------------------------------------------------------------------------------------------------------

BATCHES = {
    "attribution": lambda: attribution(draw(3, 3, 4, 6)),
    "relevance": lambda: relevance(batch=3),
    "logic": lambda: logic(batch=3),
    "mechanism": lambda: mechanism(batch=3),
    "grounding": lambda: grounding(batch=3),
    "comparison": lambda: comparison(batch=3),
    "corrections": lambda: replace(
        corrections(), members={"positive, complete": relevance(batch=3, only="pixels"), "signed, complete": relevance(batch=3, only="pixels")}, mask=None
    ),
    "audit": lambda: replace(
        audit(), baselines={"zeros": Audited(torch.zeros(3).double(), torch.full((3, 3), 1 / 3).double(), torch.ones(3).double())},
        target=("a", "b", "c"), output=torch.full((3,), 5.0).double(), own=torch.full((3, 3), 1 / 3).double(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_of_a_batch_the_first_is_shown_and_said(quick, name):
    found, _ = read(BATCHES[name](), seen())
    notes = [note for _, note in found.all("p", **{"class": "note"})]
    assert any("the record holds 3 samples; this is the first" in note for note in notes)


@pytest.mark.parametrize("name", ["attribution", "relevance", "logic", "mechanism", "grounding"])
def test_of_a_batch_the_chapter_is_that_of_its_first_sample(quick, name):
    record = BATCHES[name]()
    whole, first = (page.chapter(one, seen()) for one in (record, record.sample(0)))
    assert (whole.question, whole.lead, whole.tables) == (first.question, first.lead, first.tables)
    assert whole.record == first.record
    for a, b in zip(whole.viewers, first.viewers, strict=True):
        for p, q in zip(a.panels, b.panels, strict=True):
            assert np.array_equal(p.values, q.values)
    assert first.notes == ()


# --- texts are shown, not run ----------------------------------------------------------------------------------------------------

HOSTILE = '</script x></script></title></style><img src=x onerror="window.ran=1"><script>window.ran=1</script>\'"&amp;{{ 7*7 }}<!--'
HARMLESS = "z" * len(HOSTILE)


@pytest.mark.parametrize("name", list(every()))
def test_hostile_texts_leave_elements_and_attributes_as_they_are(quick, name):
    pages = {}
    for ending in (HOSTILE, HARMLESS):
        record, around = every(lambda text, ending=ending: text + ending)[name]
        pages[ending] = Read(page.html([page.chapter(record, around)]))
    hostile, harmless = pages[HOSTILE], pages[HARMLESS]
    assert [(tag, sorted(attrs)) for tag, attrs in hostile.elements] == [(tag, sorted(attrs)) for tag, attrs in harmless.elements]
    assert hostile.above == harmless.above
    for (tag, dirty), (_, clean) in zip(hostile.elements, harmless.elements):
        for attribute in dirty:
            if not dirty[attribute] or HOSTILE not in dirty[attribute]:
                assert dirty[attribute] == clean[attribute]
            else:
                assert attribute in ("aria-label", "alt"), (tag, attribute)
                assert dirty[attribute].replace(HOSTILE, HARMLESS) == clean[attribute]
    for (tag, attrs), dirty, clean in zip(hostile.elements, hostile.texts, harmless.texts):
        if tag not in ("script", "code", "details", "section", "article", "main", "html", "body", "head", "pre"):
            assert dirty.replace(HOSTILE, HARMLESS) == clean  # shown letter by letter
        elif tag == "script" and "id" not in attrs:
            assert dirty == clean
    assert json.dumps(hostile.data()).replace(json.dumps(HOSTILE)[1:-1], HARMLESS) == json.dumps(harmless.data())
    assert HOSTILE in hostile.texts[0]
    ((_, data),) = hostile.all("script", id="data")
    assert not re.search("[<>]", data)  # "</script x" ends a script for a browser, whatever Python's parser says


def test_a_title_and_a_chapter_of_hostile_texts_stay_texts():
    hostile = Chapter(
        HOSTILE, HOSTILE, (HOSTILE,), notes=(HOSTILE,), budgets=(Budget(HOSTILE, 1.0, 1.0, ((HOSTILE, 0.5),), HOSTILE),), command=HOSTILE,
        facts=((HOSTILE, HOSTILE),), record=HOSTILE,
    )  # fmt: skip
    found = Read(page.html([hostile, hostile], HOSTILE))
    assert [text for _, text in found.all("title")][:1] == [HOSTILE]
    assert len(found.all("script")) == 2
    assert found.all("img") == []
    assert [a["data-kind"] for a, _ in found.all("article")] == [HOSTILE] * 2


# --- nothing is asked of anywhere ------------------------------------------------------------------------------------------------


def test_the_policy_lets_nothing_load_and_one_script_run(drawn):
    found, _ = drawn
    ((policy, _),) = found.all("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.strip().split(" ", 1) for rule in policy["content"].split(";"))
    (script,) = [text for (tag, attrs), text in zip(found.elements, found.texts) if tag == "script" and not attrs]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules == {"default-src": "'none'", "img-src": "data:", "style-src": "'unsafe-inline'", "script-src": f"'sha256-{digest}'"}
    tags = [tag for tag, _ in found.elements]
    assert tags.index("meta") < tags.index("style")
    assert tags.index("meta") < tags.index("script")


def test_there_is_no_address_of_anywhere_else(drawn):
    found, _ = drawn
    ids = {attrs["id"] for _, attrs in found.elements if "id" in attrs}
    for tag, attrs in found.elements:
        assert not {"srcset", "action", "formaction", "poster", "background", "style", "xlink:href", "ping"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
        assert tag not in ("iframe", "object", "embed", "base", "form", "audio", "video", "use")
        for name in ("src", "href"):
            if name in attrs and tag != "a":
                assert attrs[name].startswith("data:")
            elif name in attrs:
                assert attrs[name].startswith("#")
                assert attrs[name][1:] in ids
    (style,) = [text for (tag, _), text in zip(found.elements, found.texts) if tag == "style"]
    assert "url(" not in style
    assert "@import" not in style
    (script,) = [text for (tag, attrs), text in zip(found.elements, found.texts) if tag == "script" and not attrs]
    assert not re.search(r"fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import\(|innerHTML|outerHTML|eval\(|document\.write|https?:", script)


def test_every_picture_says_what_it_is_and_how_large_it_is(drawn):
    found, _ = drawn
    for attrs, _ in found.all("img"):
        if attrs.get("class") == "ground":  # beneath a canvas, which has a label of its own
            assert attrs["alt"] == ""
            continue
        assert len(attrs["alt"]) > 10
        with Image.open(io.BytesIO(base64.b64decode(attrs["src"].partition(",")[2]))) as opened:
            assert (attrs["width"], attrs["height"]) == tuple(map(str, opened.size))
    for attrs, _ in found.all("canvas"):
        assert attrs["role"] == "img"
        assert len(attrs["aria-label"]) > 10


def test_headings_are_in_order_and_each_record_has_one_question(drawn):
    found, made_of = drawn
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert [text for _, text in found.all("h1")] == [one.question for one in made_of]
    assert len(found.all("article")) == len(made_of)
    links = [(a["href"], text) for a, text in found.all("a") if "class" not in a]
    assert links == [(f"#chapter-{i + 1}", one.question) for i, one in enumerate(made_of)]


def test_ids_are_there_once_and_what_names_them_finds_them(drawn):
    found, _ = drawn
    ids = [attrs["id"] for _, attrs in found.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in found.elements:
        for name in ("aria-labelledby", "for", "aria-describedby"):
            assert name not in attrs or attrs[name] in ids
    assert [a["data-viewer"] for a, _ in found.all("section") if "data-viewer" in a] == [str(i) for i in range(len(found.data()["viewers"]))]


def test_every_chapter_of_every_kind_has_its_figure(drawn):
    _, made_of = drawn
    for (name, _), made in zip(every().items(), made_of):
        if name == "attribution of words":  # has no picture to be drawn on, and says so
            assert made.figure is None
            assert any("no figure" in note for note in made.notes)
        else:
            assert made.figure is not None
            assert made.figure.alt.startswith(made.question)
            with Image.open(io.BytesIO(base64.b64decode(made.figure.source.partition(",")[2]))) as opened:
                assert np.ptp(np.asarray(opened.convert("L"))) > 100


def test_a_page_of_nothing_is_a_page():
    found = Read(page.html([]))
    assert [text for _, text in found.all("title")] == ["zeroline"]
    assert found.data()["viewers"] == []
    assert found.all("nav") == []


def test_the_colours_run_from_blue_through_white_to_red_and_can_be_told_apart_without_red_and_green(drawn):
    """Blue and red of the scale differ in the blue-yellow axis, which the common colour blindnesses keep; sizes differ in lightness."""
    colours = drawn[0].data()["colours"]
    assert len(colours) == 33
    low, middle, high = colours[0], colours[16], colours[32]
    assert (low[2] > low[0] + 60, high[0] > high[2] + 60) == (True, True)
    assert min(middle) > 240
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in colours]
    assert lightness[:17] == sorted(lightness[:17])
    assert lightness[16:] == sorted(lightness[16:], reverse=True)


# --- files -----------------------------------------------------------------------------------------------------------------------


def test_a_page_is_written_whole_and_without_a_folder_not_at_all(tmp_path, quick):
    made = page.chapter(relevance(), seen())
    page.save([made], tmp_path / "report.html", "a title")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page.html([made], "a title")
    with pytest.raises(UsageError, match="there is no folder"):
        page.save([made], tmp_path / "none" / "report.html")


def test_the_same_record_gives_the_same_page():
    assert page.html([page.chapter(relevance(), seen())]) == page.html([chapters()["relevance"]])


def test_a_page_that_fails_leaves_what_was_there_before(tmp_path, monkeypatch):
    page.save([], tmp_path / "report.html", "before")
    before = (tmp_path / "report.html").read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="no space"):
        page.save([], tmp_path / "report.html", "after")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_bytes() == before


def test_names_that_are_no_utf_8_are_shown_as_well_as_can_be(tmp_path, quick):
    made = page.chapter(relevance(), Seen(command=("attend", b"caf\xe9.png".decode("utf-8", "surrogateescape"))))
    page.save([made], tmp_path / "report.html")
    assert "caf" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, which are not what is asked here
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["attribution", "relevance", "grounding"])
def test_values_that_are_no_numbers_are_a_page_or_one_clear_error(quick, name, value):
    record = {"attribution": lambda: attribution(draw(1, 3, 4, 6)), "relevance": relevance, "grounding": grounding}[name]()
    if name == "attribution":
        record.parts["layer"][:] = value
    elif name == "relevance":
        record.by_source["pixels"][:] = value
    else:
        record.matrix[:] = value
    try:
        Read(page.html([page.chapter(record, seen())]))
    except ZerolineError as problem:
        assert "\n" not in str(problem)


def test_a_summary_without_maps_and_one_with_are_chapters(quick):
    for record in (summary(), replace(summary(), maps={}, against=None, histogram=None)):
        _, made = read(record)
        assert made.tables[0].rows[0][:2] == ("|error| / |difference|", "40")


def test_every_kind_of_record_is_read_drawn_and_has_a_chapter():
    from zeroline.report.drawing import DRAW
    from zeroline.report.opened import LOAD
    from zeroline.report.page.chapters import CHAPTERS

    readers = {load.__self__ for load in LOAD.values()}
    assert readers == set(DRAW) == set(CHAPTERS)
    assert {type(record) for record, _ in every().values()} == readers
