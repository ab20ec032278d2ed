"""The record of a rewriting: what is saved comes back, what is printed is what was found, and pictures are written whole or not at all."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import zeroline as zl
from guided.rewriting_toys import Bent, levels, photo, sized
from zeroline import records, zoo
from zeroline.errors import LoadError, UsageError
from zeroline.rewriting import Rewriting, amount, write_png

PHOTO = photo(24, 32, 0, low=20, high=230)


@pytest.fixture(scope="module")
def with_relevance(digits_vit):
    return zl.rewrite(digits_vit, zoo.samples("digits-vit")[3].image, to="four", linf=8 / 255, smallest=True)


@pytest.fixture(scope="module")
def toy():
    given = PHOTO.convert("RGBA")
    model = Bent(24, 32).double().eval()
    return zl.rewrite(model, given, to="second", l2=1.0, preprocess=sized(32, 24), relevance=False, labels={"cat": 0, "dog": 1, "owl": 2, "ant": 3})


@pytest.fixture(scope="module")
def untouched_picture():
    """Nothing within the budget could change: infinite decibels, no success."""
    place = torch.zeros(24, 32, dtype=torch.bool)
    place[0, 0] = True

    class Blind(Bent):  # does not see that pixel
        def forward(self, pixels):
            return super().forward(torch.nn.functional.pad(pixels[..., 1:], (1, 0)))

    return zl.rewrite(Blind(24, 32).double().eval(), PHOTO, to="second", where=place, preprocess=sized(32, 24), relevance=False, steps=2)


ALL = ["with_relevance", "toy", "untouched_picture"]


@pytest.fixture(params=ALL)
def found(request):
    return request.getfixturevalue(request.param)


def test_a_saved_record_comes_back(found, tmp_path):
    found.save(tmp_path / "deep" / "kept")
    for place in (tmp_path / "deep" / "kept", tmp_path / "deep" / "kept" / "rewriting.safetensors"):
        back = Rewriting.load(place)
        assert repr(back) == repr(found)
        assert back.to_dict() == found.to_dict()
        assert torch.equal(back.rewritten, found.rewritten)
        assert torch.equal(back.original, found.original)
        assert back.rewritten.dtype == torch.uint8
        assert (back.grid, back.tried, back.notes, back.psnr) == (found.grid, found.tried, found.notes, found.psnr)
        assert dict(back.survival) == dict(found.survival)
        assert set(back.relevance) == set(found.relevance)
        for when, one in found.relevance.items():
            assert torch.equal(back.relevance[when].grid(), one.grid())


def test_the_folder_holds_both_pictures_and_the_record(found, tmp_path):
    found.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original.png", "record.json", "rewriting.safetensors", "rewritten.png"]
    for name, kept in (("original.png", found.original), ("rewritten.png", found.rewritten)):
        with Image.open(tmp_path / name) as opened:
            assert np.array_equal(levels(opened), kept.permute(1, 2, 0).numpy())
    assert json.loads((tmp_path / "record.json").read_text()) == found.to_dict()


def test_saving_again_replaces_what_was_there(toy, untouched_picture, tmp_path):
    toy.save(tmp_path)
    untouched_picture.save(tmp_path)
    assert Rewriting.load(tmp_path).to_dict() == untouched_picture.to_dict()
    assert len(list(tmp_path.iterdir())) == 4


def test_the_dictionary_is_json_without_nan(found):
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text) == found.to_dict()


def test_the_dictionary_says_what_the_record_holds(with_relevance):
    said = with_relevance.to_dict()
    for name in ("own", "to", "answer", "success", "psnr", "ssim", "linf", "l2", "touched", "evaluations", "judged", "budget", "probabilities"):
        assert said[name] == getattr(with_relevance, name)
    assert said["kind"] == "rewriting"
    assert said["tried"] == [list(one) for one in with_relevance.tried]
    assert said["survival"]["JPEG 90"] == {
        "original": "nine",
        "rewritten": with_relevance.survival["JPEG 90"].rewritten,
        "kept": with_relevance.survival["JPEG 90"].kept,
    }
    assert set(said["relevance"]) == {"before", "after"}
    assert said["settings"]["smallest"] is True
    assert said["settings"]["seed"] == 0


def test_an_unchanged_picture_has_no_decibels(untouched_picture):
    assert math.isinf(untouched_picture.psnr)
    assert untouched_picture.to_dict()["psnr"] is None
    assert dict(untouched_picture.rows())["PSNR"] == "unchanged"
    assert not untouched_picture.success
    assert (untouched_picture.linf, untouched_picture.l2, untouched_picture.touched) == (0, 0, 0)
    assert untouched_picture.ssim == pytest.approx(1, abs=1e-6)
    assert not untouched_picture.difference.any()


def test_the_table_says_what_the_numbers_say(with_relevance):
    rows = dict(with_relevance.rows())
    assert rows["asked"] == "nine -> four"
    assert rows["the saved picture"] == "four (success)"
    assert rows["budget"] == "linf 8/255"
    assert rows["L-infinity"] == f"{round(with_relevance.linf * 255)}/255"
    assert rows["L2"] == f"{with_relevance.l2:.4g}"
    assert rows["PSNR"] == f"{with_relevance.psnr:.1f} dB"
    assert rows["SSIM"] == f"{with_relevance.ssim:.4f}"
    assert rows["cells touched"] == f"{with_relevance.touched} of 8 x 8"
    assert rows["gradient evaluations"] == str(with_relevance.evaluations)
    assert rows["tried"] == ", ".join(f"{round(e * 255)}/255 {'yes' if good else 'no'}" for e, good in with_relevance.tried)
    before, after = with_relevance.probabilities["before"], with_relevance.probabilities["after"]
    assert rows["p(nine)"] == f"{before['own']:.4f} -> {after['own']:.4f}"
    assert rows["p(four)"] == f"{before['to']:.4f} -> {after['to']:.4f}"
    for name, one in with_relevance.survival.items():
        assert rows[f"after {name}"] == f"{one.rewritten} (the original: nine)"
    assert repr(with_relevance).startswith("Rewriting\n")
    assert all(value in repr(with_relevance) for value in rows.values())


def test_no_success_is_said(untouched_picture):
    assert dict(untouched_picture.rows())["the saved picture"].endswith("(no success within the budget)")


def test_amounts_have_their_units():
    assert amount("linf", 2 / 255) == "2/255"
    assert amount("linf", 16 / 255) == "16/255"
    assert amount("l2", 0.123456) == "0.1235"
    assert amount("patches", 6.0) == "6"
    assert amount("ssim", 0.98) == "0.98"


def test_what_was_tried_under_both_budgets_is_said_in_l2():
    model = Bent(24, 32).double().eval()
    found = zl.rewrite(model, PHOTO, to="second", l2=1.0, linf=9 / 255, smallest=True, preprocess=sized(32, 24), relevance=False, steps=8)
    assert found.tried[0] == (1.0, True)
    assert dict(found.rows())["tried"].startswith("1 yes, ")


def test_the_image_is_the_rewritten_picture(found):
    assert found.image.mode == "RGB"
    assert np.array_equal(levels(found.image), found.rewritten.permute(1, 2, 0).numpy())
    expected = found.rewritten.permute(1, 2, 0).numpy().astype(int) - found.original.permute(1, 2, 0).numpy()
    assert np.array_equal(found.difference.permute(1, 2, 0).numpy(), expected)


def test_the_picture_is_saved_as_a_png_of_every_pixel(toy, tmp_path):
    for name in ("one.png", "two.PNG"):
        toy.save_image(tmp_path / name)
        with Image.open(tmp_path / name) as opened:
            assert opened.format == "PNG"
            assert np.array_equal(levels(opened), toy.rewritten.permute(1, 2, 0).numpy())
    toy.save_image(str(tmp_path / "three.png"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "three.png", "two.PNG"]


@pytest.mark.parametrize("name", ["one.jpg", "one.jpeg", "one.webp", "one", "png"])
def test_formats_that_change_pixels_are_refused(toy, tmp_path, name):
    with pytest.raises(UsageError, match=f"saved as .png, which keeps every pixel; '{name}' would not"):
        toy.save_image(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_none_are_refused(toy, tmp_path):
    with pytest.raises(UsageError, match="there is no folder"):
        toy.save_image(tmp_path / "nowhere" / "one.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot save to"):
        toy.save(tmp_path / "file")


class Torn:
    """Writes half a picture, then fails."""

    def save(self, path, format):
        path.write_bytes(b"half")
        raise OSError("disk full")


def test_a_picture_is_written_whole_or_not_at_all(toy, tmp_path):
    kept = tmp_path / "one.png"
    toy.save_image(kept)
    before = kept.read_bytes()
    with pytest.raises(OSError, match="disk full"):
        write_png(Torn(), kept)
    assert kept.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]
    with pytest.raises(OSError, match="disk full"):
        write_png(Torn(), tmp_path / "two.png")
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


def test_no_file_is_a_load_error(tmp_path):
    with pytest.raises(LoadError, match="no file"):
        Rewriting.load(tmp_path)
    with pytest.raises(LoadError, match="no file"):
        Rewriting.load(tmp_path / "nowhere")


def test_other_records_are_a_load_error(digits_vit, toy, tmp_path):
    sample = zoo.samples("digits-vit")[3]
    zl.attention_relevance(digits_vit, sample.inputs, target="nine").save(tmp_path / "one.safetensors")
    with pytest.raises(LoadError, match="holds relevance 2, not rewriting of format 1"):
        Rewriting.load(tmp_path / "one.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(LoadError, match="is not a rewriting that zeroline saved"):
        Rewriting.load(tmp_path / "bare.safetensors")
    records.write(tmp_path / "next.safetensors", {}, {**toy.to_dict(), "format": 2})
    with pytest.raises(LoadError, match="holds rewriting 2, not rewriting of format 1"):
        Rewriting.load(tmp_path / "next.safetensors")


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "zeros"])
def test_damaged_files_are_a_load_error(toy, tmp_path, damage):
    toy.save(tmp_path)
    path = tmp_path / "rewriting.safetensors"
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"not a record at all", "empty": b"", "zeros": bytes(len(whole))}[damage])
    with pytest.raises(LoadError, match="is not a rewriting that zeroline saved"):
        Rewriting.load(tmp_path)


@pytest.mark.parametrize("lacking", ["rewritten", "original", "grid", "survival", "own", "tried"])
def test_a_record_that_lacks_something_is_a_load_error(toy, tmp_path, lacking):
    toy.save(tmp_path)
    with safe_open(str(tmp_path / "rewriting.safetensors"), "pt") as file:
        record = json.loads(file.metadata()["zeroline"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    record.pop(lacking, None)
    tensors.pop(lacking, None)
    records.write(tmp_path / "rewriting.safetensors", tensors, record)
    with pytest.raises(LoadError):
        Rewriting.load(tmp_path)
