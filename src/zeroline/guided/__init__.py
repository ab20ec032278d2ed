"""Changing pictures to learn about a model: external attention guidance (``guide``), class rewriting (``rewrite``) and its robustness figures.

These are the only calls that make new pictures; models stay as they are.
"""

from __future__ import annotations

from zeroline.guided.class_rewriting import rewrite
from zeroline.guided.guide import Guest, guide
from zeroline.guided.robustness import robustness

__all__ = ["Guest", "guide", "rewrite", "robustness"]
