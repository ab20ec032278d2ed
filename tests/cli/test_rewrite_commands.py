"""``zeroline rewrite`` and ``zeroline robustness``: what they print and write, and one clear line for what is wrong."""

import json

import numpy as np
import pytest
from PIL import Image

import zeroline as zl
from zeroline import zoo
from zeroline.cli import main
from zeroline.errors import UsageError
from zeroline.spelling.reading import read_epsilon


def run(capsys, *arguments):
    status = 0
    try:
        main(list(map(str, arguments)))
    except SystemExit as ended:
        status = ended.code or 0
    shown = capsys.readouterr()
    return status, shown.out, shown.err


@pytest.fixture
def nine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample = zoo.samples("digits-vit")[3]
    sample.image.save("nine.png")
    Image.fromarray(sample.masks[0].numpy()).save("mask.png")
    return tmp_path


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for sample in zoo.test_set("digits-vit")[:4]:
        sample.image.save(f"pictures/{sample.name}.png")
    return tmp_path


def levels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_the_picture_that_is_written_has_the_class_and_keeps_the_budget(capsys, nine, digits_vit):
    status, out, err = run(capsys, "rewrite", "nine.png", "--to", "seven", "--linf", "3/255")
    assert (status, err) == (0, "")
    assert "nine -> seven" in out
    assert "seven (success)" in out
    scores = digits_vit(**zoo.preprocess("digits-vit", Image.open("out/rewritten.png"))).logits
    assert digits_vit.config.id2label[int(scores.argmax())] == "seven"
    assert np.abs(levels("out/rewritten.png") - levels("nine.png")).max() <= 3
    assert np.array_equal(levels("out/original.png"), levels("nine.png"))
    assert sorted(p.name for p in (nine / "out").iterdir()) == [
        "figure.png",
        "original.png",
        "record.json",
        "rewriting.safetensors",
        "rewritten.png",
    ]
    assert zl.Rewriting.load("out").to_dict() == json.loads((nine / "out/record.json").read_text())


def test_json_is_the_record(capsys, nine):
    status, out, _ = run(capsys, "rewrite", "nine.png", "--to", "any", "--smallest", "--linf", "8/255", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["success"] is True
    assert found["tried"][0][0] == pytest.approx(8 / 255)
    assert "out/rewritten.png" in found["files"]


def test_a_mask_and_a_box_say_where(capsys, nine):
    inside = np.asarray(Image.open("mask.png").convert("L")) > 127
    run(capsys, "rewrite", "nine.png", "--to", "any", "--mask", "mask.png", "--linf", "16/255")
    moved = (levels("out/rewritten.png") != levels("nine.png")).any(-1)
    assert moved.any()
    assert not moved[~inside].any()
    run(capsys, "rewrite", "nine.png", "--to", "any", "--box", "10,20,30,50")
    moved = (levels("out/rewritten.png") != levels("nine.png")).any(-1)
    assert moved.any()
    moved[20:50, 10:30] = False
    assert not moved.any()


def test_patches_and_similarity_are_kept(capsys, nine):
    _, out, _ = run(capsys, "rewrite", "nine.png", "--to", "second", "--patches", "5", "--ssim", "0.97", "--json")
    found = json.loads(out)
    assert found["touched"] <= 5
    assert found["ssim"] >= 0.97


def test_no_success_is_said_and_is_no_error(capsys, nine):
    status, out, _ = run(capsys, "rewrite", "nine.png", "--to", "four", "--linf", "1/255", "--steps", "2")
    assert status == 0
    assert "no success within the budget" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "nine"], "says 'nine' of this picture already"),
        (["--to", "sevn"], "nearest: seven"),
        (["--to", "12"], "the model has 10"),
        (["--to", "seven", "--linf", "0"], "a budget of nothing"),
        (["--to", "seven", "--linf", "0.5/255"], "less than 1/255"),
        (["--to", "seven", "--linf", "two"], "cannot read --linf 'two'"),
        (["--to", "seven", "--linf", "1/0"], "cannot read --linf"),
        (["--to", "seven", "--patches", "65"], "8 x 8 = 64"),
        (["--to", "seven", "--box", "60,60,80,80"], "not within the image"),
        (["--to", "seven", "--smallest", "--ssim", "0.9"], "least epsilon"),
        (["--to", "seven", "--steps", "0"], "at least 1"),
        (["--to", "seven", "--model", "zoo:digits-cnn", "--patches", "4"], "no attention"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, nine, arguments, words):
    status, _, err = run(capsys, "rewrite", "nine.png", *arguments)
    assert status == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (nine / "out").exists()


def test_pictures_that_were_converted_say_so(capsys, nine):
    see_through = Image.open("nine.png").convert("RGBA")
    see_through.putalpha(128)
    see_through.save("alpha.png")
    status, _, err = run(capsys, "rewrite", "alpha.png", "--to", "any")
    assert status == 0
    assert "RGBA converted to RGB, its transparency dropped" in err
    deep = np.asarray(Image.open("nine.png").convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save("deep.png")
    _, _, err = run(capsys, "rewrite", "deep.png", "--to", "any")
    assert "16-bit grey brought to 8 bits per channel" in err
    assert np.array_equal(levels("out/original.png")[..., 0], deep // 257)
    assert "deep.png: 16-bit grey" in run(capsys, "explain", "deep.png", "--baseline", "black")[2]
    Image.new("RGB", (6, 6)).save("small.png")
    assert "at least 11 x 11 pixels" in run(capsys, "rewrite", "small.png", "--to", "any")[2]


def test_a_folder_gives_a_table_and_a_record_per_model(capsys, pictures):
    status, out, err = run(capsys, "robustness", "pictures", "--model", "zoo:digits-vit", "--model", "zoo:digits-cnn")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["digits-vit", "4"], ["digits-cnn", "4"]]
    assert "digits-cnn, the most fragile first" in lines
    record = json.loads((pictures / "out/record.json").read_text())
    for i, one in enumerate(record["models"]):
        assert zl.Robustness.load(f"out/robustness-{i}.safetensors").to_dict() == one
        assert [p["name"] for p in one["pictures"]] == ["000.png", "001.png", "002.png", "003.png"]


def test_what_cannot_be_read_is_left_out_and_named(capsys, pictures):
    (pictures / "pictures/broken.png").write_bytes(b"no picture")
    Image.new("RGB", (5, 5)).save("pictures/tiny.png")
    status, out, err = run(capsys, "robustness", "pictures", "--json")
    assert status == 0
    assert "broken.png left out: cannot read" in err
    assert "tiny.png left out: the picture is 5 x 5" in err
    found = json.loads(out)
    assert list(found["unreadable"]) == ["broken.png"]
    assert len(found["models"][0]["pictures"]) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no folder 'nowhere'"),
        (["pictures", "--count", "0"], "1 or more"),
        (["pictures", "--linf", "1/255", "--l2", "1"], "one norm"),
        (["pictures", "--to", "thre"], "nearest: three"),
    ],
)
def test_what_is_wrong_with_a_set_is_one_line(capsys, pictures, arguments, words):
    status, _, err = run(capsys, "robustness", *arguments)
    assert status == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_epsilons_are_numbers_or_fractions():
    assert read_epsilon(None, "--l2") is None
    assert [read_epsilon(text, "--l2") for text in ("2/255", "0.5", " 1 / 4 ", "1e-2")] == [2 / 255, 0.5, 0.25, 0.01]
    for text in ("", "a", "1/2/3", "-1", "nan", "1/0"):
        with pytest.raises(UsageError, match="cannot read --l2"):
            read_epsilon(text, "--l2")
