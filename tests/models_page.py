"""Prints ``docs/models.md`` from the table of families that the tests run: ``python tests/models_page.py > docs/models.md``."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

HEAD = """# Models that work

Each row is a test (`tests/model/test_trace.py`): a small model of the family with random weights, unmodified. The test checks
the number of attention calls, which of them are heterogenous, that outputs under the tracer are bit for bit those without it, that
attention gradients equal autograd's on a twin with written-out attention to 1e-10 in float64, that reverse relevance equals the
full matrices, and that everything is put back. This page is made by `python tests/models_page.py`, and a test compares it.

Real weights are tested too: `digits-vit` of the zoo, and Whisper tiny.en on a recording (`tests/oracles/test_whisper.py`).

| model | from | calls | of them heterogenous | attention, as it ran | streams (tokens in the test) |
|---|---|---|---|---|---|
"""

FOOT = """
*Fused kernel* is `scaled_dot_product_attention`; Hugging Face models run here with `attn_implementation="sdpa"` where they have
it (the tests run both). *Grid* is rows x columns of patches, found in the forward pass. A stream named like a parameter holds learned
tokens; class and register tokens are part of the image's stream, as its prefix.

## What cannot be followed, and is an error that names the operation

- Tokens mixed outside attention between two attentions: linear layers, convolutions or transforms over tokens (MLP-Mixer blocks,
  depthwise convolutions between attentions as in SegFormer, pooled or strided keys as in PVT).
- Routing of tokens to experts by sorting them (mixture-of-experts layers between attentions), and tokens that an index takes twice.
- Attention that is no softmax of a product of queries and keys (linear attention, state-space layers), and weights that multiply
  from the right (`values @ weights`).
- Attention in compiled (`torch.compile`), scripted or quantised modules, in custom kernels that are no torch functions, or under
  `torch.no_grad` inside the model; re-entrant gradient checkpointing.
"""


def page() -> str:
    import torch

    import zeroline as zl
    from attention_models import FAMILIES

    lines = []
    for family in FAMILIES:
        torch.manual_seed(0)
        model, inputs = family.build("sdpa")
        found = zl.trace(model.eval(), inputs)
        how = ", ".join(f"{kind} ({n})" if n < len(found) else kind for kind, n in Counter(c.how for c in found.calls).items())
        streams = ", ".join(
            f"`{s.name}` ({s.tokens}{f', grid {s.grid[0]} x {s.grid[1]}' if s.grid else ''}{f', prefix {s.prefix}' if s.prefix else ''})"
            for s in found.streams
        )
        crossed = ", ".join(map(str, family.heterogenous)) or "none"
        lines.append(f"| {family.name} | {family.source} | {family.calls} | {crossed} | {how} | {streams} |")
    return HEAD + "\n".join(lines) + "\n" + FOOT


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest  # noqa: F401

    print(page(), end="")
