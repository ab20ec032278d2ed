"""Runs over datasets: against a bare loop, in memory, with workers, and what each part costs.

    python benchmarks/scale.py                 20,000 examples (about half an hour on two quiet cores)
    python benchmarks/scale.py --examples 2000

Prints the tables of docs/runs.md and draws docs/images/run-memory.png. One thread per process; figures of one line come from one run, side by side.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

import zeroline as zl
from soak import pictures
from zeroline import zoo

QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}
RULE = {"path": "gausslegendre", "n_steps": 4}
ASKED = (
    ("integrated_gradients", {}, 64),
    ("integrated_gradients", RULE, 16),
    ("attention_relevance", {}, 64),
    ("gradient_x_input", {}, 64),
)


def bare(folder: Path, method: str, options: dict[str, object], batch: int, count: int) -> float:
    """Examples per second of a loop that reads, prepares and explains the same, and keeps nothing."""
    from PIL import Image

    model = zoo.load("digits-vit")
    function = zl.METHODS.get(method) or zl.ROUTES[method]
    more = {"baseline": zl.baseline.black()} if method in zl.METHODS else {}
    files = sorted(folder.glob("*.png"))[:count]
    started = time.perf_counter()
    for first in range(0, count, batch):
        inputs = [zoo.preprocess("digits-vit", Image.open(file).convert("RGB")) for file in files[first : first + batch]]
        joined = {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
        function(model, joined, target=zl.top(), **more, **options)
    return count / (time.perf_counter() - started)


def ours(folder: Path, out: Path, method: str, options: dict[str, object], batch: int, count: int) -> float:
    """Examples per second of a run, its last shard on the disk."""
    shutil.rmtree(out, ignore_errors=True)
    found = zl.run(folder, model="zoo:digits-vit", out=out, method=method, options=options, batch_size=batch, limit=count)
    session = found.manifest.sessions[-1]
    return session["done"] / session["seconds"]


def against_bare(folder: Path, work: Path, count: int, rounds: int) -> None:
    print("| method | bare loop, per second | run, per second | run over bare |\n|---|---|---|---|")
    for method, options, batch in ASKED:
        size = min(count, 400 if method == "integrated_gradients" and not options else 2000)
        pairs = [(bare(folder, method, options, batch, size), ours(folder, work / "out", method, options, batch, size)) for _ in range(rounds)]
        ratios = sorted(b / a for a, b in pairs)
        name = f"{method}, {'4 nodes' if options else 'adaptive path'}" if method == "integrated_gradients" else method
        middle = [statistics.median(side) for side in zip(*pairs)]
        print(f"| {name} | {middle[0]:.0f} | {middle[1]:.0f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |", flush=True)


def equal(folder: Path, work: Path, count: int) -> None:
    """Values with other batch sizes against those of batches of one."""
    print("\n| method | batch | examples on the same path | largest difference, in units of the target | as a share of the example's largest value |")
    print("|---|---|---|---|---|")
    for method, options, _ in ASKED:
        name = f"{method}, {'4 nodes' if options else 'adaptive path'}" if method == "integrated_gradients" else method
        found = {}
        for batch in (1, 16, 64):
            ours(folder, work / "out", method, options, batch, count)
            found[batch] = {id: (record, _values(record)) for id, record in zl.open_run(work / "out").records()}
        for batch in (16, 64):
            same = {id for id, (record, _) in found[1].items() if _path(record) == _path(found[batch][id][0])}
            apart = {id: float((found[1][id][1] - found[batch][id][1]).abs().max()) for id in same}
            shares = [apart[id] / float(found[1][id][1].abs().max()) for id in same]
            print(f"| {name} | {batch} | {len(same)} of {count} | {max(apart.values()):.1e} | {max(shares):.1e} |", flush=True)


def _values(record: object) -> torch.Tensor:
    return record.values if isinstance(record, zl.Attribution) else record.of("pixel_values")  # type: ignore[attr-defined]


def _path(record: object) -> object:
    """How many nodes an adaptive path took; the same count may still be other nodes."""
    return int(record.evaluations) if isinstance(record, zl.Attribution) else None


def memory(folder: Path, out: Path, count: int) -> None:
    """Resident memory of a run's process while it goes through all examples."""
    program = (
        "import json, sys, time, zeroline as zl\n"
        "def rss(): return int(open('/proc/self/statm').read().split()[1]) * 4096 / 2**20\n"
        "zl.run(sys.argv[1], model='zoo:digits-vit', out=sys.argv[2], options={'path': 'gausslegendre', 'n_steps': 4}, batch_size=16,\n"
        "       progress=lambda p: print(json.dumps([p.done, rss(), time.monotonic()]), flush=True))\n"
    )
    import json

    said = subprocess.run([sys.executable, "-c", program, str(folder), str(out)], capture_output=True, text=True, env=QUIET, check=True).stdout
    points = [json.loads(line) for line in said.splitlines()]
    marks = [count * share // 10 for share in range(1, 11)]
    shown = [next(point for point in points if point[0] >= mark) for mark in marks]
    print("\n| examples done | " + " | ".join(f"{done:,}" for done, _, _ in shown) + " |\n|---" * 1 + "|---" * len(shown) + "|")
    print("| resident memory, MiB | " + " | ".join(f"{size:.0f}" for _, size, _ in shown) + " |")
    seconds = points[-1][2] - points[0][2]
    stored = sum(file.stat().st_size for file in out.rglob("*.parquet"))
    print(f"\n{count:,} examples, {(points[-1][0] - points[0][0]) / seconds:.0f} per second; {stored / 2**20:,.0f} MiB of shards\n", flush=True)
    draw(points, Path(__file__).parents[1] / "docs" / "images" / "run-memory.png")


def draw(points: list[list[float]], file: Path) -> None:
    from matplotlib.figure import Figure

    from zeroline.report import figure

    drawn = Figure(figsize=(6.4, 2.8), dpi=130, facecolor="white", layout="constrained")
    axis = drawn.subplots()
    axis.plot([point[0] for point in points], [point[1] for point in points], color="#0072B2")
    axis.set_ylim(0, None)
    axis.set_xlabel("examples done", fontsize=9)
    axis.set_ylabel("resident memory, MiB", fontsize=9)
    figure.save(drawn, file)


def summary(folder: Path, out: Path, count: int) -> None:
    """The picture of docs/runs.md: each example's own label explained, summarized."""
    from zeroline.report import figure, summary_figure

    found = zl.summarize(zl.run(folder, model="zoo:digits-vit", out=out, target="label", limit=count))
    print(f"{found}\n", flush=True)
    figure.save(summary_figure.figure(found), Path(__file__).parents[1] / "docs" / "images" / "summary.png")


def workers(folder: Path, work: Path, count: int, rounds: int) -> None:
    """Two single-thread workers against one, on one machine of two cores; Ray's start apart."""
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(rounds):
        for number in found:
            program = (
                "import sys, time, zeroline as zl\n"
                "marks = []\n"
                "started = time.monotonic()\n"
                "zl.run(sys.argv[1], model='zoo:digits-vit', out=sys.argv[2], batch_size=16, engine='ray', workers=int(sys.argv[3]),\n"
                "       limit=int(sys.argv[4]), progress=lambda p: marks.append((time.monotonic(), p.done)))\n"
                "cut = len(marks) // 8\n"
                "print((marks[-1][1] - marks[cut][1]) / (marks[-1][0] - marks[cut][0]), marks[0][0] - started)\n"
            )
            shutil.rmtree(work / "ray", ignore_errors=True)
            asked = [sys.executable, "-c", program, str(folder), str(work / "ray"), str(number), str(count)]
            pace, start = map(float, subprocess.run(asked, capture_output=True, text=True, env=QUIET, check=True).stdout.split())
            found[number].append((pace, start))
    paces = {number: statistics.median(pace for pace, _ in all_) for number, all_ in found.items()}
    ratios = sorted(two / one for (one, _), (two, _) in zip(found[1], found[2]))
    print("| workers | examples per second once they work | seconds before the first result |\n|---|---|---|")
    for number, all_ in found.items():
        print(f"| {number} | {paces[number]:.1f} | {statistics.median(start for _, start in all_):.1f} |")
    print(f"\nTwo workers over one: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})\n", flush=True)


def parts(work: Path) -> None:
    """What one example of 224 x 224 pixels costs beside the model: read and hash, decode and prepare, hand over, write."""
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    from zeroline.scale.explainer import Finished
    from zeroline.scale.ray_engine import _packed, _unpacked
    from zeroline.scale.store import _write_parquet

    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    held = io.BytesIO()
    smooth.save(held, "JPEG", quality=90)
    raw = held.getvalue()

    def each(function: object, times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            function()  # type: ignore[operator]
        return (time.perf_counter() - started) / times * 1000

    def decoded() -> object:
        image = Image.open(io.BytesIO(raw)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        return (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5

    import hashlib

    def across(finished: Finished) -> Finished:
        return _unpacked(_packed(finished))

    rows, file = 64, work / "one.parquet"
    print("| part, per example of 224 x 224 | milliseconds on one core | bytes on the disk |\n|---|---|---|")
    print(f"| hash a JPEG of {len(raw) // 1024} KiB | {each(lambda: hashlib.sha256(raw).hexdigest(), 200):.2f} | |")
    decode = each(decoded, 50)
    print(f"| decode it (500 x 375), resize, normalise | {decode:.2f} | |")
    driver: dict[str, float] = {}
    for keep, shape in (("values", (3, 224, 224)), ("map", (224, 224)), ("map of 14 x 14 tokens", (14, 14))):
        # heavy tails, as attributions have: noise compresses worse than they do
        values = (random.standard_normal((rows, *shape)) * random.random((rows, *[1] * len(shape))) ** 3).astype(np.float32)
        arrays = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
        table = pa.table({"id": [str(i) for i in range(rows)], "number": list(range(rows)), "values": arrays})
        write = each(partial(_write_parquet, file, table, {}), 3) / rows
        hand = each(partial(across, Finished(table)), 3) / rows
        driver[keep] = hand + write
        print(f"| keep {keep}: hand over between processes | {hand:.3f} | |")
        print(f"| keep {keep}: compress and write | {write:.3f} | {file.stat().st_size // rows:,} |")
    growth(decode, driver)


def growth(decode: float, driver: dict[str, float], pace: float = 20.0) -> None:
    """Hours for a million examples, and what they wait for: the models, one decoding core per GPU, or the driver that writes."""
    print(f"\n| GPUs, each {pace:g} examples per second | " + " | ".join(f"keep {keep}" for keep in driver) + " |\n|---|---|---|---|")
    for gpus in (1, 8, 64):
        cells = []
        for cost in driver.values():
            limits = {"model": gpus * pace, "decode": gpus * 1000 / decode, "write": 1000 / cost}
            slowest = min(limits, key=lambda part: limits[part])
            cells.append(f"{1e6 / limits[slowest] / 3600:.1f} h ({slowest})")
        print(f"| {gpus} | " + " | ".join(cells) + " |")
    caps = ", ".join(f"{1000 / cost:,.0f} (keep {keep})" for keep, cost in driver.items())
    print(f"\nOne core decodes {1000 / decode:.0f} examples per second; the driver writes {caps}.")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--examples", type=int, default=20_000)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--only", choices=["summary", "bare", "equal", "memory", "workers", "parts"])
    given = asked.parse_args()
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="scale-"))
    try:
        folder = pictures(work / "pictures", given.examples)
        if given.only in (None, "summary"):
            summary(folder, work / "summary", min(given.examples, 2000))
        (folder / "labels.csv").unlink()
        every = {
            "bare": lambda: against_bare(folder, work, given.examples, given.rounds),
            "equal": lambda: equal(folder, work, min(given.examples, 200)),
            "memory": lambda: memory(folder, work / "memory", given.examples),
            "workers": lambda: workers(folder, work, min(given.examples, 1000), given.rounds),
            "parts": lambda: parts(work),
        }
        for name, part in every.items():
            if given.only in (None, name):
                part()
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
