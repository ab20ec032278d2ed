"""Two principles as a measurement: every figure against one computed here by hand, cheats found, verdicts at their thresholds."""

import copy
import functools
import itertools
import json
import math

import pytest
import torch
from scipy.stats import spearmanr

import zeroline as zl
from zeroline import records, zoo
from zeroline.errors import InputError, LoadError, ModelStateError, NotFoundError, TargetError, UsageError
from zeroline.model.randomised import cascade, stages
from zeroline.principles import AGREES, FEW, FOLLOWS, ROUNDING, SAME, UNCHANGED, Implied, Principles, Stage
from zeroline.zoo.digits_clip import CAPTIONS

MAPPED = [name for name in (*zl.METHODS, *zl.ROUTES) if name != "attention_transfer"]
WRONG = [1, 4, 5, 8, 11]  # of the examples, those whose label is made wrong on purpose


@pytest.fixture(scope="module")
def clip():
    return zoo.load("digits-clip")


def captioned(count, wrong=()):
    """Pairs of digits-clip among its captions; the wrong ones get the next caption, as text and as label."""
    chosen = zoo.test_set("digits-clip")[:count]
    labels = torch.tensor([CAPTIONS.index(sample.caption) for sample in chosen])
    for i in wrong:
        labels[i] = (labels[i] + 1) % len(CAPTIONS)
    inputs = zoo.preprocess("digits-clip", text=[CAPTIONS[int(label)] for label in labels], pad=True)
    inputs["pixel_values"] = zoo.collate(chosen)["pixel_values"]
    captions = zoo.preprocess("digits-clip", text=CAPTIONS, pad=True)
    return zl.LabelledSet(inputs, labels, captions, torch.stack([sample.masks[0] for sample in chosen]))


def classed(count, wrong=()):
    """Images of digits-vit with their classes; the wrong ones get the next class."""
    chosen = zoo.test_set("digits-vit")[:count]
    labels = torch.tensor([sample.labels[0] for sample in chosen])
    for i in wrong:
        labels[i] = (labels[i] + 1) % 10
    return zl.LabelledSet(zoo.collate(chosen), labels, masks=torch.stack([sample.masks[0] for sample in chosen]))


@pytest.fixture(scope="module")
def pairs():
    return captioned(12, WRONG)


@pytest.fixture(scope="module")
def images():
    return classed(12, WRONG)


@pytest.fixture(scope="module")
def few():
    """Four examples for each model."""
    return {"digits-clip": captioned(4), "digits-vit": classed(4)}


@pytest.fixture(scope="module")
def both(clip, digits_vit):
    return {"digits-clip": clip, "digits-vit": digits_vit}


@pytest.fixture(scope="module")
def of_pairs(clip, pairs):
    """Grad-ECLIP over the pairs, in batches of 5."""
    return zl.check_principles("grad_eclip", clip, pairs, batch_size=5, seed=3)


@pytest.fixture(scope="module")
def of_images(digits_vit, images):
    return zl.check_principles("grad_eclip", digits_vit, images, batch_size=5, seed=3)


@pytest.fixture(scope="module")
def measured(both, few):
    """Every method on every model once: (model, method) -> its report on four examples."""
    return functools.cache(lambda model, method: zl.check_principles(method, both[model], few[model], cascading=False))


def compared(clip, data, **changed):
    """Image and text embeddings of the pairs, and what CLIP itself says of each image and every caption."""
    with torch.no_grad():
        pair = clip(**{**data.inputs, **changed})
        every = clip(pixel_values=data.inputs["pixel_values"], **data.captions)
    return pair.image_embeds.double(), pair.text_embeds.double(), every.text_embeds.double()


def rho(a, b):
    """Spearman's rho by scipy; NaN where one side is constant."""
    if len(a.unique()) == 1 or len(b.unique()) == 1:
        return math.nan
    return float(spearmanr(a.double().numpy(), b.double().numpy()).statistic)


def pointed(grid, mask):
    """Of one map: does the cell with the largest value hold a pixel of the mask (NaN: none is positive), and what share of the cells does?"""
    rows, columns = grid.shape
    height, width = mask.shape[0] // rows, mask.shape[1] // columns
    cells = [[bool(mask[i * height : (i + 1) * height, j * width : (j + 1) * width].any()) for j in range(columns)] for i in range(rows)]
    best = max(((i, j) for i in range(rows) for j in range(columns)), key=lambda at: float(grid[at]))
    return float(cells[best[0]][best[1]]) if grid[best] > 0 else math.nan, sum(map(sum, cells)) / (rows * columns)


def test_scores_answers_and_labels_of_pairs_are_those_of_clip_itself(clip, pairs, of_pairs):
    image, text, captions = compared(clip, pairs)
    answer = (image @ captions.T).argmax(1)
    assert torch.allclose(of_pairs.score, (image * text).sum(1), atol=1e-6)
    assert of_pairs.score.dtype == torch.float64
    assert torch.equal(of_pairs.answer, answer)
    assert torch.equal(of_pairs.label, pairs.labels)
    assert [i for i in range(12) if not of_pairs.right[i]] == WRONG
    assert of_pairs.accuracy == pytest.approx(7 / 12)
    assert of_pairs.target == "cosine of the image with its own text"


def test_scores_and_answers_of_a_classifier_are_its_logits(digits_vit, images, of_images):
    with torch.no_grad():
        logits = digits_vit(**images.inputs).logits
    assert torch.allclose(of_images.score, logits.double()[torch.arange(12), images.labels], atol=1e-5)
    assert torch.equal(of_images.answer, logits.argmax(1))
    assert of_images.accuracy == pytest.approx(float((logits.argmax(1) == images.labels).double().mean()))
    assert [i for i in range(12) if not of_images.right[i]] == WRONG
    assert of_images.target == "logit of the label"


def test_evidence_is_the_sum_over_the_source_shown_and_rho_is_scipys(clip, pairs, of_pairs):
    maps = zl.grad_eclip(clip, pairs.inputs).grid("pixel_values")
    assert of_pairs.source == "pixel_values"
    assert torch.allclose(of_pairs.evidence, maps.double().flatten(1).sum(1), rtol=1e-4)
    assert of_pairs.follows == pytest.approx(rho(of_pairs.evidence, of_pairs.score))
    words = zl.check_principles("grad_eclip", clip, pairs, cascading=False, source="input_ids")
    own = zl.grad_eclip(clip, pairs.inputs).of("input_ids")
    assert words.source == "input_ids"
    assert torch.allclose(words.evidence, own.double().sum(1), rtol=1e-4)


def test_class_tokens_are_no_part_of_the_evidence(digits_vit, images):
    found = zl.check_principles("attention_relevance", digits_vit, images, cascading=False)
    one = zl.attention_relevance(digits_vit, images.inputs, target=zl.logit(images.labels.tolist()))
    assert float(one.of("pixel_values")[:, 0].abs().max()) > 0.1
    assert torch.allclose(found.evidence, one.of("pixel_values")[:, 1:].double().sum(1), rtol=1e-5)


@pytest.mark.parametrize("name", ["pairs", "images"])
def test_pointing_and_chance_are_counted_cell_by_cell_where_right_and_where_wrong(request, both, name):
    data, model = request.getfixturevalue(name), both["digits-clip" if name == "pairs" else "digits-vit"]
    found = request.getfixturevalue(f"of_{name}")
    target = None if name == "pairs" else zl.logit(data.labels.tolist())
    maps = zl.grad_eclip(model, data.inputs, target=target).grid("pixel_values")
    hits, odds = zip(*(pointed(grid, mask) for grid, mask in zip(maps, data.masks)))
    assert found.hit.tolist() == list(hits)
    assert found.chance.tolist() == pytest.approx(list(odds))
    right = [hit for i, hit in enumerate(hits) if i not in WRONG]
    wrong = [hit for i, hit in enumerate(hits) if i in WRONG]
    assert found.pointing(True) == pytest.approx(sum(right) / 7)
    assert found.pointing(False) == pytest.approx(sum(wrong) / 5)


def test_an_attribution_is_measured_from_its_values(digits_vit, images):
    found = zl.check_principles("gradient_x_input", digits_vit, images, cascading=False, baseline=zl.baseline.constant(0.25), batch_size=7)
    x = images.inputs["pixel_values"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(digits_vit(pixel_values=x).logits[torch.arange(12), images.labels].sum(), x)
    values = (gradient * (x - 0.25)).detach().double()
    assert torch.allclose(found.evidence, values.flatten(1).sum(1), rtol=1e-3, atol=1e-4)
    hits, odds = zip(*(pointed(grid, mask) for grid, mask in zip(values.sum(1), images.masks)))
    assert found.hit.tolist() == list(hits)
    assert found.chance.tolist() == pytest.approx(list(odds))
    assert found.source == "input:pixel_values"
    assert found.settings == {"baseline": "constant(0.25)"}


def test_the_cams_get_the_last_block_with_positions_and_zero_features(digits_vit, few):
    found = zl.check_principles("grad_cam", digits_vit, few["digits-vit"], cascading=False)
    one = zl.grad_cam(
        digits_vit, few["digits-vit"].inputs, target=zl.logit(few["digits-vit"].labels.tolist()), site="vit.layers.2", baseline=zl.baseline.zeros()
    )
    assert found.settings == {"baseline": "zeros", "site": "vit.layers.2"}
    assert torch.allclose(found.evidence, one.total, rtol=1e-5)
    assert found.hit.tolist() == [pointed(grid, m)[0] for grid, m in zip(one.per_token()[:, 1:].view(4, 8, 8), few["digits-vit"].masks)]
    assert zl.check_principles("gradient_x_input", digits_vit, few["digits-vit"], cascading=False).settings == {"baseline": "black"}


def replaced_rows(attention, output, weights, row):
    """Puts weights [batch, tokens] into a Hugging Face attention by hand: the row's input of the output projection is made anew."""
    values = []
    see = attention.v_proj.register_forward_hook(lambda _, __, found: values.append(found))

    def put(_, given):
        changed = given[0].clone()
        for b in range(len(changed)):
            width = changed.shape[-1]
            changed[b, int(row[b])] = (weights[b].view(-1, 1) * values[-1][b].view(-1, width)).sum(0)
        return (changed, *given[1:])

    return see, output.register_forward_pre_hook(put)


def scaled(weights, way):
    return weights if way == "raw" else weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("way", ["raw", "sum to 1"])
def test_the_implied_clip_is_the_one_with_the_weights_put_in_by_hand(clip, pairs, of_pairs, way):
    put = {one.call: one for one in zl.grad_eclip(clip, pairs.inputs).substituted}
    assert set(put) == {"vision_model.encoder.layers.3.self_attn", "text_model.encoder.layers.2.self_attn"}
    handles = []
    for call, one in put.items():
        attention = clip.get_submodule(call)
        order = one.group.argsort()
        handles += replaced_rows(attention, attention.out_proj, scaled(one.weights[order], way), one.row[order])
    with torch.no_grad():
        pair = clip(**pairs.inputs)
    for handle in handles:
        handle.remove()
    image, text, captions = compared(clip, pairs)
    found = of_pairs.implied[way]
    there = pair.image_embeds.double()
    assert torch.allclose(found.score, (there * pair.text_embeds.double()).sum(1), atol=1e-5)
    assert torch.allclose(found.cosine, (there * image).sum(1), atol=1e-5)
    assert torch.equal(found.answer, (there @ captions.T).argmax(1))
    assert of_pairs.agreement(way) == pytest.approx(float((found.answer == (image @ captions.T).argmax(1)).double().mean()))
    assert of_pairs.implied_accuracy(way) == pytest.approx(float((found.answer == pairs.labels).double().mean()))
    assert float((found.score - (image * text).sum(1)).abs().max()) > 1e-3  # it is another model


@pytest.mark.parametrize("way", ["raw", "sum to 1"])
def test_the_implied_classifier_is_the_one_with_the_weights_put_in_by_hand(digits_vit, images, of_images, way):
    labels = images.labels
    (one,) = zl.grad_eclip(digits_vit, images.inputs, target=zl.logit(labels.tolist())).substituted
    assert one.row.tolist() == [0] * 12
    attention = digits_vit.get_submodule(one.call)
    handles = replaced_rows(attention, attention.o_proj, scaled(one.weights[one.group.argsort()], way), one.row)
    with torch.no_grad():
        there = digits_vit(**images.inputs).logits.double()
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        own = digits_vit(**images.inputs).logits.double()
    found = of_images.implied[way]
    assert torch.allclose(found.score, there[torch.arange(12), labels], atol=1e-4)
    assert torch.allclose(found.cosine, (there * own).sum(1) / (there.norm(dim=1) * own.norm(dim=1)), atol=1e-6)
    assert torch.equal(found.answer, there.argmax(1))
    assert of_images.agreement(way) == pytest.approx(float((there.argmax(1) == own.argmax(1)).double().mean()))
    assert of_images.implied_accuracy(way) == pytest.approx(float((there.argmax(1) == labels).double().mean()))


@pytest.mark.parametrize("name", ["pairs", "images"])
def test_each_stage_is_the_method_on_that_stage_of_the_cascade(request, both, name):
    data, model = request.getfixturevalue(name), both["digits-clip" if name == "pairs" else "digits-vit"]
    found = request.getfixturevalue(f"of_{name}")
    target = None if name == "pairs" else zl.logit(data.labels.tolist())
    own = zl.grad_eclip(model, data.inputs, target=target).grid("pixel_values").flatten(1)
    first = {key: value[:1] for key, value in data.inputs.items()}
    known = iter(found.stages)
    for stage, changed in cascade(model, first, seed=3):
        one = next(known)
        again = zl.grad_eclip(changed, data.inputs, target=target).grid("pixel_values")
        assert one.name == stage
        assert one.alike.tolist() == pytest.approx([rho(a, b) for a, b in zip(own, again.flatten(1))], abs=1e-3, nan_ok=True)
        assert torch.allclose(one.evidence, again.double().flatten(1).sum(1), rtol=1e-3)
        assert one.hit.tolist() == pytest.approx([pointed(grid, mask)[0] for grid, mask in zip(again, data.masks)], nan_ok=True)
        if name == "pairs":
            image, text, captions = compared(changed, data)
            assert torch.allclose(one.score, (image * text).sum(1), atol=1e-5)
            assert torch.equal(one.answer, (image @ captions.T).argmax(1))
        else:
            with torch.no_grad():
                logits = changed(**data.inputs).logits
            assert torch.allclose(one.score, logits.double()[torch.arange(12), data.labels], atol=1e-4)
            assert torch.equal(one.answer, logits.argmax(1))
    assert next(known, None) is None
    assert (found.stages[0].name, found.stages[-1].name) == ("head", "stem")


def test_another_seed_shuffles_otherwise_and_the_same_one_alike(digits_vit, few):
    a, b, c = (zl.check_principles("rollout", digits_vit, few["digits-vit"], seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(one.alike, other.alike) for one, other in zip(a.stages, b.stages))
    assert not all(torch.equal(one.score, other.score) for one, other in zip(a.stages, c.stages))


KERNEL = "taylor and integrated_attention run the attention by another kernel: outputs move by rounding, and the check is bit for bit"


@pytest.mark.parametrize("model", ["digits-clip", "digits-vit"])
@pytest.mark.parametrize("method", MAPPED)
def test_every_method_is_measured_and_substitutes_only_what_it_says(measured, model, method):
    found = measured(model, method)
    assert found.method == method
    assert bool(found.implied) == (method in ("grad_eclip", "attention_eclip"))
    assert bool(found.substitutes) == bool(found.implied)
    assert list(found.implied) == (["raw", "sum to 1"] if found.implied else [])
    assert found.stages == ()
    assert all(getattr(found, name).shape == (4,) for name in ("score", "evidence", "answer", "label", "hit", "chance"))
    assert bool(found.evidence.isfinite().all())
    assert found.model.startswith("transformers.")
    assert found.versions["zeroline"] == zl.__version__


@pytest.mark.parametrize("model", ["digits-clip", "digits-vit"])
@pytest.mark.parametrize("method", MAPPED)
def test_no_method_changes_the_outputs(measured, model, method):
    found = measured(model, method)
    assert found.unchanged is True
    if method in ("taylor", "integrated_attention"):  # the attention by another kernel
        assert 0 < found.apart < ROUNDING
    else:
        assert found.apart == 0


def test_the_models_own_attention_substitutes_nothing_and_has_no_implied_model(clip, few):
    found = zl.check_principles("attention_eclip", clip, few["digits-clip"], cascading=False, weights="attention")
    assert (found.substitutes, dict(found.implied)) == ((), {})
    assert found.settings == {"weights": "attention"}
    assert found.original_model()[0] is True


def test_heads_taken_as_one_are_no_outputs_of_the_model(digits_vit, few):
    found = zl.check_principles("grad_eclip", digits_vit, few["digits-vit"], cascading=False, heads="one")
    assert found.unchanged is False
    assert found.original_model() == (False, "the model's outputs change while it is explained")


def honest(model, inputs, target, baseline=None):
    return zl.gradient_x_input(model, inputs, target=target, baseline=baseline or zl.baseline.black())


def test_a_function_is_a_method_too(digits_vit, images):
    found = zl.check_principles(honest, digits_vit, images, cascading=False, baseline=zl.baseline.zeros())
    named = zl.check_principles("gradient_x_input", digits_vit, images, cascading=False, baseline=zl.baseline.zeros())
    assert found.method == "honest"
    assert found.unchanged is True
    assert list(found.settings) == ["baseline"]
    assert torch.equal(found.evidence, named.evidence)
    assert torch.equal(found.hit, named.hit)
    assert zl.check_principles(functools.partial(honest), digits_vit, images, cascading=False).method == "a function"


def scaling(module, factor=2.0):
    return module.register_forward_hook(lambda _, __, output: output * factor)


def cheat_with_a_hook(model, inputs, target):
    hook = scaling(model.classifier)
    try:
        return honest(model, inputs, target)
    finally:
        hook.remove()


def cheat_with_a_weight(model, inputs, target):
    weight = model.classifier.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.5)
    try:
        return honest(model, inputs, target)
    finally:
        with torch.no_grad():
            weight.copy_(before)


def cheat_after_a_first_honest_pass(model, inputs, target):
    with torch.no_grad():
        model(**inputs)
    return cheat_with_a_hook(model, inputs, target)


def leave_a_weight_changed(model, inputs, target):
    found = honest(model, inputs, target)
    with torch.no_grad():
        model.classifier.bias.add_(1)
    return found


def leave_a_hook(model, inputs, target):
    found = honest(model, inputs, target)
    scaling(model.classifier)
    return found


def cheat_on_one_example(model, inputs, target):
    """The last of a batch alone."""
    hook = model.classifier.register_forward_hook(lambda _, __, output: torch.cat([output[:-1], 2 * output[-1:]]))
    try:
        return honest(model, inputs, target)
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "cheat",
    [
        cheat_with_a_hook,
        cheat_with_a_weight,
        cheat_after_a_first_honest_pass,
        leave_a_weight_changed,
        leave_a_hook,
        cheat_on_one_example,
    ],
)
def test_a_method_that_changes_the_outputs_is_found_out(digits_vit, few, cheat):
    model = copy.deepcopy(digits_vit)
    found = zl.check_principles(cheat, model, few["digits-vit"], cascading=False)
    assert found.unchanged is False
    assert found.original_model()[0] is False
    assert found.method == cheat.__name__


@pytest.mark.parametrize(("factor", "unchanged"), [(1 + 2e-6, True), (1 + 2e-5, False)])
def test_outputs_may_move_by_rounding_and_no_more(digits_vit, few, factor, unchanged):
    def method(model, inputs, target):
        hook = scaling(model.classifier, factor)
        try:
            return honest(model, inputs, target)
        finally:
            hook.remove()

    found = zl.check_principles(method, digits_vit, few["digits-vit"], cascading=False)
    assert found.unchanged is unchanged
    assert found.apart == pytest.approx((factor - 1) / torch.finfo(torch.float32).eps, rel=0.2)


def test_a_part_of_the_output_that_the_target_does_not_read_counts_too(clip, few):
    def method(model, inputs, target):
        def change(_, __, output):
            output["last_hidden_state"] = 2 * output["last_hidden_state"]
            return output

        hook = model.text_model.register_forward_hook(change)
        try:
            return zl.gradient_x_input(model, inputs, target=target, baseline=zl.baseline.black())
        finally:
            hook.remove()

    found = zl.check_principles(method, clip, few["digits-clip"], cascading=False)
    assert found.unchanged is False


@pytest.mark.parametrize("call", [0, 1])
def test_a_cheat_in_one_batch_of_two_is_found_out(digits_vit, few, call):
    calls = itertools.count()

    def cheat(model, inputs, target):
        return (cheat_with_a_hook if next(calls) == call else honest)(model, inputs, target)

    assert zl.check_principles(cheat, digits_vit, few["digits-vit"], cascading=False, batch_size=2).unchanged is False


def test_a_record_from_before_is_no_explanation_of_this_model(digits_vit, few):
    data = few["digits-vit"]
    record = honest(digits_vit, data.inputs, zl.logit(data.labels.tolist()))
    found = zl.check_principles(lambda model, inputs, target: record, digits_vit, data, cascading=False)
    assert found.unchanged is False


def test_outputs_that_are_no_numbers_are_not_the_models(digits_vit, few):
    data = few["digits-vit"]
    record = honest(digits_vit, data.inputs, zl.logit(data.labels.tolist()))

    def method(model, inputs, target):
        hook = scaling(model.classifier, torch.nan)
        with torch.no_grad():
            model(**inputs)
        hook.remove()
        return record

    assert zl.check_principles(method, digits_vit, data, cascading=False).unchanged is False


@pytest.mark.parametrize("side", ["text", "against"])
def test_another_text_to_compare_with_changes_no_outputs(clip, few, side):
    other = zl.similarity(**{side: zoo.preprocess("digits-clip", text="a red one", pad=True)})
    assert zl.check_principles("grad_eclip", clip, few["digits-clip"], cascading=False, target=other).unchanged is True


def test_looking_for_a_neutral_baseline_changes_no_outputs(digits_vit, few):
    neutral = zl.baseline.neutral(zl.baseline.black())
    assert zl.check_principles("gradient_x_input", digits_vit, few["digits-vit"], cascading=False, baseline=neutral).unchanged is True


def test_a_target_of_ones_own_is_explained_and_scored(clip, few):
    data = few["digits-clip"]
    found = zl.check_principles("grad_eclip", clip, data, cascading=False, target=zl.similarity(scale="logit"))
    with torch.no_grad():
        logits = clip(**data.inputs).logits_per_image.diagonal()
    assert torch.allclose(found.score, logits.double(), atol=1e-4)
    assert found.target == "similarity logit of the image with its own text"
    assert found.accuracy == 1
    assert found.unchanged is True


def test_one_class_may_be_explained_of_all_examples(digits_vit, images):
    found = zl.check_principles("rollout", digits_vit, images, cascading=False, target=zl.logit(3))
    with torch.no_grad():
        logits = digits_vit(**images.inputs).logits
    assert torch.allclose(found.score, logits[:, 3].double(), atol=1e-5)
    assert torch.equal(found.answer, logits.argmax(1))
    assert found.target == "logit of three"


def test_maps_that_are_not_exact_enough_are_measured_without_a_warning(digits_vit, few):
    options = {"max_evaluations": 7, "tolerance": 1e-6}
    assert zl.check_principles("integrated_gradients", digits_vit, few["digits-vit"], cascading=False, **options).unchanged is True


@pytest.mark.parametrize(
    ("method", "name"), [("grad_eclip", "digits-clip"), ("gradient_x_input", "digits-vit"), ("attention_relevance", "digits-vit")]
)
def test_the_number_of_examples_at_once_does_not_matter(both, few, method, name):
    data = few[name]
    found = [zl.check_principles(method, both[name], data, batch_size=size, cascading=size > 1 and name == "digits-clip") for size in (1, 3, 64)]
    for one in found[1:]:
        assert one.unchanged is found[0].unchanged is True
        for part in ("score", "evidence", "hit", "chance"):
            assert torch.allclose(getattr(one, part), getattr(found[0], part), rtol=1e-3, atol=1e-5, equal_nan=True)
        assert torch.equal(one.answer, found[0].answer)
        assert list(one.implied) == list(found[0].implied)
        for way in one.implied:
            for part in ("score", "cosine", "answer"):
                assert torch.allclose(getattr(one.implied[way], part).double(), getattr(found[0].implied[way], part).double(), rtol=1e-3, atol=1e-5)
    for one, other in zip(found[1].stages, found[2].stages):
        assert torch.allclose(one.alike, other.alike, atol=1e-3, equal_nan=True)
        assert torch.equal(one.answer, other.answer)


def test_progress_counts_examples_of_the_model_and_of_every_stage(digits_vit, few):
    told = []
    zl.check_principles("gradient_x_input", digits_vit, few["digits-vit"], batch_size=3, progress=lambda done, total: told.append((done, total)))
    depth = len(stages(digits_vit, {"pixel_values": few["digits-vit"].inputs["pixel_values"][:1]}))
    whole = 4 * (1 + depth)
    assert [total for _, total in told] == [whole] * (2 * (1 + depth))
    assert [done for done, _ in told][:4] == [3, 4, 7, 8]
    assert told[-1] == (whole, whole)
    told.clear()
    zl.check_principles("rollout", digits_vit, few["digits-vit"], cascading=False, progress=lambda *two: told.append(two))
    assert told == [(4, 4)]


def test_a_map_without_masks_points_nowhere(digits_vit, few):
    data = zl.LabelledSet(few["digits-vit"].inputs, few["digits-vit"].labels)
    found = zl.check_principles("grad_eclip", digits_vit, data, cascading=False)
    assert bool(found.hit.isnan().all())
    assert bool(found.chance.isnan().all())
    assert "points" not in repr(found)


@pytest.mark.parametrize(
    ("method", "options"),
    [("grad_eclip", {"source": "input_ids"}), ("grad_cam", {"site": "text_model.encoder.layers.1"}), ("integrated_attention", {})],
)
def test_a_map_that_lies_on_no_grid_points_at_nothing_in_an_image(clip, few, method, options):
    found = zl.check_principles(method, clip, few["digits-clip"], cascading=False, **options)
    assert bool(found.hit.isnan().all())
    assert bool(found.chance.isnan().all())


def test_the_cams_look_at_the_image_of_a_pair(clip, few):
    found = zl.check_principles("grad_cam", clip, few["digits-clip"], cascading=False)
    assert found.source.startswith("vision_model")


def state_of(model):
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return {name: value.clone() for name, value in model.state_dict().items()}, hooks, flags, [m.training for m in model.modules()]


def same_state(a, b):
    return all(torch.equal(a[0][name], b[0][name]) for name in a[0]) and a[1:] == b[1:]


@pytest.mark.parametrize("name", ["digits-clip", "digits-vit"])
@pytest.mark.parametrize("method", ["grad_eclip", "layer_cam"])
def test_the_model_is_put_back(both, name, method):
    model, data = both[name], captioned(2) if name == "digits-clip" else classed(2)
    before, drawn = state_of(model), torch.get_rng_state()
    zl.check_principles(method, model, data)
    assert same_state(state_of(model), before)
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_the_model_is_put_back_after_a_failure_too(digits_vit, few, at):
    before, calls = state_of(digits_vit), itertools.count()

    def fails(model, inputs, target):
        if next(calls) == at:
            model(**inputs)
            raise RuntimeError("out of ideas")
        return honest(model, inputs, target)

    with pytest.raises(RuntimeError, match="out of ideas"):
        zl.check_principles(fails, digits_vit, few["digits-vit"], batch_size=2)
    assert same_state(state_of(digits_vit), before)
    assert before[1] == 0


def test_it_works_without_gradients(digits_vit, few):
    with torch.no_grad():
        found = zl.check_principles("grad_eclip", digits_vit, few["digits-vit"], cascading=False)
    assert found.unchanged is True
    assert torch.equal(found.evidence, zl.check_principles("grad_eclip", digits_vit, few["digits-vit"], cascading=False).evidence)


def test_it_survives_saving(of_pairs, of_images, tmp_path):
    for found in (of_pairs, of_images):
        found.save(tmp_path / "p.safetensors")
        again = Principles.load(tmp_path / "p.safetensors")
        assert repr(again) == repr(found)
        assert again.to_dict() == found.to_dict()
        assert again.substitutes == found.substitutes
        for name in ("score", "evidence", "answer", "label", "hit", "chance"):
            assert torch.equal(getattr(again, name), getattr(found, name))
        for way, one in found.implied.items():
            assert all(torch.equal(getattr(one, part), getattr(again.implied[way], part)) for part in ("score", "cosine", "answer"))
        for one, other in zip(found.stages, again.stages, strict=True):
            assert one.name == other.name
            for part in ("alike", "hit", "evidence", "score", "answer"):
                assert torch.equal(getattr(one, part).nan_to_num(9), getattr(other, part).nan_to_num(9))


def test_the_record_is_json_with_the_figures_of_the_tensors(of_pairs):
    record = json.loads(json.dumps(of_pairs.to_dict(), allow_nan=False))
    assert record["kind"] == "principles"
    assert (record["method"], record["examples"], record["wrong"]) == ("grad_eclip", 12, 5)
    assert record["accuracy"] == of_pairs.accuracy
    assert record["spearman"] == of_pairs.follows
    assert (record["points_where_right"], record["points_where_wrong"]) == (of_pairs.pointing(True), of_pairs.pointing(False))
    assert record["chance"] == pytest.approx(float(of_pairs.chance.mean()))
    for way, one in of_pairs.implied.items():
        off = (one.score - of_pairs.score).tolist()
        known = record["implied"][way]
        assert known["score_change"] == pytest.approx(sum(off) / 12)
        assert known["score_change_size"] == pytest.approx(sum(map(abs, off)) / 12)
        assert known["cosine"] == pytest.approx(float(one.cosine.mean()))
        assert (known["agreement"], known["accuracy"]) == (of_pairs.agreement(way), of_pairs.implied_accuracy(way))
    assert [(s["name"], s["alike"], s["points"]) for s in record["stages"]] == [
        (s.name, pytest.approx(float(s.alike.nanmean())), pytest.approx(float(s.hit.nanmean()))) for s in of_pairs.stages
    ]
    assert record["principle_1"] == dict(zip(("holds", "why"), of_pairs.original_model()))
    assert record["principle_2"] == dict(zip(("holds", "why"), of_pairs.performance()))


@pytest.mark.parametrize("count", [1, 4])
def test_the_record_is_json_also_where_nothing_is_wrong(digits_vit, count):
    found = zl.check_principles("rollout", digits_vit, classed(count), cascading=False)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("apart", [0.0, 3.5, math.inf])
def test_how_far_outputs_are_apart_is_kept(tmp_path, apart):
    found = made(apart=apart)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["unchanged"] is found.unchanged
    found.save(tmp_path / "p.safetensors")
    assert Principles.load(tmp_path / "p.safetensors").apart == apart


def test_other_files_are_refused(digits_vit, few, tmp_path):
    zl.grad_eclip(digits_vit, few["digits-vit"].inputs, target=0).save(tmp_path / "r.safetensors")
    with pytest.raises(LoadError, match="holds relevance 2, not principles of format 1"):
        Principles.load(tmp_path / "r.safetensors")
    found = made()
    records.write(tmp_path / "n.safetensors", {"score": found.score}, {**found.to_dict(), "format": 99})
    with pytest.raises(LoadError, match="holds principles 99, not principles of format 1"):
        Principles.load(tmp_path / "n.safetensors")
    (tmp_path / "text.safetensors").write_text("no record")
    with pytest.raises(LoadError, match="is not a principles report"):
        Principles.load(tmp_path / "text.safetensors")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "grad_eclipp"}, NotFoundError, "no method 'grad_eclipp'; nearest: grad_eclip"),
        ({"method": "attention_transfer"}, UsageError, "attention_transfer gives no map of the sources; possible: difference_map"),
        ({"batch_size": 0}, UsageError, "batch_size=0 was asked; 1 or more"),
        ({"layers": 9}, UsageError, "layers=9 was asked"),
        ({"weights": "tight", "method": "attention_eclip"}, NotFoundError, "no weights 'tight'"),
        ({"method": lambda model, inputs, target: torch.zeros(4)}, UsageError, "the method gave Tensor; it must give an Attribution or a Relevance"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_error(digits_vit, few, arguments, error, message):
    given = {"method": "grad_eclip", **arguments}
    with pytest.raises(error, match=message):
        zl.check_principles(given.pop("method"), digits_vit, few["digits-vit"], **given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"layerss": 2}, "layerss"),
        pytest.param({"source": "pixels"}, "pixels"),
        pytest.param({"method": "gradient_x_input", "source": "pixels"}, "pixels"),
    ],
)
def test_an_option_or_a_source_that_does_not_exist_is_said(digits_vit, few, options, words):
    given = {"method": "grad_eclip", "cascading": False, **options}
    with pytest.raises(UsageError, match=words):
        zl.check_principles(given.pop("method"), digits_vit, few["digits-vit"], **given)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"labels": torch.tensor([0, 1, 2])}, InputError, "4 inputs and 3 labels were given"),
        ({"labels": torch.tensor([0, 1, 2, 33])}, TargetError, "class 33 asked; the model has 10: 0 to 9"),
        ({"captions": {"input_ids": torch.zeros(2, 3, dtype=torch.long)}}, InputError, "input_ids was given to be embedded"),
    ],
)
def test_sets_that_do_not_fit_the_model_are_refused(digits_vit, few, changed, error, message):
    data = few["digits-vit"]
    with pytest.raises(error, match=message):
        zl.check_principles("rollout", digits_vit, zl.LabelledSet(**{"inputs": data.inputs, "labels": data.labels, **changed}), cascading=False)


def test_a_label_beyond_the_captions_is_refused(clip, few):
    data = few["digits-clip"]
    last = data.labels.clone()
    last[1] = len(CAPTIONS)
    with pytest.raises(InputError, match="caption 60 was given as a label; there are 60: 0 to 59"):
        zl.check_principles("rollout", clip, zl.LabelledSet(data.inputs, last, data.captions), cascading=False)
    last[1] = len(CAPTIONS) - 1
    assert zl.check_principles("rollout", clip, zl.LabelledSet(data.inputs, last, data.captions), cascading=False).accuracy == 0.75


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": torch.tensor([])}, r"labels \[n\] of at least one example are needed; found \(0,\)"),
        ({"labels": torch.zeros(2, 2)}, r"found \(2, 2\)"),
        ({"labels": torch.zeros(2), "masks": torch.ones(3, 4, 4)}, r"masks \[n, height, width\] are needed for 2 examples; found \(3, 4, 4\)"),
        ({"labels": torch.zeros(2), "masks": torch.ones(2, 4)}, r"found \(2, 4\)"),
    ],
)
def test_a_set_has_a_label_per_example_and_masks_of_two_dimensions(given, message):
    with pytest.raises(InputError, match=message):
        zl.LabelledSet(torch.ones(2, 3), **given)


def test_labels_may_be_a_list():
    assert torch.equal(zl.LabelledSet(torch.ones(2, 3), [1, 0]).labels, torch.tensor([1, 0]))


def test_a_model_in_training_mode_is_refused(digits_vit, few):
    model = copy.deepcopy(digits_vit).train()
    with pytest.raises(ModelStateError, match="training mode"):
        zl.check_principles("rollout", model, few["digits-vit"], cascading=False)


# The verdicts, from records written by hand.


def made(count=20, wrong=0, **more):
    """A record of ``count`` examples, all but the last ``wrong`` right, all maps on the object, evidence that follows the score."""
    rising = torch.arange(count, dtype=torch.float64)
    answer = torch.arange(count) % 7
    label = answer.clone()
    if wrong:
        label[-wrong:] = 7
    figures = dict(
        method="by_hand", settings={}, target="f", source="x", score=rising, evidence=rising, answer=answer, label=label,
        hit=torch.ones(count).double(), chance=torch.full((count,), 0.25).double(), apart=0.0,
    )  # fmt: skip
    return Principles(**{**figures, **more})


def implied(record, agrees, right=None):
    """An implied model that gives the original's answer on so many of the first examples."""
    answer = record.answer.clone()
    answer[agrees:] = 9
    return Implied(record.score - 0.5, torch.full_like(record.score, 0.75), answer)


def shuffled(record, right, alike, name="head"):
    """A stage with so many right answers, and maps so alike."""
    answer = torch.full_like(record.answer, 9)
    answer[:right] = record.label[:right]
    likeness = torch.full_like(record.score, alike)
    return Stage(name, likeness, record.hit, record.evidence, record.score, answer)


def hits(record, right, wrong):
    """Maps on the object for so many of the right, and of the wrong answers."""
    hit = torch.zeros_like(record.score)
    hit[record.right.nonzero().flatten()[:right]] = 1
    hit[(~record.right).nonzero().flatten()[:wrong]] = 1
    return hit


def test_a_method_that_substitutes_nothing_is_of_the_original_model():
    assert made().original_model() == (True, "it substitutes nothing, and the outputs stay bit for bit the model's")


@pytest.mark.parametrize(
    ("apart", "holds", "words"),
    [
        (0.0, True, "bit for bit the model's"),
        (2.4, True, "the model's up to rounding (2 times its unit)"),
        (64.0, True, "the model's up to rounding (64 times its unit)"),  # at the threshold
        (64.5, False, "NOT the model's"),
        (math.inf, False, "NOT the model's"),
    ],
)
def test_outputs_may_be_apart_by_the_rounding_of_another_kernel(apart, holds, words):
    assert ROUNDING == 64
    record = made(apart=apart)
    assert record.original_model()[0] is record.unchanged is holds
    assert dict(record.rows())["outputs while explained"] == words
    if holds:
        assert record.original_model()[1] == f"it substitutes nothing, and the outputs stay {words}"


def test_changed_outputs_come_before_everything_else():
    for more in ({}, {"substitutes": ("attention by ones",)}):
        assert made(apart=math.inf, **more).original_model() == (False, "the model's outputs change while it is explained")


def test_what_is_substituted_and_cannot_be_run_is_said():
    assert made(substitutes=("a by b", "c by d")).original_model() == (False, "it substitutes a by b; c by d")


@pytest.mark.parametrize(
    ("raw", "unit", "words"),
    [
        (20, 20, "the implied model answers much as the original"),
        (19, 19, "the implied model answers much as the original"),  # 95 %: at the threshold
        (18, 20, "the model that it implies is another one"),
        (20, 18, "the model that it implies is another one"),
    ],
)
def test_the_implied_model_is_another_one_where_either_way_agrees_too_rarely(raw, unit, words):
    assert AGREES == 0.95
    base = made()
    record = made(substitutes=("attention",), implied={"raw": implied(base, raw), "sum to 1": implied(base, unit)})
    holds, why = record.original_model()
    assert holds is False
    assert f"; {words} (raw: {raw / 20:.0%} of the answers, accuracy {raw / 20:.0%}, cosine 0.75; sum to 1: {unit / 20:.0%}" in why
    assert why.endswith("the original's accuracy is 100%)")


def test_agreement_is_with_the_original_and_accuracy_with_the_label():
    base = made(wrong=10)
    record = made(wrong=10, implied={"raw": implied(base, 15)})
    assert record.agreement("raw") == 0.75
    assert record.implied_accuracy("raw") == 0.5
    right = implied(base, 0)
    assert made(wrong=10, implied={"raw": Implied(right.score, right.cosine, base.label)}).implied_accuracy("raw") == 1


def permuted(total):
    """The first order of five numbers whose squared distances from 1..5 add up to ``total``."""
    return next(p for p in itertools.permutations(range(5)) if sum((a - i) ** 2 for i, a in enumerate(p)) == total)


@pytest.mark.parametrize(("total", "value", "follows"), [(0, 1.0, True), (14, 0.3, True), (16, 0.2, False), (20, 0.0, False), (40, -1.0, False)])
def test_evidence_follows_from_a_rho_of_the_threshold_on(total, value, follows):
    assert FOLLOWS == 0.3
    record = made(5, evidence=torch.tensor(permuted(total)).double())
    assert record.follows == pytest.approx(value)
    holds, why = record.performance()
    assert holds is follows
    assert f"evidence {'follows' if follows else 'does not follow'} the score (rho {value:.2f})" in why


def test_constant_evidence_follows_nothing():
    record = made(evidence=torch.ones(20).double())
    assert math.isnan(record.follows)
    assert record.performance()[0] is False
    assert "does not follow" in record.performance()[1]


@pytest.mark.parametrize(
    ("right", "wrong", "holds", "words"),
    [
        (10, 10, False, "points at the object just as often (100%, right 100%)"),
        (10, 9, False, "points at the object just as often (90%, right 100%)"),  # less by 0.1: at the threshold
        (10, 8, True, "points at the object less often (80%, right 100%)"),
        (5, 9, False, "points at the object just as often (90%, right 50%)"),
        (10, 0, True, "points at the object less often (0%, right 100%)"),
    ],
)
def test_wrong_answers_should_be_pointed_at_less(right, wrong, holds, words):
    assert (FEW, SAME) == (10, 0.1)
    record = made(wrong=10, hit=hits(made(wrong=10), right, wrong))
    assert record.performance() == (holds, f"evidence follows the score (rho 1.00); where the model is wrong it {words}")


@pytest.mark.parametrize("wrong", [0, 1, 9])
def test_fewer_than_ten_wrong_answers_say_nothing(wrong):
    assert made(wrong=wrong).performance() == (
        True,
        f"evidence follows the score (rho 1.00); the model is wrong on {wrong} of 20: too few to tell",
    )


@pytest.mark.parametrize("wrong", [0, 12])
def test_without_masks_nothing_is_said_of_pointing(wrong):
    nowhere = torch.full((20,), torch.nan).double()
    record = made(wrong=wrong, hit=nowhere, chance=nowhere)
    assert record.performance() == (True, "evidence follows the score (rho 1.00)")
    assert not any("points" in label for label, _ in record.rows())


def test_maps_without_a_positive_value_are_left_out_of_pointing():
    hit = torch.tensor([1.0, torch.nan, 0.0, torch.nan, 1.0, 1.0, 0.0, torch.nan, 0.0, 0.0]).double()
    record = made(10, wrong=5, hit=hit)
    assert record.pointing(True) == pytest.approx(2 / 3)
    assert record.pointing(False) == pytest.approx(1 / 4)
    assert math.isnan(made(10).pointing(False))


@pytest.mark.parametrize(
    ("right", "alike", "said"),
    [
        (9, 0.9, "the map stays when shuffled weights ruin the model (rho at most 0.90, head)"),
        (9, 0.5, "the map changes when shuffled weights ruin the model (rho at most 0.50, head)"),  # at the threshold
        (9, -0.2, "the map changes when shuffled weights ruin the model (rho at most -0.20, head)"),
        (10, 0.9, None),  # half of the accuracy is not below half
        (20, 0.9, None),
    ],
)
def test_a_map_must_not_stay_where_less_than_half_of_the_accuracy_is_left(right, alike, said):
    assert UNCHANGED == 0.5
    base = made()
    holds, why = made(stages=(shuffled(base, right, alike),)).performance()
    assert holds is not (said is not None and alike > 0.5)
    assert why.split("; ")[2:] == ([said] if said else [])


def test_half_of_the_accuracy_is_half_of_the_models_own():
    base = made(wrong=10, hit=torch.full((20,), torch.nan).double())
    for right, ruined in ((4, True), (5, False)):
        why = made(wrong=10, hit=base.hit, stages=(shuffled(base, right, 0.9),)).performance()[1]
        assert ("stays" in why) is ruined


def test_the_worst_stage_of_those_that_are_ruined_is_named():
    base = made()
    found = made(stages=(shuffled(base, 20, 0.99, "head"), shuffled(base, 3, 0.2, "last block"), shuffled(base, 2, 0.6, "stem")))
    assert found.performance() == (
        False,
        "evidence follows the score (rho 1.00); the model is wrong on 0 of 20: too few to tell; "
        "the map stays when shuffled weights ruin the model (rho at most 0.60, stem)",
    )


@pytest.mark.parametrize("first", [0.1, pytest.param(math.nan)])
def test_a_stage_whose_maps_are_constant_hides_no_other(first):
    base = made()
    found = made(stages=(shuffled(base, 0, first, "head"), shuffled(base, 0, 0.9, "stem")))
    assert found.performance()[0] is False
    assert "rho at most 0.90, stem" in found.performance()[1]


def test_the_table_says_every_figure_in_words():
    base = made(wrong=10)
    stage = shuffled(base, 5, 0.25, "last block")
    record = made(
        wrong=10, hit=hits(base, 9, 4), substitutes=("attention by ones",), implied={"raw": implied(base, 15)}, stages=(stage,),
        target="logit of the label", source="pixel_values",
    )  # fmt: skip
    assert record.rows() == [
        ("target", "logit of the label"),
        ("map over", "pixel_values"),
        ("examples", "20, accuracy 50.0%"),
        ("substitutes", "attention by ones"),
        ("outputs while explained", "bit for bit the model's"),
        ("implied model (raw)", "score -0.500 in the mean (0.500 in size)"),
        ("", "cosine 0.750, same answer 75.0%, accuracy 50.0%"),
        ("evidence and score", "Spearman's rho 1.00"),
        ("points at the object", "right 90.0% of 10, wrong 40.0% of 10, chance 25.0%"),
        ("shuffled to last block", "map rho +0.25, accuracy 25.0%, points 100.0%"),
        ("principle 1", f"does not hold: {record.original_model()[1]}"),
        ("principle 2", f"holds: {record.performance()[1]}"),
    ]
    shown = repr(record)
    assert shown.startswith("Principles of by_hand\n  target ")
    assert all(value in shown for _, value in record.rows())


def test_the_table_says_nothing_where_there_is_nothing():
    rows = dict(made(apart=math.inf).rows())
    assert rows["substitutes"] == "nothing"
    assert rows["outputs while explained"] == "NOT the model's"
    assert rows["points at the object"] == "right 100.0% of 20, none wrong, chance 25.0%"
    assert not any(label.startswith(("implied", "shuffled")) for label in rows)
    assert rows["principle 1"].startswith("does not hold: the model's outputs change")
    assert rows["principle 2"].startswith("holds: ")
