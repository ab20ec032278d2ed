"""``zeroline attend`` and ``zeroline trace`` as a user meets them: images, words, both, and what errors look like."""

import json

import numpy as np
import pytest
import torch

from cli.test_cli import IMAGE, run
from zeroline import Relevance

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "few", "words", "red", "seven"]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


@pytest.fixture(scope="module")
def reader(tokenizer, tmp_path_factory):
    """A text classifier in a folder, as Hugging Face saves one."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("reader")
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=2, vocab_size=len(WORDS), num_labels=2)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def writer(tokenizer, tmp_path_factory):
    """A language model in a folder."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("writer")
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=len(WORDS), n_positions=32, bos_token_id=2, eos_token_id=3)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seer(tokenizer, tmp_path_factory):
    """A model of words and a picture in a folder."""
    from transformers import ViltConfig, ViltForQuestionAnswering, ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("seer")
    torch.manual_seed(0)
    config = ViltConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=2, vocab_size=len(WORDS), image_size=32, patch_size=8,
        num_labels=3, max_position_embeddings=16, modality_type_vocab_size=2,
    )  # fmt: skip
    ViltForQuestionAnswering(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_attend_prints_the_record_and_writes_three_files(capsys, tmp_path):
    status, out, _ = run(capsys, "attend", IMAGE, "--out", tmp_path)
    assert status == 0
    assert "logit of seven" in out
    assert "token 0 of vit.layers.3.attention" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.png", "record.json", "relevance.safetensors"]
    found = Relevance.load(tmp_path / "relevance.safetensors")
    assert found.to_dict() == json.loads((tmp_path / "record.json").read_text())
    assert found.grid("pixel_values").shape == (1, 8, 8)


def test_options_reach_the_method(capsys, tmp_path):
    status, out, _ = run(
        capsys, "attend", IMAGE, "--out", tmp_path, "--json", "--target", "seven - one", "--correction", "signed", "--calls", "2,3", "--coverage", "incomplete"
    )  # fmt: skip
    assert status == 0
    record = json.loads(out)
    assert record["target"] == ["logit of seven - one"]
    assert record["corrected"] == [2, 3]
    assert (record["settings"]["correction"], record["settings"]["coverage"]) == ("signed", "incomplete")


def test_words_are_printed_and_drawn(capsys, tmp_path, reader):
    status, out, _ = run(capsys, "attend", "--text", "a red seven", "--model", f"hf:{reader}", "--out", tmp_path)
    assert status == 0
    assert "input_ids: [CLS] a red seven [SEP]" in " ".join(out.split())
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert Relevance.load(tmp_path / "relevance.safetensors").by_source["input_ids"].shape == (1, 5)


def test_a_language_model_explains_its_next_token(capsys, tmp_path, writer):
    status, out, _ = run(capsys, "attend", "--text", "a few", "--model", str(writer), "--out", tmp_path)
    assert status == 0
    assert "log-probability of token" in out
    status, _, err = run(capsys, "attend", "--text", "a few", "--model", str(writer), "--out", tmp_path, "--target", "seven")
    assert status == 2
    assert "predicts tokens" in err


def test_words_and_a_picture_each_get_their_own(capsys, tmp_path, seer):
    status, out, _ = run(capsys, "attend", IMAGE, "--text", "a red seven", "--model", f"hf:{seer}", "--out", tmp_path)
    assert status == 0
    assert "[CLS] a red seven [SEP]" in " ".join(out.split())
    found = Relevance.load(tmp_path / "relevance.safetensors")
    assert set(found.by_source) == {"input_ids", "pixel_values"}
    assert found.grid("pixel_values").shape == (1, 4, 4)


def test_trace_lists_calls_and_streams(capsys, seer):
    status, out, _ = run(capsys, "trace", "zoo:digits-vit")
    assert status == 0
    assert "vit.layers.3.attention" in out
    assert "stream pixel_values: 65 tokens, 1 learned first, a grid of 8 x 8" in out
    status, out, _ = run(capsys, "trace", f"hf:{seer}", "--format", "json")
    assert [c["queries"] for c in json.loads(out)["calls"]] == ["input_ids + pixel_values"] * 2
    status, out, _ = run(capsys, "trace", "zoo:digits-vit", "--format", "mermaid")
    assert out.startswith("flowchart LR")
    assert "s0 --> c0" in out
    assert "c0 --> c1" in out
    assert "c0 --> c2" not in out  # through c1 already


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["attend"], "reads image; give an image file"),
        (["attend", IMAGE, "--text", "a"], "reads no text"),
        (["attend", IMAGE, "--calls", "9"], "no call 9; the model has 4"),
        (["attend", IMAGE, "--calls", "vit.layers.9.attention"], "nearest: vit.layers"),
        (["attend", IMAGE, "--correction", "up"], "possible: none, positive"),
        (["attend", IMAGE, "--grid", "9x9"], "a grid of 9 x 9"),
        (["trace", "zoo:digits-vit", "--format", "xml"], "possible: table, json, mermaid"),
        (["trace", "zoo:digits-vot"], "nearest: digits-vit"),
    ],
)
def test_errors_are_one_line_with_status_2(capsys, tmp_path, arguments, words):
    extra = ["--out", tmp_path / "new"] if arguments[0] == "attend" else []
    status, _, err = run(capsys, *arguments, *extra)
    assert status == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_reader_of_words_asks_for_text(capsys, tmp_path, reader):
    status, _, err = run(capsys, "attend", IMAGE, "--model", f"hf:{reader}", "--out", tmp_path)
    assert status == 2
    assert "reads no image, only text" in err


def test_the_figure_shows_the_heat_where_the_relevance_is(tmp_path):
    """The heat map's pixels, read back from the drawn figure, are darkest at the patch with the most relevance."""
    from zeroline.relevance import Tokens
    from zeroline.report import figure, relevance_figure

    heat = torch.zeros(1, 13)
    heat[0, 1 + 7] = 1.0  # patch (1, 3) of 3 x 4, after one class token
    record = Relevance(
        {"image": heat, "ids": torch.tensor([[0.1, -0.9]])}, {"image": heat[None], "ids": torch.zeros(1, 1, 2)},
        {"image": Tokens(1, (3, 4)), "ids": Tokens()}, "attention_relevance", ("f",), torch.zeros(1).double(), (("a", "homogenous"),), (0,), ("token 0 of a",),
    )  # fmt: skip
    drawn = relevance_figure.sources(record, pictures={"image": np.zeros((30, 40, 3), np.float32)}, words={"ids": ["up", "down"]})
    assert [(s.name, s.is_map, s.words) for s in drawn] == [("image", True, ()), ("ids", False, ("up", "down"))]
    assert drawn[0].heat[1, 3] == 1
    picture = relevance_figure.figure(record, drawn)
    axes = [axis for part in picture.subfigs for axis in part.axes]
    shown = next(image for axis in axes for image in axis.images)
    assert np.unravel_index(np.argmax(shown.get_array()), (3, 4)) == (1, 3)
    overlay = axes[1].images[0].get_array()
    assert overlay[15, 35, 0] - overlay[15, 35, 2] > 0.2  # red over the patch
    assert abs(overlay[5, 5, 0] - overlay[5, 5, 2]) < 0.01  # grey elsewhere
    red, _, blue = relevance_figure.shade(-0.9, 0.9)
    assert blue > red
    figure.save(picture, tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 10_000
