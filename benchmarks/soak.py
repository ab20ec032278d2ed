"""Runs that are killed, starved and damaged, and what they end with: every example exactly once, values as of an undisturbed run.

    python benchmarks/soak.py              the long one: 2,000 examples, 50 kills (about 20 minutes on two cores)
    python benchmarks/soak.py --short      a few of each

Every run is a process of its own (``zeroline run``), killed from outside. Prints the table of docs/runs.md.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import zeroline as zl

METHOD = ["--method", "integrated_gradients", "--option", "path=gausslegendre", "--option", "n_steps=4", "--batch-size", "16"]
ZEROLINE = [str(Path(sys.executable).with_name("zeroline")), "run"]
FLUSH = ["--flush-seconds", "0.3"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


def pictures(folder: Path, count: int) -> Path:
    """``count`` photo-digits with their labels and boxes."""
    from PIL import Image

    from zeroline.zoo.photo_digits import DIGITS, PhotoDigits

    data = PhotoDigits("test", 20)
    folder.mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label", "box"])
        for number in range(count):
            scene = data.scene(1)
            Image.fromarray(scene.pixels).save(folder / f"{number:05d}.png")
            (one,) = scene.objects
            rows.writerow([f"{number:05d}.png", DIGITS[one.digit], ",".join(map(str, one.box))])
    return folder


def command(source: Path, out: Path, *more: str) -> list[str]:
    return [*ZEROLINE, str(source), "--out", str(out), *METHOD, *FLUSH, *more]


def finish(asked: list[str], **options: object) -> None:
    """Run to the end; an error with what it said where it fails."""
    done = subprocess.run(asked, capture_output=True, text=True, env=QUIET, timeout=1200, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(asked)}\nended with {done.returncode}: {done.stderr[-2000:]}")


def rows(out: Path) -> dict[str, bytes]:
    """id -> its values as bytes; an error where an example is there twice."""
    found: dict[str, bytes] = {}
    for row in zl.open_run(out).rows(["id", "values"]):
        if row["id"] in found:
            raise SystemExit(f"{out}: {row['id']} is there twice")
        found[row["id"]] = np.array(row["values"], np.float32).tobytes()
    return found


def furthest(a: dict[str, bytes], b: dict[str, bytes]) -> float:
    """The largest difference of any value, as a share of the largest value of its example."""
    if a.keys() != b.keys():
        raise SystemExit(f"{len(a)} and {len(b)} examples; {len(a.keys() ^ b.keys())} are in one alone")
    worst = 0.0
    for id, left in a.items():
        if left != b[id]:
            one, other = np.frombuffer(left, np.float32), np.frombuffer(b[id], np.float32)
            worst = max(worst, float(np.abs(one - other).max() / np.abs(one).max()))
    return worst


def first_shard(source: Path, out: Path, *more: str) -> float:
    """Seconds from the start of a process to its first shard; the run is let end."""
    started = time.monotonic()
    process = subprocess.Popen(command(source, out, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=QUIET)
    while process.poll() is None and not any((out / "records").glob("part-*")):
        time.sleep(0.05)
    passed = time.monotonic() - started
    process.wait(timeout=900)
    return passed


def killed(asked: list[str], seconds: float) -> bool:
    """SIGKILL after ``seconds`` of a run that would go on; False where it had ended before. Ray's processes die with their driver."""
    process = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=QUIET, start_new_session=True)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


def drivers(source: Path, out: Path, kills: int, draw: random.Random, after: float, *more: str) -> str:
    """Kill the driver at random moments, from its start until ``after`` seconds after its first shard; then let it end."""
    start = first_shard(source, out, *more)
    shutil.rmtree(out)
    count = useful = done = 0
    while count < kills:
        if not killed(command(source, out, *more), draw.uniform(0.3 * start, start + after)):
            shutil.rmtree(out)  # it had ended: from the beginning
            done = 0
            continue
        count += 1
        now = len(zl.open_run(out)) if (out / "manifest.json").exists() else 0
        useful += now > done
        done = now
    finish(command(source, out, *more))
    return f"{count} times, {useful} of them after it had written"


def workers(source: Path, out: Path, kills: int, draw: random.Random) -> int:
    """Kill Ray's actors one after the other while the run goes on."""
    process = subprocess.Popen(
        command(source, out, "--engine", "ray", "--workers", "2"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=QUIET
    )
    count = 0
    while process.poll() is None and count < kills:
        time.sleep(draw.uniform(1, 4))
        actors = subprocess.run(["pgrep", "-f", "ray::.*Worker"], capture_output=True, text=True).stdout.split()
        if actors and any((out / "records").glob("part-*")):
            os.kill(int(draw.choice(actors)), signal.SIGKILL)
            count += 1
    process.wait(timeout=900)
    if process.returncode:
        raise SystemExit(f"the run with killed workers ended with {process.returncode}: {process.stderr.read()[-2000:]!r}")  # type: ignore[union-attr]
    return count


def node(source: Path, out: Path) -> int:
    """Kill one of two nodes under the run, then add another."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    asked = command(source, out, "--engine", "ray", "--workers", "2", "--address", cluster.address)
    process = subprocess.Popen(asked, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=QUIET)
    try:
        while not any((out / "records").glob("part-*")) and process.poll() is None:
            time.sleep(0.2)
        cluster.remove_node(lost, allow_graceful=False)
        time.sleep(3)
        cluster.add_node(num_cpus=1)
        process.wait(timeout=900)
    finally:
        process.kill()
        cluster.shutdown()
    if process.returncode:
        raise SystemExit(f"the run that lost a node ended with {process.returncode}: {process.stderr.read()[-2000:]!r}")  # type: ignore[union-attr]
    return 1


def full_disk(source: Path, out: Path, count: int) -> str:
    """A small disk of its own fills up under the run, then grows (needs root; else no file may grow beyond 200 KB). Returns what was said."""
    disk = out.with_name("disk")
    disk.mkdir()
    small = f"size={max(1, count // 100)}m"
    has_disk = subprocess.run(["mount", "-t", "tmpfs", "-o", small, "tmpfs", str(disk)], capture_output=True).returncode == 0

    def starved() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    try:
        done = subprocess.run(command(source, disk / "run"), capture_output=True, text=True, env=QUIET, preexec_fn=None if has_disk else starved)
        if done.returncode != 1 or "cannot write" not in done.stderr or "Traceback" in done.stderr:
            raise SystemExit(f"with a full disk it ended with {done.returncode}: {done.stderr[-500:]}")
        if list(disk.rglob("*.partial")):
            raise SystemExit("half a file was left")
        before = len(zl.open_run(disk / "run"))
        if has_disk:
            subprocess.run(["mount", "-o", "remount,size=2g", str(disk)], check=True)
        finish(command(source, disk / "run"))
        shutil.copytree(disk / "run", out)
    finally:
        if has_disk:
            subprocess.run(["umount", str(disk)], check=True)
    return f"once, with {before} rows on it"


def truncated(source: Path, out: Path, draw: random.Random) -> int:
    """Shards of a finished run cut at random bytes."""
    finish(command(source, out))
    shards = sorted((out / "records").glob("part-*"))
    cut = draw.sample(shards, min(3, len(shards)))
    for shard in cut:
        size = shard.stat().st_size
        with shard.open("rb+") as file:
            file.truncate(draw.randrange(size))
    finish(command(source, out))
    return len(cut)


def clock_back(source: Path, out: Path) -> None:
    """The second session believes that it runs a year before the first."""
    killed(command(source, out), 6)
    for file in out.rglob("*"):
        os.utime(file, (time.time() + 10_000_000, time.time() + 10_000_000))
    before = "import sys, time; real = time.time; time.time = lambda: real() - 31_536_000; from zeroline.cli import main; main(sys.argv[1:])"
    finish([sys.executable, "-c", before, *command(source, out)[1:]])


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--short", action="store_true")
    asked.add_argument("--examples", type=int)
    asked.add_argument("--kills", type=int)
    asked.add_argument("--only", choices=["drivers", "ray-driver"], help="kill drivers (of both engines, or Ray's), and nothing else")
    given = asked.parse_args()
    examples = given.examples or (120 if given.short else 2000)
    kills = given.kills or (3 if given.short else 50)
    draw = random.Random(8)
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    source = pictures(work / "pictures", examples)
    finish(command(source, work / "undisturbed"))
    right = rows(work / "undisturbed")

    def check(what: str, out: Path, disturbed: object) -> None:
        found = rows(out)
        apart = furthest(right, found)
        values = "bit for bit" if apart == 0 else f"{apart:.1e}"
        print(f"| {what} | {disturbed} | {len(found):,} of {examples:,} | {values} |", flush=True)

    print("| fault | how often | rows afterwards | values against an undisturbed run |\n|---|---|---|---|")
    try:
        if given.only != "ray-driver":
            check("local engine: the process killed", work / "local", drivers(source, work / "local", kills, draw, 5))
        how = drivers(source, work / "ray", max(1, kills // 5), draw, 15, "--engine", "ray", "--workers", "2")
        check("Ray: the driver killed", work / "ray", how)
        if given.only is not None:
            return
        count = workers(source, work / "workers", max(1, kills // 5), draw)
        check("Ray: a worker killed", work / "workers", f"{count} times in one run")
        check("Ray: one of two nodes killed, another added", work / "node", f"{node(source, work / 'node')} time")
        check("the disk full, then not", work / "full", full_disk(source, work / "full", examples))
        count = truncated(source, work / "cut", draw)
        check("shards cut at random bytes", work / "cut", f"{count} shards")
        clock_back(source, work / "clock")
        check("killed, then the clock a year back", work / "clock", "once")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
