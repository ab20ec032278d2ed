"""The methods: one paper, one file. ``METHODS`` and ``ROUTES`` are the tables that the command line and the tests go through.

``METHODS`` give an ``Attribution`` at a site from a baseline; ``ROUTES`` go through a model's attentions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zeroline.attribution import Attribution
from zeroline.methods.attention_relevance import attention_relevance
from zeroline.methods.attention_transfer import attention_transfer
from zeroline.methods.gradient_x_input import gradient_x_input
from zeroline.methods.integrated_attention import integrated_attention
from zeroline.methods.integrated_gradients import integrated_gradients
from zeroline.methods.rollout import rollout
from zeroline.methods.taylor import taylor

METHODS: dict[str, Callable[..., Attribution]] = {
    "gradient_x_input": gradient_x_input,
    "integrated_gradients": integrated_gradients,
    "taylor": taylor,
}

ROUTES: dict[str, Callable[..., Any]] = {
    "attention_relevance": attention_relevance,
    "attention_transfer": attention_transfer,
    "integrated_attention": integrated_attention,
    "rollout": rollout,
}

__all__ = [
    "METHODS",
    "ROUTES",
    "attention_relevance",
    "attention_transfer",
    "gradient_x_input",
    "integrated_attention",
    "integrated_gradients",
    "rollout",
    "taylor",
]
