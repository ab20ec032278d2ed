"""Relevance against its rules written out in float64 from the papers, its options, and what it says to bad input."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zeroline as zl
from zeroline.errors import InputError, NotFoundError, SiteError, TargetError, TraceError, UsageError, ZerolineError
from zeroline.maths.propagation import without_identity_normalised

from attention_models import clip, llava, lxmert, swin, t5, vit  # isort: skip

# --- the papers, written out ---------------------------------------------------------------------------------------


class Attend(nn.Module):
    """Attention of two heads that keeps its map, written out; the test's own, in float64."""

    def __init__(self, width=8):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.maps = []

    def forward(self, x, y, fused):
        q, k, v = (f(t).unflatten(-1, (2, -1)).transpose(1, 2) for f, t in ((self.q, x), (self.k, y), (self.v, y)))
        if fused:
            return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        a = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        self.maps.append(a)
        return self.o((a @ v).transpose(1, 2).flatten(2))


class CoAttention(nn.Module):
    """Two streams as in LXMERT: each looks at itself, then both at each other at once, then at themselves again."""

    def __init__(self):
        super().__init__()
        self.words, self.regions, self.cross, self.words2, self.regions2 = (Attend() for _ in range(5))
        self.head = nn.Linear(8, 3)
        self.fused = True

    def forward(self, words, regions):
        x = words + self.words(words, words, self.fused)
        y = regions + self.regions(regions, regions, self.fused)
        a, b = self.cross(x, y, self.fused), self.cross(y, x, self.fused)
        x, y = x + a, y + b
        x = x + self.words2(x, x, self.fused)
        y = y + self.regions2(y, y, self.fused)
        return self.head(x[:, 0])


class EncoderDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.own, self.cross = Attend(), Attend(), Attend()
        self.head = nn.Linear(8, 3)
        self.fused = True

    def forward(self, source, target):
        m = source + self.encoder(source, source, self.fused)
        x = target + self.own(target, target, self.fused)
        return self.head((x + self.cross(x, m, self.fused))[:, -1])


def sharp(model):
    """Float64, and weights that make attention uneven."""
    torch.manual_seed(4)
    for p in model.parameters():
        p.data = torch.randn(p.shape, dtype=torch.float64) * (0.9 if p.ndim > 1 else 0.3)
    return model.eval().double()


def corrected(model, inputs, which):
    """(dA * A)+ averaged over heads (Chefer equation 5), by autograd on the written-out model, per attention call."""
    model.fused = False
    attends = [m for m in model.modules() if isinstance(m, Attend)]
    for m in attends:
        m.maps = []
    score = model(*inputs)[:, which].sum()
    maps = {m: m.maps for m in attends}
    flat = [a for m in attends for a in maps[m]]
    gradients = iter(torch.autograd.grad(score, flat, allow_unused=True))
    model.fused = True
    return {m: [(torch.zeros_like(a) if (g := next(gradients)) is None else a * g).clamp(min=0).mean(1).detach() for a in maps[m]] for m in attends}


def bar(r):
    """Chefer equations 8 and 9; a row of zeros stays."""
    eye = torch.eye(r.shape[-1], dtype=r.dtype)
    rest = r - eye
    total = rest.sum(-1, keepdim=True)
    return torch.where(total != 0, rest / total, 0.0) + eye


def identity(batch, n):
    return torch.eye(n, dtype=torch.float64).expand(batch, n, n).clone()


@pytest.mark.parametrize("rule", ["graph", "chefer-bimodal"])
def test_co_attention_follows_chefers_rules(rule):
    model = sharp(CoAttention())
    s, q = torch.randn(2, 5, 8).double(), torch.randn(2, 4, 8).double()
    found = zl.attention_relevance(model, (s, q), target=1, rule=rule)
    a = corrected(model, (s, q), 1)
    ss, qq = identity(2, 5), identity(2, 4)
    sq, qs = torch.zeros(2, 5, 4).double(), torch.zeros(2, 4, 5).double()

    def own(a, rxx, rxy):  # equations 6 and 7
        return rxx + a @ rxx, rxy + a @ rxy

    ss, sq = own(a[model.words][0], ss, sq)
    qq, qs = own(a[model.regions][0], qq, qs)
    a_sq, a_qs = a[model.cross]
    if rule == "graph":
        ss, sq, qq, qs = ss + a_sq @ qs, sq + a_sq @ qq, qq + a_qs @ sq, qs + a_qs @ ss
    else:  # equations 10 and 11, both directions from the states before
        more_sq, more_ss = bar(ss).transpose(1, 2) @ a_sq @ bar(qq), a_sq @ qs
        more_qs, more_qq = bar(qq).transpose(1, 2) @ a_qs @ bar(ss), a_qs @ sq
        ss, sq, qq, qs = ss + more_ss, sq + more_sq, qq + more_qq, qs + more_qs
    ss, sq = own(a[model.words2][0], ss, sq)
    assert torch.allclose(found.by_source["words"], ss[:, 0], rtol=1e-10, atol=1e-12)
    assert torch.allclose(found.by_source["regions"], sq[:, 0], rtol=1e-10, atol=1e-12)
    assert float(sq[:, 0].abs().max()) > 1e-3


def test_encoder_decoder_follows_chefers_rules():
    model = sharp(EncoderDecoder())
    source, target = torch.randn(2, 6, 8).double(), torch.randn(2, 4, 8).double()
    a = corrected(model, (source, target), 2)
    encoder = identity(2, 6) + a[model.encoder][0]
    own = identity(2, 4) + a[model.own][0]
    graph = a[model.cross][0] @ encoder
    bimodal = bar(own).transpose(1, 2) @ a[model.cross][0] @ bar(encoder)
    for rule, truth in (("graph", graph), ("chefer-bimodal", bimodal)):
        found = zl.attention_relevance(model, (source, target), target=2, rule=rule)
        assert torch.allclose(found.by_source["source"], truth[:, -1], rtol=1e-10, atol=1e-12)
        assert torch.allclose(found.by_source["target"], own[:, -1], rtol=1e-10, atol=1e-12)


def maps_of(model, inputs, which):
    """A and dA of every layer of an HF ViT, by autograd on its eager twin."""
    model.set_attn_implementation("eager")
    output = model(**inputs, output_attentions=True)
    gradients = torch.autograd.grad(output.logits[:, which].sum(), output.attentions)
    model.set_attn_implementation("sdpa")
    return [a.detach() for a in output.attentions], gradients


@pytest.fixture
def small_vit():
    torch.manual_seed(2)
    model, inputs = vit("sdpa")
    for p in model.parameters():
        if p.ndim > 1:
            p.data = torch.randn(p.shape) * 0.25
    return model.eval().double(), {"pixel_values": inputs["pixel_values"].double()}


CORRECT = {
    "none": lambda a, g: a,
    "positive": lambda a, g: (a * g).clamp(min=0),
    "negative": lambda a, g: (-a * g).clamp(min=0),
    "absolute": lambda a, g: (a * g).abs(),
    "signed": lambda a, g: a * g,
}


@pytest.mark.parametrize("fusion", ["mean", "max"])
@pytest.mark.parametrize("coverage", ["complete", "incomplete"])
@pytest.mark.parametrize("correction", list(CORRECT))
def test_self_attention_against_the_full_product(small_vit, correction, coverage, fusion):
    """R = (I + Abar_L) ... (I + Abar_1), read at the class token; HF's eager softmax is float32, hence 1e-5."""
    model, inputs = small_vit
    maps, gradients = maps_of(model, inputs, 1)
    r = identity(2, 7)
    for layer, (a, g) in enumerate(zip(maps, gradients)):
        change = CORRECT[correction if coverage == "complete" or layer == 1 else "none"]
        heads = change(a, g)
        abar = heads.mean(1) if fusion == "mean" else heads.gather(1, heads.abs().argmax(1, keepdim=True))[:, 0]
        r = r + abar @ r
    found = zl.attention_relevance(model, inputs, target=1, correction=correction, coverage=coverage, head_fusion=fusion)
    assert torch.allclose(found.by_source["pixel_values"], r[:, 0], rtol=1e-5, atol=1e-7)
    assert found.corrected == (() if correction == "none" else (1,) if coverage == "incomplete" else (0, 1))


def test_rollout_is_the_product_of_the_maps(small_vit):
    model, inputs = small_vit
    maps, _ = maps_of(model, inputs, 1)
    r = identity(2, 7)
    for a in maps:
        r = (identity(2, 7) + a.mean(1)) @ r
    found = zl.rollout(model, inputs, target="top")
    assert torch.allclose(found.by_source["pixel_values"], r[:, 0], rtol=1e-5)
    assert torch.allclose(found.by_source["pixel_values"].sum(1), torch.full((2,), 4.0).double())  # 2 ** layers
    assert torch.equal(zl.rollout(model, inputs, target=3).by_source["pixel_values"], found.by_source["pixel_values"])


def test_a_readout_by_hand_of_two_streams_is_refused():
    model, inputs = clip("sdpa")
    with pytest.raises(UsageError, match="reads 2 streams"):
        zl.attention_relevance(model.eval(), inputs, target=zl.target.output(lambda o: o.logits_per_image.diagonal()), readout=3)


def test_transfer_asks_which_stream_and_refuses_windows():
    model, inputs = clip("sdpa")
    target = zl.target.output(lambda o: o.logits_per_image.diagonal())
    with pytest.raises(TraceError, match=r"2 streams have self-attention .*input_ids, pixel_values"):
        zl.attention_transfer(model.eval(), inputs, target=target)
    assert zl.attention_transfer(model, inputs, target=target, stream="pixel_values").own.shape == (2, 2, 17)
    with pytest.raises(NotFoundError, match="nearest: pixel_values"):
        zl.attention_transfer(model, inputs, target=target, stream="pixels")
    windows, picture = swin("sdpa")
    with pytest.raises(TraceError, match="windows"):
        zl.attention_transfer(windows.eval(), picture, target=1)


def test_a_guide_multiplies_the_key_tokens(small_vit):
    model, inputs = small_vit
    maps, gradients = maps_of(model, inputs, 1)
    guide = torch.rand(2, 6).double()
    full = torch.cat([torch.ones(2, 1).double(), guide], 1)
    r = identity(2, 7)
    for a, g in zip(maps, gradients):
        r = r + ((a * g).clamp(min=0).mean(1) * full[:, None]) @ r
    for given in (guide, guide.view(2, 2, 3), full, {"pixel_values": guide}):
        found = zl.attention_relevance(model, inputs, target=1, guide=given)
        assert torch.allclose(found.by_source["pixel_values"], r[:, 0], rtol=1e-5, atol=1e-8)
    one = zl.attention_relevance(model, inputs, target=1, guide=torch.ones(6))
    assert torch.equal(one.by_source["pixel_values"], zl.attention_relevance(model, inputs, target=1).by_source["pixel_values"])


def test_selected_calls_alone_take_part(small_vit):
    model, inputs = small_vit
    maps, gradients = maps_of(model, inputs, 1)
    truth = (identity(2, 7) + (maps[0] * gradients[0]).clamp(min=0).mean(1))[:, 0]
    for selection in (0, [0], "vit.layers.0.attention", "*layers.0*", slice(0, 1), -2):
        found = zl.attention_relevance(model, inputs, target=1, calls=selection)
        assert torch.allclose(found.by_source["pixel_values"], truth, rtol=1e-5, atol=1e-8)


def test_several_targets_take_one_forward_pass(small_vit):
    model, inputs = small_vit
    passes = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    found = zl.attention_relevance(model, inputs, target={"a": 0, "b": [1, 2], "a - b": zl.contrast(0, 1)})
    hook.remove()
    assert len(passes) == 1
    for name, target in (("a", 0), ("b", [1, 2]), ("a - b", zl.contrast(0, 1))):
        alone = zl.attention_relevance(model, inputs, target=target)
        assert torch.allclose(found[name].by_source["pixel_values"], alone.by_source["pixel_values"], rtol=1e-12, atol=1e-15)


def test_a_readout_can_be_given(small_vit):
    model, inputs = small_vit
    maps, gradients = maps_of(model, inputs, 1)
    r = identity(2, 7)
    for a, g in zip(maps, gradients):
        r = r + (a * g).clamp(min=0).mean(1) @ r
    found = zl.attention_relevance(model, inputs, target=1, readout=4)
    assert torch.allclose(found.by_source["pixel_values"], r[:, 4], rtol=1e-5, atol=1e-8)
    weights = torch.tensor([0.5, 0, 0, 0, 0.5, 0, 0])
    found = zl.attention_relevance(model, inputs, target=1, readout=weights)
    assert torch.allclose(found.by_source["pixel_values"], (r[:, 0] + r[:, 4]) / 2, rtol=1e-5, atol=1e-8)


def test_a_pooled_readout_weighs_rows_by_the_targets_gradient():
    """Mean pooling after attention alone: every row's gradient is the same vector, so every row weighs the same."""

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = Attend(), nn.Linear(8, 3)

        def forward(self, x):
            return self.head((x + self.a(x, x, True)).mul(torch.tensor([1.0, 2.0, 0.0, 1.0]).double()[:, None]).mean(1))

    model, x = sharp(Pooled()), torch.randn(2, 4, 8).double()
    found = zl.rollout(model, x, target=0)
    q, k = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (model.a.q, model.a.k))
    a = (q @ k.transpose(-1, -2) / 2).softmax(-1).mean(1)
    weights = torch.tensor([0.25, 0.5, 0.0, 0.25]).double()
    assert torch.allclose(found.by_source["x"], weights @ (identity(2, 4) + a), rtol=1e-12)


# --- the graph -----------------------------------------------------------------------------------------------------


def test_a_contrast_of_positions_in_a_decoder_reads_each_position(small_vit):
    torch.manual_seed(0)
    model, inputs = t5("sdpa")
    found = zl.attention_relevance(model.eval(), inputs, target=zl.target.sequence([7, 8], 2))
    later = found.by_source["decoder_input_ids"][:, 4]
    assert not bool(later.any())  # position 4 comes after the positions read, and the decoder is causal
    assert bool(found.by_source["decoder_input_ids"][:, 3].any())


def test_image_patches_scattered_between_words_are_followed_to_the_picture():
    torch.manual_seed(0)
    model, inputs = llava("sdpa")
    calls = zl.trace(model.eval(), inputs).calls
    assert [c.queries for c in calls] == ["pixel_values"] * 2 + ["input_ids + pixel_values"] * 2
    found = zl.attention_relevance(model, inputs, target=zl.target.token(7))
    words = found.by_source["input_ids"]
    assert not bool(words[:, 1:5].any())  # there stand image tokens
    assert bool((found.by_source["pixel_values"][:, 1:] > 0).any())


def test_one_module_called_twice_is_two_calls():
    torch.manual_seed(0)
    model, inputs = lxmert("eager")
    calls = [c for c in zl.trace(model.eval(), inputs).calls if "visual_attention" in c.path]
    assert [(c.index, c.queries, c.keys) for c in calls[:2]] == [(0, "input_ids", "visual_feats"), (1, "visual_feats", "input_ids")]
    assert calls[0].path == calls[1].path


def test_the_bimodal_rule_is_guarded_where_the_published_formula_is_nan():
    r = torch.eye(3, dtype=torch.float64)
    r[0, 1] = 2.0
    found = without_identity_normalised(r)
    assert bool(found.isfinite().all())
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    with pytest.raises(UsageError, match="square"):
        without_identity_normalised(torch.ones(2, 3))


def test_per_call_relevance_adds_up_to_what_tokens_got(small_vit):
    """On one stream, R is the readout's own token plus what each call moved onto the tokens."""
    model, inputs = small_vit
    found = zl.attention_relevance(model, inputs, target=1)
    own = torch.zeros(2, 7).double()
    own[:, 0] = 1
    assert torch.allclose(found.per_call["pixel_values"].sum(0) + own, found.by_source["pixel_values"], rtol=1e-12)


# --- attention transfer and integrated attention -----------------------------------------------------------------------


def test_attention_transfer_is_the_diagonal_of_the_scaled_product(small_vit):
    model, inputs = small_vit
    maps, _ = maps_of(model, inputs, 1)
    found = zl.attention_transfer(model, inputs, target=1)
    r = identity(2, 7)
    for layer, a in enumerate(maps):
        r = r + a.mean(1) @ r
        scaled = r / r.sum(-1, keepdim=True)
        assert torch.allclose(found.own[layer], scaled.diagonal(dim1=1, dim2=2), rtol=1e-5)
    assert torch.allclose(found.matrix, scaled, rtol=1e-5)
    assert found.curve.shape == (2, 2)
    assert "vit.layers.1.attention" in repr(found)


@pytest.mark.parametrize("baseline", ["zero", "uniform"])
def test_integrated_attention_against_the_integral_written_out(small_vit, baseline):
    """a = (A - A0) * integral of df/dA, for the maps of the last layer, by 64 midpoints through a model of the test's own."""
    model, inputs = small_vit
    maps, _ = maps_of(model, inputs, 1)
    a = maps[1]
    a0 = torch.zeros_like(a) if baseline == "zero" else torch.full_like(a, 1 / 7)
    sums, f = torch.zeros_like(a), {}

    def at(t, gradient):
        point = (a0 + t * (a - a0)).requires_grad_()
        calls = []

        def attend(query, key, value, **_):
            calls.append(1)
            own = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
            return (point if len(calls) == 2 else own) @ value

        fused, F.scaled_dot_product_attention = F.scaled_dot_product_attention, attend
        try:
            score = model(**inputs).logits[:, 1]
        finally:
            F.scaled_dot_product_attention = fused
        return score.detach(), torch.autograd.grad(score.sum(), point)[0] if gradient else None

    for k in range(64):
        sums += at((k + 0.5) / 64, True)[1] / 64
    f = at(1.0, False)[0] - at(0.0, False)[0]
    found = zl.integrated_attention(model, inputs, target=1, calls=1, baseline=baseline, path="midpoint", n_steps=64)
    assert torch.allclose(found.values, (a - a0) * sums, rtol=1e-4, atol=1e-7)
    assert torch.allclose(found.difference, f, rtol=1e-4, atol=1e-7)
    adaptive = zl.integrated_attention(model, inputs, target=1, calls="all", baseline=baseline)
    assert len(adaptive.parts) == 2
    assert bool((adaptive.relative_error <= 0.0101).all())
    assert adaptive.settings["kernel_difference"] < 1e-6


def test_an_attention_site_of_no_module_names_the_nearest(small_vit):
    model, inputs = small_vit
    with pytest.raises(NotFoundError, match=r"no module 'vit\.layers\.7\.attention'; nearest: vit\.layers"):
        zl.integrated_gradients(model, inputs, target=1, site="attention:vit.layers.7.attention", baseline=zl.baseline.zeros())
    with pytest.raises(SiteError, match="never reached 'attention:classifier'"):
        zl.integrated_gradients(model, inputs, target=1, site="attention:classifier", baseline=zl.baseline.zeros())


# --- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"calls": 9}, NotFoundError, "no call 9; the model has 2 .*nearest: 1"),
        ({"calls": "vit.layers.7.attention"}, NotFoundError, "nearest: vit.layers.*zeroline trace"),
        ({"calls": []}, NotFoundError, "no calls"),
        ({"correction": "postive"}, NotFoundError, "nearest: positive"),
        ({"coverage": "half"}, NotFoundError, "complete, incomplete"),
        ({"rule": "bimodal"}, NotFoundError, "chefer-bimodal"),
        ({"head_fusion": "min"}, NotFoundError, "nearest: mean"),
        ({"guide": torch.ones(5)}, InputError, r"guide of shape \(5,\).*7 tokens or 6 patches"),
        ({"guide": {"pixels": torch.ones(6)}}, NotFoundError, "nearest: pixel_values"),
        ({"guide": torch.tensor([1.0, float("nan"), 1, 1, 1, 1])}, InputError, "NaN"),
        ({"grid": (3, 3)}, InputError, "3 x 3 .* 'pixel_values' has 7"),
        ({"grid": (2, 3), "prefix": 2}, InputError, "8 tokens"),
        ({"grid": (1, 5)}, InputError, "1 x 5 with 1 prefix"),
        ({"grid": (0, 0)}, InputError, "above 0"),
        ({"grid": 6}, InputError, "rows, columns"),
        ({"grid": (2.0, 3.0)}, InputError, "whole numbers"),
        ({"prefix": "1"}, InputError, "number of tokens"),
        ({"readout": True}, UsageError, "weights"),
        ({"readout": "cls"}, UsageError, "'cls' was given"),
        ({"readout": torch.full((7,), float("nan"))}, UsageError, "NaN"),
        ({"guide": "x"}, InputError, "no weights of its 7 tokens"),
        ({"guide": {"pixel_values": None}}, InputError, "NoneType"),
        ({"correction": None}, NotFoundError, "no correction 'None'"),
        ({"calls": "--3"}, NotFoundError, "no call '--3'"),
        ({"calls": 1.5}, NotFoundError, "not float"),
        ({"readout": 12}, UsageError, "7 query tokens"),
        ({"readout": torch.ones(3)}, UsageError, r"weights \(7,\)"),
        ({"target": zl.target.output(lambda o: o.logits[:, 0].detach())}, TargetError, "needs no gradient"),
        ({"target": {}}, TargetError, "no targets"),
        ({"target": 99}, TargetError, "the model has 5"),
        ({"inputs": {"pixel_values": torch.randn(2, 3, 32, 48, device="meta")}}, InputError, "on meta, the model on cpu"),
    ],
)
def test_bad_input_gets_one_clear_error(small_vit, options, error, words):
    model, inputs = small_vit
    inputs = options.pop("inputs", inputs)
    with pytest.raises(error, match=words) as caught:
        zl.attention_relevance(model, inputs, **{"target": 1, **options})
    assert isinstance(caught.value, ZerolineError)
    assert "\n" not in str(caught.value)


class Beside(nn.Module):
    """A score that attention has no part in, beside one that it has."""

    def __init__(self):
        super().__init__()
        self.a, self.head, self.skip = Attend(), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return {"logits": self.head(self.a(x, x, True).mean(1)), "skip": self.skip(x.mean(1))}


def test_a_target_that_no_attention_reaches_is_an_error():
    with pytest.raises(TargetError, match="no attention reaches the target"):
        zl.attention_relevance(Beside().eval(), torch.randn(2, 4, 8), target=zl.target.output(lambda o: o["skip"][:, 0]))


def test_a_model_without_attention_says_what_was_found():
    with pytest.raises(TraceError, match="no attention: .*torch functions ran.*linear.*integrated_gradients"):
        zl.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))


def test_attention_outside_torch_functions_is_named():
    class Hidden(nn.Module):
        class SelfAttention(nn.Module):
            def forward(self, x):
                return torch.ops.aten.mul.Tensor(x, 2.0)

        def __init__(self):
            super().__init__()
            self.body = Hidden.SelfAttention()

        def forward(self, x):
            return self.body(x).mean((1, 2))

    with pytest.raises(TraceError, match=r"body \(SelfAttention\).*custom kernel"):
        zl.trace(Hidden(), torch.randn(2, 4, 8))


def test_a_custom_attention_beside_a_seen_one_is_an_error():
    class MyAttentionFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    class Both(Beside):
        def forward(self, x):
            return self.head(MyAttentionFunction.apply(self.a(x, x, True)).mean(1))

    with pytest.raises(TraceError, match="MyAttentionFunction.*no call announced it"):
        zl.trace(Both().eval(), torch.randn(2, 4, 8))


def test_scripted_compiled_and_quantised_models_are_named():
    class Fused(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x).mean((1, 2))

    x = torch.randn(2, 4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's own
        with pytest.raises(TraceError, match="scripted"):
            zl.trace(torch.jit.trace(Fused(), x), x)
        with pytest.raises(TraceError, match="compiled.*original module"):
            zl.trace(torch.compile(Fused()), x)


def test_quantised_modules_that_hide_attention_are_named():
    class Linear4bit(nn.Module):
        def forward(self, x):
            return x.mean((1, 2))

    with pytest.raises(TraceError, match=r"quantised modules hide it: 0 \(Linear4bit\)"):
        zl.trace(nn.Sequential(Linear4bit()), torch.randn(2, 4, 8))


def test_queries_without_a_graph_are_an_error():
    class Frozen(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                y = F.scaled_dot_product_attention(x, x, x)
            return (x + y).mean((1, 2))

    class Halfway(nn.Module):
        def forward(self, x):
            y = x.detach() * 2
            return (x + F.scaled_dot_product_attention(y, y, x)).mean((1, 2))

    with pytest.raises(TraceError, match="nothing leads to the queries of the model: .*no_grad"):
        zl.trace(Halfway(), torch.randn(2, 4, 8))
    with pytest.raises(ZerolineError):
        zl.attention_relevance(Frozen(), torch.randn(2, 4, 8), target=zl.target.output(lambda o: o))


def test_reentrant_checkpointing_is_a_named_error():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Attend(), Attend()

        def forward(self, x):
            y = checkpoint(lambda t: t * 2, x + self.a(x, x, True), use_reentrant=True)
            return self.b(y, y, True).mean((1, 2))

    with pytest.raises(TraceError, match="re-entrant checkpointing"):
        zl.trace(Checkpointed().eval(), torch.randn(2, 4, 8))


def test_the_fast_paths_difference_is_recorded_without_padded_rows():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    found = zl.trace(model, {"src": torch.randn(2, 6, 16), "src_key_padding_mask": padding})
    assert 0 <= found.fast_path_difference < 1e-5
    with pytest.MonkeyPatch.context() as patch:  # a fast path that differs is seen
        fast = nn.TransformerEncoder.forward
        patch.setattr(nn.TransformerEncoder, "forward", lambda self, *a, **k: fast(self, *a, **k) + float(torch.backends.mha.get_fastpath_enabled()))
        assert zl.trace(model, {"src": torch.randn(2, 6, 16)}).fast_path_difference == pytest.approx(1.0, abs=1e-4)
    assert [c.how for c in found.calls] == ["nn.MultiheadAttention"] * 2
    assert zl.trace(Beside().eval(), torch.randn(2, 4, 8)).fast_path_difference is None


# --- where the truth is known --------------------------------------------------------------------------------------------


def test_the_positive_correction_points_at_the_right_digit_far_more_often_than_raw_attention(digits_vit):
    """Two-digit scenes from a seed of its own; docs/performance.md has the table of 240 targets."""
    from zeroline.zoo.photo_digits import PhotoDigits
    from zeroline.zoo.train.common import pixels

    data = PhotoDigits("test", 4711)
    scenes = [scene for scene in (data.scene(2) for _ in range(70)) if len(scene.objects) == 2][:60]
    own, other = ([scene.objects[i].digit for scene in scenes] for i in (0, 1))
    patches = [torch.as_tensor(scene.objects[0].mask).unflatten(0, (8, 8)).unflatten(2, (8, 8)).any(3).any(1) for scene in scenes]

    def hits(**options):
        maps = zl.attention_relevance(digits_vit, pixels(scenes), target=zl.contrast(own, other), **options).grid("pixel_values")
        return sum(bool(where.flatten()[int(heat.flatten().argmax())]) for heat, where in zip(maps, patches)) / len(scenes)

    assert hits() > hits(correction="none", calls=-1) + 0.15


def test_the_transfer_figure_draws_the_curve_and_the_tokens(small_vit, tmp_path):
    from zeroline.report import figure, transfer_figure

    model, inputs = small_vit
    found = zl.attention_transfer(model, inputs, target=1)
    drawn = transfer_figure.figure(found, sample=1)
    curve = drawn.subfigs[0].axes[0].lines[0].get_ydata()
    assert curve.tolist() == pytest.approx(found.curve[:, 1].tolist())
    panel = drawn.subfigs[1].axes[1].images[0].get_array()
    assert panel.tolist() == pytest.approx(found.own[1, 1, 1:].view(2, 3).numpy())
    figure.save(drawn, tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 5_000
