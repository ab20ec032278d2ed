"""Photographs whose camera was held another way (EXIF orientation): read upright everywhere, as transformers' pipelines read them."""

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import zeroline as zl
from cli.test_cli import run
from guided.rewriting_toys import levels, photo
from web.pictures import saved
from zeroline import zoo
from zeroline.model.pictures import upright
from zeroline.spelling.sources import open_as_is, open_image
from zeroline.web.limits import Limits

PHOTO = photo(13, 17)
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
NOTE = "turned upright, as its EXIF orientation says"


def held(orientation):
    """EXIF of a camera that was held in one of eight ways."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def sideways(image):
    """The content of a PNG that is ``image`` once it is turned by a quarter, as its EXIF says."""
    return saved(image.transpose(Image.Transpose.ROTATE_90), exif=held(6))


def unlike_names(record):
    """A record without what two files of one photograph may differ in: time, and the file's name."""
    if isinstance(record, dict):
        return {key: unlike_names(value) for key, value in record.items() if key not in ("seconds", "command", "image", "name", "path")}
    return record


@pytest.fixture(scope="module")
def seven():
    return zoo.samples("digits-vit")[0].image.convert("RGB")


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9])
def test_every_orientation_is_undone_once(orientation, kind):
    content = saved(PHOTO, kind, exif=held(orientation), **LOSSLESS[kind])
    expected = levels(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    stored = Image.open(io.BytesIO(content))
    found = upright(stored)
    assert np.array_equal(levels(found), expected)
    assert (found is stored) == (orientation not in range(2, 9) or kind == "TIFF")  # Pillow turns a TIFF itself
    assert np.array_equal(levels(upright(found.convert("RGB"))), expected)  # it says nothing any more


def test_transparency_is_still_known_after_the_turn():
    stored = Image.open(io.BytesIO(saved(PHOTO, exif=held(3), transparency=(1, 2, 3))))
    assert upright(stored).info == {"transparency": (1, 2, 3)}


@settings(deadline=None, max_examples=300, derandomize=True, database=None)
@given(cut=st.integers(0, 40), content=st.binary(max_size=60), keep=st.booleans())
def test_a_spoilt_exif_block_is_no_reason_to_refuse_a_photograph(cut, content, keep):
    block = (held(6).tobytes()[:cut] if keep else b"Exif\0\0") + content
    found = upright(Image.open(io.BytesIO(saved(PHOTO, "PNG", exif=block))))
    assert sorted(found.size) == sorted(PHOTO.size)


def test_a_file_is_opened_upright_and_says_so(tmp_path, capsys, seven):
    for name, content in {"held.png": sideways(seven), "level.png": saved(seven)}.items():
        (tmp_path / name).write_bytes(content)
        for way in (open_image, open_as_is):
            assert np.array_equal(levels(way(tmp_path / name)), levels(seven))
            assert capsys.readouterr().err == (f"note: held.png: {NOTE}\n" if name == "held.png" else "")


def test_commands_explain_and_rewrite_the_upright_photograph(tmp_path, capsys, seven):
    (tmp_path / "held.png").write_bytes(sideways(seven))
    (tmp_path / "level.png").write_bytes(saved(seven))
    box = "2,2,50,40"
    asked = {"explain": ["--method", "gradient_x_input", "--site", "vit.layers.1"], "rewrite": ["--to", "second", "--box", box, "--linf", "8/255"]}
    for command, options in asked.items():
        said = {}
        for name in ("held", "level"):
            status, _, err = run(capsys, command, tmp_path / f"{name}.png", *options, "--out", tmp_path / command / name)
            assert status in (0, 3), err
            said[name] = unlike_names(json.loads((tmp_path / command / name / "record.json").read_text()))
        assert said["held"] == said["level"]


def test_a_pipeline_and_its_explanation_see_the_same_photograph(tmp_path, seven):
    from transformers import ViTImageProcessorPil, pipeline

    model = zoo.load("digits-vit")
    size = {"height": seven.height, "width": seven.width}
    processor = ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    classifier = pipeline("image-classification", model=model, image_processor=processor)
    (tmp_path / "held.png").write_bytes(sideways(seven))
    stored = Image.open(tmp_path / "held.png")
    best = classifier(stored)[0]
    assert best == classifier(seven)[0]
    level = zl.explain(classifier, seven, method="gradient_x_input", target=zl.target.probability(best["label"]))
    for given_as in (stored, tmp_path / "held.png"):
        found = zl.explain(classifier, given_as, method="gradient_x_input", target=zl.target.probability(best["label"]))
        assert torch.equal(found.values, level.values)
        assert float(found.output) == pytest.approx(best["score"], abs=1e-6)


def test_a_run_reads_photographs_upright_and_their_masks_too(tmp_path, seven):
    white = Image.new("L", seven.size)
    white.paste(255, (2, 2, 50, 40))
    asked = dict(model="zoo:digits-vit", method="gradient_x_input")
    rows = []
    for name in ("held", "level"):
        folder = tmp_path / name
        folder.mkdir()
        for file, image in {"a.png": seven, "mask.png": white}.items():
            (folder / file).write_bytes(sideways(image) if name == "held" else saved(image))
        (folder / "list.csv").write_text("image,mask\na.png,mask.png\n")
        (row,) = zl.run(folder / "list.csv", out=tmp_path / f"{name}-out", **asked).rows()
        rows.append({key: row[key] for key in ("values", "output", "pointing", "energy") if key in row})
    assert rows[0] == rows[1]
    assert len(rows[0]) > 2


def test_the_web_page_reads_an_upload_upright_and_says_so(seven):
    found, note = Limits().picture(sideways(seven))
    assert np.array_equal(levels(found), levels(seven))
    assert note == NOTE
    large, note = Limits().picture(sideways(photo(1200, 2000)))
    assert large.width > large.height
    assert note == f"{NOTE}; brought down from 2,000 x 1,200 to {large.width} x {large.height}"


def test_a_folder_is_read_with_every_kind_of_picture_that_one_file_may_be(tmp_path, seven):
    from zeroline.spelling.sources import SUFFIXES, image_files

    for suffix in SUFFIXES:
        seven.save(tmp_path / f"a{suffix}")
    assert {path.suffix for path in image_files(tmp_path)} == set(SUFFIXES) >= {".png", ".jpg", ".gif", ".tif", ".tiff"}
    run_of_all = zl.run(tmp_path, model="zoo:digits-vit", out=tmp_path / "out", method="gradient_x_input")
    assert run_of_all.manifest.sessions[-1]["done"] == len(SUFFIXES)
