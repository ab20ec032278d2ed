"""The implied model against the original with its own attention, and against last blocks written out with other weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zeroline as zl
from methods import eclip_reference as paper
from zeroline.errors import InputError, ModelStateError, NotFoundError
from zeroline.model.implied import implied_output
from zeroline.relevance import Substitution

CASES = {"CLIP": lambda: paper.clip(depth=2), "open_clip": lambda: paper.open_clip(depth=2), "digits-vit": paper.digits_vit}


def alike(case):
    """The case with every head of its last attentions made like the first: one row of weights says it all."""
    for tower in case.towers:
        attention = case.model.get_submodule(tower.attentions[-1])
        if isinstance(attention, nn.MultiheadAttention):
            parts = [*attention.in_proj_weight.data.chunk(3)[:2], *attention.in_proj_bias.data.chunk(3)[:2]]
            heads = attention.num_heads
        else:
            parts = [p.data for layer in (attention.q_proj, attention.k_proj) for p in layer.parameters()]
            heads = getattr(attention, "num_heads", None) or attention.num_attention_heads
        for part in parts:
            first = part[: len(part) // heads].clone()
            part.copy_(torch.cat([first] * heads))
    return case


def put(case, weights):
    """One substitution per tower: ``weights[stream]`` [batch, keys] at the row that is read."""
    return [Substitution(t.attentions[-1], torch.arange(len(t.row)), t.row, weights[t.stream]) for t in case.towers]


def written(case, weights):
    """The score of a twin whose last attentions have these weights in their rows, for every head."""
    paths = [path for tower in case.towers for path in tower.attentions]
    twin, attentions = paper.written_out(case.model, paths)
    for tower in case.towers:
        one = attentions[tower.attentions[-1]]

        def attend(query, key, value, mask, one=one, tower=tower):
            q, k, v = (part.unflatten(-1, (one.heads, -1)).transpose(1, 2) for part in (query, key, value))
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            a = (scores if mask is None else scores + mask).softmax(-1)
            for n, row in enumerate(tower.row.tolist()):
                a[n, :, row] = weights[tower.stream][n]
            return (a @ v).transpose(1, 2).flatten(2)

        one.attend, one.a = attend, None
    with torch.no_grad():
        return case.score(twin(**case.inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_with_its_own_attention_the_implied_model_is_the_original(name, dtype):
    case = alike(CASES[name]())
    _, parts = paper.parts_of(case)
    own = {stream: each[0].a[:, 0] for stream, each in parts.items()}
    for stream, each in parts.items():
        assert torch.allclose(each[0].a, own[stream][:, None].expand_as(each[0].a), rtol=1e-9)  # the heads are alike
    inputs = {n: v.to(dtype) if v.is_floating_point() else v for n, v in case.inputs.items()}
    model = case.model.to(dtype)
    with torch.no_grad():
        truth = case.score(model(**inputs))
    for way in ("raw", "sum to 1"):
        found = case.score(implied_output(model, inputs, put(case, own), way))
        assert torch.allclose(found, truth, **({"rtol": 1e-12, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}))
        assert found.dtype == dtype


@pytest.mark.parametrize("name", CASES)
def test_with_other_weights_it_is_the_last_block_written_out(name):
    case = CASES[name]()
    weights = {tower.stream: torch.rand(tower.visible.shape).double() for tower in case.towers}
    shares = {stream: w / w.sum(1, keepdim=True) for stream, w in weights.items()}
    raw, shared = (case.score(implied_output(case.model, case.inputs, put(case, weights), way)) for way in ("raw", "sum to 1"))
    assert torch.allclose(raw, written(case, weights), rtol=1e-12, atol=1e-13)
    assert torch.allclose(shared, written(case, shares), rtol=1e-12, atol=1e-13)
    assert not torch.allclose(raw, shared, rtol=1e-4)
    assert torch.equal(case.score(implied_output(case.model, case.inputs, put(case, weights))), raw)  # raw is the default


def test_only_the_samples_and_rows_that_are_named_change():
    case = paper.clip(depth=2)
    tower = case.towers[1]
    weights = torch.rand(1, 17).double()
    one = Substitution(tower.attentions[-1], torch.tensor([1]), torch.tensor([0]), weights)
    with torch.no_grad():
        truth = case.model(**case.inputs)
    found = implied_output(case.model, case.inputs, [one])
    assert torch.allclose(found.image_embeds[[0, 2]], truth.image_embeds[[0, 2]], rtol=1e-12)
    assert not torch.allclose(found.image_embeds[1], truth.image_embeds[1], rtol=1e-3)
    assert torch.equal(found.text_embeds, truth.text_embeds)
    other = implied_output(case.model, case.inputs, [Substitution(tower.attentions[-1], torch.tensor([1]), torch.tensor([3]), weights)])
    assert torch.allclose(other.image_embeds, truth.image_embeds, rtol=1e-12)  # patch 3 of the last block is not read


def test_a_record_of_grad_eclip_says_what_its_implied_model_is():
    case = paper.clip(depth=2)
    record = zl.grad_eclip(case.model, case.inputs)
    _, parts = paper.parts_of(case)
    loose = {tower.stream: paper.loosened(tower, parts[tower.stream][0]) for tower in case.towers}
    found = case.score(implied_output(case.model, case.inputs, record.substituted))
    assert torch.allclose(found, written(case, loose), rtol=1e-11)
    assert not torch.allclose(found, record.output, rtol=1e-2)


def test_several_layers_may_be_replaced_at_once():
    case = paper.clip(depth=3)
    record = zl.grad_eclip(case.model, case.inputs, layers=2)
    assert len(record.substituted) == 4
    both, last = (case.score(implied_output(case.model, case.inputs, chosen)) for chosen in (record.substituted, record.substituted[::2]))
    assert not torch.allclose(both, last, rtol=1e-6)


def test_a_sample_of_a_record_has_the_implied_model_of_the_sample():
    case = paper.clip(depth=2)
    record = zl.grad_eclip(case.model, case.inputs)
    together = case.score(implied_output(case.model, case.inputs, record.substituted))
    for n in range(3):
        inputs = {name: value[n : n + 1] for name, value in case.inputs.items()}
        assert torch.allclose(case.score(implied_output(case.model, inputs, record.sample(n).substituted)), together[n : n + 1], rtol=1e-11)


def test_weights_of_nothing_stay_nothing_when_brought_to_1():
    case = paper.clip(depth=2)
    none = {tower.stream: torch.zeros(tower.visible.shape).double() for tower in case.towers}
    raw, shared = (case.score(implied_output(case.model, case.inputs, put(case, none), way)) for way in ("raw", "sum to 1"))
    assert torch.equal(raw, shared)
    assert bool(raw.isfinite().all())


def test_without_substitutions_it_is_the_original_bit_for_bit():
    case = paper.clip(depth=2)
    with torch.no_grad():
        truth = case.model(**case.inputs).logits_per_image
    assert torch.equal(implied_output(case.model, case.inputs, []).logits_per_image, truth)


def test_a_pooling_head_has_an_implied_model():
    """Heads in the batch of nn.MultiheadAttention: SigLIP's pooling head, against its last lines written out."""
    case = paper.siglip()
    head, record = case.model.vision_model.head, zl.grad_eclip(case.model, case.inputs)
    one = next(s for s in record.substituted if s.call == "vision_model.head.attention")
    found = implied_output(case.model, case.inputs, [one]).image_embeds
    with torch.no_grad():
        states = case.model.vision_model(pixel_values=case.inputs["pixel_values"]).last_hidden_state
        value = states @ head.attention.in_proj_weight.chunk(3)[2].T + head.attention.in_proj_bias.chunk(3)[2]
        pooled = head.attention.out_proj(torch.einsum("nk,nkc->nc", one.weights, value))
        truth = F.normalize(pooled + head.mlp(head.layernorm(pooled)), dim=1)
    assert torch.allclose(found, truth, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_put_back(fails):
    case = paper.open_clip(depth=2)
    truth, kernel = case.model(**case.inputs)[0], F.scaled_dot_product_attention
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in case.model.modules()]
    weights = {"image": torch.rand(3, 4 if fails else 17).double(), "text": torch.rand(3, 9).double()}
    if fails:
        with pytest.raises(InputError):
            implied_output(case.model, case.inputs, put(case, weights))
    else:
        assert not torch.allclose(implied_output(case.model, case.inputs, put(case, weights))[0], truth)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in case.model.modules()] == hooks
    assert all(p.requires_grad for p in case.model.parameters())
    assert F.scaled_dot_product_attention is kernel
    assert torch.equal(case.model(**case.inputs)[0], truth)


def test_what_does_not_fit_gets_one_clear_error():
    case = paper.clip(depth=2)
    row = torch.zeros(3, dtype=torch.int64)

    def ask(call="vision_model.encoder.layers.1.self_attn", keys=17, way="raw", model=case.model):
        return implied_output(model, case.inputs, [Substitution(call, torch.arange(3), row, torch.ones(3, keys).double())], way)

    with pytest.raises(NotFoundError, match="no attention call vision_model.encoder.layers.7.self_attn"):
        ask("vision_model.encoder.layers.7.self_attn")
    with pytest.raises(InputError, match=r"16 weights are to be put into vision_model.encoder.layers.1.self_attn, which has 17 keys"):
        ask(keys=16)
    with pytest.raises(NotFoundError, match="'sum_to_1'; nearest: sum to 1"):
        ask(way="sum_to_1")
    training = copy.deepcopy(case.model).train()
    training.add_module("drop", nn.Dropout(0.1))
    with pytest.raises(ModelStateError, match="training mode"):
        ask(model=training.train())
