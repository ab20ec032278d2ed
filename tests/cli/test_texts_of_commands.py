"""``zeroline layers`` and ``compare`` of an image with a text, a second one as a contrast, and ``baselines`` of an image with texts as its classes."""

import json

import pytest
import torch
from PIL import Image

import zeroline as zl
from cli.test_cli import IMAGE, run
from zeroline import Comparison, zoo

CLIP = ["--model", "zoo:digits-clip"]
SEVEN, ONE = "a cyan seven", "a cyan one"
VISION = [f"vision_model.encoder.layers.{i}" for i in range(4)]
PAIRS = [("cosine",), ("cosine", ONE), ("logit", ONE)]


@pytest.fixture(scope="module")
def clip():
    return zoo.load("digits-clip")


def similarity(model, scale, *against):
    """(target, the difference that it has to have from a black picture), from the model's own embeddings."""
    picture = Image.open(IMAGE).convert("RGB")
    given = {text: zoo.preprocess("digits-clip", picture, text) for text in (SEVEN, *against)}
    pixels = given[SEVEN]["pixel_values"]
    told = []
    with torch.no_grad():
        for text in given:
            words = {name: given[text][name] for name in ("input_ids", "attention_mask")}
            logits = model(pixel_values=torch.cat([pixels, torch.full_like(pixels, -1)]), **words).logits_per_image[:, 0]
            told.append(logits if scale == "logit" else logits / model.logit_scale.exp())
    values = told[0] - told[1] if against else told[0]
    words = {name: given[ONE][name] for name in ("input_ids", "attention_mask")} if against else None
    asked = zl.similarity(against=words, scale=scale, names=(repr(SEVEN), repr(ONE))) if against else zl.similarity(scale=scale, names=repr(SEVEN))
    return given[SEVEN], asked, float(values[0] - values[1])


def flags(scale, against):
    return ["--text", SEVEN, *(word for text in against for word in ("--text", text)), "--target", scale, *CLIP]


@pytest.mark.parametrize("asked", PAIRS)
def test_layers_of_a_pair_are_those_of_the_picture(capsys, tmp_path, clip, asked):
    scale, *against = asked
    status, out, err = run(capsys, "layers", IMAGE, *flags(scale, against), "--out", tmp_path, "--tolerance", "0.05")
    assert (status, err) == (0, "")
    found = Comparison.load(tmp_path / "layers.safetensors")
    assert found.labels == ("input:pixel_values", *VISION)
    inputs, target, difference = similarity(clip, scale, *against)
    expected = zl.layers(clip, inputs, target=target, baseline=zl.baseline.black(), tolerance=0.05)
    assert found.target == expected.target
    assert out.startswith(f"target  {found.target[0]}\n")
    for site, one in found.members.items():
        assert torch.equal(one.values, expected[site].values)
        assert float(one.difference) == pytest.approx(difference, rel=1e-3)


@pytest.mark.parametrize("asked", PAIRS)
def test_methods_of_a_pair_are_compared(capsys, tmp_path, clip, asked):
    scale, *against = asked
    methods = "gradient_x_input, integrated_gradients, grad_cam"
    status, out, err = run(capsys, "compare", IMAGE, *flags(scale, against), "--methods", methods, "--out", tmp_path, "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    found = Comparison.load(tmp_path / "comparison.safetensors")
    inputs, target, difference = similarity(clip, scale, *against)
    expected = zl.compare(clip, inputs, target=target, baseline=zl.baseline.black(), methods=methods.split(", "))
    assert found.labels == tuple(methods.split(", "))
    for label, one in found.members.items():
        assert torch.equal(one.values, expected[label].values)
        if one.baseline == "black":
            assert float(one.difference) == pytest.approx(difference, rel=1e-3)
    assert {name.rpartition("/")[2] for name in told["files"]} == {"comparison.safetensors", "figure.png", "record.json"}


@pytest.mark.parametrize("command", ["layers", "compare"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (CLIP, "reads text and image; `zeroline explain`, `layers`, `compare` and `attend` take an image with --text"),
        (["--text", SEVEN], "'digits-vit' reads no text, only image"),
        ([*CLIP, "--text", SEVEN, "--text", ONE, "--text", "a"], "3 texts were given; 'digits-clip' takes one, or two to contrast here"),
        (["--model", "zoo:digits-vqa", "--text", "what ?", "--text", "who ?"], "2 texts were given; 'digits-vqa' takes one here"),
        ([*CLIP, "--text", ""], "the text is ''; give words"),
        ([*CLIP, "--text", SEVEN, "--text", " "], "the text is ' '; give words"),
        ([*CLIP, "--text", "a " * 15], "has 17 tokens, begin and end included; the model reads 16"),
        ([*CLIP, "--text", SEVEN, "--target", "seven"], "--target 'seven' was given; where an image is compared with a text"),
        (["--model", "zoo:digits-vqa", "--text", "what color is the seven ?"], "the model has 2 floating-point inputs; name one"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(capsys, tmp_path, command, arguments, message):
    status, out, err = run(capsys, command, IMAGE, *arguments, "--out", tmp_path / "out")
    assert (status, out) in ((1, ""), (2, ""))
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_text_and_a_class_are_asked_of_a_model_that_answers_questions(capsys, tmp_path):
    """``explain`` takes them too: several texts are for dual encoders."""
    vqa = ["--model", "zoo:digits-vqa", "--text", "what color is the seven ?", "--site", "input:visual_feats", "--baseline", "zeros"]
    status, out, err = run(capsys, "explain", IMAGE, *vqa, "--target", "red", "--method", "gradient_x_input", "--out", tmp_path, "--json")
    assert status == 0, err
    sample = zoo.preprocess("digits-vqa", Image.open(IMAGE).convert("RGB"), "what color is the seven ?")
    alone = zl.gradient_x_input(zoo.load("digits-vqa"), sample, target="red", site="input:visual_feats", baseline=zl.baseline.zeros())
    assert json.loads(out)["target"] == ["logit of red"]
    assert json.loads(out)["total"] == pytest.approx(alone.total.tolist())
    status, _, err = run(capsys, "explain", IMAGE, *vqa, "--text", "who ?", "--out", tmp_path)
    assert (status, err) == (2, "error: 2 texts were given; 'digits-vqa' takes one here\n")


CLASSES = (SEVEN, "a one", "a photo of a red six")  # texts of several lengths


def test_baselines_are_audited_with_texts_as_classes(capsys, tmp_path, clip):
    flags = [word for text in CLASSES for word in ("--text", text)]
    status, out, err = run(
        capsys, "baselines", IMAGE, *CLIP, *flags, "--baselines", "black, blur(8)", "--target", f"{SEVEN} - a one", "--out", tmp_path
    )
    assert (status, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:4] == [*(f"class {number} {text}" for number, text in enumerate(CLASSES)), f"target logit of {SEVEN} - a one"]
    told = json.loads((tmp_path / "record.json").read_text())
    picture = Image.open(IMAGE).convert("RGB")
    pairs = [zoo.preprocess("digits-clip", picture, text) for text in CLASSES]
    images = torch.cat([pairs[0]["pixel_values"], torch.full_like(pairs[0]["pixel_values"], -1)])
    with torch.no_grad():  # each text alone, without padding
        scores = torch.cat([clip(**{**pair, "pixel_values": images}).logits_per_image for pair in pairs], 1)
    assert told["output"] == pytest.approx([float(scores[0, 0] - scores[0, 1])], rel=1e-5)
    shares = scores[1].double().softmax(-1)
    black = next(line.split() for line in lines if line.startswith("black "))
    assert float(black[1]) == pytest.approx(float(scores[1, 0] - scores[1, 1]), rel=1e-3)
    assert float(black[3]) == pytest.approx(float((shares * (shares * 3).log()).sum()), abs=1e-3)
    assert " ".join(black[6:-1]).startswith(f"{CLASSES[int(shares.argmax())]} {float(shares.max()):.2f} ")
    assert told["classes"] == list(CLASSES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*CLIP, "--text", SEVEN], "one text was given; texts are the classes here: two or more of them"),
        ([*CLIP, "--text", SEVEN, "--text", SEVEN], "the same --text was given twice"),
        ([*CLIP, "--text", SEVEN, "--text", ""], "the text is ''; give words"),
        ([*CLIP, "--text", SEVEN, "--text", ONE, "--target", "two"], "no class 'two'; possible: a cyan seven, a cyan one"),
        ([*CLIP, "--text", SEVEN, "--text", ONE, "--target", "2"], "class 2 asked; the model has 2"),
        (["--text", SEVEN, "--text", ONE], "'digits-vit' compares no pictures with texts; --text means nothing here"),
        (CLIP, "`zeroline baselines` with several"),
    ],
)
def test_texts_that_are_no_classes_are_one_clear_line(capsys, tmp_path, arguments, message):
    status, out, err = run(capsys, "baselines", IMAGE, *arguments, "--baselines", "black", "--out", tmp_path / "out")
    assert (status, out) in ((1, ""), (2, ""))
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["layers", "compare"])
def test_a_model_that_reads_no_pixels_is_asked_without_a_figure(capsys, tmp_path, command):
    """digits-vqa reads regions as features."""
    asked = ["--model", "zoo:digits-vqa", "--text", "what color is the seven ?", "--target", "red", "--baseline", "zeros"]
    where = ["--sites", "input:visual_feats"] if command == "layers" else ["--site", "input:visual_feats", "--methods", "integrated_gradients"]
    status, out, err = run(capsys, command, IMAGE, *asked, *where, "--out", tmp_path, "--report")
    assert (status, err) == (0, "no figure: the model's inputs hold no image\n")
    assert out.startswith("target  logit of red\n")
    kind = "layers" if command == "layers" else "comparison"
    assert {path.name for path in tmp_path.iterdir()} == {f"{kind}.safetensors", "record.json", "report.html"}
    sample = zoo.preprocess("digits-vqa", Image.open(IMAGE).convert("RGB"), "what color is the seven ?")
    expected = zl.integrated_gradients(zoo.load("digits-vqa"), sample, target="red", site="input:visual_feats", baseline=zl.baseline.zeros())
    (found,) = Comparison.load(tmp_path / f"{kind}.safetensors").members.values()
    assert torch.equal(found.values, expected.values)


def test_a_detector_has_no_belief_to_audit(capsys, tmp_path):
    status, out, err = run(capsys, "baselines", IMAGE, "--model", "zoo:digits-detr", "--out", tmp_path / "out")
    assert (status, out) == (2, "")
    assert err.startswith("error: 'digits-detr' is a detector: it has a class per query")
    assert not (tmp_path / "out").exists()
