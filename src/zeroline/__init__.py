"""zeroline: what a model bases a prediction on, measured from a stated baseline.

A *target*, a *site*, a *baseline* and a *path* give an ``Attribution``, and an attribution knows its error.

>>> import torch, zeroline as zl
>>> model = torch.nn.Linear(3, 2).eval()
>>> x = torch.tensor([[1.0, 2.0, 3.0]])
>>> a = zl.integrated_gradients(model, x, target=0, baseline=zl.baseline.zeros())
>>> bool(torch.allclose(a.total, a.difference, atol=1e-6))
True

Importing zeroline loads torch and the standard library only; ``zl.zoo`` loads what it needs when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zeroline import baseline, errors, site, target
from zeroline.attribution import Attribution
from zeroline.audit import BaselineAudit
from zeroline.circuit import Mechanism
from zeroline.comparison import Comparison
from zeroline.corrected import Corrections
from zeroline.grounding import Grounding
from zeroline.guidance import Guidance
from zeroline.guided import Guest, guide, rewrite, robustness
from zeroline.measure import (
    ErrorBudget,
    LabelledSet,
    audit_baseline,
    check_principles,
    compare,
    corrections,
    deletion_insertion,
    error_budget,
    layers,
)
from zeroline.methods import (
    METHODS,
    ROUTES,
    attention_eclip,
    attention_relevance,
    attention_transfer,
    difference_map,
    grad_cam,
    grad_eclip,
    gradient_x_input,
    integrated_attention,
    integrated_gradients,
    layer_cam,
    odam,
    rollout,
    taylor,
)
from zeroline.model.dual_encoder import DualEncoder
from zeroline.model.listing import sites
from zeroline.model.surgery import capture, replaced
from zeroline.model.trace import trace
from zeroline.paradigm import ground, logic, mechanism, players
from zeroline.principles import Principles
from zeroline.reasoning import Logic, Player
from zeroline.relevance import Relevance
from zeroline.rewriting import Rewriting
from zeroline.similarity import similarity
from zeroline.target import contrast, logit, top
from zeroline.thresholds import Robustness

if TYPE_CHECKING:
    from zeroline.front_door import explain as explain
    from zeroline.front_door import load as load
    from zeroline.reporting import write_report as write_report
    from zeroline.scale import Run as Run
    from zeroline.scale import open_run as open_run
    from zeroline.scale import run as run
    from zeroline.scale import summarize as summarize
    from zeroline.summary import Summary as Summary

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "ROUTES",
    "Attribution",
    "BaselineAudit",
    "Comparison",
    "Corrections",
    "DualEncoder",
    "ErrorBudget",
    "Grounding",
    "Guest",
    "Guidance",
    "LabelledSet",
    "Logic",
    "Mechanism",
    "Player",
    "Principles",
    "Relevance",
    "Rewriting",
    "Robustness",
    "Run",
    "Summary",
    "attention_eclip",
    "attention_relevance",
    "attention_transfer",
    "audit_baseline",
    "baseline",
    "capture",
    "check_principles",
    "compare",
    "contrast",
    "corrections",
    "deletion_insertion",
    "difference_map",
    "error_budget",
    "errors",
    "explain",
    "grad_cam",
    "grad_eclip",
    "gradient_x_input",
    "ground",
    "guide",
    "integrated_attention",
    "integrated_gradients",
    "layer_cam",
    "layers",
    "load",
    "logic",
    "logit",
    "mechanism",
    "odam",
    "open_run",
    "players",
    "replaced",
    "rewrite",
    "robustness",
    "rollout",
    "run",
    "similarity",
    "site",
    "sites",
    "summarize",
    "target",
    "taylor",
    "top",
    "trace",
    "write_report",
    "zoo",
]


# what needs more than torch is loaded when it is first asked for
_LATER = {
    **dict.fromkeys(("Run", "open_run", "run", "summarize"), "zeroline.scale"),
    **dict.fromkeys(("explain", "load"), "zeroline.front_door"),
    "Summary": "zeroline.summary",
    "write_report": "zeroline.reporting",
}


def __getattr__(name: str) -> Any:
    if name == "zoo":
        return importlib.import_module("zeroline.zoo")
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'zeroline' has no attribute {name!r}")
