"""Cuts against models written out and plain hooks; replaying against whole runs, where it saves and where it must not be done."""

import re
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import zeroline as zl
from attention_models import FAMILIES
from paradigm import graph_toys as toys
from zeroline.errors import BaselineError, NonFiniteError, SiteError
from zeroline.model import cutting
from zeroline.model.cutting import Cutter
from zeroline.model.targets import target_of
from zeroline.model.trace import followed


@contextmanager
def cutting_of(model, inputs, target=1, replay=True):
    """A cutter inside the pass that it knows, and the inputs as it has them."""
    asked = target_of(model, inputs, target)
    with followed(model, inputs) as pass_:
        resolved = asked.resolve(pass_.recording.output, {})
        with torch.no_grad():
            value = resolved.read(pass_.recording.output, torch.arange(pass_.inputs.batch)).detach().double()
        yield Cutter(model, pass_.inputs, resolved, list(pass_.graph.calls), value, replay=replay)


@pytest.fixture
def patches_in_order(monkeypatch):
    """ViLT draws the order of its patches anew in every pass; here it is always the first one."""
    monkeypatch.setattr(torch, "multinomial", lambda weights, count, replacement=False: torch.arange(count))


def seen(cutter):
    return [(one.path, one.index) for one in cutter.calls]


# --- a model written out ------------------------------------------------------------------------------------------------
class Multihead(nn.Module):
    """``nn.MultiheadAttention`` of words over words, then of words over regions; the mean of words is read."""

    def __init__(self, batch_first=True, weights=False):
        super().__init__()
        self.own, self.cross = (nn.MultiheadAttention(8, 2, batch_first=batch_first) for _ in range(2))
        self.head = nn.Linear(8, 3)
        self.batch_first, self.weights = batch_first, weights

    def forward(self, words, regions):
        x, y = (words, regions) if self.batch_first else (words.transpose(0, 1), regions.transpose(0, 1))
        x = x + self.own(x, x, x, need_weights=self.weights)[0]
        x = x + self.cross(x, y, y, need_weights=self.weights)[0].tanh()
        return self.head((x if self.batch_first else x.transpose(0, 1)).mean(1))


def written(model, words, regions, put=None):
    """The same by its equations: f [batch, classes] and both outputs [batch, heads, queries, width]; ``put(n, o)`` may change an output."""
    outputs = []

    def attend(module, x, y):
        w, b = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
        q, k, v = ((t @ a.T + c).unflatten(-1, (2, 4)).transpose(1, 2) for t, a, c in zip((x, y, y), w, b))
        o = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        outputs.append(o)
        o = o if put is None else put(len(outputs) - 1, o)
        return o.transpose(1, 2).flatten(2) @ module.out_proj.weight.T + module.out_proj.bias

    x = words + attend(model.own, words, words)
    x = x + attend(model.cross, x, regions).tanh()
    return model.head(x.mean(1)), outputs


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("replay", [True, False])
def test_a_cut_is_the_written_out_model_with_that_output(batch_first, weights, replay):
    model = toys.sharp(Multihead(batch_first, weights))
    words, regions = torch.randn(3, 4, 8).double(), torch.randn(3, 5, 8).double()
    others = torch.randn(3, 4, 8).double(), torch.randn(3, 5, 8).double()
    with torch.no_grad(), cutting_of(model, (words, regions), replay=replay) as cutter:
        found, value = cutter.outputs_under(cutter.inputs.with_values({"words": others[0], "regions": others[1]}))
        truth, outputs = written(model, *others)
        assert torch.allclose(value, truth[:, 1], rtol=1e-12)
        assert value.dtype == torch.float64
        assert sorted(found) == [0, 1]
        for number, o0 in enumerate(outputs):
            assert torch.allclose(found[number], o0, rtol=1e-10)
            cuts = cutter.cut(number, found[number], [None, 0, 1])
            assert cuts.shape == (3, 3)
            for column, head in enumerate([None, 0, 1]):

                def put(n, o, number=number, o0=o0, head=head):
                    if n != number:
                        return o
                    changed = o.clone()
                    which = slice(None) if head is None else head
                    changed[:, which] = o0[:, which]
                    return changed

                assert torch.allclose(cuts[:, column], written(model, words, regions, put)[0][:, 1], rtol=1e-10)
        assert cutter.execution == dict.fromkeys((0, 1), "suffix" if replay else "full")


def test_a_cut_to_its_own_output_is_the_model_as_it_is():
    model = toys.sharp(Multihead())
    inputs = (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())
    with cutting_of(model, inputs) as cutter:
        own, value = cutter.outputs_under(cutter.inputs)
        assert torch.allclose(value, cutter.value, rtol=1e-12)
        for number in (0, 1):
            assert torch.allclose(cutter.cut(number, own[number], [None, 0, 1]), value[:, None], rtol=1e-12)


def test_cuts_of_both_heads_one_after_the_other_are_not_the_cut_of_the_call():
    """Effects of heads do not add up in a model with a tanh behind them: a test of heads that adds nothing would pass on a linear one."""
    model = toys.sharp(Multihead())
    inputs = (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())
    with cutting_of(model, inputs) as cutter:
        o0 = cutter.outputs_under(cutter.inputs.with_values({"regions": inputs[1] * 0}))[0][1]
        whole, one, two = (cutter.value[:, None] - cutter.cut(1, o0, [None, 0, 1])).T
    assert float((one - two).abs().max()) > 1e-3
    assert float((whole - one - two).abs().max()) > 1e-4


def test_many_cuts_are_many_passes_with_the_same_numbers(monkeypatch):
    model = toys.sharp(Multihead())
    inputs = (torch.randn(3, 4, 8).double(), torch.randn(3, 5, 8).double())
    with cutting_of(model, inputs) as cutter:
        o0 = cutter.outputs_under(cutter.inputs.with_values({"words": inputs[0] * 0}))[0][0]
        once = cutter.cut(0, o0, [None, 0, 1])
        monkeypatch.setitem(cutting.MOST_ROWS, "cpu", 3)  # two rows and the one left uncut: a sample's cuts lie in several passes
        before = cutter.passes
        assert torch.allclose(cutter.cut(0, o0, [None, 0, 1]), once, rtol=1e-12)
        assert cutter.passes - before == 5  # 9 rows in twos


# --- replaying ------------------------------------------------------------------------------------------------------------
class Counted(nn.Linear):
    """A layer that counts how often it really ran, and for how many rows."""

    ran = 0

    def forward(self, x):
        type(self).ran += 1
        return super().forward(x).relu()


class Block(nn.Module):
    """An attention and four layers that count."""

    def __init__(self):
        super().__init__()
        self.attend, self.body = nn.MultiheadAttention(8, 2, batch_first=True), nn.Sequential(*(Counted(8, 8) for _ in range(4)))

    def forward(self, x):
        x = x + self.attend(x, x, x)[0]
        return x + self.body(x)


class Deep(nn.Module):
    """Eight blocks, and the first token is read."""

    def __init__(self, depth=8):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(depth)), nn.Linear(8, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


def layers_run(model, x, replay):
    """How many layers ran for one cut of each of eight calls, and what came out."""
    with cutting_of(model, x, replay=replay) as cutter:
        under = cutter.outputs_under(cutter.inputs.with_values({"x": x * 0}))[0]
        each, values = [], []
        for number in range(8):
            Counted.ran = 0
            values.append(cutter.cut(number, under[number], [None, 0, 1]))
            each.append(Counted.ran)
        return each, torch.stack(values), set(cutter.execution.values())


def test_a_cut_costs_the_rest_of_the_model():
    model, x = toys.sharp(Deep(), size=0.3), torch.randn(2, 5, 8).double()
    suffix, a, how = layers_run(model, x, True)
    full, b, whole = layers_run(model, x, False)
    assert (how, whole) == ({"suffix"}, {"full"})
    assert torch.allclose(a, b, rtol=1e-12)
    assert full == [32 + 32, *[32] * 7]  # and once at x, to see that rows are the same in every pass
    assert suffix == [4 * (8 - number) for number in range(8)]
    assert sum(suffix) <= 0.6 * 8 * 32


WHOLE = "BLIP, question answering"  # its target is one number for a whole batch
CACHED = ("BLIP-2's Q-Former", "LLaVA")  # their language models return a cache, whatever they are asked


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name != WHOLE], ids=lambda f: f"{f.source}-{f.name}")
@pytest.mark.usefixtures("patches_in_order")
def test_replaying_gives_what_the_whole_model_gives(family):
    torch.manual_seed(0)
    model, inputs = family.build("sdpa")
    model = model.eval()
    draw = torch.Generator().manual_seed(3)
    for p in model.parameters():
        if p.ndim > 1:
            p.data = torch.randn(p.shape, generator=draw) * 0.2
    with cutting_of(model, inputs, zl.target.output(family.read)) as cutter, cutting_of(model, inputs, zl.target.output(family.read), False) as plain:
        given = cutter.inputs.floating()
        absent = {name: t * 0 for name, t in given.items()} or {name: t.clamp(max=6) for name, t in cutter.inputs.ids().items() if "mask" not in name}
        under = cutter.outputs_under(cutter.inputs.with_values(absent))[0]
        assert sorted(under) == list(range(family.calls))
        moved = 0.0
        for number in range(family.calls):
            heads = [None, 0, under[number].shape[1] - 1]
            a, b = cutter.cut(number, under[number], heads), plain.cut(number, under[number], heads)
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
            moved = max(moved, float((b - cutter.value[:, None]).abs().max()))
        assert moved > 1e-3, "no cut changes anything, so the test says nothing"
        how = "full: a module before the site returns DynamicCache" if family.name in CACHED else "suffix"
        assert set(cutter.execution.values()) == {how}
        assert set(plain.execution.values()) == {"full"}


def test_a_model_that_draws_its_patches_anew_in_every_pass_is_no_other_when_replayed():
    """ViLT turns its patches about at random, also in evaluation; f does not change with that, rows of an attention's output do."""
    _, model, inputs, target = toys.family("ViLT")
    with torch.no_grad(), cutting_of(model, inputs, target) as cutter, cutting_of(model, inputs, target, replay=False) as plain:
        other = {"pixel_values": inputs["pixel_values"] * 0}
        under, again = (one.outputs_under(one.inputs.with_values(other))[0][0] for one in (cutter, plain))
        assert torch.allclose(cutter.cut(0, under, [None]), plain.cut(0, again, [None]), rtol=1e-9)


def test_layers_that_share_their_weights_are_told_apart():
    """ALBERT runs one block over and over: one path, many calls."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AlbertConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=4, vocab_size=60, embedding_size=16, num_labels=3
    )
    model = transformers.AlbertForSequenceClassification(config).eval().double()
    for p in model.parameters():
        if p.ndim > 1:
            p.data = torch.randn(p.shape).double() * 0.25
    inputs = {"input_ids": torch.randint(5, 60, (2, 6))}
    with torch.no_grad(), cutting_of(model, inputs) as cutter:
        assert [index for _, index in seen(cutter)] == [0, 1, 2, 3]
        others = {"input_ids": torch.full((2, 6), 3)}
        under = cutter.outputs_under(cutter.inputs.with_values(others))[0]
        for number in range(4):
            place = ("albert.encoder.albert_layer_groups.0.albert_layers.0.attention.dense", number)
            o0 = toys.output_at(model, others, place)
            for column, head in enumerate([None, 2]):
                truth = toys.with_output(model, inputs, lambda o: o.logits[:, 1], place, o0, 4, head)
                assert torch.allclose(cutter.cut(number, under[number], [None, 2])[:, column], truth, rtol=1e-9)
        assert set(cutter.execution.values()) == {"suffix"}


class Flagged(nn.Module):
    """The first layer leaves a note for the end, outside what it returns: replayed, it leaves none."""

    def __init__(self):
        super().__init__()
        self.first, self.attend, self.head = _Noting(), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        x = x + self.attend(x, x, x)[0]
        noted, self.first.note = self.first.note, None
        return self.head(x[:, 0]) * (1.0 if noted is None else 2.0)


class _Noting(nn.Linear):
    note = None

    def __init__(self):
        super().__init__(8, 8)

    def forward(self, x):
        self.note = x.detach()
        return super().forward(x)


class Handing(Flagged):
    """The note is the layer's input, and the end adds it: replayed, what lies there is of another batch."""

    def forward(self, x):
        x = self.first(x)
        x = x + self.attend(x, x, x)[0]
        return self.head(x[:, 0] + self.first.note[:, 1])


class Boxed(nn.Module):
    """The first layer returns an object."""

    def __init__(self):
        super().__init__()
        self.first, self.attend, self.head = _Boxing(), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x).inside
        return self.head((x + self.attend(x, x, x)[0])[:, 0])


class _Boxing(nn.Linear):
    def __init__(self):
        super().__init__(8, 8)

    def forward(self, x):
        return SimpleNamespace(inside=super().forward(x))


class Shared(nn.Module):
    """One layer runs inside a block and then by itself: replayed, the block does not count the first of its calls."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.again = self.block[0]
        self.attend, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        x = self.again(self.block(x) * 2)
        return self.head((x + self.attend(x, x, x)[0])[:, 0])


class Pairing(nn.Module):
    """The first layer gives one row for every pair of samples."""

    def __init__(self):
        super().__init__()
        self.first, self.attend, self.head = _Pairs(), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        pairs = self.first(x)
        y = pairs.view(len(x), len(x), *x.shape[1:]).diagonal().permute(3, 0, 1, 2).squeeze(1) if pairs.ndim == 5 else x
        return self.head((y + self.attend(y, y, y)[0])[:, 0]) + 0 * pairs.sum()


class _Pairs(nn.Module):
    def forward(self, x):
        return (x[:, None] + x[None]).flatten(0, 1)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (Flagged, "full: replaying the modules before the call gives another output"),
        (Handing, "full: The size of tensor a"),
        (Boxed, "full: a module before the site returns SimpleNamespace"),
        (Pairing, "full: 'first' mixes samples: .* at batch 2, .* at batch 3"),
    ],
)
def test_where_replaying_is_unsound_the_whole_model_runs_and_the_record_says_why(build, words):
    model, x = toys.sharp(build()), torch.randn(2, 5, 8).double()
    with torch.no_grad(), cutting_of(model, x) as cutter, cutting_of(model, x, replay=False) as plain:
        under = cutter.outputs_under(cutter.inputs.with_values({"x": x * 0}))[0][0]
        found = cutter.cut(0, under, [None, 0, 1])
        assert torch.allclose(found, plain.cut(0, under, [None, 0, 1]), rtol=1e-12)
        assert re.match(words, cutter.execution[0])
        assert "\n" not in cutter.execution[0]
        truth = cutter.cut(0, cutter.outputs_under(cutter.inputs)[0][0], [None])
        assert torch.allclose(truth[:, 0], model(x)[:, 1], rtol=1e-12)
        passes = cutter.passes
        cutter.cut(0, under, [None])
        assert cutter.passes == passes + 1  # known by now: it is not tried again


def test_a_layer_shared_between_a_block_and_its_outside_does_not_mislead():
    model, x = toys.sharp(Shared()), torch.randn(2, 5, 8).double()
    with cutting_of(model, x) as cutter, cutting_of(model, x, replay=False) as plain:
        under = cutter.outputs_under(cutter.inputs.with_values({"x": x * 0}))[0][0]
        assert torch.allclose(cutter.cut(0, under, [None, 0, 1]), plain.cut(0, under, [None, 0, 1]), rtol=1e-12)


def test_a_layer_that_ran_inside_a_block_runs_anew_behind_the_call():
    class After(Shared):
        def forward(self, x):
            x = self.block(x)
            return self.head(self.again(x + self.attend(x, x, x)[0])[:, 0])

    model, x = toys.sharp(After()), torch.randn(2, 5, 8).double()
    with cutting_of(model, x) as cutter, cutting_of(model, x, replay=False) as plain:
        under = cutter.outputs_under(cutter.inputs.with_values({"x": x * 0}))[0][0]
        assert torch.allclose(cutter.cut(0, under, [None, 0, 1]), plain.cut(0, under, [None, 0, 1]), rtol=1e-12)
        assert cutter.execution == {0: "suffix"}


def test_inputs_that_hide_a_batch_are_never_replayed():
    class Optioned(Deep):
        def forward(self, x, options=None):
            return super().forward(x) * options.scale

    model, x = toys.sharp(Optioned(2), size=0.3), torch.randn(2, 5, 8).double()
    with cutting_of(model, {"x": x, "options": SimpleNamespace(scale=2.0)}) as cutter:
        assert cutter.prefixes == {}
        under = cutter.outputs_under(cutter.inputs.with_values({"x": x * 0}))[0]
        cutter.cut(1, under[1], [None])
        assert cutter.execution == {1: "full"}


def test_a_module_that_attends_twice_is_cut_where_it_was_asked():
    _, model, inputs, target = toys.family("LXMERT")
    with torch.no_grad(), cutting_of(model, inputs, target) as cutter:
        other = {"visual_feats": inputs["visual_feats"] * 0}
        under = cutter.outputs_under(cutter.inputs.with_values(other))[0]
        for number in (3, 4):
            path, index = seen(cutter)[number]
            place = (toys.PROJECTIONS["LXMERT"](path), index)
            o0 = toys.output_at(model, {**inputs, **other}, place)
            truth = toys.with_output(model, inputs, lambda o: o.question_answering_score[:, 1], place, o0, 4)
            assert torch.allclose(cutter.cut(number, under[number], [None])[:, 0], truth, rtol=1e-9)
        assert [index for _, index in seen(cutter)[3:5]] == [0, 1]


def test_every_pass_is_counted():
    model, x = toys.sharp(Deep(3), size=0.3), torch.randn(2, 5, 8).double()
    ran = []
    hook = model.register_forward_hook(lambda *_: ran.append(1))
    with cutting_of(model, x) as cutter:
        under = cutter.outputs_under(cutter.inputs.with_values({"x": x * 0}))[0]
        for number in range(3):
            cutter.cut(number, under[number], [None, 0])
        assert cutter.passes == len(ran) - 1 == 6  # beside the one that is followed: two recorded, one under the baseline, three cuts
    hook.remove()


# --- what cannot be ---------------------------------------------------------------------------------------------------------
class Words(nn.Module):
    """Ids, of which 0 is padding that the model itself hides; its softmax is written out."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)
        self.layer = nn.Module()
        self.layer.attend = _Hiding()

    def forward(self, ids):
        x = self.words(ids)
        x = x + self.layer.attend(x, ids == 0)
        return self.head(x[:, 0])


class _Hiding(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, hidden):
        scores = (self.q(x) @ self.k(x).transpose(1, 2)).masked_fill(hidden[:, None], -torch.inf)
        return scores.softmax(-1) @ self.v(x)


def test_a_softmax_without_keys_under_the_baseline_names_its_call():
    model, ids = toys.sharp(Words()), torch.randint(1, 9, (2, 4))
    with cutting_of(model, ids) as cutter:
        with pytest.raises(NonFiniteError, match=r"under the baseline layer\.attend gives NaN or infinity: .*without keys.*another mask") as caught:
            cutter.outputs_under(cutter.inputs.with_values({"ids": ids * 0}))
        assert "\n" not in str(caught.value)
        some = ids.clone()
        some[:, 1:] = 0
        assert bool(cutter.outputs_under(cutter.inputs.with_values({"ids": some}))[0][0].isfinite().all())


def test_one_sample_without_keys_is_enough():
    model, ids = toys.sharp(Words()), torch.randint(1, 9, (2, 4))
    other = ids.clone()
    other[1] = 0
    with cutting_of(model, ids) as cutter, pytest.raises(NonFiniteError, match="layer.attend"):
        cutter.outputs_under(cutter.inputs.with_values({"ids": other}))


def test_a_target_that_is_not_finite_under_the_baseline_or_under_a_cut_is_an_error():
    model, inputs = toys.sharp(toys.CrossOnly()), (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())
    with cutting_of(model, inputs, zl.target.output(lambda o: o[:, 0].abs().log())) as cutter:
        far = cutter.inputs.with_values({"words": inputs[0] * 1e308})
        with pytest.raises(NonFiniteError):
            cutter.outputs_under(far)
        nothing = torch.full((2, 2, 4, 4), torch.nan, dtype=torch.float64)
        with pytest.raises(NonFiniteError, match="the target is nan"):
            cutter.cut(0, nothing, [None])


def test_a_model_that_cannot_run_on_the_baseline_says_so_in_one_line():
    class Picky(toys.CrossOnly):
        def forward(self, words, regions):
            if not bool(regions.any()):
                raise ValueError("an empty image\nin two lines")
            return super().forward(words, regions)

    model, inputs = toys.sharp(Picky()), (torch.randn(2, 4, 8).double(), torch.randn(2, 5, 8).double())
    with (
        cutting_of(model, inputs) as cutter,
        pytest.raises(BaselineError, match="does not run with sources at their baselines: an empty image; give") as caught,
    ):
        cutter.outputs_under(cutter.inputs.with_values({"regions": inputs[1] * 0}))
    assert "\n" not in str(caught.value)


class Sometimes(Deep):
    """Up to three samples go through the blocks, more go past them."""

    def forward(self, x):
        return super().forward(x) if len(x) < 4 else self.head(x[:, 0])


@pytest.mark.parametrize(
    "replay",
    [
        False,
        True,
    ],
)
def test_an_attention_that_other_batches_do_not_reach_is_an_error(replay):
    model, x = toys.sharp(Sometimes(2), size=0.3), torch.randn(2, 5, 8).double()
    with cutting_of(model, x, replay=replay) as cutter:
        under = cutter.outputs_under(cutter.inputs.with_values({"x": x * 0}))[0]
        with pytest.raises(SiteError, match=r"with a cut made, blocks\.1\.attend is not reached: the model runs another way"):
            cutter.cut(1, under[1], [None, 0])


def test_a_model_that_breaks_on_its_own_breaks_with_its_own_error():
    class Breaks(Deep):
        def forward(self, x):
            if len(x) == 5:
                raise RuntimeError("five is a crowd")
            return super().forward(x)

    model, x = toys.sharp(Breaks(2), size=0.3), torch.randn(2, 5, 8).double()
    with cutting_of(model, x) as cutter:
        under = cutter.outputs_under(cutter.inputs.with_values({"x": x * 0}))[0]
        assert bool(cutter.cut(0, under[0], [None]).isfinite().all())
        before = toys.state_of(model)
        with pytest.raises(RuntimeError, match="five is a crowd"):
            cutter.cut(0, under[0], [None, 0])
        toys.assert_same_state(before, toys.state_of(model))


def test_nothing_of_the_model_is_changed_between_passes():
    model, x = toys.sharp(Deep(3), size=0.3), torch.randn(2, 5, 8).double()
    given = x.clone()
    with cutting_of(model, x) as cutter:
        before = toys.state_of(model)
        under = cutter.outputs_under(cutter.inputs.with_values({"x": x * 0}))[0]
        kept = under[1].clone()
        cutter.cut(1, under[1], [None, 0])
        toys.assert_same_state(before, toys.state_of(model))
        assert torch.equal(kept, under[1])
        assert torch.equal(x, given)


def test_an_output_that_the_model_writes_on_is_kept_as_it_was():
    class Doubling(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            scores = self.q(x) @ x.transpose(1, 2)
            out = scores.softmax(-1) @ x
            return self.head(out.mul_(2)[:, 0])

    model, x = toys.sharp(Doubling()), torch.randn(2, 5, 8).double()
    with cutting_of(model, x) as cutter, torch.no_grad():
        own, value = cutter.outputs_under(cutter.inputs)
        assert torch.allclose(own[0][:, 0], (model.q(x) @ x.transpose(1, 2)).softmax(-1) @ x, rtol=1e-12)
        assert torch.allclose(cutter.cut(0, own[0], [None])[:, 0], value, rtol=1e-12)


def test_layers_that_write_on_what_they_get_are_replayed_from_copies():
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.attend, self.act, self.head = (
                nn.Linear(8, 8),
                nn.MultiheadAttention(8, 2, batch_first=True),
                nn.ReLU(True),
                nn.Linear(8, 3),
            )

        def forward(self, x):
            x = self.first(x)
            y = self.attend(x, x, x)[0]
            return self.head((self.act(x) + y)[:, 0])

    model, x = toys.sharp(Writing()), torch.randn(2, 5, 8).double()
    with cutting_of(model, x) as cutter, cutting_of(model, x, replay=False) as plain:
        under = cutter.outputs_under(cutter.inputs.with_values({"x": x * 0}))[0][0]
        for _ in range(2):
            assert torch.allclose(cutter.cut(0, under, [None, 0]), plain.cut(0, under, [None, 0]), rtol=1e-12)
        assert cutter.execution == {0: "suffix"}
