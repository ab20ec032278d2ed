"""Cascading randomisation: which weights are shuffled when, that shuffling keeps their entries, and that the original is never touched."""

import copy

import pytest
import torch
from torch import nn

from methods import eclip_reference as paper
from zeroline import zoo
from zeroline.model.randomised import cascade, stages


def digits_vit():
    return zoo.load("digits-vit"), zoo.collate(zoo.samples("digits-vit")[:2])


def digits_clip():
    return zoo.load("digits-clip"), zoo.collate(zoo.samples("digits-clip")[:2])


def open_clip():
    case = paper.open_clip(depth=2)
    return case.model, case.inputs


def siglip():
    case = paper.siglip()
    return case.model, case.inputs


MODELS = [digits_vit, digits_clip, open_clip, siglip]


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def owner(name):
    return name.rpartition(".")[0]


def within(names, *begins):
    return all(any(name == b or name.startswith(f"{b}.") for b in begins) for name in names)


# --- stages ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", MODELS)
def test_every_parameters_owner_is_in_exactly_one_stage(build):
    model, inputs = build()
    named = [name for _, modules in stages(model, inputs) for name in modules]
    assert sorted(named) == sorted({owner(name) for name, _ in model.named_parameters()})


@pytest.mark.parametrize(("build", "depth"), [(digits_vit, 4), (digits_clip, 4), (open_clip, 2), (siglip, 2)])
def test_stages_go_from_the_head_block_by_block_to_the_stem(build, depth):
    model, inputs = build()
    blocks = ["last block", *(f"block {k} from the end" for k in range(2, depth + 1))]
    assert [stage for stage, _ in stages(model, inputs)] == ["head", *blocks, "stem"]


def test_the_stages_of_digits_vit_are_its_parts():
    found = dict(stages(*digits_vit()))
    assert set(found["head"]) == {"classifier", "vit.layernorm"}
    for k, stage in enumerate(("last block", "block 2 from the end", "block 3 from the end", "block 4 from the end")):
        assert within(found[stage], f"vit.layers.{3 - k}")
        assert len(found[stage]) == 8
    assert within(found["stem"], "vit.embeddings")


def test_a_stage_of_two_towers_takes_the_next_block_of_each():
    found = dict(stages(*digits_clip()))
    assert set(found["head"]) == {"", "visual_projection", "text_projection", "text_model.final_layer_norm", "vision_model.post_layernorm"}
    for k, stage in enumerate(("last block", "block 2 from the end", "block 3 from the end")):
        assert within(found[stage], f"vision_model.encoder.layers.{3 - k}", f"text_model.encoder.layers.{2 - k}")
        assert len(found[stage]) == 16
    assert within(found["block 4 from the end"], "vision_model.encoder.layers.0")
    assert within(found["stem"], "vision_model.embeddings", "vision_model.pre_layrnorm", "text_model.embeddings")
    assert "vision_model.pre_layrnorm" in found["stem"]


def test_the_blocks_of_open_clip_are_in_their_stages():
    found = dict(stages(*open_clip()))
    assert within(found["last block"], "visual.transformer.resblocks.1", "transformer.resblocks.1")
    assert within(found["block 2 from the end"], "visual.transformer.resblocks.0", "transformer.resblocks.0")
    assert {"visual.ln_post", "ln_final"} <= set(found["head"])
    assert {"visual.conv1", "visual.ln_pre"} <= set(found["stem"])


def test_the_token_embedding_of_open_clip_is_in_its_stem():
    assert "token_embedding" in dict(stages(*open_clip()))["stem"]


def test_a_pooling_head_is_in_the_head():
    found = dict(stages(*siglip()))
    assert within(found["stem"], "vision_model.embeddings", "text_model.embeddings")
    assert {"vision_model.head", "vision_model.head.attention", "vision_model.head.mlp.fc1", "text_model.head"} <= set(found["head"])


# --- the weights -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", MODELS)
def test_stages_are_cumulative_and_every_tensor_is_a_permutation_of_itself(build):
    model, inputs = build()
    own, buffers, random = weights_of(model), {n: b.clone() for n, b in model.named_buffers()}, torch.get_rng_state()
    asked = stages(model, inputs)
    before, seen = own, []
    for (stage, modules), (name, changed) in zip(asked, cascade(model, inputs, seed=3), strict=True):
        assert stage == name
        assert changed is not model
        now = weights_of(changed)
        for parameter, tensor in now.items():
            assert tensor.shape == own[parameter].shape
            assert torch.equal(tensor.flatten().sort().values, own[parameter].flatten().sort().values)
            if owner(parameter) in modules:
                varied = own[parameter].unique().numel() > 2
                assert not varied or not torch.equal(tensor, before[parameter]), f"{parameter} is not shuffled in {stage}"
            else:
                assert torch.equal(tensor, before[parameter]), f"{parameter} changes in {stage}"
        before = now
        seen.append(changed)
        for n, tensor in model.named_parameters():  # the original, after every stage
            assert torch.equal(tensor, own[n])
    assert all(one is seen[0] for one in seen)  # one and the same copy
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.requires_grad for p in model.parameters())


def _all(model, inputs, seed):
    *_, (_, changed) = cascade(model, inputs, seed)
    return weights_of(changed)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    model, inputs = open_clip()
    one, again, other = (_all(model, inputs, seed) for seed in (5, 5, 6))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["visual.conv1.weight"], other["visual.conv1.weight"])


def test_the_random_state_of_the_caller_does_not_matter():
    model, inputs = open_clip()
    torch.manual_seed(1)
    one = _all(model, inputs, 0)
    torch.manual_seed(2)
    assert all(torch.equal(tensor, one[name]) for name, tensor in _all(model, inputs, 0).items())


def test_the_copy_answers_otherwise_and_the_original_as_before():
    model, inputs = digits_vit()
    with torch.no_grad():
        truth = model(**inputs).logits
        for _, changed in cascade(model, inputs):
            assert not torch.allclose(changed(**inputs).logits, truth, atol=1e-2)
            assert not changed.training
            assert torch.equal(model(**inputs).logits, truth)


def test_a_model_without_blocks_has_a_head_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    assert [stage for stage, _ in stages(model, torch.randn(2, 4))] == ["head"]


def test_blocks_that_run_in_another_order_are_taken_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Tanh()) for _ in range(3))

        def forward(self, x):
            for block in reversed(self.blocks):
                x = block(x)
            return x

    found = stages(Backwards().eval(), torch.randn(2, 4))
    assert [(stage, [name.split(".")[1] for name in names]) for stage, names in found] == [
        ("last block", ["0"]),
        ("block 2 from the end", ["1"]),
        ("block 3 from the end", ["2"]),
    ]


def test_parts_of_a_model_leave_no_hooks():
    model, inputs = open_clip()
    twin = copy.deepcopy(model)
    stages(model, inputs)
    assert [len(m._forward_hooks) for m in model.modules()] == [len(m._forward_hooks) for m in twin.modules()]
