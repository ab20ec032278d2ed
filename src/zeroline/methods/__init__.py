"""The methods: one paper, one file. ``METHODS`` is the table that the command line and the tests go through."""

from __future__ import annotations

from collections.abc import Callable

from zeroline.attribution import Attribution
from zeroline.methods.gradient_x_input import gradient_x_input
from zeroline.methods.integrated_gradients import integrated_gradients
from zeroline.methods.taylor import taylor

METHODS: dict[str, Callable[..., Attribution]] = {
    "gradient_x_input": gradient_x_input,
    "integrated_gradients": integrated_gradients,
    "taylor": taylor,
}

__all__ = ["METHODS", "gradient_x_input", "integrated_gradients", "taylor"]
