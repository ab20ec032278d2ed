"""External attention guidance: the same relevance as asked by hand, on the picture before and the one with the guest."""

import numpy as np
import pytest
import torch
from PIL import Image

import zeroline as zl
from zeroline import zoo
from zeroline.cli.guide import read_guest
from zeroline.errors import InputError, LoadError, NotFoundError, TargetError, UsageError
from zeroline.guidance import AFTER, BEFORE
from zeroline.maths.compose import compose
from zeroline.maths.evidence import inside
from zeroline.model.loading import Loaded
from zeroline.model.pictures import pixels_of

AT, SIZE = (2, 2), (24, 24)


def prepared(image):
    return zoo.preprocess("digits-vit", image)


@pytest.fixture(scope="module")
def nine():
    return zoo.samples("digits-vit")[3]


@pytest.fixture(scope="module")
def seven():
    sample = next(s for s in zoo.test_set("digits-vit") if s.labels[0] == 7)
    left, top, right, bottom = sample.boxes[0]
    return zl.Guest(pixels_of(sample.image)[:, top:bottom, left:right], "seven", sample.masks[0][top:bottom, left:right].float())


@pytest.fixture(scope="module")
def found(digits_vit, nine, seven):
    return zl.guide(digits_vit, nine.image, seven, preprocess=prepared, at=AT, size=SIZE)


def by_hand(nine, seven, opacity=1.0):
    """The composed picture as bytes, [64, 64, 3]."""
    picture, _ = compose(pixels_of(nine.image), seven.pixels, AT, SIZE, opacity, seven.alpha)
    return np.asarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0))


def test_the_maps_are_those_of_both_pictures(digits_vit, nine, seven, found):
    inputs = {BEFORE: nine.inputs, AFTER: prepared(Image.fromarray(by_hand(nine, seven)))}
    targets = {"host": "nine", "guest": "seven", "contrast": zl.contrast("nine", "seven")}
    for when, given in inputs.items():
        for name, target in targets.items():
            alone = zl.attention_relevance(digits_vit, given, target=target)
            assert torch.allclose(found.members[name][when].grid(), alone.grid(), atol=1e-6)
            assert float(found.members[name][when].output[0]) == pytest.approx(float(alone.output[0]), rel=1e-5)


def test_pictures_and_probabilities_are_the_models_own(digits_vit, nine, seven, found):
    assert np.array_equal(np.asarray(found.pictures[BEFORE].permute(1, 2, 0)), np.asarray(nine.image))
    assert np.array_equal(np.asarray(found.pictures[AFTER].permute(1, 2, 0)), by_hand(nine, seven))
    shares = digits_vit(**prepared(Image.fromarray(by_hand(nine, seven)))).logits.detach().softmax(-1)[0]
    assert found.probabilities[AFTER] == pytest.approx({"host": float(shares[9]), "guest": float(shares[7])}, rel=1e-4)


def test_what_moved_is_the_share_on_the_guests_place(found, seven):
    _, where = compose(torch.zeros(3, 64, 64), seven.pixels, AT, SIZE, 1.0, seven.alpha)
    assert torch.equal(found.where, where)
    for name in found.members:
        shares = [float(inside(found.members[name][when].grid(), where[None])[0]) for when in (BEFORE, AFTER)]
        assert found.on_guest(name, AFTER) == pytest.approx(shares[1])
        assert found.moved(name) == pytest.approx(shares[1] - shares[0])


def test_new_detail_is_what_rose_off_the_guests_place(found):
    cells = torch.nn.functional.adaptive_max_pool2d(found.where[None, None].float(), (8, 8))[0, 0].bool()
    for name in found.members:
        parts = []
        for when in (BEFORE, AFTER):
            heat = found.members[name][when].grid()[0].double().clamp(min=0)
            heat[cells] = 0
            parts.append(heat / heat.sum())
        rose = sum(max(float(b - a), 0.0) for a, b in zip(parts[0].flatten(), parts[1].flatten()))
        assert found.detail(name) == pytest.approx(rose)
        assert 0 < found.detail(name) < 1


def test_transfer_is_that_of_raw_attention(digits_vit, nine, found):
    curve = zl.attention_transfer(digits_vit, nine.inputs, target="nine").curve[:, 0]
    assert torch.allclose(found.own[BEFORE], curve.double(), atol=1e-6)
    assert not torch.allclose(found.own[AFTER], found.own[BEFORE])


def test_a_faint_guest_moves_less(digits_vit, nine, seven, found):
    faint = zl.guide(digits_vit, nine.image, seven, preprocess=prepared, at=AT, size=SIZE, opacity=0.1)
    assert abs(faint.moved("host")) < abs(found.moved("host"))
    assert faint.probabilities[AFTER]["host"] > found.probabilities[AFTER]["host"]


def test_a_saved_record_comes_back(found, tmp_path):
    found.save(tmp_path / "guided.safetensors")
    back = zl.Guidance.load(tmp_path / "guided.safetensors")
    assert repr(back) == repr(found)
    assert back.to_dict() == found.to_dict()
    assert torch.equal(back.pictures[AFTER], found.pictures[AFTER])
    found.members["host"][BEFORE].save(tmp_path / "one.safetensors")
    with pytest.raises(LoadError, match="not guidance of format 1"):
        zl.Guidance.load(tmp_path / "one.safetensors")


def test_the_figure_shows_both_rows_and_the_shares(found):
    from zeroline.report import guidance_figure

    drawn = guidance_figure.figure(found)
    titles = [axis.get_title() for axis in drawn.axes]
    assert sum("logit of nine - seven" in title for title in titles) == 2
    assert any(title.startswith("after: p(host)") for title in titles)
    labels = [axis.get_xlabel() for axis in drawn.axes]
    assert any(f"{found.on_guest('contrast', AFTER):.0%} on the guest's place" in label for label in labels)
    transfer = next(axis for axis in drawn.axes if "transfer" in axis.get_title())
    assert transfer.lines[1].get_ydata().tolist() == pytest.approx(found.own[AFTER].tolist())


def test_host_and_guest_of_one_class_are_refused(digits_vit, nine, seven):
    with pytest.raises(TargetError, match="host and guest are both class 7"):
        zl.guide(digits_vit, nine.image, seven, preprocess=prepared, at=AT, size=SIZE, host="seven")
    with pytest.raises(InputError, match="is not wholly on the host"):
        zl.guide(digits_vit, nine.image, seven, preprocess=prepared, at=(50, 2), size=SIZE)


def test_guests_are_digits_or_images_with_a_class(digits_vit, tmp_path, nine):
    labels = {name: i for i, name in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])}
    loaded = Loaded("digits-vit", digits_vit, prepared, labels)
    assert read_guest("7", None, loaded).label == "seven"
    assert read_guest("Seven", None, loaded).alpha.shape == read_guest("seven", None, loaded).pixels.shape[1:]
    nine.image.save(tmp_path / "guest.png")
    patch = read_guest(str(tmp_path / "guest.png"), "9", loaded)
    assert (patch.label, patch.alpha, patch.pixels.shape) == (9, None, (3, 64, 64))
    with pytest.raises(UsageError, match="say its class with --guest"):
        read_guest(str(tmp_path / "guest.png"), None, loaded)
    with pytest.raises(NotFoundError, match="no digit 'sevn'; nearest: seven"):
        read_guest("sevn", None, loaded)
    with pytest.raises(UsageError, match="has no class 'seven'"):
        read_guest("seven", None, Loaded("cats", digits_vit, prepared, {"cat": 0}))
