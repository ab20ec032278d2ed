"""Sound files: length, pitch and level survive the way to a model's rate, what was done is said, and bad files are clear errors."""

import math
import sys
import wave

import numpy as np
import pytest
import soundfile

from zeroline.errors import InputError, LoadError, NonFiniteError, NotFoundError, UsageError
from zeroline.model.audio import Sound, read_audio

HEARD = 16000
TONE = 440.0


def tone(rate, seconds=0.5, frequency=TONE, level=0.5):
    return level * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)


def written(path, samples, rate, **options):
    soundfile.write(path, samples, rate, **options)
    return path


def loudest_frequency(samples, rate):
    """The peak of the spectrum in Hz, between bins by a parabola through the logarithms around it."""
    size = np.log(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) + 1e-12)
    k = int(size.argmax())
    left, mid, right = size[k - 1 : k + 2]
    return (k + (left - right) / (2 * (left - 2 * mid + right))) * rate / len(samples)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("found", [8000, 11025, 16000, 22050, 44100, 48000, 44101])
def test_a_tone_keeps_its_length_and_pitch_at_the_new_rate(tmp_path, found, suffix):
    sound = read_audio(written(tmp_path / f"tone.{suffix}", tone(found), found), HEARD)
    assert sound.samples.dtype == np.float32
    assert sound.samples.shape == (math.ceil(int(found * 0.5) * HEARD / found),)
    assert (sound.rate, sound.found_rate, sound.channels, sound.clipped) == (HEARD, found, 1, 0)
    assert sound.seconds == pytest.approx(0.5, abs=2 / HEARD)
    assert loudest_frequency(sound.samples, HEARD) == pytest.approx(TONE, abs=0.1)


@pytest.mark.parametrize("found", [8000, 22050, 44100, 48000])
@pytest.mark.parametrize("rate", [8000, 16000, 24000])
def test_resampling_gives_the_tone_as_it_is_at_that_rate(tmp_path, found, rate):
    """Against the formula of the tone itself, away from the ends."""
    sound = read_audio(written(tmp_path / "tone.wav", tone(found), found, subtype="FLOAT"), rate)
    expected = tone(rate, 0.6)[: len(sound.samples)]
    assert np.abs(sound.samples - expected)[200:-200].max() < 0.005


def test_what_the_lower_rate_cannot_hold_is_taken_out_and_not_folded_back(tmp_path):
    both = tone(44100) + tone(44100, frequency=11000)  # 11 kHz would come back as 5 kHz at 16 kHz
    sound = read_audio(written(tmp_path / "two.wav", both, 44100, subtype="FLOAT"), HEARD)
    assert np.abs(sound.samples - tone(HEARD)[: len(sound.samples)])[200:-200].max() < 0.005


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_channels_become_their_mean(tmp_path, channels):
    each = np.stack([tone(HEARD, frequency=TONE * (c + 1), level=0.9 - 0.1 * c) for c in range(channels)], 1)
    sound = read_audio(written(tmp_path / "many.wav", each, HEARD, subtype="FLOAT"), HEARD)
    assert np.array_equal(sound.samples, each.astype(np.float32).mean(1, dtype=np.float64).astype(np.float32))
    assert sound.channels == channels
    assert sound.note == ("" if channels == 1 else f"{channels} channels averaged")


def test_opposite_channels_cancel(tmp_path):
    found = read_audio(written(tmp_path / "opposite.wav", np.stack([tone(44100), -tone(44100)], 1), 44100, subtype="FLOAT"), HEARD)
    assert np.abs(found.samples).max() < 1e-6


@pytest.mark.parametrize(("width", "least"), [(1, -128), (2, -(2**15)), (3, -(2**23)), (4, -(2**31))])
def test_whole_numbers_of_any_width_come_out_in_minus_one_to_one(tmp_path, width, least):
    levels = [least, least // 2, 0, -least // 4, -least - 1]
    with wave.open(str(tmp_path / "whole.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(width), file.setframerate(HEARD)
        file.writeframes(b"".join(int(v + 128 if width == 1 else v).to_bytes(width, "little", signed=width > 1) for v in levels))
    sound = read_audio(tmp_path / "whole.wav", HEARD)
    assert sound.samples == pytest.approx(np.array(levels) / -least, abs=1e-7)
    assert sound.note == ""


def test_nothing_is_said_where_nothing_is_changed(tmp_path):
    given = tone(HEARD).astype(np.float32)
    sound = read_audio(written(tmp_path / "same.wav", given, HEARD, subtype="FLOAT"), HEARD)
    assert np.array_equal(sound.samples, given)
    assert sound.note == ""


def test_the_note_says_everything_that_was_done(tmp_path):
    assert read_audio(written(tmp_path / "mono.flac", tone(44100), 44100), HEARD).note == "resampled from 44100 to 16000 Hz"
    stereo = np.stack([tone(44100)] * 2, 1)
    assert read_audio(written(tmp_path / "stereo.flac", stereo, 44100), HEARD).note == "resampled from 44100 to 16000 Hz; 2 channels averaged"
    assert read_audio(tmp_path / "stereo.flac", 44100).note == "2 channels averaged"


def test_what_is_beyond_one_is_clipped_and_counted(tmp_path):
    sound = read_audio(written(tmp_path / "loud.wav", np.array([0.5, 1.5, -3.0, 1.0, -1.0]), HEARD, subtype="FLOAT"), HEARD)
    assert sound.samples.tolist() == [0.5, 1, -1, 1, -1]
    assert sound.note == "2 of 5 samples clipped to -1..1"


def test_a_clip_of_less_than_a_level_is_no_change(tmp_path):
    sound = read_audio(written(tmp_path / "edge.wav", np.array([0.5, 1 + 1e-5]), HEARD, subtype="FLOAT"), HEARD)
    assert sound.samples.tolist() == [0.5, 1]
    assert sound.note == ""


def test_a_sound_of_one_sample_is_a_sound(tmp_path):
    sound = read_audio(written(tmp_path / "click.wav", np.array([0.5]), 8000), HEARD)
    assert sound.samples.shape == (2,)


def test_a_path_may_be_a_string(tmp_path):
    assert read_audio(str(written(tmp_path / "tone.wav", tone(HEARD), HEARD)), HEARD).rate == HEARD


def test_a_sound_is_frozen():
    sound = Sound(np.zeros(8000, np.float32), HEARD, HEARD, 1)
    assert sound.seconds == 0.5
    with pytest.raises(AttributeError):
        sound.rate = 8000


def test_no_such_file_names_the_nearest_of_the_folder(tmp_path):
    for name in ("bell.wav", "drum.FLAC", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(NotFoundError, match=r"^no sound file 'bel\.wav'; nearest: bell\.wav; in '") as caught:
        read_audio(tmp_path / "bel.wav", HEARD)
    assert "notes" not in str(caught.value)
    with pytest.raises(NotFoundError, match=r"no sound file 'x\.ogg'; possible: bell\.wav, drum\.FLAC"):
        read_audio(tmp_path / "x.ogg", HEARD)


@pytest.mark.parametrize("inside", ["", "nowhere/"])
def test_no_such_file_where_there_are_none(tmp_path, inside):
    with pytest.raises(NotFoundError, match=r"^no sound file '.*bell\.wav'$"):
        read_audio(tmp_path / f"{inside}bell.wav", HEARD)


def test_a_folder_is_no_sound(tmp_path):
    with pytest.raises(NotFoundError, match="is a folder; give one sound file"):
        read_audio(tmp_path, HEARD)


@pytest.mark.parametrize(("name", "content"), [("words.wav", b"hello"), ("empty.wav", b""), ("zeros.flac", bytes(4000)), ("bytes.raw", bytes(100))])
def test_a_file_that_is_no_sound_is_said_to_be_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoadError, match=rf"^cannot read '.*{name}' as a sound \(\.wav, \.flac, \.ogg\): [\w ]+$"):
        read_audio(tmp_path / name, HEARD)


@pytest.mark.parametrize("suffix", ["flac", "ogg"])
def test_half_a_file_is_an_error_and_not_half_a_sound(tmp_path, suffix):
    whole = written(tmp_path / f"whole.{suffix}", tone(44100, 2), 44100).read_bytes()
    (tmp_path / f"half.{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoadError, match="cannot read"):
        read_audio(tmp_path / f"half.{suffix}", HEARD)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_without_samples_is_empty(tmp_path, channels):
    with pytest.raises(InputError, match=r"the sound '.*none\.wav' is empty: it has no samples"):
        read_audio(written(tmp_path / "none.wav", np.zeros((0, channels)), HEARD), HEARD)


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_samples_that_are_no_numbers_are_counted_and_the_first_is_named(tmp_path, bad, word):
    samples = np.stack([tone(8000), tone(8000)], 1)
    samples[[2000, 3000], 1] = bad
    path = written(tmp_path / "broken.wav", samples, 8000, subtype="FLOAT")
    with pytest.raises(NonFiniteError, match=rf"broken\.wav' is {word} at 0\.25 s \(sample 2000\); 2 of its 4000 samples are not finite"):
        read_audio(path, HEARD)


@pytest.mark.parametrize("rate", [0, -1, 16000.0, "16000", True, None])
def test_a_rate_is_a_whole_number(tmp_path, rate):
    with pytest.raises(UsageError, match="a rate is a whole number of samples per second"):
        read_audio(written(tmp_path / "tone.wav", tone(HEARD), HEARD), rate)


@pytest.mark.parametrize(("module", "library"), [("soundfile", "soundfile"), ("scipy.signal", "scipy")])
def test_a_missing_library_is_named_with_how_to_get_it(tmp_path, monkeypatch, module, library):
    path = written(tmp_path / "tone.wav", tone(44100), 44100)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LoadError, match=rf"^{library} cannot be imported .*pip install 'zeroline\[audio\]'$"):
        read_audio(path, HEARD)


def test_scipy_is_not_asked_where_the_rate_is_right(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.signal", None)
    assert read_audio(written(tmp_path / "tone.wav", tone(HEARD), HEARD), HEARD).note == ""
