"""Effects against cuts by plain hooks, flow against the derivative of a linear model of relevance; options, laws and errors."""

import json
import math

import pytest
import torch
from torch import nn

import zeroline as zl
from attention_models import FAMILIES, bert, clip
from paradigm import graph_toys as toys
from zeroline.errors import BaselineError, ModelStateError, NonFiniteError, NotFoundError, TargetError, TraceError, UsageError, ZerolineError

WORD = 3  # the token that stands for every word
IDS, DEC, PIX, VIS, SOUND = ("input_ids",), ("decoder_input_ids",), ("pixel_values",), ("visual_feats",), ("input_features",)

# what each call's keys are, call by call, as the architectures say it
SOURCES = {
    "LXMERT": [IDS, IDS, VIS, VIS, IDS, IDS, VIS, VIS, IDS, IDS, VIS],
    "T5": [IDS, IDS, DEC, IDS, DEC, IDS],
    "DETR": [PIX, PIX, (), PIX, PIX, PIX],
    "ViLT": [IDS + PIX] * 2,
    "Swin": [PIX] * 4,
    "GPT-2": [IDS] * 2,
    "Whisper": [SOUND, SOUND, DEC, SOUND, DEC, SOUND],
}


@pytest.fixture(autouse=True)
def _patches_in_order(monkeypatch):
    """ViLT draws the order of its patches anew in every pass; here it is always the first one."""
    monkeypatch.setattr(torch, "multinomial", lambda weights, count, replacement=False: torch.arange(count))


def baselines(inputs):
    """A token for every word; numbers have zeros anyway."""
    return {name: zl.baseline.token(WORD) for name, tensor in inputs.items() if not tensor.is_floating_point() and "mask" not in name}


def absent(inputs):
    """Every input at its baseline, made by the test."""
    return {name: torch.zeros_like(t) if t.is_floating_point() else torch.full_like(t, WORD) for name, t in inputs.items() if "mask" not in name}


def reference(name):
    known, model, inputs, _ = toys.family(name)
    calls = zl.trace(model, inputs).calls
    places = [(toys.PROJECTIONS[name](call.path), call.index) for call in calls]
    return toys.effects(model, inputs, known.read, places, [call.heads for call in calls], SOURCES[name], absent(inputs))


# --- effects -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", list(SOURCES))
def test_effects_are_those_of_plain_hooks(name):
    known, model, inputs, target = toys.family(name)
    whole, single = reference(name)
    found = zl.mechanism(model, inputs, target=target, baseline=baselines(inputs))
    assert [edge.cut for edge in found.edges] == SOURCES[name]
    assert torch.allclose(found.effect, whole, rtol=1e-8, atol=1e-10)
    for number, truth in single.items():
        heads = truth.shape[1]
        assert found.edges[number].heads == heads
        assert torch.allclose(found.head_effect[:, number, :heads], truth, rtol=1e-8, atol=1e-10)
        assert bool(found.head_effect[:, number, heads:].isnan().all())
    assert float(whole.abs().max()) > 1e-3
    assert any(float(one.max() - one.min()) > 1e-3 for one in single.values())
    with torch.no_grad():
        assert torch.allclose(found.output, known.read(model(**inputs)), rtol=1e-10)
        used = {n for names in SOURCES[name] for n in names}
        joint = known.read(model(**{**inputs, **{n: absent(inputs)[n] for n in used}}))
    assert torch.allclose(found.joint, joint, rtol=1e-9)
    assert torch.allclose(found.difference, found.output - joint, rtol=1e-8)
    assert set(found.baselines) == used
    assert found.evaluations == sum(1 + heads.shape[1] for heads in single.values())


@pytest.mark.parametrize("name", list(SOURCES))
def test_the_suffix_gives_the_numbers_of_the_whole_model(name):
    _, model, inputs, target = toys.family(name)
    options = {"target": target, "baseline": baselines(inputs)}
    a, b = (zl.mechanism(model, inputs, **options, suffix=suffix) for suffix in (True, False))
    assert torch.allclose(a.effect, b.effect, rtol=1e-9, atol=1e-12)
    assert torch.allclose(a.head_effect, b.head_effect, rtol=1e-9, atol=1e-12, equal_nan=True)
    cut = [number for number, sources in enumerate(SOURCES[name]) if sources]
    assert [a.execution[number] for number in cut] == ["suffix"] * len(cut)
    assert [b.execution[number] for number in cut] == ["full"] * len(cut)


def test_each_source_has_a_baseline_of_its_own():
    model = toys.sharp(toys.CoAttention())
    inputs = {"words": torch.randn(2, 4, 8).double(), "regions": torch.randn(2, 5, 8).double()}
    other = torch.randn(2, 5, 8).double()
    names = ["words.0", "regions.0", "cross.0", "cross.0", "words.1", "regions.1", "cross.1", "cross.1"]
    places = [(f"{name}.o", index) for name, index in zip(names, (0, 0, 0, 1, 0, 0, 0, 1))]
    keys = ["words", "regions", "regions", "words"] * 2
    away = {"words": torch.full_like(inputs["words"], 0.7), "regions": other}
    whole, single = toys.effects(model, inputs, lambda o: o[:, 1], places, [2] * 8, [(key,) for key in keys], away)
    found = zl.mechanism(model, inputs, target=1, baseline={"words": zl.baseline.constant(0.7), "regions": other})
    assert torch.allclose(found.effect, whole, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.head_effect, torch.stack([single[n] for n in range(8)], 1), rtol=1e-9, atol=1e-12)
    assert found.baselines["words"] == "constant(0.7)"
    with torch.no_grad():
        assert torch.allclose(found.joint, model(**away)[:, 1])
        one = zl.mechanism(model, inputs, target=1, baseline=zl.baseline.constant(0.7))
        assert torch.allclose(one.joint, model(*(torch.full_like(t, 0.7) for t in inputs.values()))[:, 1])
        usual = zl.mechanism(model, inputs, target=1, baseline={"words": zl.baseline.constant(0.7)})
        assert torch.allclose(usual.joint, model(away["words"], inputs["regions"] * 0)[:, 1])
    assert usual.baselines == {"words": "constant(0.7)", "regions": "zeros"}


def test_of_an_edge_from_one_source_only_that_source_is_away():
    """The third call's keys are words, though words have seen regions by then; the fourth's are both."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.cross, self.own, self.both = (toys.Attend() for _ in range(4))
            self.head = nn.Linear(8, 3)

        def forward(self, words, regions):
            x = words + self.first(words, words)
            x = x + self.cross(x, regions)
            x = x + self.own(x, x)
            z = torch.cat([x, regions], 1)
            return self.head((z + self.both(z, z))[:, 0])

    model = toys.sharp(Late())
    inputs = {"words": torch.randn(2, 4, 8).double(), "regions": torch.randn(2, 5, 8).double()}
    sources = [("words",), ("regions",), ("words",), ("words", "regions")]
    places = [("first.o", 0), ("cross.o", 0), ("own.o", 0), ("both.o", 0)]
    away = {name: t * 0 for name, t in inputs.items()}
    whole, single = toys.effects(model, inputs, lambda o: o[:, 1], places, [2] * 4, sources, away)
    found = zl.mechanism(model, inputs, target=1)
    assert [edge.cut for edge in found.edges] == sources
    assert torch.allclose(found.effect, whole, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.head_effect, torch.stack([single[n] for n in range(4)], 1), rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(found.joint, model(**away)[:, 1])


def test_multi_head_attention_of_pytorch_is_cut_as_it_is_written():
    """The output before the output projection, which ``nn.MultiheadAttention`` does not call as a module: written out."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x, y):
            return self.head((x + self.attend(x, y, y)[0]).tanh().mean(1))

    model = toys.sharp(One())
    x, y = torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double()
    w, b = model.attend.in_proj_weight.chunk(3), model.attend.in_proj_bias.chunk(3)

    def f(y, o0=None, heads=()):
        q, k, v = ((t @ a.T + c).unflatten(-1, (2, 4)).transpose(1, 2) for t, a, c in zip((x, y, y), w, b))
        o = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        for head in heads:
            o[:, head] = o0[:, head]
        return model.head((x + model.attend.out_proj(o.transpose(1, 2).flatten(2))).tanh().mean(1))[:, 1], o

    with torch.no_grad():
        value, _ = f(y)
        o0 = f(y * 0)[1]
        whole, single = value - f(y, o0, (0, 1))[0], torch.stack([value - f(y, o0, (h,))[0] for h in (0, 1)], 1)
    found = zl.mechanism(model, (x, y), target=1)
    assert torch.allclose(found.effect[:, 0], whole, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.head_effect[:, 0], single, rtol=1e-9, atol=1e-12)


def test_a_cut_of_the_only_attention_of_a_model_without_another_way_is_the_whole_difference():
    """No residual, keys of the one source: f(x) - f(do) is f(x) - f(x0) where queries do not matter."""

    class Only(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend, self.head = toys.Attend(), nn.Linear(8, 3)
            self.queries = nn.Parameter(torch.randn(1, 2, 8))

        def forward(self, x):
            return self.head(self.attend(self.queries.expand(len(x), -1, -1), x).mean(1))

    model, x = toys.sharp(Only()), torch.randn(2, 5, 8).double()
    found = zl.mechanism(model, x, target=0)
    assert torch.allclose(found.effect[:, 0], found.difference, rtol=1e-10)
    assert torch.allclose(found.head_effect[:, 0].sum(1), found.difference, rtol=1e-10)  # linear behind the attention


def test_edges_of_learned_queries_alone_have_no_effect_and_are_not_run():
    _, model, inputs, target = toys.family("DETR")
    found = zl.mechanism(model, inputs, target=target)
    edge = found.edges[2]
    assert (edge.cut, edge.queries, edge.keys) == ((), "model.query_position_embeddings.weight", "model.query_position_embeddings.weight")
    assert not bool(found.effect[:, 2].any())
    assert not bool(found.head_effect[:, 2, : edge.heads].any())
    assert found.execution[2] == ""
    assert found.edges[4].cut == ("pixel_values",)  # the same queries a layer later have looked at the image
    assert float(found.effect[:, 4].abs().max()) > 1e-6


def test_for_ids_the_baseline_that_goes_without_saying_is_the_configurations_pad_token():
    _, model, inputs, target = toys.family("T5")
    found = zl.mechanism(model, inputs, target=target)
    named = zl.mechanism(model, inputs, target=target, baseline=zl.baseline.token(0, keep=[0, 1]))
    assert torch.allclose(found.effect, named.effect, rtol=1e-12)
    assert all("pad" in name for name in found.baselines.values())


# --- relevance -----------------------------------------------------------------------------------------------------------
def flows(model, inputs, which, correction):
    """sum |r^T Abar| [batch, calls]: r is the derivative of the row that is read by what a call adds, in the linear model h + Abar h."""
    found = toys.abars(model, inputs, which, correction)
    added, maps = [], []
    forwards = {m: iter(each) for m, each in found.items()}

    def linear(m):
        def forward(x, y):
            maps.append(next(forwards[m]))
            added.append(torch.zeros(*maps[-1].shape[:2], 1, dtype=torch.float64, requires_grad=True))
            return maps[-1] @ y + added[-1]

        return forward

    changed = [*found, model.head]
    for m in found:
        m.forward = linear(m)
    model.head.forward = lambda row: row
    read = model(*(torch.randn(*t.shape[:2], 1, dtype=torch.float64) for t in inputs))
    for m in changed:
        del m.forward
    rows = torch.autograd.grad(read.sum(), added, allow_unused=True)
    return torch.stack([torch.zeros(len(a)).double() if r is None else (r.transpose(1, 2) @ a).abs().sum((1, 2)) for r, a in zip(rows, maps)], 1)


@pytest.mark.parametrize("correction", ["positive", "signed", "none"])
@pytest.mark.parametrize(("build", "sizes"), [(toys.OneStream, (6,)), (toys.CoAttention, (4, 5)), (toys.EncoderDecoder, (6, 4))])
def test_relevance_flows_as_in_the_linear_model(build, sizes, correction):
    model = toys.sharp(build())
    inputs = tuple(torch.randn(2, size, 8).double() for size in sizes)
    truth = flows(model, inputs, 1, correction)
    found = zl.mechanism(model, inputs, target=1, correction=correction, heads=False)
    assert found.relevance.shape == truth.shape
    assert torch.allclose(found.relevance, truth, rtol=1e-9, atol=1e-14)
    assert float(truth.max()) > 1e-3
    if build is toys.CoAttention:  # of the last two calls one way is not read
        assert not bool(found.relevance[:, 7].any())


def test_flow_is_what_attention_relevance_moved():
    _, model, inputs, target = toys.family("LXMERT")
    found = zl.mechanism(model, inputs, target=target, baseline=baselines(inputs), heads=False)
    whole = zl.attention_relevance(model, inputs, target=target)
    moved = sum(part.abs().sum(2) for part in whole.per_call.values())
    assert torch.allclose(found.relevance, moved.T, rtol=1e-10)
    assert [e.name for e in found.edges] == [name for name, _ in whole.calls]


def ranked(values):
    """Ranks from 1, ties sharing their mean, by counting."""
    return [sum(v < w for v in values) + (sum(v == w for v in values) + 1) / 2 for w in values]


def spearman(a, b):
    a, b = ranked(a), ranked(b)
    x, y = ([v - sum(side) / len(side) for v in side] for side in (a, b))
    return sum(p * q for p, q in zip(x, y)) / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))


def test_the_rank_correlation_is_spearmans_over_edges():
    _, model, inputs, target = toys.family("LXMERT")
    found = zl.mechanism(model, inputs, target=target, baseline=baselines(inputs), heads=False)
    for kind, numbers in ((None, range(11)), ("heterogenous", (3, 4, 7, 8)), ("homogenous", (0, 1, 2, 5, 6, 9, 10))):
        for sample in range(2):
            flow = [float(found.relevance[sample, n]) for n in numbers]
            cause = [abs(float(found.effect[sample, n])) for n in numbers]
            assert float(found.rank_correlation(kind)[sample]) == pytest.approx(spearman(flow, cause), abs=1e-12)


# --- what is cut -----------------------------------------------------------------------------------------------------------
def test_heads_are_left_out_on_request():
    _, model, inputs, target = toys.family("T5")
    whole = zl.mechanism(model, inputs, target=target)
    found = zl.mechanism(model, inputs, target=target, heads=False)
    assert torch.allclose(found.effect, whole.effect, rtol=1e-12)
    assert bool(found.head_effect.isnan().all())
    assert found.head_effect.shape == whole.head_effect.shape
    assert found.evaluations == 6
    assert found.heads() == []


@pytest.mark.parametrize("selection", [[3, 5], "*EncDecAttention*", [-1, 3], (3, "decoder.block.1.layer.1.EncDecAttention")])
def test_calls_that_were_not_named_are_not_cut(selection):
    _, model, inputs, target = toys.family("T5")
    whole = zl.mechanism(model, inputs, target=target)
    found = zl.mechanism(model, inputs, target=target, calls=selection)
    assert torch.allclose(found.effect[:, [3, 5]], whole.effect[:, [3, 5]], rtol=1e-10)
    assert torch.allclose(found.head_effect[:, [3, 5]], whole.head_effect[:, [3, 5]], rtol=1e-10)
    others = [0, 1, 2, 4]
    assert bool(found.effect[:, others].isnan().all())
    assert bool(found.head_effect[:, others].isnan().all())
    assert torch.allclose(found.relevance, whole.relevance, rtol=1e-12)  # relevance flows along all of them
    assert found.settings["calls"] == [found.edges[3].name, found.edges[5].name]
    assert found.evaluations == 10
    assert [found.execution[n] for n in others] == [""] * 4


def test_more_cuts_than_allowed_are_refused_before_any():
    model = toys.sharp(toys.CoAttention())
    inputs = (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())
    done = []
    with pytest.raises(UsageError, match=r"8 attentions are 24 cuts; max_evaluations is 23: name fewer calls, heads=False \(8 cuts\), or raise it"):
        zl.mechanism(model, inputs, target=1, max_evaluations=23, progress=lambda *a: done.append(a))
    assert done == []
    assert zl.mechanism(model, inputs, target=1, max_evaluations=24).evaluations == 24
    with pytest.raises(UsageError, match=r"8 attentions are 8 cuts; max_evaluations is 7: name fewer calls, or raise it"):
        zl.mechanism(model, inputs, target=1, max_evaluations=7, heads=False)
    assert zl.mechanism(model, inputs, target=1, max_evaluations=3, calls=2).evaluations == 3


def test_progress_is_told_of_cuts_done():
    model = toys.sharp(toys.CoAttention())
    inputs = (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())
    told = []
    zl.mechanism(model, inputs, target=1, calls=[0, 2, 3], progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 9), (6, 9), (9, 9)]


def test_every_forward_pass_is_counted():
    model = toys.sharp(toys.CoAttention())
    inputs = (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())
    for options, passes in (({}, 1 + 2 + 3 + 8), ({"suffix": False}, 1 + 3 + 1 + 8), ({"suffix": False, "calls": 3}, 1 + 3 + 1 + 1)):
        ran = []
        hook = model.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        found = zl.mechanism(model, inputs, target=1, **options)
        hook.remove()
        assert found.forward_passes == len(ran) == passes


# --- laws --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["LXMERT", "T5", "DETR", "Swin"])
def test_a_batch_of_two_is_two_of_one(name):
    _, model, inputs, target = toys.family(name)
    both = zl.mechanism(model, inputs, target=target, baseline=baselines(inputs))
    for i in range(2):
        alone = zl.mechanism(model, {key: t[i : i + 1] for key, t in inputs.items()}, target=target, baseline=baselines(inputs))
        one = both.sample(i)
        for part in ("relevance", "effect", "head_effect", "output", "joint"):
            assert torch.allclose(getattr(alone, part), getattr(one, part), rtol=1e-7, atol=1e-11, equal_nan=True)
        assert alone.readout == one.readout
        assert alone.execution == one.execution  # what was found out at one batch size holds at another


def test_a_class_is_fixed_on_x():
    """The top class of x is what is followed under cuts, whatever is on top there; and each sample has its own."""
    model = toys.sharp(toys.CoAttention())
    inputs = (torch.randn(6, 4, 8).double(), torch.randn(6, 5, 8).double())
    with torch.no_grad():
        best = model(*inputs).argmax(1)
    assert len(set(best.tolist())) > 1
    top, named = zl.mechanism(model, inputs, target="top"), zl.mechanism(model, inputs, target=best.tolist())
    assert torch.allclose(top.effect, named.effect, rtol=1e-12)
    assert top.target == named.target == tuple(f"logit of {k}" for k in best.tolist())


def test_the_model_is_as_it_was_also_after_an_error():
    model = toys.sharp(toys.CoAttention())
    next(model.parameters()).requires_grad_(False)
    inputs = (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())
    kept = [t.clone() for t in inputs]

    def stop(done, _):
        raise KeyboardInterrupt

    for options in ({}, {"suffix": False}):
        before = toys.state_of(model)
        zl.mechanism(model, inputs, target=1, **options)
        toys.assert_same_state(before, toys.state_of(model))
        with pytest.raises(KeyboardInterrupt):
            zl.mechanism(model, inputs, target=1, progress=stop, **options)
        toys.assert_same_state(before, toys.state_of(model))
        for wrong in ({"baseline": torch.ones(3)}, {"target": 9}, {"calls": 99}, {"max_evaluations": 1}):
            with pytest.raises(ZerolineError):
                zl.mechanism(model, inputs, **{"target": 1, **options, **wrong})
            toys.assert_same_state(before, toys.state_of(model))
    assert all(torch.equal(a, b) for a, b in zip(kept, inputs))


def test_the_same_call_gives_the_same_numbers_whatever_the_mode_it_is_called_in():
    model = toys.sharp(toys.CoAttention())
    inputs = (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())
    plain = zl.mechanism(model, inputs, target=1)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            found = zl.mechanism(model, inputs, target=1)
        assert torch.equal(found.effect, plain.effect)
        assert torch.equal(found.relevance, plain.relevance)


@pytest.mark.parametrize("name", ["LXMERT", "T5", "Whisper"])
def test_bfloat16_and_float32_models_come_near_to_float64(name):
    _, exact, fine, target = toys.family(name)
    truth = zl.mechanism(exact, fine, target=target, baseline=baselines(fine))
    for dtype, close in ((torch.float32, 1e-3), (torch.bfloat16, 0.25)):
        _, model, inputs, _ = toys.family(name, dtype)
        found = zl.mechanism(model, inputs, target=target, baseline=baselines(inputs))
        for part in ("relevance", "effect", "head_effect"):
            a, b = getattr(found, part), getattr(truth, part)
            assert a.dtype == torch.float64
            assert float((a - b).abs().max()) <= close * float(b.abs().max())
        assert set(found.execution) == {"suffix"}


class Shared(nn.Module):
    """Words of every sample look at one memory that they share, and that looks at itself first."""

    def __init__(self):
        super().__init__()
        self.own, self.cross, self.head = toys.Attend(), toys.Attend(), nn.Linear(8, 3)

    def forward(self, words, memory):
        m = memory + self.own(memory, memory)
        return self.head((words + self.cross(words, m.flatten(0, 1).expand(len(words), -1, -1)))[:, 0])


@pytest.mark.parametrize("shape", [(1, 4, 8), (3, 4, 8), (1, 5, 8)])
def test_an_input_that_samples_share_is_cut_as_a_whole(shape):
    model = toys.sharp(Shared())
    inputs = {"words": torch.randn(2, 4, 8).double(), "memory": torch.randn(*shape).double()}
    away = {"memory": inputs["memory"] * 0}
    truth, _ = toys.effects(model, inputs, lambda o: o[:, 1], [("own.o", 0), ("cross.o", 0)], [2, 2], [("memory",)] * 2, away)
    found = zl.mechanism(model, inputs, target=1, heads=False)
    assert torch.allclose(found.effect, truth, rtol=1e-9)


def test_a_model_that_turns_its_patches_about_has_the_effects_that_it_has(monkeypatch):
    monkeypatch.undo()
    _, model, inputs, target = toys.family("ViLT")
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        found.append(zl.mechanism(model, inputs, target=target, baseline=baselines(inputs), heads=False).effect)
    assert torch.allclose(*found, rtol=1e-6)


# --- the record it makes ---------------------------------------------------------------------------------------------------
def test_the_record_says_what_was_asked_and_what_the_graph_is():
    _, model, inputs, target = toys.family("T5")
    found = zl.mechanism(model, inputs, target=target, correction="absolute", heads=False)
    calls = zl.trace(model, inputs)
    for edge, call in zip(found.edges, calls.calls):
        assert (edge.number, edge.name, edge.kind, edge.queries, edge.keys) == (call.number, call.name, call.kind, call.queries, call.keys)
        assert (edge.heads, edge.feeds_from) == (call.heads, call.feeds_from)
    assert found.streams == tuple((s.name, s.tokens) for s in calls.streams)
    assert found.heterogenous == (3, 5)
    assert found.settings == {"correction": "absolute", "heads": False, "calls": [c.name for c in calls.calls]}
    assert found.versions["torch"] == torch.__version__
    assert "T5ForConditionalGeneration" in found.model
    assert found.readout == zl.attention_relevance(model, inputs, target=target).readout
    json.dumps(found.to_dict(), allow_nan=False)
    assert "T5" not in found.reading()


def test_of_one_source_nothing_is_heterogenous():
    model, x = toys.sharp(toys.OneStream()), torch.randn(2, 5, 8).double()
    found = zl.mechanism(model, x, target=1)
    assert found.heterogenous == ()
    assert found.fusion() == []
    assert found.reading().startswith("nothing is heterogenous: in every attention queries and keys are of the same source; the target needs layers.")
    assert found.rank_correlation().isnan().all()  # three edges


def test_two_sources_that_never_meet_are_not_said_to_be_one():
    torch.manual_seed(0)
    model, inputs = clip("sdpa")
    target = zl.target.output(lambda o: o.logits_per_image.diagonal())
    found = zl.mechanism(model.eval(), inputs, target=target, baseline=baselines(inputs), heads=False)
    assert {edge.cut for edge in found.edges} == {IDS, PIX}
    assert "nothing is heterogenous" in found.reading()
    assert "one and the same source" not in found.reading()


def test_joint_has_all_sources_at_their_baselines():
    model = toys.sharp(toys.CrossOnly())
    inputs = (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())
    found = zl.mechanism(model, inputs, target=1)
    with torch.no_grad():
        assert torch.allclose(found.joint, model(inputs[0] * 0, inputs[1] * 0)[:, 1])


# --- bad input -------------------------------------------------------------------------------------------------------------
def test_ids_without_a_token_that_stands_for_nothing_need_a_baseline():
    _, model, inputs, target = toys.family("LXMERT")
    with pytest.raises(BaselineError, match=r"'input_ids' holds ids.*no mask or pad token.*zl\.baseline\.mask_token\(tokenizer\)"):
        zl.mechanism(model, inputs, target=target)
    with pytest.raises(BaselineError, match="'input_ids' holds ids"):
        zl.mechanism(model, inputs, target=target, baseline={"input_ids": zl.baseline.zeros()})
    with pytest.raises(BaselineError, match="token 99 .*60 entries"):
        zl.mechanism(model, inputs, target=target, baseline={"input_ids": zl.baseline.token(99)})
    with pytest.raises(BaselineError, match="'visual_feats' holds numbers"):
        zl.mechanism(model, inputs, target=target, baseline={"visual_feats": zl.baseline.token(3), "input_ids": zl.baseline.token(3)})


def test_a_baseline_of_an_input_that_does_not_exist_is_an_error():
    model = toys.sharp(toys.CoAttention())
    inputs = (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())
    with pytest.raises(NotFoundError, match="nearest: regions"):
        zl.mechanism(model, inputs, target=1, baseline={"region": zl.baseline.constant(0.5)})


class Padded(nn.Module):
    """Ids, of which 0 is hidden by the model itself, or those that a mask hides; its softmax is written out."""

    def __init__(self):
        super().__init__()
        self.words, self.q, self.k, self.v, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids, mask=None):
        x = self.words(ids)
        hidden = ids == 0 if mask is None else mask == 0
        scores = (self.q(x) @ self.k(x).transpose(1, 2)).masked_fill(hidden[:, None], -torch.inf)
        return self.head((x + scores.softmax(-1) @ self.v(x))[:, 0])


def test_a_baseline_that_hides_every_key_is_one_clear_error():
    model, ids = toys.sharp(Padded()), torch.randint(1, 9, (2, 4))
    before = toys.state_of(model)
    for hiding in (zl.baseline.token(0), zl.baseline.of({"ids": ids * 0})):
        with pytest.raises(NonFiniteError, match="under the baseline the model gives NaN or infinity: .*without keys") as caught:
            zl.mechanism(model, {"ids": ids}, target=1, baseline=hiding)
        assert "\n" not in str(caught.value)
        toys.assert_same_state(before, toys.state_of(model))
    assert bool(zl.mechanism(model, {"ids": ids}, target=1, baseline=zl.baseline.token(4)).effect.isfinite().all())


def test_of_another_input_the_source_is_taken_and_masks_stay_those_of_x():
    model, ids = toys.sharp(Padded()), torch.randint(1, 9, (2, 4))
    inputs = {"ids": ids, "mask": torch.ones(2, 4)}
    other = {"ids": ids.flip(1), "mask": torch.zeros(2, 4)}  # its mask would hide every key
    found = zl.mechanism(model, inputs, target=1, baseline=zl.baseline.of(other))
    with torch.no_grad():
        assert torch.allclose(found.joint, model(ids.flip(1), inputs["mask"])[:, 1].double())


def test_a_target_that_is_not_finite_at_the_baselines_is_an_error():
    class Divided(toys.OneStream):
        def forward(self, x):
            return super().forward(x) / x.abs().sum((1, 2))[:, None]

    with pytest.raises(NonFiniteError, match="sample 0"):
        zl.mechanism(toys.sharp(Divided()), torch.randn(2, 5, 8).double(), target=1)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": 99}, TargetError, "the model has 3"),
        ({"calls": 9}, NotFoundError, "no call 9; the model has 8"),
        ({"calls": "crss.0"}, NotFoundError, "nearest: cross.0"),
        ({"calls": []}, NotFoundError, "no calls"),
        ({"correction": "postive"}, NotFoundError, "nearest: positive"),
        ({"baseline": torch.ones(3, 8)}, BaselineError, r"\(3, 8\)"),
        ({"baseline": {"regions": torch.ones(2, 9, 8)}}, BaselineError, r"\(2, 9, 8\)"),
        ({"baseline": zl.baseline.token(3)}, BaselineError, "'words' holds numbers"),
        ({"target": zl.target.output(lambda o: o[:, 0].detach())}, TargetError, "needs no gradient"),
        ({"target": zl.target.output(lambda o: o)}, TargetError, "one number per sample"),
    ],
)
def test_bad_input_gets_one_clear_error(options, error, words):
    model = toys.sharp(toys.CoAttention())
    inputs = (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())
    with pytest.raises(error, match=words) as caught:
        zl.mechanism(model, inputs, **{"target": 1, **options})
    assert "\n" not in str(caught.value)


def test_a_cache_among_the_inputs_is_refused():
    _, model, inputs, target = toys.family("GPT-2")
    with torch.no_grad():
        cache = model(input_ids=inputs["input_ids"][:, :3], use_cache=True).past_key_values
    given = {"input_ids": inputs["input_ids"][:, 3:], "past_key_values": cache}
    with pytest.raises(ZerolineError, match="past_key_values|cache"):
        zl.mechanism(model, given, target=target, baseline=zl.baseline.token(WORD))


def test_models_without_attention_or_in_training_are_refused():
    with pytest.raises(TraceError, match="no attention"):
        zl.mechanism(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4), target=0)
    torch.manual_seed(0)
    model, inputs = bert("sdpa")
    with pytest.raises(ModelStateError, match="eval"):
        zl.mechanism(model.train(), inputs, target=0, baseline=zl.baseline.token(3))


def test_the_table_of_families_has_those_of_this_file():
    assert set(SOURCES) <= {family.name for family in FAMILIES}
    for name, sources in SOURCES.items():
        assert next(f for f in FAMILIES if f.name == name and f.source == "transformers").calls == len(sources)
