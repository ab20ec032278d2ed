"""``zl.explain`` and ``zl.load``: pipelines of Hugging Face, names of the command line, and loaded models say the same as the library's own functions."""

import pytest
import torch
from PIL import Image
from torch import nn

import zeroline as zl
from zeroline import zoo
from zeroline.errors import BaselineError, InputError, NotFoundError, UsageError
from zeroline.model.loading import Loaded

ONCE = dict(path="midpoint", n_steps=1)  # where only f(x) and the names are compared
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "a", "mat"]


@pytest.fixture(scope="module")
def picture():
    """A nine and a one, side by side."""
    return zoo.samples("digits-vit")[12].image


def processor():
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 64, "width": 64}, resample=0)


@pytest.fixture(scope="module")
def classifier():
    from transformers import pipeline

    return pipeline("image-classification", model=zoo.load("digits-vit"), image_processor=processor())


@pytest.fixture(scope="module")
def clip():
    from transformers import pipeline

    parts = dict(tokenizer=zoo.tokenizer("digits-clip"), image_processor=processor())
    return pipeline("zero-shot-image-classification", model=zoo.load("digits-clip"), **parts)


@pytest.fixture(scope="module")
def detector():
    from transformers import DetrImageProcessorPil, pipeline

    prepare = DetrImageProcessorPil(size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=0)
    return pipeline("object-detection", model=zoo.load("digits-detr"), image_processor=prepare)


def words(**special):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named, **special)


def reading(**special):
    from transformers import BertConfig, BertForSequenceClassification, pipeline

    torch.manual_seed(0)
    size = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=2, vocab_size=len(VOCABULARY), initializer_range=0.5)
    config = BertConfig(**size, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    return pipeline("text-classification", model=BertForSequenceClassification(config).eval(), tokenizer=words(**special))


@pytest.fixture(scope="module")
def reader():
    return reading(mask_token="[MASK]")


def test_a_classification_pipeline_is_its_model_explained_on_its_own_preprocessing(classifier, picture, tmp_path):
    found = zl.explain(classifier, picture)
    model = zoo.load("digits-vit")
    truth = zl.integrated_gradients(model, zoo.preprocess("digits-vit", picture), target=zl.top(), baseline=zl.baseline.black())
    assert torch.equal(found.values, truth.values)
    assert (found.target, found.baseline, found.model_id) == (truth.target, "black", truth.model_id)
    picture.save(tmp_path / "two.png")
    for same in (str(tmp_path / "two.png"), tmp_path / "two.png", picture.convert("RGBA")):
        assert torch.equal(zl.explain(classifier, same).values, truth.values)


def test_what_is_explained_is_the_score_that_the_pipeline_gives(classifier, picture):
    for said in classifier(picture, top_k=3):
        found = zl.explain(classifier, picture, target=zl.target.probability(said["label"]), **ONCE)
        assert float(found.output) == pytest.approx(said["score"], abs=1e-6)


def test_names_and_loaded_models_say_the_same(picture):
    known = zl.load("zoo:digits-vit")
    alone = Loaded("mine", known.model, lambda image: known.prepare(image, None), known.labels)
    asked = dict(target="nine - one", site="vit.layers.1", baseline="blur(4)")
    one, two, three = (zl.explain(model, picture, **asked) for model in ("zoo:digits-vit", known, alone))
    assert torch.equal(one.values, two.values)
    assert torch.equal(one.values, three.values)
    assert (one.target, one.site, one.baseline) == (("logit of nine - one",), "vit.layers.1", "blur(4)")
    assert one.model_id == two.model_id, "the model that was loaded for the question is gone, and its hash is known"
    truth = zl.integrated_gradients(
        known.model, known.prepare(picture, None), target=zl.contrast("nine", "one"), site="vit.layers.1", baseline=zl.baseline.blur(4)
    )
    assert torch.equal(one.values, truth.values)


def test_objects_go_where_words_go(classifier, picture):
    one = zl.explain(classifier, picture, target="nine", baseline="zeros", site="vit.layers.1", tolerance=0.002)
    site = classifier.model.get_submodule("vit.layers.1")
    two = zl.explain(classifier, picture, target=zl.logit(9), baseline=zl.baseline.zeros(), site=site, tolerance=0.002)
    assert torch.equal(one.values, two.values)
    assert one.settings["tolerance"] == 0.002
    assert float(one.relative_error) < 0.002


def test_the_mean_of_a_folder_is_that_of_pictures_at_the_input_and_of_features_at_a_layer(classifier, picture, tmp_path):
    for sample in zoo.samples("digits-vit")[:2]:
        sample.image.save(tmp_path / f"{sample.name}.png")
    set_ = [zoo.preprocess("digits-vit", sample.image) for sample in zoo.samples("digits-vit")[:2]]
    for site, at in ((None, "input"), (zl.site.input("pixel_values"), "input"), ("vit.layers.1", "site"), (zl.site.module("vit.layers.1"), "site")):
        found = zl.explain(classifier, picture, target="nine", site=site, baseline=f"mean_of({tmp_path})", **ONCE)
        asked = dict(target="nine", site=site, baseline=zl.baseline.mean_of(set_, at=at), **ONCE)
        truth = zl.integrated_gradients(classifier.model, zoo.preprocess("digits-vit", picture), **asked)
        assert torch.allclose(found.values, truth.values, atol=1e-6)


def test_methods_and_routes_give_their_own_records(classifier, picture):
    inputs = zoo.preprocess("digits-vit", picture)
    for method in ("gradient_x_input", "grad_cam"):
        found = zl.explain(classifier, picture, method=method, site="vit.layers.2", target="nine")
        truth = zl.METHODS[method](classifier.model, inputs, target="nine", site="vit.layers.2", baseline=zl.baseline.black())
        assert torch.equal(found.values, truth.values)
    route = zl.explain(classifier, picture, method="attention_relevance", target="nine", correction="absolute")
    truth = zl.attention_relevance(classifier.model, inputs, target="nine", correction="absolute")
    assert isinstance(route, zl.Relevance)
    assert torch.equal(route.by_source["pixel_values"], truth.by_source["pixel_values"])


def test_a_zero_shot_pipeline_is_explained_with_its_own_similarities(clip, picture):
    texts = ["a green one", "a yellow nine"]
    logits = torch.stack([zl.explain(clip, picture, text=text, target="logit", **ONCE).output for text in texts])
    said = {one["label"]: one["score"] for one in clip(picture, candidate_labels=texts, hypothesis_template="{}")}
    assert logits.softmax(0).flatten().tolist() == pytest.approx([said[text] for text in texts], abs=1e-6)
    apart = zl.explain(clip, picture, text=texts, target="logit", **ONCE)
    assert float(apart.output) == pytest.approx(float(logits[0] - logits[1]), abs=1e-4)
    assert apart.target == ("similarity logit of the image with 'a green one', minus that with 'a yellow nine'",)
    found = zl.explain(clip, picture, text=texts[0], tolerance=0.05)
    assert torch.equal(found.values, zl.explain("zoo:digits-clip", picture, text=texts[0], tolerance=0.05).values)
    assert found.target == ("cosine of the image with 'a green one'",)
    assert isinstance(zl.explain(clip, picture, text=texts[0], method="attention_eclip"), zl.Relevance)


def test_a_detection_pipeline_is_explained_at_its_surest_box(detector, picture):
    found = zl.explain(detector, picture, **ONCE)
    surest = max(detector(picture), key=lambda one: one["score"])
    assert found.target == (f"logit of {surest['label']} at detection 0",)
    score = zl.explain(detector, picture, target=lambda output: output.logits.softmax(-1)[:, 0, :-1].amax(-1), **ONCE)
    assert float(score.output) == pytest.approx(surest["score"], abs=1e-6)
    assert torch.equal(found.values, zl.explain("zoo:digits-detr", picture, **ONCE).values)
    assert zl.explain(detector, picture, target="box 0 left", **ONCE).target != found.target


def test_a_text_pipeline_is_explained_at_its_embedding_from_masked_words(reader):
    found = zl.explain(reader, "the cat sat")
    inputs = dict(reader.tokenizer("the cat sat", return_tensors="pt"))
    truth = zl.integrated_gradients(reader.model, inputs, target=zl.top(), site="embedding", baseline=zl.baseline.mask_token(reader.tokenizer))
    assert torch.equal(found.values, truth.values)
    assert (found.site, found.baseline) == ("bert.embeddings.word_embeddings", "[MASK] for every word")
    assert float(found.values[0, [0, 4]].abs().max()) == 0, "[CLS] and [SEP] stay, so nothing is put down to them"
    for said in reader("the cat sat", top_k=2):
        score = zl.explain(reader, "the cat sat", target=zl.target.probability(said["label"]), **ONCE)
        assert float(score.output) == pytest.approx(said["score"], abs=1e-6)


@pytest.mark.parametrize(
    ("given", "name"), [("mask", "[MASK] for every word"), ("unknown", "[UNK] for every word"), ("pad", "[PAD] for every word"), ("zeros", "zeros")]
)
def test_baselines_of_texts_by_word(reader, given, name):
    makers = {"mask": zl.baseline.mask_token, "unknown": zl.baseline.unknown_token, "pad": zl.baseline.pad_token}
    object_ = makers[given](reader.tokenizer) if given in makers else zl.baseline.zeros()
    found, truth = (zl.explain(reader, "the cat sat on a mat", target="good", baseline=one, **ONCE) for one in (given, object_))
    assert found.baseline == name
    assert torch.equal(found.values, truth.values)


def test_without_a_mask_token_the_unknown_token_stands_for_a_word_and_the_record_says_so():
    assert zl.explain(reading(), "the cat sat", **ONCE).baseline == "[UNK] for every word"


def test_a_pair_of_texts_is_read_as_a_cross_encoder_reads_it(reader):
    found = zl.explain(reader, ("the cat", "a mat"), target=1, **ONCE)
    said = {one["label"]: one["score"] for one in reader({"text": "the cat", "text_pair": "a mat"}, top_k=2)}
    logits = torch.stack([zl.explain(reader, ("the cat", "a mat"), target=label, **ONCE).output for label in ("bad", "good")]).flatten()
    assert float(logits.softmax(0)[1]) == pytest.approx(said["good"], abs=1e-6)
    assert found.values.shape[1] == 7


def test_a_question_about_a_picture_goes_with_it_as_text(picture):
    question = "what color is the nine ?"
    found = zl.explain("zoo:digits-vqa", picture, text=question, method="attention_relevance")
    model, inputs = zoo.load("digits-vqa"), zoo.preprocess("digits-vqa", picture, question)
    truth = zl.attention_relevance(model, inputs, target="yellow")
    assert found.target == ("logit of yellow",)
    assert all(torch.equal(found.by_source[name], truth.by_source[name]) for name in truth.by_source)
    values = zl.explain("zoo:digits-vqa", picture, text=question, site="input:visual_feats", baseline="zeros", **ONCE)
    again = zl.integrated_gradients(model, inputs, target="yellow", site="input:visual_feats", baseline=zl.baseline.zeros(), **ONCE)
    assert torch.equal(values.values, again.values)


def test_inputs_take_the_models_dtype(classifier, picture):
    half = zl.load("zoo:digits-vit")
    half.model.bfloat16()
    found = zl.explain(half, picture, target="nine", **ONCE)
    assert found.values.dtype == torch.bfloat16
    assert float(found.output) == pytest.approx(float(zl.explain(classifier, picture, target="nine", **ONCE).output), rel=0.05)


def test_the_model_stays_as_it_was(reader):
    flags = [parameter.requires_grad for parameter in reader.model.parameters()]
    zl.explain(reader, "the cat sat", **ONCE)
    with pytest.raises(UsageError):
        zl.explain(reader, "the cat sat", target="nobody")
    assert [parameter.requires_grad for parameter in reader.model.parameters()] == flags
    assert not any(module._forward_hooks or "forward" in vars(module) for module in reader.model.modules())


ERRORS = {
    "a module": (lambda f: zl.explain(nn.Linear(2, 2), f["picture"]), UsageError, "Linear was given; "),
    "a name that is none": (lambda f: zl.explain("zoo:digits-vot", f["picture"]), NotFoundError, "digits-vit"),
    "a file that is none": (lambda f: zl.explain("zoo:digits-vit", "nine.pgn"), NotFoundError, "nine.pgn"),
    "a tensor as image": (lambda f: zl.explain(f["classifier"], torch.zeros(3, 4, 4)), InputError, "a PIL image or the path of one, not Tensor"),
    "a method that is none": (lambda f: zl.explain(f["classifier"], f["picture"], method="gradcam"), NotFoundError, "nearest: grad_cam"),
    "a method without a map": (
        lambda f: zl.explain(f["classifier"], f["picture"], method="attention_transfer"),
        NotFoundError,
        "use zl.attention_transfer",
    ),
    "an option that is none": (
        lambda f: zl.explain(f["classifier"], f["picture"], steps=3),
        NotFoundError,
        "no option of integrated_gradients 'steps'",
    ),
    "a baseline for a route": (
        lambda f: zl.explain(f["classifier"], f["picture"], method="rollout", baseline="black"),
        UsageError,
        "means nothing to rollout",
    ),
    "a text for a model of images": (lambda f: zl.explain(f["classifier"], f["picture"], text="a nine"), UsageError, "reads no text"),
    "no text for a model of both": (lambda f: zl.explain(f["clip"], f["picture"]), UsageError, "reads"),
    "a text beside the text": (lambda f: zl.explain(f["reader"], "the cat", text="a mat"), UsageError, "reads only text"),
    "three texts": (lambda f: zl.explain(f["clip"], f["picture"], text=["a", "b", "c"]), UsageError, "3 texts were given"),
    "two texts for a model that compares none": (
        lambda f: zl.explain("zoo:digits-vqa", f["picture"], text=["a", "b"]),
        UsageError,
        "2 texts were given",
    ),
    "an image for a reader": (lambda f: zl.explain(f["reader"], f["picture"]), InputError, "reads text"),
    "an image baseline for a reader": (lambda f: zl.explain(f["reader"], "the cat", baseline="blur(4)", **ONCE), BaselineError, "blur"),
    "a word baseline for an image": (lambda f: zl.explain(f["classifier"], f["picture"], baseline="mask"), BaselineError, "replaces words"),
    "a second text and a target": (
        lambda f: zl.explain(f["clip"], f["picture"], text=["a one", "a nine"], target=zl.similarity()),
        UsageError,
        "zl.similarity",
    ),
}


@pytest.mark.parametrize(("call", "error", "says"), ERRORS.values(), ids=ERRORS.keys())
def test_what_is_not_possible_is_said_in_one_error(call, error, says, classifier, clip, reader, picture):
    with pytest.raises(error, match=says):
        call({"classifier": classifier, "clip": clip, "reader": reader, "picture": picture})


# --- whose black ------------------------------------------------------------------------------------------------------------------


def processors():
    """Other ways to prepare a picture than the one beside the model's weights (0.5 and 0.5)."""
    from transformers import ViTImageProcessorPil

    given = {
        "raw": {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
        "not normalised": {"do_normalize": False},
        "ImageNet": {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        "not rescaled": {"do_rescale": False},
        "one number": {"image_mean": 0.5, "image_std": 0.25},
        "its own": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    }
    return {name: ViTImageProcessorPil(size={"height": 64, "width": 64}, **how) for name, how in given.items()}


@pytest.mark.parametrize("name", processors())
def test_black_is_what_the_pipelines_own_processor_makes_of_a_black_picture(picture, name):
    from transformers import pipeline

    prepare, model = processors()[name], zoo.load("digits-vit")
    found = zl.explain(pipeline("image-classification", model=model, image_processor=prepare), picture, target="nine", **ONCE)
    with torch.no_grad():
        x, black = (model(prepare(image, return_tensors="pt")["pixel_values"]).logits[0, 9] for image in (picture, Image.new("RGB", picture.size)))
    assert found.baseline == "black"
    assert float(found.output) == pytest.approx(float(x), abs=1e-5)
    assert float(found.baseline_output) == pytest.approx(float(black), abs=1e-5)
    alone = zl.gradient_x_input(model, zoo.preprocess("digits-vit", picture), target="nine", baseline=zl.baseline.black())
    with torch.no_grad():  # what the pipeline said is forgotten
        own = model(torch.full((1, 3, 64, 64), -1.0)).logits[0, 9]
    assert float(alone.baseline_output) == pytest.approx(float(own), abs=1e-5)


def test_what_is_told_of_one_model_is_not_told_of_another_and_is_forgotten_on_errors():
    from zeroline.baseline import Normalisation
    from zeroline.model import normalisation

    known, other, said = zoo.load("digits-vit"), nn.Linear(1, 1), Normalisation((0.1,), (0.2,))
    own = normalisation.of(known)

    def interrupted():
        with normalisation.told(known, said):
            assert normalisation.of(known) is said
            assert normalisation.of(other) is None
            with normalisation.told(known, None):
                assert normalisation.of(known) is said
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert normalisation.of(known) == own


def test_a_pipeline_around_a_model_that_lies_nowhere_knows_what_black_and_neutral_are(picture):
    from transformers import ViTConfig, ViTForImageClassification, pipeline

    torch.manual_seed(0)
    config = ViTConfig(image_size=64, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=5)
    model = ViTForImageClassification(config).eval()
    pipe = pipeline("image-classification", model=model, image_processor=processors()["ImageNet"])
    found = zl.explain(pipe, picture)
    black = processors()["ImageNet"](Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert float(found.baseline_output) == pytest.approx(
            float(model(black).logits[0].gather(0, model(processors()["ImageNet"](picture, return_tensors="pt")["pixel_values"]).logits[0].argmax())),
            abs=1e-5,
        )
    assert zl.explain(pipe, picture, baseline="neutral(blur(8))", **ONCE).baseline == "neutral from blur(8)"
    with pytest.raises(zl.errors.BaselineError, match="the model names none"):
        zl.gradient_x_input(model, black, target=0, baseline=zl.baseline.black())


def test_the_words_of_a_pair_are_measured_from_words(clip, picture):
    found = zl.explain(clip, picture, text="a yellow nine", site="embedding:input_ids", **ONCE)
    assert found.baseline == "[UNK] for every word"
    assert abs(float(found.difference)) > 0.01
    assert zl.explain(clip, picture, text="a yellow nine", site="embedding:input_ids", baseline="pad", **ONCE).baseline == "[PAD] for every word"
    with pytest.raises(zl.errors.BaselineError, match="replaces words, and the features here are an image's"):
        zl.explain(clip, picture, text="a yellow nine", baseline="pad")
