"""Grad-ECLIP and Attention-ECLIP written out from the papers, on a twin whose attentions are written out too; nothing of zeroline is used.

A ``Case`` is a model with inputs, its ``Tower``s (which attentions, which row, which keys that row sees: all said by hand) and its
score [batch]. ``parts_of`` runs the twin once; the weights w = dS/do and the gradients dS/dA both come from autograd.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, END = 60, 59


# --- attentions of the test's own, in the place of a model's ------------------------------------------------------------


class ByHand(nn.Module):
    """softmax(q k^T / sqrt(width of a head) + mask) v, every part kept; ``heads=1`` takes all channels as one head."""

    def __init__(self, inner: nn.Module, heads: int) -> None:
        super().__init__()
        self.inner, self.heads = inner, heads

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        self.q, self.k, self.v = query, key, value  # heads side by side: [batch, tokens, channels]
        self.a = (scores if mask is None else scores + mask).softmax(-1)
        self.o = (self.a @ v).transpose(1, 2).flatten(2)
        return self.o


class OfTransformers(ByHand):
    """In the place of Hugging Face's CLIPAttention, SiglipAttention, ViTAttention."""

    @property
    def out(self) -> nn.Linear:
        return self.inner.out_proj if hasattr(self.inner, "out_proj") else self.inner.o_proj

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        parts = (project(hidden_states) for project in (self.inner.q_proj, self.inner.k_proj, self.inner.v_proj))
        return self.out(self.attend(*parts, attention_mask)), self.a


class OfTorch(ByHand):
    """In the place of nn.MultiheadAttention, batch first."""

    @property
    def out(self) -> nn.Linear:
        return self.inner.out_proj

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        weights, biases = self.inner.in_proj_weight.chunk(3), self.inner.in_proj_bias.chunk(3)
        parts = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases))
        return self.out(self.attend(*parts, attn_mask)), None


def written_out(model: nn.Module, paths: list[str], one_head: tuple[str, ...] = ()) -> tuple[nn.Module, dict[str, ByHand]]:
    """A copy of the model with its attentions written out; those in ``one_head`` with all channels as one head."""
    twin = copy.deepcopy(model)
    if hasattr(twin, "set_attn_implementation"):
        twin.set_attn_implementation("eager")  # so that the masks it makes are added
    found = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        inner = getattr(twin.get_submodule(parent), name)
        kind = OfTorch if isinstance(inner, nn.MultiheadAttention) else OfTransformers
        heads = getattr(inner, "num_heads", None) or inner.num_attention_heads
        found[path] = kind(inner, 1 if path in one_head else heads)
        setattr(twin.get_submodule(parent), name, found[path])
    return twin, found


# --- models ---------------------------------------------------------------------------------------------------------------


@dataclass
class Tower:
    """One side: its attentions in order, the row [batch] that the embedding is read at, the keys [batch, tokens] that this row may see."""

    stream: str
    attentions: list[str]
    row: Tensor
    visible: Tensor
    learned: int = 0
    pooled: bool = False
    """The last attention's query is a learned one that is no key."""


@dataclass
class Case:
    model: nn.Module
    inputs: dict[str, Any]
    towers: list[Tower]
    score: Callable[[Any], Tensor]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / (a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt())


def sharp(model: nn.Module, size: float = 0.3) -> nn.Module:
    """Float64, with weights that make attention uneven and biases that are not zero."""
    for parameter in model.parameters():
        spread = size if parameter.ndim > 1 else 0.2
        start = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
        parameter.data = start + spread * torch.randn(parameter.shape, dtype=torch.float64)
    return model.double().eval()


def texts(lengths: list[int], longest: int) -> tuple[Tensor, Tensor]:
    """Ids with the end token (the highest id) last, then padding; and the mask."""
    ids, mask = torch.zeros(2, len(lengths), longest, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(3, END, (length,))
        ids[row, 0], ids[row, length - 1] = 1, END
        mask[row, :length] = 1
    return ids, mask


def _up_to(rows: Tensor, count: int) -> Tensor:
    return torch.arange(count) <= rows[:, None]


def _lengths(batch: int) -> list[int]:
    return [9, 5, 7][:batch]


def _configuration(heads: int, depth: int) -> tuple[dict[str, Any], dict[str, Any]]:
    shared = dict(hidden_size=24, num_attention_heads=heads, intermediate_size=32, num_hidden_layers=depth)
    text = dict(**shared, vocab_size=VOCABULARY, max_position_embeddings=12, bos_token_id=1, eos_token_id=END, pad_token_id=0)
    return text, dict(**shared, image_size=32, patch_size=8)


def clip(heads: int = 4, depth: int = 2, batch: int = 3, size: tuple[int, int] = (32, 32), longest: int = 9) -> Case:
    """Hugging Face's CLIP; another size than 32 x 32 by interpolated positions."""
    import transformers

    text, vision = _configuration(heads, depth)
    model = sharp(transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)))
    model.logit_scale.data.fill_(1.3)
    ids, mask = texts(_lengths(batch), longest)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(batch, 3, *size).double()}
    if size != (32, 32):
        inputs["interpolate_pos_encoding"] = True
    patches = size[0] // 8 * (size[1] // 8)
    ends = mask.sum(1) - 1
    return Case(
        model,
        inputs,
        [
            Tower("input_ids", [f"text_model.encoder.layers.{i}.self_attn" for i in range(depth)], ends, _up_to(ends, longest)),
            Tower(
                "pixel_values",
                [f"vision_model.encoder.layers.{i}.self_attn" for i in range(depth)],
                torch.zeros(batch, dtype=torch.int64),
                torch.ones(batch, 1 + patches, dtype=torch.bool),
                learned=1,
            ),
        ],
        lambda output: cosine(output.image_embeds, output.text_embeds),
    )


def siglip(heads: int = 4, depth: int = 2, batch: int = 3) -> Case:
    """SigLIP: images are read by a pooling head's learned query (no class token), texts at their last token, padding and all."""
    import transformers

    text, vision = _configuration(heads, depth)
    text |= dict(projection_size=24, eos_token_id=2)
    model = sharp(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)))
    ids, _ = texts(_lengths(batch), 9)
    layers = [f"vision_model.encoder.layers.{i}.self_attn" for i in range(depth)]
    return Case(
        model,
        {"input_ids": ids, "pixel_values": torch.randn(batch, 3, 32, 32).double()},
        [
            Tower("input_ids", [f"text_model.encoder.layers.{i}.self_attn" for i in range(depth)], torch.full((batch,), 8), torch.ones(batch, 9) > 0),
            Tower(
                "pixel_values",
                [*layers, "vision_model.head.attention"],
                torch.zeros(batch, dtype=torch.int64),
                torch.ones(batch, 16) > 0,
                pooled=True,
            ),
        ],
        lambda output: cosine(output.image_embeds, output.text_embeds),
    )


def open_clip(heads: int = 4, depth: int = 2, batch: int = 3, **more: Any) -> Case:
    """open_clip's CLIP: nn.MultiheadAttention, a causal text tower without a padding mask, a tuple of embeddings."""
    from open_clip import CLIP

    vision = dict(layers=depth, width=24, head_width=24 // heads, patch_size=8, image_size=32)
    text = dict(context_length=9, vocab_size=VOCABULARY, width=24, heads=heads, layers=depth)
    model = sharp(CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=False, **more))
    ids, mask = texts(_lengths(batch), 9)
    ends = mask.sum(1) - 1
    return Case(
        model,
        {"image": torch.randn(batch, 3, 32, 32).double(), "text": ids},
        [
            Tower(
                "image",
                [f"visual.transformer.resblocks.{i}.attn" for i in range(depth)],
                torch.zeros(batch, dtype=torch.int64),
                torch.ones(batch, 17) > 0,
                learned=1,
            ),
            Tower("text", [f"transformer.resblocks.{i}.attn" for i in range(depth)], ends, _up_to(ends, 9)),
        ],
        lambda output: cosine(output[0], output[1]) if isinstance(output, tuple) else cosine(output["image_features"], output["text_features"]),
    )


def digits_clip(batch: int = 3) -> Case:
    """The trained CLIP of the zoo on images of one and two digits and their captions of unequal lengths, padded to its own."""
    from zeroline import zoo

    chosen = zoo.collate(zoo.samples("digits-clip")[11 : 11 + batch])
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in chosen.items()}
    ends = inputs["attention_mask"].sum(1) - 1
    return Case(
        zoo.load("digits-clip").double(),
        inputs,
        [
            Tower("input_ids", [f"text_model.encoder.layers.{i}.self_attn" for i in range(3)], ends, _up_to(ends, inputs["input_ids"].shape[1])),
            Tower(
                "pixel_values",
                [f"vision_model.encoder.layers.{i}.self_attn" for i in range(4)],
                torch.zeros(batch, dtype=torch.int64),
                torch.ones(batch, 65) > 0,
                learned=1,
            ),
        ],
        lambda output: cosine(output.image_embeds, output.text_embeds),
    )


def digits_vit(batch: int = 2) -> Case:
    """The trained classifier of the zoo; its score is the logit of class 3."""
    from zeroline import zoo

    inputs = {"pixel_values": zoo.collate(zoo.samples("digits-vit")[:batch])["pixel_values"].double()}
    tower = Tower(
        "pixel_values", [f"vit.layers.{i}.attention" for i in range(4)], torch.zeros(batch, dtype=torch.int64), torch.ones(batch, 65) > 0, learned=1
    )
    return Case(zoo.load("digits-vit").double(), inputs, [tower], lambda output: output.logits[:, 3])


# --- the papers -----------------------------------------------------------------------------------------------------------


@dataclass
class Part:
    """One attention at the row that is read, for every sample, heads side by side: q [C], k and v [K, C], w = dS/do [C]; A, dS/dA [H, K]."""

    q: Tensor
    k: Tensor
    v: Tensor
    w: Tensor
    a: Tensor
    da: Tensor


def parts_of(case: Case, *, layers: int = 1, one_head: bool = False, project: bool = False) -> tuple[Tensor, dict[str, list[Part]]]:
    """f(x) [batch], and for every stream the last ``layers`` attentions, the last first."""
    paths = [path for tower in case.towers for path in tower.attentions]
    chosen = {tower.stream: tower.attentions[::-1][:layers] for tower in case.towers}
    twin, attentions = written_out(case.model, paths, tuple(p for each in chosen.values() for p in each) if one_head else ())
    value = case.score(twin(**case.inputs))
    used = [attentions[path] for each in chosen.values() for path in each]
    gradients = iter(torch.autograd.grad(value.sum(), [part for one in used for part in (one.o, one.a)]))
    found: dict[str, list[Part]] = {}
    for tower in case.towers:
        every, rows = torch.arange(len(tower.row)), tower.row
        for path in chosen[tower.stream]:
            one, w, da = attentions[path], next(gradients), next(gradients)
            q, k = (one.out(one.q), one.out(one.k)) if project else (one.q, one.k)
            part = (q[every, rows], k, one.v, w[every, rows], one.a[every, :, rows], da[every, :, rows])
            found.setdefault(tower.stream, []).append(Part(*(tensor.detach() for tensor in part)))
    return value.detach(), found


def shown_keys(tower: Tower, sample: int) -> list[int]:
    """Keys with evidence: seen by the row, no learned token, not the row itself."""
    own = -1 if tower.pooled else int(tower.row[sample])
    return [j for j in range(tower.learned, tower.visible.shape[1]) if bool(tower.visible[sample, j]) and j != own]


def loosened(tower: Tower, part: Part, over_all: bool = False) -> Tensor:
    """lambda [batch, K]: cosines of q and k, brought to 0..1 over the keys shown (or over all but learned tokens), one by one."""
    found = torch.zeros(tower.visible.shape, dtype=torch.float64)
    for n in range(len(found)):
        shown = shown_keys(tower, n)
        over = list(range(tower.learned, found.shape[1])) if over_all else shown
        cosines = {j: float(part.q[n] @ part.k[n, j] / (part.q[n].norm() * part.k[n, j].norm())) for j in {*over, *shown}}
        low, high = min(cosines[j] for j in over), max(cosines[j] for j in over)
        for j in shown:
            found[n, j] = 1.0 if high == low else (cosines[j] - low) / (high - low)
    return found


def grad_eclip_of(tower: Tower, part: Part, weights: Tensor) -> Tensor:
    """Zhao 2024 before the ReLU: sum over the channels c of w_c v_jc lambda_j, channel by channel."""
    found = torch.zeros_like(weights)
    w, v = part.w.tolist(), part.v.tolist()
    for n in range(len(found)):
        for j in shown_keys(tower, n):
            found[n, j] = sum(w[n][c] * v[n][j][c] * float(weights[n, j]) for c in range(len(w[n])))
    return found


def attention_eclip_of(tower: Tower, part: Part, weights: Tensor | None) -> Tensor:
    """Cui 2026 before the ReLU: sum over the heads of a_j dS/dA^h_j; ``weights`` None: the model's own A^h_j."""
    found = torch.zeros(tower.visible.shape, dtype=torch.float64)
    for n in range(len(found)):
        for j in shown_keys(tower, n):
            own = part.a[n, :, j] if weights is None else weights[n, j]
            found[n, j] = (own * part.da[n, :, j]).sum()
    return found


def close(found: Tensor, truth: Tensor, relative: float = 1e-10) -> bool:
    """To ``relative`` of the largest entry, which must be there."""
    size = float(truth.abs().max())
    return size > 0 and found.shape == truth.shape and float((found - truth).abs().max()) <= relative * size
