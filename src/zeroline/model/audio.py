"""Sound files as one channel at the rate that a model hears, and in words what had to be done to them.

Holds ``Sound`` and ``read_audio``: file, rate and channels, nothing that a model makes of it (spectrograms are its feature extractor's). A model
hears 16000 Hz as Whisper does, a recording has what it has: what was resampled, averaged or clipped is said, never done silently. Needs soundfile and
scipy, which are loaded when used: ``pip install 'zeroline[audio]'``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeroline.errors import InputError, LoadError, NonFiniteError, NotFoundError, UsageError

SUFFIXES = (".wav", ".flac", ".ogg")
LEVEL = 2.0**-15  # of a 16-bit sound: less than one is no change


@dataclass(frozen=True, eq=False)
class Sound:
    """``samples`` [n], float32 in -1..1, ``rate`` of them per second; the file had ``channels`` at ``found_rate``.

    ``clipped`` counts samples that were beyond -1..1 by a 16-bit level or more.
    """

    samples: NDArray[np.float32]
    rate: int
    found_rate: int
    channels: int
    clipped: int = 0

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate

    @property
    def note(self) -> str:
        """What was done to the file's sound, in words; "" where nothing was.

        >>> Sound(np.zeros(160, np.float32), 16000, 44100, 2).note
        'resampled from 44100 to 16000 Hz; 2 channels averaged'
        """
        parts = [f"resampled from {self.found_rate} to {self.rate} Hz"] if self.found_rate != self.rate else []
        parts += [f"{self.channels} channels averaged"] if self.channels > 1 else []
        parts += [f"{self.clipped} of {len(self.samples)} samples clipped to -1..1"] if self.clipped else []
        return "; ".join(parts)


def read_audio(path: Path, rate: int) -> Sound:
    """The sound of a wav, flac or ogg file: the mean of its channels, at ``rate`` samples per second.

    ``n`` samples become ``ceil(n * rate / found_rate)`` through a polyphase filter, which takes out what is above half of the lower rate
    (scipy.signal.resample_poly). A wav file that ends before its header says is read to its end.

    Raises:
        NotFoundError: no such file (the nearest of its folder named), or a folder.
        LoadError: the file is no sound, or soundfile or scipy is not installed.
        InputError: a sound without samples. NonFiniteError: a sample that is NaN or infinite.
        UsageError: a rate that is no whole number of 1 or more.
    """
    if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
        raise UsageError(f"rate={rate!r} was asked; a rate is a whole number of samples per second, e.g. 16000")
    channels, found_rate = _read(_existing(Path(path)))
    if not len(channels):
        raise InputError(f"the sound {str(path)!r} is empty: it has no samples")
    wrong = np.flatnonzero(~np.isfinite(channels).all(1))
    if len(wrong):
        values = channels[wrong[0]]
        where = f"{values[~np.isfinite(values)][0]} at {wrong[0] / found_rate:.4g} s (sample {wrong[0]})"
        raise NonFiniteError(f"the sound {str(path)!r} is {where}; {len(wrong)} of its {len(channels)} samples are not finite")
    mono = _resampled(channels.mean(1, dtype=np.float64), found_rate, rate)
    beyond = int((np.abs(mono) >= 1 + LEVEL).sum())
    return Sound(np.clip(mono, -1, 1).astype(np.float32), rate, found_rate, channels.shape[1], beyond)


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise NotFoundError(f"{str(path)!r} is a folder; give one sound file")
    if not path.exists():
        near = sorted(p.name for p in path.parent.iterdir() if p.suffix.lower() in SUFFIXES) if path.parent.is_dir() else []
        missing = NotFoundError(f"no sound file {str(path)!r}")
        raise NotFoundError.among("sound file", path.name, near, f"in {str(path.parent)!r}") if near else missing
    return path


def _read(path: Path) -> tuple[NDArray[np.float32], int]:
    """[samples, channels] in the file's own rate, and that rate."""
    try:
        import soundfile
    except (ImportError, OSError) as problem:  # OSError: its C library is missing
        raise _missing("soundfile", problem) from problem
    try:
        found, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as problem:  # TypeError: a file without a header (.raw)
        reason = getattr(problem, "error_string", None) or str(problem)
        raise LoadError(f"cannot read {str(path)!r} as a sound ({', '.join(SUFFIXES)}): {reason.strip().rstrip('.')}") from None
    return found, int(rate)


def _resampled(samples: NDArray[np.float64], found: int, wanted: int) -> NDArray[np.float64]:
    if found == wanted:
        return samples
    try:
        from scipy.signal import resample_poly
    except ImportError as problem:
        raise _missing("scipy", problem) from problem
    common = gcd(found, wanted)
    changed: NDArray[np.float64] = resample_poly(samples, wanted // common, found // common)
    return changed


def _missing(library: str, problem: Any) -> LoadError:
    return LoadError(f"{library} cannot be imported ({problem}); sound files need it: pip install 'zeroline[audio]'")
