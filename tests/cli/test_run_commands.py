"""``zeroline run`` and ``zeroline summarize`` as a user meets them: what they print and write, and what errors look like."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

import zeroline as zl
from cli.test_cli import run
from scale.test_run import ENVIRONMENT, noise_photos, photos, table, values_of
from zeroline import zoo
from zeroline.cli import run as command
from zeroline.cli import show
from zeroline.summary import Summary

zoo_load = cache(zoo.load)
QUICK = ("--model", "zoo:digits-cnn", "--method", "gradient_x_input", "--batch-size", "2")


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch):
    monkeypatch.setattr(zoo, "load", zoo_load)


def strict(text):
    """JSON as the standard has it: without NaN and infinities."""

    def no(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=no)


def flat(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Five digits with labels and boxes."""
    return photos(tmp_path_factory.mktemp("digits") / "in", count=5)


@pytest.fixture(scope="module")
def done(digits, tmp_path_factory):
    """A run of them in Python, to compare with."""
    return zl.run(digits, model="zoo:digits-cnn", out=tmp_path_factory.mktemp("done") / "out", method="gradient_x_input", batch_size=2)


# --- what is printed and written ------------------------------------------------------------------------------------------------------


def test_a_run_prints_what_it_did_and_writes_its_folder(capsys, digits, done, tmp_path):
    status, out, err = run(capsys, "run", digits, "--out", tmp_path / "a" / "b", *QUICK)
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "a" / "b").glob("[!.]*")) == ["failures", "manifest.json", "records"]
    found = zl.open_run(tmp_path / "a" / "b")
    assert values_of(found) == values_of(done)
    said = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1].strip() for line in out.splitlines()}
    assert said["run"] == f"{tmp_path / 'a' / 'b'} (complete)"
    assert said["source"] == f"{digits / 'labels.csv'} (5 examples)"
    assert said["finished"] == "5 examples, 0 failed"
    assert (said["method"], said["target"], said["baseline"]) == ("gradient_x_input", "top", "black")
    lines = err.splitlines()
    assert re.fullmatch(r"2 of 5 done, 0 failed, \d+\.\d per second, 0:00:\d\d left", lines[0])
    assert re.fullmatch(r"5 of 5 done, 0 failed, \d+\.\d per second", lines[-1])


def test_json_is_all_there_is_on_standard_output(capsys, digits, tmp_path):
    status, out, err = run(capsys, "run", digits, "--out", tmp_path, "--json", "--limit", "3", *QUICK)
    assert status == 0
    told = strict(out)
    assert told == zl.open_run(tmp_path).to_dict()
    assert (told["state"], told["done"], told["failed"], told["batch"]) == ("complete", 3, 0, 2)
    assert err.splitlines()[-1].startswith("3 of 3 done")


def test_the_same_command_again_does_nothing_and_the_rest_with_more(capsys, digits, tmp_path):
    asked = ("run", digits, "--out", tmp_path, "--json", *QUICK)
    run(capsys, *asked, "--limit", "2")
    _, out, _ = run(capsys, *asked, "--limit", "2")
    assert (strict(out)["last_session"]["done"], strict(out)["last_session"]["unchanged"], strict(out)["sessions"]) == (0, 2, 2)
    _, out, _ = run(capsys, *asked)
    assert (strict(out)["done"], strict(out)["last_session"]["done"], strict(out)["last_session"]["unchanged"]) == (5, 3, 2)


def test_failures_are_noted_and_where_the_reasons_are(capsys, tmp_path):
    folder = photos(tmp_path / "in", count=4)
    (folder / "01.png").write_bytes(b"torn")
    status, out, err = run(capsys, "run", folder, "--out", tmp_path / "out", *QUICK)
    assert status == 0
    assert "3 examples, 1 failed" in out
    assert f"note: 1 examples failed; the reasons are in {tmp_path / 'out' / 'failures'}" in flat(err)
    status, _, err = run(capsys, "run", folder, "--out", tmp_path / "strict", "--max-failures", "0", *QUICK)
    assert (status, err.splitlines()[-1][:60]) == (1, "error: 1 examples failed, more than max_failures=0; the reas")
    photos(tmp_path / "again", count=4)
    (tmp_path / "again" / "01.png").replace(folder / "01.png")
    status, out, _ = run(capsys, "run", folder, "--out", tmp_path / "out", "--retry-failed", "--json", *QUICK)
    assert (strict(out)["done"], strict(out)["failed"]) == (4, 0)


def test_every_option_reaches_the_run(capsys, digits, tmp_path):
    asked = {
        "--method": "integrated_gradients", "--target": "seven - one", "--baseline": "blur(4)", "--site": "resnet.encoder.stages.1", "--keep": "map",
        "--limit": "2", "--batch-size": "2", "--model": "zoo:digits-cnn", "--engine": "local", "--device": "cpu", "--dtype": "float32",
        "--columns": "label=label, image=image",
    }  # fmt: skip
    options = ("--option", "path=gausslegendre", "--option", "n_steps=4")
    status, out, err = run(capsys, "run", digits, "--out", tmp_path, "--json", *(part for pair in asked.items() for part in pair), *options)
    assert status == 0, err
    found = strict(out)
    assert found["settings"] == {
        "schema": 1, "method": "integrated_gradients", "target": "seven - one", "site": "resnet.encoder.stages.1", "baseline": "blur(4)",
        "options": {"n_steps": 4, "path": "gausslegendre"}, "grid": None, "prefix": None, "keep": "map", "dtype": "float32",
    }  # fmt: skip
    (first, second) = zl.open_run(tmp_path).rows()
    sample = zoo.samples("digits-cnn")[0]
    site = "resnet.encoder.stages.1"
    direct = zl.integrated_gradients(
        zoo_load("digits-cnn"), sample.inputs, target=zl.contrast(7, 1), site=site, baseline=zl.baseline.blur(4), path="gausslegendre", n_steps=4
    )
    assert (first["evaluations"], first["target"]) == (4, "logit of seven - one")
    np.testing.assert_allclose(np.reshape(first["map"], direct.values.shape[2:]), direct.values[0].sum(0), atol=1e-5)
    assert second["id"] == "01.png"


def test_a_grid_and_a_prefix_can_be_said(capsys, digits, tmp_path):
    status, _, err = run(
        capsys, "run", digits, "--out", tmp_path, "--method", "grad_cam", "--site", "vit.layers.2", "--grid", "4x16", "--prefix", "1", "--limit", "2"
    )
    assert status == 0, err
    assert zl.open_run(tmp_path).layout.map.shape == (4, 16)
    assert zl.open_run(tmp_path).manifest.settings["grid"] == [4, 16]


def test_a_table_of_images_and_texts_with_columns_of_other_names(capsys, tmp_path):
    photos(tmp_path / "pictures", count=2)
    rows = [{"who": f"a{n}", "photo": f"pictures/0{n}.png", "said": said} for n, said in enumerate(("a cyan seven", "a red six over a one"))]
    table(tmp_path / "pairs.csv", rows)
    asked = ["--model", "zoo:digits-clip", "--method", "attention_relevance", "--columns", "image=photo,text=said,id=who"]
    status, out, err = run(capsys, "run", tmp_path / "pairs.csv", "--out", tmp_path / "out", "--json", *asked)
    assert status == 0, err
    assert strict(out)["source"]["columns"] == {"id": "who", "image": "photo", "text": "said"}
    for id, record in zl.open_run(tmp_path / "out").records():
        row = rows[int(id[1])]
        inputs = zoo.preprocess("digits-clip", Image.open(tmp_path / row["photo"]), text=row["said"])
        direct = zl.attention_relevance(zoo_load("digits-clip"), inputs, target=zl.similarity(scale="cosine"))
        for stream, values in direct.by_source.items():
            np.testing.assert_allclose(record.by_source[stream], values, atol=1e-6)


def test_lines_of_progress_come_now_and_then_and_at_the_end(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: clock[0])
    lines = command._Lines()
    for seconds, done in ((1, 10), (5, 20), (10.9, 30), (11, 40), (12, 50), (3700, 60), (3701, 98)):
        clock[0] = seconds
        lines(zl.scale.Progress(100, done, 2 * (done == 98), done, 8000.0))
    assert capsys.readouterr().err.splitlines() == [
        "10 of 100 done, 0 failed, 0.0 per second, 20:00:00 left",
        "40 of 100 done, 0 failed, 0.0 per second, 3:20:00 left",
        "60 of 100 done, 0 failed, 0.0 per second, 1:28:53 left",
        "98 of 100 done, 2 failed, 0.0 per second",
    ]


class Interrupting(command._Lines):
    """Ctrl-C while the first batch is written."""

    def __call__(self, far):
        super().__call__(far)
        os.kill(os.getpid(), signal.SIGINT)


def interrupted(capsys, monkeypatch, digits, out):
    monkeypatch.setattr(command, "_Lines", Interrupting)
    before = signal.getsignal(signal.SIGINT)
    found = run(capsys, "run", digits, "--out", out, *QUICK)
    assert signal.getsignal(signal.SIGINT) is before
    return found


def test_ctrl_c_ends_with_130_and_keeps_what_is_finished(capsys, monkeypatch, digits, done, tmp_path):
    status, out, _ = interrupted(capsys, monkeypatch, digits, tmp_path)
    assert (status, out) == (130, "")
    found = zl.open_run(tmp_path)
    assert found.manifest.state == "interrupted"
    assert values_of(found).items() <= values_of(done).items()
    assert len(found) == 2
    monkeypatch.undo()
    status, _, _ = run(capsys, "run", digits, "--out", tmp_path, *QUICK)
    assert status == 0
    assert values_of(zl.open_run(tmp_path)) == values_of(done)


def test_ctrl_c_says_that_it_was_interrupted(capsys, monkeypatch, digits, tmp_path):
    _, _, err = interrupted(capsys, monkeypatch, digits, tmp_path)
    assert err.splitlines()[-1] == "error: interrupted"


def test_a_pipe_gets_plain_lines_and_json_alone(digits, tmp_path):
    arguments = [sys.executable, "-m", "zeroline.cli", "run", str(digits), "--out", str(tmp_path / "out"), "--json", *QUICK]
    told = subprocess.run(arguments, capture_output=True, text=True, timeout=600, env=ENVIRONMENT, check=False)
    assert told.returncode == 0, told.stderr
    assert strict(told.stdout)["done"] == 5
    lines = told.stderr.splitlines()
    assert all(re.fullmatch(r"\d of 5 done, 0 failed, \d+\.\d per second(, \d:\d\d:\d\d left)?", line) for line in lines), lines
    assert lines[-1].startswith("5 of 5 done")
    assert "\x1b" not in told.stderr + told.stdout


def test_a_damaged_shard_is_said_and_its_examples_are_explained_again(capsys, digits, done, tmp_path):
    run(capsys, "run", digits, "--out", tmp_path, *QUICK)
    (shard,) = (tmp_path / "records").glob("part-*")
    shard.write_bytes(shard.read_bytes()[:-9])
    status, _, err = run(capsys, "run", digits, "--out", tmp_path, *QUICK)
    assert status == 0
    assert f"warning: {shard.name} cannot be read" in err
    assert "set aside in damaged, its examples are explained again" in err
    assert values_of(zl.open_run(tmp_path)) == values_of(done)


def test_a_folder_to_which_nothing_was_written_goes_as_it_came(capsys, digits, tmp_path):
    (tmp_path / "mine").mkdir()
    for out in (tmp_path / "a" / "b", tmp_path / "mine"):
        status, _, _ = run(capsys, "run", digits, "--out", out, *QUICK, "--target", "ninee")
        assert status == 2
    assert not (tmp_path / "a").exists()
    assert not list((tmp_path / "mine").glob("[!.]*"))


# --- what cannot be asked ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(digits, done, tmp_path_factory):
    """Names that the tables below use."""
    where = tmp_path_factory.mktemp("places")
    (where / "empty").mkdir()
    (where / "text.txt").write_text("no source")
    (where / "file").write_text("")
    table(where / "names.csv", [{"picture": "a.png", "said": "b", "digit": "7"}])
    table(where / "twice.csv", [{"id": "a", "image": "x.png"}, {"id": "a", "image": "y.png"}])
    (where / "no_rows.csv").write_text("image,label\n")
    (where / "broken.parquet").write_bytes(b"PAR1 and no more")
    for name in ("torn", "bare"):
        noise_photos(where / name, 3)
    for file in (where / "torn").iterdir():
        file.write_bytes(b"torn")
    (where / "manifest").mkdir()
    (where / "manifest" / "manifest.json").write_text("{}")
    (where / "shards" / "records").mkdir(parents=True)
    return {"digits": digits, "done": done.folder, **{p.name.split(".")[0]: p for p in where.iterdir()}, "gone": where / "gone"}


# source, arguments, exit status, what the line says
BAD = {
    "no source": ("gone", (), 2, ("no source '{gone}'", "a folder of images, a CSV or Parquet file, or a saved Hugging Face dataset")),
    "an empty folder": ("empty", (), 2, ("the folder '{empty}' holds no image", ".png", "labels.csv")),
    "a text file": ("text", (), 2, ("'{text}' is no source", ".csv, .tsv or .parquet")),
    "no image column": ("names", (), 2, ("'names.csv' has the columns picture, said, digit", "columns image=NAME")),
    "a column that is not there": ("names", ("--columns", "image=pictures"), 2, ("no column 'pictures'; nearest: picture; in 'names.csv'",)),
    "a role that is none": ("names", ("--columns", "photo=picture"), 2, ("no role of a column 'photo'", "image, text, passage, label, mask, box")),
    "columns without equals": ("names", ("--columns", "picture"), 2, ("cannot read --columns 'picture'", "ROLE=COLUMN")),
    "columns without a name": ("names", ("--columns", "image="), 2, ("cannot read --columns 'image='",)),
    "columns of a folder": ("bare", ("--columns", "image=x"), 2, ("is a folder of images without labels.csv",)),
    "an id twice": ("twice", (), 2, ("the id 'a' is in rows 0 and 1",)),
    "no rows": ("no_rows", (), 2, ("has no rows",)),
    "a broken Parquet file": ("broken", (), 1, ("cannot read '{broken}' as Parquet",)),
    "a split": ("digits", ("--split", "train"), 2, ("a split ('train') belongs to a saved Hugging Face dataset",)),
    "an option without equals": ("digits", ("--option", "tolerance"), 2, ("cannot read --option 'tolerance'", "NAME=VALUE")),
    "an option without a value": ("digits", ("--option", "tolerance="), 2, ("cannot read --option 'tolerance='",)),
    "an option twice": ("digits", ("--option", "n_steps=3", "--option", "n-steps=4"), 2, ("--option n_steps was given twice",)),
    "an option that is none": ("digits", ("--option", "tolerence=1"), 2, ("no option of integrated_gradients 'tolerence'", "tolerance")),
    "an option with its own flag": ("digits", ("--option", "site=x"), 2, ("no option of integrated_gradients 'site'",)),
    "an option of another method": ("digits", ("--method", "taylor", "--option", "n_steps=3"), 2, ("no option of taylor 'n_steps'", "possible: order")),
    "a batch size in words": ("digits", ("--batch-size", "many"), 2, ("cannot read --batch-size 'many'", "auto or a number")),
    "a batch size of 2.5": ("digits", ("--batch-size", "2.5"), 2, ("cannot read --batch-size '2.5'",)),
    "a batch size of none": ("digits", ("--batch-size", "0"), 2, ("batch_size=0 was asked; 1 or more",)),
    "a batch size below": ("digits", ("--batch-size", "-2"), 2, ("batch_size=-2 was asked; 1 or more",)),
    "a limit of none": ("digits", ("--limit", "0"), 2, ("limit=0 was asked; 1 or more",)),
    "failures below none": ("digits", ("--max-failures", "-1"), 2, ("max_failures=-1 was asked; 0 or more",)),
    "a grid in words": ("digits", ("--method", "grad_cam", "--grid", "wide"), 2, ("wide", "14x14")),
    "a grid of another method": ("digits", ("--grid", "8x8"), 2, ("a grid means nothing to integrated_gradients",)),
    "a prefix of another method": ("digits", ("--prefix", "1"), 2, ("a prefix means nothing to integrated_gradients",)),
    "a grid that does not fit": ("digits", ("--method", "grad_cam", "--site", "vit.layers.1", "--grid", "5x5", "--prefix", "1"), 2, ("5 x 5", "65")),
    "a method that is none": ("digits", ("--method", "integrated_gradient"), 2, ("no method 'integrated_gradient'", "nearest: integrated_gradients")),
    "a method without a row": ("digits", ("--method", "attention_transfer"), 2, ("attention_transfer gives no record per example",)),
    "an engine that is none": ("digits", ("--engine", "spark"), 2, ("no engine 'spark'", "local, ray")),
    "a keep that is none": ("digits", ("--keep", "maps"), 2, ("no keep= 'maps'", "nearest: map")),
    "a dtype that is none": ("digits", ("--dtype", "double"), 2, ("no dtype= 'double'", "float32, float64, bfloat16")),
    "workers of one process": ("digits", ("--workers", "2"), 2, ("workers=2 means nothing to the local engine", "engine='ray'")),
    "GPUs of one process": ("digits", ("--gpus-per-worker", "0.5"), 2, ("gpus_per_worker=0.5 means nothing to the local engine",)),
    "an address of one process": ("digits", ("--address", "auto"), 2, ("address=auto means nothing to the local engine",)),
    "a target that is none": ("digits", ("--target", "sevn"), 2, ("no class 'sevn'", "seven")),
    "a baseline that is none": ("digits", ("--baseline", "blurr(4)"), 2, ("blurr",)),
    "a site that is none": ("digits", ("--site", "vit.layer.1"), 2, ("vit.layer.1", "nearest: vit.layers.1")),
    "a site of a route": ("digits", ("--method", "rollout", "--site", "vit"), 2, ("a site ('vit') means nothing to rollout",)),
    "a baseline of a route": ("digits", ("--method", "rollout", "--baseline", "black"), 2, ("a baseline means nothing to rollout",)),
    "a model that is none": ("digits", ("--model", "zoo:digits-vat"), 2, ("no zoo model 'digits-vat'", "digits-vit, ")),
    "a model that reads text": ("bare", ("--model", "zoo:digits-clip"), 2, ("'digits-clip' reads text and image", "the source has no text")),
    "labels that are not there": ("bare", ("--target", "label"), 2, ("the target is the label, and the example has none",)),
    "images that cannot be read": ("torn", (), 1, ("cannot read '000.png' as an image",)),
    "a folder that is a file": ("digits", ("--out", "{file}"), 2, ("cannot write a run to '{file}'",)),
    "a manifest that is none": ("digits", ("--out", "{manifest}"), 1, ("manifest.json' is no manifest of a run",)),
    "shards without a manifest": ("digits", ("--out", "{shards}"), 2, ("'{shards}' holds shards and no manifest.json", "another folder")),
    "a run of another method": ("digits", ("--out", "{done}"), 2, ("other settings (method: 'gradient_x_input' there, 'integrated_gradients' asked)",)),
    "a run of another model": ("digits", ("--out", "{done}", "--method", "gradient_x_input"), 2, ("of the model", "ResNet", "asked is", "ViT")),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_asked_is_one_line(capsys, places, tmp_path, what):
    source, arguments, expected, said = BAD[what]
    before = {file: file.read_bytes() for file in places["done"].rglob("*") if file.is_file() and not file.name.startswith(".")}
    given = [argument.format(**places) for argument in arguments]
    out = [] if "--out" in given else ["--out", tmp_path / "out"]
    status, printed, err = run(capsys, "run", places[source], *out, *given)
    assert (status, printed) == (expected, ""), err
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert "unexpected" not in line
    for words in said:
        assert words.format(**places) in line
    assert not list((tmp_path / "out").glob("[!.]*"))
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize("device", ["gpu", "cuda:one"])
def test_a_device_that_is_none_is_refused(capsys, digits, tmp_path, device):
    status, _, err = run(capsys, "run", digits, "--out", tmp_path / "out", "--device", device)
    assert "unexpected" not in err
    assert status == 2
    assert device in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(capsys, digits, tmp_path):
    status, _, err = run(capsys, "run", digits, "--out", tmp_path / "out", "--device", "cuda")
    assert (status, err.strip()) == (2, "error: device 'cuda' was asked; torch sees no GPU here")


def test_a_second_writer_is_refused_and_told_who_writes(capsys, digits, tmp_path, monkeypatch):
    told = []

    class Second(command._Lines):
        def __call__(self, far):
            if not told:
                told.append(None)
                told[0] = run(capsys, "run", digits, "--out", tmp_path, *QUICK)

    monkeypatch.setattr(command, "_Lines", Second)
    status, _, _ = run(capsys, "run", digits, "--out", tmp_path, *QUICK)
    assert status == 0
    ((status, out, err),) = told
    assert (status, out) == (2, "")
    assert re.fullmatch(
        rf"error: another run writes to {str(tmp_path)!r} \(process {os.getpid()} on .*, since 20.*\); wait for it, or give another folder\n", err
    )
    assert len(zl.open_run(tmp_path)) == 5


# --- summarize -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def _drawn_quickly(monkeypatch):
    """Figures are made and not drawn: it takes longer than all else."""
    monkeypatch.setattr(show.figure, "save", lambda picture, path: path.write_text(type(picture).__name__))


def test_a_summary_is_printed_and_written(capsys, done, tmp_path):
    status, out, err = run(capsys, "summarize", done.folder, "--out", tmp_path)
    assert (status, err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "record.json", "summary.safetensors"]
    found = zl.summarize(done)
    kept = Summary.load(tmp_path / "summary.safetensors")
    assert kept.to_dict() == found.to_dict()
    assert strict((tmp_path / "record.json").read_text()) == strict(json.dumps(found.to_dict()))
    with Image.open(tmp_path / "figure.png") as opened:
        assert np.ptp(np.asarray(opened.convert("L"))) > 150
    for label, value in found.rows():
        assert f"{label} {value}" in flat(out)
    for row in found.table():
        assert " ".join(row) in flat(out)
    assert f"wrote {tmp_path / 'figure.png'}, {tmp_path / 'record.json'}, {tmp_path / 'summary.safetensors'}" in out


@pytest.mark.usefixtures("_drawn_quickly")
def test_a_summary_as_json_names_its_files(capsys, done, tmp_path):
    status, out, _ = run(capsys, "summarize", done.folder, "--out", tmp_path / "a", "--json")
    assert status == 0
    told = strict(out)
    assert told.pop("files") == [str(tmp_path / "a" / name) for name in ("figure.png", "record.json", "summary.safetensors")]
    assert told == json.loads(json.dumps(zl.summarize(done).to_dict()))


@pytest.mark.usefixtures("_drawn_quickly")
def test_two_runs_are_compared(capsys, digits, done, tmp_path):
    run(capsys, "run", digits, "--out", tmp_path / "other", "--limit", "4", "--baseline", "mean", *QUICK)
    status, out, _ = run(capsys, "summarize", done.folder, "--against", tmp_path / "other", "--out", tmp_path / "summary")
    assert status == 0
    said = flat(out)
    assert f"against {tmp_path / 'other'}: 4 examples in both, 1 only here, 0 only there" in said
    assert "asked otherwise baseline: 'black' here, 'mean' there" in said
    assert Summary.load(tmp_path / "summary" / "summary.safetensors").against.common == 4


SUMMARIES = {
    "no folder": (("{gone}",), 2, "no folder '{gone}'; a run is a folder that `zeroline run` wrote"),
    "no run": (("{bare}",), 1, "'{bare}' holds no run: there is no manifest.json"),
    "a broken manifest": (("{manifest}",), 1, "is no manifest of a run"),
    "against no folder": (("{done}", "--against", "{gone}"), 2, "no folder '{gone}'"),
    "against no run": (("{done}", "--against", "{bare}"), 1, "'{bare}' holds no run"),
    "a file to write to": (("{done}", "--out", "{file}"), 2, "cannot write results to '{file}'"),
}


@pytest.mark.parametrize("what", SUMMARIES)
@pytest.mark.usefixtures("_drawn_quickly")
def test_what_cannot_be_summarized_is_one_line(capsys, places, tmp_path, what):
    arguments, expected, said = SUMMARIES[what]
    given = [argument.format(**places) for argument in arguments]
    status, out, err = run(capsys, "summarize", *given, *([] if "--out" in given else ["--out", tmp_path / "out"]))
    assert (status, out) == (expected, ""), err
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert said.format(**places) in line
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_drawn_quickly")
def test_a_run_without_finished_examples_cannot_be_summarized(capsys, tmp_path):
    folder = noise_photos(tmp_path / "in", 3)
    for name in ("001.png", "002.png"):
        (folder / name).write_bytes(b"torn")
    run(capsys, "run", folder, "--out", tmp_path / "out", *QUICK)
    for file in (tmp_path / "out" / "records").iterdir():
        file.unlink()
    status, _, err = run(capsys, "summarize", tmp_path / "out", "--out", tmp_path / "summary")
    assert status == 2
    assert err.strip() == f"error: {str(tmp_path / 'out')!r} has no finished example; 2 failed: see its failures"
