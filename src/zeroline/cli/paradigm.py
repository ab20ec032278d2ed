"""What `mechanism`, `ground` and `logic` share: a model of several sources, what it is asked about, and what it writes by itself.

Models that write (Whisper, Marian, TrOCR) are let write greedily; each word of it is then a target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from zeroline.baseline import BaselineLike
from zeroline.cli import show
from zeroline.errors import TargetError, UsageError
from zeroline.model.audio import read_audio
from zeroline.model.loading import Sourced
from zeroline.model.words import words_of
from zeroline.paradigm.players import missing
from zeroline.report.figure import Picture
from zeroline.reporting import levels, picture_among
from zeroline.reporting import words_of as words_of_inputs
from zeroline.seen import IMAGE, Seen
from zeroline.spelling.models import load_sourced
from zeroline.spelling.questions import sources_of
from zeroline.spelling.sources import open_image
from zeroline.target import TargetLike, sequence

ImageOrNone = Annotated[Path | None, typer.Argument(help="The image file; left out for models that read none.")]
Text = Annotated[str | None, typer.Option(help="The text or question, for models that read one.")]
Passage = Annotated[str | None, typer.Option(help="A second text, for cross-encoders: --text is the query, this the passage.")]
Audio = Annotated[Path | None, typer.Option(help="A sound file (wav, flac, ogg), for models that listen; resampled where its rate is another.")]
Correction = Annotated[str, typer.Option(help="positive, absolute, negative, signed or none.")]
MOST_WRITTEN = 60  # tokens that a model is let write


@dataclass(frozen=True)
class Given:
    """A model with inputs, and the picture to draw on (None: there is none); ``seconds`` that a sound lasts, and that all its frames do."""

    sourced: Sourced
    inputs: Mapping[str, Any]
    picture: Picture | None
    image: Any | None = None
    text: Any | None = None
    seconds: float | None = None

    @property
    def ids(self) -> dict[str, tuple[str, ...]]:
        """Tokens as text, of the inputs that are ids."""
        return words_of_inputs(self.sourced, self.inputs)

    def seen(self, **facts: Any) -> Seen:
        """What a figure needs of it: the picture, and the words."""
        return Seen(levels({IMAGE: self.picture}), self.ids, facts=facts)

    def baselines(self, image: str) -> dict[str, BaselineLike]:
        """What stands for absent words (mask, else unknown, else padding token) and for an absent picture."""
        from zeroline.baseline import by_name

        if image.partition("(")[0].strip() in ("mean_of", "distribution"):
            raise UsageError(
                f"--baseline {image!r} was given; here it is one that needs no folder: zeros, black, mean, blur(8), constant(0.5), noise(0)"
            )
        return missing(self.sourced.model, self.inputs, self.sourced.tokenizer, by_name(image))


def given(model: str, image: Path | None, text: str | None, passage: str | None, audio: Path | None, *, trust_remote_code: bool) -> Given:
    """Load the model and what it reads; an error where one is missing or means nothing to it."""
    sourced = load_sourced(model, trust_remote_code=trust_remote_code)
    if "audio" in sourced.reads or audio is not None:
        if sourced.hear is None:
            raise UsageError(f"{sourced.name!r} reads no audio, only {' and '.join(sourced.reads)}")
        if audio is None:
            raise UsageError(f"{sourced.name!r} reads audio; give --audio FILE")
        if image is not None or text is not None:
            raise UsageError(f"{sourced.name!r} reads audio alone; an image or --text means nothing to it")
        sound = read_audio(audio, sourced.rate)
        if sound.note:
            show.notes.print(f"note: {audio.name}: {sound.note}", markup=False)
        return Given(sourced, sourced.hear(sound.samples), None, seconds=sound.seconds)
    opened = None if image is None else open_image(image)
    if passage is not None and (text is None or sourced.tokenizer is None or opened is not None):
        raise UsageError("--passage goes with --text, for a model that reads two texts and no image")
    sources_of(sourced, opened, text)
    inputs = sourced.prepare(opened, (text, passage) if passage is not None else text)
    picture = picture_among(sourced.model, inputs)
    if picture is None and opened is not None:
        picture = np.asarray(opened, dtype=np.float32) / np.float32(255)
    return Given(sourced, inputs, picture, opened, text)


def writes(asked: Given) -> bool:
    """Does the model write a text of its own from what it reads?"""
    return asked.sourced.predicts_tokens and bool(getattr(asked.sourced.model.config, "is_encoder_decoder", False))


@torch.no_grad()
def written(asked: Given) -> tuple[Given, dict[str, TargetLike]]:
    """What a model that writes does write, greedily: the inputs with it in the decoder, and a target per word of it."""
    model, tokenizer = asked.sourced.model, asked.sourced.tokenizer
    if tokenizer is None:
        raise UsageError(f"{asked.sourced.name!r} writes tokens, and has no tokenizer to say what they are")
    start = {n: v for n, v in asked.inputs.items() if n != "decoder_input_ids"}
    kept = torch.random.get_rng_state()
    ids = model.generate(**start, max_new_tokens=MOST_WRITTEN, do_sample=False, num_beams=1)  # type: ignore[operator]
    torch.random.set_rng_state(kept)
    targets: dict[str, TargetLike] = {}
    for word, numbers in words_of(tokenizer, ids[0].tolist()):
        if numbers[0] == 0:
            continue  # the first token is given, not written
        name = word
        while name in targets:
            name += " "  # a word that is written twice
        targets[name] = sequence([int(ids[0, n]) for n in numbers], numbers[0] - 1)
    if not targets:
        raise TargetError(f"{asked.sourced.name!r} writes nothing here")
    inputs = {**asked.inputs, "decoder_input_ids": ids[:, :-1]}
    return replace(asked, inputs=inputs), targets
