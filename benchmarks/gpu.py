"""What explanations cost on one GPU: beside Captum, in two precisions, and as a run over pictures.

    python benchmarks/gpu.py

Prints the GPU tables of docs/performance.md and docs/runs.md. Times are wall seconds with the GPU's queue drained, the sides taking turns in one
run and compared by their medians; memory is the most that torch's allocator held beyond the model. The model is a ViT-Base with random weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients
from PIL import Image
from transformers import ViTImageProcessor

import zeroline as zl
from integrated_gradients import STEPS, Logits, bare, vit_base

BATCH = 8
RUN = (
    ("integrated_gradients", {}, 16),
    ("integrated_gradients", {"path": "gausslegendre", "n_steps": 8}, 16),
    ("attention_relevance", {}, 64),
    ("gradient_x_input", {}, 64),
)


def seconds(*sides: Callable[[], Any], repeats: int) -> list[float]:
    """Median wall seconds of each side, the sides taking turns after one warm-up each."""
    for side in sides:
        side()
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, kept in zip(sides, times):
            torch.cuda.synchronize()
            started = time.perf_counter()
            side()
            torch.cuda.synchronize()
            kept.append(time.perf_counter() - started)
    return [statistics.median(kept) for kept in times]


def held(side: Callable[[], Any]) -> float:
    """The most that a call holds on the GPU beyond what lies there, in MiB."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    side()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def beside_captum(repeats: int) -> None:
    print(f"\n## On {torch.cuda.get_device_name()}: integrated gradients on ViT-Base, batch {BATCH}, {STEPS} Gauss-Legendre steps, over Captum's\n")
    print("| precision | site | wall time | memory | largest difference of the values, relative |\n|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        model = vit_base().to("cuda", dtype)
        x = torch.randn(BATCH, 3, 224, 224, device="cuda", dtype=dtype)
        for site in (None, "vit.layers.6", "vit.layers.10"):
            captum = IntegratedGradients(Logits(model)) if site is None else LayerIntegratedGradients(Logits(model), model.get_submodule(site))
            shared = {"target": 7, "n_steps": STEPS, "method": "gausslegendre", "internal_batch_size": BATCH}

            def theirs(captum: Any = captum, x: Any = x, shared: Any = shared) -> Any:
                return captum.attribute(x, baselines=torch.zeros_like(x), **shared)

            def ours(model: Any = model, x: Any = x, site: str | None = site) -> Any:
                baseline = zl.baseline.zeros(at="site" if site is None else "input")
                asked = {"target": 7, "site": site, "baseline": baseline, "path": "gausslegendre", "n_steps": STEPS}
                return zl.integrated_gradients(model, x, internal_batch_size=BATCH, **asked)

            values, right = ours().values, theirs()
            right = right[0] if isinstance(right, tuple) else right
            apart = float((values.double() - right.double()).abs().max() / right.double().abs().max())
            one, other = seconds(ours, theirs, repeats=repeats)
            print(f"| {dtype} | {site or 'the input'} | {one / other:.2f} | {held(ours) / held(theirs):.2f} | {apart:.1e} |", flush=True)


def gradients(repeats: int) -> None:
    print(f"\n## Gradient x input and the default adaptive path, batch {BATCH}: wall time over bare evaluations\n")
    print("| precision | gradient x input / bare | adaptive path / (its evaluations x bare) | evaluations | worst error | worst local error |")
    print("|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        model = vit_base().to("cuda", dtype)
        x = torch.randn(BATCH, 3, 224, 224, device="cuda", dtype=dtype)

        def product(model: Any = model, x: Any = x) -> Any:
            return zl.gradient_x_input(model, x, target=7, baseline=zl.baseline.zeros())

        def adaptive(model: Any = model, x: Any = x) -> Any:
            return zl.integrated_gradients(model, x, target=7, baseline=zl.baseline.zeros())

        found = adaptive()
        base, cheap, whole = seconds(bare(model, x, None), product, adaptive, repeats=repeats)
        most = int(found.evaluations.max())
        share = found.local_error / found.difference.abs()
        worst = "undefined" if found.relative_error is None else f"{float(found.relative_error.nan_to_num().max()):.2%}"
        figures = (
            f"{cheap / base:.2f}",
            f"{whole / base / most:.2f}",
            f"{int(found.evaluations.min())} to {most}",
            worst,
            f"{float(share.max()):.1%}",
        )
        print(f"| {dtype} | {' | '.join(figures)} |", flush=True)


def pace(count: int) -> None:
    print("\n## `zeroline run` over 224 x 224 JPEGs on one GPU, the model's own pace included: examples per second\n")
    print("| method | batch | float32 | bfloat16 | share of the time in explaining, float32 |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        noise = np.random.default_rng(0)
        for i in range(count):
            small = noise.integers(0, 256, (14, 14, 3), dtype=np.uint8)
            Image.fromarray(small).resize((224, 224), Image.BICUBIC).save(pictures / f"{i:05d}.jpg", quality=90)
        weights = Path(folder) / "vit-base"
        vit_base().save_pretrained(weights)
        ViTImageProcessor().save_pretrained(weights)
        for method, options, batch in RUN:
            rates, share = [], 0.0
            for dtype in ("float32", "bfloat16"):
                out = Path(folder) / f"{method}-{len(options)}-{dtype}"
                target = {"target": "7", "baseline": "zeros"} if method in zl.METHODS else {"target": "7"}
                kept = {"keep": "map"} if method in zl.METHODS else {}
                asked = {"method": method, "options": options, "batch_size": batch, "device": "cuda", "dtype": dtype, **target, **kept}
                run = zl.run(pictures, model=f"hf:{weights}", out=out, **asked)
                session = run.manifest.sessions[-1]
                rates.append(session["done"] / session["seconds"])
                if dtype == "float32":
                    spent = sum(row["seconds"] for row in run.rows(["seconds"]))
                    share = spent / session["seconds"]
            words = ", ".join(f"{k} {v}" for k, v in options.items())
            print(f"| {method}{f' ({words})' if words else ''} | {batch} | {rates[0]:.0f} | {rates[1]:.0f} | {share:.0%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["captum", "gradients", "pace"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=256)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here")
    warnings.simplefilter("ignore")
    tables = {"captum": lambda: beside_captum(asked.repeats), "gradients": lambda: gradients(asked.repeats), "pace": lambda: pace(asked.pictures)}
    for name, table in tables.items():
        if asked.only in (None, name):
            table()


if __name__ == "__main__":
    main()
