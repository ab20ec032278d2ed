"""Inputs, identity, memory, normalisation and the listing of sites."""

import json

import pytest
import torch
from torch import nn

import zeroline as zl
from zeroline.errors import InputError
from zeroline.model import identity, memory, normalisation
from zeroline.model.inputs import Inputs
from zeroline.model.listing import sites
from zeroline.testing.toys import Structured, Transformer


class Named(nn.Module):
    def forward(self, image, mask=None, *, scale=1.0):
        return image.flatten(1) * scale


def test_positional_inputs_get_the_names_of_the_parameters():
    found = Inputs.of(Named(), (torch.ones(2, 3), torch.ones(2, dtype=torch.int64)))
    assert list(found.named) == ["image", "mask"]
    assert found.call(Named()).shape == (2, 3)


def test_mappings_that_are_no_dict_are_keyword_arguments():
    from collections import UserDict

    found = Inputs.of(Named(), UserDict(image=torch.ones(2, 3), scale=3.0))
    assert found.call(Named()).tolist() == [[3.0] * 3] * 2


def test_rows_repeat_what_has_the_batch_and_leave_the_rest():
    inputs = Inputs.of(Named(), {"image": torch.arange(6.0).view(3, 2), "mask": torch.tensor([[7]]), "scale": 2.0})
    rows = inputs.rows(torch.tensor([2, 0, 2, 2]))
    assert rows.named["image"].tolist() == [[4, 5], [0, 1], [4, 5], [4, 5]]
    assert rows.named["mask"].tolist() == [[7]]
    assert rows.batch == 4


def test_caches_are_off_and_a_given_one_is_not_written_on():
    class Cached(nn.Module):
        def forward(self, x, past=None, use_cache=True):
            assert use_cache is False
            if past is not None:
                past.append(1)
            return x

    past = []
    inputs = Inputs.of(Cached(), {"x": torch.ones(1, 2), "past": past})
    inputs.call(Cached())
    assert past == []
    assert not Inputs.of(Cached(), {"x": torch.ones(1, 2), "past": object()}).repeatable


@pytest.mark.parametrize(("given", "message"), [("x", "not str"), ({"a": 1}, "no tensor"), (torch.tensor(1.0), "no batch")])
def test_bad_inputs_are_one_clear_error(given, message):
    with pytest.raises(InputError, match=message):
        Inputs.of(Named(), given)


def test_the_weights_hash_is_lazy_stable_and_follows_the_weights():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    first = identity.weights_hash(model)
    again = identity.weights_hash(model)
    assert first() == again()
    assert len(first()) == 16
    late = identity.weights_hash(model)
    with torch.no_grad():
        model.weight += 1
    assert "changed" in late()
    assert identity.weights_hash(model)() != first()


def test_the_same_weights_have_the_same_hash_in_every_dtype_they_are_stored_in():
    torch.manual_seed(0)
    a, b = nn.Linear(3, 2).bfloat16(), nn.Linear(3, 2).bfloat16()
    b.load_state_dict(a.state_dict())
    assert identity.weights_hash(a)() == identity.weights_hash(b)()


def test_the_record_keeps_no_reference_to_the_model():
    import gc
    import weakref

    model = nn.Linear(3, 2)
    found = zl.gradient_x_input(model, torch.ones(1, 3), target=0, baseline=zl.baseline.zeros())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert "gone" in found.model_id


def test_the_meter_counts_what_autograd_keeps_once():
    x = torch.randn(1000, requires_grad=True)
    meter = memory.Meter()
    with meter.running():
        y = (x.exp() * x).sum()
    assert y.requires_grad
    assert meter.bytes == 2 * 4000  # exp's result and x, each kept twice and counted once


def test_the_meter_leaves_out_the_weights_of_the_model():
    layer, x = nn.Linear(50, 50, bias=False).requires_grad_(False), torch.randn(3, 50, requires_grad=True)
    for weights, extra in ((layer.parameters(), 0), ((), 50 * 50 * 4)):
        meter = memory.Meter(weights)
        with meter.running():
            y = layer(x).tanh()
        assert y.requires_grad
        assert meter.bytes == 3 * 50 * 4 + extra  # the result of tanh


def test_rows_shrink_with_memory_and_are_never_none(monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda device: 4000)
    assert memory.rows_that_fit(100, torch.device("cpu")) == 10
    assert memory.rows_that_fit(10**9, torch.device("cpu")) == 1
    assert memory.rows_that_fit(0, torch.device("cpu")) == memory.MOST_ROWS["cpu"]


@pytest.mark.parametrize(
    ("config", "black"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, -2.0),
        ({"do_normalize": False}, 0.0),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, -1.0),
    ],
)
def test_the_normalisation_is_read_from_a_preprocessor_config(config, black, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    model = nn.Conv2d(3, 2, 1)
    model.config = type("Config", (), {"_name_or_path": str(tmp_path)})()
    found = normalisation.of(model)
    assert float(found.of(0.0, torch.ones(1, 3, 2, 2))[0, 0, 0, 0]) == pytest.approx(black)


def test_timm_configurations_are_read_too():
    model = nn.Conv2d(3, 2, 1)
    model.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    assert normalisation.of(model).mean == (0.5, 0.4, 0.3)
    assert normalisation.of(nn.Linear(1, 1)) is None


def test_the_listing_names_every_site_once_with_shape_and_cut():
    torch.manual_seed(0)
    found = {s.site: s for s in sites(Transformer().eval(), torch.randn(1, 5, 8), target=0)}
    assert found["input:tokens"].shape == (1, 5, 8)
    assert found["blocks.0"].is_cut is True
    assert found["blocks.0.mlp"].is_cut is False
    assert found["blocks.0.mlp.0"].shape == (1, 5, 16)
    assert found["head"].kind == "Linear"


def test_listed_sites_can_be_asked_for_as_they_are_spelled():
    torch.manual_seed(0)
    model = Structured().eval()
    inputs = {"features": torch.randn(2, 5, 4), "mask": torch.ones(2, 5, dtype=torch.int64)}
    spelled = [s.site for s in sites(model, inputs, target=0)]
    assert {"recurrent[0]", "twice", "twice#1"} <= set(spelled)
    for site in spelled:
        found = zl.gradient_x_input(model, inputs, target=0, site=site, baseline=zl.baseline.zeros())
        assert found.site == site
