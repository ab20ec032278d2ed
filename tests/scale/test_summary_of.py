"""``zl.summarize``: every figure of a summary is that of the run's records, counted again by hand."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import zeroline as zl
from scale.test_run import FIXED, Small, listed, noise_photos, one_size, photos, small, table, zoo_load
from zeroline.errors import LoadError, NotFoundError, UsageError
from zeroline.summary import QUANTILES, Disagreement, Spread, Summary

FIGURES = {
    "|attribution error|": lambda r: abs(float(r.error)),
    "|error| / |difference|": lambda r: float(r.relative_error) if r.relative_error is not None else math.nan,
    "local error": lambda r: float(r.local_error),
    "map error": lambda r: float(r.map_error),
    "|difference|": lambda r: abs(float(r.difference)),
    "gradient evaluations": lambda r: int(r.evaluations),
}


def assert_spread(spread, values):
    """By numpy, over the values that are finite."""
    known = np.array([v for v in values if v is not None and math.isfinite(v)], np.float64)
    assert spread.count == len(known)
    assert spread.mean == pytest.approx(known.mean(), rel=1e-12, abs=1e-300)
    assert spread.quantiles == pytest.approx(tuple(np.quantile(known, QUANTILES)), rel=1e-9, abs=1e-300)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """Fourteen digits with labels and boxes, one unreadable and one without a picture; adaptive paths that differ in length."""
    where = tmp_path_factory.mktemp("exact")
    folder = photos(where / "in", count=14, label=["seven", "two"] * 5 + ["", "nine", "two", "seven"])
    (folder / "05.png").write_bytes(b"torn")
    (folder / "07.png").unlink()
    options = {"tolerance": 0.02, "max_evaluations": 16}
    return zl.run(folder, model=zoo_load("digits-cnn"), out=where / "out", baseline="blur(2)", target="seven", options=options, batch_size=4)


@pytest.fixture(scope="module")
def summary(exact):
    return zl.summarize(exact)


def test_figures_are_spread_as_those_of_the_records(exact, summary):
    records = dict(exact.records())
    assert (summary.examples, summary.failed) == (len(records), 2) == (12, 2)
    for name, of in FIGURES.items():
        assert_spread(summary.spreads[name], [of(record) for record in records.values()])
    rows = list(exact.rows())
    for name, column in (
        ("seconds per example", "seconds"),
        ("evidence inside the object", "inside"),
        ("largest value inside", "pointing"),
        ("chance", "chance"),
    ):
        assert_spread(summary.spreads[name], [row[column] for row in rows])
    assert list(summary.spreads) == [*FIGURES, "seconds per example", "evidence inside the object", "largest value inside", "chance"]
    assert len(set(summary.spreads["|error| / |difference|"].quantiles)) == 7


def test_reasons_and_why_paths_stopped_are_counted(exact, summary):
    assert dict(summary.reasons) == {"prepare, LoadError": 1, "read, LoadError": 1}
    by_hand = {}
    for _, record in exact.records():
        for why in record.stopped:
            by_hand[why] = by_hand.get(why, 0) + 1
    assert summary.stopped == by_hand
    assert len(by_hand) > 1


def test_the_slowest_and_the_least_exact_are_named_the_largest_first(exact, summary):
    rows = list(exact.rows())
    slowest = sorted(rows, key=lambda row: -row["seconds"])[:5]
    assert summary.slowest == tuple((row["id"], row["label"] or "", row["seconds"]) for row in slowest)
    apart = sorted(((float(r.error.abs() / r.difference.abs()), id) for id, r in exact.records()), reverse=True)[:5]
    assert [id for id, _, _ in summary.least_exact] == [id for _, id in apart]
    assert [share for _, _, share in summary.least_exact] == pytest.approx([share for share, _ in apart])


def test_the_histogram_counts_relative_errors_in_decades(exact, summary):
    edges, counts = summary.histogram
    assert edges == pytest.approx([10 ** (n / 4 - 5) for n in range(25)])
    by_hand = [0] * 24
    for _, record in exact.records():
        share = abs(float(record.error)) / abs(float(record.difference))
        inside = [n for n in range(24) if edges[n] <= share < edges[n + 1]]
        by_hand[inside[0] if inside else 0 if share < edges[0] else 23] += 1
    assert list(counts) == by_hand
    assert sum(counts) == 12


def test_maps_are_the_mean_maps_of_each_label(exact, summary):
    sums, counts = {}, {}
    labels = {row["id"]: row["label"] or "" for row in exact.rows()}
    for id, record in exact.records():
        label = labels[id]
        sums[label] = sums.get(label, 0) + record.values[0].double().sum(0)
        counts[label] = counts.get(label, 0) + 1
    assert dict(summary.counts) == counts == {"seven": 6, "two": 4, "": 1, "nine": 1}
    assert list(summary.counts)[:2] == ["seven", "two"]  # the most examples first
    assert sorted(summary.maps) == sorted(counts)
    for label, total in sums.items():
        np.testing.assert_allclose(summary.maps[label], total / counts[label], atol=1e-6 * float(total.abs().max()))


def test_without_labels_classes_are_the_targets_and_the_largest_twelve_are_kept(tmp_path):
    folder = noise_photos(tmp_path / "in", 30)
    table(folder / "labels.csv", [{"image": f"{n:03d}.png", "label": f"c{n % 14}" if n < 28 else "c0"} for n in range(30)])
    found = zl.summarize(small(folder, tmp_path / "labelled", batch_size=8))
    assert len(found.maps) == len(found.counts) == 12
    assert found.counts["c0"] == 4
    assert "c13" not in found.maps
    (folder / "labels.csv").unlink()
    run = small(folder, tmp_path / "bare", batch_size=8)
    bare = zl.summarize(run)
    by_hand = {}
    for _, record in run.records():
        by_hand.setdefault(record.target[0], []).append(record.values[0].double().sum(0))
    assert {name: len(maps) for name, maps in by_hand.items()} == dict(bare.counts)
    for name, maps in by_hand.items():
        np.testing.assert_allclose(bare.maps[name], sum(maps) / len(maps), atol=1e-6)


def test_a_summary_reads_a_folder_as_it_reads_a_run(exact, summary):
    again = zl.summarize(exact.folder)
    assert again.to_dict() == summary.to_dict()
    assert again.to_dict() == zl.summarize(str(exact.folder)).to_dict()
    assert (again.folder, again.model, again.settings) == (str(exact.folder), "ResNetForImageClassification", exact.manifest.settings)


# --- runs of other kinds -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Runs over the same four digits: relevance, logic, and one of figures alone."""
    where = tmp_path_factory.mktemp("others")
    folder = photos(where / "in")
    asked = {"model": zoo_load("digits-vit"), "batch_size": 4}
    return {
        "relevance": zl.run(folder, out=where / "relevance", method="attention_relevance", **asked),
        "logic": zl.run(folder, out=where / "logic", method="logic", **asked),
        "figures": zl.run(folder, out=where / "figures", method="gradient_x_input", keep="figures", **asked),
        "map": zl.run(folder, out=where / "map", method="gradient_x_input", keep="map", **asked),
    }


def test_relevance_has_maps_and_no_errors(others):
    found = zl.summarize(others["relevance"])
    assert (found.histogram, found.least_exact, found.stopped) == (None, (), {})
    assert list(found.spreads) == ["seconds per example", "evidence inside the object", "largest value inside", "chance"]
    labels = {row["id"]: row["label"] for row in others["relevance"].rows()}
    for label in set(labels.values()):
        mine = [record.grid()[0].double() for id, record in others["relevance"].records() if labels[id] == label]
        np.testing.assert_allclose(found.maps[label], sum(mine) / len(mine), atol=1e-6)


def test_logic_has_errors_and_no_maps(others):
    found = zl.summarize(others["logic"])
    assert found.maps == {}
    records = [record for _, record in others["logic"].records()]
    shares = [abs(float(record.error)) / abs(float(record.difference)) for record in records]
    assert_spread(found.spreads["|error| / |difference|"], shares)
    edges, counts = found.histogram
    places = [max(n for n in range(24) if n == 0 or edges[n] <= share) for share in shares]
    assert list(counts) == [places.count(n) for n in range(24)]
    assert_spread(found.spreads["|attribution error|"], [abs(float(record.error)) for record in records])
    assert_spread(found.spreads["|difference|"], [abs(float(record.difference)) for record in records])
    assert_spread(found.spreads["gradient evaluations"], [record.evaluations for record in records])
    assert len(found.slowest) == 4
    assert "evidence inside the object" not in found.spreads or found.spreads["chance"].count == 0


def test_figures_alone_are_summarized_too(others):
    less, more = zl.summarize(others["figures"]), zl.summarize(others["map"])
    assert less.maps == {}
    assert more.maps
    for name in ("|attribution error|", "|error| / |difference|", "|difference|"):
        assert less.spreads[name] == more.spreads[name]
    assert less.histogram == more.histogram
    assert dict(less.counts) == dict(more.counts)


# --- two runs ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs of other baselines: 000 to 007 in one, 003 to 010 in the other; 005 changed between them, 004 unreadable in the second."""
    where = tmp_path_factory.mktemp("two")
    noise_photos(where / "all", 11)
    for name, range_ in (("here", range(8)), ("there", range(3, 11))):
        (where / name).mkdir()
        for number in range_:
            shutil.copy(where / "all" / f"{number:03d}.png", where / name)
    Image.new("RGB", (12, 10), "blue").save(where / "there" / "005.png")
    (where / "there" / "004.png").write_bytes(b"torn")
    here = small(where / "here", where / "a", batch_size=3, method="integrated_gradients", options=FIXED)
    there = small(where / "there", where / "b", batch_size=2, baseline="mean")
    return here, there


def test_two_runs_are_compared_example_by_example(two):
    here, there = two
    found = zl.summarize(here, against=there).against
    a, b = dict(here.records()), dict(there.records())
    same = ["003.png", "006.png", "007.png"]
    assert (found.other, found.common, found.only_here, found.only_there, found.changed) == (str(there.folder), 3, 4, 3, 1)
    assert found.same_target == sum(a[id].target == b[id].target for id in same)
    assert_spread(found.spreads["|f(x) here - there|"], [abs(float(a[id].output - b[id].output)) for id in same])
    apart = []
    for id in same:
        one, other = (run[id].values[0].double().sum(0).flatten() for run in (a, b))
        cosine = float(one @ other / math.sqrt(float(one @ one) * float(other @ other)))
        apart.append((cosine, id, float((one - other).abs().sum() / one.abs().sum())))
    assert_spread(replace_rounding(found.spreads["cosine of the maps"], [c for c, _, _ in apart]), [c for c, _, _ in apart])
    assert found.spreads["distance of the maps"].mean == pytest.approx(np.mean([d for _, _, d in apart]), rel=1e-5)
    assert found.spreads["distance of the maps"].quantiles == pytest.approx(tuple(np.quantile([d for _, _, d in apart], QUANTILES)), rel=1e-5)
    assert [id for id, _, _ in found.apart] == [id for _, id, _ in sorted(apart)]
    for (_, cosine, distance), (c, _, d) in zip(found.apart, sorted(apart)):
        assert (cosine, distance) == (pytest.approx(c, abs=1e-6), pytest.approx(d, rel=1e-5))
    assert found.settings == (
        "method: 'integrated_gradients' here, 'gradient_x_input' there",
        "baseline: 'zeros' here, 'mean' there",
        f"options: {FIXED!r} here, {{}} there".replace(repr(FIXED), repr(dict(sorted(FIXED.items())))),
    )


def replace_rounding(spread, values):
    """Maps are kept in float32: the spread with figures that differ by no more than that taken for those of ``values``."""
    known = np.array(values)
    assert spread.mean == pytest.approx(known.mean(), abs=1e-6)
    assert spread.quantiles == pytest.approx(tuple(np.quantile(known, QUANTILES)), abs=1e-6)
    return Spread(spread.count, float(known.mean()), tuple(np.quantile(known, QUANTILES)))


def test_the_other_way_round_only_the_sides_change(two):
    here, there = two
    one, other = zl.summarize(here, against=there).against, zl.summarize(there, against=here.folder).against
    assert (other.only_here, other.only_there, other.common, other.changed) == (one.only_there, one.only_here, one.common, one.changed)
    assert other.spreads["cosine of the maps"].quantiles == pytest.approx(one.spreads["cosine of the maps"].quantiles)
    assert other.spreads["|f(x) here - there|"] == one.spreads["|f(x) here - there|"]


def test_a_run_agrees_with_itself(exact):
    found = zl.summarize(exact, against=exact).against
    assert (found.common, found.only_here, found.only_there, found.changed, found.same_target, found.settings) == (12, 0, 0, 0, 12, ())
    assert found.spreads["|f(x) here - there|"].quantiles == (0.0,) * 7
    assert found.spreads["cosine of the maps"].quantiles == pytest.approx((1.0,) * 7)
    assert found.spreads["distance of the maps"].quantiles == (0.0,) * 7
    assert len(found.apart) == 5


def test_another_model_is_named(two, tmp_path):
    here, _ = two
    other = Small().eval()
    with torch.no_grad():
        other.weight.mul_(2)
    there = zl.run(
        here.manifest.source["path"], model=other, out=tmp_path / "out", baseline="zeros", options=FIXED, batch_size=3, preprocess=one_size
    )
    found = zl.summarize(here, against=there).against
    assert found.settings == (f"model: {here.manifest.model_id} here, {there.manifest.model_id} there",)
    assert found.common == 8
    assert found.spreads["cosine of the maps"].mean == pytest.approx(1, abs=1e-6)  # twice the logit, twice the map
    assert found.spreads["distance of the maps"].mean == pytest.approx(1, abs=1e-6)
    outputs = {row["id"]: row["output"] for row in here.rows()}
    assert_spread(found.spreads["|f(x) here - there|"], [abs(outputs[row["id"]] - row["output"]) for row in there.rows()])


@pytest.mark.parametrize(("one", "other"), [("logic", "relevance"), ("relevance", "map"), ("figures", "map")])
def test_runs_without_maps_of_one_shape_are_compared_by_their_outputs(others, one, other):
    found = zl.summarize(others[one], against=others[other]).against
    assert set(found.spreads) == {"|f(x) here - there|"}
    assert found.apart == ()
    assert found.common == 4
    assert any(line.startswith("method") or line.startswith("keep") for line in found.settings)


# --- kept --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["exact", "two", "relevance", "logic"])
def test_a_summary_is_read_back_as_it_was_written(request, tmp_path, which):
    if which == "exact":
        found = request.getfixturevalue("summary")
    elif which == "two":
        here, there = request.getfixturevalue("two")
        found = zl.summarize(here, against=there)
    else:
        found = zl.summarize(request.getfixturevalue("others")[which])
    found.save(tmp_path / "summary.safetensors")
    again = Summary.load(tmp_path / "summary.safetensors")
    for name in Summary.__dataclass_fields__:
        mine, theirs = getattr(found, name), getattr(again, name)
        if name == "maps":
            assert list(mine) == list(theirs)
            assert all(torch.equal(mine[n], theirs[n]) and mine[n].dtype == theirs[n].dtype for n in mine)
        else:
            assert mine == theirs, name
            assert type(mine) is type(theirs), name
    assert isinstance(again.against, Disagreement) == (which == "two")
    assert repr(again) == repr(found)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == json.loads(json.dumps(again.to_dict(), allow_nan=False))


def test_what_is_no_summary_is_not_read(exact, tmp_path):
    next(exact.records())[1].save(tmp_path / "attribution.safetensors")
    with pytest.raises(LoadError, match="holds attribution 2, not summary of format 1"):
        Summary.load(tmp_path / "attribution.safetensors")
    with pytest.raises(LoadError, match="no file"):
        Summary.load(tmp_path / "gone.safetensors")


def test_a_summary_says_what_it_found(exact, two):
    summary = zl.summarize(exact)
    said = repr(summary)
    spread = summary.spreads["evidence inside the object"]
    assert f"{exact.folder}: 12 examples, 2 failed" in said
    assert "integrated_gradients of ResNetForImageClassification, target seven, baseline blur(2)" in said
    for why, count in summary.stopped.items():
        assert f"{count} ({count / 12:.1%})" in next(line for line in said.splitlines() if line.startswith(f"stopped by {why}"))
    pointing, chance = summary.spreads["largest value inside"].mean, summary.spreads["chance"].mean
    assert f"{spread.mean:.1%} of it, the largest value in {pointing:.1%}; chance {chance:.1%}" in said
    id, label, share = summary.least_exact[0]
    assert f"{id} ({label}): error {share:.2%} of the difference" in said if label else f"{id}: error {share:.2%}" in said
    row = next(line for line in said.splitlines() if line.strip().startswith("|difference|"))
    values = summary.spreads["|difference|"]
    assert row.split() == ["|difference|", "12", f"{values.mean:.3g}", *(f"{q:.3g}" for q in values.quantiles)]
    against = repr(zl.summarize(two[0], against=two[1]))
    for words in ("3 examples in both, 4 only here, 3 only there", "1 examples have other contents there", "baseline: 'zeros' here, 'mean' there"):
        assert words in against
    assert "Summary of a run" in summary._repr_html_()


def test_a_run_without_a_finished_example_is_refused(tmp_path):
    folder = noise_photos(tmp_path / "in", 3)
    run = small(folder, tmp_path / "out", batch_size=2)
    for file in (run.folder / "records").iterdir():
        file.unlink()
    with pytest.raises(UsageError, match="has no finished example; 0 failed"):
        zl.summarize(run)
    with pytest.raises(NotFoundError, match="no folder"):
        zl.summarize(tmp_path / "gone")
    with pytest.raises(LoadError, match="holds no run"):
        zl.summarize(folder)


def test_differences_within_rounding_leave_relative_errors_undefined(tmp_path):
    folder = noise_photos(tmp_path / "in", 4)
    Image.new("RGB", (12, 10)).save(folder / "001.png")  # black, as the baseline is
    run = small(folder, tmp_path / "out", baseline="zeros", batch_size=4)
    found = zl.summarize(run)
    assert found.spreads["|error| / |difference|"].count == 3
    assert found.spreads["|difference|"].count == 4
    assert sum(found.histogram[1]) == 3
    assert "001.png" not in {id for id, _, _ in found.least_exact}
    assert len(found.least_exact) == 3


class Power(nn.Module):
    """mean(x) ** k: gradient x input adds up to k times the difference, so that |E| / |D| is k - 1."""

    def __init__(self, k):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k), requires_grad=False)

    def forward(self, x):
        found = x.flatten(1).mean(1) ** self.k
        return torch.stack([found, torch.zeros_like(found)], 1)


@pytest.mark.parametrize(("k", "expected"), [(1.0, 0), (1.5, 18), (1.02, 13), (25.0, 23)])
def test_relative_errors_outside_the_histogram_are_in_its_outer_bins(tmp_path, k, expected):
    folder = noise_photos(tmp_path / "in", 3)
    found = zl.summarize(small(folder, tmp_path / "out", Power(k).eval(), target="0", batch_size=3))
    assert found.spreads["|error| / |difference|"].median == pytest.approx(k - 1, abs=1e-4)
    assert found.histogram[1] == tuple(3 * (number == expected) for number in range(24))


def test_examples_are_found_in_another_order_and_in_several_shards(tmp_path):
    folder = noise_photos(tmp_path / "in", 9)
    rows = [{"image": f"{n:03d}.png", "label": "ab"[n % 2]} for n in range(9)]
    table(folder / "labels.csv", rows)
    here = small(folder, tmp_path / "a", batch_size=2, flush_seconds=0.0)
    table(folder / "labels.csv", rows[::-1])
    assert listed(folder)[0]["image"] == "008.png"
    there = small(folder, tmp_path / "b", batch_size=4, flush_seconds=0.0)
    found = zl.summarize(here, against=there)
    assert found.against.common == 9
    assert found.against.spreads["cosine of the maps"].count == 9
    assert found.against.spreads["distance of the maps"].quantiles[-1] < 1e-5
    assert dict(found.counts) == {"a": 5, "b": 4}
