"""``zeroline corrections``, directions and guides on the command line."""

import json

import pytest
import torch
from PIL import Image

import zeroline as zl
from cli.test_cli import run
from zeroline import zoo
from zeroline.errors import UsageError
from zeroline.spelling.reading import read_target
from zeroline.target import ClassTarget


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample = zoo.samples("digits-vit")[12]
    sample.image.save("pair.png")
    Image.fromarray(sample.masks[0].numpy()).save("mask.png")
    return tmp_path


def test_the_command_gives_what_the_library_gives(folder, digits_vit, capsys):
    status, out, _ = run(capsys, "corrections", "pair.png", "--direction", "one - nine", "--mask", "mask.png", "--json")
    assert status == 0
    record = json.loads(out)
    sample = zoo.samples("digits-vit")[12]
    truth = zl.corrections(digits_vit, sample.inputs, target=zl.contrast("one", "nine"), mask=sample.masks[0])
    assert list(record["figures"]) == list(truth.members)
    for label, figures in truth.figures().items():
        assert record["figures"][label]["inside"] == pytest.approx(figures["inside"].tolist())
    back = zl.Corrections.load("out/corrections.safetensors")
    assert torch.allclose(back.maps("signed, complete"), truth.maps("signed, complete"))
    assert {path.name for path in (folder / "out").iterdir()} == {"corrections.safetensors", "figure.png", "record.json"}


def test_the_table_has_a_row_per_way(folder, capsys):
    status, out, _ = run(capsys, "corrections", "pair.png", "--box", "0,0,20,20")
    assert status == 0
    assert sum(line.startswith(("positive", "absolute", "negative", "signed")) for line in out.splitlines()) == 8


@pytest.mark.parametrize(
    ("text", "classes", "weights"),
    [
        ("one - nine", (1, 9), (1.0, -1.0)),
        ("2 one - nine + 0.5 two", (1, 9, 2), (2.0, -1.0, 0.5)),
        ("7 - 1", (7, 1), (1.0, -1.0)),
        ("one + .5 9", (1, 9), (1.0, 0.5)),
    ],
)
def test_directions_are_contrasts_and_mixes(text, classes, weights):
    labels = {name: i for i, name in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])}
    found = read_target(text, labels)
    assert isinstance(found, ClassTarget)
    assert (found.classes, found.weights) == (classes, weights)


def test_a_class_named_twice_in_a_mix_is_refused():
    with pytest.raises(UsageError, match="class 1 is named twice"):
        read_target("one - nine + 2 one", {"one": 1, "nine": 9})


def test_guides_are_a_mask_a_box_or_an_explanation(folder, digits_vit, capsys):
    sample = zoo.samples("digits-vit")[12]
    share = torch.nn.functional.adaptive_avg_pool2d(sample.masks[0][None, None].double(), (8, 8))[0, 0]
    box = torch.zeros(8, 8, dtype=torch.float64)
    box[4:, :4] = 1
    first = zl.attention_relevance(digits_vit, sample.inputs, target="nine")
    first.save("first.safetensors")
    explanation = first.grid()[0].double() / first.grid().double().max()
    for given, guide in (("mask.png", share), ("0,32,32,64", box), ("first.safetensors", explanation)):
        status, _, _ = run(capsys, "attend", "pair.png", "--direction", "one", "--guide", given, "--json")
        assert status == 0, given
        truth = zl.attention_relevance(digits_vit, sample.inputs, target="one", guide=guide)
        assert torch.allclose(zl.Relevance.load("out/relevance.safetensors").grid(), truth.grid(), atol=1e-6), given


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--guide", "nope.png"), "no image file 'nope.png'"),
        (("--guide", "60,60,90,90"), "is not within the image of 64 x 64"),
        (("--guide", "1,2,3"), "cannot read --box '1,2,3'"),
        (("--guide", "nope.safetensors"), "no file 'nope.safetensors'"),
        (("--direction", "one - elf"), "no class 'elf'"),
        (("--mask", "mask.png", "--box", "0,0,9,9"), "both given"),
        (("--text", "a"), "reads no text"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_files(folder, capsys, arguments, said):
    status, _, err = run(capsys, "corrections", "pair.png", *arguments)
    assert status in (1, 2)
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (folder / "out").exists()
