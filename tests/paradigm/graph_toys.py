"""Toys and references of the paradigm's tests: models that keep their maps, relevance by dense tensors, cuts by plain hooks.

Nothing here uses what it is a reference for: maps come from eager attention and autograd, cuts from PyTorch's own hooks.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

import zeroline as zl
from attention_models import FAMILIES


# --- models ------------------------------------------------------------------------------------------------------------
class Attend(nn.Module):
    """Attention of two heads, fused, or written out: it then keeps its maps and its outputs (before the output projection)."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.fused = heads, True
        self.maps, self.outputs = [], []

    def forward(self, x, y):
        q, k, v = (f(t).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f, t in ((self.q, x), (self.k, y), (self.v, y)))
        if self.fused:
            return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        a = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        out = a @ v
        self.maps.append(a)
        self.outputs.append(out)
        return self.o(out.transpose(1, 2).flatten(2))


class CrossOnly(nn.Module):
    """Words look at regions once; all words are read, each with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.cross, self.head = Attend(), nn.Linear(8, 3)
        self.register_buffer("share", torch.tensor([1.0, 2.0, 0.5, 1.5]).double()[:, None])

    def forward(self, words, regions):
        return self.head((words + self.cross(words, regions)).mul(self.share).tanh().mean(1))


class CoAttention(nn.Module):
    """Words look at words, regions at regions, then both at each other, twice; the first word is read."""

    def __init__(self):
        super().__init__()
        self.words, self.regions, self.cross = (nn.ModuleList(Attend() for _ in range(2)) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, words, regions):
        x, y = words, regions
        for own, other, cross in zip(self.words, self.regions, self.cross):
            x, y = x + own(x, x), y + other(y, y)
            a, b = cross(x, y), cross(y, x)
            x, y = x + a, y + b
        return self.head(x[:, 0])


class OneStream(nn.Module):
    """Three layers of self-attention over one sequence; the first token is read."""

    def __init__(self, depth=3):
        super().__init__()
        self.layers, self.head = nn.ModuleList(Attend() for _ in range(depth)), nn.Linear(8, 3)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x, x)
        return self.head(x[:, 0])


class EncoderDecoder(nn.Module):
    """A source that looks at itself, a target that looks at itself and then at the source; the last token is read."""

    def __init__(self):
        super().__init__()
        self.encoder, self.own, self.cross = (Attend() for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, source, target):
        m = source + self.encoder(source, source)
        x = target + self.own(target, target)
        return self.head((x + self.cross(x, m))[:, -1])


def sharp(model, seed=4, size=0.5):
    """Float64, and weights that make attention uneven."""
    draw = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, dtype=torch.float64, generator=draw) * (size if p.ndim > 1 else 0.3)
    return model.eval().double()


def attends(model):
    return [m for m in model.modules() if isinstance(m, Attend)]


def written_out(model, inputs, which):
    """{attend: [(A, dA, dO) per call]} of the eager twin, by autograd."""
    for m in attends(model):
        m.fused, m.maps, m.outputs = False, [], []
    score = model(*inputs)[:, which].sum()
    kept = [(m, a, o) for m in attends(model) for a, o in zip(m.maps, m.outputs)]
    gradients = torch.autograd.grad(score, [t for _, a, o in kept for t in (a, o)], allow_unused=True)
    found = {m: [] for m in attends(model)}
    for (m, a, o), da, do in zip(kept, gradients[::2], gradients[1::2]):
        found[m].append((a.detach(), torch.zeros_like(a) if da is None else da, torch.zeros_like(o) if do is None else do))
    for m in attends(model):
        m.fused, m.maps, m.outputs = True, [], []
    return found


CORRECT = {
    "none": lambda a, g: a,
    "positive": lambda a, g: (a * g).clamp(min=0),
    "negative": lambda a, g: (-a * g).clamp(min=0),
    "absolute": lambda a, g: (a * g).abs(),
    "signed": lambda a, g: a * g,
}


def abars(model, inputs, which, correction="positive"):
    """Abar [batch, queries, keys] of every call of the eager twin: {attend: [Abar per call]}."""
    maps = written_out(model, inputs, which)
    return {m: [CORRECT[correction](a, g).mean(1) for a, g, _ in each] for m, each in maps.items()}


@cache
def family(name, dtype=torch.float64, attention="sdpa"):
    """A family with weights that make attention uneven, and its inputs: (family, model, inputs, target). Built once."""
    known = next(f for f in FAMILIES if f.name == name and f.source in ("transformers", "torch"))
    torch.manual_seed(0)
    model, inputs = known.build(attention)
    if isinstance(inputs, torch.Tensor):
        inputs = {known.streams[0]: inputs}
    draw = torch.Generator().manual_seed(3)
    model = model.eval().to(dtype)
    for p in model.parameters():
        if p.ndim > 1:
            p.data = (torch.randn(p.shape, generator=draw, dtype=torch.float64) * 0.25).to(dtype)
    given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    return known, model, given, zl.target.output(known.read)


# --- relevance, dense ----------------------------------------------------------------------------------------------------
class Paths:
    """Relevance of a state's rows, forward and dense: ``none`` [batch, rows, columns] by paths that passed no token that counts, and
    ``booked[call]`` [batch, rows, passed, columns] by the last token passed and the call where it was left."""

    def __init__(self, none, booked=None):
        self.none, self.booked = none, dict(booked or {})

    def __add__(self, other):
        calls = {**self.booked, **other.booked}
        return Paths(self.none + other.none, {c: sum(p.booked[c] for p in (self, other) if c in p.booked) for c in calls})

    def __getitem__(self, rows):
        return Paths(self.none[:, rows], {call: one[:, rows] for call, one in self.booked.items()})


def source(batch, tokens, columns=None, total=0):
    """The rows of a source by themselves: identity on its columns (token numbers), or nothing of a stream of ``total`` columns."""
    if columns is None:
        return Paths(torch.zeros(batch, tokens, total, dtype=torch.float64))
    return Paths(torch.eye(tokens, dtype=torch.float64)[:, columns].expand(batch, -1, -1).clone())


def called(number, abar, values, passed, count):
    """What a call adds to its queries' rows: ``passed[q]`` is the number of the token that query q is, -1 where it does not count."""
    moved = {call: torch.einsum("bqk,bkpc->bqpc", abar, one) for call, one in values.booked.items()}
    arrived = abar @ values.none
    none, own = torch.zeros_like(arrived), torch.zeros(*arrived.shape[:2], count, arrived.shape[2], dtype=torch.float64)
    for q, token in enumerate(passed):
        if token < 0:
            none[:, q] = arrived[:, q]
        else:
            own[:, q, token] = arrived[:, q]
    return Paths(none, {**moved, number: moved.get(number, 0) + own})


def outside(count):
    """No query counts."""
    return [-1] * count


# --- cuts by plain hooks ---------------------------------------------------------------------------------------------------
PROJECTIONS = {
    "LXMERT": lambda path: path.rpartition(".")[0] + ".output.dense",
    "T5": lambda path: f"{path}.o",
    "DETR": lambda path: f"{path}.o_proj",
    "ViLT": lambda path: path.removesuffix(".attention") + ".output.dense",
    "Swin": lambda path: f"{path}.o_proj",
    "GPT-2": lambda path: f"{path}.c_proj",
    "Whisper": lambda path: f"{path}.out_proj",
}


def at_projection(model, place, change):
    """A hook that gives the input of an output projection, at its n-th call, to ``change`` and puts back what that returns."""
    name, index = place
    calls = []

    def hook(_, args):
        calls.append(1)
        return (change(args[0]), *args[1:]) if len(calls) == index + 1 else None

    return model.get_submodule(name).register_forward_pre_hook(hook)


@torch.no_grad()
def output_at(model, inputs, place):
    """What an attention gives (its output projection's input) on these inputs."""
    kept = []

    def keep(tensor):
        kept.append(tensor.clone())
        return tensor

    hook = at_projection(model, place, keep)
    model(**inputs)
    hook.remove()
    return kept[0]


@torch.no_grad()
def with_output(model, inputs, read, place, o0, heads, head=None):
    """f with an attention's output, or one head's part of it, replaced: [batch]."""

    def change(tensor):
        changed, given = tensor.clone().unflatten(-1, (heads, -1)), o0.unflatten(-1, (heads, -1))
        which = slice(None) if head is None else slice(head, head + 1)
        changed[..., which, :] = given[..., which, :]
        return changed.flatten(-2)

    hook = at_projection(model, place, change)
    value = read(model(**inputs))
    hook.remove()
    return value


def effects(model, inputs, read, places, heads, sources, absent):
    """f(x) - f(do(o := o0)) of every call and of every head: [batch, calls], {call: [batch, heads]}. ``sources[n]`` are at ``absent`` in call n's o0."""
    with torch.no_grad():
        value = read(model(**inputs))
    whole, single = [], {}
    for n, place in enumerate(places):
        if not sources[n]:
            whole.append(torch.zeros_like(value))
            single[n] = torch.zeros(len(value), heads[n], dtype=value.dtype)
            continue
        o0 = output_at(model, {**inputs, **{name: absent[name] for name in sources[n]}}, place)
        whole.append(value - with_output(model, inputs, read, place, o0, heads[n]))
        single[n] = torch.stack([value - with_output(model, inputs, read, place, o0, heads[n], h) for h in range(heads[n])], 1)
    return torch.stack(whole, 1), single


# --- what must be as it was ------------------------------------------------------------------------------------------------
def state_of(model):
    """Everything of a model (and of PyTorch) that an explanation could leave changed."""
    modules = dict(model.named_modules())
    return {
        "parameters": {n: (id(p), p.detach().clone(), p.requires_grad, p.grad) for n, p in model.named_parameters()},
        "buffers": {n: b.clone() for n, b in model.named_buffers()},
        "training": {n: m.training for n, m in modules.items()},
        "hooks": {n: (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks)) for n, m in modules.items()},
        "forwards": {n: m.__dict__.get("forward") for n, m in modules.items()},
        "random": torch.random.get_rng_state(),
        "grad": torch.is_grad_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "functional": {
            n: id(F.__dict__[n]) for n in ("has_torch_function", "scaled_dot_product_attention", "softmax", "multi_head_attention_forward")
        },
    }


def assert_same_state(before, after):
    for name in ("training", "hooks", "forwards", "grad", "fast path", "functional"):
        assert before[name] == after[name], name
    assert torch.equal(before["random"], after["random"])
    assert before["parameters"].keys() == after["parameters"].keys()
    for name, (number, value, learns, gradient) in before["parameters"].items():
        other = after["parameters"][name]
        assert (number, learns) == (other[0], other[2]), name
        assert gradient is other[3], name
        assert torch.equal(value, other[1]), name
    assert all(torch.equal(value, after["buffers"][name]) for name, value in before["buffers"].items())
