"""Attention transfer: how much of a token's relevance still comes from its own position, layer by layer.

Our reading of Cui, Fan & Chen 2026 on attention transfer in deep ViTs, whose formula is not public: R of a state (the graph
rule) with every row scaled to add up to 1; a token's own share is the entry on the diagonal. Needs full matrices: memory
grows with the square of batch times tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.errors import NotFoundError, TraceError
from zeroline.maths.attention import CORRECTIONS, FUSIONS
from zeroline.maths.propagation import Matrices, gathered
from zeroline.methods.attention_relevance import Sweep, token_lie
from zeroline.model.links import State
from zeroline.model.streams import Stream
from zeroline.model.targets import target_of
from zeroline.model.trace import HOMOGENOUS, followed
from zeroline.relevance import Tokens
from zeroline.target import TargetLike


@dataclass(frozen=True, eq=False)
class Transfer:
    """``own`` [calls, batch, tokens]: after each self-attention of a stream, the share of a token's relevance from itself.

    ``matrix`` [batch, tokens, tokens] is R after the last of them, rows adding up to 1: to where relevance moved.
    """

    stream: str
    calls: tuple[str, ...]
    own: Tensor
    matrix: Tensor
    tokens: Tokens
    correction: str

    @property
    def curve(self) -> Tensor:
        """The mean own share per call and sample, [calls, batch]."""
        return self.own.mean(-1)

    def rows(self, sample: int = 0) -> list[tuple[str, str]]:
        """(call, mean own share) pairs of one sample."""
        return [(name, f"{float(share):.1%}") for name, share in zip(self.calls, self.curve[:, sample])]

    def __repr__(self) -> str:
        width = max(len(name) for name in self.calls) + 2
        body = "\n".join(f"  {name:<{width}}{share}" for name, share in self.rows())
        return f"Attention transfer of {self.stream} ({self.correction}): mean share of a token's relevance from its own position\n{body}"


def attention_transfer(
    model: nn.Module, inputs: Any, *, target: TargetLike, stream: str | None = None, correction: str = "none", head_fusion: str = "mean"
) -> Transfer:
    """The own share of every token after every self-attention of a stream.

    Args:
        model, inputs, target, correction, head_fusion: as in ``zl.attention_relevance``.
        stream: the stream; None where only one has self-attention.

    Returns:
        A ``Transfer``. With correction "none" the curve starts near 0.5 (identity plus one map) and falls with depth.

    Raises:
        As ``zl.attention_relevance``; TraceError where the stream has no self-attention or is read in concatenation.
    """
    for kind, asked, possible in (("correction", correction, tuple(CORRECTIONS)), ("head_fusion", head_fusion, FUSIONS)):
        if asked not in possible:
            raise NotFoundError.among(kind, str(asked), possible)
    known = target_of(model, inputs, target)
    with followed(model, inputs) as pass_:
        records = pass_.calls()
        sweep = Sweep(pass_, records, known, correction=correction, head_fusion=head_fusion)
        sweep.differentiate(keep=False)
        alone: Mapping[str, list[int]] = {
            name: [c.number for c in records if c.kind == HOMOGENOUS and c.queries == name] for name in pass_.graph.streams
        }
        having = [n for n, calls in alone.items() if calls]
        if stream is None and len(having) != 1:
            raise TraceError(f"{len(having)} streams have self-attention of their own ({', '.join(having) or 'none'}); name one: stream=...")
        name = having[0] if stream is None else stream
        if name not in having:
            raise NotFoundError.among("stream with self-attention of its own", name, having)
        added: list[Matrices] = []
        shares, last = [], torch.empty(0)
        lie = pass_.graph.streams[name]
        for record, states in zip(records, pass_.graph.states):
            value = gathered(states["value"], added, sweep.sizes)
            abar = sweep.matrix(record.number)
            added.append({source: abar @ matrix for source, matrix in value.items()})
            if record.number not in alone[name]:
                continue
            if not _in_order(states["query"], name, lie):
                raise TraceError(f"{record.name} reads the tokens of {name!r} in another order or number (windows, merged patches): no own position")
            after = _after(states["query"], record.number, added, sweep.sizes)[name]
            blocks = after.view(lie.batch, lie.tokens, lie.batch, lie.tokens).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            last = blocks / blocks.abs().sum(-1, keepdim=True).clamp_min(1e-300)
            shares.append(last.diagonal(dim1=1, dim2=2))
        tokens = token_lie(pass_, [name], None, None)[name]
        return Transfer(name, tuple(records[n].name for n in alone[name]), torch.stack(shares), last, tokens, correction)


def _in_order(query: State, name: str, stream: Stream) -> bool:
    """Is every row of the state the stream's token of the same number?"""
    link = query.own.get(name)
    if link is None or query.size != stream.batch * stream.tokens:
        return False
    return len(link.ids) == query.size and bool((link.ids[link.rows.argsort()] == link.rows.sort().values).all())


def _after(query: State, call: int, added: list[Matrices], sizes: Mapping[str, int]) -> Matrices:
    """R of the state that a call leaves: what its queries were, plus what it added."""
    found = gathered(query, added, sizes)
    for name, matrix in added[call].items():
        found[name] = found[name] + matrix if name in found else matrix
    return found
