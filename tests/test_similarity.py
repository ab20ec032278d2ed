"""Similarity targets against the cosine computed by hand and the models' own logits; pairs of encoders; what bad input is told."""

import copy

import pytest
import torch
from torch import nn

import zeroline as zl
from methods import eclip_reference as paper
from zeroline import zoo
from zeroline.errors import InputError, ModelStateError, NonFiniteError, TargetError, UsageError, ZerolineError
from zeroline.model.randomised import cascade
from zeroline.similarity import SimilarityTarget, embeddings


def value(model, inputs, target=None):
    """f(x) of a target, as an explanation records it."""
    return zl.grad_eclip(model, inputs, target=target).output


def by_hand(a, b):
    """a b / (|a| |b|), number by number."""
    found = []
    for x, y in zip(a.tolist(), b.tolist()):
        dot = sum(p * q for p, q in zip(x, y))
        found.append(dot / (sum(p * p for p in x) ** 0.5 * sum(q * q for q in y) ** 0.5))
    return torch.tensor(found, dtype=torch.float64)


def near(a, b):
    return torch.allclose(a, b, rtol=1e-12, atol=1e-13)


class Embeds(nn.Module):
    """Gives the embeddings that it is given, under any names."""

    def __init__(self, names=("image_embeds", "text_embeds")):
        super().__init__()
        self.names = names

    def forward(self, a, b):
        return (a, b) if self.names is None else dict(zip(self.names, (a, b)))


def read(a, b, target=None, names=("image_embeds", "text_embeds")):
    target = target or zl.similarity()
    output = Embeds(names)(a, b)
    return target.resolve(output, {}).read(output, torch.arange(len(a)))


# --- the cosine ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("image_embeds", "text_embeds"), ("image_features", "text_features"), None], ids=str)
def test_the_cosine_is_that_of_the_embeddings_normalised_or_not(names):
    a, b = torch.randn(4, 6).double() * 3, torch.randn(4, 6).double() * 0.1
    assert near(read(a, b, names=names), by_hand(a, b))
    assert near(read(a / a.norm(dim=1, keepdim=True), b, names=names), by_hand(a, b))
    assert near(read(1e-9 * a, 1e9 * b, names=names), by_hand(a, b))


def test_the_cosine_of_low_precision_embeddings_is_in_float32():
    a, b = torch.randn(2, 2, 6).bfloat16()
    assert read(a, b).dtype == torch.float32
    assert torch.allclose(read(a, b).double(), by_hand(a.double(), b.double()), atol=1e-6)


def test_embeddings_are_found_by_name_before_place_and_one_side_may_be_missing():
    a, b = torch.randn(2, 3, 4)
    assert embeddings({"logits": torch.ones(3, 9), "text_embeds": b, "image_embeds": a}) == (a, b)
    assert embeddings({"text_features": b}) == (None, b)
    assert embeddings((None, b, torch.tensor(2.0))) == (None, b)


def test_another_embedding_for_all_samples_or_one_for_each():
    a, b = torch.randn(2, 3, 6).double()
    one, each = torch.randn(6).double(), torch.randn(3, 6).double()
    assert near(read(a, b, zl.similarity(text=one)), by_hand(a, one.expand(3, -1)))
    assert near(read(a, b, zl.similarity(text=one[None])), by_hand(a, one.expand(3, -1)))
    assert near(read(a, b, zl.similarity(text=each)), by_hand(a, each))
    assert near(read(a, b, zl.similarity(image=each)), by_hand(b, each))
    assert near(read(a, b, zl.similarity(text=each, against=one)), by_hand(a, each) - by_hand(a, one.expand(3, -1)))
    assert near(read(a, b, zl.similarity(against=each)), by_hand(a, b) - by_hand(a, each))
    assert near(read(a, b, zl.similarity(image=one, against=each)), by_hand(b, one.expand(3, -1)) - by_hand(b, each))


@pytest.mark.parametrize("samples", [[2, 0, 0, 1, 2, 2], [2, 1, 0], [2], [1, 1]], ids=str)
def test_rows_of_a_path_keep_the_embedding_of_their_sample(samples):
    a, each = torch.randn(len(samples), 4).double(), torch.randn(3, 4).double()
    target = zl.similarity(text=each).resolve({"image_embeds": torch.randn(3, 4)}, {})
    assert near(target.read({"image_embeds": a}, torch.tensor(samples)), by_hand(a, each[samples]))
    contrast = zl.similarity(text=each, against=each.flip(0)).resolve({"image_embeds": torch.randn(3, 4)}, {})
    assert near(contrast.read({"image_embeds": a}, torch.tensor(samples)), by_hand(a, each[samples]) - by_hand(a, each.flip(0)[samples]))


# --- the models' own logits ------------------------------------------------------------------------------------------------------


def test_the_logit_is_that_of_hugging_faces_clip():
    case = paper.clip()
    with torch.no_grad():
        truth = case.model(**case.inputs)
    assert near(value(case.model, case.inputs, zl.similarity(scale="logit")), truth.logits_per_image.diagonal())
    assert near(value(case.model, case.inputs), by_hand(truth.image_embeds, truth.text_embeds))


def test_the_logit_of_siglip_has_its_bias():
    case = paper.siglip()
    case.model.logit_scale.data.fill_(0.7)
    case.model.logit_bias.data.fill_(-3.3)
    with torch.no_grad():
        truth = case.model(**case.inputs).logits_per_image.diagonal()
    assert near(value(case.model, case.inputs, zl.similarity(scale="logit")), truth)


@pytest.mark.parametrize("more", [{}, {"init_logit_bias": -2.0}, {"nonscalar_logit_scale": True, "output_dict": True}], ids=str)
def test_the_logit_is_that_of_open_clip(more):
    case = paper.open_clip(**more)
    case.model.logit_scale.data.fill_(1.1)
    with torch.no_grad():
        truth, _ = case.model.get_logits(**case.inputs)
    assert near(value(case.model, case.inputs, zl.similarity(scale="logit")), truth.diagonal())


def test_in_a_contrast_of_logits_the_bias_falls_away():
    case = paper.siglip()
    one, two = torch.randn(2, 24).double()
    found = value(case.model, case.inputs, zl.similarity(text=one, against=two, scale="logit"))
    cosines = value(case.model, case.inputs, zl.similarity(text=one, against=two))
    assert near(found, cosines * float(case.model.logit_scale.detach().exp()))


# --- texts and images that the model embeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [paper.clip, paper.siglip, paper.open_clip], ids=["CLIP", "SigLIP", "open_clip"])
def test_tokens_give_what_their_embedding_gives(build):
    case = build()
    name = "text" if "text" in case.inputs else "input_ids"
    ids, mask = paper.texts([6, 9, 4], 9)
    other = {name: ids, "attention_mask": mask} if "attention_mask" in case.inputs else {name: ids}
    with torch.no_grad():
        output = case.model(**{**case.inputs, **other})
    image, text = embeddings(output)
    by_tokens = value(case.model, case.inputs, zl.similarity(text=other))
    assert near(by_tokens, value(case.model, case.inputs, zl.similarity(text=text)))
    assert near(by_tokens, by_hand(image, text))
    against = value(case.model, case.inputs, zl.similarity(against=other))
    assert near(against, value(case.model, case.inputs) - by_tokens)
    if len(other) == 1:
        assert near(value(case.model, case.inputs, zl.similarity(text=ids)), by_tokens)
        assert near(value(case.model, case.inputs, zl.similarity(text=ids[:1]))[:1], by_tokens[:1])


def test_another_text_may_have_another_length():
    case = paper.clip()
    ids, mask = paper.texts([5], 5)
    with torch.no_grad():
        text = case.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    found = value(case.model, case.inputs, zl.similarity(text={"input_ids": ids, "attention_mask": mask}))
    assert near(found, value(case.model, case.inputs, zl.similarity(text=text)))


@pytest.mark.parametrize("bare", [True, False], ids=["ids", "a dict of ids"])
def test_ids_without_a_mask_are_not_hidden_by_the_mask_of_another_text(bare):
    case = paper.clip()
    ids, mask = paper.texts([9], 9)  # longer than the second sample's own text
    embedding = case.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output.detach()
    inputs = {name: tensor[1:2] for name, tensor in case.inputs.items()}
    found = value(case.model, inputs, zl.similarity(text=ids if bare else {"input_ids": ids}))
    assert near(found, value(case.model, inputs, zl.similarity(text=embedding)))


def test_an_image_is_compared_with_the_samples_own_texts():
    case = paper.clip()
    pixels = torch.randn(1, 3, 32, 32).double()
    with torch.no_grad():
        text = case.model(**case.inputs).text_embeds
        image = case.model.get_image_features(pixel_values=pixels).pooler_output
    found = zl.grad_eclip(case.model, case.inputs, target=zl.similarity(image={"pixel_values": pixels}, names="the same image"))
    assert near(found.output, by_hand(text, image.expand(3, -1)))
    assert list(found.by_source) == ["input_ids"]
    assert found.target == ("cosine of the text with the same image",) * 3


def test_the_model_is_as_it_was_after_it_embedded_a_text():
    case = paper.clip()
    ids, mask = paper.texts([6], 9)
    given = {"input_ids": ids.clone(), "attention_mask": mask.clone()}
    before = case.model(**case.inputs).logits_per_image
    value(case.model, case.inputs, zl.similarity(text=given))
    assert torch.equal(case.model(**case.inputs).logits_per_image, before)
    assert all(p.requires_grad for p in case.model.parameters())
    assert torch.equal(given["input_ids"], ids)
    assert torch.equal(given["attention_mask"], mask)


def test_targets_are_described_in_words():
    one, two = torch.randn(2, 6)
    assert zl.similarity().describe(2) == ("cosine of the image with its own text",) * 2
    assert zl.similarity(text=one).describe(1) == ("cosine of the image with a text given",)
    assert zl.similarity(text=one, against=two).describe(1) == ("cosine of the image with a text given, minus that with another text",)
    assert zl.similarity(text=one, against=two, names=("a cat", "a dog")).describe(1) == ("cosine of the image with a cat, minus that with a dog",)
    assert isinstance(zl.similarity(), SimilarityTarget)


def test_an_image_that_is_given_is_described_in_words():
    assert zl.similarity(image=torch.ones(4), scale="logit").describe(1) == ("similarity logit of the text with an image given",)


# --- two encoders as one model ---------------------------------------------------------------------------------------------------------


class Pixels(nn.Module):
    """An image tower without attention."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.Tanh(), nn.Linear(12, 6))

    def forward(self, image):
        return self.layers(image)


class Words(nn.Module):
    """A text tower without attention, which may be told what is padding."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 6)

    def forward(self, text, attention_mask=None):
        mask = torch.ones_like(text) if attention_mask is None else attention_mask
        return self.out((self.embed(text) * mask[..., None]).sum(1).tanh())


def two_modules():
    image, text = Pixels().double().eval(), Words().double().eval()
    inputs = {"image": torch.randn(3, 3, 4, 4).double(), "text": torch.randint(0, 20, (3, 5)), "attention_mask": torch.ones(3, 5, dtype=torch.int64)}
    inputs["attention_mask"][1, 3:] = 0
    return zl.DualEncoder(image=image, text=text), inputs, (image(inputs["image"]), text(inputs["text"], inputs["attention_mask"]))


def bound_methods():
    case = paper.clip()
    image, text = case.model.get_image_features, case.model.get_text_features
    inputs = {"image": case.inputs["pixel_values"], "text": case.inputs["input_ids"], "attention_mask": case.inputs["attention_mask"]}
    output = case.model(**case.inputs)
    return zl.DualEncoder(image=image, text=text, logit_scale=case.model.logit_scale), inputs, (output.image_embeds, output.text_embeds)


def functions():
    case = paper.open_clip()
    model = case.model
    pair = zl.DualEncoder(image=lambda x: model.encode_image(x), text=lambda ids: model.encode_text(ids), modules=(model,))
    return pair, case.inputs, model(**case.inputs)[:2]


@pytest.mark.parametrize("build", [two_modules, bound_methods, functions])
def test_a_pair_of_encoders_has_their_similarity_and_integrated_gradients_add_up(build):
    pair, inputs, (image, text) = build()
    found = zl.integrated_gradients(pair, inputs, target=zl.similarity(), site="input:image", baseline=zl.baseline.zeros())
    zero = {**inputs, "image": torch.zeros_like(inputs["image"])}
    begin = pair(**zero)
    assert near(found.difference, by_hand(image, text) - by_hand(begin["image_embeds"], begin["text_embeds"]))
    assert bool((found.relative_error <= 0.0101).all())
    assert float(found.error.abs().max()) < 1e-2
    assert found.values.shape == inputs["image"].shape
    assert not pair.training


@pytest.mark.parametrize("build", [bound_methods, functions])
def test_a_pair_of_encoders_is_followed_like_the_model(build):
    torch.manual_seed(0)
    pair, inputs, _ = build()
    torch.manual_seed(0)
    case = paper.clip() if build is bound_methods else paper.open_clip()
    one = zl.attention_relevance(pair, inputs, target=zl.similarity())
    two = zl.attention_relevance(case.model, case.inputs, target=zl.similarity())
    renamed = {"image": "pixel_values", "text": "input_ids"} if build is bound_methods else {"image": "image", "text": "text"}
    for own, theirs in renamed.items():
        assert paper.close(one.by_source[own], two.by_source[theirs])
    assert one.gridded() == "image"


def test_a_pair_may_have_the_scale_of_its_logits():
    pair, inputs, (image, text) = bound_methods()
    assert near(value(pair, inputs, zl.similarity(scale="logit")), torch.exp(pair.logit_scale) * by_hand(image, text))
    pair, inputs, (image, text) = functions()
    with pytest.raises(TargetError, match="no logit_scale"):
        value(pair, inputs, zl.similarity(scale="logit"))


def test_one_side_alone_is_enough_for_a_text_that_is_given():
    pair, inputs, (image, _) = functions()
    text = torch.randn(16).double()
    found = zl.grad_eclip(pair, {"image": inputs["image"]}, target=zl.similarity(text=text))
    assert near(found.output, by_hand(image, text.expand(3, -1)))
    with pytest.raises(TargetError, match="the text is missing from its inputs"):
        zl.grad_eclip(pair, {"image": inputs["image"]}, target=zl.similarity(image=text))
    with pytest.raises(TargetError, match="3 image and 0 other embeddings"):
        zl.grad_eclip(pair, {"image": inputs["image"]})


def test_a_pair_freezes_and_moves_its_towers():
    pair, _, _ = two_modules()
    assert len(list(pair.parameters())) == 7
    assert not pair.training
    both, _, _ = bound_methods()
    assert len(both.towers) == 1  # one model, two methods of it
    assert pair.float().towers[0].layers[1].weight.dtype == torch.float32


def test_a_pair_in_training_is_refused_like_any_model():
    image = nn.Sequential(Pixels(), nn.Dropout(0.5))
    pair = zl.DualEncoder(image=image.double().train(), text=Words().double())
    with pytest.raises(ModelStateError, match="training mode"):
        zl.integrated_gradients(pair, two_modules()[1], target=zl.similarity(), site="input:image", baseline=zl.baseline.zeros())


def test_making_a_pair_leaves_the_mode_of_its_towers():
    image, text = Pixels().eval(), Words().train()
    zl.DualEncoder(image=image, text=text)
    assert (image.training, text.training) == (False, True)


def test_a_pair_of_functions_cannot_be_randomised_and_says_so():
    pair, inputs, _ = functions()
    with pytest.raises(UsageError, match="a pair of functions cannot be copied"):
        next(cascade(pair, inputs))


def test_a_copy_of_a_pair_of_methods_runs_on_its_own_weights():
    pair, inputs, _ = bound_methods()
    copied = copy.deepcopy(pair)
    copied.towers[0].visual_projection.weight.data.zero_()
    assert float(copied(**inputs)["image_embeds"].detach().abs().max()) == 0
    assert float(pair(**inputs)["image_embeds"].detach().abs().max()) > 0


def test_an_encoder_that_gives_no_embedding_is_named():
    with pytest.raises(InputError, match=r"the image encoder gave \(2, 3, 4\); an embedding is a tensor \[batch, dim\]"):
        zl.DualEncoder(image=nn.Identity(), text=nn.Identity())(torch.ones(2, 3, 4))
    with pytest.raises(InputError, match="the text encoder gave dict"):
        zl.DualEncoder(image=nn.Identity(), text=lambda ids: {"logits": ids})(text=torch.ones(2, 3))


# --- bad input ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": "a cat"}, "'a cat' is a string; a text is its tokens"),
        ({"image": "cat.png"}, "'cat.png' is a string"),
        ({"against": "a dog"}, "'a dog' is a string"),
        ({"text": 3}, "an embedding or inputs, not int"),
        ({"text": ["a cat"]}, "not list"),
        ({"text": torch.ones(4), "image": torch.ones(4)}, "a text and an image were given"),
        ({"scale": "logits"}, "scale='logits' was asked; possible: cosine, logit"),
        ({"scale": None}, "scale=None"),
    ],
    ids=str,
)
def test_what_is_no_text_or_image_gets_one_clear_error(arguments, words):
    with pytest.raises(TargetError, match=words) as caught:
        zl.similarity(**arguments)
    assert "\n" not in str(caught.value)


NAN = torch.full((16,), float("nan")).double()


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (zl.similarity(text=torch.zeros(16).double()), TargetError, "embedding of sample 0 is zero"),
        (zl.similarity(text=torch.eye(3, 16).double() * torch.tensor([[1.0], [0.0], [1.0]])), TargetError, "embedding of sample 1 is zero"),
        (zl.similarity(against=torch.zeros(16).double()), TargetError, "is zero"),
        (zl.similarity(text=NAN), NonFiniteError, "embedding of sample 0 is not finite"),
        (zl.similarity(image=NAN), NonFiniteError, "is not finite"),
        (zl.similarity(text=torch.ones(5)), TargetError, r"shape \(5,\) was given; the model's are \(16,\), or one per sample \(3, 16\)"),
        (zl.similarity(text=torch.ones(2, 16)), TargetError, r"shape \(2, 16\)"),
        (zl.similarity(text=torch.ones(1, 1, 16)), TargetError, r"shape \(1, 1, 16\)"),
        (zl.similarity(against=torch.ones(3, 17)), TargetError, r"shape \(3, 17\)"),
        (zl.similarity(text=torch.ones(())), TargetError, r"shape \(\)"),
        (
            zl.similarity(text={"ids": torch.ones(1, 5, dtype=torch.int64)}),
            InputError,
            "ids was given to be embedded; the model's inputs are input_ids",
        ),
        (zl.similarity(text=torch.full((1, 5), 999)), InputError, r"cannot embed input_ids \(1, 5\)"),
        (zl.similarity(image={"pixel_values": torch.ones(1, 3, 9, 9).double()}), InputError, r"cannot embed pixel_values \(1, 3, 9, 9\)"),
    ],
    ids=range(13),
)
def test_embeddings_that_do_not_fit_get_one_clear_error(target, error, words):
    case = paper.clip()
    inputs = {name: tensor for name, tensor in case.inputs.items() if name != "attention_mask"}
    with pytest.raises(error, match=words) as caught:
        value(case.model, inputs, target)
    assert isinstance(caught.value, ZerolineError)
    assert "\n" not in str(caught.value)
    assert all(p.requires_grad for p in case.model.parameters())


def test_a_model_whose_own_embedding_is_zero_or_nan_is_told():
    pair, inputs, _ = two_modules()
    pair.towers[0].layers[3].weight.data.zero_()
    pair.towers[0].layers[3].bias.data.zero_()
    options = dict(target=zl.similarity(), site="input:image", baseline=zl.baseline.zeros())
    with pytest.raises(TargetError, match="embedding of sample 0 is zero"):
        zl.integrated_gradients(pair, inputs, **options)
    case = paper.clip()
    case.model.visual_projection.weight.data.zero_()  # CLIP divides by the norm itself
    with pytest.raises(NonFiniteError, match="not finite.*divides a zero embedding by its norm"):
        value(case.model, case.inputs)


def test_images_and_texts_of_unequal_number_are_no_pairs():
    case = paper.open_clip()
    with pytest.raises(TargetError, match="3 image and 2 other embeddings; a sample is a pair"):
        value(case.model, {"image": case.inputs["image"], "text": case.inputs["text"][:2]})
    with pytest.raises(TargetError, match="2 image and 3 other embeddings; a sample is a pair"):
        value(case.model, {"text": case.inputs["text"], "image": case.inputs["image"][:2]})


def test_one_text_for_all_images_is_given_to_the_target():
    case = paper.open_clip()
    one = {"image": case.inputs["image"], "text": case.inputs["text"][:1]}
    with torch.no_grad():
        image, text = case.model(**one)[:2]
    assert near(value(case.model, one, zl.similarity(text=text)), by_hand(image, text.expand(3, -1)))


def test_a_classifier_has_no_similarity(digits_vit, samples):
    with pytest.raises(TargetError, match="gives no image and text embeddings.*zl.similarity is for dual encoders.*zl.DualEncoder"):
        zl.grad_eclip(digits_vit, samples[0].inputs)
    with pytest.raises(TargetError, match="dual encoders"):
        zl.integrated_gradients(digits_vit, samples[0].inputs, target=zl.similarity(text=torch.ones(4)), baseline=zl.baseline.zeros())


def test_ids_for_a_model_that_reads_none_are_refused():
    pair, inputs, _ = two_modules()
    with pytest.raises(InputError, match="the model has 0 inputs of ids"):
        zl.integrated_gradients(
            pair, {"image": inputs["image"]}, target=zl.similarity(text=inputs["text"]), site="input:image", baseline=zl.baseline.zeros()
        )


def test_a_model_without_a_scale_has_no_logit():
    pair, inputs, _ = two_modules()
    with pytest.raises(TargetError, match="scale='logit' was asked, and the model has no logit_scale"):
        zl.integrated_gradients(pair, inputs, target=zl.similarity(scale="logit"), site="input:image", baseline=zl.baseline.zeros())


def test_a_target_with_a_text_that_no_model_embedded_says_so():
    with pytest.raises(TargetError, match="no model has embedded it"):
        zl.similarity(text=torch.ones(1, 4, dtype=torch.int64)).resolve({"image_embeds": torch.ones(2, 4)}, {})


def test_captions_of_the_zoo_are_told_apart():
    """On the trained model: the true caption is nearer than one with another digit, and the contrast says so."""
    model = zoo.load("digits-clip")
    sample = next(s for s in zoo.samples("digits-clip") if s.caption == "a cyan seven")
    other = zoo.preprocess("digits-clip", text="a cyan two", pad=True)
    assert float(value(model, sample.inputs, zl.similarity(against=other))) > 0.1


def test_two_texts_that_read_alike_are_no_accusation():
    """A contrast near zero is rounded by units of the similarities, not of itself."""
    from zeroline import zoo

    model, picture = zoo.load("digits-clip"), zoo.samples("digits-clip")[12].image
    pair, again = (zoo.preprocess("digits-clip", picture, text) for text in ("a green one", "A green one"))
    words = {name: again[name] for name in ("input_ids", "attention_mask")}
    for scale in ("cosine", "logit"):
        asked = zl.similarity(against=words, scale=scale)
        found = zl.integrated_gradients(model, pair, target=asked, baseline=zl.baseline.black(), path="midpoint", n_steps=3)
        assert abs(float(found.difference)) < 1e-5
