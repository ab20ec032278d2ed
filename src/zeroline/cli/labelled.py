"""Labelled sets for the command line: the zoo's own, or a CSV file of images, labels and masks."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroline.errors import InputError, LoadError, NotFoundError, UsageError
from zeroline.measure import LabelledSet
from zeroline.model.loading import Sourced
from zeroline.spelling.questions import image_only
from zeroline.spelling.sources import open_image, open_mask
from zeroline.target import whole_number


def labelled(sourced: Sourced, scheme: str, file: Path | None, most: int | None) -> LabelledSet:
    """The set of a file; without one, that which ships with a zoo model. ``most`` examples at most, from the first on."""
    if most is not None and most < 1:
        raise UsageError(f"--count {most} was asked; 1 or more")
    if file is not None:
        return _from_csv(sourced, file, most)
    if scheme != "zoo":
        raise UsageError("give a CSV file with the columns image, label and, if there are any, mask; only zoo models bring a set of their own")
    return from_zoo(sourced.name, most)


def from_zoo(name: str, most: int | None = None) -> LabelledSet:
    """The test set that ships with a zoo model."""
    from zeroline import zoo
    from zeroline.zoo.digits_clip import CAPTIONS

    chosen = zoo.test_set(name)[:most]
    inputs, masks = zoo.collate(chosen), torch.stack([sample.masks[0] for sample in chosen])
    if "text" not in zoo.MODELS[name].reads:
        return LabelledSet(inputs, torch.tensor([sample.labels[0] for sample in chosen]), masks=masks)
    labels = torch.tensor([CAPTIONS.index(sample.caption) for sample in chosen])
    return LabelledSet(inputs, labels, zoo.preprocess(name, text=CAPTIONS, pad=True), masks)


def _from_csv(sourced: Sourced, file: Path, most: int | None) -> LabelledSet:
    rows = _rows(file)[:most]
    texts = sorted({row["label"] for row in rows}) if "text" in sourced.reads else []
    parts, masks = [], []
    for row in rows:
        image = open_image(file.parent / row["image"])
        parts.append(sourced.prepare(image, row["label"] if texts else None))
        if row.get("mask"):
            masks.append(open_mask(image_only(sourced, row["label"] if texts else None), file.parent / row["mask"], None, image))
    if masks and len(masks) != len(rows):
        raise InputError(f"{file.name}: {len(masks)} of {len(rows)} rows have a mask; give one to every row, or to none")
    seen = torch.stack([mask for mask in masks if mask is not None]) if masks else None
    labels = torch.tensor([texts.index(row["label"]) if texts else _class(row["label"], sourced.labels) for row in rows])
    captions = _joined([sourced.prepare(None, text) for text in texts]) if texts else None
    return LabelledSet(_joined(parts), labels, captions, seen)


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        raise NotFoundError(f"no file {str(file)!r}; a labelled set is a CSV file with the columns image, label and mask")
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise LoadError(f"cannot read {str(file)!r} as CSV: {problem}") from None
    if not rows or not {"image", "label"} <= set(rows[0]):
        found = ", ".join(rows[0]) if rows else "no rows"
        raise InputError(f"{str(file)!r} has {found}; the columns image and label are needed, mask is possible")
    for number, row in enumerate(rows, start=1):
        if not row["image"] or row["label"] is None:
            raise InputError(f"{file.name}, row {number}: no {'image' if not row['image'] else 'label'} is named")
    return rows


def _class(text: str, labels: Mapping[str, int]) -> int:
    known = {name.lower(): index for name, index in labels.items()}
    number = whole_number(text)
    if text.lower() in known:
        return known[text.lower()]
    if number is None:
        raise NotFoundError.among("class", text, labels)
    return number


def _joined(parts: list[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Batches of one as one batch; texts are filled up with zeros (and their masks with zeros) to the longest."""
    found = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        longest = max(t.shape[-1] for t in tensors)
        filled = [t if t.is_floating_point() else torch.nn.functional.pad(t, (0, longest - t.shape[-1])) for t in tensors]
        found[name] = torch.cat(filled)
    return found
