"""digits-vqa keeps what its card says: its answers, its questions and their truth, its tokens, its regions, its training."""

import json
import re
import sys
from collections import Counter
from importlib.resources import files
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from zeroline import zoo
from zeroline.errors import InputError, NotFoundError
from zeroline.zoo import digits_vqa, questions
from zeroline.zoo.digits_vqa import WORDS
from zeroline.zoo.photo_digits import COLOURS, DIGITS, PhotoDigits
from zeroline.zoo.questions import ANSWERS, KINDS, Named, asked
from zeroline.zoo.train import __main__ as training
from zeroline.zoo.train import vqa
from zeroline.zoo.word_tokenizer import word_tokenizer

FOLDER = files("zeroline.zoo") / "models" / "digits-vqa"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture(scope="module")
def model():
    return zoo.load("digits-vqa")


@pytest.fixture(scope="module")
def shipped():
    return zoo.samples("digits-vqa")


@pytest.fixture(scope="module")
def fresh():
    """80 scenes with two digits for each kind of question."""
    return {kind: zoo.scenes("digits-vqa", 80, seed=701, objects=2, kind=kind) for kind in KINDS}


def answered(model, chosen):
    """What the model answers to samples, in words."""
    with torch.no_grad():
        best = model(**zoo.collate(chosen)).question_answering_score.argmax(1)
    return [model.config.id2label[int(i)] for i in best]


def true_of(sample):
    """(answer, deciding objects) of a sample's question, read from its text and from what is in the scene."""
    text, things = sample.question.text, list(zip(sample.colours, (DIGITS[label] for label in sample.labels)))
    if m := re.fullmatch(r"what color is the (\w+) \?", text):
        found = [n for n, (_, digit) in enumerate(things) if digit == m[1]]
        return things[found[0]][0], tuple(found)
    if m := re.fullmatch(r"which digit is (\w+) \?", text):
        found = [n for n, (colour, _) in enumerate(things) if colour == m[1]]
        return things[found[0]][1], tuple(found)
    m = re.fullmatch(r"is there a (\w+) (\w+) \?", text)
    found = [n for n, thing in enumerate(things) if thing == (m[1], m[2])]
    return "yes" if found else "no", tuple(found)


# --- the model ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_at_least_95_percent_of_a_kind_of_question_are_answered_right_on_a_fresh_seed(model, fresh, kind):
    right = [answer == s.question.answer for answer, s in zip(answered(model, fresh[kind]), fresh[kind])]
    assert len(right) == 80
    assert sum(right) >= 76


def test_the_labelled_images_are_answered_right(model):
    chosen = zoo.test_set("digits-vqa")
    assert sum(answer == s.question.answer for answer, s in zip(answered(model, chosen), chosen)) >= 114  # of 120


def test_the_colours_of_two_digits_are_told_apart(model, fresh):
    two = [s for s in fresh["colour"] if len(s.labels) == 2][:20]
    right = 0
    for s in two:
        given = zoo.preprocess("digits-vqa", s.image, text=[f"what color is the {DIGITS[label]} ?" for label in s.labels])
        with torch.no_grad():
            best = model(**given).question_answering_score.argmax(1)
        right += [ANSWERS[int(i)] for i in best] == list(s.colours)
    assert right >= 18


def test_the_accuracy_of_training_is_that_of_the_models_own_inputs(model):
    """Counted again question by question, from photographs through ``zoo.preprocess``."""
    count, seed = 40, 4343
    data, random = PhotoDigits("test", seed), np.random.default_rng(seed)
    scenes = [data.scene(2) for _ in range(count)]
    both = [(scene, asked(scene.objects, random)) for scene in scenes]
    right = Counter()
    for scene, question in both:
        given = zoo.preprocess("digits-vqa", Image.fromarray(scene.pixels), text=question.text)
        with torch.no_grad():
            best = int(model(**given).question_answering_score.argmax())
        right[question.kind] += ANSWERS[best] == question.answer
    kinds = Counter(question.kind for _, question in both)
    found = vqa.accuracy(model, vqa.eyes(), "test", seed, count)
    assert found == pytest.approx({"all": sum(right.values()) / count, **{kind: right[kind] / kinds[kind] for kind in KINDS}})


def test_the_accuracy_of_wrong_answers_is_that_of_each_kind():
    """A model that always says "yes" is right on true presence questions alone."""

    class Yes(torch.nn.Module):
        def forward(self, input_ids, **_):
            return SimpleNamespace(question_answering_score=torch.eye(len(ANSWERS))[ANSWERS.index("yes")].expand(len(input_ids), -1))

    data, random = PhotoDigits("test", 5), np.random.default_rng(5)
    known = [asked(data.scene(1).objects, random) for _ in range(50)]
    found = vqa.accuracy(Yes(), vqa.eyes(), "test", 5, 50, 1)
    present = [q.answer == "yes" for q in known if q.kind == "present"]
    assert found == pytest.approx({"all": sum(present) / 50, "colour": 0, "digit": 0, "present": sum(present) / len(present)})
    assert 0 < found["present"] < 1


def test_the_card_states_the_figures_that_training_printed():
    scores = json.loads((FOLDER / "scores.json").read_text())
    card = " ".join((FOLDER / "README.md").read_text().split())
    share = {name: f"{value:.1%}".replace("%", " %") for name, value in scores.items()}
    two, one = ({kind: share[f"{how}, {kind}"] for kind in ("all", *KINDS)} for how in ("2 digits", "1 digit"))
    assert set(scores) == {f"{how}, {kind}" for how in ("1 digit", "2 digits") for kind in ("all", *KINDS)}
    assert f"two digits **{two['all']}** (colour {two['colour']}, digit {two['digit']}, present {two['present']})" in card
    assert f"one digit **{one['all']}** ({one['colour']}, {one['digit']}, {one['present']})" in card
    assert min(scores.values()) >= 0.95


def test_the_card_states_what_the_model_is(model):
    import transformers

    card = " ".join((FOLDER / "README.md").read_text().split())
    config = model.config
    assert type(model) is transformers.LxmertForQuestionAnswering
    assert not model.training
    assert f"{config.l_layers} language, {config.r_layers} vision and {config.x_layers} cross layers of width {config.hidden_size}" in card
    assert (len(model.lxmert.encoder.layer), len(model.lxmert.encoder.r_layers), len(model.lxmert.encoder.x_layers)) == (2, 2, 3)
    assert f"{config.num_attention_heads} heads" in card
    assert f"**Output**: {len(ANSWERS)} logits" in card
    assert f"{len(WORDS)} words" in card
    assert f"at most {digits_vqa.LENGTH}" in card
    assert [config.id2label[i] for i in range(len(ANSWERS))] == list(ANSWERS) == [*COLOURS, *DIGITS, "yes", "no"]
    assert all(config.label2id[answer] == i for i, answer in enumerate(ANSWERS))
    assert f"own pixels ({3 * 8 * 8} numbers), the convolution map of the frozen `digits-detr` there ({config.visual_feat_dim - 192} numbers)" in card


def test_the_configuration_names_its_tokens_and_lays_its_regions_on_a_grid(model):
    named = {name: WORDS[getattr(model.config, f"{name}_token_id")] for name in ("pad", "mask", "cls", "sep")}
    assert named == {"pad": "[PAD]", "mask": "[MASK]", "cls": "[CLS]", "sep": "[SEP]"}
    assert model.config.image_size // model.config.patch_size == 8
    assert model.config._name_or_path.endswith("digits-vqa")
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0


# --- questions ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["samples", "test_set", *KINDS])
def test_questions_are_true_of_their_scenes(shipped, fresh, which):
    chosen = shipped if which == "samples" else zoo.test_set("digits-vqa") if which == "test_set" else fresh[which]
    for s in chosen:
        answer, objects = true_of(s)
        assert (s.question.answer, s.question.objects) == (answer, objects), s.name
        assert (answer == "no") == (not objects)
        assert set(s.question.words) <= set(s.question.text.split())
        named = [word for word in s.question.words if word in COLOURS or word in DIGITS]
        assert len(named) == (2 if s.question.kind == "present" else 1)
        assert [word for word in s.question.text.split() if word in COLOURS or word in DIGITS] == named
        assert s.question.words[0] == {"colour": "color", "digit": "digit"}.get(s.question.kind, named[0])


def test_what_the_answer_depends_on_is_what_the_words_say(shipped):
    """Without one of ``words`` the question fits other answers: every word that tells kinds or objects apart is there."""
    by_kind = {s.question.kind: s.question for s in shipped}
    assert (by_kind["colour"].text.split()[1], by_kind["digit"].text.split()[1]) == ("color", "digit")
    assert (by_kind["colour"].words[0], by_kind["digit"].words[0]) == ("color", "digit")


def test_samples_take_the_kinds_in_turn(shipped):
    assert [s.question.kind for s in shipped] == list(KINDS) * 8
    test_set = zoo.test_set("digits-vqa")
    assert [s.question.kind for s in test_set] == list(KINDS) * 40
    assert {s.question.answer for s in test_set} == set(ANSWERS)
    assert [len(s.labels) for s in shipped] == [1] * 12 + [2] * 12


def test_scenes_ask_one_kind_or_all_and_the_same_from_a_seed(fresh):
    assert all(s.question.kind == kind for kind, chosen in fresh.items() for s in chosen)
    mixed = zoo.scenes("digits-vqa", 20, seed=11, objects=2)
    assert {s.question.kind for s in mixed} == set(KINDS)
    again = zoo.scenes("digits-vqa", 20, seed=11, objects=2)
    assert [s.question for s in again] == [s.question for s in mixed]
    other = zoo.scenes("digits-vqa", 20, seed=12, objects=2)
    assert [s.question.kind for s in other] != [s.question.kind for s in mixed]  # of another seed the questions too


def test_only_a_model_that_answers_has_questions():
    assert all(s.question is None for s in zoo.samples("digits-clip")[:3])
    assert zoo.MODELS["digits-vqa"].reads == ("text", "image")


TWO = [Named(7, "red"), Named(4, "blue")]


def test_half_of_the_presence_questions_are_true_and_a_false_one_is_nearly_true():
    random = np.random.default_rng(0)
    found = [asked(TWO, random, "present") for _ in range(2000)]
    there = {("red", "seven"), ("blue", "four")}
    true = [q for q in found if q.answer == "yes"]
    assert 0.46 < len(true) / 2000 < 0.54
    assert {q.words for q in true} == there
    assert {q.objects for q in true} == {(0,), (1,)}
    false = [q for q in found if q.answer == "no"]
    shares = Counter()
    for q in false:
        colour, digit = q.words
        assert q.words not in there
        assert q.objects == ()
        assert q.text == f"is there a {colour} {digit} ?"
        shared = (colour in ("red", "blue"), digit in ("seven", "four"))
        assert any(shared)
        shares[shared] += 1
    assert min(shares[True, False], shares[False, True]) > 0.35 * len(false)  # by colour as often as by digit
    assert shares[True, True] > 0  # "a red four" of a red seven and a blue four
    assert {colour for colour, _ in (q.words for q in false)} == set(COLOURS)
    assert {digit for _, digit in (q.words for q in false)} == set(DIGITS)


def test_colour_and_digit_questions_are_twice_as_often_as_presence():
    random = np.random.default_rng(1)
    kinds = Counter(asked(TWO, random).kind for _ in range(3000))
    assert {kind: round(count / 3000, 1) for kind, count in kinds.items()} == {"colour": 0.4, "digit": 0.4, "present": 0.2}


@pytest.mark.parametrize("kind", ["colour", "digit"])
def test_each_object_is_asked_about(kind):
    random = np.random.default_rng(2)
    found = Counter(asked(TWO, random, kind).objects for _ in range(400))
    assert min(found[0,], found[1,]) > 160
    one = asked(TWO[1:], random, kind)
    expected = ("what color is the four ?", "blue", ("color", "four")) if kind == "colour" else ("which digit is blue ?", "four", ("digit", "blue"))
    assert (one.text, one.answer, one.words) == expected


def test_every_word_of_every_question_is_one_that_the_model_knows():
    random = np.random.default_rng(3)
    things = [Named(int(random.integers(10)), str(random.choice(list(COLOURS)))) for _ in range(200)]
    used = {word for thing in things for kind in KINDS for word in asked([thing], random, kind).text.split()}
    assert used == set(WORDS) - set(SPECIAL)
    assert len(set(WORDS)) == len(WORDS)


def test_two_like_objects_both_decide():
    twins = [Named(7, "red"), Named(7, "red"), Named(4, "blue")]
    assert questions.present(twins, "red", 7).objects == (0, 1)


# --- the tokenizer -----------------------------------------------------------------------------------------------------------------


def test_a_words_id_is_its_place_and_every_question_comes_back():
    words = zoo.tokenizer("digits-vqa")
    assert words.get_vocab() == {word: i for i, word in enumerate(WORDS)}
    random = np.random.default_rng(4)
    texts = {asked([Named(int(random.integers(10)), str(random.choice(list(COLOURS))))], random).text for _ in range(100)}
    for text in texts:
        ids = words(text)["input_ids"]
        assert ids == [WORDS.index("[CLS]"), *(WORDS.index(word) for word in text.split()), WORDS.index("[SEP]")]
        assert words.convert_ids_to_tokens(ids)[1:-1] == text.split()
        assert words.decode(ids, skip_special_tokens=True) == text
    assert (words.pad_token, words.unk_token, words.cls_token, words.sep_token, words.mask_token) == SPECIAL
    assert words.model_max_length == digits_vqa.LENGTH


def test_words_are_lower_case_unknown_ones_are_marked_and_a_mask_is_read():
    def ids(text):
        return zoo.preprocess("digits-vqa", text=text)["input_ids"][0].tolist()

    assert ids("What COLOR is the Seven?") == ids("what color is the seven ?")
    strange = ids("what color is the elephant ?")
    assert [WORDS[i] for i in strange] == ["[CLS]", "what", "color", "is", "the", "[UNK]", "?", "[SEP]"]
    assert WORDS.index("[MASK]") in ids("what color is the [MASK] ?")


def test_a_tokenizer_of_other_words_has_its_own_marks_and_length():
    words = word_tokenizer(["<p>", "<u>", "<b>", "<e>", "up"], begin="<b>", end="<e>", pad="<p>", unknown="<u>", length=6, mask_token="<u>")
    assert words("Up down up")["input_ids"] == [2, 4, 1, 4, 3]
    assert (words.model_max_length, words.mask_token, words.pad_token_id) == (6, "<u>", 0)


# --- inputs ------------------------------------------------------------------------------------------------------------------------


def test_a_regions_features_are_its_pixels_and_the_detectors_convolutions_there(shipped):
    image = shipped[13].image
    given = zoo.preprocess("digits-vqa", image)
    seen = []
    detector = zoo.load("digits-detr")
    hook = detector.model.input_projection.register_forward_hook(lambda module, arguments, output: seen.append(output))
    with torch.no_grad():
        detector(**zoo.preprocess("digits-detr", image))
    hook.remove()
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255 * 2 - 1
    for region in range(64):
        row, column = divmod(region, 8)
        own = pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].transpose(2, 0, 1).flatten()
        features = given["visual_feats"][0, region]
        assert np.allclose(features[:192].numpy(), own, atol=1e-6)
        assert torch.allclose(features[192:], seen[0][0, :, row, column], atol=1e-5)
        assert given["visual_pos"][0, region].tolist() == [column / 8, row / 8, (column + 1) / 8, (row + 1) / 8]
    assert given.keys() == {"visual_feats", "visual_pos"}
    assert len(seen) == 1


def test_pixels_elsewhere_do_not_change_a_regions_own_and_far_ones_change_nothing_of_it(shipped):
    def regions(pixels):
        return zoo.preprocess("digits-vqa", Image.fromarray(pixels))["visual_feats"][0].view(8, 8, 256)

    before = np.asarray(shipped[0].image.convert("RGB"))
    one, changed = regions(before), {}
    for left in (32, 48):
        after = before.copy()
        after[:, left:] = 255 - after[:, left:]
        changed[left] = (regions(after) - one).abs()
        assert float(changed[left][:, : left // 8, :192].max()) == 0
        assert bool((changed[left][:, left // 8 :, :192] > 0).any(-1).all())
    assert float(changed[48][:, 0].max()) == 0  # 41 pixels are as far as the convolutions see
    seen = changed[32][..., 192:].mean((0, 2))
    assert seen[:5].tolist() == sorted(seen[:5].tolist())  # the less the farther
    assert float(seen[0]) < 0.05 * float(seen[4])


def test_regions_of_a_batch_are_those_of_its_images(shipped):
    detector = vqa.eyes()
    pixels = torch.cat([zoo.preprocess("digits-detr", s.image)["pixel_values"] for s in shipped[:3]])
    found = digits_vqa.regions(detector, pixels)
    assert found["visual_feats"].shape == (3, 64, digits_vqa.FEATURES)
    for n, s in enumerate(shipped[:3]):
        assert torch.allclose(found["visual_feats"][n], s.inputs["visual_feats"][0], atol=1e-5)
    assert not found["visual_feats"].requires_grad
    assert torch.equal(found["visual_pos"][0], found["visual_pos"][2])


def test_eyes_see_with_the_weights_of_the_zoos_detector():
    detector, known = vqa.eyes(), zoo.load("digits-detr")
    assert not detector.training
    assert all(torch.equal(a, b) for a, b in zip(detector.state_dict().values(), known.state_dict().values()))


def test_inputs_of_a_sample_are_its_image_and_its_question_and_join(shipped):
    for s in shipped[:4]:
        again = zoo.preprocess("digits-vqa", s.image, text=s.question.text, pad=True)
        assert again.keys() == s.inputs.keys() == {"input_ids", "attention_mask", "visual_feats", "visual_pos", *(set(again) & {"token_type_ids"})}
        assert all(torch.equal(again[name], s.inputs[name]) for name in again)
    batch = zoo.collate(shipped[:3])
    assert batch["input_ids"].shape == (3, digits_vqa.LENGTH)
    for n, s in enumerate(shipped[:3]):
        assert all(torch.equal(batch[name][n], s.inputs[name][0]) for name in batch)
        assert int(batch["attention_mask"][n].sum()) == len(s.question.text.split()) + 2


def test_several_questions_are_pairs_with_the_image(shipped, model):
    texts = ["what color is the seven ?", "which digit is cyan ?"]
    pairs = zoo.preprocess("digits-vqa", shipped[0].image, text=texts)
    assert pairs["attention_mask"].sum(1).tolist() == [8, 7]
    assert torch.equal(pairs["visual_feats"][0], pairs["visual_feats"][1])
    with torch.no_grad():
        both = model(**pairs).question_answering_score
        alone = [model(**zoo.preprocess("digits-vqa", shipped[0].image, text=text)).question_answering_score for text in texts]
    assert torch.allclose(both, torch.cat(alone), atol=1e-4)
    assert [ANSWERS[int(i)] for i in both.argmax(1)] == ["cyan", "seven"]


def test_padding_changes_no_answer(shipped, model):
    for s in shipped[:4]:
        with torch.no_grad():
            short = model(**zoo.preprocess("digits-vqa", s.image, text=s.question.text)).question_answering_score
            assert torch.allclose(short, model(**s.inputs).question_answering_score, atol=1e-4)


def test_a_text_alone_is_ids_and_an_image_of_another_size_is_resized(shipped):
    assert "visual_feats" not in zoo.preprocess("digits-vqa", text="is there a red two ?")
    large = shipped[0].image.resize((256, 128), Image.Resampling.NEAREST)
    assert zoo.preprocess("digits-vqa", large)["visual_feats"].shape == (1, 64, 256)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"text": " ".join(["seven"] * 9)}, "has 11 tokens, begin and end included; the model reads 10"),
        ({"text": ""}, "give words"),
        ({"text": ["is there a red two ?", " "]}, "give words"),
        ({"text": [3]}, "a text is a string, not int"),
        ({}, "neither an image nor a text was given; 'digits-vqa' reads text and image"),
        ({"image": np.zeros((64, 64, 3))}, "takes a PIL image, not ndarray"),
    ],
)
def test_what_cannot_be_read_gets_one_clear_error(given, words):
    with pytest.raises(InputError, match=re.escape(words)):
        zoo.preprocess("digits-vqa", **given)


def test_the_longest_question_fits():
    assert zoo.preprocess("digits-vqa", text=" ".join(["seven"] * 8))["input_ids"].shape == (1, 10)


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(NotFoundError, match="nearest: digits-vqa"):
        zoo.scenes("digits-vqq", 1, seed=0)


# --- training ----------------------------------------------------------------------------------------------------------------------


def test_one_question_in_six_has_one_word_masked_and_never_a_marker():
    random = np.random.default_rng(5)
    asked_of = [asked(TWO, random) for _ in range(1200)]
    ids = vqa.words(asked_of)["input_ids"]
    before, features = ids.clone(), torch.ones(1200, 64, 3)
    after, _ = vqa.blinded(ids, features, torch.Generator().manual_seed(0))
    assert torch.equal(ids, before)
    changed = after != ids
    assert set(changed.sum(1).tolist()) == {0, 1}
    assert 0.13 < float(changed.any(1).float().mean()) < 0.2
    assert set(after[changed].tolist()) == {WORDS.index("[MASK]")}
    hidden = {WORDS[i] for i in ids[changed].tolist()}
    assert hidden.isdisjoint(SPECIAL)
    assert hidden >= {"what", "color", "which", "digit", "is", "?"}  # any word


def test_one_image_in_six_has_a_rectangle_of_cells_at_zero():
    features = torch.rand(1200, 64, 5) + 1
    kept = features.clone()
    ids = torch.tensor([[2, 21, 3]]).repeat(1200, 1)
    _, after = vqa.blinded(ids, features, torch.Generator().manual_seed(1))
    assert torch.equal(features, kept)
    assert after.shape == features.shape
    zero = (after == 0).all(2).view(-1, 8, 8)
    assert torch.equal(after[~zero.flatten(1)], features[~zero.flatten(1)])
    hit = zero.flatten(1).any(1)
    assert 0.13 < float(hit.float().mean()) < 0.2
    sizes, borders = Counter(), set()
    for place in zero[hit]:
        rows, columns = place.any(1).nonzero()[:, 0], place.any(0).nonzero()[:, 0]
        height, width = (int(one[-1] - one[0]) + 1 for one in (rows, columns))
        assert int(place.sum()) == height * width  # whole, and one
        sizes[height] += 1
        sizes[width] += 1
        reach = {"top": rows[0], "left": columns[0], "bottom": 7 - rows[-1], "right": 7 - columns[-1]}
        borders |= {side for side, cells in reach.items() if int(cells) == 0}
    assert set(sizes) == {2, 3, 4, 5}
    assert borders == {"top", "left", "bottom", "right"}


def test_words_and_images_are_hidden_apart():
    ids, features = torch.tensor([[2, 21, 22, 3]]).repeat(1200, 1), torch.ones(1200, 64, 2)
    words, cells = vqa.blinded(ids, features, torch.Generator().manual_seed(2))
    both = (words != ids).any(1) & (cells == 0).flatten(1).any(1)
    assert 0 < float(both.float().mean()) < 0.07


def test_questions_become_ids_and_numbers():
    random = np.random.default_rng(6)
    chosen = [asked(TWO, random, kind) for kind in KINDS]
    given = vqa.words(chosen)
    texts = zoo.tokenizer("digits-vqa").batch_decode(given["input_ids"], skip_special_tokens=True)
    assert texts == [q.text for q in chosen]
    assert given["attention_mask"].sum(1).tolist() == [len(q.text.split()) + 2 for q in chosen]
    assert [ANSWERS[i] for i in vqa.answers(chosen).tolist()] == [q.answer for q in chosen]


def on_disk():
    return {path.name: path.read_bytes() for path in FOLDER.iterdir()}


@pytest.fixture
def short(monkeypatch):
    """Training of two steps on a few images."""
    for name, value in {"STEPS": 2, "IMAGES": 4, "POOL": 6}.items():
        monkeypatch.setattr(vqa, name, value)


def test_two_steps_of_training_move_the_model_and_nothing_on_disk(short):
    before = on_disk()
    torch.manual_seed(0)
    start = digits_vqa.build().state_dict()
    one, two = vqa.trained(), vqa.trained()
    moved = [name for name, value in one.state_dict().items() if not torch.equal(value, start[name])]
    assert len(moved) > 0.9 * len(start)
    assert all(float((value - start[name]).abs().max()) < 0.01 for name, value in one.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))  # from seeds
    assert on_disk() == before


def test_each_step_asks_two_questions_of_every_image_and_hides_some(short, monkeypatch):
    seen = []
    kept = vqa.blinded

    def blinded(ids, features, random):
        seen.append((ids, features))
        return torch.full_like(kept(ids, features, random)[0], WORDS.index("[MASK]")), features

    monkeypatch.setattr(vqa, "blinded", blinded)
    learned = vqa.trained().lxmert.embeddings.word_embeddings.weight
    assert len(seen) == 2
    for ids, features in seen:
        assert len(ids) == len(features) == 8
        assert torch.equal(features[::2], features[1::2])
        assert not torch.equal(features[0], features[2])
    torch.manual_seed(0)
    start = digits_vqa.build().lxmert.embeddings.word_embeddings.weight
    moved = (learned - start * (1 - 0.01 * 1e-3 / 60) ** 2).abs().amax(1) > 1e-5  # more than weights decay
    assert moved.nonzero()[:, 0].tolist() == [WORDS.index("[MASK]")]


def test_the_command_writes_weights_and_scores_where_it_is_told(short, monkeypatch, tmp_path, capsys):
    asked_for = []

    def accuracy(model, detector, split, seed, count, objects=2):
        asked_for.append((split, seed, count, objects))
        return {"all": 0.5, **dict.fromkeys(KINDS, 0.25)}

    monkeypatch.setattr(vqa, "accuracy", accuracy)
    monkeypatch.setattr(sys, "argv", ["train", "vqa", "--out", str(tmp_path / "new")])
    before = on_disk()
    training.main()
    assert on_disk() == before
    written = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1]) == written
    assert written == {f"{how}, {name}": 0.5 if name == "all" else 0.25 for how in ("1 digit", "2 digits") for name in ("all", *KINDS)}
    assert [(split, count, objects) for split, _, count, objects in asked_for] == [("test", 1500, 1), ("test", 1500, 2)]
    assert len({seed for _, seed, _, _ in asked_for} | {vqa.TRAIN_SEED, vqa.TEST_SEED}) == 4
    from safetensors.torch import load_file

    digits_vqa.build().load_state_dict(load_file(tmp_path / "new" / "model.safetensors"))
