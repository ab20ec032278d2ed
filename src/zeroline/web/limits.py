"""How much a request may bring: bytes, pixels, letters, seconds; and the picture that an upload holds.

An upload's kind is what its bytes say, whatever it is called. Its size is read from its head: a file that would unfold into billions of pixels is
refused before it does.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from zeroline.errors import InputError, UsageError
from zeroline.model.pictures import eight_bit, upright

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
WORKED_ON = 1024  # pixels along a side: a larger picture is brought down


@dataclass(frozen=True)
class Limits:
    """``megabytes`` of a file, ``megapixels`` of a picture, ``letters`` of a text, ``seconds`` of an answer, ``waiting`` requests in the queue."""

    megabytes: float = 10.0
    megapixels: float = 25.0
    letters: int = 300
    seconds: float = 120.0
    waiting: int = 32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"{name.replace('_', ' ')} {value} was asked; it is a limit, above 0")

    def text(self, given: str | None) -> str:
        """A text without the white space around it. Raises InputError where it is too long."""
        found = (given or "").strip()
        if len(found) > self.letters:
            raise InputError(f"the text has {len(found):,} letters; {self.letters:,} are possible here")
        return found

    def picture(self, content: bytes) -> tuple[Any, str]:
        """A PIL image in RGB, and a note where something was done to it. Raises InputError for what is no picture, or too large."""
        from PIL import Image, UnidentifiedImageError

        if not content:
            raise InputError("the file is empty")
        if len(content) > self.megabytes * 2**20:
            raise InputError(f"the file has {len(content) / 2**20:.1f} MB; {self.megabytes:g} are possible here")
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
                width, height = opened.size
                if width * height > self.megapixels * 1e6:
                    raise InputError(f"the picture is {width:,} x {height:,}; up to {self.megapixels:g} million pixels are possible here")
                opened.load()
                turned = upright(opened)
                found, lost = eight_bit(turned)
        except UnidentifiedImageError:
            raise InputError(f"the file is no picture that is read here; possible are {', '.join(FORMATS)}") from None
        except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as problem:
            raise InputError(f"the picture cannot be read: {problem}") from None
        notes = [lost] if lost else []
        if turned is not opened:
            notes.append("turned upright, as its EXIF orientation says")
            width, height = turned.size
        if max(found.size) > WORKED_ON:
            found.thumbnail((WORKED_ON, WORKED_ON))
            notes.append(f"brought down from {width:,} x {height:,} to {found.width} x {found.height}")
        return found, "; ".join(notes)
