"""Class rewriting on a GPU: success on the file, the budget kept, records on the CPU; float32 and bfloat16."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import zeroline as zl
from zeroline import zoo

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("budget", [{"linf": 8 / 255}, {"l2": 2.0}, {"ssim": 0.97}, {"linf": 16 / 255, "patches": 8}])
def test_rewriting_on_a_gpu(digits_vit, dtype, budget, tmp_path):
    model = copy.deepcopy(digits_vit).to("cuda", dtype)
    chosen = zoo.test_set("digits-vit")[:3]
    found = zl.rewrite(model, [s.image for s in chosen], to="second", **budget)
    for sample, one in zip(chosen, found):
        one.save_image(tmp_path / "r.png")
        read = Image.open(tmp_path / "r.png")
        inputs = {name: value.to("cuda", dtype) for name, value in zoo.preprocess("digits-vit", read).items()}
        assert (digits_vit.config.id2label[int(model(**inputs).logits.argmax())] == one.to) == one.success
        assert one.rewritten.device.type == "cpu"
        if "linf" in budget:
            assert np.abs(np.asarray(read).astype(int) - np.asarray(sample.image).astype(int)).max() <= round(255 * budget["linf"])


def test_robustness_on_a_gpu(digits_vit):
    model = copy.deepcopy(digits_vit).to("cuda")
    found = zl.robustness(model, [s.image for s in zoo.test_set("digits-vit")[:3]])
    assert found.smallest.device.type == "cpu"
    assert bool(found.success.all())
