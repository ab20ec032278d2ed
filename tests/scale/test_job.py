"""What a run asks, and the hash that tells two questions apart: whatever changes values changes it, and nothing else does; what cannot be asked is said."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from torch import nn

import zeroline as zl
from zeroline.baseline import Baseline
from zeroline.errors import NotFoundError, UsageError
from zeroline.scale.job import Job, differences, read_options, settings_hash

BASE = Job("zoo:digits-vit", "grad_cam", "top", "vit.encoder.layer.0", "zeros", {}, (8, 8), 1, "values", "cpu", "float32")


def hashed(job):
    settings = job.settings()
    assert json.loads(json.dumps(settings)) == settings  # as the manifest keeps it
    return settings_hash(settings)


def of(baseline):
    return Job("zoo:digits-vit", baseline=baseline)


def apart(*jobs):
    """Have all of them another hash?"""
    return len({hashed(job) for job in jobs}) == len(jobs)


# --- the hash --------------------------------------------------------------------------------------------------------------------

MATTERS = {
    "method": {"method": "layer_cam"},
    "target": {"target": "label"},
    "target in Python": {"target": zl.target.logit(3)},
    "another target in Python": {"target": zl.target.logit(4)},
    "probability": {"target": zl.target.probability(3)},
    "site": {"site": "vit.encoder.layer.1"},
    "no site": {"site": None},
    "baseline": {"baseline": "black"},
    "baseline in Python": {"baseline": zl.baseline.zeros()},
    "grid": {"grid": (4, 16)},
    "no grid": {"grid": None},
    "prefix": {"prefix": 0},
    "no prefix": {"prefix": None},
    "map": {"keep": "map"},
    "figures": {"keep": "figures"},
    "float64": {"dtype": "float64"},
    "bfloat16": {"dtype": "bfloat16"},
}


def test_the_hash_changes_with_every_field_that_matters():
    assert apart(BASE, *(replace(BASE, **other) for other in MATTERS.values()))


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"device": "auto"}, {"trust_remote_code": True}, {"model": "hf:other/model"}])
def test_the_hash_does_not_change_with_where_it_runs(other):
    """The model is told apart by its weights."""
    assert hashed(replace(BASE, **other)) == hashed(BASE)


def test_the_hash_changes_with_the_preprocessing_that_was_given():
    """Other inputs, other values: the weights do not tell them apart."""
    assert apart(*(Job(nn.Identity(), preprocess=made) for made in (None, torch.sin, torch.cos)))


def test_the_hash_is_that_of_the_settings_as_json():
    settings = BASE.settings()
    assert settings == {
        **{"schema": 1, "method": "grad_cam", "target": "top", "site": "vit.encoder.layer.0", "baseline": "zeros", "options": {}, "grid": [8, 8]},
        **{"prefix": 1, "keep": "values", "dtype": "float32"},
    }
    text = json.dumps(settings, sort_keys=True)
    assert settings_hash(settings) == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert settings_hash(dict(reversed(settings.items()))) == settings_hash(settings)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (
            "integrated_gradients",
            [{}, {"tolerance": 0.05}, {"tolerance": 0.1}, {"path": "midpoint"}, {"path": "midpoint", "n_steps": 7}, {"n_steps": 7}],
        ),
        ("logic", [{}, {"players": "words"}, {"regions": "3x3"}, {"seed": 1}, {"max_evaluations": 100}]),
        ("ground", [{}, {"calls": [0, 1]}, {"calls": [0, 2]}, {"calls": [0]}, {"correction": "signed"}, {"rows": ("pixel_values", [1])}]),
        ("mechanism", [{}, {"heads": False}, {"heads": True}]),
    ],
)
def test_options_are_part_of_the_question_in_any_order(method, options):
    assert apart(*(Job("zoo:digits-vit", method, options=given) for given in options))
    for given in options:
        assert hashed(Job("m", method, options=given)) == hashed(Job("m", method, options=dict(reversed(given.items()))))


def test_the_default_baseline_is_the_one_that_is_written_out():
    assert hashed(of(None)) == hashed(of("black")) == hashed(of(" black "))
    assert Job("m", "mechanism").measured_from == Job("m", "logic").measured_from == "zeros"
    assert Job("m").measured_from == Job("m", "taylor").measured_from == "black"
    assert Job("m", "ground").measured_from is Job("m", "rollout").measured_from is None
    assert Job("m", "ground").settings()["baseline"] is None


def tensors(*values):
    return [torch.tensor(value) for value in values]


BASELINES = {  # of each kind all are apart
    "tensors": lambda: [zl.baseline.tensor(one) for one in tensors([1.0, 2.0], [1.0, 2.5], [[1.0, 2.0]], [1.0, 2.0, 0.0], [1.0, -2.0])],
    "named tensors": lambda: [zl.baseline.tensor(torch.ones(2), name=name) for name in ("a", "b")],
    "tensors at the input": lambda: [zl.baseline.tensor(torch.ones(2), at=at) for at in ("site", "input")],
    "blurs": lambda: [zl.baseline.blur(sigma) for sigma in (2, 3, 2.0000001)],
    "constants": lambda: [zl.baseline.constant(value) for value in (0.5, 0.25, 0.5000000001)],
    "simple ones": lambda: [zl.baseline.zeros(), zl.baseline.black(), zl.baseline.mean(), zl.baseline.mean(at="site"), zl.baseline.zeros(at="input")],
    "black in a normalisation": lambda: [zl.baseline.black(), *(zl.baseline.black(mean, std) for mean, std in (((0,), (1,)), ((0,), (2,)), ((1,), (1,))))],
    "noise": lambda: [zl.baseline.noise(*given) for given in ((0,), (1,), (0, 0.25), (0, 0.0, 0.5), (0, 0.0, 0.5000001))],
    "other inputs": lambda: [zl.baseline.of(one) for one in ({"x": torch.ones(1)}, {"y": torch.ones(1)}, {"x": torch.zeros(1)}, torch.ones(1), (torch.ones(1), torch.ones(1)))],
    "means": lambda: [zl.baseline.mean_of(one) for one in ([torch.ones(1, 2)], [torch.ones(1, 2), torch.ones(1, 2)], [torch.zeros(1, 2)])],
    "means at the input": lambda: [zl.baseline.mean_of([torch.ones(1, 2)], at=at) for at in ("site", "input")],
    "tokens": lambda: [zl.baseline.token(*given[0], **given[1]) for given in (((3,), {}), ((4,), {}), ((3,), {"keep": [1]}), ((3,), {"keep": [1, 2]}))],
    "neutral ones": lambda: [
        zl.baseline.neutral(start, **how)
        for start, how in ((zl.baseline.black(), {}), (zl.baseline.zeros(), {}), (zl.baseline.blur(2.0000001), {}), (zl.baseline.blur(2), {}), (zl.baseline.black(), {"kl": 0.02}), (zl.baseline.black(), {"max_steps": 7}))
    ],
    "distributions": lambda: [
        zl.baseline.distribution(zl.baseline.noise, draws=2),
        zl.baseline.distribution(zl.baseline.noise, draws=3),
        zl.baseline.distribution(zl.baseline.noise, draws=2, seed=1),
        zl.baseline.distribution([zl.baseline.zeros(), zl.baseline.black()]),
        zl.baseline.distribution([zl.baseline.tensor(torch.ones(1)), zl.baseline.tensor(torch.zeros(1))]),
        zl.baseline.distribution([zl.baseline.tensor(torch.zeros(1)), zl.baseline.tensor(torch.ones(1))]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", BASELINES)
def test_baselines_of_other_contents_have_other_hashes(kind):
    assert apart(*map(of, BASELINES[kind]()))
    assert [hashed(of(one)) for one in BASELINES[kind]()] == [hashed(of(one)) for one in BASELINES[kind]()]  # made again, the same


def filled(features, _, value):
    return torch.full_like(features, value)


class Filling:
    def __init__(self, value):
        self.value = value

    def __call__(self, features, _):
        return torch.full_like(features, self.value)


def test_baselines_by_a_function_with_what_it_was_given_have_other_hashes():
    assert apart(*(of(Baseline("mine", "site", partial(filled, value=value))) for value in (1, 2)))


def test_baselines_by_an_object_have_other_hashes():
    assert apart(*(of(Baseline("mine", "site", Filling(value))) for value in (1, 2)))


def test_a_tensor_is_described_by_its_numbers_however_it_lies():
    square = torch.arange(6.0).view(2, 3)
    for one in (square, square.T.contiguous().T, torch.stack([square, -square], -1)[..., 0], nn.Parameter(square.clone())):
        assert hashed(of(zl.baseline.tensor(one))) == hashed(of(zl.baseline.tensor(square)))
    for one in (torch.tensor(3.0), torch.ones(0, 2), torch.ones(1, dtype=torch.bfloat16), torch.tensor([True]), torch.arange(10.0)[5:][:1].expand(3)):
        assert re.fullmatch("[0-9a-f]{16}", hashed(of(zl.baseline.tensor(one))))


def test_one_number_of_a_strided_tensor_is_described():
    one = torch.arange(10.0).view(2, 5)[:, 2:3][1:]
    assert one.stride(-1) == 1 or one.numel() == 1
    column = torch.arange(10.0)[::5][:1]
    assert hashed(of(zl.baseline.of({"x": column}))) == hashed(of(zl.baseline.of({"x": torch.zeros(1)})))


TARGETS = {
    "classes": lambda: [zl.target.logit(one) for one in (3, 4, "three", [3, 4], torch.tensor([3, 5]))],
    "scales": lambda: [make(3) for make in (zl.target.logit, zl.target.probability, zl.target.log_probability)],
    "contrasts": lambda: [zl.contrast(3, 4), zl.contrast(4, 3), zl.contrast(3, 5), zl.target.mix({3: 1.0, 4: -0.5}), zl.target.mix({3: 1.0, 4: 0.5})],
    "tokens": lambda: [
        zl.target.token(3),
        zl.target.token(4),
        zl.target.token(3, 2),
        zl.target.top_token(),
        zl.target.sequence([3, 4], 1),
        zl.target.sequence([3, 4], 2),
    ],
    "functions": lambda: [zl.target.output(torch.sum), zl.target.output(torch.mean), zl.target.output(torch.sum, "mine")],
}


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_of_other_contents_have_other_hashes(kind):
    assert apart(*(Job("m", target=one) for one in TARGETS[kind]()))
    assert [hashed(Job("m", target=one)) for one in TARGETS[kind]()] == [hashed(Job("m", target=one)) for one in TARGETS[kind]()]


def test_targets_that_hold_other_numbers_have_other_hashes():
    def number(i):
        return zl.target.output(lambda output: output[:, i])

    assert apart(Job("m", target=number(1)), Job("m", target=number(2)))


@pytest.mark.parametrize("method", ["logic", "mechanism"])
def test_a_baseline_of_files_is_refused_where_it_means_nothing(method):
    with pytest.raises(UsageError, match=f"for {method} it is one that needs no folder"):
        Job("m", method, baseline="mean_of(pictures)")


# --- baselines of files ----------------------------------------------------------------------------------------------------------


def painted(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, colour in files.items():
        Image.new("RGB", (2, 2), colour).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("text", ["mean_of({})", "distribution({})", "distribution({}, 2)", " mean_of( {} ) "])
def test_a_baseline_of_a_folder_is_told_by_its_files(tmp_path, text):
    folder = painted(tmp_path / "set", a="red", b="green")
    spelt = text.format(folder)
    first = hashed(of(spelt))
    assert hashed(of(spelt)) == first
    (folder / "notes.txt").write_text("no image")
    assert hashed(of(spelt)) == first
    painted(folder, b="blue")
    second = hashed(of(spelt))
    painted(folder, c="red")
    third = hashed(of(spelt))
    (folder / "a.png").unlink()
    assert len({first, second, third, hashed(of(spelt))}) == 4
    (folder / "c.png").unlink()
    painted(folder, a="red", b="green")
    assert hashed(of(spelt)) == first


def test_other_words_for_a_folder_are_another_baseline(tmp_path):
    folder = painted(tmp_path / "set", a="red", b="green")
    assert apart(*(of(text.format(folder)) for text in ("mean_of({})", "distribution({})", "distribution({}, 2)", "distribution({}, 1)")))


def test_a_baseline_of_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(NotFoundError, match="no folder"):
        of(f"mean_of({tmp_path}/none)").settings()
    with pytest.raises(UsageError, match="holds no image"):
        of(f"mean_of({tmp_path})").settings()


def test_noise_in_words_reads_no_folder():
    assert of("distribution(noise, 8)").settings()["baseline"] == "distribution(noise, 8)"
    assert apart(of("distribution(noise, 8)"), of("distribution(noise, 4)"), of("noise(0)"), of("noise(1)"))


ELSEWHERE = """
import sys, torch, zeroline as zl
from zeroline.scale.job import Job, settings_hash
jobs = [
    Job("m", options={"tolerance": 0.5, "closure": None}, baseline=zl.baseline.tensor(torch.arange(3.0))),
    Job("m", baseline=zl.baseline.token(3, keep={5, 1})),
    Job("m", "ground", options={"calls": {f"layer.{n}" for n in range(20)}}),
]
print(*(settings_hash(job.settings()) for job in jobs))
"""


@pytest.fixture(scope="module")
def elsewhere():
    """Hashes by a process whose sets lie in another order."""
    environment = {**os.environ, "PYTHONHASHSEED": "7" if hash("a") % 2 else "8"}
    return subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, check=True, env=environment).stdout.split()


def test_the_hash_is_that_of_another_process(elsewhere):
    first = Job("m", options={"closure": None, "tolerance": 0.5}, baseline=zl.baseline.tensor(torch.arange(3.0)))
    assert [hashed(first), hashed(of(zl.baseline.token(3, keep=[1, 5])))] == elsewhere[:2]


def test_a_set_among_the_options_has_the_hash_of_another_process(elsewhere):
    sets = [Job("m", "ground", options={"calls": {f"layer.{n}" for n in order}}) for order in (range(20), range(19, -1, -1))]
    assert [hashed(job) for job in sets] == [elsewhere[2]] * 2


def test_differences_say_what_is_there_and_what_was_asked():
    there, asked = {"a": 1, "b": [1, 2], "c": None}, {"a": 1, "b": [1, 3], "d": "x"}
    assert differences(there, asked) == ["b: [1, 2] there, [1, 3] asked", "d: None there, 'x' asked"]
    assert differences(asked, there, ("here", "yonder")) == ["b: [1, 3] here, [1, 2] yonder", "d: 'x' here, None yonder"]
    assert differences(there, dict(reversed(there.items()))) == []


# --- options as text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {}),
        (["tolerance=0.05", "n_steps=7", "path=midpoint"], {"tolerance": 0.05, "n_steps": 7, "path": "midpoint"}),
        (["max-evaluations=1e3"], {"max_evaluations": 1000.0}),
        (
            ["heads=False", "closure=None", "calls=[0, 2]", "rows=('words', [1])"],
            {"heads": False, "closure": None, "calls": [0, 2], "rows": ("words", [1])},
        ),
        (["a==b", "b=c=d", "c=a, b"], {"a": "=b", "b": "c=d", "c": "a, b"}),
        ([" a = 1 ", "b='1'", "c=true", "d=2x2"], {"a": 1, "b": "1", "c": "true", "d": "2x2"}),
        (["a=__import__('os')"], {"a": "__import__('os')"}),
    ],
)
def test_options_are_literals_else_text(given, expected):
    found = read_options(given)
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in expected.items()}


@pytest.mark.parametrize("wrong", ["tolerance", "tolerance=", "tolerance= ", "=0.05", "2x=1", "a b=1", "", "a.b=1"])
def test_what_is_no_option_says_how_one_is_written(wrong):
    with pytest.raises(UsageError, match=re.escape(f"cannot read --option {wrong!r}; write NAME=VALUE, e.g. tolerance=0.05")):
        read_options(["n_steps=7", wrong])


def test_an_option_is_given_once():
    with pytest.raises(UsageError, match="--option n_steps was given twice"):
        read_options(["n-steps=7", "n_steps=8"])


# --- what cannot be asked --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"method": "integrated_gradient"}, NotFoundError, "no method 'integrated_gradient'; nearest: integrated_gradients"),
        ({"method": "attention_transfer"}, NotFoundError, "no method 'attention_transfer'; .*attention_transfer gives no record per example"),
        ({"method": "guide"}, NotFoundError, "no method 'guide'"),
        ({"options": {"tolerence": 1}}, NotFoundError, "'tolerence'; nearest: tolerance"),
        ({"options": {"progress": 1}}, NotFoundError, "'progress'"),
        ({"options": {"site": "x"}}, NotFoundError, "'site'"),
        ({"options": {"baseline": "x"}}, NotFoundError, "'baseline'"),
        ({"method": "rollout", "options": {"correction": "signed"}}, NotFoundError, "'correction'"),
        ({"method": "grad_cam", "options": {"grid": (2, 2)}}, NotFoundError, "'grid'"),
        ({"method": "logic", "options": {"player": "words"}}, NotFoundError, "no option of logic 'player'; nearest: players"),
        ({"method": "ground", "options": {"target": "x"}}, NotFoundError, "no option of ground 'target'; possible: rows, columns"),
        ({"method": "mechanism", "options": {"suffix": 1}}, NotFoundError, "no option of mechanism 'suffix'"),
        ({"method": "logic", "options": {"players": "word"}}, NotFoundError, "no players 'word'; nearest: words"),
        ({"keep": "maps"}, NotFoundError, "no keep= 'maps'; nearest: map"),
        ({"dtype": "float16"}, NotFoundError, "no dtype= 'float16'; nearest: bfloat16"),
        (
            {"method": "attention_relevance", "site": "input"},
            UsageError,
            r"a site \('input'\) means nothing to attention_relevance; it belongs to .*grad_cam",
        ),
        ({"method": "ground", "site": "input"}, UsageError, r"a site \('input'\) means nothing to ground"),
        ({"method": "logic", "site": "input"}, UsageError, r"a site \('input'\) means nothing to logic"),
        (
            {"method": "rollout", "baseline": "zeros"},
            UsageError,
            "a baseline means nothing to rollout; it belongs to .*integrated_gradients, .*logic, mechanism",
        ),
        ({"method": "ground", "baseline": "zeros"}, UsageError, "a baseline means nothing to ground"),
        ({"method": "ground", "grid": (2, 2)}, UsageError, "a grid means nothing to ground"),
        ({"method": "logic", "prefix": 1}, UsageError, "a prefix means nothing to logic"),
        ({"method": "mechanism", "grid": (2, 2)}, UsageError, "a grid means nothing to mechanism"),
        ({"method": "integrated_gradients", "grid": (2, 2)}, UsageError, "a grid means nothing to integrated_gradients"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_loaded(given, kind, said):
    with pytest.raises(kind, match=said):
        Job("no such model", **given)


@pytest.mark.parametrize(
    "given",
    [
        {"method": "grad_cam", "site": "x", "baseline": "zeros", "grid": (2, 2), "prefix": 0},
        {"method": "attention_relevance", "grid": (2, 2), "prefix": 0, "options": {"correction": "signed"}},
        {"method": "rollout", "grid": (2, 2)},
        {"method": "logic", "baseline": "zeros", "options": {"players": "sources", "threshold": "answer"}},
        {"method": "mechanism", "baseline": "blur(2)", "options": {"heads": False}},
        {"method": "ground", "options": {"rows": "words", "head_fusion": "max"}},
        {"keep": "figures", "dtype": "bfloat16", "options": {"tolerance": 0.5}},
    ],
)
def test_what_can_be_asked_is_a_job(given):
    settings = Job("no such model", **given).settings()
    assert {name: settings[name] for name in given if name not in ("options", "grid")} == {
        n: v for n, v in given.items() if n not in ("options", "grid")
    }
    assert settings["options"] == given.get("options", {})
    assert settings["grid"] == (list(given["grid"]) if "grid" in given else None)
