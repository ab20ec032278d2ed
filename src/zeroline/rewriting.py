"""A picture whose class was rewritten: both pictures, how far apart they are, what the model says of each, and what the change survives.

Holds the ``Rewriting`` record. Our reading of Cui, Fan & Chen 2026 ("guided attention"): what a Vision Transformer looks at and what a person
looks at differ, and the gap is wide enough to change a class by pixels that nobody sees. Finding the picture is ``zeroline.guided``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroline import records
from zeroline.comparison import aligned
from zeroline.errors import UsageError
from zeroline.relevance import Relevance

FORMAT = 1
KIND = "rewriting"
BEFORE, AFTER = "before", "after"
FILES = ("original.png", "rewritten.png", "rewriting.safetensors", "record.json")


@dataclass(frozen=True)
class Survival:
    """The model's answers after something ordinary was done to both pictures, as labels; ``kept``: is the rewritten one still of the new class?"""

    original: str
    rewritten: str
    kept: bool


@dataclass(frozen=True, eq=False)
class Rewriting:
    """One picture and its rewritten copy, both as they are on disk: uint8 [3, height, width].

    ``own`` and ``to`` are the class before and the class asked for; ``answer`` is what the model says of the saved picture, and ``success`` whether
    it is ``to``. ``probabilities[BEFORE]["own"]`` and so on; ``psnr`` (dB), ``ssim``, ``linf`` and ``l2`` are of pixels in 0..1.
    ``touched`` of the cells of ``grid`` hold a changed pixel. ``tried``: (epsilon, success) of each budget that was tried for the smallest.
    ``evaluations`` are gradient evaluations, ``judged`` times that a saved picture was read back and asked about.
    """

    original: Tensor
    rewritten: Tensor
    own: str
    to: str
    answer: str
    success: bool
    probabilities: Mapping[str, Mapping[str, float]]
    psnr: float
    ssim: float
    linf: float
    l2: float
    touched: int
    grid: tuple[int, int]
    evaluations: int
    judged: int
    budget: Mapping[str, float]
    settings: Mapping[str, Any]
    survival: Mapping[str, Survival] = field(default_factory=dict)
    tried: tuple[tuple[float, bool], ...] = ()
    relevance: Mapping[str, Relevance] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def image(self) -> Any:
        """The rewritten picture as a PIL image."""
        from PIL import Image

        return Image.fromarray(self.rewritten.permute(1, 2, 0).contiguous().numpy())

    @property
    def difference(self) -> Tensor:
        """Rewritten less original in levels of 1/255: int16 [3, height, width]."""
        return self.rewritten.to(torch.int16) - self.original.to(torch.int16)

    def save_image(self, path: str | Path) -> None:
        """Write the rewritten picture as a PNG (to a temporary name first, then renamed): other formats would change its pixels."""
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise UsageError(f"a rewritten picture is saved as .png, which keeps every pixel; {path.name!r} would not")
        if not path.parent.is_dir():
            raise UsageError(f"cannot save to {str(path)!r}: there is no folder {str(path.parent)!r}")
        write_png(self.image, path)

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) pairs for a table."""
        before, after = self.probabilities[BEFORE], self.probabilities[AFTER]
        found = [
            ("asked", f"{self.own} -> {self.to}"),
            ("the saved picture", f"{self.answer} ({'success' if self.success else 'no success within the budget'})"),
            (f"p({self.own})", f"{before['own']:.4f} -> {after['own']:.4f}"),
            (f"p({self.to})", f"{before['to']:.4f} -> {after['to']:.4f}"),
            ("budget", ", ".join(f"{name} {amount(name, value)}" for name, value in self.budget.items()) or "the place alone"),
            ("L-infinity", amount("linf", self.linf)),
            ("L2", f"{self.l2:.4g}"),
            ("PSNR", "unchanged" if math.isinf(self.psnr) else f"{self.psnr:.1f} dB"),
            ("SSIM", f"{self.ssim:.4f}"),
            ("cells touched", f"{self.touched} of {self.grid[0]} x {self.grid[1]}"),
            ("gradient evaluations", str(self.evaluations)),
        ]
        if self.tried:
            name = "l2" if "l2" in self.budget else "linf"
            found.append(("tried", ", ".join(f"{amount(name, epsilon)} {'yes' if good else 'no'}" for epsilon, good in self.tried)))
        found += [(f"after {name}", f"{one.rewritten} (the original: {one.original})") for name, one in self.survival.items()]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything but pixels and relevance values, as JSON types."""
        plain = {name: getattr(self, name) for name in ("own", "to", "answer", "success", "ssim", "linf", "l2", "touched", "evaluations", "judged")}
        return {
            "kind": KIND,
            "format": FORMAT,
            **plain,
            "psnr": None if math.isinf(self.psnr) else self.psnr,
            "probabilities": {when: dict(each) for when, each in self.probabilities.items()},
            "grid": list(self.grid),
            "budget": dict(self.budget),
            "settings": dict(self.settings),
            "survival": {name: vars(one) for name, one in self.survival.items()},
            "tried": [[epsilon, good] for epsilon, good in self.tried],
            "relevance": {when: one.to_dict() for when, one in self.relevance.items()},
            "notes": list(self.notes),
        }

    def save(self, folder: str | Path) -> None:
        """Write ``original.png``, ``rewritten.png``, ``record.json`` and ``rewriting.safetensors`` (all that ``load`` reads) into a folder."""
        from PIL import Image

        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UsageError(f"cannot save to {str(folder)!r}: {problem.strerror or problem}") from None
        tensors, kept = records.together(self.relevance)
        records.write(folder / FILES[2], {**tensors, "original": self.original, "rewritten": self.rewritten}, {**self.to_dict(), "relevance": kept})
        for name, levels in zip(FILES, (self.original, self.rewritten)):
            write_png(Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()), folder / name)
        temporary = folder / f".{FILES[3]}.partial"
        temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        temporary.replace(folder / FILES[3])

    @classmethod
    def load(cls, folder: str | Path) -> Rewriting:
        """Read what ``save`` wrote: the folder, or its ``rewriting.safetensors``. Raises LoadError where there is none."""
        path = Path(folder) / FILES[2] if Path(folder).is_dir() else Path(folder)
        return records.load(path, "a rewriting", cls.unpacked)

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], where: str) -> Rewriting:
        """What ``save`` wrote, as a record again; ``where`` is named in errors."""
        records.check(record, KIND, FORMAT, where)
        relevance = {when: Relevance.unpacked(own, one, where) for when, own, one in records.apart(tensors, record["relevance"])}
        known = {name: value for name, value in record.items() if name not in ("kind", "format")}
        return cls(
            **{
                **known,
                "original": tensors["original"],
                "rewritten": tensors["rewritten"],
                "psnr": math.inf if record["psnr"] is None else record["psnr"],
                "grid": tuple(record["grid"]),
                "survival": {name: Survival(**one) for name, one in record["survival"].items()},
                "tried": tuple((epsilon, good) for epsilon, good in record["tried"]),
                "relevance": relevance,
                "notes": tuple(record["notes"]),
            }
        )

    def __repr__(self) -> str:
        return f"Rewriting\n{aligned(self.rows())}"


def amount(name: str, value: float) -> str:
    """A budget in its own unit: L-infinity in levels of 1/255."""
    if name == "linf":
        return f"{value * 255:.3g}/255"
    return f"{value:g}" if name in ("patches", "ssim") else f"{value:.4g}"


def write_png(image: Any, path: Path) -> None:
    """To a temporary name first, then renamed."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        image.save(temporary, format="PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
