"""Models that once fooled the tracer, each with what is true of it. One test per trap."""

import math
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zeroline as zl
from zeroline.errors import ModelStateError, TraceError, ZerolineError

B, N, D = 2, 5, 8
X = torch.Generator().manual_seed(3)


class Att(nn.Module):
    """One head of fused attention with its own projections."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(D, D) for _ in range(3))

    def forward(self, x, y=None):
        y = x if y is None else y
        return F.scaled_dot_product_attention(self.q(x)[:, None], self.k(y)[:, None], self.v(y)[:, None])[:, 0]

    def map(self, x, y=None):
        """The same map, written out."""
        y = x if y is None else y
        return (self.q(x) @ self.k(y).transpose(-1, -2) / math.sqrt(D)).softmax(-1).detach()


class Model(nn.Module):
    """A forward as a function, over a few attentions and a head."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        self.a, self.b, self.head = Att(), Att(), nn.Linear(D, 3)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x, *more):
        return self.run(self, x, *more)


def drawn(*shape):
    return torch.randn(*shape, generator=X)


def made(run, **parts):
    torch.manual_seed(1)
    return Model(run, **parts).eval()


def shapes(model, inputs):
    return {s.name: (s.batch, s.tokens) for s in zl.trace(model, inputs).streams}


def test_a_stream_first_read_through_its_mean_keeps_its_tokens():
    model = made(lambda m, x: m.head(m.a(x.mean(1, keepdim=True), x)[:, 0]))
    assert shapes(model, drawn(B, N, D)) == {"x": (B, N)}
    image = made(
        lambda m, x: m.head((lambda t: m.a(t.mean(1, keepdim=True), t))(m.conv(x).flatten(2).transpose(1, 2))[:, 0]), conv=nn.Conv2d(3, D, 2, 2)
    )  # fmt: skip
    assert shapes(image, drawn(B, 3, 20, 20)) == {"x": (B, 100)}
    found = zl.rollout(image, drawn(B, 3, 20, 20), target=0)
    assert torch.allclose(found.by_source["x"].sum(1), torch.ones(2))  # no residual: one map alone


def test_a_stream_that_the_target_reads_through_a_mean_keeps_its_tokens():
    model = made(lambda m, x, y: m.head(m.a(x).mean(1) + y.mean(1)))
    found = zl.rollout(model, (drawn(B, N, D), drawn(B, 4, D)), target=0)
    (beside,) = [r for name, r in found.by_source.items() if name != "x"]
    assert torch.allclose(beside, torch.full((B, 4), 0.25))


@pytest.mark.parametrize("how", ["frames by bmm", "axial"])
def test_groups_are_not_taken_for_heads(how):
    """T frames of N tokens that attend within their frame: T x N tokens, whether folded into the batch or an axis of their own."""
    T = 3

    def run(m, x):
        y = m.a.q(x), m.a.k(x), m.a.v(x)
        if how == "axial":
            o = F.scaled_dot_product_attention(*y)
        else:
            q, k, v = (t.flatten(0, 1) for t in y)
            o = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v).unflatten(0, (B, T))
        return m.head((x + o).mean((1, 2)))

    model, x = made(run), drawn(B, T, 4, D)
    (call,) = zl.trace(model, x).calls
    assert (call.heads, call.query_length) == (1, 4)
    found = zl.rollout(model, x, target=0)
    assert found.by_source["x"].shape == (B, T * 4)
    assert torch.allclose(found.by_source["x"].sum(1), torch.full((B,), 2.0))


@pytest.mark.parametrize("depth", [1, 2])
def test_grouped_heads_on_axes_of_their_own_are_heads(depth):
    """Queries [B, 2, 2, N, d] over keys [B, 2, 1, N, d]: four heads on two leading axes."""

    def attend(m, a, x):
        q = a.q(x).unflatten(-1, (2, 2, 2)).permute(0, 2, 3, 1, 4)
        k, v = (f(x)[..., :4].unflatten(-1, (2, 1, 2)).permute(0, 2, 3, 1, 4) for f in (a.k, a.v))
        return F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2, 4).flatten(2)

    def run(m, x):
        x = x + attend(m, m.a, x)
        return m.head((x + attend(m, m.b, x) if depth == 2 else x).mean(1))

    found = zl.trace(made(run), drawn(B, N, D))
    assert [(c.heads, c.query_length, c.kind) for c in found.calls] == [(4, N, "homogenous")] * depth
    assert [(s.name, s.tokens) for s in found.streams] == [("x", N)]


def test_attention_over_channels_is_an_error():
    def run(m, x):
        q, k, v = (f(x).transpose(1, 2) for f in (m.a.q, m.a.k, m.a.v))
        return m.head((x + (torch.softmax(q @ k.transpose(1, 2), -1) @ v).transpose(1, 2)).mean(1))

    with pytest.raises(TraceError, match="mixes or moves"):
        zl.trace(made(run), drawn(B, N, D))


def test_attention_sinks_are_followed():
    """A column beside the scores that is taken off the weights again: rows add up to less than one."""

    def run(m, x):
        x = x + m.a(x)
        scores = m.b.q(x) @ m.b.k(x).transpose(1, 2) / math.sqrt(D)
        sink = torch.zeros(B, N, 1)
        weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        return m.head((x + weights @ m.b.v(x))[:, -1])

    model, x = made(run), drawn(B, N, D)
    found = zl.trace(model, x)
    assert [c.how for c in found.calls] == ["fused kernel", "hand-written softmax"]
    h = (x + model.a(x)).detach()
    scores = model.b.q(h) @ model.b.k(h).transpose(1, 2) / math.sqrt(D)
    weights = torch.cat([scores, torch.zeros(B, N, 1)], -1).softmax(-1)[..., :-1].detach()
    first = torch.eye(N) + model.a.map(x)
    truth = (torch.eye(N) + weights)[:, -1:] @ first
    assert torch.allclose(zl.rollout(model, x, target=0).by_source["x"], truth[:, 0], atol=1e-5)


@pytest.mark.parametrize("form", ["special softmax", "exponentials", "turned"])
def test_attention_in_other_words_is_followed_or_refused(form):
    def run(m, x):
        x = x + m.a(x)
        q, k, v = m.b.q(x), m.b.k(x), m.b.v(x)
        scores = q @ k.transpose(1, 2)
        if form == "special softmax":
            o = torch.special.softmax(scores, -1) @ v
        elif form == "turned":
            o = (v.transpose(1, 2) @ scores.softmax(-1).transpose(1, 2)).transpose(1, 2)
        else:
            o = (scores.exp() / scores.exp().sum(-1, keepdim=True)) @ v
        return m.head((x + o)[:, -1])

    model, x = made(run), drawn(B, N, D)
    if form == "special softmax":
        assert len(zl.trace(model, x)) == 2
    else:
        with pytest.raises(TraceError):
            zl.attention_relevance(model, x, target=0)


@pytest.mark.parametrize("written", [False, True])
def test_a_model_that_writes_on_an_attentions_output(written):
    """o *= g and o = o * g are the same model and have the same relevance."""
    g = torch.rand(D, generator=X) + 0.5

    def run(inplace):
        def forward(m, x):
            o = torch.softmax(m.a.q(x) @ m.a.k(x).transpose(1, 2), -1) @ m.a.v(x) if written else m.a(x)
            if inplace:
                o *= g
            else:
                o = o * g
            return m.head((x + o).mean(1))

        return forward

    x = drawn(B, N, D)
    a, b = (zl.attention_relevance(made(run(inplace)), x, target=0).by_source["x"] for inplace in (True, False))
    assert torch.allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("move", ["transposed", "offset", "split", "row first"])
def test_ids_keep_their_name_when_moved(move):
    ids = torch.randint(0, 9, (B, N), generator=X)

    def run(m, ids):
        if move == "transposed":
            x = m.emb(ids.t()).transpose(0, 1)
        elif move == "offset":
            x = m.emb(ids + 1)
        elif move == "split":
            x = torch.cat([m.emb(part) for part in ids.split([2, 3], 1)], 1)
        else:
            x = torch.cat([m.emb.weight[:1].expand(B, 1, D), m.emb(ids)], 1)
        return m.head((x + m.a(x)).mean(1))

    model = made(run, emb=nn.Embedding(10, D))
    found = zl.trace(model, {"x": ids})
    names = [s.name.split("#")[0] for s in found.streams if s.is_input]
    assert set(names) == {"x"}
    assert sum(s.tokens for s in found.streams if s.is_input) == N
    assert all(s.grid is None for s in found.streams)


def test_rows_that_no_later_call_carries_are_read_where_they_are():
    """a and b attend jointly, then a alone; the target reads both. b's share through the first call must not be lost."""

    def run(m, a, b):
        z = torch.cat([a, b], 1)
        z = z + m.a(z)
        x, y = z[:, : a.shape[1]], z[:, a.shape[1] :]
        x = x + m.b(x)
        return (1e-3 * x.mean((1, 2)) + 10 * y.mean((1, 2)))[:, None]

    model = made(run)
    a, b = drawn(1, 3, D), drawn(1, 3, D)
    found = zl.rollout(model, (a, b), target=0)
    total = sum(float(r.sum()) for r in found.by_source.values())
    assert total == pytest.approx(6.0, rel=1e-5)  # a: (1 + 1)(1 + 1), b: 1 + 1


def test_where_takes_each_row_from_one_side_only():
    keep = torch.tensor([True, False, True, False, False])

    def run(m, a, b):
        z = torch.where(keep[None, :, None], a, b)
        z = z + m.a(z)
        return m.head(z[:, 0])

    model = made(run)
    a, b = drawn(B, N, D), drawn(B, N, D)
    found = zl.rollout(model, (a, b), target=0)
    assert sum(float(r.sum()) for r in found.by_source.values()) == pytest.approx(2.0 * B, rel=1e-5)
    first, second = found.by_source.values()
    assert not bool(first[:, ~keep].any())
    assert not bool(second[:, keep].any())


def test_learned_queries_without_a_batch_axis():
    """queries [H, n, d] over keys [B, H, N, d], written out: the same as with the batch axis spelled out."""

    def run(spelled):
        def forward(m, x):
            k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (m.a.k, m.a.v))
            q = m.q.expand(B, -1, -1, -1) if spelled else m.q
            o = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
            return m.head(o.transpose(1, 2).flatten(2).mean(1))

        return forward

    x = drawn(B, N, D)
    q = nn.Parameter(drawn(2, 3, 4))
    records = [zl.attention_relevance(made(run(spelled), q=q), x, target=0) for spelled in (True, False)]
    calls = [zl.trace(made(run(spelled), q=q), x).calls[0] for spelled in (True, False)]
    assert [(c.heads, c.queries, c.keys, c.kind) for c in calls] == [(2, "q", "x", "heterogenous")] * 2
    assert torch.allclose(records[0].by_source["x"], records[1].by_source["x"], rtol=1e-5, atol=1e-8)


def test_inputs_with_batches_of_their_own():
    """Two texts and four images: each stream has its own samples, whichever comes first."""

    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.conv, self.a, self.b = nn.Embedding(9, D), nn.Conv2d(3, D, 2, 2), Att(), Att()
            self.cls = nn.Parameter(torch.randn(1, 1, D))

        def forward(self, ids, image):
            t = self.emb(ids)
            v = self.conv(image).flatten(2).transpose(1, 2)
            v = torch.cat([self.cls.expand(len(v), -1, -1), v], 1)
            t, v = (t + self.a(t)).mean(1), (v + self.b(v))[:, 0]
            return v @ t.T

    ids, image = torch.randint(0, 9, (2, 7), generator=X), drawn(4, 3, 4, 6)
    model = Towers().eval()
    truth = {"ids": (2, 7, None), "image": (4, 7, (2, 3))}
    for inputs in ({"ids": ids, "image": image}, {"image": image, "ids": ids}):
        assert {s.name: (s.batch, s.tokens, s.grid) for s in zl.trace(model, inputs).streams} == truth


def test_seq_first_reads_of_a_part_leave_the_count_right():
    def run(m, ids):
        x = m.emb(ids.transpose(0, 1)).transpose(0, 1)
        return m.head(m.a(x[:, -1:], x)[:, 0])

    model = made(run, emb=nn.Embedding(9, D))
    assert shapes(model, torch.randint(0, 9, (B, 4), generator=X)) == {"x": (B, 4)}


def test_pools_share_in_double_precision():
    model = made(lambda m, x: m.head(m.a(torch.cat([x.mean(1, keepdim=True), x], 1)).mean(1))).double()
    x = drawn(B, 3, D).double()
    z = torch.cat([x.mean(1, keepdim=True), x], 1)
    truth = model.a.map(z).mean(1) @ torch.cat([torch.full((1, 3), 1 / 3).double(), torch.eye(3).double()])
    assert torch.allclose(zl.rollout(model, x, target=0, readout=torch.full((4,), 0.25)).by_source["x"], truth, rtol=1e-12)


def test_two_images_in_one_tensor_are_two_streams():
    def run(m, x):
        one, two = (m.conv(x[:, i]).flatten(2).transpose(1, 2) for i in (0, 1))
        return m.head(m.a(one, two).mean(1))

    found = zl.trace(made(run, conv=nn.Conv2d(3, D, 2, 2)), drawn(B, 2, 3, 4, 4))
    assert sorted(s.name for s in found.streams) == ["x", "x#1"]
    assert found.calls[0].kind == "heterogenous"


def test_a_tower_under_no_grad_beside_another_is_an_error():
    def run(m, ids, image):
        with torch.no_grad():
            v = m.conv(image).flatten(2).transpose(1, 2)
        z = torch.cat([m.emb(ids), v], 1)
        return m.head((z + m.a(z)).mean(1))

    model = made(run, emb=nn.Embedding(9, D), conv=nn.Conv2d(3, D, 2, 2))
    with pytest.raises(TraceError, match="no_grad"):
        zl.trace(model, (torch.randint(0, 9, (B, 4), generator=X), drawn(B, 3, 4, 4)))


def test_a_call_after_a_caught_exception_has_its_own_path():
    class Bad(nn.Module):
        def forward(self, x):
            raise ValueError

    def run(m, x):
        with suppress(ValueError):
            m.bad(x)
        return m.head(F.scaled_dot_product_attention(x, x, x).mean(1))

    assert zl.trace(made(run, bad=Bad()), drawn(B, N, D)).calls[0].path == ""


def test_relative_positions_by_einsum_and_by_matmul_are_no_attention():
    table = nn.Parameter(drawn(N, N, D))

    def run(m, x):
        q, k, v = m.a.q(x), m.a.k(x), m.a.v(x)
        relative = torch.einsum("bid,ijd->bij", q, m.table)
        again = (q.unsqueeze(2) @ m.table.transpose(1, 2)).squeeze(2)
        weights = (again + relative + q @ k.transpose(1, 2)).softmax(-1)
        return m.head((x + weights @ v).mean(1))

    found = zl.trace(made(run, table=table), drawn(B, N, D))
    assert [(c.queries, c.keys, c.heads, c.key_length) for c in found.calls] == [("x", "x", 1, N)]


def test_one_vector_may_be_added_to_many_tokens():
    def run(m, x, condition):
        x = x + m.a(x)
        x = x + condition[:, None] + x.mean(1, keepdim=True)
        return m.head((x + m.b(x)).mean(1))

    model, given = made(run), (drawn(B, 100, D), drawn(B, D))
    assert len(zl.trace(model, given)) == 2
    assert zl.rollout(model, given, target=0).by_source["x"].shape == (B, 100)


def test_a_table_used_as_tokens_and_as_a_head_is_followed():
    def run(m, x):
        z = torch.cat([m.table[None].expand(B, -1, -1), x], 1)
        z = z + m.a(z)
        return z[:, 0] @ m.table.t()

    found = zl.rollout(made(run, table=nn.Parameter(drawn(3, D))), drawn(B, N, D), target=0)
    assert found.by_source["x"].shape == (B, 3 + N)


def test_a_trace_inside_a_hook_of_a_traced_model():
    inner, outer = made(lambda m, x: m.head(m.a(x).mean(1))), made(lambda m, x: m.head(m.b(m.a(x)).mean(1)))
    x, lengths = drawn(B, N, D), []
    hook = outer.a.register_forward_hook(lambda *_: lengths.append(len(zl.trace(inner, x))))
    assert len(zl.trace(outer, x)) == 2
    hook.remove()
    assert lengths == [1]


def test_a_trace_of_multi_head_attention_inside_a_hook_of_another():
    heads = nn.MultiheadAttention(D, 2, batch_first=True)
    inner = made(lambda m, x: m.head(m.mha(x, x, x)[0].mean(1)), mha=heads)
    outer = made(lambda m, x: m.head(m.mha(m.a(x), x, x)[0].mean(1)), mha=nn.MultiheadAttention(D, 2, batch_first=True))
    x, lengths = drawn(B, N, D), []
    hook = outer.a.register_forward_hook(lambda *_: lengths.append(len(zl.trace(inner, x))))
    asks = F.__dict__["has_torch_function"]
    assert [c.how for c in zl.trace(outer, x).calls] == ["fused kernel", "nn.MultiheadAttention"]
    hook.remove()
    assert lengths == [1]
    assert F.__dict__["has_torch_function"] is asks


def test_a_long_chain_without_forks():
    def run(m, x):
        for layer in m.chain:
            x = F.gelu(layer(x))
        return m.head(m.b(x).mean(1))

    def after(m, x):
        return run(m, m.a(x))

    assert len(zl.trace(made(after, chain=nn.ModuleList(nn.Linear(D, D) for _ in range(400))), drawn(B, N, D))) == 2


def test_what_the_model_writes_on_its_input_stays_inside():
    def run(m, x):
        x += 1
        return m.head(m.a(x).mean(1))

    x = drawn(B, N, D)
    before = x.clone()
    zl.trace(made(run), x)
    zl.attention_relevance(made(run), x, target=0)
    assert torch.equal(x, before)


def test_copies_into_a_buffer_are_followed():
    def run(m, x):
        buffer = torch.empty(B, N, D)
        buffer.copy_(m.a(x))
        return m.head(m.b(buffer).mean(1))

    assert zl.trace(made(run), drawn(B, N, D)).calls[1].feeds_from == (0,)


def test_a_picture_named_masked_image_is_an_input():
    class Masked(Att):
        def forward(self, masked_image):
            return super().forward(masked_image).mean((1, 2))

    assert zl.trace(Masked().eval(), {"masked_image": drawn(B, N, D)}).streams[0].name == "masked_image"


def test_a_model_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        model = Att().eval()
    with pytest.raises(ModelStateError, match="inference mode"):
        zl.trace(model, drawn(B, N, D))


def test_attention_without_a_batch_axis_is_one_clear_error():
    def run(m, x):
        y = x[0]
        return m.head(F.scaled_dot_product_attention(y, y, y).mean(0, keepdim=True))

    with pytest.raises(ZerolineError, match="no batch axis"):
        zl.trace(made(run), drawn(1, N, D))


@pytest.mark.parametrize("step", ["plain", "padded", "rolled"])
def test_windows_folded_together_with_heads(step):
    """[B x windows x heads, n, d] by bmm, 2 x 2 windows of 2 x 2 tokens and two heads, as in SAM and VitDet."""

    def run(m, x):
        y = F.pad(x, (0, 0, 0, 0, 0, 0)) if step == "padded" else x.roll(1, 1) if step == "rolled" else x

        def fold(t):
            t = t.unflatten(1, (2, 2)).unflatten(3, (2, 2)).permute(0, 1, 3, 2, 4, 5).reshape(B * 4, 4, 2, 4)
            return t.transpose(1, 2).reshape(B * 8, 4, 4)

        q, k, v = fold(m.a.q(y)), fold(m.a.k(y)), fold(m.a.v(y))
        o = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
        return m.head(o.view(B, -1, 4).mean(1).repeat(1, 2))

    model, x = made(run), drawn(B, 4, 4, D)
    (call,) = zl.trace(model, x).calls
    assert (call.heads, call.query_length) == (2, 4)
    (stream,) = zl.trace(model, x).streams
    assert (stream.tokens, stream.grid) == (16, (4, 4))
    assert torch.allclose(zl.rollout(model, x, target=0).by_source["x"].sum(1), torch.ones(B))


def test_stacked_frames_are_groups_and_stacked_heads_are_heads():
    def frames(m, x):
        q, k, v = (torch.stack([f(x[:, t]) for t in range(3)], 1) for f in (m.a.q, m.a.k, m.a.v))
        return m.head(F.scaled_dot_product_attention(q, k, v).mean((1, 2)))

    def heads(m, x):
        q, k, v = (torch.stack([f(x)[..., :4], f(x)[..., 4:]], 1) for f in (m.a.q, m.a.k, m.a.v))
        return m.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))

    (call,) = zl.trace(made(frames), drawn(B, 3, 4, D)).calls
    assert (call.heads, call.query_length) == (1, 4)
    assert zl.rollout(made(frames), drawn(B, 3, 4, D), target=0).by_source["x"].shape == (B, 12)
    (call,) = zl.trace(made(heads), drawn(B, N, D)).calls
    assert (call.heads, call.query_length) == (2, N)


def test_two_streams_stacked_are_both_there():
    def run(m, x, y):
        z = torch.stack([x, y], 1)
        return m.head(F.scaled_dot_product_attention(z, z, z).mean((1, 2)))

    found = zl.trace(made(run), (drawn(B, N, D), drawn(B, N, D))).streams
    assert [s.tokens for s in found] == [N, N]


def test_heads_before_the_batch_are_refused():
    def run(m, x):
        q, k, v = (torch.cat(f(x).chunk(2, -1), 0) for f in (m.a.q, m.a.k, m.a.v))
        o = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
        return m.head(torch.cat(o.chunk(2, 0), -1).mean(1))

    with pytest.raises(TraceError):
        zl.trace(made(run), drawn(B, N, D))


def test_parts_of_the_features_are_no_tokens():
    def points(m, x):
        return m.head(m.a(m.e(x[..., 3:]) + m.p(x[..., :3])).mean(1))

    (stream,) = zl.trace(made(points, e=nn.Linear(4, D), p=nn.Linear(3, D)), drawn(B, N, 7)).streams
    assert (stream.tokens, stream.grid) == (N, None)

    def packed(m, x):
        q, k, v = m.c(x).flatten(2).transpose(1, 2).chunk(3, -1)
        return m.head(F.scaled_dot_product_attention(q, k, v).mean(1))

    for kernel in (1, 2):
        (stream,) = zl.trace(made(packed, c=nn.Conv2d(3, 3 * D, kernel, kernel)), drawn(B, 3, 2 * kernel, 3 * kernel)).streams
        assert (stream.tokens, stream.grid) == (6, (2, 3))


def test_one_by_one_convolutions_between_attentions_are_linear_layers():
    def run(m, x):
        x = x + m.a(x)
        return m.head(m.b(m.c(x.transpose(1, 2)).transpose(1, 2)).mean(1))

    assert zl.trace(made(run, c=nn.Conv1d(D, D, 1)), drawn(B, N, D)).calls[1].feeds_from == (0,)


def test_doubled_tokens_are_refused_and_tiled_ones_followed():
    def doubled(m, x):
        y = (x + m.a(x))[:, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]]
        return m.head((y + m.b(y)).mean(1))

    with pytest.raises(TraceError, match="several elements in one"):
        zl.trace(made(doubled), drawn(B, N, D))

    def tiled(m, x):
        y = (x + m.a(x)).repeat(1, 2, 1)
        return m.head((y + m.b(y)).mean(1))

    found = zl.rollout(made(tiled), drawn(B, N, D), target=0)
    assert torch.allclose(found.by_source["x"].sum(1), torch.full((B,), 4.0))

    def first(m, x):
        z = torch.cat([x[:, :1].repeat(1, 3, 1), x], 1)
        return m.head((z + m.a(z)).mean(1))

    assert shapes(made(first), drawn(B, N, D)) == {"x": (B, N)}


def test_products_with_keyword_operands():
    def run(m, x):
        scores = torch.zeros(B, N, N).baddbmm(batch1=m.a.q(x), batch2=m.a.k(x).transpose(1, 2), beta=1, alpha=0.3)
        return m.head(torch.matmul(scores.softmax(-1), other=m.a.v(x)).mean(1))

    assert len(zl.trace(made(run), drawn(B, N, D))) == 1


def test_the_bimodal_rule_where_it_says_nothing():
    def run(m, x, y):
        a = m.a(m.q.expand(B, -1, -1), x)
        return m.head(m.b(a, y).mean(1))

    model, given = made(run, q=nn.Parameter(drawn(1, 3, D))), (drawn(B, N, D), drawn(B, 4, D))
    found = zl.attention_relevance(model, given, target=0, rule="chefer-bimodal")
    assert all(bool(r.isfinite().all()) for r in found.by_source.values())


def test_learned_queries_that_are_split_before_use():
    def run(m, x):
        q, position = m.q.split(D, 1)
        return m.head(m.a((q + position).expand(B, -1, -1), x).mean(1))

    assert zl.trace(made(run, q=nn.Parameter(drawn(3, 2 * D))), drawn(B, N, D)).calls[0].queries == "q"


def test_a_convolutional_network_with_flatten_has_no_attention():
    with pytest.raises(TraceError, match="the model has no attention"):
        zl.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval(), drawn(B, 3, 4, 4))


def test_instance_norm_over_tokens_mixes_them():
    def run(m, x):
        y = F.instance_norm((x + m.a(x)).transpose(1, 2)).transpose(1, 2)
        return m.head(m.b(y).mean(1))

    with pytest.raises(TraceError, match="BatchNorm"):
        zl.trace(made(run), drawn(B, N, D))


def test_rotations_by_complex_numbers_and_other_pointwise_functions():
    turn = torch.polar(torch.ones(N, D // 2), torch.rand(N, D // 2))

    def run(m, x):
        y = x + m.a(x)
        y = torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(2)
        return m.head(m.b(F.prelu(torch.atan(y), torch.tensor([0.1]))).mean(1))

    assert zl.trace(made(run), drawn(B, N, D)).calls[1].feeds_from == (0,)


def test_maps_of_windows_are_sites():
    """Windows of a sample stand beside its heads: [batch, windows x heads, n, n]."""

    def run(m, x):
        q, k, v = (f(x).view(-1, 4, 2, 4).transpose(1, 2) for f in (m.a.q, m.a.k, m.a.v))
        return m.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), 8, D).mean(1))

    found = zl.integrated_attention(made(run), drawn(B, 8, D), target=0)
    assert found.values.shape == (B, 4, 4, 4)
    assert bool((found.relative_error < 0.011).all())
