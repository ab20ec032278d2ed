"""``zl.layers`` over the 13 sites of ViT-Base beside Captum's LayerIntegratedGradients 13 times, in one run: part of ``make bench``.

Prints a table of docs/performance.md. Times are CPU seconds of the process, the sides taking turns site by site.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients
from torch import Tensor

import zeroline as zl
from integrated_gradients import THREADS, Logits, vit_base


def seconds(side: Callable[[], object]) -> float:
    started = time.process_time()
    side()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="*", default=[32, 50])
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    model, x = vit_base(), torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    wrapped, target = Logits(model), int(model(pixel_values=x).logits.argmax())
    sites = ["input", *(f"vit.layers.{i}" for i in range(12))]
    baseline = zl.baseline.zeros(at="input")

    def ours(site: str, **options: object) -> zl.Comparison:
        return zl.layers(model, x, target=target, baseline=baseline, sites=[site], **options)

    def theirs(site: str, steps: int) -> Tensor:
        method = IntegratedGradients(wrapped) if site == "input" else LayerIntegratedGradients(wrapped, model.get_submodule(site))
        values, _ = method.attribute(x, torch.zeros_like(x), target=target, n_steps=steps, return_convergence_delta=True)
        return values

    for site in sites:
        ours(site, path="gausslegendre", n_steps=1)  # the one-time tests, and buffers
    print("\n## layers: the input and 12 blocks of ViT-Base beside Captum's LayerIntegratedGradients 13 times, CPU time\n")
    print("| what | ratio | at most | held | largest difference of the values, relative |\n|---|---|---|---|---|")
    for steps in arguments.steps:
        mine = captums = adaptive = apart = 0.0
        worst, evaluations = 0.0, []
        for _ in range(arguments.repeats):
            for site in sites:
                options = {"path": "gausslegendre", "n_steps": steps}
                mine += seconds(lambda s=site, o=options: ours(s, **o))
                captums += seconds(lambda s=site, n=steps: theirs(s, n))
                adaptive += seconds(lambda s=site: ours(s))
        for site in ("input", "vit.layers.6"):
            (one,) = ours(site, path="gausslegendre", n_steps=steps).members.values()
            other = theirs(site, steps)
            apart = max(apart, float((one.values - other).abs().max() / other.abs().max()))
        for site in sites:
            (one,) = ours(site).members.values()
            worst = max(worst, float(one.relative_error[0]))
            evaluations.append(int(one.evaluations[0]))
        ratio = mine / captums
        print(f"| {steps} steps each | {ratio:.2f} | 0.50 | {'yes' if ratio <= 0.5 else 'NO'} | {apart:.1e} |")
        detail = f"{min(evaluations)} to {max(evaluations)} evaluations, worst error {worst:.2%}"
        print(f"| the default path of `layers` / Captum with {steps} steps | {adaptive / captums:.2f} | | | {detail} |", flush=True)


if __name__ == "__main__":
    main()
