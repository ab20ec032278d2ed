"""Real records of one example each, of every kind and of small models, and the rows that a run makes of them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import torch
from torch import nn

import zeroline as zl
from attention_models import lxmert
from paradigm.logic_toys import Facts, numbered
from zeroline.scale.columns import Layout, Row

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def network(inputs=12):
    """A bend between two layers, so that an integral is not exact."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()


@cache
def attributions(dtype="float64", count=4, sides=(2, 2)):
    """One per sample of a small picture; values in ``dtype``."""
    torch.manual_seed(11)
    x = torch.randn(count, 3, *sides, dtype=torch.float64)
    found = zl.integrated_gradients(network(3 * sides[0] * sides[1]), x, target=1, baseline=zl.baseline.zeros(), tolerance=0.05)
    found = replace(found, parts={name: part.to(DTYPES[dtype]) for name, part in found.parts.items()}, weights="abc")
    return tuple(found.sample(n) for n in range(count))


@cache
def odd_figures():
    """Attributions with NaN, infinity and figures that are not known."""
    first, second, third, fourth = attributions()
    size = torch.ones(1, dtype=torch.float64)
    return (
        replace(first, map_error=size * math.nan, local_error=size * math.inf, raw_error=size * -math.inf),
        replace(second, baseline_output=second.output.clone(), map_error=size * 0.25, local_error=size * 1e-310, raw_error=size * -0.0),
        replace(third, map_error=size * 1e308, local_error=None, raw_error=None, reference_output=None, is_cut=None),
        replace(
            fourth,
            map_error=None,
            local_error=size,
            raw_error=size,
            error_spread=size * math.nan,
            budget={"a": size, "b": size * math.nan},
            stopped=(),
        ),
    )


@cache
def attended(dtype="float64"):
    """LXMERT, its inputs, and what stands for a word."""
    torch.manual_seed(0)
    model, inputs = lxmert("sdpa")
    kind = DTYPES[dtype]
    inputs = {name: t.to(kind) if t.is_floating_point() else t for name, t in inputs.items()}
    return model.to(kind).eval(), inputs, zl.target.output(lambda o: o.question_answering_score[:, 1], "answer 1")


@cache
def relevances(dtype="float64"):
    model, inputs, target = attended(dtype)
    found = zl.attention_relevance(model, inputs, target=target)
    return tuple(found.sample(n) for n in range(2))


@cache
def rollouts():
    """They substitute nothing, or attentions of other numbers of rows."""
    model, inputs, target = attended()
    found = zl.rollout(model, inputs, target=target)
    return tuple(found.sample(n) for n in range(2))


@cache
def groundings():
    model, inputs, target = attended()
    found = zl.ground(model, inputs, target=target)
    return tuple(found.sample(n) for n in range(2))


@cache
def mechanisms(heads=True):
    model, inputs, target = attended()
    found = zl.mechanism(model, inputs, target=target, baseline={"input_ids": zl.baseline.token(3)}, calls=[0, 2, 3, 6, 7, 8], heads=heads)
    return tuple(found.sample(n) for n in range(2))


@cache
def logics(count=3):
    """A rule of facts; of many facts it is estimated."""
    x = torch.stack([torch.ones(count), torch.arange(count) % 2 + 0.5]).double()
    model = Facts(lambda *facts: facts[0] * facts[1] + facts[-1] / 3).eval()
    games = [zl.logic(model, one[None], target=0, players=numbered(count), max_evaluations=200) for one in x]
    return tuple(games)


KINDS = {
    "attribution": attributions,
    "attribution, float32": lambda: attributions("float32"),
    "attribution, bfloat16": lambda: attributions("bfloat16"),
    "attribution, float16": lambda: attributions("float16"),
    "attribution, odd figures": lambda: (odd_figures()[0], odd_figures()[0]),
    "relevance": relevances,
    "relevance, float32": lambda: relevances("float32"),
    "rollout": rollouts,
    "grounding": groundings,
    "mechanism": mechanisms,
    "mechanism, no heads": lambda: mechanisms(False),
    "logic": logics,
    "logic, estimated": lambda: logics(11),
}


def row(record, number=0, id=None, map=None, evidence=None, content_hash=None):
    """A row of a run, with all that tells its example."""
    told = {"number": number, "id": id or f"e{number}", "image": f"{number}.png", "text": None, "passage": None, "label": f"class {number % 2}"}
    run = {"settings_hash": "s", "model_hash": "m", "method": "some", "seconds": 0.5 * number, "batch": 2}
    return Row({**told, "content_hash": content_hash or f"hash {number}"}, run, record, map, evidence)


def layout_and_rows(records, fixed=True, keep="values", maps=None, evidence=None, fixed_map=None):
    """Rows of records, and the layout that the first of them gives."""
    maps = maps or [None] * len(records)
    rows = [row(one, n, map=map_, evidence=evidence) for n, (one, map_) in enumerate(zip(records, maps))]
    return Layout.of(rows[0], fixed=fixed, fixed_map=fixed if fixed_map is None else fixed_map, keep=keep), rows
