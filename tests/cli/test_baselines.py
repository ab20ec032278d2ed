"""``zeroline baselines`` as a user meets it: the table, the advice, the files, sets of images, and what errors look like."""

import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from importlib.resources import files

import pytest
import torch
from PIL import Image

from cli.test_cli import run
from zeroline import zoo
from zeroline.audit import BaselineAudit
from zeroline.cli import main

SAMPLES = files("zeroline.zoo") / "samples"
IMAGE, MASK = str(SAMPLES / "03.png"), str(SAMPLES / "03-mask0.png")  # a nine
SET = [str(SAMPLES / f"0{i}.png") for i in range(3)]
NINE = 9


def once(*arguments):
    """As ``run``, for results that several tests share."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(a) for a in arguments])
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
    return status, out.getvalue(), err.getvalue()


def pixels(path, grey=None):
    """An image as the zoo's model gets it; with ``grey``, one of that colour instead."""
    image = Image.open(path).convert("RGB")
    return zoo.preprocess("digits-vit", image if grey is None else Image.new("RGB", image.size, grey))["pixel_values"]


def saved_vit(folder, size=(32, 32), labels=("cat", "dog")):
    """A small image classifier in a folder, as Hugging Face saves one."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=list(size), patch_size=8)
    config.id2label = dict(enumerate(labels))
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": size[0], "width": size[1]}).save_pretrained(folder)
    return folder


def photos(folder, paths=SET):
    folder.mkdir()
    for path in paths:
        shutil.copy(path, folder)
    return folder


def line_of(out, name):
    """The row of a table that begins with a name, as columns."""
    (row,) = [line for line in out.splitlines() if line.startswith(f"{name}  ")]
    return re.split(r" {2,}", row.strip())


def one_error(err, message):
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert message in err


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(folder, standard output) of a command with one baseline of each kind."""
    folder = tmp_path_factory.mktemp("asked")
    status, out, err = once("baselines", IMAGE, "--baselines", "black, zeros, blur(2), noise(0), neutral(black)", "--out", folder)
    assert (status, err) == (0, "")
    return folder, out


def test_each_baseline_has_a_row_with_its_verdict(asked):
    _, out = asked
    assert "logit of nine" in out
    assert re.search(r"confident baseline: the model sees \w+ with 0\.\d\d", line_of(out, "black")[-1])
    assert line_of(out, "blur(2)")[-1].startswith("keeps the answer: the model still sees nine")
    assert line_of(out, "neutral from black")[-1].startswith("neutral: no class above")


def test_the_figures_are_those_of_the_model_on_the_picture(asked, digits_vit):
    _, out = asked
    for name, x0 in (("black", pixels(IMAGE, "black")), ("zeros", torch.zeros(1, 3, 64, 64))):
        scores = digits_vit(pixel_values=x0).logits[0].detach().double()
        p = scores.softmax(-1)
        kl = float((p * (p * 10).log()).sum())
        apart = float((torch.tensor([0.5, 0.5, 0.5]).view(3, 1, 1) * (pixels(IMAGE) - x0)).square().mean().sqrt())  # the zoo's std
        f, _, found, _, _, top, share, distance = line_of(out, name)[1:9]
        assert (float(f), float(found)) == (pytest.approx(float(scores[NINE]), abs=1e-3), pytest.approx(kl, abs=1e-3))
        assert top == digits_vit.config.id2label[int(p.argmax())]
        assert float(share) == pytest.approx(float(p.max()), abs=6e-3)
        assert float(distance) == pytest.approx(apart, rel=3e-3)


def test_the_advice_names_a_baseline_of_the_table_on_which_the_model_is_undecided(asked):
    folder, out = asked
    audit = BaselineAudit.load(folder / "audit.safetensors")
    (advised,) = re.findall(r"^advice: (.+?): ", out, re.MULTILINE)
    assert advised in audit.baselines
    assert float(audit[advised].kl) == min(float(audit[name].kl) for name in audit.baselines)
    assert line_of(out, advised)[-1] == audit.verdict(advised)


def test_three_files_are_written_and_the_record_is_what_can_be_loaded(asked):
    folder, out = asked
    assert sorted(p.name for p in folder.iterdir()) == ["audit.safetensors", "figure.png", "record.json"]
    assert all(str(p) in out for p in folder.iterdir())
    record = json.loads((folder / "record.json").read_text())
    assert BaselineAudit.load(folder / "audit.safetensors").to_dict() == record
    assert record["names"] == ["black", "zeros", "blur(2)", "noise(seed=0, 0 to 1)", "neutral from black"]
    assert (folder / "figure.png").stat().st_size > 10_000


def test_the_same_command_gives_the_same_bytes(asked, tmp_path):
    once("baselines", IMAGE, "--baselines", "black, zeros, blur(2), noise(0), neutral(black)", "--out", tmp_path)
    a, b = (BaselineAudit.load(folder / "audit.safetensors") for folder in (asked[0], tmp_path))
    for name in a.baselines:
        for figure in ("output", "probabilities", "distance", "reference_output"):
            assert getattr(a[name], figure).numpy().tobytes() == getattr(b[name], figure).numpy().tobytes()
    assert (asked[0] / "record.json").read_bytes() == (tmp_path / "record.json").read_bytes()


def test_json_is_one_document_on_standard_output(capsys, tmp_path):
    status, out, err = run(capsys, "baselines", IMAGE, "--baselines", "black, zeros", "--target", "seven - one", "--json", "--out", tmp_path)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert sorted(found.pop("files")) == sorted(map(str, tmp_path.iterdir()))
    assert found == json.loads((tmp_path / "record.json").read_text())
    assert found["target"] == ["logit of seven - one"]


def test_a_neutral_baseline_that_is_not_reached_is_told_and_the_others_are_kept(capsys, tmp_path, digits_vit):
    status, out, err = run(capsys, "baselines", IMAGE, "--baselines", "black, neutral(zeros)", "--out", tmp_path)
    assert status == 1
    one_error(err, "KL from uniform is")
    p = digits_vit(pixel_values=torch.zeros(1, 3, 64, 64)).logits[0].detach().double().softmax(-1)  # its gradient leads nowhere
    assert float(re.findall(r"KL from uniform is (\S+) nats", err)[0]) == pytest.approx(float((p * (p * 10).log()).sum()), rel=5e-3)
    assert "confident baseline" in line_of(out, "black")[-1]
    assert "not to be had" in " ".join(line_of(out, "neutral from zeros"))
    audit = BaselineAudit.load(tmp_path / "audit.safetensors")
    assert (list(audit.baselines), list(audit.failures)) == (["black"], ["neutral from zeros"])
    assert (tmp_path / "figure.png").exists()


def test_the_mean_of_a_folder_is_the_mean_of_its_images(capsys, tmp_path, digits_vit):
    status, out, _ = run(capsys, "baselines", IMAGE, "--baselines", f"mean_of({photos(tmp_path / 'set')}), zeros", "--out", tmp_path / "out")
    assert status == 0
    wanted = digits_vit(pixel_values=torch.stack([pixels(path) for path in SET]).mean(0)).logits[0, NINE].detach()
    assert float(line_of(out, "mean of 3 in set at the input")[1]) == pytest.approx(float(wanted), abs=1e-3)


def test_a_distribution_is_audited_draw_by_draw(capsys, tmp_path, digits_vit):
    folder = photos(tmp_path / "set")
    status, out, _ = run(capsys, "baselines", IMAGE, "--baselines", f"distribution({folder}, 3), distribution(noise, 3)", "--out", tmp_path / "out")
    assert status == 0
    for i, path in enumerate(SET):
        wanted = digits_vit(pixel_values=pixels(path)).logits[0, NINE].detach()
        assert float(line_of(out, f"input {i} of set")[1]) == pytest.approx(float(wanted), abs=1e-3)
    alone = once("baselines", IMAGE, "--baselines", "noise(0), noise(1), noise(2)", "--out", tmp_path / "alone")[1]
    drawn = [line_of(out, f"noise(seed={i}, 0 to 1)")[1:9] for i in range(3)]
    assert drawn == [line_of(alone, f"noise(seed={i}, 0 to 1)")[1:9] for i in range(3)]
    assert len({row[0] for row in drawn}) == 3


def test_at_a_layer_the_distance_is_in_units_of_its_features(capsys, tmp_path, digits_vit):
    seen = []
    handle = digits_vit.vit.layers[1].register_forward_hook(lambda *found: seen.append(found[-1].detach()))
    digits_vit(pixel_values=pixels(IMAGE))
    handle.remove()
    status, out, _ = run(capsys, "baselines", IMAGE, "--site", "vit.layers.1", "--baselines", "zeros", "--out", tmp_path)
    assert status == 0
    assert "units of the features" in out
    assert float(line_of(out, "zeros")[8]) == pytest.approx(float(seen[0].square().mean().sqrt()), rel=3e-3)


def test_a_hugging_face_folder_works_without_a_network(capsys, tmp_path):
    model = f"hf:{saved_vit(tmp_path / 'model')}"
    status, out, err = run(capsys, "baselines", IMAGE, "--model", model, "--target", "dog", "--baselines", "black, neutral(mean)", "--out", tmp_path)
    assert (status, err) == (0, "")
    assert "logit of dog" in out
    assert {line_of(out, name)[6] for name in ("black", "neutral from mean")} <= {"cat", "dog"}


@pytest.mark.parametrize(
    ("baselines", "status", "message"),
    [
        ("", 2, "--baselines is empty"),
        (" , ", 2, "--baselines is empty"),
        ("black, blak", 2, "nearest: black"),
        ("neutral(blak)", 2, "nearest: black"),
        ("blur(0)", 2, "sigma must be above 0"),
        ("mean_of(FOLDER/nowhere)", 2, "no folder"),
        ("mean_of(FOLDER/empty)", 2, "holds no image"),
        ("distribution(FOLDER/nowhere, 2)", 2, "no folder"),
        ("distribution(FOLDER/empty, 2)", 2, "holds no image"),
        ("distribution(FOLDER/set, 4)", 2, "4 draws asked of 3"),
        ("distribution(FOLDER/set, many)", 2, "cannot read"),
        ("distribution(noise, 0)", 2, "1 to 10,000 are possible"),
        ("mean_of(FOLDER/broken)", 1, "as an image"),
        ("neutral(zeros)", 1, "KL from uniform is"),
    ],
)
def test_bad_baselines_are_one_line_and_leave_no_files(capsys, tmp_path, baselines, status, message):
    photos(tmp_path / "set")
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "text.png").write_text("this is no image")
    found, out, err = run(capsys, "baselines", IMAGE, "--baselines", baselines.replace("FOLDER", str(tmp_path)), "--out", tmp_path / "out")
    assert (found, out) == (status, "")
    one_error(err, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("baseline", ["black", "neutral(black)"])
def test_a_model_of_one_class_has_no_opinion_to_audit(capsys, tmp_path, baseline):
    model = f"hf:{saved_vit(tmp_path / 'model', labels=('only',))}"
    status, out, err = run(capsys, "baselines", IMAGE, "--model", model, "--baselines", baseline, "--out", tmp_path / "out")
    assert (status, out) == (2, "")
    one_error(err, "two classes or more; the model has 1 score")
    assert not (tmp_path / "out").exists()


def test_two_sets_of_one_name_keep_their_own_pictures(capsys, tmp_path, monkeypatch):
    folders = [photos(tmp_path / name / "set", [path]) for name, path in zip("ab", SET) if (tmp_path / name).mkdir() is None]
    from zeroline.report import audit_figure

    drawn, kept = {}, audit_figure.figure
    monkeypatch.setattr(audit_figure, "figure", lambda audit, picture, pictures: drawn.update(pictures) or kept(audit, picture, pictures))
    asked = ", ".join(f"mean_of({folder})" for folder in folders)
    status, out, _ = run(capsys, "baselines", IMAGE, "--baselines", asked, "--out", tmp_path / "out")
    assert status == 0
    for name, path in zip(("mean of 1 in set at the input", "mean of 1 in set at the input (1)"), SET):
        assert line_of(out, name)
        assert torch.allclose(torch.from_numpy(drawn[name]).permute(2, 0, 1) * 2 - 1, pixels(path), atol=1e-2)  # whole levels


def test_a_neutral_baseline_is_looked_for_once(capsys, tmp_path, monkeypatch):
    from zeroline.model import reference

    calls, original = [], reference.descend
    monkeypatch.setattr(reference, "descend", lambda *given: (calls.append(1), original(*given))[1])
    run(capsys, "baselines", IMAGE, "--baselines", "black, neutral(zeros), neutral(black)", "--out", tmp_path)
    assert len(calls) == 2


@pytest.mark.parametrize("width", ["60", "200"])
def test_no_cell_of_the_table_is_cut_however_narrow_the_terminal(capsys, tmp_path, monkeypatch, width):
    from rich.console import Console

    from zeroline.cli import show

    monkeypatch.setattr(show, "output", Console(highlight=False, soft_wrap=True, width=int(width)))
    status, out, _ = run(capsys, "baselines", IMAGE, "--baselines", "black, neutral(zeros)", "--out", tmp_path)
    assert status == 1
    assert "confident baseline: the model sees" in out
    assert "…" not in out
    assert len([line for line in out.splitlines() if line.startswith("neutral from zeros")]) == 1


@pytest.mark.parametrize("text", ["mean_of", "mean_of()", "distribution()", "mean_of(set, 2)", "distribution(set, 2", "distribution(noise, ²)"])
def test_a_set_that_is_misspelled_is_one_clear_error(capsys, tmp_path, text):
    status, _, err = run(capsys, "baselines", IMAGE, "--baselines", text, "--out", tmp_path / "out")
    assert status == 2
    one_error(err, "write mean_of(FOLDER)")


def test_a_folder_made_for_results_is_taken_away_with_its_parents(capsys, tmp_path):
    run(capsys, "baselines", IMAGE, "--target", "sevn", "--out", tmp_path / "deep" / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_know_the_sets(capsys, tmp_path):
    one_error(run(capsys, "baselines", IMAGE, "--baselines", "mean_off(x)", "--out", tmp_path)[2], "mean_of")
