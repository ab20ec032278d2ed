"""Attention relevance: where it points, what it costs, beside the eager way with stored maps. Part of ``make bench``.

Prints tables of docs/performance.md. Times are CPU seconds of the process, the sides taking turns in one run and compared by
their medians. *Bare* is two forward passes and one ``autograd.grad`` to the output of the embeddings, on frozen parameters.
*Eager* is Chefer's way: attention that stores its maps, a backward pass to all of them, full matrices.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zeroline as zl

THREADS = 2
SEED = 20261123  # used nowhere else
TARGETS = 240


def vit_base(attention: str, image: int = 224) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    model = ViTForImageClassification._from_config(ViTConfig(num_labels=1000, image_size=image), attn_implementation=attention).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def bare(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)
    kept: list[Tensor] = []
    hook = model.vit.embeddings.register_forward_hook(lambda m, a, o: kept.append(o.requires_grad_()))
    score = model(x).logits[:, 3].sum()
    hook.remove()
    torch.autograd.grad(score, kept[0])


def forward(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def relevance(model: nn.Module, x: Tensor) -> Tensor:
    return zl.attention_relevance(model, x, target=3).by_source["pixel_values"]


def eager(model: nn.Module, x: Tensor) -> Tensor:
    """Chefer 2021, equations 5 and 6, as published: stored maps, gradients of all of them, full products."""
    hook = model.vit.embeddings.register_forward_hook(lambda m, a, o: o.requires_grad_())
    output = model(x, output_attentions=True)
    hook.remove()
    gradients = torch.autograd.grad(output.logits[:, 3].sum(), output.attentions)
    r = torch.eye(output.attentions[0].shape[-1], device=x.device).expand(len(x), -1, -1)
    for a, g in zip(output.attentions, gradients):
        r = r + (a.detach() * g).clamp(min=0).mean(1).float() @ r
    return r[:, 0]


def pointing_table() -> None:
    from zeroline.zoo.photo_digits import PhotoDigits
    from zeroline.zoo.train.common import pixels

    model = zl.zoo.load("digits-vit")
    data = PhotoDigits("test", SEED)
    drawn = (data.scene(2) for _ in range(10 * TARGETS))  # where there is no room for a second digit a scene has one
    scenes = list(islice((scene for scene in drawn if len(scene.objects) == 2), TARGETS // 2))
    x = pixels(scenes)
    routes: dict[str, dict[str, Any]] = {
        "raw attention of the last layer": {"correction": "none", "calls": -1},
        "rollout (correction none)": {"correction": "none"},
    }
    for coverage in ("complete", "incomplete"):
        for correction in ("positive", "absolute", "negative", "signed"):
            routes[f"{correction}, {coverage}"] = {"correction": correction, "coverage": coverage}
    print(f"\n## Pointing game on two-digit photo-digits: {TARGETS} targets, seed {SEED}\n")
    print("Hits: the patch with the highest relevance touches the box of the digit asked for. Mass: the share of positive relevance on")
    print("patches that the box touches. The target is the logit of the digit, or its difference from the other digit's. An explanation")
    print("that always finds a digit and never knows which hits 0.50.\n")
    print("| relevance | hits, logit | mass, logit | hits, contrast | mass, contrast |")
    print("|---|---|---|---|---|")
    inside = [[cells(thing.box) for thing in scene.objects] for scene in scenes]
    pairs = [[thing.digit for thing in scene.objects] for scene in scenes]
    for name, options in routes.items():
        print(f"| {name} | {scored(lambda t, o=options: grid(model, x, t, **o), pairs, inside)} |", flush=True)
    print(f"| integrated gradients, black baseline, sums over patches | {scored(lambda t: integrated(model, x, t), pairs, inside)} |")
    area = statistics.mean(float(box.double().mean()) for boxes in inside for box in boxes)
    print(f"| by chance | {' | '.join([f'{area:.2f}'] * 4)} |")


def scored(side: Callable[[Any], Tensor], pairs: list[list[int]], inside: list[list[Tensor]]) -> str:
    """hits | mass for the logit, then for the contrast."""
    figures = []
    for contrast in (False, True):
        hits = mass = 0.0
        for which in (0, 1):
            own, other = [pair[which] for pair in pairs], [pair[1 - which] for pair in pairs]
            for heat, boxes in zip(side(zl.contrast(own, other) if contrast else zl.logit(own)), inside):
                hits += bool(boxes[which].flatten()[int(heat.flatten().argmax())])
                mass += float((heat.clamp(min=0) * boxes[which]).sum() / heat.clamp(min=0).sum().clamp_min(1e-12))
        figures += [f"{hits / TARGETS:.2f}", f"{mass / TARGETS:.2f}"]
    return " | ".join(figures)


def grid(model: nn.Module, x: Tensor, target: Any, **options: Any) -> Tensor:
    return zl.attention_relevance(model, x, target=target, **options).grid("pixel_values")


def integrated(model: nn.Module, x: Tensor, target: Any) -> Tensor:
    found = zl.integrated_gradients(model, x, target=target, baseline=zl.baseline.black(), tolerance=0.05, local_tolerance=0.5)
    pixels = found.per_pixel()
    return pixels.unflatten(1, (8, -1)).unflatten(3, (8, -1)).sum((2, 4))


def cells(box: tuple[int, int, int, int]) -> Tensor:
    """The patches [8, 8] of 8 pixels that a box (left, top, right, bottom) touches."""
    left, top, right, bottom = box
    first = torch.arange(8) * 8
    rows, columns = (first + 8 > top) & (first < bottom), (first + 8 > left) & (first < right)
    return rows[:, None] & columns[None]


def cpu_seconds(sides: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.process_time) -> dict[str, float]:
    for side in sides.values():
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            started = clock()
            side()
            times[name].append(clock() - started)
    return {name: statistics.median(kept) for name, kept in times.items()}


def held(ratio: float, bound: float) -> str:
    return "yes" if ratio <= bound else "NO"


def speed_table(repeats: int) -> None:
    model, twin = vit_base("sdpa"), vit_base("eager")
    x = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    apart = float((relevance(model, x) - eager(twin, x)).abs().max())
    sides = {
        "bare": lambda: bare(model, x),
        "relevance": lambda: relevance(model, x),
        "eager bare": lambda: bare(twin, x),
        "eager": lambda: eager(twin, x),
        "forward": lambda: forward(model, x),
        "trace": lambda: zl.trace(model, x),
    }
    t = cpu_seconds(sides, repeats)
    print("\n## attention_relevance over all 12 layers of ViT-Base, 224 px, batch 4: CPU time\n")
    print("| what | ratio | at most | held |")
    print("|---|---|---|---|")
    ratio = t["relevance"] / t["bare"]
    print(f"| attention_relevance / bare, both with fused attention | {ratio:.2f} | 0.85 | {held(ratio, 0.85)} |")
    print(f"| the eager way (stored maps) / bare with fused attention | {t['eager'] / t['bare']:.2f} | | |")
    print(f"| attention_relevance / the eager way | {t['relevance'] / t['eager']:.2f} | | |")
    ratio = t["trace"] / t["forward"]
    print(f"| trace / a forward pass | {ratio:.2f} | 1.10 | {held(ratio, 1.10)} |")
    print(f"\nThe two ways differ by at most {apart:.1g} in relevance.")


def memory_table() -> None:
    print("\n## 4,096 tokens, 12 layers, 12 heads (1,024 px, batch 1; each side in a process of its own)\n")
    print("| side | peak resident memory / bare | at most | held | CPU time / bare | at most | held |")
    print("|---|---|---|---|---|---|---|")
    found = {side: _alone(side) for side in ("bare", "relevance", "eager")}
    base = found["bare"]
    assert base is not None
    for side, memory, cpu in (("relevance", 1.10, 1.15), ("eager", None, None)):
        one = found[side]
        if one is None:
            print(f"| {side} | does not fit into the memory here | | | | | |")
            continue
        m, c = one[0] / base[0], one[1] / base[1]
        words = (f"{memory:.2f}", held(m, memory), f"{cpu:.2f}", held(c, cpu)) if memory and cpu else ("", "", "", "")
        print(f"| {side} | {m:.2f} | {words[0]} | {words[1]} | {c:.2f} | {words[2]} | {words[3]} |", flush=True)
    print(f"\nBare's peak is {base[0] / 2**10:.0f} MiB.")


def _alone(side: str) -> tuple[float, float] | None:
    """(peak KiB, CPU seconds) of one side in a process of its own; None where it was killed."""
    done = subprocess.run([sys.executable, __file__, "--alone", side], capture_output=True, text=True, env=os.environ)
    if done.returncode != 0:
        return None
    memory, seconds = done.stdout.split()[-2:]
    return float(memory), float(seconds)


def alone(side: str) -> None:
    import resource

    model = vit_base("eager" if side == "eager" else "sdpa", 1024)
    x = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))
    started = time.process_time()
    {"bare": bare, "relevance": relevance, "eager": eager}[side](model, x)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time() - started)


def gpu_table(repeats: int) -> None:
    """The speed and memory tables on a GPU, per precision, and the most tokens that each way holds there."""
    print(f"\n## On {torch.cuda.get_device_name()}: ViT-Base, 224 px, batch 4 (wall time)\n")
    print("The most tokens that fit, batch 1, are the most of 1,024, 4,096, 16,384 and 65,536.\n")
    print("| precision | attention_relevance / bare | trace / forward | eager / bare | most tokens, relevance | most tokens, eager |")
    print("|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        model, twin = (vit_base(attention).to("cuda", dtype) for attention in ("sdpa", "eager"))
        x = torch.randn(4, 3, 224, 224, device="cuda", dtype=dtype)
        sides = {
            "bare": lambda m=model, x=x: bare(m, x),
            "relevance": lambda m=model, x=x: relevance(m, x),
            "eager": lambda m=twin, x=x: eager(m, x),
            "forward": lambda m=model, x=x: forward(m, x),
            "trace": lambda m=model, x=x: zl.trace(m, x),
        }
        t = cpu_seconds(sides, repeats, synchronised)
        most = [largest(side, attention, dtype) for side, attention in ((relevance, "sdpa"), (eager, "eager"))]
        ratios = (t["relevance"] / t["bare"], t["trace"] / t["forward"], t["eager"] / t["bare"])
        print(f"| {dtype} | {' | '.join(f'{r:.2f}' for r in ratios)} | {most[0]} | {most[1]} |", flush=True)


def largest(side: Callable[[nn.Module, Tensor], Any], attention: str, dtype: torch.dtype) -> str:
    """Tokens of the largest of four pictures that a way gets through without running out of memory."""
    best = "less than 1,024"
    for image in (512, 1024, 2048, 4096):
        try:
            model = vit_base(attention, image).to("cuda", dtype)
            side(model, torch.randn(1, 3, image, image, device="cuda", dtype=dtype))
        except torch.OutOfMemoryError:
            return best
        finally:
            model = None
            torch.cuda.empty_cache()
        best = f"{(image // 16) ** 2:,}"
    return f"{best} or more"


def synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["pointing", "speed", "memory", "gpu"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    if arguments.alone:
        alone(arguments.alone)
        return
    tables = {"pointing": pointing_table, "speed": lambda: speed_table(arguments.repeats), "memory": memory_table}
    if torch.cuda.is_available():
        tables["gpu"] = lambda: gpu_table(arguments.repeats)
    if arguments.only == "gpu" and "gpu" not in tables:
        raise SystemExit("no GPU here")
    for name, table in tables.items():
        if arguments.only in (None, name):
            table()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
