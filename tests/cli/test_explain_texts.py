"""``zeroline explain IMAGE --text``, and attention methods under ``explain``: a map per text and contrast, coloured words, files, errors."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import zeroline as zl
from cli.test_cli import IMAGE, run
from zeroline import Attribution, Relevance, zoo
from zeroline.cli import attend, show
from zeroline.report.relevance_figure import Source, shade
from zeroline.spelling.models import load_sourced
from zeroline.zoo.digits_clip import LENGTH, WORDS, tokenizer

CLIP = ["--model", "zoo:digits-clip"]
SEVEN, ONE, PHOTO = "a cyan seven", "a cyan one", "a photo of a digit"
SITE = "vision_model.encoder.layers.2"
BLACK = zl.baseline.black


@pytest.fixture(scope="module")
def clip():
    return zoo.load("digits-clip")


@pytest.fixture(scope="module")
def picture():
    return Image.open(IMAGE).convert("RGB")


@pytest.fixture
def undrawn(monkeypatch):
    """No figure is made or rendered, which takes most of the time of a command; an empty file stands for it."""
    for name in ("relevance_figure", "texts_figure"):
        monkeypatch.setattr(f"zeroline.report.{name}.figure", lambda *_: "a figure")
    monkeypatch.setattr("zeroline.report.figure.save", lambda _, path: path.write_bytes(b""))


def pair(picture, text):
    return zoo.preprocess("digits-clip", picture, text)


def explain(capsys, out, *arguments):
    """Standard output of a command that succeeds without a word on standard error."""
    status, printed, err = run(capsys, "explain", IMAGE, *arguments, "--out", out)
    assert (status, err) == (0, "")
    return printed


def values_of(record):
    return dict(record.by_source) if isinstance(record, Relevance) else dict(record.parts)


def same(found, truth):
    """Two records of the same question: the same values, and the same words about them."""
    assert type(found) is type(truth)
    assert list(values_of(found)) == list(values_of(truth))
    for name, values in values_of(truth).items():
        assert torch.allclose(values_of(found)[name], values, atol=1e-6)
    assert torch.allclose(found.output, truth.output, atol=1e-6)
    assert found.settings == truth.settings


METHODS = {
    "attention_eclip": ([], lambda m, x, t: zl.attention_eclip(m, x, target=t)),
    "attention_eclip of its own": (["--weights", "attention"], lambda m, x, t: zl.attention_eclip(m, x, target=t, weights="attention")),
    "grad_eclip": (
        ["--layers", "2", "--similarity", "projected"],
        lambda m, x, t: zl.grad_eclip(m, x, target=t, layers=2, similarity="projected"),
    ),
    "attention_relevance": (["--correction", "signed"], lambda m, x, t: zl.attention_relevance(m, x, target=t, correction="signed")),
    "rollout": ([], lambda m, x, t: zl.rollout(m, x, target=t)),
    "integrated_gradients": (["--tolerance", "0.05"], lambda m, x, t: zl.integrated_gradients(m, x, target=t, baseline=BLACK(), tolerance=0.05)),
    "grad_cam": (
        ["--site", SITE, "--baseline", "zeros", "--no-pool"],
        lambda m, x, t: zl.grad_cam(m, x, target=t, site=SITE, baseline=zl.baseline.zeros(), pool=False),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_one_text_gives_what_the_library_gives(capsys, tmp_path, clip, picture, name):
    flags, direct = METHODS[name]
    out = explain(capsys, tmp_path, "--text", SEVEN, *CLIP, "--method", name.split()[0], *flags)
    truth = direct(clip, pair(picture, SEVEN), zl.similarity())
    kind = "relevance" if isinstance(truth, Relevance) else "attribution"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["figure.png", "record.json", f"{kind}.safetensors"])
    found = type(truth).load(tmp_path / f"{kind}.safetensors")
    same(found, truth)
    assert found.target == (f"cosine of the image with {SEVEN!r}",)
    assert found.to_dict() == json.loads((tmp_path / "record.json").read_text())
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    lines = [line.split() for line in out.splitlines()]
    assert ["text", *SEVEN.split()] in lines
    assert ["method", name.split()[0]] in lines
    assert all(str(tmp_path / p.name) in lines[-1] or f"{tmp_path / p.name}," in lines[-1] for p in tmp_path.iterdir())
    spoken = "input_ids: [BOS] a cyan seven [EOS]" in " ".join(out.split())
    assert spoken is (kind == "relevance")


@pytest.mark.parametrize(("method", "texts"), [("attention_eclip", (SEVEN, ONE, PHOTO)), ("gradient_x_input", (SEVEN, ONE))])
@pytest.mark.usefixtures("undrawn")
def test_several_texts_give_a_record_each_and_the_contrasts_of_the_first(capsys, tmp_path, clip, picture, method, texts):
    flags = [part for text in texts for part in ("--text", text)]
    out = explain(capsys, tmp_path, *flags, *CLIP, "--method", method)
    asked = {text: (pair(picture, text), zl.similarity()) for text in texts}
    for other in texts[1:]:
        asked[f"{SEVEN} - {other}"] = (pair(picture, SEVEN), zl.similarity(against=zoo.preprocess("digits-clip", text=other)))
    kind = Relevance if method == "attention_eclip" else Attribution
    name = "relevance" if kind is Relevance else "attribution"
    files = [f"{name}-{number + 1}.safetensors" for number in range(len(asked))]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["figure.png", "record.json", *files])
    written = json.loads((tmp_path / "record.json").read_text())
    assert list(written) == list(asked)
    for file, (label, (inputs, target)) in zip(files, asked.items()):
        found = kind.load(tmp_path / file)
        if kind is Relevance:
            truth = zl.attention_eclip(clip, inputs, target=target)
        else:
            truth = zl.gradient_x_input(clip, inputs, target=target, baseline=BLACK())
        same(found, truth)
        assert found.to_dict() == written[label]
        assert ["text", *label.split()] in [line.split() for line in out.splitlines()]
    words = [f"cosine of the image with {text!r}" for text in texts]
    words += [f"{words[0]}, minus that with {other!r}" for other in texts[1:]]
    assert [record["target"] for record in written.values()] == [[said] for said in words]
    said = " ".join(out.split())
    assert said.count("input_ids: [BOS]") == (len(asked) if kind is Relevance else 0)
    assert ("[BOS] a cyan one [EOS]" in said) is (kind is Relevance)


@pytest.mark.usefixtures("undrawn")
def test_the_target_logit_is_clips_own(capsys, tmp_path, clip, picture):
    explain(capsys, tmp_path, "--text", SEVEN, "--text", PHOTO, *CLIP, "--method", "grad_eclip", "--target", "logit")
    ids = zoo.preprocess("digits-clip", text=[SEVEN, PHOTO])
    with torch.no_grad():
        own, other = clip(pixel_values=pair(picture, SEVEN)["pixel_values"], **ids).logits_per_image[0].tolist()
    found = [float(Relevance.load(tmp_path / f"relevance-{n}.safetensors").output) for n in (1, 2, 3)]
    assert found == pytest.approx([own, other, own - other], abs=1e-4)
    assert abs(own - other) > 1
    record = json.loads((tmp_path / "record.json").read_text())
    assert record[SEVEN]["target"] == [f"similarity logit of the image with {SEVEN!r}"]


@pytest.mark.parametrize("target", ["top", "cosine"])
@pytest.mark.usefixtures("undrawn")
def test_top_and_cosine_are_one_target(capsys, tmp_path, target):
    out = explain(capsys, tmp_path, "--text", SEVEN, *CLIP, "--method", "rollout", "--target", target, "--json")
    assert json.loads(out)["target"] == [f"cosine of the image with {SEVEN!r}"]


@pytest.mark.parametrize("texts", [(SEVEN,), (SEVEN, ONE)])
@pytest.mark.usefixtures("undrawn")
def test_json_is_one_document_with_the_records_the_seconds_and_the_files(capsys, tmp_path, texts):
    flags = [part for text in texts for part in ("--text", text)]
    shown = json.loads(explain(capsys, tmp_path, *flags, *CLIP, "--method", "grad_eclip", "--json"))
    assert shown.pop("seconds") >= 0
    assert sorted(shown.pop("files")) == sorted(map(str, tmp_path.iterdir()))
    record = json.loads((tmp_path / "record.json").read_text())
    assert shown == (record if len(texts) == 1 else {"texts": record})


@pytest.mark.usefixtures("undrawn")
def test_texts_may_be_called_seconds_and_files(capsys, tmp_path):
    shown = json.loads(explain(capsys, tmp_path, "--text", "seconds", "--text", "files", *CLIP, "--method", "grad_eclip", "--json"))
    assert shown["texts"]["seconds"]["method"] == shown["texts"]["files"]["method"] == "grad_eclip"


@pytest.mark.usefixtures("undrawn")
def test_a_text_that_reads_like_a_contrast_keeps_its_record(capsys, tmp_path):
    explain(capsys, tmp_path, "--text", "one", "--text", "two", "--text", "one - two", *CLIP, "--method", "grad_eclip")
    assert len(list(tmp_path.glob("relevance-*.safetensors"))) == 5  # three texts, two contrasts


@pytest.mark.parametrize("text", ["[red] seven", "costs $5 or $6", pytest.param(r"a $\foo{$")])
def test_texts_with_brackets_and_dollars_are_said_and_drawn_as_they_are(capsys, tmp_path, text):
    out = explain(capsys, tmp_path, "--text", text, "--text", ONE, *CLIP, "--method", "grad_eclip")
    assert ["text", *text.split()] in [line.split() for line in out.splitlines()]
    assert (tmp_path / "figure.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_words_are_coloured_by_their_relevance_on_a_terminal(capsys, tmp_path, monkeypatch, clip, picture):
    seen = io.StringIO()
    monkeypatch.setattr(show, "output", Console(file=seen, force_terminal=True, color_system="truecolor", width=200, soft_wrap=True))
    run(capsys, "explain", IMAGE, "--text", SEVEN, *CLIP, "--method", "attention_eclip", "--out", tmp_path)
    line = next(line for line in seen.getvalue().splitlines() if "input_ids:" in line)
    grounds = re.findall(r"48;2;(\d+);(\d+);(\d+)m(\S+?)\x1b", line)
    assert [word for *_, word in grounds] == ["[BOS]", "a", "cyan", "seven", "[EOS]"]
    heat = zl.attention_eclip(clip, pair(picture, SEVEN)).by_source["input_ids"][0]
    sizes = heat.abs().sort(descending=True).values
    limit = float(sizes[1] if sizes[0] > 3 * sizes[1] > 0 else sizes[0])
    for (red, green, blue, _), value in zip(grounds, heat.tolist()):
        wanted = [255 * part for part in shade(value, limit)]
        assert [int(red), int(green), int(blue)] == pytest.approx(wanted, abs=2)
    assert len(set(grounds)) > 2


def test_the_colour_of_a_word_is_red_for_and_blue_against():
    source = Source("ids", "ids", torch.tensor([1.0, -1.0, 0.0]).numpy(), torch.zeros(1, 3).numpy(), ("up", "down", "flat"))
    line = attend.coloured(source)
    assert line.plain == "ids: up down flat "
    grounds = {line.plain[span.start : span.end]: str(span.style).split("#")[1] for span in line.spans}
    red, blue, white = (tuple(int(grounds[w][i : i + 2], 16) for i in (0, 2, 4)) for w in ("up", "down", "flat"))
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert min(white) > 215


@pytest.mark.usefixtures("undrawn")
def test_warnings_are_told_on_standard_error(capsys, tmp_path):
    flags = ["--text", SEVEN, *CLIP, "--method", "integrated_gradients", "--max-evaluations", "7", "--tolerance", "1e-6"]
    status, _, err = run(capsys, "explain", IMAGE, *flags, "--out", tmp_path)
    assert status == 0
    assert err.startswith("warning: 1 of 1 samples ended at max_evaluations=7")
    assert json.loads((tmp_path / "record.json").read_text())["evaluations"] == [7]


@pytest.mark.parametrize("method", ["grad_eclip", "attention_eclip", "attention_relevance", "rollout"])
@pytest.mark.usefixtures("undrawn")
def test_attention_methods_explain_a_plain_classifier_too(capsys, tmp_path, digits_vit, picture, method):
    out = explain(capsys, tmp_path, "--method", method, "--target", "seven - one")
    found = Relevance.load(tmp_path / "relevance.safetensors")
    truth = zl.ROUTES[method](digits_vit, zoo.preprocess("digits-vit", picture), target=zl.contrast(7, 1))
    same(found, truth)
    assert found.target == ("logit of seven - one",)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.png", "record.json", "relevance.safetensors"]
    assert not any(line.split()[:1] == ["text"] for line in out.splitlines())
    assert "input_ids" not in out


@pytest.mark.usefixtures("undrawn")
def test_a_grid_by_hand_reaches_the_method(capsys, tmp_path):
    explain(capsys, tmp_path, "--method", "grad_eclip", "--grid", "4x16")
    assert Relevance.load(tmp_path / "relevance.safetensors").grid().shape == (1, 4, 16)


def test_values_on_words_get_a_panel_without_a_map(capsys, tmp_path):
    flags = ["--method", "gradient_x_input", "--site", "text_model.encoder.layers.1", "--baseline", "zeros"]
    explain(capsys, tmp_path, "--text", SEVEN, *CLIP, *flags)
    assert Attribution.load(tmp_path / "attribution.safetensors").values.shape == (1, 5, 64)
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("baseline", "name"),
    [("blur(4)", "blur"), ("mean_of(FOLDER)", "mean of 2 in photos at the input"), ("distribution(FOLDER, 2)", "2 of 2 inputs of photos")],
)
@pytest.mark.usefixtures("undrawn")
def test_baselines_are_read_as_for_classifiers(capsys, tmp_path, baseline, name):
    (tmp_path / "photos").mkdir()
    for number in (0, 1):
        zoo.samples("digits-vit")[number].image.save(tmp_path / "photos" / f"{number}.png")
    baseline = baseline.replace("FOLDER", str(tmp_path / "photos"))
    explain(capsys, tmp_path / "out", "--text", SEVEN, "--text", ONE, *CLIP, "--method", "gradient_x_input", "--baseline", baseline)
    records = json.loads((tmp_path / "out" / "record.json").read_text())
    assert all(record["baseline"].startswith(name) for record in records.values())
    outputs = [record["baseline_output"] for record in records.values()]
    assert outputs[0] != outputs[1]
    assert float(outputs[2][0]) == pytest.approx(outputs[0][0] - outputs[1][0], abs=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_images_to_draw_from_go_with_texts_of_any_length(capsys, tmp_path):
    (tmp_path / "photos").mkdir()
    zoo.samples("digits-vit")[1].image.save(tmp_path / "photos" / "1.png")
    flags = ["--method", "gradient_x_input", "--baseline", f"distribution({tmp_path / 'photos'}, 1)"]
    explain(capsys, tmp_path / "out", "--text", SEVEN, "--text", PHOTO, *CLIP, *flags)


TEXT = ["--text", SEVEN]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (CLIP, "reads text and image; `zeroline explain`, `layers`, `compare` and `attend` take an image with --text"),
        ([*CLIP, "--method", "grad_eclip"], "reads text and image; give --text"),
        (TEXT, "'digits-vit' reads no text, only image"),
        ([*TEXT, "--method", "grad_eclip"], "'digits-vit' reads no text, only image"),
        ([*CLIP, "--text", ""], "the text is ''; give words"),
        ([*CLIP, *TEXT, "--text", "  "], "the text is ' '; give words"),
        ([*CLIP, "--text", "a " * 15], "has 17 tokens, begin and end included; the model reads 16"),
        ([*CLIP, *TEXT, "--text", "a " * 15], "has 17 tokens"),
        ([*CLIP, *TEXT, *TEXT], "the same --text was given twice"),
        ([*CLIP, *TEXT, "--target", "seven"], "--target 'seven' was given; where an image is compared with a text"),
        ([*CLIP, *TEXT, "--weights", "attention"], "--weights means nothing to integrated_gradients; it belongs to attention_eclip"),
        ([*CLIP, *TEXT, "--method", "grad_eclip", "--weights", "attention"], "--weights means nothing to grad_eclip"),
        (
            [*CLIP, *TEXT, "--method", "attention_eclip", "--similarity", "none"],
            "--similarity means nothing to attention_eclip; it belongs to grad_eclip",
        ),
        ([*CLIP, *TEXT, "--method", "grad_eclip", "--tolerance", "0.1"], "--tolerance means nothing to grad_eclip"),
        ([*CLIP, *TEXT, "--method", "grad_eclipp"], "no method 'grad_eclipp'; nearest: grad_eclip"),
        ([*CLIP, *TEXT, "--method", "attention_transfer"], "attention_transfer gives no map of one question; in Python, zl.attention_transfer"),
        ([*CLIP, *TEXT, "--method", "integrated_attention"], "in Python, zl.integrated_attention"),
        ([*CLIP, *TEXT, "--method", "grad_eclip", "--layers", "9"], "layers=9 was asked"),
        ([*CLIP, *TEXT, "--method", "grad_eclip", "--layers", "0"], "layers=0 was asked"),
        ([*CLIP, *TEXT, "--method", "grad_eclip", "--similarity", "nine"], "no similarity 'nine'"),
        ([*CLIP, *TEXT, "--method", "attention_eclip", "--weights", "tight"], "no weights 'tight'"),
        ([*CLIP, *TEXT, "--method", "attention_relevance", "--correction", "up"], "possible: none, positive"),
        ([*CLIP, *TEXT, "--method", "grad_eclip", "--grid", "9x9"], "a grid of 9 x 9"),
        ([*CLIP, *TEXT, "--site", "vision_model.encoder.layers.9"], "no module 'vision_model.encoder.layers.9'"),
        ([*CLIP, *TEXT, "--baseline", "blak"], "nearest: black"),
        (["--method", "grad_eclip", "--target", "sevn"], "no class 'sevn'; nearest: seven"),
        (["--method", "grad_eclip", "--layers", "5"], "layers=5 was asked"),
    ],
)
def test_bad_input_is_one_line_with_status_2_and_leaves_no_files(capsys, tmp_path, arguments, message):
    status, out, err = run(capsys, "explain", IMAGE, *arguments, "--out", tmp_path / "new")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("more", [["--site", SITE], ["--baseline", "blur(4)"]])
@pytest.mark.usefixtures("undrawn")
def test_a_site_or_a_baseline_means_nothing_to_attention_methods(capsys, tmp_path, more):
    status, _, err = run(capsys, "explain", IMAGE, *TEXT, *CLIP, "--method", "grad_eclip", *more, "--out", tmp_path / "new")
    assert status == 2
    assert f"{more[0]} means nothing to grad_eclip" in err


@pytest.mark.usefixtures("undrawn")
def test_a_second_text_that_fails_leaves_what_was_there_before(capsys, tmp_path):
    explain(capsys, tmp_path, *TEXT, *CLIP, "--method", "grad_eclip")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    status, _, _ = run(capsys, "explain", IMAGE, *TEXT, "--text", "a " * 15, *CLIP, "--method", "grad_eclip", "--out", tmp_path)
    assert status == 2
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_figure_that_fails_leaves_nothing(capsys, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("zeroline.report.figure.save", fail)
    status, _, err = run(capsys, "explain", IMAGE, *TEXT, *CLIP, "--method", "grad_eclip", "--out", tmp_path / "new")
    assert (status, "disk full" in err) == (1, True)
    assert not (tmp_path / "new").exists()


def test_sites_and_trace_know_a_model_of_text_and_image(capsys):
    status, out, err = run(capsys, "sites", "zoo:digits-clip")
    assert (status, err) == (0, "")
    assert ["vision_model.encoder.layers.3", "CLIPEncoderLayer", "1", "x", "65", "x", "64"] in [line.split()[:7] for line in out.splitlines()]
    status, out, _ = run(capsys, "sites", "zoo:digits-clip", "--json", "--text", PHOTO, "--match", "text_model.encoder.layers.*")
    assert status == 0
    assert [s["shape"] for s in json.loads(out)] == [[1, 7, 64]] * 3
    status, out, _ = run(capsys, "trace", "zoo:digits-clip", "--text", SEVEN)
    assert status == 0
    assert "stream input_ids: 5 tokens" in out
    assert "stream pixel_values: 65 tokens, 1 learned first, a grid of 8 x 8" in out
    status, out, _ = run(capsys, "trace", "zoo:digits-clip", "--format", "json")
    assert [(c["queries"], c["kind"]) for c in json.loads(out)["calls"]] == [("pixel_values", "homogenous")] * 4 + [("input_ids", "homogenous")] * 3
    assert run(capsys, "sites", "zoo:digits-vit", "--text", "a")[0] == 2


def test_sites_are_printed_as_they_are_to_be_written(capsys):
    _, out, _ = run(capsys, "sites", "zoo:digits-clip", "--match", "text_model")
    assert any(line.startswith("text_model[pooler_output]") for line in out.splitlines())


@pytest.mark.usefixtures("undrawn")
def test_attend_takes_a_pair_and_its_similarity(capsys, tmp_path, clip, picture):
    status, out, _ = run(capsys, "attend", IMAGE, *TEXT, *CLIP, "--target", "logit", "--out", tmp_path)
    assert status == 0
    assert "[BOS] a cyan seven [EOS]" in " ".join(out.split())
    found = Relevance.load(tmp_path / "relevance.safetensors")
    same(found, zl.attention_relevance(clip, pair(picture, SEVEN), target=zl.similarity(scale="logit")))
    assert run(capsys, "attend", IMAGE, *TEXT, *CLIP, "--target", "seven", "--out", tmp_path)[0] == 2


SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
CONTEXT = 10


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A CLIP and a SigLIP as Hugging Face saves them, untrained, with the zoo's word tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, SiglipConfig, SiglipImageProcessorPil, SiglipModel

    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": len(WORDS) - 1}
    vision, words = {**SMALL, "image_size": 32, "patch_size": 8}, {**SMALL, **ids, "vocab_size": len(WORDS), "max_position_embeddings": CONTEXT}
    found = {}
    for name, config, model, processor in (
        ("clip", CLIPConfig(vision_config=vision, text_config=words, projection_dim=8), CLIPModel, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})),
        ("siglip", SiglipConfig(vision_config=vision, text_config=words), SiglipModel, SiglipImageProcessorPil(size={"height": 32, "width": 32})),
    ):  # fmt: skip
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp(name)
        model(config).save_pretrained(found[name])
        tokenizer().save_pretrained(found[name])
        processor.save_pretrained(found[name])
    return found


def logits_of(folder, picture, texts, **padding):
    """What Hugging Face alone says of a picture and each text."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model, words = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pixels = AutoImageProcessor.from_pretrained(folder)(images=picture, return_tensors="pt")
    with torch.no_grad():
        return [float(model(**pixels, **words([text], return_tensors="pt", **padding)).logits_per_image) for text in texts]


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_hugging_face_folder_works_without_a_network(capsys, tmp_path, folders, picture, name):
    flags = ["--text", "a red seven", "--text", "one", "--model", folders[name], "--method", "attention_eclip", "--target", "logit"]
    out = explain(capsys, tmp_path, *flags)
    found = Relevance.load(tmp_path / "relevance-1.safetensors")
    full = {"padding": "max_length", "max_length": CONTEXT} if name == "siglip" else {}
    own, other = logits_of(folders[name], picture, ("a red seven", "one"), **full)
    assert found.by_source["input_ids"].shape == (1, CONTEXT if name == "siglip" else 5)
    assert found.grid("pixel_values").shape == (1, 4, 4)
    outputs = [float(Relevance.load(tmp_path / f"relevance-{n}.safetensors").output) for n in (1, 2, 3)]
    assert outputs == pytest.approx([own, other, own - other], abs=1e-5)
    pads = " [PAD]" * (CONTEXT - 5) if name == "siglip" else ""
    assert f"input_ids: [BOS] a red seven [EOS]{pads} " in " ".join(out.split()) + " "
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.usefixtures("undrawn")
def test_the_padded_texts_of_siglip_are_read_at_their_last_token(capsys, tmp_path, folders):
    explain(capsys, tmp_path, "--text", "a red seven", "--model", folders["siglip"], "--method", "grad_eclip")
    found = Relevance.load(tmp_path / "relevance.safetensors")
    assert f"token {CONTEXT - 1} of text_model.encoder.layers.1.self_attn" in found.readout[0]


@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "a " * (CONTEXT - 1)], f"has {CONTEXT + 1} tokens, begin and end included; the model reads {CONTEXT}"),
        (["--method", "grad_eclip"], "reads text and image; give --text"),
        pytest.param([], "--text"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_a_folder_of_a_dual_encoder_asks_for_a_text_it_can_read(capsys, tmp_path, folders, name, arguments, message):
    status, _, err = run(capsys, "explain", IMAGE, "--model", folders[name], *arguments, "--out", tmp_path / "new")
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_longest_text_that_fits_is_read_whole(folders):
    whole = "a " * (CONTEXT - 2)
    for folder in folders.values():
        assert load_sourced(str(folder)).prepare(None, whole)["input_ids"].shape == (1, CONTEXT)
    assert zoo.preprocess("digits-clip", text="a " * (LENGTH - 2))["input_ids"].shape == (1, LENGTH)


@pytest.mark.parametrize(("name", "dual"), [("clip", True), ("siglip", True), ("zoo:digits-clip", True), ("zoo:digits-vit", False)])
def test_a_dual_encoder_is_known_by_its_temperature(folders, name, dual):
    assert load_sourced(str(folders.get(name, name))).is_dual_encoder is dual


@pytest.fixture
def panels_of(capsys, tmp_path, monkeypatch):
    """A command's standard output aside: the panels, the picture and the title that it draws."""
    found = []
    monkeypatch.setattr("zeroline.report.texts_figure.figure", lambda *given: found.append(given))

    def command(*arguments):
        explain(capsys, tmp_path, *arguments, *CLIP)
        return found.pop()

    return command


def test_the_figure_of_several_texts_has_their_maps_figures_and_words(panels_of, clip, picture):
    panels, drawn, title = panels_of("--text", SEVEN, "--text", ONE, "--method", "attention_eclip")
    assert list(panels) == [SEVEN, ONE, f"{SEVEN} - {ONE}"]
    assert title == "What attention_eclip finds in the image for each text"
    assert drawn.shape == (64, 64, 3)
    assert torch.allclose(torch.from_numpy(drawn), torch.tensor(np.asarray(picture)) / 255, atol=1e-3)
    against = zl.similarity(against=zoo.preprocess("digits-clip", text=ONE))
    for panel, text, target in zip(panels.values(), (SEVEN, ONE, SEVEN), (zl.similarity(), zl.similarity(), against)):
        truth = zl.attention_eclip(clip, pair(picture, text), target=target)
        assert torch.allclose(torch.from_numpy(panel.heat), truth.grid("pixel_values")[0].double(), atol=1e-6)
        assert panel.below == f"f(x) {float(truth.output):.3g}"
        assert panel.words.words == ("[BOS]", *text.split(), "[EOS]")
        assert torch.allclose(torch.from_numpy(panel.words.heat), truth.by_source["input_ids"][0].double(), atol=1e-6)


@pytest.mark.parametrize(("site", "grid"), [(None, (64, 64)), (SITE, (8, 8)), ("text_model.encoder.layers.1", None)])
def test_the_figure_of_an_attribution_says_how_far_it_adds_up(panels_of, clip, picture, site, grid):
    panels, _, _ = panels_of("--text", SEVEN, "--method", "gradient_x_input", *(["--site", site] if site else []))
    ((label, panel),) = panels.items()
    truth = zl.gradient_x_input(clip, pair(picture, SEVEN), target=zl.similarity(), site=site, baseline=BLACK())
    assert label == SEVEN
    assert panel.words is None
    assert (None if panel.heat is None else panel.heat.shape) == grid
    share = "undefined" if truth.relative_error is None else f"{float(truth.relative_error):.1%}"
    sums = f"sum {float(truth.total):.3g} of difference {float(truth.difference):.3g}"
    assert panel.below == f"f(x) {float(truth.output):.3g}, from black\n{sums}\nerror {share}"
    if site is None:
        assert torch.allclose(torch.from_numpy(panel.heat), truth.values[0].double().sum(0), atol=1e-6)
