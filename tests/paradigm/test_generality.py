"""Mechanism, grounding and logic on every kind of model of several sources, through both implementations of attention.

Each family of the tracer's table whose attention is heterogenous, or that has several streams: two-stream and one-stream models, encoders and
decoders, queries that are learned, plain PyTorch. What each must keep is a law, not a shape.
"""

from functools import cache

import pytest
import torch
from torch import nn

import zeroline as zl
from attention_models import FAMILIES
from zeroline.errors import TargetError, UsageError

SEVERAL = {f"{f.name} ({f.source})": f for f in FAMILIES if f.heterogenous or len(f.streams) > 1}
NAMED = (
    "BLIP, matching", "BLIP, question answering", "BLIP-2's Q-Former", "LXMERT", "ViLT", "T5", "Marian", "Whisper", "TrOCR", "DETR", "LLaVA",
    "nn.TransformerDecoder", "hand-written (einsum, bmm)",
)  # fmt: skip
CASES = [(name, attention) for name, f in SEVERAL.items() for attention in (("sdpa", "eager") if f.has_eager else ("sdpa",))]
IMAGE = 50  # the id that stands for image tokens in LLaVA and BLIP-2


@pytest.fixture(autouse=True)
def _patches_in_order(monkeypatch):
    """ViLT draws the order of its patches anew in every pass; here it is always the first one."""
    monkeypatch.setattr(torch, "multinomial", lambda weights, count, replacement=False: torch.arange(count))


class Answering(nn.Module):
    """BLIP's question answering with the scores of the answer's tokens: its own output has the mean loss of a batch alone."""

    def __init__(self, blip):
        super().__init__()
        self.blip, self.config = blip, blip.config

    def forward(self, input_ids, attention_mask, pixel_values, labels):
        seen = self.blip.vision_model(pixel_values).last_hidden_state
        asked = self.blip.text_encoder(input_ids, attention_mask=attention_mask, encoder_hidden_states=seen)[0]
        return self.blip.text_decoder(labels, encoder_hidden_states=asked, encoder_attention_mask=attention_mask)


@cache
def built(name, attention):
    """(model, inputs, read): weights that make attention uneven, the same for both implementations."""
    family = SEVERAL[name]
    torch.manual_seed(0)
    model, inputs = family.build(attention)
    if isinstance(inputs, torch.Tensor):
        inputs = {family.streams[0]: inputs}
    draw = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.25
    if family.name == "BLIP, question answering":
        inputs = {key: torch.cat([value, value.flip(-1)]) for key, value in inputs.items()}
        inputs["attention_mask"] = inputs["attention_mask"].clamp(min=1)
        return Answering(model).eval(), inputs, lambda output: output.logits[:, -1, 1]
    return model.eval(), inputs, family.read


def baselines(inputs):
    """Zeros for numbers, one token for ids but those that stand for image tokens."""
    word = zl.baseline.token(4, keep=[IMAGE])
    return {name: zl.baseline.zeros() if t.is_floating_point() else word for name, t in inputs.items() if t.dtype != torch.bool}


def emptied(inputs, names):
    """By hand: the inputs with those of ``names`` at their baselines."""
    there = {name: torch.zeros_like(t) if t.is_floating_point() else torch.where(t == IMAGE, t, 4) for name, t in inputs.items() if name in names}
    return {**inputs, **there}


def read(model, inputs, fn):
    with torch.no_grad():
        return fn(model(**inputs)).double()


def close(a, b, scale):
    """Equal up to rounding of float32, beside ``scale``."""
    return float((a - b).abs().max()) <= 1e-5 * max(float(torch.as_tensor(scale).abs().max()), 1e-12)


@cache
def mechanism(name, attention, suffix=True):
    model, inputs, fn = built(name, attention)
    return zl.mechanism(model, inputs, target=zl.target.output(fn), baseline=baselines(inputs), suffix=suffix)


@cache
def grounding(name, attention):
    model, inputs, fn = built(name, attention)
    return zl.ground(model, inputs, target=zl.target.output(fn))


def test_every_family_that_is_promised_is_in_the_table():
    assert set(NAMED) <= {family.name for family in SEVERAL.values()}
    assert type(built("BLIP-2's Q-Former (transformers)", "sdpa")[0]).__name__ == "Blip2ForConditionalGeneration"


# --- mechanism -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_cuts_give_the_same_in_the_rest_of_the_model_and_in_the_whole(name, attention):
    rest, whole = mechanism(name, attention), mechanism(name, attention, suffix=False)
    assert set(whole.execution) <= {"full", ""}
    assert close(rest.effect, whole.effect, whole.effect)
    assert close(rest.head_effect.nan_to_num(0), whole.head_effect.nan_to_num(0), whole.head_effect.nan_to_num(0))
    assert torch.equal(rest.relevance, whole.relevance)


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_a_mechanism_is_of_the_models_own_edges_and_outputs(name, attention):
    model, inputs, fn = built(name, attention)
    found, family = mechanism(name, attention), SEVERAL[name]
    assert found.heterogenous == family.heterogenous
    assert len(found.edges) == family.calls
    assert close(found.output, read(model, inputs, fn), found.output)
    assert not bool(found.effect.isnan().any())
    if family.heterogenous:  # some of them carries something that the target reads
        assert float(found.effect[:, list(family.heterogenous)].abs().max()) > 1e-3
        assert float(found.relevance[:, list(family.heterogenous)].max()) > 0
        assert found.reading().startswith(f"sources meet in {len(family.heterogenous)} of {family.calls} attentions")


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_joint_is_the_model_at_the_baselines_of_all_that_was_cut(name, attention):
    model, inputs, fn = built(name, attention)
    found = mechanism(name, attention)
    cut = {source for edge in found.edges for source in edge.cut}
    assert cut == set(found.baselines)
    assert close(found.joint, read(model, emptied(inputs, cut), fn), found.joint)


def test_the_only_attention_that_reads_a_source_has_all_of_its_effect():
    """Regions are read by one cross-attention: to cut it is to take them away."""
    name = "hand-written (einsum, bmm) (torch)"
    model, inputs, fn = built(name, "sdpa")
    found, without = mechanism(name, "sdpa"), read(model, emptied(inputs, {"regions"}), fn)
    assert found.edges[1].cut == ("regions",)
    assert close(found.effect[:, 1], read(model, inputs, fn) - without, found.effect)


@pytest.mark.parametrize("name", [name for name, family in SEVERAL.items() if family.has_eager])
def test_stored_attention_maps_give_the_numbers_of_fused_kernels(name):
    fused, eager = (mechanism(name, attention) for attention in ("sdpa", "eager"))
    for part in ("relevance", "effect", "output"):
        a, b = getattr(fused, part), getattr(eager, part)
        assert float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())
    one, two = (grounding(name, attention) for attention in ("sdpa", "eager"))
    assert (one.row_stream, one.column_stream, one.calls) == (two.row_stream, two.column_stream, two.calls)
    assert float((one.coupling - two.coupling).abs().max()) <= 1e-4 * max(float(two.coupling.abs().max()), 1e-12)


# --- grounding -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_grounding_adds_up_to_attention_relevance(name, attention):
    model, inputs, fn = built(name, attention)
    found, family = grounding(name, attention), SEVERAL[name]
    known = zl.attention_relevance(model, inputs, target=zl.target.output(fn)).by_source
    columns, rows = known[found.column_stream], known[found.row_stream]
    assert close(found.relevance, columns, columns)
    assert close(found.matrix.sum(1) + found.direct, columns, columns)
    assert float(columns.abs().max()) > 0
    assert bool((found.matrix >= 0).all())
    assert bool((found.back.sum(2) <= rows * (1 + 1e-4) + 1e-9).all())  # a part of the rows' own relevance
    if (family.heterogenous or family.name in ("ViLT", "LLaVA")) and family.name != "SigLIP":  # its learned query: see test_semantic.py
        assert float(found.matrix.max()) > 0


@pytest.mark.parametrize("name", [n for n, f in SEVERAL.items() if f.name in ("LXMERT", "BLIP, matching", "ViLT", "LLaVA", "nn.TransformerDecoder")])
def test_rows_and_columns_changed_about_are_the_other_direction(name):
    model, inputs, fn = built(name, "sdpa")
    one = grounding(name, "sdpa")
    two = zl.ground(model, inputs, target=zl.target.output(fn), rows=one.column_stream, columns=one.row_stream)
    assert close(two.matrix, one.back.transpose(1, 2), two.matrix)
    assert close(two.back, one.matrix.transpose(1, 2), two.back)


def test_the_language_model_of_blip_2_is_grounded_in_the_image():
    model, inputs, fn = built("BLIP-2's Q-Former (transformers)", "sdpa")
    found = zl.ground(model, inputs, target=zl.target.output(fn), rows="input_ids", columns="pixel_values")
    known = zl.attention_relevance(model, inputs, target=zl.target.output(fn)).by_source
    assert close(found.relevance, known["pixel_values"], known["pixel_values"])
    assert found.matrix[:, -1].sum() == found.matrix.sum()  # the token that is read is the last that an image token passes
    assert found.gridded


# --- logic ---------------------------------------------------------------------------------------------------------------------------------


def players_of(name, model, inputs):
    """Those that go without saying; of one source two halves of it."""
    family = SEVERAL[name]
    if family.name == "DETR":
        return zl.players.regions(model, inputs, zl.players.grid(1, 2))
    if family.name == "Perceiver":
        first = torch.arange(inputs["inputs"].shape[1]) < 4
        return [zl.Player("begin", "inputs", first), zl.Player("end", "inputs", ~first)]
    return None


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_dividends_add_up_from_the_model_at_its_baselines_to_its_own_output(name, attention):
    model, inputs, fn = built(name, attention)
    own = players_of(name, model, inputs)
    found = zl.logic(model, inputs, target=zl.target.output(fn), baseline=baselines(inputs), players=own)
    everyone, nobody = read(model, inputs, fn), read(model, emptied(inputs, found.players if own is None else {own[0].input}), fn)
    scale = found.values.abs().max()
    assert close(found.output, everyone, scale)
    assert float((found.value - everyone).abs().max()) <= 1e-4 * float(scale)
    assert float((found.baseline_value - nobody).abs().max()) <= 1e-4 * float(scale)
    added = torch.stack(list(found.dividends.values())).sum(0)
    assert float((added - (everyone - nobody)).abs().max()) <= 2e-4 * float(scale)
    assert len(found.dividends) == 2 ** len(found.players) - 1
    assert float(added.abs().max()) > 1e-3
    assert all(text for text in found.reading)


@pytest.mark.parametrize("which", ["mechanism", "logic"])
def test_a_loss_over_the_batch_is_no_target_and_is_said_to_be_none(which):
    family = SEVERAL["BLIP, question answering (transformers)"]
    model, inputs = family.build("sdpa")
    with pytest.raises(TargetError, match=r"gave shape \(1,\) for \d+ samples; it must give one number per sample"):
        getattr(zl, which)(model.eval(), inputs, target=zl.target.output(family.read), baseline=baselines(inputs))


# --- what is said ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_source():
    family = next(f for f in FAMILIES if (f.name, f.source) == ("ViT", "transformers"))
    model, inputs = family.build("sdpa")
    return model.eval(), inputs, zl.target.output(family.read)


def test_a_model_of_one_source_has_edges_and_none_is_heterogenous(one_source):
    model, inputs, target = one_source
    found = zl.mechanism(model, inputs, target=target)
    assert found.heterogenous == ()
    assert found.fusion() == []
    assert found.reading().startswith("nothing is heterogenous")
    assert float(found.effect.abs().min()) > 0
    with torch.no_grad():
        assert torch.allclose(found.joint, target.read(model(torch.zeros_like(inputs["pixel_values"])), torch.arange(2)).double(), atol=1e-6)


def test_a_model_of_one_source_has_nothing_to_ground_and_no_players(one_source):
    model, inputs, target = one_source
    with pytest.raises(UsageError, match=r"the model has one source \(pixel_values\); name rows= and columns= as \(stream, token numbers\)"):
        zl.ground(model, inputs, target=target)
    with pytest.raises(UsageError, match=r"the model has one source \(pixel_values\), and logic needs two players; give players="):
        zl.logic(model, inputs, target=target)


@pytest.mark.parametrize("name", ["LLaVA (transformers)", "ViLT (transformers)"])
def test_two_sources_in_one_stream_are_not_said_to_be_one(name):
    assert "one and the same source" not in mechanism(name, "sdpa").reading()


def test_the_reading_says_nothing_of_the_effect_of_edges_that_were_not_cut():
    model, inputs, fn = built("LXMERT (transformers)", "sdpa")
    found = zl.mechanism(model, inputs, target=zl.target.output(fn), baseline=baselines(inputs), calls=0, heads=False)
    assert found.reading().startswith("sources meet in 4 of 11 attentions")
    assert "with most effect" not in found.reading()
