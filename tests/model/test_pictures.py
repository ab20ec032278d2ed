"""PIL images as tensors and back: no level is lost, and what is not 8-bit RGB is converted and said to be."""

import numpy as np
import pytest
import torch
from PIL import Image

from guided.rewriting_toys import levels, photo
from zeroline.errors import InputError
from zeroline.model.pictures import byte, eight_bit, image_among, picture, pixels_of, place_seen

PHOTO = photo(13, 17)


def grey16(values):
    return Image.fromarray(np.asarray(values, np.uint16))


def with_alpha(image, mode="RGBA"):
    found = image.convert(mode)
    found.putalpha(Image.fromarray(np.random.default_rng(0).integers(0, 256, (image.height, image.width), dtype=np.uint8)))
    return found


def test_levels_survive_the_way_there_and_back():
    found = picture(byte(pixels_of(PHOTO)))
    assert np.array_equal(levels(found), levels(PHOTO))
    assert (found.size, found.mode) == (PHOTO.size, "RGB")
    assert pixels_of(PHOTO).permute(1, 2, 0).numpy() == pytest.approx(levels(PHOTO) / 255, abs=1e-7)


def test_every_level_is_its_own_after_division():
    all_levels = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(byte(all_levels.to(dtype) / 255), all_levels)


def test_a_byte_is_the_nearest_level_and_never_wraps_round():
    values = np.random.default_rng(0).uniform(-0.5, 1.5, 2000)
    nearest = np.abs(values[:, None] - np.arange(256) / 255).argmin(1)
    assert np.array_equal(byte(torch.from_numpy(values)).numpy(), nearest)


def test_eight_bit_rgb_stays_the_same_object():
    found, note = eight_bit(PHOTO)
    assert found is PHOTO
    assert note == ""


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes_are_converted_as_pil_does_and_said(mode):
    given = PHOTO.convert(mode) if mode != "HSV" else PHOTO.convert("HSV")
    found, note = eight_bit(given)
    assert found.mode == "RGB"
    assert np.array_equal(levels(found), levels(given))
    assert note == f"{mode} converted to RGB"


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped_and_said(mode):
    base = PHOTO if mode == "RGBA" else PHOTO.convert("L")
    found, note = eight_bit(with_alpha(base, mode))
    assert np.array_equal(levels(found), levels(base))  # the pixels below, not laid on a colour
    assert note == f"{mode} converted to RGB, its transparency dropped"


def test_a_transparent_colour_of_a_palette_is_said_too(tmp_path):
    PHOTO.quantize(16).save(tmp_path / "palette.png", transparency=3)
    with Image.open(tmp_path / "palette.png") as opened:
        found, note = eight_bit(opened)
    assert note == "P converted to RGB, its transparency dropped"
    assert np.array_equal(levels(found), levels(PHOTO.quantize(16)))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_become_eight_by_rounding(mode):
    values = np.arange(65536).reshape(128, 512)
    given = Image.frombytes("I;16B", (512, 128), values.astype(">u2").tobytes()) if mode == "I;16B" else grey16(values).convert(mode)
    found, note = eight_bit(given)
    assert np.array_equal(levels(found), np.rint(values / 65535 * 255).astype(int)[..., None].repeat(3, -1))
    assert note == "16-bit grey brought to 8 bits per channel"


def test_a_sixteen_bit_png_from_disk_is_read_in_full(tmp_path):
    values = np.linspace(0, 65535, 13 * 17).reshape(13, 17).astype(np.uint16)
    grey16(values).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as opened:
        found, note = eight_bit(opened)
    assert np.array_equal(levels(found)[..., 0], np.rint(values / 257).astype(int))
    assert "16-bit" in note


def test_floating_point_levels_are_rounded_and_clipped():
    values = np.array([[0.0, 254.6, 300.0], [-4.0, 12.4, 12.6]], np.float32)
    found, note = eight_bit(Image.fromarray(values))
    assert levels(found)[..., 1].tolist() == [[0, 255, 255], [0, 12, 13]]
    assert note == "floating-point grey brought to 8 bits per channel"


def test_floating_point_levels_of_at_most_one_are_shares_of_white():
    found, note = eight_bit(Image.fromarray(np.array([[0.0, 0.5, 1.0], [-0.2, 0.12, 0.999]], np.float32)))
    assert levels(found)[..., 2].tolist() == [[0, 128, 255], [0, 31, 255]]
    assert note == "floating-point (0 to 1) grey brought to 8 bits per channel"


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_pictures_are_converted_without_a_warning(mode):
    eight_bit(PHOTO.convert("L").convert(mode) if mode != "I;16" else grey16(np.ones((12, 12))))


def test_the_a_of_lab_is_no_alpha():
    assert eight_bit(Image.new("LAB", (12, 12)))[1] == "LAB converted to RGB"


def test_premultiplied_alpha_is_alpha():
    assert "transparency dropped" in eight_bit(with_alpha(PHOTO).convert("RGBa"))[1]


@pytest.mark.parametrize("given", [np.zeros((12, 12, 3), np.uint8), torch.zeros(3, 12, 12), "picture.png", None])
def test_what_is_no_picture_is_refused(given):
    with pytest.raises(InputError, match=f"a picture is a PIL image, not {type(given).__name__}"):
        eight_bit(given)


def test_the_image_among_inputs_is_the_one_with_four_dimensions_and_real_numbers():
    wanted = torch.zeros(1, 3, 4, 5)
    name, found = image_among({"ids": torch.zeros(1, 4), "mask": torch.zeros(1, 1, 4, 4, dtype=torch.int64), "picture": wanted})
    assert name == "picture"
    assert found is wanted
    assert image_among(wanted) == (None, wanted)
    for nothing in ({}, {"ids": torch.zeros(1, 4)}, torch.zeros(3, 4, 5), [wanted]):
        with pytest.raises(InputError, match="gives no image"):
            image_among(nothing)


def test_a_place_is_seen_where_it_is_more_white_than_black():
    drawn = Image.new("RGB", (16, 12), "black")
    drawn.paste("white", (4, 2, 12, 7))  # the last row of cells is half covered: not more white than black
    expected = torch.zeros(6, 8, dtype=torch.bool)
    expected[1:3, 2:6] = True
    found = place_seen(lambda image: 3 * pixels_of(image.resize((8, 6), Image.Resampling.BOX))[None] - 1, drawn)
    assert torch.equal(found[[0, 1, 2, 4, 5]], expected[[0, 1, 2, 4, 5]])
