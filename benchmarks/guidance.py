"""The tables of docs/guidance.md: a guest laid on 200 pictures whose objects are known.

    python benchmarks/guidance.py

Hosts and guests are photo-digits of a fresh seed; the guest lies in the corner that is farthest from the host. One thread, no timings.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import zeroline as zl
from zeroline import zoo
from zeroline.guidance import AFTER, BEFORE
from zeroline.maths.evidence import coverage, inside, pointing
from zeroline.model.pictures import pixels_of
from zeroline.zoo.photo_digits import DIGITS, SIDE

SEED = 20_261_211  # used nowhere else
NAME = "digits-vit"


def corner(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Left and top of a guest of ``size`` in the corner farthest from a box's middle."""
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    places = [(x, y) for x in (1, SIDE - size[0] - 1) for y in (1, SIDE - size[1] - 1)]
    return max(places, key=lambda p: (p[0] + size[0] / 2 - middle[0]) ** 2 + (p[1] + size[1] / 2 - middle[1]) ** 2)


def overlaps(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def pairs(count: int) -> list[tuple[zoo.Sample, zl.Guest, tuple[int, int], tuple[int, int]]]:
    """Host, guest of another class, place and size; those that would overlap are left out."""
    drawn = zoo.scenes(NAME, 4 * count, seed=SEED)
    found = []
    for host, other in zip(drawn[::2], drawn[1::2]):
        left, top, right, bottom = other.boxes[0]
        size = (right - left, bottom - top)
        at = corner(host.boxes[0], size)
        if host.labels[0] != other.labels[0] and not overlaps(host.boxes[0], (at[0], at[1], at[0] + size[0], at[1] + size[1])):
            pixels = pixels_of(other.image)[:, top:bottom, left:right]
            guest = zl.Guest(pixels, DIGITS[other.labels[0]], other.masks[0][top:bottom, left:right].float())
            found.append((host, guest, at, size))
    return found[:count]


def row(found: list[zl.Guidance], masks: list[Tensor], target: str) -> list[str]:
    """Means over the pairs: place of the relevance, and what of the host's object is found."""

    def mean(values: list[float]) -> float:
        return float(torch.tensor(values).nanmean())

    cells = [f"{mean([g.on_guest(target, when) for g in found]):.0%}" for when in (BEFORE, AFTER)]
    for measure in (inside, pointing, coverage):
        each = [mean([float(measure(g.members[target][when].grid(), m[None])[0]) for g, m in zip(found, masks)]) for when in (BEFORE, AFTER)]
        cells.append(f"{each[0]:.0%} -> {each[1]:.0%}")
    return [*cells, f"{mean([g.detail(target) for g in found]):.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, chosen = zoo.load(NAME), pairs(arguments.pairs)
    masks = [host.masks[0] for host, *_ in chosen]
    heads = ["correction", "target", "on the guest: before", "after", "in the host's digit", "points at it", "covers it", "new detail"]
    for opacity in (1.0, 0.5):
        for correction in ("positive", "absolute", "negative", "signed"):
            found = [
                zl.guide(
                    model,
                    h.image,
                    g,
                    preprocess=lambda i: zoo.preprocess(NAME, i),
                    at=at,
                    size=size,
                    opacity=opacity,
                    host=h.labels[0],
                    correction=correction,
                )
                for h, g, at, size in chosen
            ]
            if correction == "positive":
                shares = {w: [torch.tensor([g.probabilities[w][c] for g in found]).mean() for c in ("host", "guest")] for w in (BEFORE, AFTER)}
                words = ", ".join(f"{w} p(host) {float(a):.0%} p(guest) {float(b):.0%}" for w, (a, b) in shares.items())
                own = [torch.stack([g.own[w] for g in found]).mean(0) for w in (BEFORE, AFTER)]
                curves = "; ".join(f"{w} {', '.join(f'{float(v):.3f}' for v in curve)}" for w, curve in zip((BEFORE, AFTER), own))
                print(f"\n{len(found)} pairs, guest at opacity {opacity:g}: {words}. Share that stays a token's own, per layer: {curves}.\n")
                print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
            for target in ("host", "guest", "contrast"):
                print("| " + " | ".join([correction, target, *row(found, masks, target)]) + " |", flush=True)


if __name__ == "__main__":
    main()
