"""Answers of the page: bit for bit those of zeroline's functions, refusals in a sentence, and a model that is as it was afterwards."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import zeroline as zl
from web.pictures import noise
from zeroline import Attribution, Grounding, Relevance, Rewriting, zoo
from zeroline.errors import InputError, NotConvergedWarning, NotFoundError, RunError, UsageError, ZerolineError
from zeroline.methods import ROUTES
from zeroline.spelling.reading import read_target
from zeroline.web import answers as module
from zeroline.web.answers import ASKABLE, ATTENTION, BASELINES, BUDGETS, MOST_EVALUATIONS, Answers, Asked
from zeroline.web.limits import Limits
from zeroline.web.offered import Offered

QUESTION = "what color is the seven ?"
VIT = "zoo:digits-vit"


@pytest.fixture(scope="module")
def offered(hostile):
    return Offered([hostile])


@pytest.fixture(scope="module")
def answers(offered):
    return Answers(offered, Limits())


@pytest.fixture(scope="module")
def picture(samples):
    return samples[0].image.convert("RGB")


@pytest.fixture(scope="module")
def cnn():
    return zoo.load("digits-cnn")


def labels_of(model):
    return {label: int(index) for index, label in model.config.id2label.items()}


def same(a, b):
    """Two records: the same values, bit for bit. Figures of f at the baseline may differ in their last bit: a model's first question runs more passes."""
    assert type(a) is type(b)
    if isinstance(a, Attribution):
        assert a.values.numpy().tobytes() == b.values.numpy().tobytes()
        for name in ("output", "baseline_output", "difference", "total", "error"):
            assert torch.allclose(getattr(a, name), getattr(b, name), rtol=0, atol=2e-6), name
    else:
        assert isinstance(a, Relevance)
        assert a.by_source.keys() == b.by_source.keys()
        assert all(a.by_source[name].numpy().tobytes() == b.by_source[name].numpy().tobytes() for name in a.by_source)
    assert (a.target, a.method, a.model_id.rpartition("@")[2]) == (b.target, b.method, b.model_id.rpartition("@")[2])
    return True


def differ(a, b):
    return a.values.shape != b.values.shape or not torch.equal(a.values, b.values)


def only(answer):
    ((record, seen),) = answer.records
    return record, seen


# --- figures ---------------------------------------------------------------------------------------------------------------------

DIRECT = [
    ("integrated_gradients", "top", "vit.layers.3", "black", zl.baseline.black()),
    ("integrated_gradients", "7", "vit.layers.2", "blur(8)", zl.baseline.blur(8)),
    ("integrated_gradients", "seven - one", "vit.layers.3", "zeros", zl.baseline.zeros()),
    ("gradient_x_input", "one", "", "mean", zl.baseline.mean()),
    ("gradient_x_input", "top", "input:pixel_values", "noise(0)", zl.baseline.noise(0)),
    ("taylor", "2 seven - one + 0.5 two", "", "constant(0.5)", zl.baseline.constant(0.5)),
    ("difference_map", "top", "vit.layers.1", "blur(4)", zl.baseline.blur(4)),
    ("grad_cam", "top", "vit.layers.2", "black", zl.baseline.black()),
    ("layer_cam", "top", "", "blur(16)", zl.baseline.blur(16)),
    ("odam", "9", "vit.layers.0", "neutral(black)", zl.baseline.neutral(zl.baseline.black())),
]


@pytest.mark.parametrize(("method", "target", "site", "baseline", "meant"), DIRECT)
def test_an_answer_is_that_of_the_method_with_the_same_settings(answers, picture, digits_vit, method, target, site, baseline, meant):
    found, seen = only(answers.explained(Asked(picture, VIT, method=method, target=target, site=site, baseline=baseline)))
    inputs = zoo.preprocess("digits-vit", picture)
    options = {"max_evaluations": MOST_EVALUATIONS} if method == "integrated_gradients" else {}
    asked = read_target(target, labels_of(digits_vit))
    direct = zl.METHODS[method](digits_vit, inputs, target=asked, site=None if site.startswith("input") else site or None, baseline=meant, **options)
    assert same(found, direct)
    assert (found.site, found.baseline, found.evaluations) == (direct.site, direct.baseline, direct.evaluations)
    assert seen.image is not None


def test_an_answer_that_converges_keeps_its_promise_and_its_sentence_holds_the_figures(answers, picture):
    answer = answers.explained(Asked(picture, VIT, site="vit.layers.3", baseline="blur(8)"))
    record, _ = only(answer)
    assert float(record.relative_error[0]) <= 0.01
    assert answer.said == (
        f"The logit of seven from the {record.baseline} baseline: f(x) - f(baseline) = {float(record.difference[0]):.4g}, "
        f"attribution error {float(record.error[0]):+.2g} ({float(record.relative_error[0]):.2%} of the difference)."
    )
    html = answer.html()
    assert f"{record.baseline}" in html
    assert "logit of seven" in html


@pytest.mark.parametrize("method", ATTENTION)
def test_a_route_through_attentions_is_that_of_its_function(answers, picture, digits_vit, method):
    found, _ = only(answers.explained(Asked(picture, VIT, method=method, target="nine")))
    direct = ROUTES[method](digits_vit, zoo.preprocess("digits-vit", picture), target=zl.target.logit("nine"))
    assert all(torch.equal(a, b) for a, b in zip(found.by_source.values(), direct.by_source.values(), strict=True))
    assert "relevance, which has no unit and no attribution error" in answers.explained(Asked(picture, VIT, method=method)).said


def test_a_text_is_read_with_the_picture(answers, picture):
    model = zl.load("zoo:digits-clip")
    found, _ = only(answers.explained(Asked(picture, "zoo:digits-clip", text="a cyan seven", site="vision_model.encoder.layers.2")))
    direct = zl.explain(model, picture, text="a cyan seven", site="vision_model.encoder.layers.2", max_evaluations=MOST_EVALUATIONS)
    assert same(found, direct)
    other, _ = only(answers.explained(Asked(picture, "zoo:digits-clip", text="a red six", site="vision_model.encoder.layers.2")))
    assert differ(found, other)


def test_a_detector_and_a_convolutional_model_are_answered(answers, picture, cnn):
    detr, _ = only(answers.explained(Asked(picture, "zoo:digits-detr", method="gradient_x_input")))
    assert same(detr, zl.explain("zoo:digits-detr", picture, method="gradient_x_input"))
    assert "at detection" in detr.target[0]
    found, _ = only(answers.explained(Asked(picture, "zoo:digits-cnn", method="grad_cam", site="resnet.encoder.stages.1")))
    direct = zl.grad_cam(cnn, zoo.preprocess("digits-cnn", picture), target="top", site="resnet.encoder.stages.1", baseline=zl.baseline.black())
    assert torch.equal(found.values, direct.values)


def test_two_questions_are_each_answered_as_alone(answers, picture):
    first = Asked(picture, VIT, method="gradient_x_input", baseline="black")
    second = Asked(picture, VIT, method="gradient_x_input", baseline="blur(8)")
    a, b = answers.compared(first, second)
    assert same(only(a)[0], only(answers.explained(first))[0])
    assert same(only(b)[0], only(answers.explained(second))[0])
    assert "black baseline" in a.said
    assert "blur(8) baseline" in b.said
    assert differ(only(a)[0], only(b)[0])


def test_words_are_set_against_the_picture_as_the_function_does(answers, picture):
    answer = answers.grounded(Asked(picture, "zoo:digits-vqa", text=f"  {QUESTION} "))
    found, seen = only(answer)
    model, inputs = zoo.load("digits-vqa"), zoo.preprocess("digits-vqa", picture, text=QUESTION)
    direct = zl.ground(model, inputs, target="top")
    assert isinstance(found, Grounding)
    assert torch.equal(found.matrix, direct.matrix)
    assert torch.equal(found.back, direct.back)
    assert seen.image is not None
    html = answer.html()
    for word in QUESTION.split():
        assert word in html


@pytest.mark.parametrize(("to", "meant"), [("second", "second"), ("two", "two"), ("2", 2), ("", "second"), ("any", "any")])
def test_a_rewriting_is_that_of_the_function(answers, picture, digits_vit, to, meant):
    answer = answers.rewritten(Asked(picture, VIT), to, "2/255")
    found, _ = only(answer)
    direct = zl.rewrite(
        digits_vit, picture, to=meant, linf=2 / 255, preprocess=lambda image: zoo.preprocess("digits-vit", image), labels=labels_of(digits_vit)
    )
    assert isinstance(found, Rewriting)
    assert found.answer == direct.answer
    assert torch.equal(found.rewritten, direct.rewritten)
    assert found.answer in answer.said
    assert ("no success within the budget" in answer.said) == (not found.success)


def test_the_same_question_has_the_same_answer(answers, picture):
    asked = Asked(picture, VIT, site="vit.layers.3")
    assert same(only(answers.explained(asked))[0], only(answers.explained(asked))[0])


@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline_of_the_list_can_be_asked(answers, picture, baseline):
    found, _ = only(answers.explained(Asked(picture, "folder:hostile", method="gradient_x_input", baseline=baseline)))
    assert found.baseline.split("(")[0].split()[0] == baseline.split("(")[0]


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_budget_of_the_list_can_be_asked(answers, picture, budget):
    found, _ = only(answers.rewritten(Asked(noise(32, 32), "folder:hostile"), "second", budget))
    top, bottom = (int(part) for part in budget.split("/"))
    assert int((found.rewritten.int() - found.original.int()).abs().max()) <= top
    assert bottom == 255


# --- refusals --------------------------------------------------------------------------------------------------------------------

PATHS = (
    "mean_of(/etc)",
    "mean_of(.)",
    "distribution(/etc, 2)",
    "distribution(noise, 8)",
    "blur(3)",
    "noise(1)",
    "",
    "black ",
    "BLACK",
    "neutral(noise(0))",
    "hf:/etc",
)
NOT_SITES = ("vit.layers.9", "vit.layers.*", "vit", "input", "input:", "classifier", "/etc", "../x", "vit.embeddings", "__class__", " ")


@pytest.mark.parametrize("baseline", PATHS)
def test_a_baseline_that_is_not_of_the_list_is_refused(answers, picture, baseline, monkeypatch):
    monkeypatch.setattr(module, "by_name", lambda _: pytest.fail("read"))
    with pytest.raises(NotFoundError, match="no baseline"):
        answers.explained(Asked(picture, VIT, baseline=baseline))


@pytest.mark.parametrize("site", NOT_SITES)
def test_a_site_that_is_not_of_the_list_is_refused(answers, picture, site):
    with pytest.raises(NotFoundError, match="no site"):
        answers.explained(Asked(picture, VIT, site=site))


@pytest.mark.parametrize("method", ["", "attention_transfer", "integrated_attention", "ground", "logic", "__import__", "Taylor"])
def test_a_method_that_is_not_of_the_list_is_refused(answers, picture, method):
    with pytest.raises(NotFoundError, match="no method"):
        answers.explained(Asked(picture, VIT, method=method))
    assert method not in ASKABLE


@pytest.mark.parametrize("budget", ["", "1", "3/255", "255/255", "1e9", "4/0", "nan"])
def test_a_budget_that_is_not_of_the_list_is_refused(answers, picture, budget):
    with pytest.raises(NotFoundError, match="no budget"):
        answers.rewritten(Asked(picture, VIT), "second", budget)


@pytest.mark.parametrize(
    "target", ["sevn", "12", "-11", "seven - seven", "detection 1", "1e400", "9" * 40, "<img src=x onerror=alert(1)>", "\x00", "a\nb"]
)
def test_a_target_that_is_none_is_refused_in_one_sentence(answers, picture, target):
    for ask in (answers.explained, lambda asked: answers.rewritten(asked, target, "1/255")):
        with pytest.raises(UsageError) as caught:
            ask(Asked(picture, VIT, target=target))
        assert len(str(caught.value)) < 400


def test_texts_and_targets_and_classes_have_their_limit(offered, picture):
    short = Answers(offered, Limits(letters=5))
    for ask in (
        lambda: short.explained(Asked(picture, VIT, target="seven - one")),
        lambda: short.explained(Asked(picture, "zoo:digits-clip", text="a seven")),
        lambda: short.grounded(Asked(picture, "zoo:digits-vqa", text=QUESTION)),
        lambda: short.grounded(Asked(picture, "zoo:digits-vqa", text="x ?", target="yellow")),
        lambda: short.rewritten(Asked(picture, VIT), "second", "1/255"),
    ):
        with pytest.raises(InputError, match="letters; 5 are possible here"):
            ask()
    assert only(short.explained(Asked(picture, VIT, target="seven", method="gradient_x_input")))[0].target == ("logit of seven",)


def test_a_question_that_does_not_fit_its_model_says_why(answers, picture):
    for ask, message in (
        (lambda: answers.grounded(Asked(picture, "zoo:digits-vqa")), "there is no text"),
        (lambda: answers.grounded(Asked(picture, "zoo:digits-vqa", text=" \n ")), "there is no text"),
        (lambda: answers.grounded(Asked(picture, VIT, text=QUESTION)), "grounding needs a model that reads an image and a text"),
        (lambda: answers.rewritten(Asked(picture, "zoo:digits-vqa"), "second", "1/255"), "no image classifier"),
        (lambda: answers.rewritten(Asked(picture, "zoo:digits-detr"), "second", "1/255"), "no image classifier"),
        (lambda: answers.explained(Asked(picture, VIT, text="words")), "reads no text"),
        (lambda: answers.explained(Asked(picture, "zoo:digits-clip")), "reads text and image"),
        (lambda: answers.explained(Asked(picture, "zoo:digits-cnn", method="rollout")), "no attention"),
    ):
        with pytest.raises(ZerolineError, match=message):
            ask()


def test_a_question_that_failed_leaves_the_next_one_as_it_was(answers, picture):
    asked = Asked(picture, VIT, site="vit.layers.3")
    before = only(answers.explained(asked))[0]
    for wrong in (Asked(picture, VIT, target="none"), Asked(picture, VIT, site="none"), Asked(picture, VIT, text="x"), Asked(picture, "none")):
        with pytest.raises(UsageError):
            answers.explained(wrong)
    assert same(before, only(answers.explained(asked))[0])


# --- time, and one question at a time --------------------------------------------------------------------------------------------


def state(model):
    """Everything that a question could leave behind in a model."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [
            (name, sum(len(getattr(part, kind)) for kind in hooks), part.training, type(part), "forward" in vars(part))
            for name, part in model.named_modules()
        ],
        [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()],
    )


def unchanged(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])


@pytest.mark.parametrize("site", ["", "vit.layers.1"])
def test_an_answer_that_takes_too_long_is_stopped_and_leaves_the_model_as_it_was(offered, answers, picture, site):
    asked = Asked(picture, VIT, site=site if site else "vit.layers.3")
    first = only(answers.explained(asked))[0]
    with offered.asked(VIT) as sourced:
        before = state(sourced.model)
    with pytest.raises(RunError, match=r"stopped after 1e-09 seconds, at step \d+; ask at a later site, from another baseline, or a smaller model"):
        Answers(offered, Limits(seconds=1e-9)).explained(Asked(picture, VIT, site=site))
    with offered.asked(VIT) as sourced:
        unchanged(before, state(sourced.model))
    assert same(first, only(answers.explained(asked))[0])


def test_time_begins_with_each_question(offered, picture):
    slow = Answers(offered, Limits(seconds=20))
    for _ in range(2):
        slow.explained(Asked(picture, "folder:hostile"))
    a, b = slow._clock(), slow._clock()
    assert a is not b


def test_an_answer_has_its_end_in_gradient_evaluations(answers, picture, monkeypatch):
    monkeypatch.setattr(module, "MOST_EVALUATIONS", 8)
    with pytest.warns(NotConvergedWarning):
        found, _ = only(answers.explained(Asked(noise(64, 64), VIT)))
    assert found.evaluations <= 8


def test_the_search_for_a_baseline_is_stopped_too(offered, picture):
    with pytest.raises(RunError, match="stopped after"):
        Answers(offered, Limits(seconds=1e-9)).explained(Asked(picture, VIT, method="gradient_x_input", baseline="neutral(blur(8))"))


QUESTIONS = [
    dict(method="gradient_x_input"),
    dict(method="gradient_x_input", target="one", baseline="blur(8)"),
    dict(method="grad_cam", site="vit.layers.1"),
    dict(method="attention_relevance"),
    dict(method="taylor", target="two - seven"),
    dict(method="integrated_gradients", site="vit.layers.3"),
    dict(method="rollout", target="nine"),
    dict(method="odam", site="vit.layers.2", baseline="zeros"),
]


def test_eight_at_once_are_answered_one_at_a_time_each_as_alone(offered, answers, picture, monkeypatch):
    alone = [only(answers.explained(Asked(picture, VIT, **words)))[0] for words in QUESTIONS]
    inside, most, guard, really = [0], [0], threading.Lock(), module.explain

    def watched(*given, **options):
        with guard:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.02)  # long enough that another would come in
        try:
            return really(*given, **options)
        finally:
            with guard:
                inside[0] -= 1

    monkeypatch.setattr(module, "explain", watched)
    with offered.asked(VIT) as sourced:
        before = state(sourced.model)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda words: only(answers.explained(Asked(picture, VIT, **words)))[0], QUESTIONS))
    assert most[0] == 1
    assert all(same(a, b) for a, b in zip(alone, together))
    with offered.asked(VIT) as sourced:
        unchanged(before, state(sourced.model))


def test_labels_of_a_model_are_text_in_its_page(answers):
    answer = answers.explained(Asked(noise(32, 32), "folder:hostile", method="gradient_x_input"))
    html = answer.html()
    for wild in ("<img src=x", "<script>alert"):
        assert wild not in html
    with pytest.raises(NotFoundError, match="no class '<b>'; possible: <img src=x onerror="):
        answers.explained(Asked(noise(32, 32), "folder:hostile", target="<b>"))
