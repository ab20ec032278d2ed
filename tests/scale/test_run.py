"""``zl.run`` on one machine: what it writes is what the methods give example by example, whatever the batch, and however often it was interrupted."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

import zeroline as zl
from zeroline import zoo
from zeroline.errors import InputError, LoadError, NotFoundError, RunError, TargetError, UsageError
from zeroline.model.loading import Sourced
from zeroline.scale.job import RUNNABLE

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FIXED = {"path": "gausslegendre", "n_steps": 8}
COUNT = 4
zoo_load = cache(zoo.load)
BLACK = zl.baseline.black


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch):
    monkeypatch.setattr(zoo, "load", zoo_load)


# --- sources -----------------------------------------------------------------------------------------------------------------------


def words(sample):
    """Texts of several lengths."""
    text = sample.question.text if sample.question is not None else sample.caption
    return text if int(sample.name) % 2 else text.removesuffix(" ?").removeprefix("a ")


def photos(folder, model="digits-vit", start=0, count=COUNT, **columns):
    """Samples of the zoo as PNG files with a labels.csv: the image, its label and box, and for models that read it a text."""
    folder.mkdir(parents=True)
    rows = []
    for number, sample in enumerate(zoo.samples(model)[start : start + count]):
        sample.image.save(folder / f"{sample.name}.png")
        row = {"image": f"{sample.name}.png", "label": DIGITS[sample.labels[0]], "box": ",".join(map(str, sample.boxes[0]))}
        if model in ("digits-clip", "digits-vqa"):
            row["text"] = words(sample)
        rows.append({**row, **{name: values[number] for name, values in columns.items()}})
    table(folder / "labels.csv", rows)
    return folder


def table(file, rows):
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def listed(folder):
    with (folder / "labels.csv").open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder for each model of the zoo, and the inputs of each example, a batch of one."""
    found = {}
    for model in ("digits-vit", "digits-cnn", "digits-clip", "digits-vqa", "digits-detr"):
        folder = photos(tmp_path_factory.mktemp("sources") / model, model)
        texts = model in ("digits-clip", "digits-vqa")
        chosen = zoo.samples(model)[:COUNT]
        found[model] = folder, {f"{s.name}.png": zoo.preprocess(model, s.image, words(s) if texts else None) for s in chosen}
    return found


class Small(nn.Module):
    """Ten classes from a picture of any size; counts its rows and passes, and does what a test wants before it answers."""

    def __init__(self, before=None):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3, generator=draw) * 0.4)
        self.weight = nn.Parameter(torch.randn(10, 16, generator=draw))
        self.before, self.passes, self.rows = before, 0, 0

    def forward(self, x):
        self.passes += 1
        self.rows += len(x)
        if self.before is not None:
            x = self.before(x)
        felt = nn.functional.softplus(nn.functional.conv2d(x, self.kernel, stride=2))
        return nn.functional.adaptive_avg_pool2d(felt, 2).flatten(1) @ self.weight.T


def as_is(image):
    """A picture in its own size, [1, 3, height, width] in 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32).copy() / 255).permute(2, 0, 1)[None]


def one_size(image):
    """Brought to 12 x 10: all inputs have one shape."""
    return as_is(image.convert("RGB").resize((12, 10)))


def noise_photos(folder, count, size=(12, 10), seed=0):
    """Small pictures of noise: a folder without labels."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(folder / f"{number:03d}.png")
    return folder


def small(source, out, model=None, **asked):
    """A run of the small model."""
    given = {"method": "gradient_x_input", "preprocess": one_size, "baseline": "zeros", **asked}
    return zl.run(source, model=Small().eval() if model is None else model, out=out, **given)


def values_of(run, column="values"):
    """id -> the values as bytes with their figures: what two runs must share to the last bit."""
    known = {row["id"]: row for row in run.rows()}
    assert len(known) == len(run), "an example is there twice"
    return {id: (np.asarray(row[column], np.float32).tobytes(), row["output"], row["error"], row["target"]) for id, row in known.items()}


# --- the records are those of the method called on each example ---------------------------------------------------------------------


def target_of(model):
    """What "top" means to each model."""
    if model == "digits-clip":
        return zl.similarity(scale="cosine")
    return zl.target.detection("top") if model == "digits-detr" else zl.top()


def of_one(model, method, inputs, options):
    """The method on one example, as a user calls it."""
    loaded, target, options = zoo.load(model), target_of(model), dict(options)
    site, baseline = options.pop("site", None), zl.baseline.by_name(options.pop("baseline", "black"))
    if method in zl.METHODS:
        return zl.METHODS[method](loaded, inputs, target=target, site=site, baseline=baseline, **options)
    if method in zl.ROUTES:
        return zl.ROUTES[method](loaded, inputs, target=target, **options)
    if method == "ground":
        return zl.ground(loaded, inputs, target=target, **options)
    absent = {name: zl.baseline.zeros() for name, tensor in inputs.items() if tensor.is_floating_point()}
    texts = "input_ids" in inputs
    if texts:
        absent["input_ids"] = zl.players.missing_word(zoo.tokenizer(model))
    if method == "mechanism":
        return zl.mechanism(loaded, inputs, target=target, baseline=absent, **options)
    kind = options.pop("players", "words and regions")
    who = list(zl.players.words(inputs, zoo.tokenizer(model))) if texts and "words" in kind else []
    if "regions" in kind:
        rows, columns = (int(n) for n in options.pop("regions", "2x2").split("x"))
        who += zl.players.regions(loaded, inputs, zl.players.grid(rows, columns), baseline=zl.baseline.zeros())
    options.pop("regions", None)
    return zl.logic(loaded, inputs, target=target, players=who if kind != "sources" else None, baseline=absent, **options)


def assert_same(found, expected, where, tolerance=5e-6, but=("forward_passes",), figures=None):
    """Two records: every tensor within ``tolerance`` of its largest value, figures within ``figures`` of it or of 1, everything else equal."""
    figures = tolerance if figures is None else figures
    assert type(found) is type(expected)
    (mine, told), (theirs, asked) = found.packed(), expected.packed()
    assert list(mine) == list(theirs), where
    for name, tensor in mine.items():
        other = theirs[name]
        assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype), (where, name)
        apart, size = (tensor.double() - other.double()).abs(), other.double().abs()
        assert bool((tensor.isfinite() == other.isfinite()).all()), (where, name)
        largest = float(size.nan_to_num(0, 0, 0).max()) if size.numel() else 0.0
        most = figures * max(largest, 1.0) if tensor.shape == (1,) else tolerance * largest  # figures round as f does
        assert float(apart.nan_to_num(0, 0, 0).max() if apart.numel() else 0.0) <= most, (where, name)
    assert near(told, asked, figures, but), where


def near(one, other, tolerance, but=()):
    """JSON of two records: figures within ``tolerance`` of 1 or of themselves, all the rest equal."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(near(one[name], other[name], tolerance) for name in one if name not in but)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(near(a, b, tolerance) for a, b in zip(one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or abs(one - other) <= 50 * tolerance * max(1.0, abs(other))
    return one == other


CASES = [
    ("digits-vit", "integrated_gradients", FIXED),
    ("digits-vit", "integrated_gradients", {"site": "vit.layers.1", **FIXED, "closure": "discrete_gradient"}),
    ("digits-vit", "gradient_x_input", {}),
    ("digits-vit", "grad_cam", {"site": "vit.layers.2", "rectify": False}),
    ("digits-vit", "layer_cam", {"site": "vit.layers.2"}),
    ("digits-vit", "odam", {"site": "vit.layers.2"}),
    ("digits-vit", "difference_map", {"site": "vit.layers.2"}),
    ("digits-vit", "taylor", {"order": 2}),
    ("digits-vit", "attention_relevance", {}),
    ("digits-vit", "attention_eclip", {}),
    ("digits-vit", "grad_eclip", {}),
    ("digits-vit", "rollout", {}),
    ("digits-vit", "integrated_attention", FIXED),
    ("digits-vit", "mechanism", {}),
    ("digits-vit", "logic", {"players": "regions"}),
    ("digits-cnn", "integrated_gradients", {"site": "resnet.encoder.stages.1", **FIXED}),
    ("digits-cnn", "grad_cam", {"site": "resnet.encoder.stages.2"}),
    ("digits-cnn", "logic", {"regions": "1x3"}),
    ("digits-clip", "integrated_gradients", FIXED),
    ("digits-clip", "attention_relevance", {}),
    ("digits-clip", "grad_eclip", {}),
    ("digits-clip", "ground", {}),
    ("digits-clip", "mechanism", {}),
    ("digits-clip", "logic", {"players": "words"}),
    ("digits-clip", "logic", {"players": "sources"}),
    ("digits-vqa", "attention_relevance", {}),
    ("digits-vqa", "ground", {}),
    ("digits-vqa", "integrated_gradients", {"site": "input:visual_feats", "baseline": "zeros", **FIXED}),
    ("digits-detr", "attention_relevance", {}),
    ("digits-detr", "ground", {}),
    ("digits-detr", "rollout", {}),
    ("digits-detr", "gradient_x_input", {}),
]


def asked_of(method, options):
    """What a run is asked: the site has a name of its own."""
    options = dict(options)
    return {"method": method, "site": options.pop("site", None), "baseline": options.pop("baseline", None), "options": options}


def each(cases):
    return pytest.mark.parametrize(("model", "method", "options"), cases, ids=[f"{m}-{n}-{i}" for i, (m, n, _) in enumerate(cases)])


@each([case for case in CASES if case[0] in ("digits-vit", "digits-clip")])
def test_records_of_one_example_at_a_time_are_the_methods_to_the_last_bit(sources, tmp_path, model, method, options):
    folder, inputs = sources[model]
    run = zl.run(folder, model=f"zoo:{model}", out=tmp_path, batch_size=1, device="cpu", limit=1, **asked_of(method, options))
    found = dict(run.records())
    assert list(found) == list(inputs)[:1]
    for id, record in found.items():
        assert_same(record, of_one(model, method, inputs[id], options), id, tolerance=0, figures=2e-6)


double_load = cache(lambda name: zoo_load.__wrapped__(name).double())


@each(CASES)
def test_records_of_batches_are_those_of_the_method_on_each_example(sources, tmp_path, monkeypatch, model, method, options):
    monkeypatch.setattr(zoo, "load", double_load)  # in float64 what is left between batch and example is no rounding
    folder, inputs = sources[model]
    inputs = {id: {n: t.double() if t.is_floating_point() else t for n, t in one.items()} for id, one in inputs.items()}
    count = COUNT if model == "digits-vit" else 3
    inputs = dict(list(inputs.items())[:count])
    expected = {id: of_one(model, method, one, options) for id, one in inputs.items()}
    for size in (3, None) if model == "digits-vit" and method in ("taylor", "attention_relevance", "grad_eclip", "mechanism") else (3,):
        asked = {"batch_size": size, "limit": count, "device": "cpu", "dtype": "float64", **asked_of(method, options)}
        run = zl.run(folder, model=f"zoo:{model}", out=tmp_path / str(size), **asked)
        found = dict(run.records())
        assert list(found) == list(expected)
        assert run.failures.num_rows == 0
        for id, record in found.items():
            assert_same(record, expected[id], (size, id), tolerance=1e-10, figures=1e-6 if model == "digits-vqa" else 1e-10)
        batches = []
        for row in run.rows():
            one, told = expected[row["id"]], expected[row["id"]].to_dict()
            batches.append(row["batch"])
            assert row["target"] == one.target[0]
            for figure in ("output", "difference", "error", "value", "joint", "total", "baseline_output", "relative_error", "map_error"):
                if figure in row:
                    value = told[figure][0] if isinstance(told[figure], list) else told[figure]
                    assert row[figure] == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)), figure
            assert row["seconds"] > 0
        if method == "logic" and options.get("players") != "sources":
            assert set(batches) == {1}  # players are of one example
        else:
            alike = [[id for id in inputs if shapes(inputs[id]) == kind] for kind in dict.fromkeys(map(shapes, inputs.values()))]
            parts = [min(size or count, len(group) - i) for group in alike for i in range(0, len(group), size or count)]
            if size is None or len(alike) == 1 or run.manifest.chunk >= count:
                assert sorted(batches) == sorted(part for part in parts for _ in range(part))


def shapes(inputs):
    return tuple((name, tuple(tensor.shape)) for name, tensor in inputs.items())


def test_every_method_that_runs_is_compared_above():
    assert {method for _, method, _ in CASES} == set(RUNNABLE)


@pytest.mark.parametrize(("dtype", "tolerance", "least"), [("float64", 1e-10, 10), ("float32", 1e-3, 9)])
def test_an_adaptive_path_gives_each_example_what_it_gives_alone(tmp_path, monkeypatch, dtype, tolerance, least):
    if dtype == "float64":
        monkeypatch.setattr(zoo, "load", double_load)
    folder = photos(tmp_path / "in", count=10)
    expected = {}
    for sample in zoo.samples("digits-vit")[:10]:
        inputs = {name: t.to(getattr(torch, dtype)) for name, t in sample.inputs.items()}
        expected[f"{sample.name}.png"] = zl.integrated_gradients(zoo.load("digits-vit"), inputs, target=zl.top(), baseline=BLACK())
    run = zl.run(folder, model="zoo:digits-vit", out=tmp_path / "out", batch_size=3, dtype=dtype, options={})
    found = dict(run.records())
    agree = [id for id in expected if int(found[id].evaluations) == int(expected[id].evaluations)]
    assert len(agree) >= least
    for id in agree:  # in float32 as many nodes may lie elsewhere: which segment is split next is decided by figures that round
        assert_same(found[id], expected[id], id, tolerance=tolerance)
    assert len({int(one.evaluations) for one in expected.values()}) > 1  # the path really adapts
    paces = {}
    for row in run.rows():
        assert row["evaluations"] == int(found[row["id"]].evaluations)
        assert row["stopped"] == found[row["id"]].stopped[0]
        paces.setdefault(row["number"] // 3, []).append(row["seconds"] / row["evaluations"])
    assert all(pace == pytest.approx([pace[0]] * len(pace)) and pace[0] > 0 for pace in paces.values())  # a batch's time, by what each took of it


def test_a_map_is_one_number_per_position_of_the_record(sources, tmp_path):
    for model, method, options in (("digits-vit", "gradient_x_input", {}), ("digits-cnn", "grad_cam", {"site": "resnet.encoder.stages.2"})):
        folder, _ = sources[model]
        run = zl.run(folder, model=f"zoo:{model}", out=tmp_path / model, batch_size=2, limit=2, **asked_of(method, options))
        for row in run.rows():
            per_pixel = run.record(row["id"]).values.double()[0].sum(0)
            np.testing.assert_allclose(np.reshape(row["map"], per_pixel.shape), per_pixel, atol=1e-6 * float(per_pixel.abs().max()))
    tokens = zl.run(sources["digits-vit"][0], model="zoo:digits-vit", out=tmp_path / "t", method="gradient_x_input", site="vit.layers.1")
    for row in tokens.rows():
        by_token = tokens.record(row["id"]).values.double()[0].sum(-1)  # the class token, then 8 x 8 patches row by row
        expected = [[float(by_token[1 + 8 * r + c]) for c in range(8)] for r in range(8)]
        np.testing.assert_allclose(np.reshape(row["map"], (8, 8)), expected, atol=1e-6 * float(by_token.abs().max()))
    for model in ("digits-vit", "digits-clip", "digits-vqa", "digits-detr"):
        run = zl.run(sources[model][0], model=f"zoo:{model}", out=tmp_path / f"r-{model}", method="attention_relevance", limit=2)
        for row in run.rows():
            record = run.record(row["id"])
            np.testing.assert_array_equal(np.reshape(row["map"], (8, 8)), record.grid(record.gridded())[0].numpy())


def slow_evidence(heat, box, size):
    """Positive share, hit and chance, cell by cell: a cell is the object's where one of its pixels is."""
    left, top, right, bottom = box
    rows, columns = len(heat), len(heat[0])
    positive = inside = cells = 0.0
    best, hit = 0.0, None
    for r in range(rows):
        for c in range(columns):
            ys = range(r * size // rows, -(-(r + 1) * size // rows))
            xs = range(c * size // columns, -(-(c + 1) * size // columns))
            there = any(top <= y < bottom for y in ys) and any(left <= x < right for x in xs)
            cells += there
            positive += max(heat[r][c], 0.0)
            inside += max(heat[r][c], 0.0) * there
            if heat[r][c] > best:
                best, hit = heat[r][c], float(there)
    return (inside / positive if positive else None), hit, cells / (rows * columns)


@pytest.mark.parametrize(("method", "site"), [("gradient_x_input", None), ("grad_cam", "vit.layers.2"), ("attention_relevance", None)])
def test_evidence_is_that_of_the_map_and_the_box(tmp_path, method, site):
    folder = photos(tmp_path / "in", count=6)
    boxes = {f"{s.name}.png": s.boxes[0] for s in zoo.samples("digits-vit")[:6]}
    run = zl.run(folder, model="zoo:digits-vit", out=tmp_path / "out", method=method, site=site, batch_size=4)
    seen = set()
    for row in run.rows():
        side = 64 if site is None and method == "gradient_x_input" else 8
        inside, hit, chance = slow_evidence(np.reshape(row["map"], (side, side)).tolist(), boxes[row["id"]], 64)
        assert row["inside"] == (None if inside is None else pytest.approx(inside, abs=1e-6))
        assert row["pointing"] == hit
        assert row["chance"] == pytest.approx(chance, abs=1e-9)
        seen.add(hit)
    assert len(run) == 6
    assert seen - {None}


def test_examples_without_a_box_have_no_evidence(tmp_path):
    boxes = ["", "10,10,40,40", "", "0,0,64,64"]
    run = zl.run(photos(tmp_path / "in", box=boxes), model="zoo:digits-vit", out=tmp_path / "out", method="gradient_x_input", batch_size=4)
    rows = {row["number"]: row for row in run.rows()}
    assert [rows[n]["inside"] is None for n in range(4)] == [True, False, True, False]
    assert (rows[3]["inside"], rows[3]["pointing"], rows[3]["chance"]) == (pytest.approx(1.0), 1.0, 1.0)
    inside, hit, chance = slow_evidence(np.reshape(rows[1]["map"], (64, 64)).tolist(), (10, 10, 40, 40), 64)
    assert (rows[1]["inside"], rows[1]["pointing"], rows[1]["chance"]) == (pytest.approx(inside, abs=1e-6), hit, pytest.approx(chance))
    assert chance == 900 / 4096


def test_masks_say_where_objects_are(tmp_path):
    folder = photos(tmp_path / "in", count=3, mask=["m0.png", "m1.png", "m2.png"])
    for name, box in (("m0", (4, 8, 20, 40)), ("m1", (0, 0, 0, 0)), ("m2", (30, 30, 60, 50))):
        drawn = Image.new("L", (64, 64))
        drawn.paste(255, box)
        drawn.save(folder / f"{name}.png")
    run = zl.run(folder, model="zoo:digits-vit", out=tmp_path / "out", method="gradient_x_input")
    first, empty, last = run.rows()
    assert (empty["inside"], empty["pointing"], empty["chance"]) == (None, None, None)
    for row, box in ((first, (4, 8, 20, 40)), (last, (30, 30, 60, 50))):
        inside, hit, chance = slow_evidence(np.reshape(row["map"], (64, 64)).tolist(), box, 64)
        assert (row["inside"], row["pointing"], row["chance"]) == (pytest.approx(inside, abs=1e-6), hit, pytest.approx(chance))


# --- what is asked -----------------------------------------------------------------------------------------------------------------


TARGETS = [
    ("seven", zl.logit(7), "logit of seven"),
    ("3", zl.logit(3), "logit of three"),
    ("seven - one", zl.contrast(7, 1), "logit of seven - one"),
    (zl.contrast("nine", 2), zl.contrast(9, 2), "logit of nine - two"),
]


@pytest.mark.parametrize(("asked", "meant", "said"), TARGETS, ids=range(len(TARGETS)))
def test_targets_in_words_and_as_records(sources, tmp_path, asked, meant, said):
    folder, inputs = sources["digits-vit"]
    run = zl.run(folder, model="zoo:digits-vit", out=tmp_path / "out", method="gradient_x_input", target=asked, batch_size=3)
    for id, record in run.records():
        assert record.target == (said,)
        assert_same(record, zl.gradient_x_input(zoo_load("digits-vit"), inputs[id], target=meant, baseline=BLACK()), id)


def test_the_label_as_target_explains_each_examples_own(tmp_path):
    labels = ["Two", "7", "nine", " zero "]
    folder = photos(tmp_path / "in", label=labels)
    run = zl.run(folder, model="zoo:digits-vit", out=tmp_path / "out", method="gradient_x_input", target="label", batch_size=4)
    assert [row["batch"] for row in run.rows()] == [4] * 4
    for (_, record), sample, digit in zip(run.records(), zoo.samples("digits-vit"), (2, 7, 9, 0)):
        assert record.target == (f"logit of {DIGITS[digit]}",)
        assert_same(record, zl.gradient_x_input(zoo_load("digits-vit"), sample.inputs, target=digit, baseline=BLACK()), digit)


def test_a_label_below_zero_is_no_class(tmp_path):
    folder = photos(tmp_path / "in", count=3, label=["seven", "-1", "2"])
    run = zl.run(folder, model=zoo_load("digits-cnn"), out=tmp_path / "out", method="gradient_x_input", target="label")
    assert [row["target"] for row in run.rows()] == ["logit of seven", "logit of two"]
    assert [f["id"] for f in run.failures.to_pylist()] == ["01.png"]


def test_sub_folders_are_labels_that_can_be_explained(tmp_path):
    for number, name in ((0, "three"), (1, "eight")):
        (tmp_path / "in" / name).mkdir(parents=True)
        zoo.samples("digits-vit")[number].image.save(tmp_path / "in" / name / "a.png")
    run = zl.run(tmp_path / "in", model="zoo:digits-vit", out=tmp_path / "out", method="gradient_x_input", target="label")
    assert {row["id"]: (row["label"], row["target"]) for row in run.rows()} == {
        "eight/a.png": ("eight", "logit of eight"),
        "three/a.png": ("three", "logit of three"),
    }


@pytest.mark.parametrize("said", ["zeros", "blur(3)", "constant(0.25)", "mean", "noise(5)"])
def test_baselines_in_words_and_as_records_are_one(sources, tmp_path, said):
    meant = {
        "zeros": zl.baseline.zeros(at="input"), "blur(3)": zl.baseline.blur(3), "constant(0.25)": zl.baseline.constant(0.25, at="input"),
        "mean": zl.baseline.mean(), "noise(5)": zl.baseline.noise(5),
    }[said]  # fmt: skip
    folder, inputs = sources["digits-cnn"]
    asked = {"model": "zoo:digits-cnn", "method": "gradient_x_input", "batch_size": 3}
    in_words, as_record = (zl.run(folder, out=tmp_path / str(n), baseline=one, **asked) for n, one in enumerate((said, meant)))
    if said != "noise(5)":  # noise differs over the rows of a batch
        for id, record in in_words.records():
            direct = zl.gradient_x_input(zoo_load("digits-cnn"), inputs[id], target=zl.top(), baseline=meant)
            np.testing.assert_allclose(record.values, direct.values, atol=1e-6 * float(direct.values.abs().max()))
            assert float(record.baseline_output) == pytest.approx(float(direct.baseline_output), abs=1e-5)
    assert values_of(in_words) == values_of(as_record)


def test_noise_is_the_same_for_an_example_in_every_batch(sources, tmp_path):
    folder, inputs = sources["digits-cnn"]
    for size in (1, 3):
        run = zl.run(folder, model="zoo:digits-cnn", out=tmp_path / str(size), method="gradient_x_input", baseline="noise(5)", batch_size=size)
        for id, record in run.records():
            direct = zl.gradient_x_input(zoo_load("digits-cnn"), inputs[id], target=zl.top(), baseline=zl.baseline.noise(5))
            assert float(record.baseline_output) == pytest.approx(float(direct.baseline_output), abs=1e-5), (size, id)


@pytest.mark.parametrize("site", [None, "resnet.encoder.stages.1"])
def test_the_mean_of_a_folder_as_baseline(sources, tmp_path, site):
    others = photos(tmp_path / "others", start=8, count=3)
    folder, inputs = sources["digits-cnn"]
    model = zoo_load("digits-cnn")
    run = zl.run(
        folder, model="zoo:digits-cnn", out=tmp_path / "out", method="gradient_x_input", site=site, baseline=f"mean_of({others})", batch_size=3
    )
    members = [s.inputs for s in zoo.samples("digits-cnn")[8:11]]
    meant = zl.baseline.mean_of(members, at="input" if site is None else "site")
    for id, record in run.records():
        direct = zl.gradient_x_input(model, inputs[id], target=zl.top(), site=site, baseline=meant)
        np.testing.assert_allclose(record.values, direct.values, atol=1e-6 * float(direct.values.abs().max()))
        np.testing.assert_allclose(record.baseline_output, direct.baseline_output, atol=1e-5)
    Image.new("RGB", (64, 64), "red").save(next(others.glob("*.png")))
    with pytest.raises(UsageError, match="baseline: .* of files [0-9a-f]{16}' there, .* of files [0-9a-f]{16}' asked"):
        zl.run(folder, model="zoo:digits-cnn", out=tmp_path / "out", method="gradient_x_input", site=site, baseline=f"mean_of({others})")


def test_a_grid_and_a_prefix_lay_out_the_map(sources, tmp_path):
    asked = {"model": "zoo:digits-vit", "method": "grad_cam", "site": "vit.layers.2", "prefix": 1}
    run = zl.run(sources["digits-vit"][0], out=tmp_path / "out", grid=(4, 16), **asked)
    for row in run.rows():
        by_token = run.record(row["id"]).values.double()[0].sum(-1)[1:]
        np.testing.assert_allclose(np.reshape(row["map"], (4, 16)), by_token.reshape(4, 16), atol=1e-6 * float(by_token.abs().max()))
    assert run.layout.map.shape == (4, 16)


def test_a_grid_and_a_prefix_reach_the_method(sources, tmp_path):
    folder, inputs = sources["digits-vit"]
    run = zl.run(folder, model="zoo:digits-vit", out=tmp_path / "out", method="attention_relevance", grid=(4, 16), prefix=1, batch_size=3)
    for id, record in run.records():
        direct = zl.attention_relevance(zoo_load("digits-vit"), inputs[id], target=zl.top(), grid=(4, 16), prefix=1)
        assert_same(record, direct, id)
        assert record.tokens["pixel_values"].grid == (4, 16)


def test_a_module_with_a_preprocessing_and_pictures_of_several_sizes(tmp_path):
    folder = noise_photos(tmp_path / "in", 3)
    other = noise_photos(tmp_path / "more", 2, (20, 16), seed=1)
    for file in other.iterdir():
        file.rename(folder / f"big{file.name}")
    model = Small().eval()
    run = small(folder, tmp_path / "out", model, batch_size=4, preprocess=as_is)
    assert not run.layout.is_fixed
    assert [row["batch"] for row in run.rows()] == [3, 3, 3, 2, 2]
    for row in run.rows():
        x = as_is(Image.open(folder / row["id"]))
        direct = zl.gradient_x_input(model, x, target=zl.top(), baseline=zl.baseline.zeros(at="input"))
        record = run.record(row["id"])
        assert record.values.shape == x.shape
        np.testing.assert_allclose(record.values, direct.values, atol=1e-6 * float(direct.values.abs().max()))
        assert row["map.shape"] == list(x.shape[2:])
        np.testing.assert_allclose(np.reshape(row["map"], row["map.shape"]), direct.values[0].sum(0), atol=1e-6)


def test_a_module_that_says_how_it_reads_pictures_needs_no_preprocess(sources, tmp_path):
    named = zl.run(sources["digits-vit"][0], model="zoo:digits-vit", out=tmp_path / "a", method="gradient_x_input", batch_size=3)
    given = zl.run(sources["digits-vit"][0], model=zoo_load("digits-vit"), out=tmp_path / "b", method="gradient_x_input", batch_size=3)
    assert [row["target"] for row in given.rows()] == [row["target"] for row in named.rows()]
    for (_, one), (_, other) in zip(named.records(), given.records()):
        np.testing.assert_allclose(one.values, other.values, atol=1e-5 * float(one.values.abs().max()))
    with pytest.raises(InputError, match="give preprocess="):
        zl.run(sources["digits-vit"][0], model=Small().eval(), out=tmp_path / "c")
    assert not list((tmp_path / "c").glob("*.json"))


class Reader(nn.Module):
    """Two classes from words."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.embedding = nn.Embedding.from_pretrained(torch.randn(26, 5, generator=draw))
        self.head = nn.Linear(5, 2)
        nn.init.normal_(self.head.weight, generator=draw)

    def forward(self, ids):
        return self.head(self.embedding(ids).tanh().sum(1))


def test_a_model_of_texts_of_several_lengths_made_in_python(tmp_path):
    texts = ["abc", "zeroline", "abd", "a", "parquet"]
    table(tmp_path / "texts.csv", [{"id": f"t{n}", "caption": text} for n, text in enumerate(texts)])

    def ids(text):
        return torch.tensor([[ord(letter) - ord("a") for letter in text]])

    model = Reader().eval()
    sourced = Sourced("reader", model, lambda image, text: {"ids": ids(text)}, {}, reads=("text",))
    asked = {"method": "integrated_gradients", "site": "embedding", "baseline": "zeros", "options": FIXED, "target": "1"}
    run = zl.run(tmp_path / "texts.csv", model=sourced, out=tmp_path / "out", batch_size=2, **asked)
    assert [row["text"] for row in run.rows()] == texts
    assert [row["batch"] for row in run.rows()] == [2, 1, 2, 1, 1]
    for (_, record), text in zip(run.records(), texts):
        direct = zl.integrated_gradients(model, {"ids": ids(text)}, target=1, site="embedding", baseline=zl.baseline.zeros(), **FIXED)
        assert_same(record, direct, text)
    with pytest.raises(UsageError, match="reads text; the source has no text"):
        zl.run(noise_photos(tmp_path / "in", 2), model=sourced, out=tmp_path / "other", **asked)


@pytest.mark.parametrize("keep", ["map", "figures"])
def test_less_can_be_kept_and_the_rest_stays_as_it_is(sources, tmp_path, keep):
    folder, _ = sources["digits-vit"]
    asked = {"model": "zoo:digits-vit", "method": "gradient_x_input", "batch_size": 3}
    whole, less = (zl.run(folder, out=tmp_path / k, keep=k, **asked) for k in ("values", keep))
    names = set(less.layout.schema().names)
    assert set(whole.layout.schema().names) - names == ({"values"} if keep == "map" else {"values", "map"})
    apart = {"settings_hash", "seconds", "record"}
    for one, other in zip(whole.rows(), less.rows()):
        assert {n: v for n, v in one.items() if n in names - apart} == {n: v for n, v in other.items() if n not in apart}
    with pytest.raises(LoadError, match="the run kept no values"):
        less.record("00.png")
    for row in less.rows():
        assert row["inside"] is not None
        assert row["settings_hash"] == less.manifest.settings_hash


@pytest.mark.parametrize(("dtype", "kept", "tolerance"), [("float64", torch.float64, 1e-12), ("bfloat16", torch.bfloat16, 0.02)])
def test_a_model_loaded_by_name_runs_in_the_dtype_asked(sources, tmp_path, monkeypatch, dtype, kept, tolerance):
    monkeypatch.setattr(zoo, "load", zoo_load.__wrapped__)  # its dtype changes
    folder, inputs = sources["digits-cnn"]
    run = zl.run(folder, model="zoo:digits-cnn", out=tmp_path / "out", dtype=dtype, method="gradient_x_input", target="seven", batch_size=2)
    exact = zoo.load("digits-cnn").double()
    for id, record in run.records():
        assert record.values.dtype is kept
        direct = zl.gradient_x_input(exact, {n: t.double() for n, t in inputs[id].items()}, target=7, baseline=BLACK())
        assert float(record.output) == pytest.approx(float(direct.output), abs=max(tolerance, 1e-9) * 20)
        apart = (record.values.double() - direct.values).norm() / direct.values.norm()
        assert float(apart) < (1e-12 if dtype == "float64" else 0.3)


def test_a_limit_takes_the_first_and_can_be_raised_later(tmp_path):
    folder = noise_photos(tmp_path / "in", 7)
    model = Small().eval()
    first = small(folder, tmp_path / "out", model, limit=4, batch_size=2)
    assert [row["id"] for row in first.rows()] == ["000.png", "001.png", "002.png", "003.png"]
    far = []
    all_ = small(folder, tmp_path / "out", model, batch_size=2, progress=far.append)
    assert sorted(row["number"] for row in all_.rows()) == list(range(7))
    assert (far[-1].total, far[-1].done, far[-1].failed, far[-1].fresh) == (7, 7, 0, 3)  # only those that were left
    assert values_of(all_) == values_of(small(folder, tmp_path / "whole", batch_size=2))


def test_progress_with_a_smaller_limit_counts_no_more_than_there_is(tmp_path):
    folder = noise_photos(tmp_path / "in", 5)
    small(folder, tmp_path / "out", batch_size=2)
    far = []
    small(folder, tmp_path / "out", batch_size=2, limit=2, progress=far.append)
    assert (far[-1].total, far[-1].done) == (2, 2)


def test_progress_counts_what_is_done(tmp_path):
    folder = noise_photos(tmp_path / "in", 5)
    (folder / "002.png").write_bytes(b"no picture")
    far = []
    small(folder, tmp_path / "out", batch_size=2, progress=far.append)
    assert [(p.total, p.done, p.failed) for p in far] == [(5, 2, 0), (5, 3, 1), (5, 4, 1)]
    assert all(p.per_second == pytest.approx(p.fresh / p.seconds) for p in far)
    assert far[0].seconds_left == pytest.approx(3 * far[0].seconds / 2)
    assert far[-1].seconds_left == 0


# --- examples that fail ------------------------------------------------------------------------------------------------------------


def spoiled(kind, folder, model):
    """One example of a source spoiled; what the failure must say."""
    rows = listed(folder)
    if kind == "unreadable":
        (folder / "02.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
        said = ("prepare", "LoadError", "cannot read '02.png' as an image")
    elif kind == "gone":
        (folder / "02.png").unlink()
        said = ("read", "LoadError", "cannot read '02.png'")
    elif kind == "cut short":
        whole = (folder / "02.png").read_bytes()
        (folder / "02.png").write_bytes(whole[: len(whole) // 2])
        said = ("prepare", "LoadError", "cannot read '02.png' as an image")
    elif kind == "no class":
        rows[2]["label"] = "elephant"
        said = ("explain", "NotFoundError", "no class 'elephant'")
    elif kind == "class too large":
        rows[2]["label"] = "12"
        said = ("explain", "TargetError", "class 12 asked; the model has 10")
    elif kind == "no label":
        rows[2]["label"] = ""
        said = ("explain", "TargetError", "the example has none")
    else:
        rows[2]["box"] = {"box outside": "1,1,99,9", "no box": "here"}[kind]
        said = ("prepare", "UsageError", "within the image of 64 x 64" if kind == "box outside" else "cannot read the box 'here'")
    table(folder / "labels.csv", rows)
    return said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Six examples explained with their own labels, nothing wrong."""
    where = tmp_path_factory.mktemp("undisturbed")
    folder = photos(where / "in", count=6)
    return zl.run(folder, model=zoo_load("digits-cnn"), out=where / "out", method="gradient_x_input", target="label", batch_size=6)


SPOILED = ["unreadable", "gone", "cut short", "no class", "class too large", "no label", "box outside", "no box"]


@pytest.mark.parametrize("kind", SPOILED)
def test_one_example_that_fails_is_set_aside_alone(undisturbed, tmp_path, kind):
    folder = photos(tmp_path / "in", count=6)
    stage, error, reason = spoiled(kind, folder, "digits-cnn")
    run = zl.run(folder, model=zoo_load("digits-cnn"), out=tmp_path / "out", method="gradient_x_input", target="label", batch_size=6)
    (failure,) = run.failures.to_pylist()
    assert (failure["id"], failure["number"], failure["stage"], failure["error"]) == ("02.png", 2, stage, error)
    assert reason in failure["reason"]
    assert failure["settings_hash"] == run.manifest.settings_hash
    found, expected = dict(run.records()), dict(undisturbed.records())
    assert sorted(found) == sorted(set(expected) - {"02.png"})
    for id, record in found.items():
        assert_same(record, expected[id], id)
    assert (run.manifest.state, run.manifest.done, run.manifest.failed) == ("complete", 5, 1)


def test_a_first_example_that_fails_does_not_keep_the_rest_from_being_explained(tmp_path):
    folder = noise_photos(tmp_path / "in", 5)
    expected = values_of(small(folder, tmp_path / "before", batch_size=1))
    for spoilt, said in ((("000.png",), ""), (("000.png", "002.png"), ""), (("000.png", "002.png", "004.png"), "cannot read '000.png' as an image")):
        for name in spoilt:
            (folder / name).write_bytes(b"torn")
        if said:
            with pytest.raises(LoadError, match=said):
                small(folder, tmp_path / "refused", batch_size=1)
            continue
        run = small(folder, tmp_path / str(len(spoilt)), batch_size=1)
        assert values_of(run) == {id: found for id, found in expected.items() if id not in spoilt}
        assert [f["id"] for f in run.failures.to_pylist()] == list(spoilt)


def poisonous(x):
    """NaN for a picture whose first pixel is red."""
    bad = (x[:, 0, 0, 0] > 0.9) & (x[:, 1, 0, 0] < 0.1)
    return torch.where(bad[:, None, None, None], torch.full_like(x, torch.nan), x)


def test_an_example_that_makes_the_output_nan_fails_alone(tmp_path):
    folder = noise_photos(tmp_path / "in", 6)
    expected = values_of(small(folder, tmp_path / "before", batch_size=1))
    for name in ("001.png", "004.png"):
        pixels = np.asarray(Image.open(folder / name)).copy()
        pixels[0, 0] = (255, 0, 0)
        Image.fromarray(pixels).save(folder / name)
    for size in (1, 4):
        run = small(folder, tmp_path / str(size), Small(poisonous).eval(), batch_size=size)
        assert [(f["id"], f["stage"], f["error"]) for f in sorted(run.failures.to_pylist(), key=lambda f: f["id"])] == [
            ("001.png", "explain", "NonFiniteError"),
            ("004.png", "explain", "NonFiniteError"),
        ]
        found = values_of(run)
        assert sorted(found) == sorted(set(expected) - {"001.png", "004.png"})
        for id, (values, output, _, target) in found.items():
            np.testing.assert_allclose(np.frombuffer(values, np.float32), np.frombuffer(expected[id][0], np.float32), atol=1e-6)
            assert (output, target) == (pytest.approx(expected[id][1]), expected[id][3])


def full(kind, most):
    """A model that holds no more than ``most`` rows."""

    def before(x):
        if len(x) > most:
            raise kind
        return x

    return before


SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("problem", SHORT, ids=lambda p: type(p).__name__)
def test_a_batch_that_does_not_fit_into_memory_is_made_smaller_for_good(tmp_path, problem):
    folder = noise_photos(tmp_path / "in", 16)
    model, counts = Small(full(problem, 2)).eval(), []
    model.register_forward_pre_hook(lambda _, given: counts.append(len(given[0])))
    run = small(folder, tmp_path / "out", model, batch_size=8)
    assert run.failures.num_rows == 0
    rows = sorted(run.rows(), key=lambda row: row["number"])
    assert [(row["number"], row["batch"]) for row in rows] == [(number, 2) for number in range(16)]
    assert values_of(run) == values_of(small(folder, tmp_path / "whole", batch_size=2))
    above = [at for at, n in enumerate(counts) if n > 2]
    assert counts[above[0]] == 8
    assert len(above) <= 3
    assert sum(n for n in counts[above[-1] :] if n <= 2) >= 8 + 2  # the batches after the first never ask for more


def test_an_example_that_never_fits_fails_and_says_so(tmp_path):
    folder = noise_photos(tmp_path / "in", 5)
    calls = [0]

    def before(x):
        calls[0] += 1
        if calls[0] > 3:  # the survey passes
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return x

    run = small(folder, tmp_path / "out", Small(before).eval(), batch_size=4)
    failures = run.failures.to_pylist()
    assert len(run) + len(failures) == 5
    assert len(failures) >= 3
    assert all(f["reason"].startswith("out of memory with one example in a batch: CUDA out of memory") for f in failures)
    with pytest.raises(InputError, match="no example could be explained with 'Small': OutOfMemoryError"):
        small(folder, tmp_path / "none", Small(full(torch.OutOfMemoryError("CUDA out of memory."), 0)).eval(), batch_size=4)


def test_failures_are_tried_again_when_asked_or_when_their_file_has_changed(tmp_path):
    folder = noise_photos(tmp_path / "in", 4)
    good = (folder / "001.png").read_bytes()
    broken = [True]

    def before(x):
        if broken[0] and bool((x[:, 0, 0, 0] == float(first[0])).any()):
            raise RuntimeError("a bad moment")
        return x

    first = as_is(Image.open(folder / "003.png"))[0, 0, 0]
    (folder / "001.png").write_bytes(b"torn")
    model = Small(before).eval()
    run = small(folder, tmp_path / "out", model, batch_size=2)
    assert sorted(f["id"] for f in run.failures.to_pylist()) == ["001.png", "003.png"]

    passes = model.passes
    run = small(folder, tmp_path / "out", model, batch_size=2)  # known failures are left alone
    assert model.passes == passes
    assert run.failures.num_rows == 2
    assert run.manifest.sessions[-1]["unchanged"] == 4

    (folder / "001.png").write_bytes(good)
    run = small(folder, tmp_path / "out", model, batch_size=2)  # its file has changed
    assert [f["id"] for f in run.failures.to_pylist()] == ["003.png"]
    assert len(run) == 3

    run = small(folder, tmp_path / "out", model, batch_size=2, retry_failed=True)  # it fails again, and is there once
    assert [f["id"] for f in run.failures.to_pylist()] == ["003.png"]
    broken[0] = False
    run = small(folder, tmp_path / "out", model, batch_size=2, retry_failed=True)
    assert (run.failures.num_rows, len(run), run.manifest.failed, run.manifest.done) == (0, 4, 0, 4)
    found, whole = values_of(run), values_of(small(folder, tmp_path / "whole", batch_size=2))
    assert sorted(found) == sorted(whole)
    for id in whole:
        np.testing.assert_allclose(*(np.frombuffer(one[id][0], np.float32) for one in (found, whole)), atol=1e-6)


def test_a_run_stops_after_too_many_failures_and_keeps_what_is_finished(tmp_path):
    folder = noise_photos(tmp_path / "in", 8)
    for number in (2, 3, 5):
        (folder / f"{number:03d}.png").write_bytes(b"torn")
    with pytest.raises(RunError, match="3 examples failed, more than max_failures=2; the reasons are in '.*failures'"):
        small(folder, tmp_path / "out", batch_size=2, max_failures=2)
    run = zl.open_run(tmp_path / "out")
    assert (run.manifest.state, len(run), run.failures.num_rows) == ("failed", 3, 3)
    run = small(folder, tmp_path / "out", batch_size=2, max_failures=0)  # those are known: no failure of this session
    assert (run.manifest.state, len(run), run.failures.num_rows) == ("complete", 5, 3)
    assert small(folder, tmp_path / "three", batch_size=2, max_failures=3).manifest.state == "complete"
    with pytest.raises(RunError, match="1 examples failed, more than max_failures=0"):
        small(folder, tmp_path / "none", batch_size=1, max_failures=0)


# --- going on ----------------------------------------------------------------------------------------------------------------------


class Stop:
    """Ctrl-C after so many batches."""

    def __init__(self, batches):
        self.left = batches

    def __call__(self, far):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def eleven(tmp_path_factory):
    """Eleven small pictures, and a run of them that nothing disturbed."""
    where = tmp_path_factory.mktemp("eleven")
    folder = noise_photos(where / "in", 11)
    return folder, values_of(small(folder, where / "out", batch_size=2))


@pytest.mark.parametrize("batches", [1, 2, 4, 6])
def test_a_run_interrupted_after_some_batches_goes_on(eleven, tmp_path, batches):
    folder, expected = eleven
    with pytest.raises(KeyboardInterrupt):
        small(folder, tmp_path / "out", batch_size=2, progress=Stop(batches))
    run = zl.open_run(tmp_path / "out")
    assert (run.manifest.state, len(run)) == ("interrupted", min(2 * batches, 11))
    model = Small().eval()
    run = small(folder, tmp_path / "out", model, batch_size=2)
    assert values_of(run) == expected
    assert [s["done"] for s in run.manifest.sessions] == [min(2 * batches, 11), max(11 - 2 * batches, 0)]
    assert [s["unchanged"] for s in run.manifest.sessions] == [0, min(2 * batches, 11)]
    assert run.manifest.state == "complete"
    assert (model.passes == 0) == (batches == 6)


def test_a_run_interrupted_again_and_again_gives_every_example_once(eleven, tmp_path):
    folder, expected = eleven
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            small(folder, tmp_path / "out", batch_size=2, progress=Stop(2), limit=None)
        if len(zl.open_run(tmp_path / "out")) == 11:
            break
    assert values_of(small(folder, tmp_path / "out", batch_size=2)) == expected


def test_a_run_in_a_thread_is_that_of_the_main_thread(eleven, tmp_path):
    folder, expected = eleven
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(small, folder, tmp_path / "out", batch_size=2).result(timeout=600)
    assert values_of(run) == expected


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_a_run_after_its_batch_and_leaves_the_handlers(eleven, tmp_path, kind, times):
    folder, expected = eleven
    before = signal.getsignal(kind)
    seen = []

    def twice(far):
        seen.append(far.done)
        for _ in range(times):
            signal.raise_signal(kind)

    with pytest.raises(KeyboardInterrupt):
        small(folder, tmp_path / "out", batch_size=2, progress=twice)
    assert signal.getsignal(kind) is before
    assert seen == [2]
    run = zl.open_run(tmp_path / "out")
    assert (run.manifest.state, len(run)) == ("interrupted", 2)
    assert values_of(small(folder, tmp_path / "out", batch_size=2)) == expected


def test_a_finished_run_explains_nothing_again(eleven, tmp_path):
    folder, expected = eleven
    model = Small().eval()
    small(folder, tmp_path / "out", model, batch_size=3)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.parquet")}
    passes = model.passes
    run = small(folder, tmp_path / "out", model)
    assert model.passes == passes > 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.parquet")} == files
    assert [(s["done"], s["unchanged"]) for s in run.manifest.sessions] == [(11, 0), (0, 11)]
    assert sorted(values_of(run)) == sorted(expected)


def test_images_that_are_added_are_explained_too(eleven, tmp_path):
    whole, expected = eleven
    folder = noise_photos(tmp_path / "in", 8)
    small(folder, tmp_path / "out", batch_size=2)
    for file in sorted(whole.iterdir())[8:]:
        (folder / file.name).write_bytes(file.read_bytes())
    run = small(folder, tmp_path / "out", batch_size=2)
    assert run.manifest.sessions[-1]["done"] == 3
    found = values_of(run)
    assert sorted(found) == sorted(expected)
    assert {id: found[id] for id in list(found)[:8]} == {id: expected[id] for id in list(found)[:8]}


def test_a_run_says_how_many_examples_its_source_has_now(tmp_path):
    folder = noise_photos(tmp_path / "in", 3)
    small(folder, tmp_path / "out", batch_size=2)
    for file in noise_photos(tmp_path / "more", 2, seed=5).iterdir():
        file.rename(folder / f"more{file.name}")
    run = small(folder, tmp_path / "out", batch_size=2)
    assert len(run) == 5
    assert run.to_dict()["source"]["examples"] == 5


def test_an_image_that_has_changed_is_explained_again_and_its_old_row_is_gone(eleven, tmp_path):
    _, expected = eleven
    folder = noise_photos(tmp_path / "in", 11)
    small(folder, tmp_path / "out", batch_size=2)
    Image.new("RGB", (12, 10), (200, 30, 90)).save(folder / "004.png")
    run = small(folder, tmp_path / "out", batch_size=2)
    found = values_of(run)
    assert {id for id in found if found[id] != expected[id]} == {"004.png"}
    assert run.manifest.sessions[-1]["done"] == 1
    direct = zl.gradient_x_input(Small().eval(), as_is(Image.open(folder / "004.png")), target=zl.top(), baseline=zl.baseline.zeros())
    np.testing.assert_allclose(run.record("004.png").values, direct.values, atol=1e-6)
    hashes = [row["content_hash"] for row in run.rows()]
    assert len(hashes) == len(set(hashes)) == 11


def test_a_text_or_label_that_has_changed_is_explained_again(tmp_path):
    folder = photos(tmp_path / "in")
    asked = {"model": zoo_load("digits-cnn"), "out": tmp_path / "out", "method": "gradient_x_input", "target": "label", "batch_size": 2}
    zl.run(folder, **asked)
    rows = listed(folder)
    rows[1]["label"] = "nine" if rows[1]["label"] != "nine" else "one"
    table(folder / "labels.csv", rows)
    run = zl.run(folder, **asked)
    assert run.manifest.sessions[-1]["done"] == 1
    assert {row["id"]: row["target"] for row in run.rows()}["01.png"] == f"logit of {rows[1]['label']}"
    assert len(run) == COUNT


def test_a_row_of_contents_that_are_gone_does_not_stay_beside_the_failure(tmp_path):
    folder = noise_photos(tmp_path / "in", 4)
    small(folder, tmp_path / "out", batch_size=2)
    (folder / "002.png").write_bytes(b"torn since")
    far = []
    run = small(folder, tmp_path / "out", batch_size=2, progress=far.append)
    assert [f["id"] for f in run.failures.to_pylist()] == ["002.png"]
    assert sorted(row["id"] for row in run.rows()) == ["000.png", "001.png", "003.png"]
    assert far[-1].done + far[-1].failed == 4


DIFFERENT = {
    "method": ({"method": "taylor"}, "method: 'gradient_x_input' there, 'taylor' asked"),
    "target": ({"target": "3"}, "target: 'top' there, '3' asked"),
    "baseline": ({"baseline": "mean"}, "baseline: 'zeros' there, 'mean' asked"),
    "keep": ({"keep": "map"}, "keep: 'values' there, 'map' asked"),
    "dtype": ({"dtype": "float64"}, "dtype: 'float32' there, 'float64' asked"),
    "site": ({"site": "input"}, "site: None there, 'input' asked"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_folder_with_other_settings_is_refused_and_not_touched(eleven, tmp_path, what):
    folder, expected = eleven
    run = small(folder, tmp_path / "out", batch_size=4)
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file() and not file.name.startswith(".")}
    other, said = DIFFERENT[what]
    with pytest.raises(UsageError) as told:
        small(folder, tmp_path / "out", batch_size=4, **other)
    assert said in str(told.value)
    assert "give another folder" in str(told.value)
    assert {file: file.read_bytes() for file in before} == before
    assert len(values_of(run)) == len(expected)


def test_a_folder_of_another_model_is_refused_and_not_touched(eleven, tmp_path):
    folder, _ = eleven
    small(folder, tmp_path / "out", batch_size=4)
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file() and not file.name.startswith(".")}
    other = Small().eval()
    with torch.no_grad():
        other.weight[0, 0] += 1e-3
    with pytest.raises(UsageError, match=r"holds a run of the model .*Small@[0-9a-f]{16}; asked is .*Small@[0-9a-f]{16}"):
        small(folder, tmp_path / "out", other, batch_size=4)
    assert {file: file.read_bytes() for file in before} == before


# --- interrupted from outside --------------------------------------------------------------------------------------------------------

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def test_ctrl_c_finishes_the_batch_writes_it_and_ends_with_130(tmp_path):
    folder = photos(tmp_path / "in", count=24)
    asked = ["--model", "zoo:digits-cnn", "--batch-size", "2", "--option", "n_steps=64", "--option", "path=gausslegendre"]
    command = [sys.executable, "-m", "zeroline.cli", "run", str(folder), "--out", str(tmp_path / "out"), *asked]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
    assert first.startswith("2 of 24 done, 0 failed, "), first + err
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    run = zl.open_run(tmp_path / "out")
    assert run.manifest.state == "interrupted"
    assert 2 <= len(run) < 24
    assert len(run) % 2 == 0
    given = {"model": "zoo:digits-cnn", "batch_size": 2, "options": {"n_steps": 64, "path": "gausslegendre"}, "limit": 4}
    resumed, whole = (zl.run(folder, out=tmp_path / name, **given) for name in ("out", "whole"))
    mine, theirs = values_of(resumed), values_of(whole)
    assert {id: mine[id] for id in theirs} == theirs


KILLED = """
    import os, pathlib, random, signal, sys, time
    sys.path[:0] = [sys.argv[1], str(pathlib.Path(sys.argv[1], "tests"))]
    import importlib, torch
    torch.set_num_threads(1)
    small = importlib.import_module(sys.argv[5]).small
    folder, out = sys.argv[2:4]
    draw = random.Random(int(sys.argv[4]))
    for kill in range(5):
        begun = len(list(pathlib.Path(out).glob("records/part-*.parquet")))
        child = os.fork()
        if not child:
            try:
                small(folder, out, batch_size=2, flush_seconds=0.0)
            finally:
                os._exit(0)
        wanted = begun + draw.randint(0, 4)
        limit = time.monotonic() + 90
        while len(list(pathlib.Path(out).glob("records/part-*.parquet"))) < wanted and time.monotonic() < limit:
            time.sleep(0.0005)
        time.sleep(draw.random() * 0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(len(list(pathlib.Path(out).glob("records/part-*.parquet"))))
"""


def test_a_run_killed_at_random_moments_loses_and_doubles_nothing(tmp_path):
    folder = noise_photos(tmp_path / "in", 60)
    root = str(Path(__file__).parents[2])
    arguments = [sys.executable, "-c", textwrap.dedent(KILLED), root, str(folder), str(tmp_path / "out"), "11", __name__]
    told = subprocess.run(arguments, capture_output=True, text=True, timeout=600, env=ENVIRONMENT, check=False)
    assert told.returncode == 0, told.stderr
    shards = [int(line) for line in told.stdout.split()]
    assert len(shards) == 5
    assert 0 < shards[-1] < 30  # some were written, none was the last
    left = zl.open_run(tmp_path / "out")
    assert left.manifest.state == "running"
    expected = values_of(small(folder, tmp_path / "whole", batch_size=2))
    begun = values_of(left)
    assert begun.items() <= expected.items()
    assert 0 < len(begun) < 60
    run = small(folder, tmp_path / "out", batch_size=2)
    assert values_of(run) == expected
    assert run.manifest.sessions[-1]["done"] == 60 - len(begun)
    assert not list((tmp_path / "out").rglob("*.partial"))


# --- the model, and what a run says of itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["integrated_gradients", "attention_relevance", "mechanism"])
def test_a_model_that_was_given_is_left_as_it_was(sources, tmp_path, method):
    model = zoo.load.__wrapped__("digits-vit")
    model.vit.embeddings.requires_grad_(False)
    model.register_forward_hook(lambda *_: None)

    def state():
        return (
            {name: tensor.clone() for name, tensor in model.state_dict().items()},
            {
                name: (module.training, len(module._forward_hooks), len(module._forward_pre_hooks), type(module))
                for name, module in model.named_modules()
            },
            {name: (p.requires_grad, p.grad, p.data_ptr()) for name, p in model.named_parameters()},
            {name: (module.forward.__func__, len(module._backward_hooks)) for name, module in model.named_modules()},
        )

    before = state()
    zl.run(sources["digits-vit"][0], model=model, out=tmp_path / "out", method=method, options=FIXED if method == "integrated_gradients" else None)
    weights, *rest = state()
    assert rest == list(before[1:])
    assert all(torch.equal(weights[name], before[0][name]) for name in before[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four with one failure."""
    where = tmp_path_factory.mktemp("finished")
    folder = photos(where / "in", count=5)
    (folder / "03.png").write_bytes(b"torn")
    return zl.run(folder, model=zoo_load("digits-cnn"), out=where / "out", method="gradient_x_input", site="input", batch_size=2), where


def test_rows_can_be_asked_for_by_column(finished):
    run, _ = finished
    rows = list(run.rows(["label", "id"]))
    assert rows == [{"label": DIGITS[zoo.samples("digits-vit")[n].labels[0]], "id": f"{n:02d}.png"} for n in (0, 1, 2, 4)]
    with pytest.raises(NotFoundError, match="no column 'lable'; nearest: label"):
        next(run.rows(["lable"]))


def test_a_record_is_found_by_its_id(finished):
    run, _ = finished
    one = run.record("02.png")
    direct = zl.gradient_x_input(zoo_load("digits-cnn"), zoo.samples("digits-cnn")[2].inputs, target=zl.top(), baseline=BLACK())
    np.testing.assert_allclose(one.values, direct.values, atol=1e-6 * float(direct.values.abs().max()))
    with pytest.raises(NotFoundError, match=r"no example '03.png' among the 4 finished in '.*out'"):
        run.record("03.png")


def test_a_run_says_what_was_asked_and_how_far_it_is(finished):
    run, where = finished
    told = json.loads(json.dumps(run.to_dict()))
    assert (len(run), told["state"], told["done"], told["failed"]) == (4, "complete", 4, 1)
    assert (told["folder"], told["source"]["path"]) == (str(where / "out"), str(where / "in" / "labels.csv"))
    assert told["source"]["examples"] == 5
    assert told["settings"]["method"] == "gradient_x_input"
    assert (told["settings"]["target"], told["settings"]["baseline"], told["settings"]["site"]) == ("top", "black", "input")
    assert (told["batch"], told["sessions"]) == (2, 1)
    assert told["last_session"]["done"] == 4
    assert told["model_id"] == run.record("00.png").model_id
    said = repr(run).splitlines()
    for label, value in (
        ("run", f"{where / 'out'} (complete)"),
        ("method", "gradient_x_input"),
        ("finished", "4 examples, 1 failed"),
        ("site", "input"),
    ):
        assert any(line.split(maxsplit=1) == [label, value] for line in said), label
    html = run._repr_html_()
    assert "4 examples, 1 failed" in html
    assert str(where / "out") in html


def test_other_tools_read_the_shards(finished):
    run, where = finished
    (file,) = (where / "out" / "records").glob("*.parquet")
    read = pq.read_table(file)
    assert read["id"].to_pylist() == ["00.png", "01.png", "02.png", "04.png"]
    np.testing.assert_array_equal(np.ravel(read["values"].to_pylist()[1]).astype(np.float32), run.record("01.png").values.numpy().ravel())
    told = json.loads(read.schema.metadata[b"zeroline"])
    assert (told["settings_hash"], told["model"]) == (run.manifest.settings_hash, run.manifest.model_id)


def test_opening_what_is_no_run_says_so(tmp_path):
    with pytest.raises(NotFoundError, match=r"no folder '.*gone'; a run is a folder that `zeroline run` wrote"):
        zl.open_run(tmp_path / "gone")
    with pytest.raises(LoadError, match=r"holds no run: there is no manifest\.json"):
        zl.open_run(tmp_path)
    for text, said in (
        ("{", "is no manifest of a run"),
        ('{"schema": 99}', "has schema 99; this version reads 1"),
        ('{"schema": 1}', "damaged manifest"),
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(LoadError, match=said):
            zl.open_run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFoundError):
        zl.open_run(tmp_path / "file")


def test_nothing_of_a_run_is_loaded_until_it_is_asked_for():
    code = """
        import sys
        import zeroline as zl
        assert {"run", "open_run", "summarize", "Run", "Summary"} <= set(zl.__all__)
        assert not {"pyarrow", "filelock", "PIL", "transformers", "ray", "datasets"} & set(sys.modules), "eager"
        zl.Summary
        assert "pyarrow" not in sys.modules
        run = zl.run
        assert "pyarrow" in sys.modules and callable(run) and not {"ray", "datasets", "matplotlib"} & set(sys.modules)
    """
    told = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600, env=ENVIRONMENT, check=False)
    assert told.returncode == 0, told.stderr


BAD = [
    ({"method": "integrated_gradient"}, NotFoundError, "no method 'integrated_gradient'; nearest: integrated_gradients"),
    ({"method": "attention_transfer"}, NotFoundError, "attention_transfer gives no record per example"),
    ({"engine": "spark"}, NotFoundError, "no engine 'spark'; possible: local, ray"),
    ({"workers": 2}, UsageError, "workers=2 means nothing to the local engine"),
    ({"gpus_per_worker": 1.0}, UsageError, "gpus_per_worker=1.0 means nothing to the local engine"),
    ({"address": "auto"}, UsageError, "address=auto means nothing to the local engine"),
    ({"batch_size": 0}, UsageError, "batch_size=0 was asked; 1 or more"),
    ({"limit": 0}, UsageError, "limit=0 was asked; 1 or more"),
    ({"max_failures": -1}, UsageError, "max_failures=-1 was asked; 0 or more"),
    ({"keep": "all"}, NotFoundError, "no keep= 'all'; possible: values, map, figures"),
    ({"dtype": "float16"}, NotFoundError, "no dtype= 'float16'; nearest: bfloat16"),
    ({"options": {"tolerence": 1}}, NotFoundError, "no option of gradient_x_input 'tolerence'"),
    ({"options": {"site": "x"}}, NotFoundError, "no option of gradient_x_input 'site'"),
    ({"method": "attention_relevance", "site": "x", "baseline": None}, UsageError, "a site ('x') means nothing to attention_relevance"),
    ({"method": "ground", "baseline": "black"}, UsageError, "a baseline means nothing to ground"),
    ({"grid": (8, 8)}, UsageError, "a grid means nothing to gradient_x_input"),
    ({"method": "logic", "prefix": 1}, UsageError, "a prefix means nothing to logic"),
    ({"method": "logic", "options": {"players": "letters"}}, NotFoundError, "no players 'letters'"),
    ({"method": "logic", "options": {"rule": 1}}, NotFoundError, "no option of logic 'rule'"),
    ({"columns": {"picture": "image"}}, NotFoundError, "no role of a column 'picture'"),
    ({"columns": {"image": "image"}}, UsageError, "is a folder of images without labels.csv"),
    ({"split": "train"}, UsageError, "a split ('train') belongs to a saved Hugging Face dataset"),
    ({"target": "label"}, TargetError, "the target is the label, and the example has none"),
    ({"target": "elephant"}, NotFoundError, "no class 'elephant'"),
    ({"site": "nowhere"}, NotFoundError, "nowhere"),
    ({"baseline": "purple"}, UsageError, "purple"),
]


@pytest.mark.parametrize(("asked", "error", "said"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_asked_is_refused_before_anything_is_written(eleven, tmp_path, asked, error, said):
    folder, _ = eleven
    with pytest.raises(error) as told:
        small(folder, tmp_path / "out", **asked)
    assert said in str(told.value)
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_only_one_writes_to_a_folder(eleven, tmp_path):
    folder, expected = eleven
    told = []

    def second(far):
        with pytest.raises(UsageError) as refused:
            small(folder, tmp_path / "out", batch_size=2)
        told.append(str(refused.value))

    run = small(folder, tmp_path / "out", batch_size=2, progress=second)
    assert len(told) == 6
    assert all(f"another run writes to {str(tmp_path / 'out')!r} (process {os.getpid()} on " in one for one in told)
    assert values_of(run) == expected


def test_what_is_finished_is_on_the_disk_after_the_seconds_asked(eleven, tmp_path):
    folder, _ = eleven
    seen = {}
    for seconds in (0.0, 1e6):
        counts = []

        def look(far, out=tmp_path / str(seconds), counts=counts):
            time.sleep(0.03)  # the thread that writes
            counts.append(len(list((out / "records").glob("part-*.parquet"))))

        small(folder, tmp_path / str(seconds), batch_size=2, flush_seconds=seconds, progress=look)
        seen[seconds] = counts
    assert seen[0.0][-1] >= 4
    assert seen[1e6] == [0] * 6


def test_a_source_in_memory_of_a_parquet_file_is_explained_too(tmp_path, eleven):
    import pyarrow as pa

    folder, expected = eleven
    files = sorted(folder.glob("*.png"))
    raw = [file.read_bytes() for file in files]
    pq.write_table(pa.table({"id": [file.name for file in files], "image": pa.array(raw, pa.binary())}), tmp_path / "pictures.parquet")
    assert io.BytesIO(raw[0]).read(4) == b"\x89PNG"
    assert values_of(small(tmp_path / "pictures.parquet", tmp_path / "out", batch_size=2)) == expected
