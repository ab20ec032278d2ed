"""What a request may bring: at, below and above every bound, and what an upload's bytes are, whatever it is called."""

import math
import re
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile

from web.pictures import EPS, HTML, PDF, SVG, bomb, chunk, claiming, larger_inside, noise, sample, saved
from zeroline.errors import InputError, UsageError, ZerolineError
from zeroline.web.limits import FORMATS, WORKED_ON, Limits


def refused(content, limits=None):
    """The sentence of a refusal; one line, not a word of the server's."""
    with pytest.raises(InputError) as caught:
        (limits or Limits()).picture(content)
    said = str(caught.value)
    assert "\n" not in said
    assert "/" not in said
    assert "0x" not in said  # no address of an object
    return said


def read(content, limits=None):
    return (limits or Limits()).picture(content)


def same(found, expected):
    return np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.fixture
def never_unfolded(monkeypatch):
    """The pixels of a file are never asked for."""

    def load(self):
        raise AssertionError(f"a picture of {self.size} was unfolded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


# --- bounds ----------------------------------------------------------------------------------------------------------------------


def test_bounds_that_are_none_are_refused():
    for name in ("megabytes", "megapixels", "letters", "seconds", "waiting"):
        for value in (0, -1, -math.inf, math.nan):
            with pytest.raises(UsageError, match=f"{name} .* was asked; it is a limit, above 0"):
                Limits(**{name: value})
        assert getattr(Limits(**{name: 1}), name) == 1


@pytest.mark.parametrize("letters", [1, 7, 300])
def test_a_text_may_have_as_many_letters_as_the_limit_and_no_more(letters):
    limits = Limits(letters=letters)
    for count in (0, letters - 1, letters):
        assert limits.text("é" * count) == "é" * count
    with pytest.raises(InputError, match=f"the text has {letters + 1} letters; {letters} are possible here"):
        limits.text("é" * (letters + 1))


def test_white_space_around_a_text_does_not_count_and_no_text_is_the_empty_one():
    limits = Limits(letters=3)
    assert limits.text(" \n\t abc \n ") == "abc"
    assert limits.text(None) == limits.text("") == limits.text(" " * 1_000_000) == ""
    with pytest.raises(InputError, match="1,000,000 letters; 3 "):
        limits.text("x" * 1_000_000)


def test_a_file_may_have_as_many_bytes_as_the_limit_and_no_more():
    content = saved(noise())
    exactly = Limits(megabytes=len(content) / 2**20)
    assert same(read(content, exactly)[0], noise())
    said = refused(content + b"\x00", exactly)
    assert said.startswith("the file has 0.0 MB")
    assert refused(bytes(11 * 2**20)) == "the file has 11.0 MB; 10 are possible here"


def test_a_file_that_is_too_large_is_not_even_opened(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    assert "MB" in refused(bytes(2**20 + 1), Limits(megabytes=1))


@pytest.mark.parametrize(("width", "height"), [(50, 20), (1000, 1), (1, 1000), (25, 40)])
def test_a_picture_may_have_as_many_pixels_as_the_limit_and_no_more(width, height):
    limits = Limits(megapixels=0.001)
    found, note = read(saved(noise(height, width)), limits)
    assert found.size == (width, height)
    assert note == ""
    assert (
        refused(saved(noise(height, width + 1)), limits) == f"the picture is {width + 1:,} x {height:,}; up to 0.001 million pixels are possible here"
    )
    assert f"x {height + 1:,}; up to" in refused(saved(noise(height + 1, width)), limits)


@pytest.mark.parametrize("size", [(20_000, 20_000), (5_001, 5_000), (2**31 - 1, 1), (1, 2**31 - 1), (26_000_000, 1)])
def test_what_would_unfold_into_too_many_pixels_is_refused_by_its_head_alone(never_unfolded, size):
    assert len(claiming(*size)) < 100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of Pillow, between 89 and 179 million
        assert re.search("pixels", refused(claiming(*size)))


def test_a_whole_bomb_is_refused_without_being_unfolded(never_unfolded):
    content = bomb(12_000, 8_000)  # 96 million pixels
    assert len(content) < 20_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert refused(content) == "the picture is 12,000 x 8,000; up to 25 million pixels are possible here"


def test_a_bomb_below_the_bound_of_pillow_is_refused_without_a_warning(never_unfolded):
    assert refused(bomb(6_000, 6_000)) == "the picture is 6,000 x 6,000; up to 25 million pixels are possible here"


def test_a_picture_that_is_larger_inside_than_it_says_is_refused_by_what_is_inside(never_unfolded):
    assert "pixels" in refused(larger_inside(60_000, 60_000))
    assert "6,000 x 6,000" in refused(larger_inside(6_000, 6_000))


def test_text_inside_a_picture_that_would_unfold_is_refused():
    import zlib

    text = chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(80 * 2**20)))
    assert len(text) < 2**20
    assert "cannot be read" in refused(claiming(4, 4, text, content=bytes(4 * 13)))


# --- kinds -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_every_kind_that_is_named_is_read(kind):
    with_loss = kind in ("JPEG", "WEBP", "GIF")
    content = saved(noise(), kind)
    found, _ = read(content)
    assert found.mode == "RGB"
    assert found.size == (40, 24)
    if not with_loss:
        assert same(found, noise())


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "TGA", "PCX", "DDS", "JPEG2000", "PDF", "EPS", "SGI"])
def test_other_kinds_are_refused_by_their_content(kind):
    try:
        content = saved(noise(32, 32), kind)
    except (OSError, KeyError):
        pytest.skip(f"this Pillow does not write {kind}")
    assert refused(content) == "the file is no picture that is read here; possible are PNG, JPEG, WEBP, BMP, GIF"


@pytest.mark.parametrize(
    "content", [SVG, b'<?xml version="1.0"?>' + SVG, EPS, PDF, HTML, b"a text", bytes(100), b"\x89PNG", b"PK\x03\x04", b"\x7fELF"]
)
def test_what_is_no_picture_is_refused(content):
    assert "the file is no picture that is read here" in refused(content) or "cannot be read" in refused(content)


def test_nothing_is_no_picture():
    assert refused(b"") == "the file is empty"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_was_cut_off_is_refused_or_read_wherever_it_was_cut(kind):
    content = saved(noise(), kind)
    for end in {1, 2, 8, 12, 20, 30, 33, len(content) // 2, len(content) - 30, len(content) - 5}:
        try:
            found, _ = read(content[:end])
        except InputError as problem:
            assert "\n" not in str(problem)
        else:
            assert found.size == (40, 24)
    assert "cannot be read" in refused(content[: len(content) // 2])


def test_a_file_with_any_byte_changed_is_refused_in_a_sentence_or_read():
    rng = np.random.default_rng(0)
    for kind in FORMATS:
        whole = saved(noise(8, 8), kind)
        for _ in range(150):
            content = bytearray(whole)
            for at in rng.integers(0, len(content), 3):
                content[at] = rng.integers(0, 256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Pillow, about what it mends
                try:
                    found, _ = read(bytes(content), Limits(megapixels=0.1))
                except ZerolineError as problem:
                    assert "\n" not in str(problem)
                else:
                    assert found.mode == "RGB"


# --- pictures of other modes -----------------------------------------------------------------------------------------------------


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
        assert read(content)[0].getpixel((3, 3)) == (255, 0, 0), kind


def test_deep_grey_is_brought_to_eight_bits_and_said():
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    found, note = read(saved(Image.fromarray(levels)))
    assert note == "16-bit grey brought to 8 bits per channel"
    assert np.array_equal(np.asarray(found)[..., 1], np.round(levels / 65535 * 255).astype(np.uint8))


def test_transparency_is_dropped_and_said():
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    found, note = read(saved(clear))
    assert found.getpixel((0, 0)) == (10, 20, 30)
    assert note == "RGBA converted to RGB, its transparency dropped"
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    found, note = read(saved(palette, transparency=1))
    assert found.getpixel((0, 0)) == (200, 100, 50)
    assert note == "P converted to RGB, its transparency dropped"


def test_inks_are_converted_and_said():
    found, note = read(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert note == "CMYK converted to RGB"
    assert np.abs(np.asarray(found, int) - (255, 0, 0)).max() <= 4


def test_one_pixel_is_a_picture():
    assert same(read(saved(noise(1, 1)))[0], noise(1, 1))


def test_a_picture_at_the_size_that_is_worked_on_is_left_and_above_it_is_brought_down_and_said():
    found, note = read(saved(noise(3, WORKED_ON)))
    assert same(found, noise(3, WORKED_ON))
    assert note == ""
    found, note = read(saved(noise(512, 2048)))
    assert found.size == (1024, 256)
    assert note == "brought down from 2,048 x 512 to 1024 x 256"


def test_a_thin_picture_keeps_a_pixel_of_its_width():
    found, note = read(saved(noise(1, 20_000)))
    assert found.size == (1024, 1)
    assert "from 20,000 x 1 to 1024 x 1" in note


def test_several_notes_are_one_sentence():
    assert (
        read(saved(Image.new("RGBA", (2000, 10))))[1] == "RGBA converted to RGB, its transparency dropped; brought down from 2,000 x 10 to 1024 x 5"
    )


def test_a_sample_is_read_as_the_zoo_reads_it(samples):
    assert same(read(sample(0))[0], samples[0].image.convert("RGB"))
