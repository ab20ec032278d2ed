"""The proof: Grad-ECLIP is Attention-ECLIP with the loosened similarity, for any model; and the faithful form against autograd."""

import pytest
import torch

import zeroline as zl
from methods import eclip_reference as paper
from zeroline.errors import NotFoundError, UsageError

CASES = {
    **{f"CLIP, {heads} heads, {depth} layers, batch {batch}": (lambda h=heads, d=depth, b=batch: paper.clip(h, d, b))
       for heads in (1, 4) for depth in (1, 3) for batch in (1, 3)},
    "CLIP, longer padding": lambda: paper.clip(longest=12),
    "CLIP, images that are wide": lambda: paper.clip(size=(24, 40)),
    "CLIP, images that are high": lambda: paper.clip(size=(40, 16), batch=1),
    **{f"open_clip, {heads} heads, {depth} layers, batch {batch}": (lambda h=heads, d=depth, b=batch: paper.open_clip(h, d, b))
       for heads, depth, batch in ((1, 1, 1), (1, 2, 3), (4, 1, 3), (4, 3, 1))},
    "open_clip, a dict of outputs": lambda: paper.open_clip(output_dict=True),
    **{f"SigLIP, {heads} heads, {depth} layers, batch {batch}": (lambda h=heads, d=depth, b=batch: paper.siglip(h, d, b))
       for heads, depth, batch in ((1, 1, 1), (4, 2, 3))},
    "digits-clip": paper.digits_clip,
    "digits-clip, one sample": lambda: paper.digits_clip(batch=1),
    "digits-vit": paper.digits_vit,
}  # fmt: skip


def target_of(case):
    """A class of the classifier; the pair's own similarity of the others."""
    return {"target": 3} if len(case.towers) == 1 else {}


# --- the proof ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_grad_eclip_is_attention_eclip_with_the_loosened_similarity(name):
    """w v of the paper of Grad-ECLIP, dS/dA of autograd through a softmax written out, and both of the library: four ways, one map."""
    case = CASES[name]()
    _, parts = paper.parts_of(case)
    options = {**target_of(case), "relu": "none"}
    grad, attention = zl.grad_eclip(case.model, case.inputs, **options), zl.attention_eclip(case.model, case.inputs, **options)
    clamped = zl.attention_eclip(case.model, case.inputs, **target_of(case))
    for tower in case.towers:
        part = parts[tower.stream][0]
        loose = paper.loosened(tower, part)
        by_channels, by_heads = paper.grad_eclip_of(tower, part, loose), paper.attention_eclip_of(tower, part, loose)
        assert paper.close(by_channels, by_heads)
        assert paper.close(grad.by_source[tower.stream], by_heads)
        assert paper.close(attention.by_source[tower.stream], by_channels)
        assert paper.close(grad.by_source[tower.stream], attention.by_source[tower.stream])
        assert torch.equal(clamped.by_source[tower.stream], attention.by_source[tower.stream].clamp(min=0))
    for one, two in zip(grad.substituted, attention.substituted):
        assert torch.equal(one.weights, two.weights)


@pytest.mark.parametrize("relu", ["sum", "each", "none"])
@pytest.mark.parametrize(
    "build", [lambda: paper.clip(depth=3), lambda: paper.open_clip(depth=3), paper.digits_clip], ids=["CLIP", "open_clip", "digits-clip"]
)
def test_they_are_equal_over_several_layers_too(build, relu):
    case = build()
    _, parts = paper.parts_of(case, layers=3)
    options = {"layers": 3, "relu": relu}
    grad, attention = zl.grad_eclip(case.model, case.inputs, **options), zl.attention_eclip(case.model, case.inputs, **options)
    for tower in case.towers:
        maps = [paper.attention_eclip_of(tower, part, paper.loosened(tower, part)) for part in parts[tower.stream]]
        maps = [m.clamp(min=0) if relu == "each" else m for m in maps]
        truth = sum(maps).clamp(min=0) if relu == "sum" else sum(maps)
        assert paper.close(attention.by_source[tower.stream], truth)
        assert paper.close(grad.by_source[tower.stream], truth)
        for found in (grad, attention):
            moved = found.per_call[tower.stream]
            used = [c for c, (path, _) in enumerate(found.calls) if path in tower.attentions[-3:]]
            assert paper.close(moved[used], torch.stack(maps[::-1]))
            assert float(moved.abs().sum()) == pytest.approx(float(moved[used].abs().sum()))


def test_the_gradient_of_a_map_is_the_gradient_of_its_output_times_the_values():
    """The identity behind it, head by head: dS/dA^h[r, j] = sum over the channels c of head h of w_c v_jc."""
    _, parts = paper.parts_of(paper.clip(heads=4, depth=2), layers=2)
    for each in parts.values():
        for part in each:
            w, v = part.w.unflatten(-1, (4, 6)), part.v.unflatten(-1, (4, 6))
            assert paper.close(torch.einsum("nhd,nkhd->nhk", w, v), part.da)


# --- the faithful form ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_faithful_form_weighs_with_the_models_own_attention(name):
    case = CASES[name]()
    _, parts = paper.parts_of(case)
    found = zl.attention_eclip(case.model, case.inputs, weights="attention", **target_of(case))
    signed = zl.attention_eclip(case.model, case.inputs, weights="attention", relu="none", **target_of(case))
    for tower in case.towers:
        assert paper.close(signed.by_source[tower.stream], paper.attention_eclip_of(tower, parts[tower.stream][0], None))
        assert torch.equal(found.by_source[tower.stream], signed.by_source[tower.stream].clamp(min=0))
    assert found.substitutes == ()
    assert found.substituted == ()
    assert found.settings["weights"] == "attention"


@pytest.mark.parametrize("relu", ["sum", "each", "none"])
def test_the_faithful_form_over_several_layers(relu):
    case = paper.clip(depth=3)
    _, parts = paper.parts_of(case, layers=2)
    found = zl.attention_eclip(case.model, case.inputs, weights="attention", layers=2, relu=relu)
    for tower in case.towers:
        maps = [paper.attention_eclip_of(tower, part, None) for part in parts[tower.stream]]
        maps = [m.clamp(min=0) if relu == "each" else m for m in maps]
        assert paper.close(found.by_source[tower.stream], sum(maps).clamp(min=0) if relu == "sum" else sum(maps))


@pytest.mark.parametrize("weights", ["loosened", "attention"])
def test_hugging_faces_own_maps_give_the_same(weights):
    """A and dS/dA from output_attentions of the eager model; its softmax is float32, hence 1e-5."""
    case = paper.clip(depth=2)
    found = zl.attention_eclip(case.model, case.inputs, weights=weights)
    _, parts = paper.parts_of(case)
    case.model.set_attn_implementation("eager")
    output = case.model(**case.inputs, output_attentions=True)
    maps = [output.text_model_output.attentions[-1], output.vision_model_output.attentions[-1]]
    every = torch.arange(3)
    for tower, a, gradient in zip(case.towers, maps, torch.autograd.grad(case.score(output).sum(), maps)):
        own = a.detach()[every, :, tower.row] if weights == "attention" else paper.loosened(tower, parts[tower.stream][0])[:, None]
        truth = (own * gradient[every, :, tower.row]).sum(1)
        shown = torch.zeros(truth.shape)
        for n in range(3):
            shown[n, paper.shown_keys(tower, n)] = 1
        assert paper.close(found.by_source[tower.stream], (truth * shown).clamp(min=0), 1e-5)
    eager = zl.attention_eclip(case.model, case.inputs, weights=weights)
    assert {call.how for call in zl.trace(case.model, case.inputs).calls} == {"hand-written softmax"}
    for stream, r in found.by_source.items():
        assert paper.close(eager.by_source[stream], r, 1e-5)


def test_the_two_weights_differ_where_attention_is_not_the_similarity():
    case = paper.digits_clip()
    loose, own = (zl.attention_eclip(case.model, case.inputs, weights=weights).by_source for weights in ("loosened", "attention"))
    for stream in loose:
        a, b = loose[stream].flatten(), own[stream].flatten()
        assert not paper.close(a / a.sum(), b / b.sum(), 0.1)


# --- the model as it was, errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["loosened", "attention"])
def test_the_model_answers_as_before_bit_for_bit(weights):
    case = paper.open_clip()
    truth = case.model(**case.inputs)
    zl.attention_eclip(case.model, case.inputs, weights=weights)
    with pytest.raises(UsageError, match="layers=9"):
        zl.attention_eclip(case.model, case.inputs, weights=weights, layers=9)
    assert all(p.requires_grad for p in case.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(truth, case.model(**case.inputs)))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"weights": "x"}, NotFoundError, "no weights 'x'; possible: loosened, attention"),
        ({"weights": "loose"}, NotFoundError, "nearest: loosened"),
        ({"weights": None}, NotFoundError, "no weights 'None'"),
        ({"layers": 9}, UsageError, "layers=9 was asked.*1 to 2"),
        ({"relu": "all"}, NotFoundError, "no relu 'all'"),
    ],
    ids=str,
)
def test_bad_options_get_one_clear_error(options, error, words):
    case = paper.clip(depth=2)
    with pytest.raises(error, match=words) as caught:
        zl.attention_eclip(case.model, case.inputs, **options)
    assert "\n" not in str(caught.value)
