"""From examples to inputs: what goes wrong belongs to its example and says where, what has not changed is not decoded, masks are as the model sees them."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from zeroline.errors import InputError, LoadError, UsageError, ZerolineError
from zeroline.model.loading import Sourced
from zeroline.scale import prepare
from zeroline.scale.prepare import Failure, Preparer, by_shape, shapes_of
from zeroline.scale.source import Example, Source, content_hash
from zeroline.spelling.models import load_sourced


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def as_it_is(image, text):
    """Pixels of the image's own size; of a text a number per letter."""
    found = {} if image is None else {"pixel_values": pixels(image)}
    if isinstance(text, tuple):
        text = "|".join(text)
    return found if text is None else {**found, "input_ids": torch.tensor([[ord(letter) for letter in text]])}


def model_of(*reads, make=as_it_is):
    return Sourced("toy", nn.Identity(), make, {}, reads or ("image",))


def halved(image, text):
    """Half as wide and half as high, and a grey level of its own."""
    return {"pixel_values": pixels(image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)) * 2 - 1}


def png(draw="red", size=(6, 4), kind="png"):
    image = draw if isinstance(draw, Image.Image) else Image.new("RGB", size, draw)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def opened(tmp_path, rows, files):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    return Source.open(tmp_path / "t.parquet")


# --- what goes wrong -------------------------------------------------------------------------------------------------------------

GOOD = {"id": "good", "image": "a.png", "text": "hi", "mask": None, "box": "1,1,3,2"}
WRONG = {  # what differs from the good example, the stage, the error, the reason
    "missing": ({"image": "gone.png"}, "read", "LoadError", "cannot read 'gone.png': No such file or directory"),
    "missing mask": ({"mask": "gone.png"}, "read", "LoadError", "cannot read 'gone.png': No such file or directory"),
    "garbage": ({"image": "garbage.png"}, "prepare", "LoadError", "cannot read 'garbage.png' as an image: no format that Pillow knows"),
    "cut": ({"image": "cut.png"}, "prepare", "LoadError", "cannot read 'cut.png' as an image:"),
    "empty": ({"image": "empty.png"}, "prepare", "LoadError", "cannot read 'empty.png' as an image: no format that Pillow knows"),
    "no image": ({"image": None}, "prepare", "InputError", "no image is named"),
    "no text": ({"text": None}, "prepare", "InputError", "there is no text"),
    "empty text": ({"text": ""}, "prepare", "InputError", "there is no text"),
    "garbage mask": ({"mask": "garbage.png"}, "prepare", "LoadError", "cannot read 'the mask of garbage mask' as an image:"),
    "mask of another size": ({"mask": "small.png"}, "prepare", "InputError", "the mask is 3 x 2; the image is 6 x 4"),
    "words for a box": ({"box": "1,1,3"}, "prepare", "UsageError", "cannot read the box '1,1,3'; write LEFT,TOP,RIGHT,BOTTOM in pixels"),
    "fraction": ({"box": "1,1,3.5,2"}, "prepare", "UsageError", "cannot read the box '1,1,3.5,2'"),
    "box outside": ({"box": "1,1,7,2"}, "prepare", "UsageError", "the box 1,1,7,2 is not within the image of 6 x 4"),
    "box inside out": ({"box": "3,1,1,2"}, "prepare", "UsageError", "the box 3,1,1,2 is not within the image of 6 x 4"),
    "too long": ({"text": "long"}, "prepare", "ValueError", "the tokenizer says no, on two lines"),
}
FILES = {"a.png": png(), "garbage.png": b"no picture", "cut.png": png()[:-30], "empty.png": b"", "small.png": png(size=(3, 2))}


def strict(image, text):
    if text == "long":
        raise ValueError("the tokenizer\n   says no,   on two lines")
    return as_it_is(image, text)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_an_example_is_said_and_the_others_are_made(tmp_path, name):
    differs, stage, error, reason = WRONG[name]
    source = opened(tmp_path, [GOOD, {**GOOD, "id": name, **differs}, {**GOOD, "id": "too"}], FILES)
    found = Preparer(model_of("image", "text", make=strict), source).prepared(0, 3, {})
    assert [one.example.id for one in found.ready] == ["good", "too"]
    assert found.unchanged == 0
    (failure,) = found.failures
    assert (failure.number, failure.id, failure.stage, failure.error) == (1, name, stage, error)
    assert failure.reason.startswith(reason)
    assert (failure.image, failure.text) == ({**GOOD, **differs}["image"], {**GOOD, **differs}["text"])
    assert (failure.content_hash is None) is (stage == "read")
    with pytest.raises((ZerolineError, ValueError)) as alone:
        Preparer(model_of("image", "text", make=strict), source).one(1)
    assert " ".join(str(alone.value).split()).startswith(reason)


def test_a_reason_names_no_place_in_memory(tmp_path):
    found = Preparer(model_of(), opened(tmp_path, [{**GOOD, "image": "garbage.png"}, GOOD | {"id": "2"}], FILES)).prepared(0, 1, {})
    assert "0x" not in found.failures[0].reason


def test_a_reason_is_one_line_of_at_most_five_hundred_letters():
    example = Example(2, "x", image="a.png", text="hi")
    said = Failure.of(example, "h", "explain", ValueError("two\n\n lines\t" + "x" * 600), "before: ")
    assert said == Failure(2, "x", "a.png", "hi", "h", "explain", "ValueError", "before: two lines " + "x" * 482)
    assert len(said.reason) == 500
    assert Failure.of(example, None, "read", KeyError()).reason == "KeyError"


# --- what has not changed --------------------------------------------------------------------------------------------------------


def test_what_is_known_is_counted_and_not_decoded(tmp_path, monkeypatch):
    rows = [{**GOOD, "id": id, "box": None, "text": id} for id in ("a", "b", "c", "d")]
    source = opened(tmp_path, rows, FILES)
    assert source.has_places
    decoded = []
    read = prepare.read_image
    monkeypatch.setattr(prepare, "read_image", lambda file, called: decoded.append(called) or read(file, called))
    examples = source.examples(0, 4)
    raw = {"image": FILES["a.png"], "mask": None}
    known = {"a": content_hash(examples[0], raw), "b": "of other contents", "d": content_hash(examples[3], raw), "c": content_hash(examples[0], raw)}
    found = Preparer(model_of("image", "text"), source).prepared(0, 4, known)
    assert found.unchanged == 2
    assert [(one.example.id, one.content_hash) for one in found.ready] == [(one.id, content_hash(one, raw)) for one in examples[1:3]]
    assert decoded == ["a.png", "a.png"]
    assert Preparer(model_of("image", "text"), source).prepared(1, 3, known).unchanged == 0


def test_a_failure_that_is_known_is_not_tried_again_until_its_file_changes(tmp_path):
    source = opened(tmp_path, [GOOD, {**GOOD, "id": "bad", "image": "garbage.png"}], FILES)
    preparer = Preparer(model_of(), source)
    first = preparer.prepared(0, 2, {})
    known = {first.failures[0].id: first.failures[0].content_hash}
    again = preparer.prepared(0, 2, known)
    assert (again.unchanged, again.failures, [one.example.id for one in again.ready]) == (1, (), ["good"])
    (tmp_path / "garbage.png").write_bytes(FILES["a.png"])
    mended = preparer.prepared(0, 2, known)
    assert (mended.unchanged, mended.failures, [one.example.id for one in mended.ready]) == (0, (), ["good", "bad"])


def test_the_hash_holds_only_what_the_model_is_given(tmp_path):
    """A model of texts does not read the images; where objects are is part of every row."""
    source = opened(tmp_path, [{"id": "x", "image": "a.png", "text": "hi"}], FILES)
    by_text, by_both = (Preparer(model_of(*reads), source).one(0).content_hash for reads in (("text",), ("image", "text")))
    assert by_text == content_hash(source.examples(0, 1)[0], {"image": None})
    assert by_both == content_hash(source.examples(0, 1)[0], {"image": FILES["a.png"]})
    (tmp_path / "a.png").unlink()
    assert Preparer(model_of("text"), source).one(0).content_hash == by_text


@pytest.mark.parametrize(
    ("reads", "rows", "said"),
    [
        (("image",), {"text": "hi"}, r"'toy' reads image; the source has no image \(text\); say columns image=NAME"),
        (("image", "text"), {"image": "a.png"}, r"'toy' reads image and text; the source has no text \(image\); say columns text=NAME"),
        (("text",), {"image": "a.png", "label": "x"}, r"'toy' reads text; the source has no text \(image, label\); say columns text=NAME"),
        (("audio",), {"text": "hi"}, "the source has no audio"),
    ],
)
def test_a_source_without_what_the_model_reads_is_refused(tmp_path, reads, rows, said):
    with pytest.raises(UsageError, match=said):
        Preparer(model_of(*reads), opened(tmp_path, [rows], FILES))


def test_pixels_inside_the_source_are_images_too(tmp_path):
    source = opened(tmp_path, [{"image": png("blue"), "label": "sky"}], {})
    found = Preparer(model_of(), source).one(0)
    assert torch.equal(found.inputs["pixel_values"], torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 6))
    with pytest.raises(LoadError, match="cannot read '0' as an image"):
        Preparer(model_of(), opened(tmp_path, [{"image": b"garbage", "label": "sky"}], {})).one(0)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (1, 1), 51), [0.2, 0.2, 0.2]),
        (Image.new("RGBA", (1, 1), (255, 0, 51, 0)), [1.0, 0.0, 0.2]),
        (Image.new("I;16", (1, 1), 65535), [1.0, 1.0, 1.0]),
        (Image.new("1", (1, 1), 1), [1.0, 1.0, 1.0]),
        (Image.new("P", (1, 1)), [0.0, 0.0, 0.0]),
    ],
)
def test_images_of_every_mode_become_colours(tmp_path, image, expected):
    found = Preparer(model_of(), opened(tmp_path, [{"image": png(image)}], {})).one(0)
    assert found.inputs["pixel_values"].flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("passage", "expected"), [(None, "hi"), ("there", "hi|there"), ("", "hi|")])
def test_a_passage_makes_a_pair(tmp_path, passage, expected):
    source = opened(tmp_path, [{"text": "hi", "passage": passage}, {"text": "b", "passage": "c"}], {})
    assert "".join(map(chr, Preparer(model_of("text"), source).one(0).inputs["input_ids"][0].tolist())) == expected


# --- masks -----------------------------------------------------------------------------------------------------------------------


def drawn(rows):
    """White where there is an x."""
    return Image.fromarray(np.array([[255 if letter == "x" else 0 for letter in line] for line in rows], dtype=np.uint8))


def seen(rows):
    return [[letter == "x" for letter in line] for line in rows]


def test_a_mask_is_as_the_model_sees_it(tmp_path):
    mask = ["xx....", "xx....", "..x..x", "..xxxx"]
    files = {"a.png": png(), "m.png": png(drawn(mask))}
    source = opened(tmp_path, [{"image": "a.png", "mask": "m.png"}], files)
    whole = Preparer(model_of(), source).one(0).mask
    assert (whole.dtype, whole.tolist()) == (torch.bool, seen(mask))
    smaller = Preparer(model_of(make=halved), source).one(0).mask
    assert smaller.tolist() == seen(["x..", ".xx"])  # three quarters of the second, three of the third


def test_what_is_less_than_half_white_is_not_inside(tmp_path):
    files = {"a.png": png(size=(4, 2)), "m.png": png(drawn(["..xx", ".xx."]))}
    source = opened(tmp_path, [{"image": "a.png", "mask": "m.png"}], files)
    assert Preparer(model_of(make=halved), source).one(0).mask.tolist() == [[False, True]]


def test_a_box_is_a_mask_from_its_first_to_before_its_last_pixel(tmp_path):
    source = opened(
        tmp_path, [{"image": "a.png", "box": "1,0,3,2"}, {"image": "a.png", "box": "5,3,6,4"}, {"image": "a.png", "box": "0,0,6,4"}], FILES
    )
    masks = [one.mask.tolist() for one in Preparer(model_of(), source).prepared(0, 3, {}).ready]
    assert masks == [seen([".xx...", ".xx...", "......", "......"]), seen(["......", "......", "......", ".....x"]), seen(["xxxxxx"] * 4)]


def test_a_mask_goes_before_a_box_and_an_example_may_have_neither(tmp_path):
    files = {**FILES, "m.png": png(drawn(["x....."] + ["......"] * 3))}
    rows = [
        {"image": "a.png", "mask": "m.png", "box": "1,0,3,2"},
        {"image": "a.png", "mask": None, "box": "0,0,1,1"},
        {"image": "a.png", "mask": None, "box": None},
    ]
    found = Preparer(model_of(), opened(tmp_path, rows, files)).prepared(0, 3, {}).ready
    corner = seen(["x....."] + ["......"] * 3)
    assert [None if one.mask is None else one.mask.tolist() for one in found] == [corner, corner, None]


def test_a_model_that_sees_no_picture_has_no_mask(tmp_path):
    def regions(image, text):
        return {"visual_feats": torch.ones(1, 3, 5)}

    source = opened(tmp_path, [{"image": "a.png", "box": "1,0,3,2"}], FILES)
    found = Preparer(model_of(make=regions), source).prepared(0, 1, {})
    assert (found.failures, found.ready[0].mask) == ((), None)


def test_masks_of_the_zoo_are_those_of_its_samples(tmp_path, samples):
    """Its images have the model's size: the mask is the one that was drawn."""
    sample = samples[12]
    image, mask = png(sample.image), png(Image.fromarray(sample.masks[1].numpy()))
    source = opened(tmp_path, [{"image": image, "mask": mask}], {})
    found = Preparer(load_sourced("zoo:digits-vit"), source).one(0)
    assert torch.equal(found.mask, sample.masks[1])
    assert torch.equal(found.inputs["pixel_values"], sample.inputs["pixel_values"])


# --- shapes ----------------------------------------------------------------------------------------------------------------------


def test_examples_of_one_shape_share_a_group_in_the_order_in_which_they_came(tmp_path):
    sizes = [(6, 4), (4, 6), (6, 4), (5, 5), (4, 6), (6, 4)]
    source = opened(tmp_path, [{"image": png(size=size), "id": str(n)} for n, size in enumerate(sizes)], {})
    found = Preparer(model_of(), source).prepared(0, 6, {})
    assert [[one.example.id for one in group] for group in by_shape(found.ready)] == [["0", "2", "5"], ["1", "4"], ["3"]]


def test_what_inputs_must_share_is_names_shapes_dtypes_and_what_is_no_tensor():
    one = {"x": torch.zeros(1, 2), "y": torch.zeros(1, dtype=torch.int64), "flag": True}
    assert shapes_of(one) == shapes_of({**one, "x": torch.ones(1, 2)})
    others = [
        {**one, "x": torch.zeros(1, 3)},
        {**one, "x": torch.zeros(1, 2).double()},
        {**one, "x": torch.zeros(2)},
        {**one, "flag": False},
        {name: one[name] for name in ("x", "flag")},
        {"z": one["x"], "y": one["y"], "flag": True},
        (one["x"], one["y"]),
        one["x"],
    ]
    assert len({shapes_of(other) for other in (one, *others)}) == 1 + len(others)
    assert shapes_of(one["x"]) == shapes_of((one["x"],))
    assert shapes_of([one["x"], one["y"]]) == shapes_of((one["x"], one["y"]))


def one_size(sourced, tmp_path, rows=None):
    preparer = Preparer(sourced, opened(tmp_path, [rows or {"image": png(size=(64, 64)), "text": "a red seven"}], {}))
    return preparer.has_one_picture_size(preparer.one(0))


@pytest.mark.parametrize("name", ["digits-vit", "digits-clip"])
def test_the_zoo_brings_every_picture_to_one_size(tmp_path, name):
    assert one_size(load_sourced(f"zoo:{name}"), tmp_path)


def picky(image, text):
    if image.width > 100:
        raise ValueError("too large")
    return {"pixel_values": torch.zeros(1, 3, 8, 8)}


def one_way(longer):
    """Pictures of one size give other inputs than all the rest."""

    def make(image, text):
        return {"pixel_values": torch.zeros(1, 3, 64, 64 if image.size != longer else 96)}

    return make


def padded(image, text):
    return {"pixel_values": torch.zeros(1, 3, 8, 8), "pixel_mask": torch.ones(1, image.height, image.width)}


@pytest.mark.parametrize("make", [as_it_is, halved, picky, padded, one_way((64, 96)), one_way((200, 120)), one_way((64, 64))])
def test_a_processor_that_keeps_sizes_or_wants_others_has_none(tmp_path, make):
    assert not one_size(model_of("image", make=make), tmp_path)


def test_a_model_of_texts_has_no_picture_size_and_reads_text(tmp_path):
    preparer = Preparer(model_of("text"), opened(tmp_path, [{"text": "hi"}], {}))
    assert not preparer.has_one_picture_size(preparer.one(0))
    assert preparer.reads_text
    assert not Preparer(model_of("image"), opened(tmp_path, [{"image": png()}], {})).reads_text


def test_an_example_is_ready_on_its_own(tmp_path):
    """``one`` is what ``prepared`` gives of it."""
    source = opened(tmp_path, [GOOD, {**GOOD, "id": "second", "text": "ho"}], FILES)
    preparer = Preparer(model_of("image", "text"), source)
    alone, among = preparer.one(1), preparer.prepared(0, 2, {}).ready[1]
    assert alone.example == among.example == replace(source.examples(0, 1)[0], number=1, id="second", text="ho")
    assert alone.content_hash == among.content_hash
    assert torch.equal(alone.mask, among.mask)
    assert all(torch.equal(alone.inputs[name], among.inputs[name]) for name in ("pixel_values", "input_ids"))
    with pytest.raises(InputError, match="no image is named"):
        Preparer(model_of(), opened(tmp_path, [{**GOOD, "image": None}, GOOD | {"id": "2"}], FILES)).one(0)
