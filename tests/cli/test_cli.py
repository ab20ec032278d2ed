"""The command line as a user meets it: what is printed, what is written, what errors look like and their exit status."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from zeroline import Attribution
from zeroline.cli import main

IMAGE = str(files("zeroline.zoo") / "samples" / "00.png")


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of one command."""
    try:
        main([str(a) for a in arguments])
        status = 0
    except SystemExit as ended:
        status = ended.code or 0
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_explain_prints_the_figures_and_writes_three_files(capsys, tmp_path):
    status, out, _ = run(capsys, "explain", IMAGE, "--out", tmp_path)
    assert status == 0
    for label in ("target", "f(x)", "f(baseline)", "difference", "sum of values", "attribution error", "gradient evaluations", "seconds"):
        assert label in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["attribution.safetensors", "figure.png", "record.json"]
    record = json.loads((tmp_path / "record.json").read_text())
    found = Attribution.load(tmp_path / "attribution.safetensors")
    assert record["target"] == ["logit of seven"]
    assert record["relative_error"][0] <= 0.01
    assert found.to_dict() == record
    assert record["total"][0] == pytest.approx(float(found.values.double().sum()))


def test_the_same_command_gives_the_same_bytes(capsys, tmp_path):
    for folder in ("a", "b"):
        run(capsys, "explain", IMAGE, "--out", tmp_path / folder)
    a, b = (Attribution.load(tmp_path / folder / "attribution.safetensors") for folder in ("a", "b"))
    assert a.values.numpy().tobytes() == b.values.numpy().tobytes()
    assert (tmp_path / "a" / "record.json").read_bytes() == (tmp_path / "b" / "record.json").read_bytes()


def test_json_is_one_document_on_standard_output(capsys, tmp_path):
    status, out, _ = run(capsys, "explain", IMAGE, "--json", "--out", tmp_path, "--method", "gradient_x_input", "--target", "7")
    assert status == 0
    assert json.loads(out)["target"] == ["logit of seven"]


@pytest.mark.parametrize(
    ("target", "read"),
    [("seven - one", "logit of seven - one"), ("3", "logit of three"), ("Nine", "logit of nine"), ("7 - 1", "logit of seven - one")],
)
def test_targets_are_read_as_a_user_writes_them(capsys, tmp_path, target, read):
    _, out, _ = run(capsys, "explain", IMAGE, "--out", tmp_path, "--target", target, "--method", "gradient_x_input")
    assert read in out


@pytest.mark.parametrize("site", ["vit.embeddings", "vit.layers.3", "vit.embeddings.patch_embeddings.projection"])
@pytest.mark.parametrize("baseline", ["black", "zeros", "blur(4)", "mean", "noise(3)", "constant(0.5)"])
def test_layers_and_baselines_can_be_drawn(capsys, tmp_path, site, baseline):
    arguments = ["--site", site, "--baseline", baseline, "--method", "gradient_x_input", "--out", tmp_path]
    status, out, err = run(capsys, "explain", IMAGE, *arguments)
    assert (status, err) == (0, "")
    assert (tmp_path / "figure.png").exists()
    assert baseline.split("(")[0] in out


def test_values_that_are_no_picture_are_written_without_one(capsys, tmp_path):
    status, _, err = run(capsys, "explain", IMAGE, "--site", "classifier", "--baseline", "zeros", "--out", tmp_path)
    assert status == 0
    assert "no figure" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["attribution.safetensors", "record.json"]


def test_demo_needs_no_arguments(capsys, tmp_path):
    status, out, _ = run(capsys, "demo", "--out", tmp_path)
    assert status == 0
    assert "attribution error" in out
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_sites_methods_and_models_are_listed(capsys):
    _, out, _ = run(capsys, "sites", "zoo:digits-vit", "--match", "vit.layers.*")
    lines = out.strip().splitlines()
    assert len(lines) == 5
    assert all(line.split()[-1] == "yes" for line in lines[1:])
    _, out, _ = run(capsys, "sites", "zoo:digits-vit", "--match", "vit.layers.0.mlp", "--json")
    assert json.loads(out) == [{"site": "vit.layers.0.mlp", "kind": "ViTMLP", "shape": [1, 65, 64], "is_cut": False}]
    assert "integrated_gradients" in run(capsys, "methods")[1]
    assert "zoo:digits-vit" in run(capsys, "models")[1]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    (folder / "text.png").write_text("this is no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes(Path(IMAGE).read_bytes()[:400])
    return folder


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nothing.png"], 2, "no image file 'nothing.png'"),
        ([IMAGE, "--model", "zoo:digit-vit"], 2, "no zoo model 'digit-vit'; nearest: digits-vit"),
        ([IMAGE, "--model", "zo:digits-vit"], 2, "no model scheme 'zo'; nearest: zoo"),
        ([IMAGE, "--model", "digits-vit"], 2, "write zoo:NAME"),
        ([IMAGE, "--model", "hf:./no-folder"], 1, "no model folder"),
        ([IMAGE, "--method", "integrated_gradient"], 2, "nearest: integrated_gradients"),
        ([IMAGE, "--site", "vit.layers.9"], 2, "no module 'vit.layers.9'; nearest: vit.layers"),
        ([IMAGE, "--site", "vit.layers.*"], 2, "matches 4 modules"),
        ([IMAGE, "--target", "sevn"], 2, "no class 'sevn'; nearest: seven"),
        ([IMAGE, "--target", "12"], 2, "class 12 asked; the model has 10: 0 to 9"),
        ([IMAGE, "--baseline", "blak"], 2, "nearest: black"),
        ([IMAGE, "--tolerance", "0"], 2, "tolerance=0 was asked"),
        ([IMAGE, "--n-steps", "10"], 2, "add --path"),
        ([IMAGE, "--method", "taylor", "--tolerance", "0.1"], 2, "--tolerance means nothing to taylor"),
        ([IMAGE, "--method", "taylor", "--order", "3"], 2, "1 and 2 are possible"),
        ([IMAGE, "--grid", "8by8"], 2, "write ROWSxCOLUMNS"),
        (["BROKEN/text.png"], 1, "as an image"),
        (["BROKEN/empty.png"], 1, "as an image"),
        (["BROKEN/cut.png"], 1, "as an image"),
        (["BROKEN"], 2, "is a folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_files(capsys, tmp_path, broken, arguments, status, message):
    arguments = [a.replace("BROKEN", str(broken)) for a in arguments]
    found, out, err = run(capsys, "explain", *arguments, "--out", tmp_path / "results")
    assert found == status
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert message in err
    assert not (tmp_path / "results").exists()


def test_results_that_cannot_be_written_are_told_before_the_work(capsys, tmp_path):
    (tmp_path / "taken").write_text("a file")
    status, out, err = run(capsys, "explain", IMAGE, "--out", tmp_path / "taken")
    assert (status, out) == (2, "")
    assert "cannot write results to" in err


def test_a_figure_that_fails_leaves_what_was_there_before(capsys, tmp_path, monkeypatch):
    run(capsys, "explain", IMAGE, "--out", tmp_path, "--method", "gradient_x_input")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("zeroline.report.figure.save", fail)
    status, _, err = run(capsys, "explain", IMAGE, "--out", tmp_path)
    assert status == 1
    assert "disk full" in err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_prefix_that_does_not_fit_the_grid_is_said(capsys, tmp_path):
    _, _, err = run(capsys, "explain", IMAGE, "--out", tmp_path, "--site", "vit.layers.0", "--prefix", "2", "--method", "gradient_x_input")
    assert "a grid of 8 x 8 with 2 prefix tokens has 66 tokens; the site has 65" in err


def test_timm_models_are_loaded_by_name(capsys, tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model

    def small(name, pretrained):
        assert pretrained
        torch.manual_seed(0)
        return create(name, pretrained=False, depth=1)

    monkeypatch.setattr(timm, "create_model", small)
    arguments = ["--model", "timm:vit_tiny_patch16_224", "--site", "blocks.0", "--method", "gradient_x_input", "--out", tmp_path]
    status, out, err = run(capsys, "explain", IMAGE, *arguments)
    assert (status, err) == (0, "")
    assert "blocks.0 (a cut)" in out
    assert (tmp_path / "figure.png").exists()
    status, _, err = run(capsys, "explain", IMAGE, "--model", "timm:vit_tiny_patch16_225")
    assert status == 2
    assert "nearest: vit_tiny_patch16_224" in err


def test_an_unknown_option_is_a_usage_error(capsys):
    assert run(capsys, "explain", IMAGE, "--nonsense")[0] == 2


def test_a_hugging_face_folder_works_without_a_network(capsys, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    config.id2label = {0: "cat", 1: "dog"}
    ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    arguments = ["--model", f"hf:{tmp_path / 'model'}", "--target", "dog", "--site", "vit.layers.0", "--out", tmp_path / "out", "--tolerance", "0.05"]
    status, out, err = run(capsys, "explain", IMAGE, *arguments)
    assert (status, err) == (0, "")
    assert "logit of dog" in out
    assert (tmp_path / "out" / "figure.png").exists()


def test_without_debug_no_traceback_with_debug_one():
    command = [sys.executable, "-m", "zeroline.cli", "explain", "nothing.png"]
    plain = subprocess.run(command, capture_output=True, text=True)
    assert plain.returncode == 2
    assert "Traceback" not in plain.stderr
    assert "Traceback" in subprocess.run([*command, "--debug"], capture_output=True, text=True).stderr
