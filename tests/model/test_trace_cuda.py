"""The tracer and relevance on a GPU, in float32 and bfloat16, against the CPU. Skipped where there is none."""

import pytest
import torch

import zeroline as zl
from attention_models import FAMILIES
from model.test_trace import built  # the weights and inputs of the CPU tests

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SOME = [family for family in FAMILIES if family.name in ("ViT", "Llama", "T5", "LXMERT", "Swin", "LLaVA")]


def moved(inputs, **to):
    if isinstance(inputs, torch.Tensor):
        return inputs.to(**to)
    return {name: t.to(to["device"]) if not t.is_floating_point() else t.to(**to) for name, t in inputs.items()}


@pytest.mark.parametrize(("dtype", "loose"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("family", SOME, ids=lambda f: f"{f.name} ({f.source})")
def test_relevance_on_the_gpu_is_that_of_the_cpu(family, dtype, loose):
    model, inputs = built(family, "sdpa")
    target = zl.target.output(family.read, "f")
    truth = zl.attention_relevance(model, inputs, target=target)
    found = zl.attention_relevance(model.to("cuda", dtype), moved(inputs, device="cuda", dtype=dtype), target=target)
    for name, r in found.by_source.items():
        assert r.device.type == "cuda"
        assert r.dtype == torch.float32
        scale = float(truth.by_source[name].abs().max()) or 1.0
        assert float((r.cpu() - truth.by_source[name]).abs().max()) <= loose * scale


def test_inputs_on_another_device_are_one_clear_error():
    model, inputs = built(FAMILIES[0], "sdpa")
    with pytest.raises(zl.errors.InputError, match="on cpu, the model on cuda"):
        zl.trace(model.cuda(), inputs)
