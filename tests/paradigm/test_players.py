"""Players made from words and regions: every word whole and at its tokens, every region at the positions whose centres it holds."""

import doctest
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

import zeroline as zl
from zeroline import zoo
from zeroline.errors import InputError, NotFoundError, UsageError
from zeroline.model.inputs import Inputs
from zeroline.model.words import whole_words, words_of
from zeroline.paradigm import players
from zeroline.paradigm.players import laid, missing_word, picture_of

# --- whole words -------------------------------------------------------------------------------------------------------------------

WORD = st.text("abcdefghijklmnopqrstuvwxyzäß0123456789?!.,'-", min_size=1, max_size=8)


def marked(style, pieces, first):
    """One word's pieces as a tokenizer of that style marks them."""
    if style == "WordPiece":
        return [pieces[0], *(f"##{piece}" for piece in pieces[1:])]
    if style == "byte-level BPE":
        return [pieces[0] if first else f"\u0120{pieces[0]}", *pieces[1:]]
    if style == "byte-level BPE, a space before the first word too":
        return [f"\u0120{pieces[0]}", *pieces[1:]]
    if style == "SentencePiece":
        return [f"\u2581{pieces[0]}", *pieces[1:]]
    if style == "SentencePiece, the mark a piece of its own":
        return ["\u2581", *pieces]
    if style == "CLIP":
        return [*pieces[:-1], f"{pieces[-1]}</w>"]
    return ["".join(pieces)]


STYLES = (
    "WordPiece", "byte-level BPE", "byte-level BPE, a space before the first word too", "SentencePiece",
    "SentencePiece, the mark a piece of its own", "CLIP", "whole words",
)  # fmt: skip


@st.composite
def texts(draw):
    """(words, the pieces of each, where a special token stands before it)."""
    words = draw(st.lists(WORD, min_size=2, max_size=6))
    cuts = [sorted(draw(st.sets(st.integers(1, max(len(word) - 1, 1)), max_size=3))) for word in words]
    pieces = [[p for a, b in zip([0, *cut], [*cut, len(word)]) if (p := word[a:b])] for word, cut in zip(words, cuts)]
    return words, pieces, draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=60, deadline=None)
@given(text=texts())
def test_words_come_back_whole_with_the_numbers_of_their_tokens(style, text):
    words, pieces, specials = text
    tokens, expected = ["<s>"], []
    for n, (word, each) in enumerate(zip(words, pieces)):
        if specials[n]:
            tokens.append("<mask>")
        own = marked(style, each, first=n == 0)
        expected.append((word, tuple(range(len(tokens), len(tokens) + len(own)))))
        tokens += own
    assert whole_words([*tokens, "</s>", "<pad>"], ["<s>", "</s>", "<mask>", "<pad>"]) == expected


def test_a_word_that_is_only_a_mark_is_no_word():
    assert whole_words(["\u2581", "\u2581up", "\u0120"]) == [("up", (1,))]
    assert whole_words([]) == []


def test_a_word_does_not_go_on_after_a_special_token():
    assert whole_words(["\u2581up", "<x>", "down"], ["<x>"]) == [("up", (0,)), ("down", (2,))]
    assert whole_words(["up", "[X]", "##down"], ["[X]"]) == [("up", (0,)), ("down", (2,))]


CORPUS = ["what color is the seven ?", "berlin is a city in germany", "the café is naïve, isn't it?", "unhappiness and happiness"] * 3


def _kept(inner, marks, **named):
    begin, end = marks
    inner.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(mark, inner.token_to_id(mark)) for mark in marks]
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def word_piece():
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, show_progress=False))
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special))
    return _kept(inner, ("[CLS]", "[SEP]"), **named)


def byte_level():
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    every = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=every, show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    return _kept(inner, ("<s>", "</s>"), bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def sentence_piece():
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=70, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    return _kept(inner, ("<pad>", "</s>"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def end_of_word():
    inner = Tokenizer(models.BPE(unk_token="<end>", end_of_word_suffix="</w>"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<start>", "<end>"], end_of_word_suffix="</w>", show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    return _kept(inner, ("<start>", "<end>"), bos_token="<start>", eos_token="<end>", unk_token="<end>")


TOKENIZERS = {"WordPiece": word_piece, "byte-level BPE": byte_level, "SentencePiece": sentence_piece, "CLIP": end_of_word}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make() for name, make in TOKENIZERS.items()}


TEXTS = ("what color is the seven ?", "happiness and a city", "germany")


@pytest.mark.parametrize(("name", "text"), [(n, t) for n in TOKENIZERS for t in TEXTS if (n, t) != ("byte-level BPE", "germany")])  # see below
def test_tokens_of_real_tokenizers_make_the_words_of_the_text(tokenizers, name, text):
    tokenizer = tokenizers[name]
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    found = whole_words(pieces, tokenizer.all_special_tokens)
    assert [word for word, _ in found] == text.split()
    numbers = [n for _, each in found for n in each]
    assert numbers == sorted(set(numbers))
    bare = "".join(piece.removesuffix("</w>").removeprefix("##").strip("\u0120\u2581") for n, piece in enumerate(pieces) if n in numbers)
    assert bare == text.replace(" ", "")
    assert len(numbers) > len(found) or text == "germany"  # some word is of several tokens


def test_a_text_of_one_word_is_one_word(tokenizers):
    tokenizer = tokenizers["byte-level BPE"]
    assert [word for word, _ in words_of(tokenizer, tokenizer("germany")["input_ids"])] == ["germany"]


def test_letters_beyond_ascii_are_written_as_they_are(tokenizers):
    tokenizer = tokenizers["byte-level BPE"]
    found = players.words(tokenizer("the café is naïve", return_tensors="pt"), tokenizer)
    assert [player.name for player in found] == ["the", "café", "is", "naïve"]


def test_a_word_that_is_not_known_is_a_player_too(tokenizers):
    tokenizer = tokenizers["WordPiece"]
    found = players.words(tokenizer("is the \u6f22 a city ?", return_tensors="pt"), tokenizer)
    assert len(found) == 5


# --- words as players ----------------------------------------------------------------------------------------------------------------


def test_every_word_but_punctuation_plays_at_its_tokens(tokenizers):
    tokenizer = tokenizers["WordPiece"]
    inputs = tokenizer("Berlin, a city ' is unhappiness ?", return_tensors="pt")
    pieces = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    found = players.words(inputs, tokenizer)
    assert [player.name for player in found] == ["berlin", "a", "city", "is", "unhappiness"]
    together = torch.zeros(len(pieces), dtype=torch.long)
    for player in found:
        assert player.input == "input_ids"
        assert (player.where.dtype, player.where.shape) == (torch.bool, (len(pieces),))
        assert "".join(pieces[n].removeprefix("##") for n in player.where.nonzero()[:, 0].tolist()) == player.name
        assert player.baseline.name == "[MASK] for every word"
        together += player.where
    assert [piece for piece, n in zip(pieces, together) if not n] == ["[CLS]", ",", "'", "?", "[SEP]"]
    assert int(together.max()) == 1


def test_several_signs_are_no_word_and_a_word_with_signs_is_one(tokenizers):
    found = players.words(tokenizers["byte-level BPE"]("what ?! is- the -- seven?", return_tensors="pt"), tokenizers["byte-level BPE"])
    assert [player.name for player in found] == ["what", "is-", "the", "seven?"]


def test_chosen_words_play_whatever_their_case_and_order_punctuation_too(tokenizers):
    inputs = tokenizers["WordPiece"]("what color is the city ?", return_tensors="pt")
    found = players.words(inputs, tokenizers["WordPiece"], ["CITY", "?", "what"])
    assert [player.name for player in found] == ["what", "city", "?"]
    assert players.words(inputs, tokenizers["WordPiece"], []) == []
    cased = tokenizers["byte-level BPE"]("is Berlin a City", return_tensors="pt")
    assert [player.name for player in players.words(cased, tokenizers["byte-level BPE"], ["berlin", "CITY"])] == ["Berlin", "City"]


@pytest.mark.parametrize("chosen", [None, ["the", "city"], ["The", "the", "city"]])
def test_a_word_that_stands_twice_is_two_players(tokenizers, chosen):
    inputs = tokenizers["SentencePiece"]("the city the the city", return_tensors="pt")
    found = players.words(inputs, tokenizers["SentencePiece"], chosen)
    assert [player.name for player in found] == ["the", "city", "the (2)", "the (3)", "city (2)"]
    places = torch.stack([player.where for player in found]).long()
    assert int(places.sum(0).max()) == 1
    assert all(found[i].where.nonzero()[0] < found[i + 1].where.nonzero()[0] for i in range(4))


def test_padding_is_no_word_and_the_first_sample_says_which_words_there_are(tokenizers):
    tokenizer = tokenizers["WordPiece"]
    inputs = tokenizer(["a city", "what color is the seven"], return_tensors="pt", padding=True)
    found = players.words(inputs, tokenizer)
    assert [player.name for player in found] == ["a", "city"]
    assert all(player.where.shape == inputs["input_ids"][0].shape for player in found)


def test_another_input_and_another_baseline_can_be_named(tokenizers):
    tokenizer, token = tokenizers["WordPiece"], zl.baseline.token(7)
    ids = tokenizer("a city", return_tensors="pt")["input_ids"]
    found = players.words({"decoder_input_ids": ids}, tokenizer, input="decoder_input_ids", baseline=token)
    assert [(player.name, player.input) for player in found] == [("a", "decoder_input_ids"), ("city", "decoder_input_ids")]
    assert all(player.baseline is token for player in found)


def test_a_word_that_is_not_there_names_the_nearest(tokenizers):
    inputs = tokenizers["WordPiece"]("what color is the city ?", return_tensors="pt")
    with pytest.raises(NotFoundError, match=r"no word 'colour'; nearest: color; the text has no such word"):
        players.words(inputs, tokenizers["WordPiece"], ["what", "colour"])
    with pytest.raises(NotFoundError, match=r"no input 'ids'"):
        players.words(inputs, tokenizers["WordPiece"], input="ids")


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        ({"mask": 3, "unk": 2, "pad": 1}, "<mask> for every word"),
        ({"unk": 2, "pad": 1}, "<unk> for every word"),
        ({"pad": 0}, "<pad> for every word"),
    ],
)
def test_a_missing_word_is_the_mask_else_the_unknown_else_the_padding_token(tokens, name):
    named = {f"{which}_token": f"<{which}>" if which in tokens else None for which in ("mask", "unk", "pad")}
    named |= {f"{which}_token_id": tokens.get(which) for which in ("mask", "unk", "pad")}
    found = missing_word(SimpleNamespace(**named, all_special_ids=[*tokens.values(), 9]))
    assert found.name == name
    assert found.recipe.token == max(tokens.values())
    assert 9 in found.recipe.keep


def test_a_tokenizer_without_such_a_token_is_said():
    with pytest.raises(InputError, match="no mask, unknown or padding token; give baseline"):
        missing_word(SimpleNamespace(mask_token=None, pad_token=None))


def test_a_word_that_is_away_is_a_mask_token_to_the_model():
    """Every coalition of two words of a question of the zoo, asked by hand."""
    model, tokenizer, sample = zoo.load("digits-vqa"), zoo.tokenizer("digits-vqa"), zoo.samples("digits-vqa")[0]
    own = players.words(sample.inputs, tokenizer, ["color", "seven"])
    found = zl.logic(model, sample.inputs, target="cyan", players=own)
    for coalition, value in zip(found.coalitions.tolist(), found.values[0].tolist()):
        text = sample.question.text
        text = text if coalition & 1 else text.replace("color", "[MASK]")
        text = text if coalition & 2 else text.replace("seven", "[MASK]")
        with torch.no_grad():
            scores = model(**zoo.preprocess("digits-vqa", sample.image, text=text, pad=True)).question_answering_score
        assert value == pytest.approx(float(scores[0, model.config.label2id["cyan"]]), abs=1e-4)
    assert float(found.values.max() - found.values.min()) > 1


# --- regions ---------------------------------------------------------------------------------------------------------------------------


class Looks(nn.Module):
    """Reads two pictures and something else."""

    def forward(self, image, words=None, other=None):
        return image.mean((1, 2, 3))[:, None]


def picture(height, width, batch=2):
    return {"image": torch.randn(batch, 3, height, width)}


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 7), columns=st.integers(1, 7), height=st.integers(7, 33), width=st.integers(7, 33))
def test_cells_of_a_grid_hold_every_position_once(rows, columns, height, width):
    found = players.regions(Looks(), picture(height, width), players.grid(rows, columns))
    assert len(found) == rows * columns
    assert torch.equal(torch.stack([player.where.long() for player in found]).sum(0), torch.ones(height, width, dtype=torch.long))
    for player in found:  # a position's cell is the one that its centre lies in
        column, row = ord(player.name[0]) - ord("A"), int(player.name[1:]) - 1
        for y, x in player.where.nonzero().tolist():
            assert row <= (y + 0.5) / height * rows <= row + 1
            assert column <= (x + 0.5) / width * columns <= column + 1


def test_columns_are_letters_and_rows_numbers_from_the_upper_left():
    cells = players.grid(2, 3)
    assert list(cells) == ["A1", "B1", "C1", "A2", "B2", "C2"]
    assert cells["A1"] == (0, 0, 1 / 3, 0.5)
    assert cells["C2"] == (2 / 3, 0.5, 1, 1)
    assert list(players.grid(1, 26))[-1] == "Z1"
    assert list(players.grid(12, 1))[-1] == "A12"


@pytest.mark.parametrize(("rows", "columns"), [(0, 2), (2, 0), (-1, 1), (1, 27)])
def test_a_grid_that_cannot_be_named_is_refused(rows, columns):
    with pytest.raises(UsageError, match=f"a grid of {rows} x {columns} was asked; rows are 1 or more, columns 1 to 26"):
        players.grid(rows, columns)


def test_a_box_holds_the_positions_whose_centres_lie_in_it():
    """Left and top belong to a box, right and bottom to the next."""
    found = players.regions(Looks(), picture(4, 8), {"box": (0.1875, 0.125, 0.5, 0.625)})
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[0:2, 1:4] = True  # centres 0.125, 0.375 of 0.125, 0.375, 0.625, ... below; 0.1875 to 0.4375 across
    assert torch.equal(found[0].where, expected)
    assert (found[0].name, found[0].input, found[0].baseline) == ("box", "image", None)


def test_the_rest_is_all_that_no_box_holds():
    black = zl.baseline.zeros()
    found = players.regions(Looks(), picture(4, 8), {"a": (0, 0, 0.5, 1), "b": (0.75, 0, 1, 0.5)}, rest="rest", baseline=black)
    assert [player.name for player in found] == ["a", "b", "rest"]
    assert all(player.baseline is black for player in found)
    assert torch.equal(torch.stack([player.where.long() for player in found]).sum(0), torch.ones(4, 8, dtype=torch.long))
    assert int(found[2].where.sum()) == 4 * 8 - 16 - 4
    whole = players.regions(Looks(), picture(4, 8), players.grid(2, 2), rest="rest")
    assert [player.name for player in whole] == ["A1", "B1", "A2", "B2"]


@pytest.mark.parametrize("box", [(1.2, 0, 1.5, 1), (0.5, 0, 0.4, 1), (0, 0, 0.05, 1), (float("nan"), 0, 1, 1)])
def test_a_box_that_holds_nothing_is_said(box):
    with pytest.raises(InputError, match=r"region 'r' .* holds none of the 4 x 8 positions of 'image'"):
        players.regions(Looks(), picture(4, 8), {"r": box})


def test_regions_of_features_on_a_grid_are_their_cells_in_reading_order():
    model, sample = zoo.load("digits-vqa"), zoo.samples("digits-vqa")[0]
    found = {player.name: player for player in players.regions(model, sample.inputs, players.grid(2, 4))}
    assert {player.input for player in found.values()} == {"visual_feats"}
    left, top, right, bottom = sample.inputs["visual_pos"][0].T
    for name, box in players.grid(2, 4).items():
        inside = (left >= box[0]) & (top >= box[1]) & (right <= box[2]) & (bottom <= box[3])
        assert torch.equal(found[name].where, inside)
        assert int(inside.sum()) == 8


def test_the_picture_is_the_one_input_that_lies_on_a_grid():
    model, sample = zoo.load("digits-vqa"), zoo.samples("digits-vqa")[0]
    assert picture_of(model, Inputs.of(model, sample.inputs)) == ("visual_feats", (8, 8))
    clip = zoo.samples("digits-clip")[0].inputs
    assert picture_of(zoo.load("digits-clip"), Inputs.of(zoo.load("digits-clip"), clip)) == ("pixel_values", (64, 64))
    assert picture_of(Looks(), Inputs.of(Looks(), {**picture(4, 8), "words": torch.ones(2, 3, 5)})) == ("image", (4, 8))


def test_of_two_pictures_one_is_named():
    both = {**picture(4, 8), "other": torch.randn(2, 1, 6, 5)}
    with pytest.raises(InputError, match="one input that is a picture; found image, other among image, other; give zl.Player records"):
        players.regions(Looks(), both, players.grid(2, 2))
    found = players.regions(Looks(), both, players.grid(2, 2), input="other")
    assert {(player.input, tuple(player.where.shape)) for player in found} == {("other", (6, 5))}
    with pytest.raises(NotFoundError, match=r"no input 'otter'; nearest: other"):
        players.regions(Looks(), both, players.grid(2, 2), input="otter")


@pytest.mark.parametrize("asked", [None, "words"])
def test_a_model_without_a_picture_is_said(asked):
    given = {"image": torch.ones(2, 3, dtype=torch.long), "words": torch.randn(2, 6, 12)}
    with pytest.raises(InputError, match="found none among image, words"):
        picture_of(Looks(), Inputs.of(Looks(), given), asked)


def test_a_place_is_laid_as_its_input_is():
    inside = torch.tensor([[True, False, True], [False, False, True]])
    assert torch.equal(laid(inside, torch.zeros(1, 3, 2, 3)), inside)
    assert torch.equal(laid(inside, torch.zeros(1, 6, 9)), torch.tensor([True, False, True, False, False, True]))


def test_regions_that_are_away_are_black_to_the_model():
    """Every coalition of the two halves of a photograph, asked by hand."""
    model, sample = zoo.load("digits-vit"), zoo.samples("digits-vit")[0]
    halves = players.regions(model, sample.inputs, players.grid(1, 2), baseline=zl.baseline.black())
    found = zl.logic(model, sample.inputs, target="seven", players=halves)
    pixels = sample.inputs["pixel_values"]
    for coalition, value in zip(found.coalitions.tolist(), found.values[0].tolist()):
        seen = pixels.clone()
        for half, bit in ((slice(0, 32), 1), (slice(32, 64), 2)):
            if not coalition & bit:
                seen[..., half] = -1  # black
        with torch.no_grad():
            assert value == pytest.approx(float(model(seen).logits[0, 7]), abs=1e-4)


@pytest.mark.parametrize("module", ["paradigm.players", "model.words"])
def test_examples_in_the_docstrings_run(module):
    import importlib

    result = doctest.testmod(importlib.import_module(f"zeroline.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def bert():
    """BERT's own tokenizer, whose decoder takes away the space before a sign."""
    from transformers import BertTokenizer

    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "color", "is", "the", "sev", "##en", "?", ",", "isn", "'", "t")
    return BertTokenizer(vocab={word: n for n, word in enumerate(words)})


def test_signs_are_apart_where_a_tokenizer_writes_them_without_a_space():
    tokenizer = bert()
    inputs = tokenizer("what, color is the seven?", return_tensors="pt")
    assert [player.name for player in players.words(inputs, tokenizer)] == ["what", "color", "is", "the", "seven"]


def test_an_unknown_word_is_away_when_its_player_is():
    tokenizer, model, sample = zoo.tokenizer("digits-vqa"), zoo.load("digits-vqa"), zoo.samples("digits-vqa")[0]
    inputs = zoo.preprocess("digits-vqa", sample.image, text="what color is the elephant ?")
    own = players.words(inputs, tokenizer)
    assert len(own) == 5
    found = zl.logic(model, inputs, target="cyan", players=[own[-1], zl.Player("image", "visual_feats")])
    with torch.no_grad():
        masked = model(**zoo.preprocess("digits-vqa", sample.image, text="what color is the [MASK] ?")).question_answering_score
    assert float(found.values[0, 2]) == pytest.approx(float(masked[0, model.config.label2id["cyan"]]), abs=1e-4)
