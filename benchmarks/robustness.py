"""The tables of docs/rewriting.md: how small a change rewrites a class, for a Vision Transformer and a convolutional network.

    python benchmarks/robustness.py
    python benchmarks/robustness.py --photograph docs/images/rewriting-photograph.png

digits-vit and digits-cnn, trained alike, on the same photo-digits of a fresh seed; EfficientNet-Lite0 (ImageNet weights) on square crops of the
photographs that scikit-image and scikit-learn ship. One thread; no timings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zeroline as zl
from zeroline import zoo
from zeroline.maths.evidence import chance, inside, pointing
from zeroline.maths.intervals import wilson
from zeroline.report import figure, rewriting_figure
from zeroline.rewriting import Rewriting
from zeroline.thresholds import Robustness

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

SEED = 20_261_302  # used nowhere else
MODELS = ("digits-vit", "digits-cnn")
PHOTOGRAPHS = {
    "skimage": ("data", ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg", "coins.png"]),
    "sklearn": ("datasets/images", ["china.jpg", "flower.jpg"]),
}
LEVELS = (1, 2, 3, 4, 5, 6, 8)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Markdown."""
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def share(count: int, of: int) -> str:
    """A share with Wilson's interval."""
    low, high = wilson(count, of)
    return f"{count / max(of, 1):.0%} ({low:.0%} to {high:.0%})"


def measured(name: str, chosen: Sequence[zoo.Sample], **budget: Any) -> Robustness:
    return zl.robustness(zoo.load(name), [s.image for s in chosen], names=[s.name for s in chosen], name=name, **budget)


def curves(found: Sequence[Robustness]) -> None:
    """Share of the pictures rewritten, by budget."""
    rows = []
    for one in found:
        shares = [one.rate(level / 255) for level in LEVELS]
        rows.append([one.model, str(len(one.names)), *(f"{part:.0%} ({low:.0%} to {high:.0%})" for part, low, high in shares)])
    table(["model", "pictures", *(f"{level}/255" for level in LEVELS)], rows)


def paired(vit: Robustness, cnn: Robustness) -> None:
    """Which of the two needs less, on the pictures that both were asked about."""
    a, b = (dict(zip(one.names, one.smallest.tolist())) for one in (vit, cnn))
    both = [name for name in vit.names if name in b]
    less, more = sum(a[n] < b[n] for n in both), sum(a[n] > b[n] for n in both)
    print(f"Picture by picture: {vit.model} needs less on {less}, {cnn.model} on {more}, both the same on {len(both) - less - more}. Of those that")
    print(f"differ, {vit.model} needs less on {share(less, less + more)}.\n")


def places(found: Sequence[Robustness], masks: Tensor) -> None:
    """Where the fragile cells lie."""
    rows = []
    for one in found:
        kept = one.success
        maps, where = one.fragility[kept], masks[kept]
        together = float(one.additivity()[kept].median())
        rho = float(one.agreement.nanmean())
        cells = [f"{float(f(maps, where).nanmean()):.0%}" for f in (inside, chance, pointing)]
        rows.append([one.model, *cells, f"{together:.0%}", "-" if rho != rho else f"{rho:+.2f}"])
    table(["model", "fragility on the digit", "by chance", "most fragile cell on it", "cells alone, together", "rho with attention relevance"], rows)


def patches(chosen: Sequence[zoo.Sample]) -> None:
    """Eight of 64 patches, by how they were chosen."""
    model, images = zoo.load("digits-vit"), [s.image for s in chosen]
    random = torch.Generator().manual_seed(SEED)
    any_place = [torch.zeros(8, 8).view(-1).index_fill_(0, torch.randperm(64, generator=random)[:8], 1.0).view(8, 8) for _ in chosen]
    ways: dict[str, dict[str, Any]] = {
        "all 64": {},
        "8 with most attention relevance": {"patches": 8},
        "8 with most of the digit": {"patches": 8, "where": [s.masks[0] for s in chosen]},
        "8 at random": {"where": [place.repeat_interleave(8, 0).repeat_interleave(8, 1).bool() for place in any_place]},
    }
    rows = []
    for name, options in ways.items():
        found: list[Rewriting] = zl.rewrite(model, images, to="any", linf=8 / 255, relevance=False, **options)
        good = [one for one in found if one.success]
        alike = [f"{float(torch.tensor([getattr(one, what) for one in good]).median()):.{digits}f}" for what, digits in (("psnr", 1), ("ssim", 4))]
        rows.append([name, share(len(good), len(found)), *alike])
    table(["patches that may change, by up to 8/255", "rewritten", "median PSNR (dB)", "median SSIM"], rows)


def handling(chosen: Sequence[zoo.Sample]) -> None:
    """What outlives ordinary handling, by how far the new class leads."""
    rows = []
    for name in MODELS:
        for lead in (0.0, 2.0, 5.0):
            found: list[Rewriting] = zl.rewrite(zoo.load(name), [s.image for s in chosen], to="any", linf=8 / 255, lead=lead, relevance=False)
            good = [one for one in found if one.success]
            kept = [share(sum(one.survival[title].kept for one in good), len(good)) for title in found[0].survival]
            stood = [sum(one.survival[title].original == one.own for one in found) for title in found[0].survival]
            rows.append([name, f"{lead:g}", share(len(good), len(found)), *kept, ", ".join(f"{count / len(found):.0%}" for count in stood)])
    titles = list(found[0].survival)
    table(["model", "lead in logits", "rewritten", *titles, "originals that keep their answer (same order)"], rows)


def squares() -> tuple[list[Any], list[str]]:
    """Square crops of photographs, 256 pixels a side: the middle, and both ends of the longer side."""
    from oracles.real_models import opened

    images, names = [], []
    for package, (folder, files) in PHOTOGRAPHS.items():
        for file in files:
            image = opened(file, package, folder)
            side = min(image.size)
            for place in (0.0, 0.5, 1.0) if max(image.size) > 1.2 * side else (0.5,):
                left, top = int((image.width - side) * place), int((image.height - side) * place)
                images.append(image.crop((left, top, left + side, top + side)).resize((256, 256)))
                names.append(f"{file} {place:g}")
    return images, names


def photograph(path: Path) -> None:
    """A cat rewritten to a banana, as a figure."""
    from only import make_importable

    make_importable()
    from timm.data import ImageNetInfo

    from oracles.real_models import efficientnet, opened, prepared

    info = ImageNetInfo()
    labels = {info.index_to_description(i).split(",")[0]: i for i in reversed(range(1000))}
    found = zl.rewrite(efficientnet(), opened("chelsea.png"), to="banana", linf=2 / 255, preprocess=prepared, labels=labels)
    figure.save(rewriting_figure.figure(found), path)
    print(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--fewer", type=int, default=100, help="for the tables of patches and of handling")
    parser.add_argument("--photograph", type=Path, help="only draw a photograph rewritten within 2/255, here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.photograph is not None:
        photograph(arguments.photograph)
        return
    chosen = zoo.scenes("digits-vit", arguments.images, seed=SEED)
    masks = torch.stack([s.masks[0] for s in chosen])
    for title, budget in (
        ("### Any other class, L-infinity", {}),
        ("### One class for all, one, L-infinity", {"to": "one"}),
        ("### Any other class, L2 up to 3", {"l2": 3.0}),
    ):
        print(f"{title}\n")
        found = [measured(name, chosen, **budget) for name in MODELS]
        summary = [one.summary() for one in found]
        heads = [
            "model",
            "pictures",
            "median smallest epsilon",
            "rewritten",
            "median PSNR",
            "median SSIM",
            "survive",
            "gradient evaluations per picture",
        ]
        table(heads, summary)
        if "l2" not in budget:
            curves(found)
        paired(*found)
        if not budget:
            places(found, masks)
    print("### Photographs: EfficientNet-Lite0\n")
    from only import make_importable

    make_importable()
    from oracles.real_models import efficientnet, prepared

    images, names = squares()
    found = [zl.robustness(efficientnet(), images, to=to, names=names, name=f"{to} class", preprocess=prepared) for to in ("any", "second")]
    table(heads, [one.summary() for one in found])
    curves(found)
    print("### Fewer patches\n")
    patches(chosen[: arguments.fewer])
    print("### Ordinary handling\n")
    handling(chosen[: arguments.fewer])


if __name__ == "__main__":
    main()
