"""Tiny records of every kind, written by hand: their numbers are known, and every text in them goes through ``say``.

``every(say)`` gives name -> (record, what was seen). ``say`` is the identity for plain texts; a test of escaping lets it add something hostile.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch

from zeroline.attribution import Attribution
from zeroline.audit import Audited, BaselineAudit
from zeroline.circuit import Edge, Mechanism
from zeroline.comparison import Comparison
from zeroline.corrected import Corrections
from zeroline.grounding import Grounding
from zeroline.guidance import AFTER, BEFORE, Guidance
from zeroline.principles import Implied, Principles, Stage
from zeroline.reasoning import Logic
from zeroline.relevance import Relevance, Tokens
from zeroline.report import page
from zeroline.rewriting import Rewriting, Survival
from zeroline.seen import Seen
from zeroline.summary import QUANTILES, Disagreement, Spread, Summary
from zeroline.thresholds import Robustness

KINDS = (
    "attribution", "audit", "comparison", "corrections", "grounding", "guidance", "logic", "mechanism", "principles", "relevance", "rewriting",
    "robustness", "summary",
)  # fmt: skip


def plain(text):
    return text


def draw(*shape, seed=0):
    """Numbers of no meaning, the same every time."""
    return torch.from_numpy(np.random.default_rng([seed, *shape]).standard_normal(shape)).float()


def doubles(*figures):
    return torch.tensor(figures, dtype=torch.float64)


def photo(rows=4, columns=6, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8))


def attribution(values, say=plain, *, output=3.0, there=1.0, site="layer", budget=None, **more):
    """One sample, or several alike; without ``budget`` all of the error is unaccounted."""
    batch = len(values)
    known = dict(
        parts={say(site): values}, method=say("by_hand"), target=tuple(say(f"logit of newt {i}") for i in range(batch)), site=say(site),
        baseline=say("black"), output=torch.full((batch,), output).double(), baseline_output=torch.full((batch,), there).double(),
        evaluations=torch.full((batch,), 7), forward_passes=2, is_cut=True, resolution=1e-7,
        budget={say(name): torch.full((batch,), size).double() for name, size in (budget or {}).items()},
        local_error=torch.full((batch,), 0.25).double(), stopped=(say("tolerance"),) * batch, substitutes=(say("nothing"),),
        settings={say("path"): say("adaptive"), "steps": 3, "none": None}, seed=11, versions={say("torch"): say("2.0")},
        model_class=say("toys.Model"), weights=say("abc"),
    )  # fmt: skip
    return Attribution(**{**known, **more})


def relevance(say=plain, *, seed=0, batch=1, tokens=4, only=None, **more):
    """A picture of two rows of three patches after one class token, and a line of words; three calls, of which the last moves nothing."""
    shapes = {say("pixels"): 7, say("words"): tokens}
    if only is not None:
        shapes = {say(only): shapes[say(only)]}
    per_call = {name: draw(3, batch, count, seed=seed + i) for i, (name, count) in enumerate(shapes.items())}
    for moved in per_call.values():
        moved[2] = 0
    known = dict(
        by_source={name: moved.sum(0) for name, moved in per_call.items()}, per_call=per_call,
        tokens={name: Tokens(1, (2, 3)) if name == say("pixels") else Tokens() for name in shapes}, method=say("attention_relevance"),
        target=tuple(say(f"logit of newt {i}") for i in range(batch)), output=torch.arange(batch).double() + 0.5,
        calls=tuple((say(f"layer.{i}.att"), say(kind)) for i, kind in enumerate(("homogenous", "heterogenous", "homogenous"))),
        corrected=(0, 1), readout=tuple(say(f"token {i}") for i in range(batch)), substitutes=(say("no weights"),),
        settings={say("correction"): say("positive")}, versions={say("torch"): say("2.0")}, model_class=say("toys.Model"), weights=say("abc"),
    )  # fmt: skip
    return Relevance(**{**known, **more})


def grounding(say=plain, *, batch=1, rows=3, columns=7, calls=2, lie=None, **more):
    """Three words over a class token and two rows of three patches."""
    per_call, back = draw(calls, batch, rows, columns).double(), draw(calls, batch, rows, columns, seed=1).double()
    known = dict(
        matrix=per_call.sum(0), per_call=per_call, direct=draw(batch, columns).double(), back=back.sum(0), back_per_call=back,
        calls=tuple(say(f"layer.{i}.cross") for i in range(calls)), row_stream=say("words"), column_stream=say("pixels"),
        row_tokens=tuple(range(rows)), column_tokens=tuple(range(columns)), row_words=tuple(say(f"word{i}") for i in range(rows)), column_words=(),
        lie=Tokens(1, (2, 3)) if lie is None else lie, target=tuple(say(f"logit of newt {i}") for i in range(batch)),
        output=torch.arange(batch).double(), readout=tuple(say(f"token {i}") for i in range(batch)), settings={say("correction"): say("positive")},
        versions={say("torch"): say("2.0")}, model_class=say("toys.Model"), weights=say("abc"),
    )  # fmt: skip
    return Grounding(**{**known, **more})


def logic(say=plain, *, batch=1, values=None, **more):
    """Three players, all eight coalitions."""
    found = draw(batch, 8).double() if values is None else torch.as_tensor(values, dtype=torch.float64)
    known = dict(
        players=tuple(say(name) for name in ("left", "right", "nine")), baselines=(say("zeros"), say("zeros"), say("mask")),
        coalitions=torch.arange(8), values=found, holds=found > 0, threshold=say("f(T) is above 0"),
        target=tuple(say(f"logit of newt {i}") for i in range(len(found))), output=found[:, -1], evaluations=8, forward_passes=1,
        labels=tuple(say(f"newt {i}") for i in range(len(found))), settings={"threshold": "answer", say("seed"): say("0")},
        versions={say("torch"): say("2.0")}, model=say("toys.Model@abc"),
    )  # fmt: skip
    return Logic(**{**known, **more})


def mechanism(say=plain, *, batch=1, **more):
    """Three attentions of two heads."""
    kinds = ("homogenous", "heterogenous", "heterogenous")
    known = dict(
        edges=tuple(
            Edge(i, say(f"layer.{i}.att"), kind, say("words"), say("pixels"), 2, tuple(range(i)), (say("pixels"),)) for i, kind in enumerate(kinds)
        ),
        streams=((say("words"), 4), (say("pixels"), 7)), relevance=draw(batch, 3).double().abs(), effect=draw(batch, 3, seed=1).double(),
        head_effect=draw(batch, 3, 2).double(), target=tuple(say(f"logit of newt {i}") for i in range(batch)),
        output=torch.arange(batch).double() + 2, joint=torch.zeros(batch).double(), baselines={say("words"): say("mask"), say("pixels"): say("zeros")},
        readout=tuple(say(f"token {i}") for i in range(batch)), evaluations=9, forward_passes=4, execution=(say("suffix"),) * 3,
        settings={say("correction"): say("positive")}, versions={say("torch"): say("2.0")}, model=say("toys.Model@abc"),
    )  # fmt: skip
    return Mechanism(**{**known, **more})


def audit(say=plain):
    sure = Audited(doubles(1.25), doubles(0.05, 0.9, 0.05)[None], doubles(0.5))
    even = Audited(doubles(-0.75), doubles(0.34, 0.33, 0.33)[None], doubles(0.75))
    return BaselineAudit(
        {say("blur(8)"): sure, say("zeros"): even}, (say("logit of newt"),), say("input:x"), doubles(5.0), doubles(0.9, 0.05, 0.05)[None],
        tuple(map(say, ("newt", "dog", "ox"))), 1e-7, say("units"), failures={say("neutral"): say("no neutral baseline")},
        versions={say("torch"): say("2.0")}, model=say("toys.Model@abc"),
    )  # fmt: skip


def comparison(say=plain, batch=1):
    """At the pixels with a budget, at tokens on a grid, and one that lies nowhere."""
    pixels = attribution(draw(batch, 3, 4, 6), say, site="pixels", budget={"truncation": 0.5, "quadrature": -0.125})
    tokens = attribution(draw(batch, 7, 2), say, site="block", output=5.0)
    return Comparison(
        {say("taylor"): pixels, say("layer_cam"): tokens}, {say("layer_cam"): Tokens(1, (2, 3))}, {say("odam"): say("it has no gradient")}
    )


def corrections(say=plain):
    """Labels are split at the comma: the correction, then the coverage."""
    members = {f"{say(name)}, complete": relevance(say, seed=seed, only="pixels") for seed, name in enumerate(("positive", "signed"))}
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[0, :2, :3] = True
    return Corrections(members, say("pixels"), mask)


def guidance(say=plain):
    members = {
        say(name): {when: relevance(say, seed=10 * i + j, only="pixels") for j, when in enumerate((BEFORE, AFTER))}
        for i, name in enumerate(("host", "guest", "contrast"))
    }
    where = torch.zeros(4, 6, dtype=torch.bool)
    where[2:, 3:] = True
    return Guidance(
        members, {when: photo(seed=j).permute(2, 0, 1).contiguous() for j, when in enumerate((BEFORE, AFTER))}, where,
        {when: {say("host"): 0.5, say("guest"): 0.25} for when in (BEFORE, AFTER)}, {when: doubles(1.0, 0.5, 0.25) for when in (BEFORE, AFTER)},
        {"guest": say("seven"), say("at"): [0, 0]},
    )  # fmt: skip


def principles(say=plain, n=12):
    answer, label = torch.arange(n) % 3, torch.arange(n) % 4
    hit = (torch.arange(n) % 2).double()
    return Principles(
        say("grad_eclip"), {say("layers"): say("all")}, say("similarity"), say("pixels"), draw(n).double(), draw(n, seed=1).double(), answer, label,
        hit, torch.full((n,), 0.25).double(), substitutes=(say("loosened attention"),),
        implied={say("loosened"): Implied(draw(n).double(), torch.full((n,), 0.5).double(), answer)},
        stages=(Stage(say("layer.3"), draw(n).double(), hit, draw(n).double(), draw(n).double(), answer),), versions={say("torch"): say("2.0")},
        model=say("toys.Model@abc"),
    )  # fmt: skip


def rewriting(say=plain):
    original = photo().permute(2, 0, 1).contiguous()
    return Rewriting(
        original=original, rewritten=original ^ 1, own=say("nine"), to=say("seven"), answer=say("seven"), success=True,
        probabilities={BEFORE: {"own": 0.9, "to": 0.05}, AFTER: {"own": 0.2, "to": 0.7}}, psnr=48.1, ssim=0.99, linf=1 / 255, l2=0.03, touched=6,
        grid=(2, 3), evaluations=40, judged=3, budget={"linf": 4 / 255}, settings={say("seed"): say("0")},
        survival={say("JPEG 90"): Survival(say("nine"), say("seven"), True)}, tried=((4 / 255, True),),
        relevance={BEFORE: relevance(say, seed=1, only="pixels"), AFTER: relevance(say, seed=2, only="pixels")}, notes=(say("a note"),),
    )  # fmt: skip


def robustness(say=plain, n=3):
    fragility = draw(n, 2, 3).double()
    return Robustness(
        say("digits-vit"), tuple(say(f"{i}.png") for i in range(n)), (say("nine"),) * n, (say("seven"),) * n, "linf", 16 / 255,
        torch.tensor([(i + 1) / 255 for i in range(n)]).double(), torch.full((n,), 40.0).double(), torch.full((n,), 0.98).double(),
        torch.full((n,), 40), fragility, torch.zeros(n).double(), {say("PNG"): 1.0}, {say("seed"): say("0")}, {say("broken.png"): say("no image")},
    )  # fmt: skip


def summary(say=plain):
    def spread(low, high):
        return Spread(40, (low + high) / 2, tuple(low + (high - low) * q for q in QUANTILES))

    figures = {"|error| / |difference|": (1e-4, 0.02), "map error": (0.05, 0.3), "seconds per example": (0.1, 3.0), say("another"): (0.0, 1.0)}
    return Summary(
        folder=say("out/run"), model=say("digits-vit"), settings={"method": say("taylor"), "target": say("label"), "baseline": say("black")},
        examples=1200, failed=2, reasons={say("read"): 2}, spreads={name: spread(*ends) for name, ends in figures.items()},
        stopped={say("tolerance"): 118}, slowest=((say("a.png"), say("nine"), 3.0),), least_exact=((say("b.png"), say("ox"), 0.02),),
        histogram=(tuple(10.0 ** (e / 4) for e in range(-20, 5)), tuple((7 * i) % 11 for i in range(24))), counts={say("nine"): 5, say("ox"): 6},
        maps={say("nine"): draw(2, 3), say("ox"): draw(2, 3, seed=1)},
        against=Disagreement(
            say("other/run"), 30, 1, 2, 0, 29, {say("cosine"): spread(0.5, 1.0)}, ((say("c.png"), 0.5, math.nan),), (say("method: taylor"),)
        ),
    )  # fmt: skip


def seen(say=plain, **more):
    known = dict(
        pictures={"image": photo(), "baseline": photo(seed=1), f"baseline/{say('zeros')}": photo(seed=2), f"baseline/{say('blur(8)')}": photo(seed=3)},
        words={say("words"): tuple(say(f"w{i}") for i in range(4))}, command=("explain", say("a b.png"), "--target", say("newt")),
        places={say("left"): torch.eye(4, 6).bool(), "mask": torch.ones(4, 6, dtype=torch.bool)},
        facts={say("asked"): say("what ?"), "asked": say("what ?"), "instead": say("who ?")},
    )  # fmt: skip
    return Seen(**{**known, **more})


def every(say=plain):
    """Name -> (record, seen): one of each kind, and the attributions of pixels, of patches and of words apart."""
    around = seen(say)
    told = {
        "attribution": (attribution(draw(1, 3, 4, 6), say, budget={"truncation": 0.5, "quadrature": -0.125}), around),
        "attribution of patches": (attribution(draw(1, 8, 2), say), seen(say, grid=(2, 3), prefix=2)),
        "attribution of words": (attribution(draw(1, 4, 2), say), seen(say, pictures={})),
        "audit": (audit(say), around),
        "comparison": (comparison(say), around),
        "comparison of layers": (comparison(say), seen(say, facts={"drawn as": "layers"})),
        "corrections": (corrections(say), around),
        "grounding": (grounding(say), around),
        "guidance": (guidance(say), seen(say, pictures={})),
        "logic": (logic(say, instead=logic(say, values=draw(1, 8, seed=3))), around),
        "mechanism": (mechanism(say), around),
        "principles": (principles(say), Seen()),
        "relevance": (relevance(say), around),
        "rewriting": (rewriting(say), Seen()),
        "robustness": (robustness(say), Seen()),
        "summary": (summary(say), Seen()),
    }
    assert {name.partition(" of")[0] for name in told} == set(KINDS)
    return told


@cache
def chapters():
    """Name -> the chapter of each of ``every``, figures and all: drawn once."""
    return {name: page.chapter(*told) for name, told in every().items()}


def save(record, around, folder, name="record"):
    """Into ``folder/NAME.safetensors`` with what was seen, whatever the kind."""
    path = folder / f"{name}.safetensors"
    if isinstance(record, Rewriting):
        record.save(folder / f".{name}")
        (folder / f".{name}" / "rewriting.safetensors").replace(path)
    else:
        record.save(path)
    around.attach(path)
    return path
