"""Runs on a GPU: the same rows as on the CPU, in float32 and bfloat16, and batches that the GPU's memory does not hold."""

import numpy as np
import pytest
import torch

import zeroline as zl
from zeroline import zoo

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
RULE = {"path": "gausslegendre", "n_steps": 8}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for sample in zoo.samples("digits-vit")[:10]:
        sample.image.save(folder / f"{sample.name}.png")
    return folder


def values(run):
    return {row["id"]: np.array(row["values"]) for row in run.rows(["id", "values"])}


@pytest.mark.parametrize(("dtype", "close"), [("float32", 2e-3), ("bfloat16", 0.2)])
def test_a_gpu_gives_the_rows_of_the_cpu(dtype, close, pictures, tmp_path, exact_kernels):
    asked = {"model": "zoo:digits-vit", "options": RULE, "target": "seven"}
    here = values(zl.run(pictures, out=tmp_path / "cpu", device="cpu", **asked))
    there = values(zl.run(pictures, out=tmp_path / "gpu", device="cuda", dtype=dtype, **asked))
    assert here.keys() == there.keys()
    for id, right in here.items():
        assert np.abs(there[id] - right).max() <= close * np.abs(right).max()


def test_a_batch_that_the_gpu_does_not_hold_is_halved(pictures, tmp_path):
    class Greedy(torch.nn.Module):
        """Takes 2 GiB per row beyond what is free for five."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3, 2, device="cuda"))

        def forward(self, pixels):
            free = torch.cuda.mem_get_info()[0]
            held = torch.empty(len(pixels), free // 5, dtype=torch.uint8, device="cuda")
            return pixels.mean((2, 3)) @ self.weight + 0 * held[:, :1].float().mean()

    def seen(image):
        return torch.tensor(np.asarray(image).copy(), device="cuda").permute(2, 0, 1)[None].float() / 255

    model = Greedy().eval()
    run = zl.run(pictures, model=model, preprocess=seen, out=tmp_path / "run", method="gradient_x_input", target=0, baseline="zeros", batch_size=10)
    assert len(run) == 10
    assert max(row["batch"] for row in run.rows(["batch"])) < 10
