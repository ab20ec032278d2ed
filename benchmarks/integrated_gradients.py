"""Cost and exactness of integrated gradients beside Captum, in one run: ``make bench``.

Prints the tables of docs/performance.md. Times are CPU seconds of the process, alternating between the two sides and
compared by their medians, so that a noisy machine disturbs both alike. *Bare* is two forward passes and one
``autograd.grad`` with respect to the site, on frozen parameters.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients
from torch import Tensor, nn

import zeroline as zl

STEPS = 32
THREADS = 2


def vit_base() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(num_labels=1000)).eval()


class Logits(nn.Module):
    """What Captum needs: a tensor in, a tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).logits


def cpu_seconds(*sides: Callable[[], Any], repeats: int) -> list[float]:
    """Median CPU seconds of each side, the sides taking turns after one warm-up each."""
    for side in sides:
        side()
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, kept in zip(sides, times):
            started = time.process_time()
            side()
            kept.append(time.process_time() - started)
    return [statistics.median(kept) for kept in times]


def row(what: str, ratio: float, bound: float, detail: str, equal: bool = True) -> None:
    held = "yes" if ratio <= bound and equal else "NO"
    print(f"| {what} | {ratio:.2f} | {bound:.2f} | {held} | {detail} |", flush=True)


def captum_table(repeats: int) -> None:
    model, x = vit_base(), torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    wrapped = Logits(model)
    target = int(model(pixel_values=x).logits.argmax())
    print(f"\n## Integrated gradients on ViT-Base, {STEPS} Gauss-Legendre steps, CPU time over Captum's\n")
    print("| site | zeroline / Captum | at most | held | largest difference of the values, relative |")
    print("|---|---|---|---|---|")
    for site, bound in (("vit.layers.10", 0.25), ("vit.layers.6", 0.70), (None, 1.05)):
        method = LayerIntegratedGradients(wrapped, model.get_submodule(site)) if site else IntegratedGradients(wrapped)

        def theirs(method: Any = method) -> Tensor:
            values, _ = method.attribute(x, torch.zeros_like(x), target=target, n_steps=STEPS, return_convergence_delta=True)
            return values

        def ours(site: str | None = site) -> zl.Attribution:
            baseline = zl.baseline.zeros(at="input")
            return zl.integrated_gradients(model, x, target=target, site=site, baseline=baseline, path="gausslegendre", n_steps=STEPS)

        a, b = ours().values, theirs()
        apart = float((a - b).abs().max() / b.abs().max())
        mine, captums = cpu_seconds(ours, theirs, repeats=repeats)
        row(site or "the input", mine / captums, bound, f"{apart:.1e}", apart <= 1e-5)


def bare(model: nn.Module, x: Tensor, site: str | None) -> Callable[[], None]:
    model.requires_grad_(False)

    def run() -> None:
        kept: list[Tensor] = []

        def leaf(tensor: Tensor) -> Tensor:
            kept.append(tensor.detach().requires_grad_())
            return kept[0]

        with torch.no_grad():
            model(pixel_values=x)
        hook = None if site is None else model.get_submodule(site).register_forward_hook(lambda m, a, o: leaf(o))
        score = model(pixel_values=leaf(x) if site is None else x).logits[:, 3].sum()
        if hook is not None:
            hook.remove()
        torch.autograd.grad(score, kept[0])

    return run


def gradient_table(repeats: int) -> None:
    model, x = vit_base(), torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    print("\n## Gradient x input on ViT-Base, batch 4, CPU time over bare\n")
    print("| site and baseline | zeroline / bare | at most | held | |")
    print("|---|---|---|---|---|")
    for site, baseline in ((None, zl.baseline.zeros()), ("vit.layers.6", zl.baseline.zeros()), ("vit.layers.6", zl.baseline.zeros(at="input"))):

        def ours(site: str | None = site, baseline: Any = baseline) -> zl.Attribution:
            return zl.gradient_x_input(model, x, target=3, site=site, baseline=baseline)

        mine, least = cpu_seconds(ours, bare(model, x, site), repeats=repeats)
        row(f"{site or 'the input'}, {baseline.name}", mine / least, 1.10, "")


def memory_of(side: str) -> tuple[int, int]:
    """Peak resident memory of one side in a process of its own, and how much of it the call added, in bytes."""
    command = [sys.executable, __file__, "--memory", side]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "MALLOC_ARENA_MAX": "1"})
    peak, before = map(int, found.stdout.split()[-2:])
    return peak, peak - before


def measure_memory(side: str) -> None:
    model, x = vit_base(), torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model(pixel_values=x)  # buffers that every run needs
    site = None if side.endswith("input") else "vit.layers.6"
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    if side.startswith("bare"):
        bare(model, x, site)()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            baseline = zl.baseline.zeros(at="input")
            zl.integrated_gradients(model, x, target=3, site=site, baseline=baseline, internal_batch_size=1, max_evaluations=32)
    print(resident("VmHWM"), before)


def resident(which: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


def memory_table() -> None:
    print("\n## Peak resident memory of IG, internal_batch_size=1, over bare (ViT-Base, batch 1; each in a process of its own)\n")
    print("| site | zeroline / bare | at most | held | what the call added: bare, zeroline |")
    print("|---|---|---|---|---|")
    for site in ("input", "layer"):
        (least, added_bare), (mine, added) = memory_of(f"bare {site}"), memory_of(f"zeroline {site}")
        detail = f"{added_bare / 2**20:.0f} MiB, {added / 2**20:.0f} MiB of {least / 2**20:.0f} MiB in all"
        row("the input" if site == "input" else "vit.layers.6", mine / least, 1.20, detail)


def exactness_table(images: int) -> None:
    from zeroline import zoo
    from zeroline.zoo.photo_digits import PhotoDigits
    from zeroline.zoo.train.common import FRESH_SEED, pixels

    model, data = zoo.load("digits-vit"), PhotoDigits("test", FRESH_SEED + 2)
    x = pixels([data.scene(1) for _ in range(images)])
    found = zl.integrated_gradients(model, {"pixel_values": x}, target=zl.top(), baseline=zl.baseline.black())
    relative, counts, local = found.relative_error, found.evaluations.double(), found.local_error / found.difference.abs()
    assert relative is not None
    worst = int(relative.argmax())
    print(f"\n## Attribution error over {images} test images of digits-vit, black baseline, default settings\n")
    print("| figure | value |\n|---|---|")
    print(f"| images within 1 % | {int((relative <= 0.01).sum())} of {images} |")
    print(f"| worst relative error | {float(relative[worst]):.2%} |")
    print(f"| gradient evaluations, median (at most 30) | {float(counts.median()):.0f} |")
    print(f"| gradient evaluations, mean and most | {float(counts.mean()):.0f} and {int(counts.max())} |")
    print(f"| worst local error, as a share of the difference | {float(local.max()):.2%} |")
    print(f"| map error, median and worst image | {float(found.map_error.median()):.2f} and {float(found.map_error.max()):.2f} |")
    black, chosen = torch.full_like(x, -1.0), model(pixel_values=x).logits.argmax(1)
    captum = IntegratedGradients(Logits(model))

    def within(steps: int) -> tuple[int, Tensor]:
        values = captum.attribute(x, black, target=chosen, n_steps=steps, internal_batch_size=200)
        error = (values.double().flatten(1).sum(1) - found.difference).abs() / found.difference.abs()
        return int((error <= 0.01).sum()), error

    steps = 16
    while True:
        inside, error = within(steps)
        spread = f"{float(error.median()):.2%}, {float(error.max()):.2%}"
        print(f"| Captum, {steps} steps: within 1 %, median, worst | {inside} of {images}, {spread} |", flush=True)
        if inside == images:
            break
        steps *= 2
    low, high = steps // 2, steps
    while high - low > max(1, high // 32):
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle)[0] == images else (middle, high)
    print(f"| smallest fixed n_steps of Captum found by bisection that brings every image within 1 % | {high} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--only", choices=["exactness", "memory", "gradient", "captum"])
    parser.add_argument("--memory", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.memory:
        measure_memory(arguments.memory)
        return
    tables = {
        "exactness": lambda: exactness_table(arguments.images),
        "memory": memory_table,
        "gradient": lambda: gradient_table(arguments.repeats),
        "captum": lambda: captum_table(arguments.repeats),
    }
    for name, table in tables.items():
        if arguments.only in (None, name):
            table()


if __name__ == "__main__":
    main()
