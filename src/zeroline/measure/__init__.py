"""Measuring explanations and baselines: what a baseline says, where an error comes from, what layers and methods tell apart.

Holds no method: everything here takes methods by name or record. ``error_budget``, ``audit_baseline``, ``layers``, ``compare``,
``deletion_insertion`` and ``check_principles`` are the calls; their records are ``zeroline.comparison``, ``.audit`` and ``.principles``.
"""

from __future__ import annotations

from zeroline.measure.baseline_audit import audit_baseline
from zeroline.measure.compare import compare
from zeroline.measure.corrections import corrections
from zeroline.measure.deletion_insertion import deletion_insertion
from zeroline.measure.error_budget import ErrorBudget, error_budget
from zeroline.measure.layers import layers
from zeroline.measure.principles import LabelledSet, check_principles

__all__ = [
    "ErrorBudget",
    "LabelledSet",
    "audit_baseline",
    "check_principles",
    "compare",
    "corrections",
    "deletion_insertion",
    "error_budget",
    "layers",
]
