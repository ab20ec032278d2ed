"""The record of a game: what it says follows from its values by definition, what is saved comes back, and the words are those of the table."""

import dataclasses
import itertools
import json
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zeroline as zl
from zeroline import records
from zeroline.errors import LoadError, UsageError
from zeroline.maths.coalitions import Implicant
from zeroline.reasoning import Logic

RULE = "f(T) is at least 50% of the way from f(none) to f(all)"


def record(values, names="abcdefgh", holds=None, threshold=0.5, coalitions=None, **more):
    """A record of all coalitions with these values [batch][coalitions], in counting order, read half-way unless ``holds`` is given."""
    values = torch.as_tensor(values, dtype=torch.float64)
    batch, count = values.shape
    k = (count - 1).bit_length() if coalitions is None else more.pop("k")
    coalitions = torch.arange(count) if coalitions is None else torch.tensor(coalitions)
    row = {c: i for i, c in enumerate(coalitions.tolist())}
    if holds is None:
        holds = [[(v - one[row[0]]) / (one[row[2**k - 1]] - one[row[0]] or math.nan) >= 0.5 for v in one] for one in values.tolist()]
    given = {
        "players": tuple(names[:k]),
        "baselines": tuple(f"nothing of {name}" for name in names[:k]),
        "coalitions": coalitions,
        "values": values,
        "holds": torch.tensor(holds, dtype=torch.bool),
        "threshold": RULE,
        "target": tuple(f"logit of class {i}" for i in range(batch)),
        "output": values[:, row[2**k - 1]] + 0.001,
        "evaluations": count,
        "forward_passes": 3,
        "labels": tuple(f"class {i}" for i in range(batch)),
        "settings": {"threshold": threshold, "seed": 0, "max_evaluations": 4096, "batch_size": None},
        "versions": {"torch": "2"},
        "model": "toy.Model@0123",
    }
    return Logic(**{**given, **more})


def truth(table):
    """A record that holds where the table says, whatever the values: read as an answer that stays."""
    return record([[float(v) for v in table]], holds=[table], threshold="answer", labels=("it",))


@pytest.fixture
def both():
    """Three players, two samples, with the same game on other inputs."""
    draw = torch.Generator().manual_seed(1)
    here, there = torch.randn(2, 2, 8, generator=draw).double() + torch.arange(8.0) / 2
    return record(here, instead=record(there))


@pytest.fixture
def estimated():
    """Of three players only singles, pairs and all: as if they were more than ten (two players more that do nothing)."""
    asked = [0, *(1 << i for i in range(5)), *((1 << i) | (1 << j) for i in range(5) for j in range(i + 1, 5)), 31]
    f = [float(sum(c >> i & 1 for i in range(3)) + 4 * (c & 3 == 3) - 6 * (c & 7 == 7)) for c in asked]
    more = {"estimate": torch.tensor([[1.0, -2.5, 0.25, 0, 0]] * 2), "half_width": torch.tensor([[0.5, 0.25, 0.125, 0, 0]] * 2), "orders": 12}
    return record([f, [2 * v for v in f]], coalitions=asked, k=5, **more)


# What follows from the values


def subsets(names):
    return [s for size in range(1, len(names) + 1) for s in itertools.combinations(names, size)]


def f(one, names, present, sample):
    """f with these players there, by name."""
    number = sum(2 ** names.index(name) for name in present)
    return float(one.values[sample, one.coalitions.tolist().index(number)])


def test_dividends_are_the_inclusion_exclusion_sum_by_the_names_of_players(both):
    assert set(both.dividends) == set(subsets("abc"))
    for players, found in both.dividends.items():
        for sample in range(2):
            slow = sum((-1) ** (len(players) - len(t)) * f(both, "abc", t, sample) for t in [(), *subsets(players)])
            assert float(found[sample]) == pytest.approx(slow, abs=1e-12)


def test_the_order_of_the_coalitions_does_not_matter(both):
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    turned = dataclasses.replace(both, coalitions=both.coalitions[order], values=both.values[:, order], holds=both.holds[:, order])
    assert torch.equal(turned.value, both.value)
    assert torch.equal(turned.baseline_value, both.baseline_value)
    assert turned.reading == both.reading
    assert turned.implicants(1) == both.implicants(1)
    for players, found in both.dividends.items():
        assert torch.equal(turned.dividends[players], found)
    assert torch.equal(turned.shapley, both.shapley)


def test_the_sum_of_the_dividends_is_the_difference(both):
    for sample in range(2):
        none, everyone = f(both, "abc", (), sample), f(both, "abc", "abc", sample)
        assert float(both.value[sample]) == everyone
        assert float(both.baseline_value[sample]) == none
        assert float(both.difference[sample]) == pytest.approx(everyone - none, abs=1e-12)
        assert float(both.total[sample]) == pytest.approx(everyone - none, abs=1e-12)
        assert float(both.error[sample]) == pytest.approx(0, abs=1e-12)
    assert both.exact


def test_shapley_values_are_the_mean_over_all_orders(both):
    for sample in range(2):
        for player, name in enumerate("abc"):
            gains = [
                f(both, "abc", o[: o.index(name) + 1], sample) - f(both, "abc", o[: o.index(name)], sample) for o in itertools.permutations("abc")
            ]
            assert float(both.shapley[sample, player]) == pytest.approx(sum(gains) / 6, abs=1e-12)


def test_of_some_coalitions_only_singles_and_pairs_have_dividends(estimated):
    assert not estimated.exact
    assert set(estimated.dividends) == {s for s in subsets("abcde") if len(s) <= 2}
    expected = {("a",): 1.0, ("b",): 1.0, ("c",): 1.0, ("a", "b"): 4.0}
    assert {s: d.tolist() for s, d in estimated.dividends.items()} == {s: [expected.get(s, 0), 2 * expected.get(s, 0)] for s in estimated.dividends}
    assert estimated.difference.tolist() == [1, 2]
    assert estimated.total.tolist() == [7, 14]
    assert estimated.error.tolist() == [6, 12]  # three hold -6 together: with its sign turned
    assert estimated.shapley is estimated.estimate
    assert estimated.implicants() is None
    assert estimated.independent() == ()


def test_all_coalitions_give_exact_shapley_values_whatever_was_estimated():
    one = record([[0, 1, 2, 7]], estimate=torch.zeros(1, 2).double(), half_width=torch.zeros(1, 2).double(), orders=2)
    assert one.exact
    assert one.shapley.tolist() == [[3, 4]]


# The reading


TABLES = {
    "and": ((0, 0, 0, 1), "it needs a AND b"),
    "or": ((0, 1, 1, 1), "it needs a OR b"),
    "not": ((1, 0, 1, 0), "it needs NOT a"),
    "xor": ((0, 1, 1, 0), "it needs (b AND NOT a) OR (a AND NOT b)"),
    "nor": ((1, 0, 0, 0), "it needs NOT a AND NOT b"),
    "always": ((1, 1, 1, 1), "it needs none of the players: it holds without them"),
    "a and (b or c)": ((0, 0, 0, 1, 0, 1, 0, 1), "it needs a AND (b OR c)"),
    "c and same": ((0, 0, 0, 0, 1, 0, 0, 1), "it needs c AND ((a AND b) OR (NOT a AND NOT b))"),
    "majority": ((0, 0, 0, 1, 0, 1, 1, 1), "it needs (a AND b) OR (a AND c) OR (b AND c)"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_reads_as_one_would_say_it(name):
    table, words = TABLES[name]
    assert truth(table).reading == (words,)


def said(reading, names, coalition):
    """A reading as Python reads it."""
    words = reading.removeprefix("it needs ")
    there = {name: bool(coalition >> i & 1) for i, name in enumerate(names)}
    return bool(eval(words.replace("AND", "and").replace("OR", "or").replace("NOT", "not"), {"__builtins__": {}}, there))


@given(st.integers(2, 4).flatmap(lambda k: st.lists(st.booleans(), min_size=2**k, max_size=2**k)))
@settings(max_examples=150, deadline=None)
def test_a_reading_is_true_exactly_where_the_table_is(table):
    one = truth(table)
    if not any(table):
        return
    reading = one.reading[0]
    if all(table):
        assert "needs none of the players" in reading
        return
    if len(one.implicants()) <= 4:
        assert [said(reading, "abcd", coalition) for coalition in range(len(table))] == table
    else:
        assert reading.count("more ways") == 1
    assert set(re.findall(r"\b[a-d]\b", reading)) <= set(one.players) - set(one.independent())
    for i, name in enumerate(one.players):
        idle = all(table[c] == table[c ^ (1 << i)] for c in range(len(table)))
        assert (name in one.independent()) == idle


def test_more_than_four_ways_are_counted():
    five = truth([coalition > 0 for coalition in range(32)])
    assert five.reading == ("it needs a OR b OR c OR d OR 1 more ways",)
    pairs = truth([coalition.bit_count() >= 2 for coalition in range(16)])
    assert pairs.reading == ("it needs (a AND b) OR (a AND c) OR (a AND d) OR (b AND c) OR 2 more ways",)


def test_every_sample_is_read_by_itself():
    one = record([[0, 0, 0, 1], [0, 0, 2, 2]])
    assert one.reading == ("class 0 needs a AND b", "class 1 needs b")
    assert one.implicants(1) == (Implicant((1,)),)
    assert [one.independent(i) for i in range(2)] == [(), ("a",)]


def test_without_a_class_the_target_is_named():
    assert record([[0, 0, 0, 1]], labels=()).reading == ("logit of class 0 needs a AND b",)


@pytest.mark.parametrize(("everyone", "read"), [(0.0, False), (0.4, False), (-0.4, False), (0.41, True), (-0.41, True), (4.0, True)])
def test_there_is_no_reading_below_a_tenth_of_the_largest_change(everyone, read):
    """The largest change is from f(none) = 1 to f(b) = -3."""
    one = record([[1, 2, -3, 1 + everyone]])
    assert (one.implicants() is None) == (not read)
    if not read:
        words = f"f(all) - f(none) = {everyone:.3g} is small beside what some coalitions change: the players cancel"
        assert one.reading == (f"no reading of class 0: {words}",)
        assert dict(one.rows())["reading"] == one.reading[0]
        assert one.to_dict()["implicants"] == [None]
        assert one.independent() == ()


def test_an_answer_that_stays_is_read_although_the_players_cancel():
    assert truth((0, 1, 0, 0)).reading == ("it needs a AND NOT b",)


def test_a_table_that_is_never_true_is_a_whole_sentence():
    assert truth((0, 0, 0, 0)).implicants() == ()
    assert not truth((0, 0, 0, 0)).reading[0].endswith("needs ")


def test_of_a_table_that_is_never_true_all_players_are_independent():
    assert truth((0, 0, 0, 0)).independent() == ("a", "b")


# Other inputs instead, samples


def test_changes_are_those_of_the_dividends_the_largest_first(both):
    for sample in range(2):
        found = both.changes(sample)
        assert {players for players, _, _ in found} == set(both.dividends)
        for players, a, b in found:
            assert a == float(both.dividends[players][sample])
            assert b == float(both.instead.dividends[players][sample])
        sizes = [abs(b - a) for _, a, b in found]
        assert sizes == sorted(sizes, reverse=True)
    assert both.changes() == both.changes(0) != both.changes(1)
    assert both.instead.changes() == []


@pytest.mark.parametrize("index", [0, 1, -1, -2])
def test_a_sample_is_a_batch_of_one(both, index):
    own = both.sample(index)
    i = index % 2
    assert own.values.tolist() == [both.values[i].tolist()]
    assert own.holds.tolist() == [both.holds[i].tolist()]
    assert own.output.tolist() == [float(both.output[i])]
    assert (own.target, own.labels, own.reading) == ((both.target[i],), (both.labels[i],), (both.reading[i],))
    assert own.instead.values.tolist() == [both.instead.values[i].tolist()]
    assert own.rows() == both.rows(i)
    assert own.sample(0).rows() == own.rows()
    assert own.instead.reading == (both.instead.reading[i],)


def test_a_sample_keeps_its_estimates(estimated):
    second = dataclasses.replace(estimated, estimate=torch.arange(10.0).view(2, 5), half_width=torch.arange(10.0).view(2, 5) / 100, labels=()).sample(
        1
    )
    assert second.estimate.tolist() == [[5, 6, 7, 8, 9]]
    assert second.half_width.tolist() == [pytest.approx([0.05, 0.06, 0.07, 0.08, 0.09])]
    assert second.labels == ()
    assert second.target == ("logit of class 1",)


@pytest.mark.parametrize("index", [2, -3])
def test_a_sample_that_is_not_there_is_refused(both, index):
    with pytest.raises(UsageError, match=f"sample {index} asked; the record has 2"):
        both.sample(index)


# Words and tables


def test_the_table_says_what_the_numbers_say():
    one = record([[1, 2, 3, 11]], instead=record([[1, 2, -6, -6]]))
    assert one.rows() == [
        ("target", "logit of class 0"),
        ("players", "a (absent: nothing of a); b (absent: nothing of b)"),
        ("f(all)", "11"),
        ("f(none)", "1"),
        ("difference", "10"),
        ("sum of dividends", "10"),
        ("attribution error", "+0 (0 of the largest change of f)"),
        ("evaluations", "4 (all 4 coalitions) in 3 forward passes"),
        ("dividend a + b", "+7"),
        ("dividend b", "+2"),
        ("dividend a", "+1"),
        ("Shapley values", "a +4.5, b +5.5"),
        ("true where", RULE),
        ("reading", "class 0 needs a AND b"),
        ("instead", "class 0 needs b"),
        ("changes b", "+2 -> -7"),
        ("changes a + b", "+7 -> -1"),
        ("changes a", "+1 -> +1"),
    ]


def test_players_of_other_inputs_that_are_called_otherwise_are_told_apart():
    one = record([[1, 2, 3, 11]], instead=record([[1, 2, -6, -6]], names="ac"))
    assert dict(one.rows())["in place"] == "c for b"
    assert dict(one.rows())["instead"] == "class 0 needs c"
    assert one.changes()[0] == (("b",), 2, -7)
    assert "in place" not in dict(record([[1, 2, 3, 11]], instead=record([[1, 2, -6, -6]])).rows())


def test_the_table_of_an_estimate_says_so(estimated):
    rows = dict(estimated.rows())
    assert rows["attribution error"] == "+6 (1 of the largest change of f), which groups of three and more hold"
    assert rows["evaluations"] == "17 (17 of 2^5 coalitions, singles and pairs exact) in 3 forward passes"
    assert rows["Shapley a"] == "+1 +- 0.5 (estimate from 12 orders, 95 %)"
    assert rows["Shapley b"] == "-2.5 +- 0.25 (estimate from 12 orders, 95 %)"
    assert "Shapley values" not in rows
    assert rows["reading"].endswith("the largest Shapley estimates are of b (-2.5), a (+1), c (+0.25)")
    assert rows["reading"].startswith("no logical reading of 5 players")


def test_the_smaller_dividends_are_counted_and_summed():
    values = [0.0] * 16
    for number in range(1, 16):
        for inside in range(1, 16):
            values[number] += (-1) ** inside * inside if inside & number == inside else 0
    one = record([values])
    assert dict(one.rows())[""] == "and 7 smaller, 28 in size together"
    assert [row for row in one.rows() if row[0].startswith("dividend")] == [
        (f"dividend {' + '.join('abcd'[i] for i in range(4) if number >> i & 1)}", f"{(-1) ** number * number:+}") for number in range(15, 7, -1)
    ]
    assert one.largest(count=2) == [("a + b + c + d", -15), ("b + c + d", 14)]


def test_largest_is_by_size_of_the_sample_asked():
    one = record([[0, 1, -5, 3], [0, -2, 1, 8]])
    assert one.largest(0) == [("a + b", 7), ("b", -5), ("a", 1)]
    assert one.largest(1, count=2) == [("a + b", 9), ("a", -2)]


def test_who_does_not_matter_is_said():
    assert dict(record([[0, 0, 2, 2]]).rows())["independent of"] == "a"
    assert "independent of" not in dict(record([[0, 0, 0, 2]]).rows())


def test_the_error_is_beside_the_largest_change():
    one = record([[0, 0, 0, 0]])
    assert dict(one.rows())["attribution error"] == "+0"


def test_it_prints_the_first_sample_and_says_that_there_are_more(both):
    assert repr(both).startswith("Logic of 3 players\n")
    for label, value in both.rows():
        assert re.search(rf"^ +{re.escape(label)} +{re.escape(value)}$", repr(both), re.MULTILINE)
    assert repr(both).endswith("\n  ... and 1 more samples: .sample(i)")
    assert "more samples" not in repr(both.sample(1))


def test_names_are_escaped_in_html():
    html = record([[0, 1, 1, 2]], names=["<b>", "c"])._repr_html_()
    assert "&lt;b&gt; (absent: nothing of &lt;b&gt;)" in html
    assert "<b>" not in html
    assert html.count("<tr>") == len(record([[0, 1, 1, 2]]).rows())


# JSON and files


RECORDS = ["both", "estimated"]


@pytest.fixture(params=RECORDS)
def found(request):
    return request.getfixturevalue(request.param)


def test_the_dictionary_is_json_without_nan(found):
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_the_dictionary_is_json_where_an_interval_is_infinite(estimated):
    one = dataclasses.replace(estimated, half_width=torch.full((2, 5), torch.inf), orders=2)
    json.dumps(one.to_dict(), allow_nan=False)


def test_the_dictionary_says_what_the_record_holds(both):
    told = both.to_dict()
    assert (told["kind"], told["format"], told["exact"]) == ("logic", 1, True)
    assert told["players"] == [{"name": name, "absent": f"nothing of {name}"} for name in "abc"]
    for name in ("target", "labels", "reading"):
        assert told[name] == list(getattr(both, name))
    for name in ("value", "baseline_value", "difference", "total", "error", "output", "shapley"):
        assert told[name] == getattr(both, name).tolist()
    for name in ("threshold", "evaluations", "forward_passes", "orders", "model"):
        assert told[name] == getattr(both, name)
    assert {tuple(one["players"]): one["value"] for one in told["dividends"]} == {s: d.tolist() for s, d in both.dividends.items()}
    assert told["settings"] == dict(both.settings)
    assert told["versions"] == dict(both.versions)
    assert told["instead"] == both.instead.to_dict()
    assert told["shapley_half_width"] is None
    for sample, primes in enumerate(told["implicants"]):
        names = [{"present": ["abc"[i] for i in one.present], "absent": ["abc"[i] for i in one.absent]} for one in both.implicants(sample)]
        assert primes == names


def test_the_dictionary_of_an_estimate_says_so(estimated):
    told = estimated.to_dict()
    assert told["exact"] is False
    assert told["shapley"] == estimated.estimate.tolist()
    assert told["shapley_half_width"] == estimated.half_width.tolist()
    assert told["orders"] == 12
    assert told["implicants"] == [None, None]
    assert told["instead"] is None


def test_implicants_are_told_by_name():
    assert truth((0, 1, 0, 0)).to_dict()["implicants"] == [[{"present": ["a"], "absent": ["b"]}]]


def test_a_saved_record_comes_back(found, tmp_path):
    found.save(tmp_path / "l.safetensors")
    back = Logic.load(tmp_path / "l.safetensors")
    assert repr(back) == repr(found)
    assert back.to_dict() == found.to_dict()
    for one, other in ((back, found), (back.instead, found.instead)):
        if other is None:
            assert one is None
            continue
        for name in ("coalitions", "values", "holds", "output", "estimate", "half_width"):
            a, b = getattr(one, name), getattr(other, name)
            assert (a is None and b is None) or (torch.equal(a, b) and a.dtype == b.dtype)
        for name in ("players", "baselines", "target", "labels", "threshold", "orders", "evaluations", "forward_passes", "model"):
            assert getattr(one, name) == getattr(other, name)
        assert one.changes() == other.changes()
    assert [path.name for path in tmp_path.iterdir()] == ["l.safetensors"]


def test_what_is_no_record_of_logic_is_refused(both, tmp_path):
    both.save(tmp_path / "l.safetensors")
    with pytest.raises(LoadError):
        zl.Relevance.load(tmp_path / "l.safetensors")
    records.write(tmp_path / "other.safetensors", {}, {"kind": "comparison", "format": 1})
    with pytest.raises(LoadError, match="holds comparison 1, not logic of format 1"):
        Logic.load(tmp_path / "other.safetensors")
    records.write(tmp_path / "newer.safetensors", {}, {**both.to_dict(), "format": 2})
    with pytest.raises(LoadError, match="holds logic 2, not logic of format 1"):
        Logic.load(tmp_path / "newer.safetensors")
    records.write(tmp_path / "nameless.safetensors", {}, {"format": 1})
    with pytest.raises(LoadError, match="holds something else 1, not logic"):
        Logic.load(tmp_path / "nameless.safetensors")
    (tmp_path / "text").write_text("no record")
    with pytest.raises(LoadError, match="is not a logic record that zeroline saved"):
        Logic.load(tmp_path / "text")
    with pytest.raises(LoadError, match="no file"):
        Logic.load(tmp_path / "none")


@pytest.mark.parametrize("lacking", ["players", "target", "threshold", "settings", "values", "holds", "coalitions"])
def test_a_damaged_record_is_a_load_error(both, tmp_path, lacking):
    both.save(tmp_path / "l.safetensors")
    told, tensors = records.read(tmp_path / "l.safetensors", "a logic record")
    told.pop(lacking, None)
    tensors.pop(lacking, None)
    records.write(tmp_path / "l.safetensors", tensors, told)
    with pytest.raises(LoadError, match="damaged"):
        Logic.load(tmp_path / "l.safetensors")


def test_a_record_cannot_be_saved_where_there_is_no_folder(both, tmp_path):
    with pytest.raises(UsageError, match="there is no folder"):
        both.save(tmp_path / "none" / "l.safetensors")


def test_players_and_records_are_frozen(both):
    with pytest.raises(dataclasses.FrozenInstanceError):
        both.orders = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        zl.Player("a", "x").name = "b"
    assert dataclasses.astuple(zl.Player("a", "x")) == ("a", "x", None, None)
