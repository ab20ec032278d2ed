"""Changing pictures to learn about a model: external attention guidance (``guide``), and class rewriting to come.

These are the only calls that make new pictures; models stay as they are.
"""

from __future__ import annotations

from zeroline.rewrite.guide import Guest, guide

__all__ = ["Guest", "guide"]
