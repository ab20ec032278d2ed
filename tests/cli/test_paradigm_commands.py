"""``zeroline mechanism``, ``ground`` and ``logic`` as a user meets them: what they print and write, and what errors look like."""

import json
from functools import cache
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

import zeroline as zl
from cli.test_cli import run
from zeroline import Grounding, Logic, Mechanism, zoo
from zeroline.cli import paradigm, show

SAMPLES = files("zeroline.zoo") / "samples"
SEVEN, TWO = str(SAMPLES / "00.png"), str(SAMPLES / "12.png")  # a cyan seven; two digits
QUESTION = "what color is the seven ?"
ASKED = (SEVEN, "--text", QUESTION)
FILES = {
    "mechanism": ["figure.png", "figure.svg", "mechanism.safetensors", "record.json"],
    "ground": ["figure.png", "grounding.safetensors", "record.json"],
    "logic": ["figure.png", "logic.safetensors", "record.json"],
}
KINDS = {"mechanism": Mechanism, "ground": Grounding, "logic": Logic}


def strict(text):
    """JSON as the standard has it: without NaN and infinities."""

    def no(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=no)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def loaded(command, folder):
    """What was written: the record read back, and its JSON."""
    kind = KINDS[command]
    name = "grounding" if command == "ground" else command
    found = kind.load(folder / f"{name}.safetensors")
    assert strict((folder / "record.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    return found


def flat(out):
    return " ".join(out.split())


@pytest.fixture(scope="module")
def model():
    return zoo.load("digits-vqa")


@pytest.fixture(scope="module")
def inputs():
    return zoo.preprocess("digits-vqa", Image.open(SEVEN), text=QUESTION)


@pytest.fixture
def really_drawn():
    """For tests that look at the pictures."""


zoo_load = cache(zoo.load)


@pytest.fixture(autouse=True)
def _quickly(request, monkeypatch):
    """Models of the zoo are loaded once. Figures are made and, but where a test looks at them, not drawn: it takes longer than all else."""
    monkeypatch.setattr(zoo, "load", zoo_load)
    if "really_drawn" not in request.fixturenames:
        monkeypatch.setattr(show.figure, "save", lambda picture, path: path.write_text(type(picture).__name__))


# --- models in folders, as Hugging Face saves them -------------------------------------------------------------------------------

WORDS = ["<pad>", "</s>", "<unk>", "<cls>", "<mask>", "a", "few", "red", "seven", "is", "there", "?", "ein", "paar", "rote", "sieben"]
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<cls>", "mask_token": "<mask>", "sep_token": "</s>"}
SMALL = dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48)
TOKENS = dict(vocab_size=len(WORDS), pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)


def tokenizer(pairs=False):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    one, two = ("<cls> $A </s>", "<cls> $A </s> $B:1 </s>:1") if pairs else ("$A </s>", None)
    inner.post_processor = processors.TemplateProcessing(single=one, pair=two, special_tokens=[("<cls>", 3), ("</s>", 1)])
    given = ["input_ids", "attention_mask", *(["token_type_ids"] if pairs else [])]
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=32, model_input_names=given, **SPECIAL)


def saved(kind, config, folder, seed, *parts):
    """A model with weights that make attention uneven, in a folder, with its tokenizer and processor."""
    torch.manual_seed(seed)
    made = kind(config)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape) * 0.3
    for part in (made, *parts):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    from transformers import MarianConfig, MarianMTModel

    config = MarianConfig(d_model=32, max_position_embeddings=64, forced_eos_token_id=None, **SMALL, **TOKENS)
    return saved(MarianMTModel, config, tmp_path_factory.mktemp("marian"), 2, tokenizer())


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    config = WhisperConfig(
        d_model=32, num_mel_bins=8, max_source_positions=50, max_target_positions=64, bos_token_id=0, suppress_tokens=None,
        begin_suppress_tokens=None, **SMALL, **TOKENS,
    )  # fmt: skip
    ear = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    return saved(WhisperForConditionalGeneration, config, tmp_path_factory.mktemp("whisper"), 1, tokenizer(), ear)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A cross-encoder: two texts in one stream, one number out."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=2, vocab_size=len(WORDS), num_labels=1)
    return saved(BertForSequenceClassification, config, tmp_path_factory.mktemp("judge"), 3, tokenizer(pairs=True))


def seer(folder, processor):
    """ViLT, a model of words and a picture of 32 x 32."""
    from transformers import ViltConfig, ViltForQuestionAnswering

    config = ViltConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=2, vocab_size=len(WORDS), image_size=32, patch_size=8,
        num_labels=3, max_position_embeddings=16,
    )  # fmt: skip
    return saved(ViltForQuestionAnswering, config, folder, 4, tokenizer(), processor)


@pytest.fixture(scope="module")
def whole_view(tmp_path_factory):
    """ViLT that sees all of an image, resized."""
    from transformers import ViTImageProcessorPil

    return seer(tmp_path_factory.mktemp("whole"), ViTImageProcessorPil(size={"height": 32, "width": 32}))


@pytest.fixture(scope="module")
def middle_view(tmp_path_factory):
    """ViLT that sees the middle of an image: 32 x 32 of 64 x 64 pixels."""
    from transformers import CLIPImageProcessorPil

    sizes = {"size": {"shortest_edge": 64}, "crop_size": {"height": 32, "width": 32}}
    return seer(tmp_path_factory.mktemp("middle"), CLIPImageProcessorPil(**sizes))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Half a second at 8000 Hz."""
    import soundfile

    path = tmp_path_factory.mktemp("sound") / "tone.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(4000) / 8000 * 2 * np.pi * 440), 8000)
    return path


@pytest.fixture
def brief(monkeypatch):
    """A model that writes is let write three tokens."""
    monkeypatch.setattr(paradigm, "MOST_WRITTEN", 3)


# --- the zoo's model of two streams ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", FILES)
def test_a_command_prints_its_record_and_writes_its_files(capsys, tmp_path, really_drawn, command):
    more = {"mechanism": ["--no-heads"], "logic": ["--words", "color, seven"]}.get(command, [])
    status, out, err = run(capsys, command, *ASKED, "--out", tmp_path, *more)
    assert (status, err) == (0, "")
    assert names(tmp_path) == FILES[command]
    found = loaded(command, tmp_path)
    for label, value in found.rows():
        assert flat(label) in flat(out)
        assert flat(value) in flat(out)
    assert all(str(tmp_path / name) in out for name in FILES[command])
    assert "logit of cyan" in out
    with Image.open(tmp_path / "figure.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) > 200
    if command == "mechanism":
        assert "<svg" in (tmp_path / "figure.svg").read_text()


def test_the_same_command_gives_the_same_files(capsys, tmp_path, really_drawn):
    for folder in ("a", "b"):
        run(capsys, "ground", *ASKED, "--out", tmp_path / folder)
    for name in ("record.json", "figure.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    a, b = (loaded("ground", tmp_path / folder) for folder in ("a", "b"))
    assert a.matrix.numpy().tobytes() == b.matrix.numpy().tobytes()


def test_the_same_drawing_gives_the_same_svg(tmp_path, really_drawn):
    from matplotlib.figure import Figure

    for name in ("a.svg", "b.svg"):
        drawn = Figure()
        drawn.subplots().plot([0, 1])
        show.figure.save(drawn, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_mechanism_is_that_of_the_library_and_what_was_not_cut_is_null(capsys, tmp_path, model, inputs):
    arguments = ["--calls", "*visual_attention*", "--target", "red", "--correction", "absolute", "--max-evaluations", "30"]
    status, out, _ = run(capsys, "mechanism", *ASKED, "--out", tmp_path, "--json", *arguments)
    assert status == 0
    printed = strict(out)
    assert printed.pop("files") == [str(tmp_path / name) for name in FILES["mechanism"]]
    assert printed == strict((tmp_path / "record.json").read_text())
    found = loaded("mechanism", tmp_path)
    base = {"input_ids": zl.baseline.mask_token(zoo.tokenizer("digits-vqa"))}
    known = zl.mechanism(model, inputs, target="red", correction="absolute", calls="*visual_attention*", baseline=base)
    assert torch.allclose(found.effect, known.effect, equal_nan=True)
    assert torch.equal(found.relevance, known.relevance)
    assert printed["target"] == ["logit of red"]
    assert printed["baselines"] == {"input_ids": "[MASK] for every word", "visual_feats": "zeros"}
    cut = {edge["name"] for edge in printed["edges"] if edge["effect"] != [None]}
    assert cut
    assert all("visual_attention" in name for name in cut)
    assert len(cut) < len(printed["edges"])


def test_mechanism_without_heads_has_no_effects_of_heads(capsys, tmp_path):
    status, out, _ = run(capsys, "mechanism", *ASKED, "--out", tmp_path, "--no-heads", "--calls", "0,3", "--baseline", "mean")
    assert status == 0
    found = loaded("mechanism", tmp_path)
    assert bool(found.head_effect.isnan().all())
    assert found.evaluations == 2
    assert "visual_feats: mean" in out


def test_ground_is_that_of_the_library_with_words_for_rows(capsys, tmp_path, model, inputs):
    arguments = ["--correction", "signed", "--calls", "0,-1,-2", "--coverage", "incomplete"]
    status, out, _ = run(capsys, "ground", *ASKED, "--out", tmp_path, "--json", *arguments)
    assert status == 0
    printed = strict(out)
    assert printed["rows"]["words"] == ["[CLS]", "what", "color", "is", "the", "seven", "?", "[SEP]"]
    assert (printed["rows"]["stream"], printed["columns"]["stream"], printed["columns"]["grid"]) == ("input_ids", "visual_feats", [8, 8])
    found = loaded("ground", tmp_path)
    known = zl.ground(model, inputs, target=zl.top(), correction="signed", calls=[0, -1, -2], coverage="incomplete")
    assert torch.allclose(found.matrix, known.matrix)
    assert torch.allclose(found.back, known.back)


def test_rows_and_columns_and_a_grid_can_be_named(capsys, tmp_path):
    arguments = ["--rows", "visual_feats", "--columns", "input_ids"]
    status, _, _ = run(capsys, "ground", *ASKED, "--out", tmp_path, *arguments)
    assert status == 0
    found = loaded("ground", tmp_path)
    assert (found.row_stream, found.column_stream, found.matrix.shape) == ("visual_feats", "input_ids", (1, 64, 8))
    assert found.column_words[5] == "seven"
    status, _, _ = run(capsys, "ground", *ASKED, "--out", tmp_path, "--grid", "3x21", "--prefix", "1")
    assert status == 0
    found = loaded("ground", tmp_path)
    assert (found.lie.grid, found.lie.prefix) == ((3, 21), 1)


def test_a_detectors_rows_are_its_detections_and_the_sides_of_their_boxes(capsys, tmp_path):
    status, out, _ = run(capsys, "ground", TWO, "--model", "zoo:digits-detr", "--out", tmp_path, "--json")
    assert status == 0
    found = loaded("ground", tmp_path)
    detector, given = zoo.load("digits-detr"), zoo.preprocess("digits-detr", Image.open(TWO))
    with torch.no_grad():
        scores = detector(**given).logits[0]
    queries = sorted((q for q in range(5) if int(scores[q].argmax()) < 10), key=lambda q: -float(scores[q, :10].max()))
    labels = [detector.config.id2label[int(scores[q].argmax())] for q in queries]
    assert len(labels) >= 2
    rows = []
    for query, label in zip(queries, labels):
        rows += [f"{label} (query {query})", *(f"{label} ({query}), {side}" for side in ("left", "top", "right", "bottom"))]
    assert list(found.row_words) == rows == strict(out)["rows"]["words"]
    sides = {row.split(", ")[1]: row for row in rows[1:5]}
    for name, target in {rows[0]: zl.target.detection(queries[0]), **{row: zl.target.box(queries[0], s) for s, row in sides.items()}}.items():
        assert torch.allclose(found.row(name), zl.attention_relevance(detector, given, target=target).by_source["pixel_values"], atol=1e-6)
    assert found.row_stream == ""
    assert found.grid().shape[2:] == (8, 8)


@pytest.mark.parametrize("command", ["mechanism", "ground"])
def test_of_a_detector_one_detection_can_be_asked(capsys, tmp_path, command):
    more = ["--rows", "model.query_position_embeddings.weight"] if command == "ground" else ["--no-heads"]
    status, out, _ = run(capsys, command, TWO, "--model", "zoo:digits-detr", "--out", tmp_path, *more)
    assert status == 0
    assert "at detection" in out


# --- logic -----------------------------------------------------------------------------------------------------------------------------


def test_logic_plays_all_words_and_four_regions(capsys, tmp_path, model, inputs):
    status, _, _ = run(capsys, "logic", *ASKED, "--out", tmp_path, "--max-evaluations", "512")
    assert status == 0
    found = loaded("logic", tmp_path)
    assert found.players == ("what", "color", "is", "the", "seven", "A1", "B1", "A2", "B2")
    assert found.baselines == ("[MASK] for every word",) * 5 + ("zeros",) * 4
    assert len(found.coalitions) == 2**9
    cyan = model.config.label2id["cyan"]
    with torch.no_grad():
        assert float(found.value) == pytest.approx(float(model(**inputs).question_answering_score[0, cyan]), abs=1e-4)
        none = {**zoo.preprocess("digits-vqa", text="[MASK] [MASK] [MASK] [MASK] [MASK] ?"), "visual_pos": inputs["visual_pos"]}
        scores = model(**none, visual_feats=torch.zeros_like(inputs["visual_feats"])).question_answering_score
    assert float(found.baseline_value) == pytest.approx(float(scores[0, cyan]), abs=1e-4)


def test_chosen_words_and_a_grid_of_regions_play(capsys, tmp_path, model, inputs):
    arguments = ["--words", "Seven, color", "--regions", "1x3", "--target", "cyan - red", "--threshold", "answer", "--baseline", "mean"]
    status, out, _ = run(capsys, "logic", *ASKED, "--out", tmp_path, "--json", *arguments)
    assert status == 0
    printed = strict(out)
    assert [player["name"] for player in printed["players"]] == ["color", "seven", "A1", "B1", "C1"]
    assert [player["absent"] for player in printed["players"]] == ["[MASK] for every word"] * 2 + ["mean"] * 3
    assert printed["target"] == ["logit of cyan - red"]
    assert printed["threshold"] == "the model's first answer stays"
    assert len(printed["dividends"]) == 31
    assert sum(each["value"][0] for each in printed["dividends"]) == pytest.approx(printed["difference"][0], abs=1e-4)
    words = zl.players.words(inputs, zoo.tokenizer("digits-vqa"), ["color", "seven"])
    regions = zl.players.regions(model, inputs, zl.players.grid(1, 3), baseline=zl.baseline.mean())
    known = zl.logic(model, inputs, target=zl.contrast("cyan", "red"), players=words + regions, threshold="answer")
    found = loaded("logic", tmp_path)
    assert torch.allclose(found.values, known.values, atol=1e-4)
    assert torch.equal(found.holds, known.holds)
    assert found.reading == known.reading


@pytest.mark.parametrize(
    ("arguments", "players"),
    [
        (["--region", "left=0,0,32,64", "--region", "right side=32,0,64,64", "--words", "none"], ["left", "right side"]),
        (["--region", "spot=0,0,16,16", "--words", "seven"], ["seven", "spot"]),
        (["--words", "none", "--regions", "2x1"], ["A1", "A2"]),
        (["--players", "sources"], ["input_ids", "visual_feats"]),
    ],
)
def test_players_are_as_asked(capsys, tmp_path, arguments, players):
    status, _, _ = run(capsys, "logic", *ASKED, "--out", tmp_path, *arguments)
    assert status == 0
    assert list(loaded("logic", tmp_path).players) == players


@pytest.fixture
def drawn(monkeypatch):
    """What the figure of logic was given."""
    from zeroline.report import logic_figure

    seen = {}
    kept = logic_figure.figure

    def figure(record, **given):
        seen.update(given)
        return kept(record, **given)

    monkeypatch.setattr(logic_figure, "figure", figure)
    return seen


def test_a_region_is_where_its_pixels_are(capsys, tmp_path, drawn):
    large = tmp_path / "large.png"
    Image.open(SEVEN).resize((128, 256)).save(large)
    arguments = ["--text", QUESTION, "--region", "spot=32,0,64,128", "--words", "seven"]
    status, _, _ = run(capsys, "logic", large, *arguments, "--out", tmp_path / "out")
    assert status == 0
    expected = np.zeros((8, 8), bool)
    expected[0:4, 2:4] = True
    assert list(drawn["places"]) == ["spot"]
    assert np.array_equal(drawn["places"]["spot"], expected)
    assert drawn["picture"].shape == (256, 128, 3)
    assert drawn["asked"] == QUESTION


def test_a_region_of_pixels_is_where_they_are_seen(capsys, tmp_path, drawn, whole_view):
    arguments = ["--text", "a red seven", "--model", f"hf:{whole_view}", "--region", "spot=16,0,64,32", "--words", "red"]
    status, _, _ = run(capsys, "logic", SEVEN, *arguments, "--out", tmp_path, "--baseline", "blur(4)")
    assert status == 0
    expected = np.zeros((32, 32), bool)
    expected[0:16, 8:32] = True
    assert np.array_equal(drawn["places"]["spot"], expected)
    assert drawn["picture"].shape == (32, 32, 3)
    assert loaded("logic", tmp_path).baselines[1] == "blur(4)"


def test_a_region_of_an_image_that_is_cropped_is_where_it_is_seen(capsys, tmp_path, drawn, middle_view):
    arguments = ["--text", "a red seven", "--model", f"hf:{middle_view}", "--region", "spot=16,16,32,32", "--words", "red"]
    status, _, _ = run(capsys, "logic", SEVEN, *arguments, "--out", tmp_path)
    assert status == 0
    expected = np.zeros((32, 32), bool)
    expected[0:16, 0:16] = True  # the model sees 16 to 48 of 64
    assert np.array_equal(drawn["places"]["spot"], expected)


def test_a_minimal_pair_is_named_by_its_own_words(capsys, tmp_path, model):
    other = "what color is the four ?"
    arguments = ["--words", "color, seven", "--regions", "1x2", "--instead", other]
    status, out, _ = run(capsys, "logic", *ASKED, "--out", tmp_path, *arguments)
    assert status == 0
    found = loaded("logic", tmp_path)
    assert found.players == ("color", "seven", "A1", "B1")
    assert found.instead.players == ("color", "four", "A1", "B1")
    with torch.no_grad():
        scores = model(**zoo.preprocess("digits-vqa", Image.open(SEVEN), text=other)).question_answering_score
    assert float(found.instead.value) == pytest.approx(float(scores[0, model.config.label2id["cyan"]]), abs=1e-4)
    assert "four for seven" in flat(out)


def test_a_minimal_pair_with_a_word_twice_keeps_all_dividends(capsys, tmp_path):
    status, _, _ = run(capsys, "logic", *ASKED, "--out", tmp_path, "--words", "color, is", "--regions", "1x1", "--instead", "what is is the seven ?")
    assert status == 0
    found = loaded("logic", tmp_path)
    assert len(set(found.instead.players)) == 3
    assert len(found.instead.dividends) == 7


def test_many_players_are_estimated_from_orders_of_a_seed(capsys, tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        arguments = ["--regions", "3x2", "--max-evaluations", "130", "--seed", seed]
        status, _, _ = run(capsys, "logic", *ASKED, "--out", tmp_path / folder, *arguments)
        assert status == 0
    a, b, c = (loaded("logic", tmp_path / folder) for folder in "abc")
    assert len(a.players) == 11
    assert a.evaluations <= 130
    assert torch.equal(a.estimate, b.estimate)
    assert not torch.equal(a.estimate, c.estimate)


def test_one_order_has_an_interval_that_json_can_say(capsys, tmp_path):
    """Of a single random order there is no spread to see."""
    status, out, _ = run(capsys, "logic", *ASKED, "--out", tmp_path, "--regions", "3x2", "--max-evaluations", "88", "--json")
    assert status == 0
    assert strict(out)["shapley_half_width"] == [[None] * 11]
    assert bool(loaded("logic", tmp_path).half_width.isinf().all())


# --- models in folders -------------------------------------------------------------------------------------------------------------------


def test_a_translator_is_grounded_by_the_words_that_it_writes(capsys, tmp_path, marian, brief):
    from transformers import MarianMTModel

    arguments = ["--text", "a few red seven is there", "--model", f"hf:{marian}"]
    status, out, _ = run(capsys, "ground", *arguments, "--out", tmp_path)
    assert status == 0
    found = loaded("ground", tmp_path)
    model, given = MarianMTModel.from_pretrained(marian).eval(), tokenizer()("a few red seven is there", return_tensors="pt")
    ids = model.generate(**given, max_new_tokens=3, do_sample=False, num_beams=1)
    wrote = [(n, int(i)) for n, i in enumerate(ids[0]) if n and WORDS[int(i)] not in SPECIAL.values()]
    assert [word.strip() for word in found.row_words] == [WORDS[i] for _, i in wrote]
    assert len(wrote) >= 2
    assert len(set(found.row_words)) == len(wrote)
    assert found.column_stream == "input_ids"
    assert found.column_words == ("a", "few", "red", "seven", "is", "there", "</s>")
    whole = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"], "decoder_input_ids": ids[:, :-1]}
    for row, (position, token) in enumerate(wrote):
        known = zl.attention_relevance(model, whole, target=zl.target.sequence([token], position - 1))
        assert torch.allclose(found.matrix[:, row], known.by_source["input_ids"], atol=1e-6)
    assert flat(f"{len(wrote)} targets") in flat(out)


def test_what_is_written_is_a_target_for_each_word_and_the_random_state_is_as_it_was(marian, brief, monkeypatch):
    asked = paradigm.given(f"hf:{marian}", None, "a few red seven", None, None, trust_remote_code=False)
    assert paradigm.writes(asked)
    writing = asked.sourced.model.generate

    def generate(**given):
        torch.rand(3)  # a model that draws
        return writing(**given)

    monkeypatch.setattr(asked.sourced.model, "generate", generate)
    before = torch.random.get_rng_state()
    whole, targets = paradigm.written(asked)
    assert torch.equal(torch.random.get_rng_state(), before)
    ids = whole.inputs["decoder_input_ids"][0].tolist()
    assert (len(ids), ids[0]) == (3, 0)  # the start, and all that was written but its last
    assert len(targets) >= 2
    for name, target in targets.items():
        assert target.tokens == (WORDS.index(name.strip()),)
        assert target.start == 2 or ids[target.start + 1] == target.tokens[0]  # read where it is predicted
    assert not asked.inputs["decoder_input_ids"][0, 0]
    assert whole.ids["input_ids"] == ("a", "few", "red", "seven", "</s>")


def test_the_word_that_a_model_starts_from_is_not_one_that_it_writes(marian, brief):
    asked = paradigm.given(f"hf:{marian}", None, "a few red", None, None, trust_remote_code=False)
    asked.sourced.model.generation_config.decoder_start_token_id = WORDS.index("ein")
    whole, targets = paradigm.written(asked)
    assert int(whole.inputs["decoder_input_ids"][0, 0]) == WORDS.index("ein")
    assert min(target.start for target in targets.values()) == 0
    assert len(targets) <= 3


def test_a_translation_that_is_longer_than_its_text_is_grounded_in_the_text_all_the_same(capsys, tmp_path, marian, brief):
    status, _, _ = run(capsys, "ground", "--text", "a", "--model", f"hf:{marian}", "--out", tmp_path)
    assert status == 0
    assert loaded("ground", tmp_path).column_stream == "input_ids"


def test_of_a_model_that_writes_rows_can_be_its_decoders_tokens(capsys, tmp_path, marian):
    arguments = ["--text", "a few red", "--model", f"hf:{marian}", "--rows", "decoder_input_ids"]
    status, _, _ = run(capsys, "ground", *arguments, "--out", tmp_path)
    assert status == 0
    found = loaded("ground", tmp_path)
    assert (found.row_stream, found.row_words, found.column_words) == ("decoder_input_ids", ("<pad>",), ("a", "few", "red", "</s>"))


@pytest.mark.parametrize("command", ["mechanism", "logic"])
def test_a_translators_next_token_is_the_target(capsys, tmp_path, marian, command):
    status, out, _ = run(capsys, command, "--text", "a few red", "--model", f"hf:{marian}", "--out", tmp_path)
    assert status == 0
    assert "log-probability of token" in out
    found = loaded(command, tmp_path)
    if command == "logic":
        assert (found.players, set(found.baselines)) == (("a", "few", "red"), {"<mask> for every word"})
    else:
        assert found.heterogenous == (3, 5)


def test_a_model_that_listens_says_that_it_resampled_and_draws_seconds(capsys, tmp_path, whisper, sound, brief, monkeypatch):
    from zeroline.report import grounding_figure

    seen = {}
    kept = grounding_figure.figure
    monkeypatch.setattr(grounding_figure, "figure", lambda record, **given: seen.update(given) or kept(record, **given))
    status, out, err = run(capsys, "ground", "--audio", sound, "--model", f"hf:{whisper}", "--out", tmp_path, "--json")
    assert status == 0
    assert err.strip() == "note: tone.wav: resampled from 8000 to 16000 Hz"
    printed = strict(out)
    assert (printed["columns"]["stream"], len(printed["columns"]["tokens"])) == ("input_features", 50)
    assert all(word.strip() in WORDS for word in printed["rows"]["words"])
    assert seen["seconds"] == pytest.approx(1.0)  # of all frames
    assert seen["sound"] == pytest.approx(0.5)
    assert loaded("ground", tmp_path).matrix.shape == (1, len(printed["rows"]["words"]), 50)


@pytest.mark.parametrize("command", ["mechanism", "logic"])
def test_sound_and_words_are_sources(capsys, tmp_path, whisper, sound, command):
    status, _, err = run(capsys, command, "--audio", sound, "--model", f"hf:{whisper}", "--out", tmp_path)
    assert status == 0
    assert "resampled" in err
    found = loaded(command, tmp_path)
    if command == "logic":
        assert set(found.players) == {"input_features", "decoder_input_ids"}
    else:
        assert {found.edges[n].keys for n in found.heterogenous} == {"input_features"}


def test_a_cross_encoder_grounds_the_query_in_the_passage(capsys, tmp_path, judge):
    arguments = ["--text", "is a seven there ?", "--passage", "a few red seven", "--model", f"hf:{judge}"]
    status, _, _ = run(capsys, "ground", *arguments, "--out", tmp_path)
    assert status == 0
    found = loaded("ground", tmp_path)
    assert found.row_words == ("<cls>", "is", "a", "seven", "there", "?", "</s>")
    assert found.column_words == ("a", "few", "red", "seven", "</s>")
    assert float(found.coupling.abs().sum()) > 0


def test_words_of_both_texts_of_a_cross_encoder_play(capsys, tmp_path, judge):
    arguments = ["--text", "is seven there", "--passage", "a red seven", "--model", f"hf:{judge}"]
    status, _, _ = run(capsys, "logic", *arguments, "--out", tmp_path)
    assert status == 0
    assert loaded("logic", tmp_path).players == ("is", "seven", "there", "a", "red", "seven (2)")
    status, out, _ = run(capsys, "mechanism", *arguments, "--out", tmp_path / "mechanism")
    assert status == 0
    assert "nothing is heterogenous" in out


def test_a_blurred_picture_is_a_baseline_where_pixels_are_read(capsys, tmp_path, whole_view):
    arguments = ["--text", "a red seven", "--model", f"hf:{whole_view}", "--baseline", "blur(4)", "--no-heads"]
    status, out, _ = run(capsys, "mechanism", SEVEN, *arguments, "--out", tmp_path)
    assert status == 0
    assert "pixel_values: blur(4)" in out


# --- errors ---------------------------------------------------------------------------------------------------------------------------------


BAD = {
    "no image": ("logic", ["--text", QUESTION], "reads text and image; give an image file"),
    "no text": ("ground", [SEVEN], "reads text and image; give --text"),
    "a word that is not there": ("logic", [*ASKED, "--words", "what, colour"], "no word 'colour'; nearest: color"),
    "regions that overlap": ("logic", [*ASKED, "--words", "none", "--regions", "2x2", "--region", "x=0,0,32,16"], "players 'x' and 'A1' overlap"),
    "a region outside the image": ("logic", [*ASKED, "--region", "x=0,0,65,64"], "the region x=0,0,65,64 is not within the image of 64 x 64"),
    "a region turned about": ("logic", [*ASKED, "--region", "x=32,0,16,64"], "is not within the image"),
    "a region of three sides": ("logic", [*ASKED, "--region", "x=0,0,32"], "cannot read --region 'x=0,0,32'; write NAME=LEFT,TOP,RIGHT,BOTTOM"),
    "a region of half a pixel": ("logic", [*ASKED, "--region", "x=0,0,3.5,4"], "cannot read --region"),
    "a region without a name": ("logic", [*ASKED, "--region", "=0,0,32,32"], "cannot read --region"),
    "a region that holds no cell": ("logic", [*ASKED, "--region", "x=0,0,2,2"], "holds none of the 8 x 8 positions"),
    "two regions of one name": ("logic", [*ASKED, "--region", "x=0,0,8,8", "--region", "x=8,0,16,8"], "two regions have one name"),
    "a region that is called as a word": ("logic", [*ASKED, "--region", "seven=0,0,8,8"], "two players are called 'seven'"),
    "regions that are no grid": ("logic", [*ASKED, "--regions", "four"], "ROWSxCOLUMNS"),
    "another length": ("logic", [*ASKED, "--instead", "which digit is red ?"], "a minimal pair has the same shapes"),
    "too many players": ("logic", [*ASKED, "--regions", "2x2", "--max-evaluations", "511"], "all coalitions of 9 players are 2^9 = 512"),
    "far too many players": ("logic", [*ASKED, "--regions", "8x8"], "69 players were given"),
    "one player": ("logic", [*ASKED, "--words", "none", "--regions", "1x1"], "1 players were given; logic takes two or more"),
    "nonsense as players": ("logic", [*ASKED, "--players", "words"], "--players 'words' was given; it is sources"),
    "sources and words": ("logic", [*ASKED, "--players", "sources", "--words", "seven"], "goes without --words, --regions and --region"),
    "a threshold in words": ("logic", [*ASKED, "--threshold", "half"], "threshold='half' was given; it is a share above 0 and at most 1, or 'answer'"),
    "a threshold beyond all": ("logic", [*ASKED, "--threshold", "1.5"], "threshold=1.5"),
    "a threshold that is no number": ("logic", [*ASKED, "--threshold", "nan"], "threshold=nan"),
    "an unknown class": ("logic", [*ASKED, "--target", "cyaan"], "nearest: cyan"),
    "an unknown baseline": ("logic", [*ASKED, "--baseline", "blak"], "nearest: black"),
    "an unknown baseline of an edge": ("mechanism", [*ASKED, "--baseline", "blak"], "nearest: black"),
    "blurred features": ("mechanism", [*ASKED, "--baseline", "blur(4)", "--no-heads"], "blur needs images"),
    "an unknown correction": ("ground", [*ASKED, "--correction", "up"], "no correction 'up'; possible: none, positive"),
    "an unknown correction of edges": ("mechanism", [*ASKED, "--correction", "up"], "no correction 'up'; possible: none, positive"),
    "an unknown call": ("mechanism", [*ASKED, "--calls", "99"], "no call 99"),
    "an unknown call by name": ("ground", [*ASKED, "--calls", "lxmert.encoder.layer.9.attention.self"], "nearest: lxmert"),
    "no call": ("ground", [*ASKED, "--calls", ","], "--calls is empty"),
    "too many cuts": ("mechanism", [*ASKED, "--max-evaluations", "20"], "max_evaluations is 20: name fewer calls, heads=False"),
    "an unknown coverage": ("ground", [*ASKED, "--coverage", "half"], "possible: complete, incomplete"),
    "an unknown stream": ("ground", [*ASKED, "--rows", "visual_feat"], "no stream 'visual_feat'; nearest: visual_feats"),
    "rows that are columns": ("ground", [*ASKED, "--rows", "input_ids", "--columns", "input_ids"], "rows and columns share 8 tokens"),
    "a grid that does not fit": ("ground", [*ASKED, "--grid", "9x9"], "9 x 9"),
    "a passage beside an image": ("logic", [*ASKED, "--passage", "a few"], "--passage goes with --text"),
    "audio": ("ground", [*ASKED, "--audio", SEVEN], "'digits-vqa' reads no audio, only text and image"),
    "text for a detector": ("ground", [TWO, "--text", "a", "--model", "zoo:digits-detr"], "reads no text"),
    "no detection": ("ground", ["BLANK", "--model", "zoo:digits-detr"], "no detection: the model says 'no object' at all of its queries"),
    "one source to ground": ("ground", [SEVEN, "--model", "zoo:digits-vit"], "the model has one source (pixel_values)"),
    "one source to play": ("logic", [SEVEN, "--model", "zoo:digits-vit", "--players", "sources"], "logic needs two players"),
    "words of a model that reads none": ("logic", [SEVEN, "--model", "zoo:digits-vit", "--words", "seven"], "--words was given, and 'digits-vit' reads no text"),
    "an image that is not there": ("ground", [str(SAMPLES / "77.png"), "--text", QUESTION], "no image file"),
    "a model that is not there": ("mechanism", [*ASKED, "--model", "zoo:digits-vqq"], "nearest: digits-vqa"),
    "too long a question": ("logic", [SEVEN, "--text", "seven " * 9], "has 11 tokens, begin and end included; the model reads 10"),
}  # fmt: skip


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    path = tmp_path_factory.mktemp("blank") / "blank.png"
    Image.new("RGB", (64, 64), (90, 90, 90)).save(path)
    return path


def refused(status, out, err, words, folder, expected=2):
    assert status == expected
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert "unexpected" not in err
    assert out == ""
    assert not folder.exists()


@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_line_with_status_2_and_leave_nothing_behind(capsys, tmp_path, blank, case):
    command, arguments, words = BAD[case]
    given = [blank if argument == "BLANK" else argument for argument in arguments]
    status, out, err = run(capsys, command, *given, "--out", tmp_path / "new" / "folder")
    refused(status, out, err, words, tmp_path / "new")


def test_an_image_that_is_none_is_a_failure(capsys, tmp_path):
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no image")
    status, out, err = run(capsys, "logic", wrong, "--text", QUESTION, "--out", tmp_path / "new")
    refused(status, out, err, "as an image", tmp_path / "new", 1)


@pytest.mark.parametrize(
    ("arguments", "words", "expected"),
    [
        ([], "reads audio; give --audio FILE", 2),
        ([SEVEN, "--audio", "SOUND"], "reads audio alone; an image or --text means nothing to it", 2),
        (["--text", "a", "--audio", "SOUND"], "reads audio alone", 2),
        (["--audio", "missing.wav"], "no sound file", 2),
        (["--audio", SEVEN], "as a sound", 1),
        (["--audio", "SOUND", "--target", "seven"], "predicts tokens: --target top is possible here", 2),
    ],
)
def test_what_a_model_that_listens_cannot_read_is_said(capsys, tmp_path, whisper, sound, arguments, words, expected):
    given = [sound if argument == "SOUND" else argument for argument in arguments]
    status, out, err = run(capsys, "logic", *given, "--model", f"hf:{whisper}", "--out", tmp_path / "new")
    last = err.strip().splitlines()[-1] + "\n"  # a note on the rate may come before
    refused(status, out, last, words, tmp_path / "new", expected)


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("logic", ["--text", "a few", "--threshold", "answer"], "this target reads no class: give a share"),
        ("logic", ["--text", "a few", "--regions", "2x2"], "reads no image here"),
        ("logic", ["--text", "a few", "--region", "x=0,0,1,1"], "reads no image here"),
        ("ground", ["--passage", "a few"], "--passage goes with --text"),
        ("ground", [SEVEN, "--text", "a few"], "reads no image, only text"),
        ("mechanism", ["--text", "a few", "--audio", "missing.wav"], "reads no audio, only text"),
        ("logic", ["--text", "a few", "--words", "paar"], "no word 'paar'"),
    ],
)
def test_what_a_translator_cannot_be_asked_is_said(capsys, tmp_path, marian, command, arguments, words):
    status, out, err = run(capsys, command, *arguments, "--model", f"hf:{marian}", "--out", tmp_path / "new")
    refused(status, out, err, words, tmp_path / "new")


def test_another_text_does_not_go_with_a_pair(capsys, tmp_path, judge):
    arguments = ["--text", "a", "--passage", "a", "--instead", "few", "--model", f"hf:{judge}"]
    status, out, err = run(capsys, "logic", *arguments, "--out", tmp_path / "new")
    refused(status, out, err, "--instead is another text: it goes with --text, without --passage", tmp_path / "new")


def test_a_region_that_is_called_as_a_cell_is_refused(capsys, tmp_path):
    status, out, err = run(capsys, "logic", *ASKED, "--words", "none", "--region", "A1=48,48,64,64", "--regions", "2x2", "--out", tmp_path / "new")
    refused(status, out, err, "two regions have one name", tmp_path / "new")


@pytest.mark.parametrize("command", FILES)
def test_a_failure_while_writing_leaves_what_was_there(capsys, tmp_path, monkeypatch, command):
    (tmp_path / "record.json").write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(show.figure, "save", full)
    more = ["--no-heads", "--calls", "0"] if command == "mechanism" else ["--players", "sources"] if command == "logic" else []
    status, _, err = run(capsys, command, *ASKED, "--out", tmp_path, *more)
    assert status == 1
    assert len(err.strip().splitlines()) == 1
    assert names(tmp_path) == ["record.json"]
    assert (tmp_path / "record.json").read_text() == "before"


def test_results_into_a_file_are_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = run(capsys, "ground", *ASKED, "--out", tmp_path / "file" / "out")
    assert status == 2
    assert "cannot write results" in err
