"""Leave no trace: everything that an explanation touches in a model is put back.

Holds the one ``with``-block that all surgery happens in. Inside it parameters are frozen (so that gradients go
to the site and nowhere else), gradients are enabled whatever the caller's mode, and the random state is the
caller's on exit. Hooks and replaced forwards are undone where they are made (``places``, ``suffix``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from zeroline.errors import ModelStateError


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Freeze ``model`` for the length of the block; restore flags and random state on any exit."""
    if not isinstance(model, nn.Module):
        raise ModelStateError(f"a model is a torch.nn.Module, not {type(model).__name__}")
    refuse_training(model)
    if any(p.is_inference() for p in model.parameters()):
        raise ModelStateError("the model was made in inference mode, so nothing in it can have a gradient; make or load it outside of it")
    learning = [p for p in model.parameters() if p.requires_grad]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    fast_path = torch.backends.mha.get_fastpath_enabled()
    recurrent = bool(devices) and any(isinstance(module, nn.RNNBase) for module in model.modules())
    # cuDNN has no backward pass for recurrent layers in evaluation mode
    kernels = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad(), kernels:
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # it answers otherwise on padded rows, and has no gradient
            for parameter in learning:
                parameter.requires_grad_(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for parameter in learning:
                parameter.requires_grad_(True)


def refuse_training(model: nn.Module) -> None:
    """Raise where the model is in training mode and would answer at random, or learn, while explained."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    for name, module in model.named_modules():
        if not module.training:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ModelStateError(f"the model is in training mode and {name!r} drops out at random (p={module.p:g}); call model.eval() first")
        if isinstance(module, norms) and module.track_running_stats:
            raise ModelStateError(f"the model is in training mode and {name!r} would update its running statistics; call model.eval() first")
