"""The record: figures that follow from each other, samples, saving, and errors that help."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import zeroline as zl
from zeroline import Attribution
from zeroline.errors import LoadError, SiteError, UsageError


@pytest.fixture
def record():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))
    return zl.integrated_gradients(model, torch.randn(3, 4), target=[0, 1, 2], baseline=zl.baseline.zeros(), closure="discrete_gradient")


def test_an_attribution_is_frozen(record):
    with pytest.raises(AttributeError):
        record.method = "other"


def test_one_sample_is_cut_out_with_all_its_figures(record):
    one = record.sample(-1)
    assert torch.equal(one.values, record.values[2:])
    assert one.target == ("logit of 2",)
    for name in ("output", "difference", "error", "local_error", "map_error", "raw_error", "evaluations", "relative_error"):
        assert torch.equal(getattr(one, name), getattr(record, name)[2:])
    with pytest.raises(UsageError, match="the record has 3"):
        record.sample(3)


def test_relative_error_is_undefined_per_sample(record):
    mixed = replace(record, baseline_output=torch.where(torch.tensor([True, False, False]), record.output, record.baseline_output))
    assert mixed.relative_error.isnan().tolist() == [True, False, False]
    assert mixed.relative_error_reason
    assert mixed.to_dict()["relative_error"][0] is None
    assert record.relative_error_reason is None


def test_the_difference_counts_from_a_few_units_in_the_last_place(record):
    eps = torch.finfo(torch.float32).eps
    for factor, defined in ((6, False), (12, True)):
        shifted = replace(record.sample(0), output=torch.tensor([1.0]).double(), baseline_output=torch.tensor([1.0 - factor * eps]).double())
        assert bool(shifted.is_defined) is defined


def test_prints_say_what_was_asked_and_how_exact_it_is(record):
    for text in (repr(record), record._repr_html_()):
        for part in ("integrated_gradients", "logit of 0", "zeros", "attribution error", "error before discrete_gradient", "gradient evaluations"):
            assert part in text
    assert "2 more samples" in repr(record)


def test_html_is_escaped(record):
    assert "<script>" not in replace(record, target=("<script>",) * 3)._repr_html_()


def test_sums_over_axes_need_the_right_shape(record):
    with pytest.raises(SiteError, match=r"per_token\(\) reads"):
        record.per_token()
    with pytest.raises(SiteError, match=r"per_pixel\(\) reads"):
        record.per_pixel()


def test_what_is_no_record_is_not_loaded(tmp_path, record):
    with pytest.raises(LoadError, match="no file"):
        Attribution.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("no tensors here")
    with pytest.raises(LoadError, match="not an attribution"):
        Attribution.load(tmp_path / "text")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(LoadError, match="not an attribution"):
        Attribution.load(tmp_path / "other")


def test_a_failed_save_leaves_nothing_behind(tmp_path, record, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        record.save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_per_pixel_and_per_token_keep_the_sum():
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 2))
    images = zl.gradient_x_input(model, torch.randn(1, 2, 3, 4), target=0, baseline=zl.baseline.zeros())
    assert torch.allclose(images.per_pixel().sum().double(), images.total)
    tokens = zl.gradient_x_input(model, torch.randn(1, 6, 4), target=0, baseline=zl.baseline.zeros())
    assert tokens.per_token().shape == (1, 6)
    assert torch.allclose(tokens.per_token().sum().double(), tokens.total)
