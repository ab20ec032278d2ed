"""The call that the CAM family shares: one gradient at the site, an explicit baseline, and the changes of one member.

``a = (z - z0) * df/dz(z)`` with ``maths.cam.Changes`` applied. The published forms have z0 = 0 and do not say so (Cui & Fan 2026,
"The Neglected Baseline"; our reading of its analysis of LayerCAM, ODAM and Difference Map). Which changes a member makes is
said in its own file: ``grad_cam``, ``layer_cam``, ``odam``, ``difference_map``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from zeroline.attribution import Attribution
from zeroline.baseline import BaselineLike
from zeroline.maths.cam import Changes, budget, stages
from zeroline.model.ask import ask
from zeroline.model.positions import positions_of
from zeroline.site import SiteLike
from zeroline.target import TargetLike

Grid = tuple[int, int] | None


def class_activation(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    site: SiteLike,
    baseline: BaselineLike,
    method: str,
    changes: Changes,
    grid: Grid = None,
    prefix: int | None = None,
) -> Attribution:
    """One member's values at a site with their error budget; see the members for arguments, shapes and errors."""
    with ask(model, inputs, target=target, site=site, baseline=baseline, gradient=True) as question:
        assert question.gradient is not None
        lies = [positions_of(model, question.inputs, z, grid, prefix) for z in question.features]
        found = [stages(step, g, changes, lie) for step, g, lie in zip(question.steps, question.gradient, lies)]
        settings = {**asdict(changes), "grid": list(lies[0].grid) if lies[0].grid else None, "prefix": lies[0].prefix}
        return question.answer(
            tuple(part["normalisation"].to(z.dtype) for part, z in zip(found, question.features)),
            method=method,
            settings=settings,
            evaluations=torch.ones(question.batch, dtype=torch.int64, device=question.output.device),
            budget=budget(found, question.output - question.baseline_output),
        )
