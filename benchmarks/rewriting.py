"""Class rewriting beside an attack library, on the same pictures, budgets and gradient evaluations: the table of docs/rewriting.md.

    python benchmarks/rewriting.py            (foolbox: pip install 'zeroline[bench]')

32 pictures of a fresh seed, each to the runner-up and to the fifth class of the model's answer, within L-infinity 4/255 (and 2/255). The library's
result is judged as ours is: rounded to 8 bits, written as a PNG, read back through the model's own preprocessing. Its projected gradient descent
(Madry et al. 2018) runs with the step that its authors use for a number of steps, 2.5 epsilon / steps, and with the library's default. Seconds
are the median of ratios of runs that take turns, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import foolbox
import torch
from torch import Tensor, nn

import zeroline as zl
from zeroline import zoo
from zeroline.guided.classifier import Classifier
from zeroline.guided.likeness import decibels, similarity
from zeroline.maths.budgets import quantised
from zeroline.model.pictures import byte, pixels_of

SEED = 20_261_301  # used nowhere else
HEAD = ["model", "to", "budget", "by", "success", "median PSNR", "median SSIM", "gradient evaluations per success", "seconds / ours"]


class Counted(nn.Module):
    """The model on pixels in 0..1, and how many pictures it was given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.count = model, 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.count += len(pixels)
        return self.model((pixels - 0.5) / 0.5).logits


def library(counted: Counted, pixels: Tensor, to: Tensor, epsilon: float, steps: int, step: float | None) -> Tensor:
    """The pictures that foolbox ends with, as they are saved."""
    known = foolbox.PyTorchModel(counted, bounds=(0, 1), device="cpu")
    relative = {} if step is None else {"rel_stepsize": step}
    attack = foolbox.attacks.LinfPGD(steps=steps, random_start=False, **relative)
    return quantised(attack(known, pixels, foolbox.criteria.TargetedMisclassification(to), epsilons=epsilon)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = zoo.scenes("digits-vit", arguments.images, seed=SEED)
    images = [sample.image for sample in chosen]
    pixels = torch.stack([pixels_of(image) for image in images])
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for name in ("digits-vit", "digits-cnn"):
        model = zoo.load(name)
        counted = Counted(model).eval()
        said = Classifier(model, lambda image, name=name: zoo.preprocess(name, image), {})
        ranked = said.scores(images).argsort(1, descending=True)
        for words, to in (("runner-up", ranked[:, 1]), ("fifth", ranked[:, 4])):
            for level in (2, 4):
                compared(counted, said, images, pixels, words, to, level / 255, arguments.steps, arguments.repeats, name)


def compared(
    counted: Counted, said: Classifier, images: list, pixels: Tensor, words: str, to: Tensor, epsilon: float, steps: int, repeats: int, name: str
) -> None:
    """One group of rows."""
    kept: dict[str, tuple[Tensor, int]] = {}

    def ours() -> None:
        found = zl.rewrite(counted.model, images, to=to.tolist(), linf=epsilon, steps=steps, relevance=False, preprocess=said.preprocess)
        kept["zeroline"] = torch.stack([one.rewritten for one in found]).float() / 255, sum(one.evaluations for one in found)

    def theirs(label: str, step: float | None) -> Callable[[], None]:
        def run() -> None:
            counted.count = 0
            ended = library(counted, pixels, to, epsilon, steps, step)
            kept[label] = ended, steps * len(images)  # no picture leaves its batch early

        return run

    # foolbox's step is a share of epsilon
    runs = {"zeroline": ours, "foolbox, 2.5/steps": theirs("foolbox, 2.5/steps", 2.5 / steps), "foolbox, default": theirs("foolbox, default", None)}
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(repeats):
        for label, run in runs.items():
            start = time.process_time()
            run()
            seconds[label].append(time.process_time() - start)
    with tempfile.TemporaryDirectory() as folder:
        for label in runs:
            ended, evaluations = kept[label]
            good = said.scores_on_disk(byte(ended), Path(folder)).argmax(1) == to
            count = int(good.sum())
            ratio = statistics.median(a / b for a, b in zip(seconds[label], seconds["zeroline"]))
            alike = [f"{float(decibels(ended[good], pixels[good]).median()):.1f} dB", f"{float(similarity(ended[good], pixels[good]).median()):.4f}"]
            cells = [name, words, f"{epsilon * 255:.0f}/255", label, f"{count} of {len(images)}", *(alike if count else ["-", "-"])]
            print("| " + " | ".join([*cells, f"{evaluations / count:.1f}" if count else "-", f"{ratio:.2f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
