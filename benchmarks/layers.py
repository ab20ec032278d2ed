"""``zl.layers`` over the 13 sites of ViT-Base beside Captum's LayerIntegratedGradients 13 times, in one run: part of ``make bench``.

Prints a table of docs/performance.md. Times are CPU seconds of the process, the sides one after the other in one run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients
from torch import Tensor

import zeroline as zl
from integrated_gradients import THREADS, Logits, vit_base

T = TypeVar("T")


def seconds(side: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of the process, and the result."""
    started = time.process_time()
    found = side()
    return time.process_time() - started, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="*", default=[32])
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    model, x = vit_base(), torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    wrapped, target = Logits(model), int(model(pixel_values=x).logits.argmax())
    sites = ["input", *(f"vit.layers.{i}" for i in range(12))]
    baseline = zl.baseline.zeros(at="input")

    def ours(**options: object) -> zl.Comparison:
        return zl.layers(model, x, target=target, baseline=baseline, sites=sites, **options)

    def theirs(steps: int) -> list[Tensor]:
        methods = [IntegratedGradients(wrapped), *(LayerIntegratedGradients(wrapped, model.get_submodule(site)) for site in sites[1:])]
        return [m.attribute(x, torch.zeros_like(x), target=target, n_steps=steps, return_convergence_delta=True)[0] for m in methods]

    ours(path="gausslegendre", n_steps=1)  # the one-time tests, and buffers
    print("\n## layers: the input and 12 blocks of ViT-Base beside Captum's LayerIntegratedGradients 13 times, CPU time\n")
    print("| what | ratio | at most | held | |\n|---|---|---|---|---|")
    for steps in arguments.steps:
        mine, fixed = seconds(lambda n=steps: ours(path="gausslegendre", n_steps=n))
        captums, values = seconds(lambda n=steps: theirs(n))
        adaptive, own = seconds(ours)
        apart = max(float((one.values - v).abs().max() / v.abs().max()) for one, v in zip(fixed.members.values(), values))
        worst = max(float(one.relative_error[0]) for one in own.members.values())
        counts = [int(one.evaluations[0]) for one in own.members.values()]
        ratio = mine / captums
        print(f"| {steps} steps each | {ratio:.2f} | 0.50 | {'yes' if ratio <= 0.5 else 'NO'} | values differ by at most {apart:.1e}, relative |")
        detail = f"{min(counts)} to {max(counts)} evaluations, worst error {worst:.2%}"
        print(f"| the default path of `layers` / Captum with {steps} steps | {adaptive / captums:.2f} | | | {detail} |", flush=True)


if __name__ == "__main__":
    main()
