"""The Ray engine against the local one, and what it survives: workers, nodes and drivers that are killed in the middle of a run.

Ray runs in processes of its own; every run here is one, as a user starts it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import zeroline as zl
from zeroline import zoo
from zeroline.errors import UsageError
from zeroline.scale.explainer import Finished
from zeroline.scale.prepare import Failure
from zeroline.scale.ray_engine import _packed, _unpacked

ZEROLINE = [str(Path(sys.executable).with_name("zeroline")), "run"]
STEADY = ["--option", "path=gausslegendre", "--option", "n_steps=6", "--batch-size", "4", "--flush-seconds", "0"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}
COUNT = 72
MOST = 600  # seconds that anything here may take


class Cluster:
    """A cluster of two nodes in a process of its own."""

    def __init__(self):
        asked = [sys.executable, str(Path(__file__).with_name("cluster.py"))]
        self.process = subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=QUIET)
        self.address = next(line for line in self.process.stdout if line.startswith("address")).split()[1]

    def tell(self, what):
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        while self.process.stdout.readline().strip() != "done":
            assert self.process.poll() is None


@pytest.fixture(scope="module")
def cluster():
    made = Cluster()
    yield made
    made.process.stdin.close()
    made.process.stdout.close()
    try:
        made.process.wait(30)
    except subprocess.TimeoutExpired:
        made.process.kill()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """72 pictures: the samples of the zoo, three times, each time moved by some pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        image = zoo.samples("digits-vit")[number % 24].image
        image.transform(image.size, 0, (1, 0, number // 24, 0, 1, number // 24)).save(folder / f"{number:02d}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def local(source, tmp_path_factory):
    return values(finished(source, tmp_path_factory.mktemp("local") / "run"))


def finished(source, out, *more):
    done = subprocess.run([*ZEROLINE, str(source), "--out", str(out), *STEADY, *more], capture_output=True, text=True, env=QUIET, timeout=MOST)
    assert done.returncode == 0, done.stderr
    return out


def started(source, out, *more):
    return subprocess.Popen([*ZEROLINE, str(source), "--out", str(out), *STEADY, *more], stderr=subprocess.PIPE, env=QUIET, text=True)


def after_a_shard(out, process):
    """Wait until the run has written something."""
    until = time.monotonic() + MOST
    while not any((out / "records").glob("part-*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)


def values(out):
    run = zl.open_run(out)
    rows = [(row["id"], np.array(row["values"])) for row in run.rows(["id", "values"])]
    assert len(rows) == len({id for id, _ in rows}) == COUNT, "every example once"
    assert [one["id"] for one in run.failures.to_pylist()] == ["broken.png"]
    return dict(rows)


def same(found, right):
    assert found.keys() == right.keys()
    for id, values in right.items():
        np.testing.assert_allclose(found[id], values, atol=1e-6 * np.abs(values).max(), rtol=0)


def test_two_workers_give_what_one_process_gives(cluster, source, local, tmp_path):
    out = finished(source, tmp_path / "run", "--engine", "ray", "--workers", "2", "--address", cluster.address)
    same(values(out), local)
    told = zl.open_run(out).manifest
    assert told.state == "complete"
    assert told.sessions[-1]["engine"] == f"ray, 2 workers of 1 CPU and 0 GPU at {cluster.address}"


def test_a_finished_run_is_not_run_again_whichever_engine_asks(cluster, source, local, tmp_path):
    out = finished(source, tmp_path / "run", "--limit", "40")
    finished(source, out, "--engine", "ray", "--address", cluster.address)
    told = zl.open_run(out).manifest.sessions
    assert (told[0]["done"], told[1]["unchanged"], told[1]["done"]) == (40, 40, COUNT - 40)
    same(values(out), local)


def test_a_worker_that_is_killed_is_replaced(cluster, source, local, tmp_path):
    out = tmp_path / "run"
    process = started(source, out, "--engine", "ray", "--workers", "2", "--address", cluster.address)
    after_a_shard(out, process)
    actors = subprocess.run(["pgrep", "-f", "ray::.*Worker"], capture_output=True, text=True).stdout.split()
    assert actors
    os.kill(int(actors[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=MOST)
    assert process.returncode == 0, said
    same(values(out), local)


def test_a_driver_that_is_killed_goes_on_where_it_was(cluster, source, local, tmp_path):
    out = tmp_path / "run"
    asked = ("--engine", "ray", "--workers", "2", "--address", cluster.address)
    process = started(source, out, *asked)
    after_a_shard(out, process)
    process.kill()
    process.communicate()
    before = len(zl.open_run(out))
    finished(source, out, *asked)
    assert zl.open_run(out).manifest.sessions[-1]["unchanged"] >= before > 0
    same(values(out), local)


def test_more_gpus_than_there_are_are_refused_in_one_line(cluster, source, tmp_path):
    asked = [*ZEROLINE, str(source), "--out", str(tmp_path / "run"), "--engine", "ray", "--gpus-per-worker", "1", "--address", cluster.address]
    done = subprocess.run(asked, capture_output=True, text=True, env=QUIET, timeout=MOST)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: 1 workers of 1 GPUs were asked; the cluster has 0 GPUs"


def test_a_model_made_in_python_travels_to_the_workers(cluster, source, tmp_path):
    script = tmp_path / "ours.py"
    script.write_text(
        f"""
import sys, torch, zeroline as zl
from zeroline import zoo

class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.25, 8.0]]))

    def forward(self, pixels):
        return pixels.mean((2, 3)) ** 2 @ self.weight.T

def seen(image):
    return torch.tensor(list(image.convert("RGB").tobytes()), dtype=torch.float32).view(1, 64, 64, 3).permute(0, 3, 1, 2) / 255

if __name__ == "__main__":
    for engine, more in (("local", {{}}), ("ray", {{"workers": 1, "address": sys.argv[1]}})):
        zl.run({str(source)!r}, model=Mean().eval(), preprocess=seen, out={str(tmp_path)!r} + "/" + engine, target=zl.contrast(0, 1),
               baseline=zl.baseline.zeros(), method="gradient_x_input", limit=8, engine=engine, **more)
"""
    )
    done = subprocess.run([sys.executable, str(script), cluster.address], capture_output=True, text=True, env=QUIET, timeout=MOST)
    assert done.returncode == 0, done.stderr
    here, there = ({id: one.values for id, one in zl.open_run(tmp_path / engine).records()} for engine in ("local", "ray"))
    assert len(here) == 8
    assert all(torch.equal(here[id], there[id]) for id in here)


def test_a_node_that_is_lost_is_done_without(cluster, source, local, tmp_path):
    """The last one: the cluster has another second node afterwards."""
    out = tmp_path / "run"
    process = started(source, out, "--engine", "ray", "--workers", "2", "--address", cluster.address)
    after_a_shard(out, process)
    cluster.tell("lose")
    cluster.tell("add")
    _, said = process.communicate(timeout=MOST)
    assert process.returncode == 0, said
    same(values(out), local)


def test_a_cluster_that_is_not_there_is_said_in_one_line(source, tmp_path):
    asked = [*ZEROLINE, str(source), "--out", str(tmp_path / "run"), "--engine", "ray", "--address", "127.0.0.1:1"]
    done = subprocess.run(asked, capture_output=True, text=True, env=QUIET, timeout=MOST)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Ray cluster at '127.0.0.1:1'")
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_ray_the_command_that_installs_it_is_said(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'zeroline\[ray\]'"):
        zl.run(source, model="zoo:digits-vit", out=tmp_path / "run", engine="ray")


def test_what_is_finished_crosses_processes_as_bytes():
    import pyarrow as pa

    table = pa.table({"id": ["a"], "values": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(6, dtype=np.float32).reshape(1, 2, 3))})
    failure = Failure(3, "b", None, "a text", "0f", "prepare", "InputError", "what \u2028 it says")
    for one in (Finished(table, (failure,), 4), Finished(None, (failure, failure)), Finished(table)):
        back = _unpacked(_packed(one))
        assert (back.failures, back.unchanged) == (one.failures, one.unchanged)
        assert (back.table is None) == (one.table is None)
        assert one.table is None or back.table.equals(one.table)
    assert json.loads(json.dumps(vars(failure))) == vars(failure)
