"""Models of several sources, interpreted three ways: what their attention does, what grounds what, and what the answer needs.

Holds ``mechanism`` (relevance and cause along every attention), ``ground`` (words against regions) and ``logic`` (sources, words and regions as
players). Our reading of the generic interpretation of heterogenous attention by Cui, Fan & Chen 2026, whose formulas are not public.
"""

from zeroline.paradigm import players
from zeroline.paradigm.logical import logic
from zeroline.paradigm.mechanism import mechanism
from zeroline.paradigm.semantic import ground

__all__ = ["ground", "logic", "mechanism", "players"]
