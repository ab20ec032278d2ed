"""All corrections side by side are the single ones, and the numbers that tell them apart are those of the definitions."""

import pytest
import torch
from scipy.stats import spearmanr

import zeroline as zl
from zeroline import zoo
from zeroline.errors import InputError, LoadError, NotFoundError
from zeroline.maths.evidence import coverage, inside, pointing

CONTRAST = zl.contrast("one", "nine")


@pytest.fixture(scope="module")
def pair():
    return zoo.samples("digits-vit")[12:14]


@pytest.fixture(scope="module")
def found(digits_vit, pair):
    masks = torch.stack([sample.masks[0] for sample in pair])
    return zl.corrections(digits_vit, zoo.collate(pair), target=CONTRAST, mask=masks)


def test_each_is_the_attention_relevance_of_its_name(digits_vit, pair, found):
    assert len(found.members) == 8
    for label, one in found.members.items():
        correction, covered = label.split(", ")
        alone = zl.attention_relevance(digits_vit, zoo.collate(pair), target=CONTRAST, correction=correction, coverage=covered)
        assert torch.equal(one.by_source["pixel_values"], alone.by_source["pixel_values"])


def test_the_four_corrections_differ_and_so_do_the_coverages(found):
    maps = [found.maps(label) for label in found.members]
    assert all(not torch.equal(a, b) for i, a in enumerate(maps) for b in maps[:i])


def test_the_figures_are_those_of_the_maps(found):
    for label, figures in found.figures().items():
        maps = found.maps(label)
        assert torch.equal(figures["inside"], inside(maps, found.mask))
        assert torch.equal(figures["pointing"], pointing(maps, found.mask))
        assert torch.equal(figures["coverage"], coverage(maps, found.mask))


def test_agreement_is_the_rank_correlation_of_the_maps(found):
    agreement = found.agreement()
    labels = list(found.members)
    assert agreement.shape == (2, 8, 8)
    for sample in range(2):
        for i, a in enumerate(labels):
            for j, b in enumerate(labels):
                rho = spearmanr(found.maps(a)[sample].flatten(), found.maps(b)[sample].flatten()).statistic
                assert float(agreement[sample, i, j]) == pytest.approx(rho, abs=1e-9)


def test_the_table_says_what_the_figures_say(found):
    row = found.rows(1)[0]
    figures = found.figures()["positive, complete"]
    assert row[:3] == ("positive", "complete", f"{float(figures['inside'][1]):.0%}")
    assert row[3] == ("yes" if figures["pointing"][1] else "no")
    assert row[4] == f"{float(figures['coverage'][1]):.0%}"
    first = found.agreement()[1, 0].clone()
    first[0] = -2
    best = int(first.argmax())
    assert row[5] == f"{float(first[best]):+.2f} {list(found.members)[best]}"
    assert "positive" in repr(found)


def test_without_a_mask_there_are_maps_and_agreement_only(digits_vit, pair):
    bare = zl.corrections(digits_vit, pair[0].inputs, target="one")
    assert bare.figures() == {}
    assert bare.rows()[0][2:5] == ("-", "-", "-")


def test_a_guide_reaches_every_correction(digits_vit, pair):
    guide = torch.zeros(8, 8)
    guide[4:] = 1
    guided = zl.corrections(digits_vit, pair[0].inputs, target="one", guide=guide)
    alone = zl.attention_relevance(digits_vit, pair[0].inputs, target="one", correction="negative", guide=guide)
    assert torch.equal(guided.maps("negative, complete"), alone.grid())


def test_words_are_compared_along_the_line(pair):
    model, inputs = zoo.load("digits-clip"), zoo.samples("digits-clip")[12].inputs
    words = zl.corrections(model, inputs, target=zl.similarity(), source="input_ids")
    assert words.maps("positive, complete").shape == (1, 1, 16)


def test_a_saved_record_comes_back(found, tmp_path):
    found.save(tmp_path / "all.safetensors")
    back = zl.Corrections.load(tmp_path / "all.safetensors")
    assert repr(back) == repr(found)
    assert torch.equal(back.mask, found.mask)
    assert all(torch.equal(back.maps(label), found.maps(label)) for label in found.members)
    found.members["positive, complete"].save(tmp_path / "one.safetensors")
    with pytest.raises(LoadError, match="holds relevance 2, not corrections of format 1"):
        zl.Corrections.load(tmp_path / "one.safetensors")


def test_what_does_not_fit_is_one_clear_error(digits_vit, pair):
    inputs = pair[0].inputs
    with pytest.raises(NotFoundError, match="no stream 'pixels'; nearest: pixel_values"):
        zl.corrections(digits_vit, inputs, target="one", source="pixels")
    with pytest.raises(InputError, match=r"for 1 samples; found \(2, 64, 64\)"):
        zl.corrections(digits_vit, inputs, target="one", mask=torch.ones(2, 64, 64, dtype=torch.bool))
    with pytest.raises(InputError, match="'input_ids' lies on no grid"):
        zl.corrections(
            zoo.load("digits-clip"), zoo.samples("digits-clip")[0].inputs, target=zl.similarity(), source="input_ids", mask=torch.ones(64, 64).bool()
        )
