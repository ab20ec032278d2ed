"""``zeroline guide`` as a user meets it."""

import json

import pytest

import zeroline as zl
from cli.test_cli import run
from zeroline import zoo


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zoo.samples("digits-vit")[3].image.save("nine.png")
    return tmp_path


def test_the_command_prints_and_writes_the_record(folder, capsys):
    status, out, _ = run(capsys, "guide", "nine.png", "--with", "seven", "--at", "2,2", "--size", "20x24", "--opacity", "0.8", "--json")
    assert status == 0
    record = json.loads(out)
    saved = zl.Guidance.load("out/guidance.safetensors")
    assert record["figures"]["host"]["moved"] == pytest.approx(saved.moved("host"))
    assert record["settings"]["size"] == [20, 24]
    assert record["settings"]["opacity"] == 0.8
    assert {path.name for path in (folder / "out").iterdir()} == {"figure.png", "guidance.safetensors", "record.json"}
    status, out, _ = run(capsys, "guide", "nine.png", "--with", "nine.png", "--guest", "four", "--at", "0,0")
    assert status == 0
    assert "contrast: logit of nine - four" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--with", "seven", "--at", "50,2"), "is not wholly on the host of 64 x 64"),
        (("--with", "seven", "--at", "5"), "cannot read --at '5'; write LEFT,TOP"),
        (("--with", "seven", "--at", "2,2", "--size", "ax4"), "cannot read --size 'ax4'"),
        (("--with", "seven", "--at", "2,2", "--opacity", "0"), "an opacity of 0"),
        (("--with", "nine", "--at", "2,2"), "host and guest are both class 9"),
        (("--with", "cat", "--at", "2,2"), "no digit 'cat'"),
        (("--with", "nope.png", "--at", "2,2", "--guest", "one"), "no image file 'nope.png'"),
        (("--with", "nine.png", "--at", "2,2"), "say its class with --guest"),
        (("--with", "seven", "--at", "2,2", "--host", "ten"), "no class 'ten'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_files(folder, capsys, arguments, said):
    status, _, err = run(capsys, "guide", "nine.png", *arguments)
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (folder / "out").exists()
