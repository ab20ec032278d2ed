"""The tracer on every family of models, unmodified: calls, labels, outputs, attention gradients, relevance, all put back.

The table of families is ``tests/attention_models.py``; ``docs/models.md`` is made from it.
"""

import math

import pytest
import torch
import torch.nn.functional as F

import zeroline as zl
from attention_models import FAMILIES
from zeroline.model.state import untouched
from zeroline.model.trace import followed
from zeroline.testing.laws import fingerprint

CASES = [(family, attention) for family in FAMILIES for attention in (("sdpa", "eager") if family.has_eager else ("sdpa",))]
NAMES = [f"{family.name} ({family.source}, {attention})" for family, attention in CASES]


def built(family, attention, dtype=torch.float32):
    """The model with weights large enough to attend unevenly, in evaluation mode, and its inputs."""
    torch.manual_seed(0)
    model, inputs = family.build(attention)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "token" in name or "embedding" in name:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.5 / math.sqrt(fan_in) if "embed" not in name else 0.7))
    model = model.eval().to(dtype)
    return model, cast(inputs, dtype)


def cast(inputs, dtype):
    if isinstance(inputs, torch.Tensor):
        return inputs.to(dtype)
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in inputs.items()}


def bare(model, inputs):
    """The model's own output in grad mode, parameters frozen, inputs that require a gradient, the fast path off."""
    with untouched(model):
        return model(inputs.requires_grad_()) if isinstance(inputs, torch.Tensor) else model(**inputs)


def tensors(output):
    if isinstance(output, torch.Tensor):
        return [output.detach()]
    values = output.values() if hasattr(output, "values") else output if isinstance(output, (tuple, list)) else []
    return [t for value in values for t in tensors(value)]


@pytest.mark.parametrize(("family", "attention"), CASES, ids=NAMES)
def test_every_call_is_found_labelled_and_nothing_is_changed(family, attention):
    model, inputs = built(family, attention)
    own = tensors(bare(model, inputs))
    before = fingerprint(model), F.has_torch_function, F.scaled_dot_product_attention
    found = zl.trace(model, inputs)
    with followed(model, inputs) as live:
        seen = tensors(live.recording.output)
    assert (fingerprint(model), F.has_torch_function, F.scaled_dot_product_attention) == before
    assert len(own) == len(seen)
    assert all(torch.equal(a, b) for a, b in zip(own, seen)), "outputs under the tracer differ"
    assert len(found.calls) == family.calls
    assert tuple(c.number for c in found.calls if c.kind == "heterogenous") == family.heterogenous
    assert {stream.name for stream in found.streams} == set(family.streams)
    assert {name: grid for name, grid in ((s.name, s.grid) for s in found.streams) if grid} == dict(family.grids)
    assert all(set(call.feeds_from) <= set(range(call.number)) for call in found.calls)
    assert len({(call.path, call.index) for call in found.calls}) == len(found.calls)


class WrittenOut:
    """Fused attention as softmax(scale q k^T + mask) v in the test's own words; keeps every map."""

    def __init__(self):
        self.maps = []

    def __call__(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if enable_gqa:
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        scores = query @ key.transpose(-1, -2) * (scale if scale is not None else 1 / math.sqrt(query.shape[-1]))
        if is_causal:
            scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1).to(scores)
        if attn_mask is not None:
            bias = (
                torch.zeros(attn_mask.shape, dtype=scores.dtype).masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else attn_mask
            )
            scores = scores + bias
        attention = scores.softmax(-1)
        self.maps.append(attention)
        return attention @ value


@pytest.mark.parametrize(("family", "attention"), CASES, ids=NAMES)
def test_attention_gradients_equal_autograd_on_an_eager_twin(family, attention, monkeypatch):
    model, inputs = built(family, attention, torch.float64)
    with followed(model, inputs) as live:
        value = family.read(live.recording.output)
        outputs = [s.output.tensor for s in live.graph.calls]
        gradients = torch.autograd.grad(value.sum(), outputs, allow_unused=True, retain_graph=True)
        ours = [live.maps(i, torch.zeros_like(o) if g is None else g) for i, (g, o) in enumerate(zip(gradients, outputs))]
        written = [s.weights for s in live.graph.calls]
        own = [None if w is None else torch.autograd.grad(value.sum(), w.tensor, allow_unused=True, retain_graph=True)[0] for w in written]
        found = [(m.attention(), m.gradient()) for m in ours]
    twin = WrittenOut()
    monkeypatch.setattr(F, "scaled_dot_product_attention", twin)
    given = cast(inputs, torch.float64)
    output = model(given) if isinstance(given, torch.Tensor) else model(**given)  # its parameters require gradients
    maps = twin.maps
    truth = torch.autograd.grad(family.read(output).sum(), maps, allow_unused=True) if maps else ()
    fused = iter(zip(maps, truth))
    for (a, da), weights, grad in zip(found, written, own):
        if weights is None:
            true_a, true_da = next(fused)
        else:
            true_a, true_da = weights.tensor.detach(), grad
            if weights.order != tuple(range(true_a.ndim)):
                true_a, true_da = true_a.permute(weights.order), true_da.permute(weights.order)
        true_da = torch.zeros_like(true_a) if true_da is None else true_da
        scale = max(float(true_da.abs().max()), 1.0)
        assert torch.allclose(a.flatten(), true_a.flatten(), atol=1e-10)
        assert float((da.flatten() - true_da.flatten()).abs().max()) <= 1e-10 * scale
    assert next(fused, None) is None, "the twin ran an attention that was not seen"


@pytest.mark.parametrize(("family", "attention"), CASES, ids=NAMES)
@pytest.mark.parametrize("correction", ["positive", "signed"])
def test_reverse_relevance_equals_the_full_matrices(family, attention, correction):
    """One row by vector-matrix products against R_h = I + sum of Abar R written forward, every stream."""
    from zeroline.maths.propagation import gathered
    from zeroline.methods.attention_relevance import Sweep

    model, inputs = built(family, attention, torch.float64)
    target = zl.target.output(family.read, "the family's target")
    found = zl.attention_relevance(model, inputs, target=target, correction=correction)
    with followed(model, inputs) as live:
        sweep = Sweep(live, live.calls(), target, correction=correction)
        sweep.differentiate(keep=False)
        begin, added = sweep.start(), []
        for number, states in enumerate(live.graph.states):
            abar = sweep.matrix(number)
            added.append({name: abar @ matrix for name, matrix in gathered(states["value"], added, sweep.sizes).items()})
        total = {name: torch.zeros(size, dtype=torch.float64) for name, size in sweep.sizes.items()}
        for name, r in begin.streams.items():
            total[name] += r
        for call, r in begin.calls.items():
            for name, matrix in added[call].items():
                total[name] += r @ matrix
    assert set(found.by_source) == set(total)
    for name, r in found.by_source.items():
        assert bool(r.isfinite().all())
        assert torch.allclose(r.flatten(), total[name], rtol=1e-9, atol=1e-12)
        if correction == "positive":
            assert float(r.min()) >= 0
    assert sum(float(r.abs().sum()) for r in found.by_source.values()) > 0


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.source == "transformers" and f.has_eager], ids=lambda f: f.name)
def test_fused_and_eager_models_give_the_same_relevance(family):
    records = []
    for attention in ("sdpa", "eager"):
        model, inputs = built(family, attention, torch.float64)
        records.append(zl.attention_relevance(model, inputs, target=zl.target.output(family.read, "f")))
    for name, r in records[0].by_source.items():
        assert torch.allclose(r, records[1].by_source[name], rtol=1e-4, atol=1e-7)  # eager models take their softmax in float32


IN_TABLE = ("ViT", "DeiT", "DINOv2 with registers", "CLIP", "SigLIP", "TrOCR", "ViLT", "BLIP, matching", "BLIP-2's Q-Former", "LLaVA")


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.source == "transformers" and f.name in IN_TABLE], ids=lambda f: f.name)
def test_the_families_table_agrees_with_the_forward_pass(family):
    from zeroline.model.families import patches_of

    model, inputs = built(family, "sdpa")
    stream = next(s for s in zl.trace(model, inputs).streams if s.grid)
    found = patches_of(
        model, stream.tokens, tuple(inputs["pixel_values"].shape[-2:]) if isinstance(inputs, dict) and "pixel_values" in inputs else None
    )
    assert found is not None
    assert (found.prefix, found.grid) == (stream.prefix, stream.grid)


@pytest.mark.parametrize(("family", "attention"), CASES, ids=NAMES)
def test_a_batch_of_one_and_of_three_equals_the_batch_of_two(family, attention):
    model, inputs = built(family, attention)
    if next(iter([inputs] if isinstance(inputs, torch.Tensor) else inputs.values())).shape[0] == 1:
        pytest.skip("its target is a loss over the whole batch")

    def rows(order):
        return inputs[order] if isinstance(inputs, torch.Tensor) else {n: t[order] for n, t in inputs.items()}

    target = zl.target.output(family.read, "f")
    two = zl.attention_relevance(model, inputs, target=target)
    for order in ([0], [1], [1, 0, 1]):
        found = zl.attention_relevance(model, rows(order), target=target)
        for name, r in found.by_source.items():
            truth = two.by_source[name][order]
            assert torch.allclose(r, truth, rtol=1e-3, atol=1e-5 * float(truth.abs().max()))
            assert found.tokens[name] == two.tokens[name]
        assert [found.readout[i] for i in range(len(order))] == [two.readout[i] for i in order]


@pytest.mark.parametrize("correction", ["none", "absolute", "negative"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.source == "transformers"], ids=lambda f: f.name)
def test_relevance_is_finite_and_not_negative_where_it_must_be(family, correction):
    model, inputs = built(family, "sdpa")
    found = zl.attention_relevance(model, inputs, target=zl.target.output(family.read, "f"), correction=correction)
    assert all(bool(r.isfinite().all()) and float(r.min()) >= 0 for r in found.by_source.values())
    assert sum(float(moved.sum()) for moved in found.per_call.values()) > 0
