"""Measuring explanations and baselines: what a baseline says, where an error comes from, what layers and methods tell apart.

Holds no method: everything here takes methods by name or record. ``error_budget``, ``audit_baseline``, ``layers``, ``compare`` and
``deletion_insertion`` are the calls; the records that they give are ``zeroline.comparison`` and ``zeroline.audit``.
"""

from __future__ import annotations

from zeroline.measure.baseline_audit import audit_baseline
from zeroline.measure.compare import compare
from zeroline.measure.deletion_insertion import deletion_insertion
from zeroline.measure.error_budget import ErrorBudget, error_budget
from zeroline.measure.layers import layers

__all__ = ["ErrorBudget", "audit_baseline", "compare", "deletion_insertion", "error_budget", "layers"]
