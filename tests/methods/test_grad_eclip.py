"""Grad-ECLIP against the paper written out in float64, every option, and the model left as it was."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import zeroline as zl
from zeroline.errors import NotFoundError, TargetError, TraceError, UsageError, ZerolineError
from zeroline.relevance import Relevance

import attention_models as models  # isort: skip
from methods import eclip_reference as paper
from only import plain

CASES = {
    "CLIP, one layer, one head": lambda: paper.clip(heads=1, depth=1, batch=1),
    "CLIP, three layers": lambda: paper.clip(depth=3),
    "CLIP, longer padding": lambda: paper.clip(longest=12),
    "CLIP, images that are not square": lambda: paper.clip(size=(24, 40)),
    "open_clip": paper.open_clip,
    "SigLIP": paper.siglip,
    "digits-clip": paper.digits_clip,
}


def expected(case, part_maps, relu="sum"):
    """Maps per stream from the maps of its layers: the ReLU over their sum, over each, or none."""
    found = {}
    for tower in case.towers:
        maps = part_maps[tower.stream]
        total = sum(m.clamp(min=0) for m in maps) if relu == "each" else sum(maps)
        found[tower.stream] = total.clamp(min=0) if relu == "sum" else total
    return found


def written(case, *, layers=1, similarity="query-key", heads="model", relu="sum", scale_over="shown"):
    """Grad-ECLIP's maps by the paper, lambda of every layer, and f(x)."""
    value, parts = paper.parts_of(case, layers=layers, one_head=heads == "one", project=similarity == "projected")
    loose, maps = {}, {}
    for tower in case.towers:
        for part in parts[tower.stream]:
            weights = torch.ones_like(tower.visible, dtype=torch.float64)
            if similarity != "none":
                weights = paper.loosened(tower, part, scale_over == "all")
            loose.setdefault(tower.stream, []).append(weights)
            maps.setdefault(tower.stream, []).append(paper.grad_eclip_of(tower, part, weights))
    return expected(case, maps, relu), loose, value


# --- the paper ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_map_is_the_papers(name):
    case = CASES[name]()
    truth, loose, value = written(case, relu="none")
    found, signed = zl.grad_eclip(case.model, case.inputs), zl.grad_eclip(case.model, case.inputs, relu="none")
    assert found.by_source.keys() == truth.keys()
    for stream, evidence in truth.items():
        assert paper.close(signed.by_source[stream], evidence)
        assert torch.equal(found.by_source[stream], signed.by_source[stream].clamp(min=0))
    assert torch.allclose(found.output, value, rtol=1e-12, atol=1e-14)
    assert all(bool((put.weights >= 0).all() and (put.weights <= 1).all()) for put in found.substituted)
    by_call = {put.call: put for put in found.substituted}
    for tower in case.towers:
        put = by_call[tower.attentions[-1]]
        assert torch.allclose(put.weights, loose[tower.stream][0], rtol=0, atol=1e-12)
        assert put.group.tolist() == list(range(len(tower.row)))
        assert put.row.tolist() == tower.row.tolist()


@pytest.mark.parametrize("side", ["text", "vision"])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_map_is_that_of_hooks_on_an_untouched_copy(side, layers):
    """q, k and v from hooks on the projections, w from a pre-hook on the output projection: the model's own kernel runs."""
    case = paper.clip(depth=3)
    twin, kept = copy.deepcopy(case.model), {}
    tower = case.towers[0 if side == "text" else 1]

    def keep(path, part):
        def note(_, given, output=None):
            kept[path, part] = given[0] if output is None else output

        return note

    for path in tower.attentions[-layers:]:
        attention = twin.get_submodule(path)
        for part in ("q_proj", "k_proj", "v_proj"):
            getattr(attention, part).register_forward_hook(keep(path, part))
        attention.out_proj.register_forward_pre_hook(keep(path, "o"))
    value = case.score(twin(**case.inputs)).sum()
    total = torch.zeros(tower.visible.shape, dtype=torch.float64)
    every = torch.arange(len(tower.row))
    for path in tower.attentions[-layers:]:
        (w,) = torch.autograd.grad(value, kept[path, "o"], retain_graph=True)
        q, k, v = (kept[path, part].detach() for part in ("q_proj", "k_proj", "v_proj"))
        cosines = torch.einsum("nc,nkc->nk", q[every, tower.row], k) / (q[every, tower.row].norm(dim=1)[:, None] * k.norm(dim=2))
        for n in range(len(total)):
            shown = paper.shown_keys(tower, n)
            own = cosines[n, shown]
            loose = (own - own.min()) / (own.max() - own.min())
            total[n, shown] += torch.einsum("c,kc,k->k", w[n, tower.row[n]], v[n, shown], loose)
    found = zl.grad_eclip(case.model, case.inputs, layers=layers)
    assert paper.close(found.by_source[tower.stream], total.clamp(min=0))


def test_a_class_target_of_a_classifier_is_explained_alike():
    case = paper.digits_vit()
    truth, _, value = written(case, layers=2)
    found = zl.grad_eclip(case.model, case.inputs, target="three", layers=2)
    assert paper.close(found.by_source["pixel_values"], truth["pixel_values"])
    assert torch.allclose(found.output, value)
    assert found.grid("pixel_values").shape == (2, 8, 8)
    assert float(found.by_source["pixel_values"][:, 0].abs().max()) == 0
    assert found.target == ("logit of three",) * 2 or "three" in found.target[0]


def test_the_map_lies_on_the_grid_of_an_image_that_is_not_square():
    case = paper.clip(size=(24, 40))
    found = zl.grad_eclip(case.model, case.inputs)
    truth, _, _ = written(case)
    assert paper.close(found.grid(), truth["pixel_values"][:, 1:].reshape(3, 3, 5))


# --- the options ----------------------------------------------------------------------------------------------------------

OPTIONS = [
    {"layers": 2},
    {"layers": 3},
    {"similarity": "projected"},
    {"similarity": "projected", "layers": 2},
    {"similarity": "none"},
    {"heads": "one"},
    {"heads": "one", "layers": 2},
    {"relu": "each", "layers": 2},
    {"relu": "none", "layers": 2},
    {"relu": "none"},
    {"scale_over": "all"},
    {"scale_over": "all", "similarity": "projected", "heads": "one", "relu": "each", "layers": 2},  # all of the published text side
]
_words = lambda options: ", ".join(f"{name}={value}" for name, value in options.items())  # noqa: E731


@pytest.mark.parametrize("kind", ["CLIP", "open_clip"])
@pytest.mark.parametrize("options", OPTIONS, ids=_words)
def test_every_option_is_what_it_says(options, kind):
    case = paper.clip(depth=3, longest=11) if kind == "CLIP" else paper.open_clip(depth=3)
    truth, loose, value = written(case, **options)
    found = zl.grad_eclip(case.model, case.inputs, **options)
    plain = zl.grad_eclip(case.model, case.inputs)
    for tower in case.towers:
        assert paper.close(found.by_source[tower.stream], truth[tower.stream])
        put = {put.call: put.weights for put in found.substituted}
        for path, expected_weights in zip(tower.attentions[::-1], loose[tower.stream]):
            shown = torch.zeros(expected_weights.shape, dtype=torch.bool)
            for n in range(len(shown)):
                shown[n, paper.shown_keys(tower, n)] = True
            assert torch.allclose(put[path], expected_weights * shown, rtol=0, atol=1e-12)
    assert any(not torch.allclose(found.by_source[s], plain.by_source[s]) for s in truth)  # and it is no idle option
    assert torch.allclose(found.output, value, rtol=1e-12, atol=1e-14)
    assert {name: found.settings[name] for name in options} == options


def test_scaling_over_all_tokens_reaches_those_that_the_end_token_cannot_see():
    case = paper.clip()
    found, plain = (zl.grad_eclip(case.model, case.inputs, scale_over=over, relu="none").by_source for over in ("all", "shown"))
    assert not torch.allclose(found["input_ids"][1], plain["input_ids"][1])
    ends = case.inputs["attention_mask"].sum(1) - 1
    for n, end in enumerate(ends):
        assert float(found["input_ids"][n, end:].abs().max()) == 0


def test_one_head_of_a_pooling_head_is_one_head():
    case = paper.siglip()
    truth, _, value = written(case, heads="one")
    found = zl.grad_eclip(case.model, case.inputs, heads="one")
    assert torch.allclose(found.output, value)
    for stream, expected_map in truth.items():
        assert paper.close(found.by_source[stream], expected_map)


def test_one_head_needs_no_second_meaning_where_there_is_one():
    case = paper.clip(heads=1, depth=2)
    one, model = (zl.grad_eclip(case.model, case.inputs, heads=heads) for heads in ("one", "model"))
    for stream in one.by_source:
        assert paper.close(one.by_source[stream], model.by_source[stream], 1e-12)


def test_what_is_substituted_is_said_in_words():
    case = paper.clip(depth=2)
    said = zl.grad_eclip(case.model, case.inputs).substitutes
    assert len(said) == 2
    assert all("loosened similarity" in words for words in said)
    assert any("text_model.encoder.layers.1.self_attn at 3 tokens" in words for words in said)
    assert any("vision_model.encoder.layers.1.self_attn at token 0" in words for words in said)
    assert all("by ones" in words for words in zl.grad_eclip(case.model, case.inputs, similarity="none").substitutes)
    assert sum("as one" in words for words in zl.grad_eclip(case.model, case.inputs, heads="one", layers=2).substitutes) == 4


# --- rows -----------------------------------------------------------------------------------------------------------------


class Attend(nn.Module):
    """Attention of two heads of width 4; ``shared``: of four of width 2, each pair of them with one head of keys and values."""

    def __init__(self, shared=False):
        super().__init__()
        self.shared, self.width = shared, 2 if shared else 4
        self.q, self.k, self.v, self.o = nn.Linear(8, 8), *(nn.Linear(8, 4 if shared else 8) for _ in range(2)), nn.Linear(8, 8)

    def forward(self, x, by_hand=False):
        query, key, value = self.q(x), self.k(x), self.v(x)
        q, k, v = (part.unflatten(-1, (-1, self.width)).transpose(1, 2) for part in (query, key, value))
        if not by_hand:
            return self.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=self.shared).transpose(1, 2).flatten(2))
        k, v = (part[:, [0, 0, 1, 1]] if self.shared else part for part in (k, v))
        self.a = (q @ k.transpose(-1, -2) / math.sqrt(self.width)).softmax(-1)
        mixed = (self.a @ v).transpose(1, 2).flatten(2)
        self.parts = query, *(part.transpose(1, 2).flatten(2) for part in (k, v)), mixed
        return self.o(mixed)


class Turned(nn.Module):
    """Tokens turned round between two attentions: the row that is read is another one in each. ``order`` of the second's keys."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = Attend(), Attend(), nn.Linear(8, 3)

    def forward(self, x, by_hand=False):
        x = x + self.first(x, by_hand)
        x = x.flip(1)
        return self.head((x + self.second(x, by_hand))[:, 0])


class Pooled(nn.Module):
    """Every token is read, by an average."""

    def __init__(self, shared=False):
        super().__init__()
        self.attend, self.head = Attend(shared), nn.Linear(8, 3)

    def forward(self, x, by_hand=False):
        return self.head((x + self.attend(x, by_hand)).tanh().mean(1))


class Registers(nn.Module):
    """A class token before the tokens and a register behind them."""

    def __init__(self):
        super().__init__()
        self.cls, self.register, self.attend, self.head = *(nn.Parameter(torch.randn(1, 1, 8)) for _ in range(2)), Attend(), nn.Linear(8, 3)

    def forward(self, x, by_hand=False):
        x = torch.cat([self.cls.expand(len(x), -1, -1), x, self.register.expand(len(x), -1, -1)], 1)
        return self.head((x + self.attend(x, by_hand))[:, 0])


def toy(kind, *args):
    return paper.sharp(kind(*args), 0.7), torch.randn(2, 5, 8).double()


def at_row(attend, gradient, row, shown):
    """The paper's map for one row of one attention, [batch, keys]."""
    q, k, v, _ = (part.detach() for part in attend.parts)
    found = torch.zeros(k.shape[:2], dtype=torch.float64)
    for n in range(len(found)):
        cosines = {j: float(q[n, row] @ k[n, j] / q[n, row].norm() / k[n, j].norm()) for j in shown}
        low, high = min(cosines.values()), max(cosines.values())
        for j in shown:
            found[n, j] = (gradient[n, row] @ v[n, j]) * (cosines[j] - low) / (high - low)
    return found


def mixed_gradients(model, x, which, *attends):
    value = model(x, True)[:, which].sum()
    return torch.autograd.grad(value, [attend.parts[3] for attend in attends])


def test_in_the_layer_before_the_row_is_the_one_that_the_residual_carries_on():
    model, x = toy(Turned)
    w1, w2 = mixed_gradients(model, x, 1, model.first, model.second)
    last = at_row(model.second, w2, 0, [1, 2, 3, 4]).flip(1)
    before = at_row(model.first, w1, 4, [0, 1, 2, 3])
    assert paper.close(zl.grad_eclip(model, x, target=1, relu="none").by_source["x"], last)
    found = zl.grad_eclip(model, x, target=1, layers=2, relu="none")
    assert paper.close(found.by_source["x"], last + before)
    assert paper.close(found.per_call["x"], torch.stack([before, last]))
    assert found.readout == ("token 0 of second and token 4 of first",) * 2


@pytest.mark.parametrize("shared", [False, True], ids=["a value per head", "a value for two heads"])
def test_a_pool_is_summed_over_its_rows_without_the_own_token_of_each(shared):
    model, x = toy(Pooled, shared)
    (w,) = mixed_gradients(model, x, 2, model.attend)
    rows = [at_row(model.attend, w, row, [j for j in range(5) if j != row]) for row in range(5)]
    found = zl.grad_eclip(model, x, target=2)
    assert paper.close(found.by_source["x"], sum(rows).clamp(min=0))
    assert paper.close(zl.grad_eclip(model, x, target=2, relu="each").by_source["x"], sum(rows).clamp(min=0))
    assert paper.close(zl.attention_eclip(model, x, target=2).by_source["x"], sum(rows).clamp(min=0))
    assert found.readout == ("5 tokens of attend",) * 2
    assert found.substituted[0].weights.shape == (10, 5)


def test_one_head_over_values_that_heads_share():
    model, x = toy(Pooled, True)
    model(x, True)
    q, k, v, _ = (part.detach() for part in model.attend.parts)
    mixed = ((q @ k.transpose(1, 2) / math.sqrt(8)).softmax(-1) @ v).requires_grad_()
    value = model.head((x + model.attend.o(mixed)).tanh().mean(1))[:, 2]
    (w,) = torch.autograd.grad(value.sum(), mixed)
    rows = [at_row(model.attend, w, row, [j for j in range(5) if j != row]) for row in range(5)]
    found = zl.grad_eclip(model, x, target=2, heads="one")
    assert torch.allclose(found.output, value.detach())
    assert paper.close(found.by_source["x"], sum(rows).clamp(min=0))


def test_class_and_register_tokens_have_no_evidence_and_do_not_scale_the_rest():
    model, x = toy(Registers)
    (w,) = mixed_gradients(model, x, 0, model.attend)
    truth = at_row(model.attend, w, 0, [1, 2, 3, 4, 5])
    for over in ("shown", "all"):
        found = zl.grad_eclip(model, x, target=0, relu="none", scale_over=over)
        assert found.by_source["x"].shape == (2, 7)
        assert float(found.by_source["x"][:, :2].abs().max()) == 0
        assert paper.close(found.by_source["x"][:, 2:], truth[:, 1:6])


class Fork(nn.Module):
    """Two last attentions, beside each other, over the tokens of one before."""

    def __init__(self):
        super().__init__()
        self.before, self.one, self.two, self.head = Attend(), Attend(), Attend(), nn.Linear(16, 3)

    def forward(self, x, by_hand=False):
        x = x + self.before(x, by_hand)
        return self.head(torch.cat([(x + self.one(x, by_hand))[:, 0], (x + self.two(x, by_hand))[:, 1]], 1))


def forked(model, x):
    """The evidence of each attention, in order."""
    w0, w1, w2 = mixed_gradients(model, x, 1, model.before, model.one, model.two)
    before = at_row(model.before, w0, 0, [1, 2, 3, 4]) + at_row(model.before, w0, 1, [0, 2, 3, 4])
    return before, at_row(model.one, w1, 0, [1, 2, 3, 4]), at_row(model.two, w2, 1, [0, 2, 3, 4])


def test_two_last_attentions_are_added_up():
    model, x = toy(Fork)
    _, one, two = forked(model, x)
    found = zl.grad_eclip(model, x, target=1, relu="none")
    assert paper.close(found.by_source["x"], one + two)
    assert paper.close(found.per_call["x"], torch.stack([torch.zeros_like(one), one, two]))
    assert found.readout == ("token 1 of two and token 0 of one",) * 2


def test_the_layer_before_two_last_attentions_is_read_at_both_rows():
    model, x = toy(Fork)
    before, one, two = forked(model, x)
    found = zl.grad_eclip(model, x, target=1, relu="none", layers=2)
    assert paper.close(found.by_source["x"], before + one + two)


def test_a_decoder_is_read_at_its_last_cross_attentions():
    """Layers are counted among attentions of the same kind: self-attention in between is passed over."""
    model, inputs = models.t5("sdpa")
    found = zl.grad_eclip(model.eval(), inputs, target=zl.target.output(lambda o: o.logits[:, -1, 1]), layers=2)
    assert list(found.by_source) == ["input_ids"]
    assert found.corrected == (3, 5)


def test_a_language_model_reads_its_image_at_the_last_word():
    model, inputs = models.llava("sdpa")
    found = zl.grad_eclip(model.eval(), inputs, target=zl.target.output(lambda o: o.logits[:, -1, 1]), relu="none")
    assert {name: bool((r != 0).any(1).all()) for name, r in found.by_source.items()} == {"input_ids": True, "pixel_values": True}
    assert found.readout == ("token 8 of model.language_model.layers.1.self_attn",) * 2
    assert float(found.by_source["input_ids"][:, -1].abs().max()) == 0  # the word that is read


class Late(nn.Module):
    """The class token comes after the first attention: what is read passed one attention only."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.cls, self.head = Attend(), Attend(), nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([self.cls.expand(len(x), -1, -1), x + self.first(x)], 1)
        return self.head((x + self.second(x))[:, 0])


def test_a_class_token_that_comes_late_has_no_layer_before():
    model, x = toy(Late)
    with pytest.raises(UsageError, match="layers=2 was asked.*1 to 1"):
        zl.grad_eclip(model, x, target=0, layers=2)


# --- targets --------------------------------------------------------------------------------------------------------------


def test_another_caption_is_explained_on_the_image_alone():
    case = paper.clip(depth=2)
    ids, mask = paper.texts([6], 9)
    other = {"input_ids": ids, "attention_mask": mask}
    found = zl.grad_eclip(case.model, case.inputs, target=zl.similarity(text=other, names="a cat"))
    with torch.no_grad():
        embedding = case.model(**{**case.inputs, **other}).text_embeds
    moved = paper.Case(case.model, case.inputs, case.towers[1:], lambda output: paper.cosine(output.image_embeds, embedding))
    truth, _, value = written(moved)
    assert list(found.by_source) == ["pixel_values"]
    assert paper.close(found.by_source["pixel_values"], truth["pixel_values"])
    assert torch.allclose(found.output, value)
    assert found.target == ("cosine of the image with a cat",) * 3


def test_a_contrast_of_two_captions_is_explained():
    case = paper.clip(depth=2)
    one, two = torch.randn(16).double(), torch.randn(3, 16).double()
    found = zl.grad_eclip(case.model, case.inputs, target=zl.similarity(text=one, against=two))
    score = lambda output: paper.cosine(output.image_embeds, one) - paper.cosine(output.image_embeds, two)  # noqa: E731
    truth, _, value = written(paper.Case(case.model, case.inputs, case.towers[1:], score))
    assert paper.close(found.by_source["pixel_values"], truth["pixel_values"])
    assert torch.allclose(found.output, value)


def test_a_text_among_images_is_explained_on_the_text_alone():
    case = paper.siglip()
    image = torch.randn(24).double()
    found = zl.grad_eclip(case.model, case.inputs, target=zl.similarity(image=image), layers=2)
    score = lambda output: paper.cosine(output.text_embeds, image)  # noqa: E731
    truth, _, _ = written(paper.Case(case.model, case.inputs, case.towers[:1], score), layers=2)
    assert list(found.by_source) == ["input_ids"]
    assert paper.close(found.by_source["input_ids"], truth["input_ids"])


def test_a_batch_is_its_samples():
    case = paper.clip(depth=2)
    together = zl.grad_eclip(case.model, case.inputs, relu="none")
    for n in range(3):
        alone = zl.grad_eclip(case.model, {name: value[n : n + 1] for name, value in case.inputs.items()}, relu="none")
        for stream, r in together.by_source.items():
            assert paper.close(alone.by_source[stream], r[n : n + 1], 1e-12)


# --- the model as it was ----------------------------------------------------------------------------------------------------


class Operators(TorchDispatchMode):
    """The operators that ran, by name, with the shapes of what they gave."""

    def __init__(self):
        super().__init__()
        self.ran = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, (tuple, list)) else out
        self.ran.append((func.overloadpacket.__name__, tuple(first.shape) if isinstance(first, torch.Tensor) else ()))
        return out


@pytest.mark.parametrize(("build", "how"), [(paper.clip, "fused kernel"), (paper.open_clip, "nn.MultiheadAttention")], ids=["CLIP", "open_clip"])
def test_fused_kernels_stay_on_and_no_map_of_a_whole_call_is_made(build, how):
    case = build()
    assert {call.how for call in zl.trace(case.model, case.inputs).calls} == {how}
    with Operators() as operators:
        zl.grad_eclip(case.model, case.inputs)
    fused = [name for name, _ in operators.ran if name.startswith("_scaled_dot_product") and "backward" not in name]
    assert len(fused) == 4
    assert not any(name == "_scaled_dot_product_attention_math" for name in fused)
    maps = [shape for name, shape in operators.ran if name == "_softmax" and shape[-1] in (9, 17)]
    assert all(shape[-2] < shape[-1] for shape in maps)  # rows that are read, at most


@pytest.mark.parametrize(("options", "passes"), [({}, 1), ({"similarity": "projected", "layers": 2}, 1), ({"heads": "one"}, 2)], ids=str)
def test_one_forward_pass_is_enough(options, passes):
    case, ran = paper.clip(), []
    hook = case.model.register_forward_hook(lambda *_: ran.append(1))
    zl.grad_eclip(case.model, case.inputs, **options)
    hook.remove()
    assert len(ran) == passes


def state(model):
    """Everything about a model that an explanation could leave behind."""
    hooks = [len(getattr(m, kept)) for m in model.modules() for kept in vars(m) if kept.endswith("_hooks")]
    flags = [(p.requires_grad, p.grad is None, p._version) for p in model.parameters()]
    return hooks, flags, [m.training for m in model.modules()], [sorted(vars(m)) for m in model.modules()]


def boom(_):
    raise ZeroDivisionError("boom")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, None),
        ({"heads": "one", "similarity": "projected", "layers": 2}, None),
        ({"target": zl.target.output(boom)}, ZeroDivisionError),
        ({"target": zl.target.output(lambda o: o.image_embeds[:, 0].detach())}, TargetError),
        ({"layers": 9}, UsageError),
        ({"target": zl.similarity(text=torch.zeros(16))}, TargetError),
    ],
    ids=["the default", "all options", "a target that fails", "a detached target", "too many layers", "an embedding of zeros"],
)
def test_the_model_answers_as_before_bit_for_bit_and_everything_is_put_back(options, error):
    case = paper.clip(depth=2)
    case.model.text_projection.weight.requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    given = {name: value.clone() for name, value in case.inputs.items()}
    before, truth, kernel, random = state(case.model), case.model(**case.inputs), F.scaled_dot_product_attention, torch.get_rng_state()
    if error is None:
        zl.grad_eclip(case.model, case.inputs, **options)
    else:
        with pytest.raises(error):
            zl.grad_eclip(case.model, case.inputs, **options)
    assert state(case.model) == before
    assert F.scaled_dot_product_attention is kernel
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in case.model.state_dict().items())
    assert all(torch.equal(value, given[name]) for name, value in case.inputs.items())
    after = case.model(**case.inputs)
    for name in ("logits_per_image", "image_embeds", "text_embeds"):
        assert torch.equal(after[name], truth[name])


def test_f_is_the_models_own_output_bit_for_bit():
    case = paper.clip()
    own = case.model.float()(**{n: v.float() if v.is_floating_point() else v for n, v in case.inputs.items()})
    inputs = {n: v.float() if v.is_floating_point() else v for n, v in case.inputs.items()}
    found = zl.grad_eclip(case.model, inputs, target=zl.target.output(lambda o: o.logits_per_image.diagonal()))
    assert torch.equal(found.output, own.logits_per_image.diagonal().double())


# --- precision, records, errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)], ids=str)
def test_other_precisions_give_nearly_the_same_map(dtype, near):
    case = paper.clip(depth=2)
    truth = zl.grad_eclip(case.model, case.inputs).by_source
    inputs = {n: v.to(dtype) if v.is_floating_point() else v for n, v in case.inputs.items()}
    found = zl.grad_eclip(case.model.to(dtype), inputs)
    for stream, r in found.by_source.items():
        assert r.dtype == torch.float32
        assert bool(r.isfinite().all())
        assert paper.close(r.double(), truth[stream], near)
    assert found.output.dtype == torch.float64


@pytest.mark.parametrize("options", [{}, {"layers": 2, "similarity": "none"}], ids=str)
def test_a_saved_record_comes_back_whole(tmp_path, options):
    case = paper.clip(depth=2)
    found = zl.grad_eclip(case.model, case.inputs, **options)
    found.save(tmp_path / "map.safetensors")
    again = Relevance.load(tmp_path / "map.safetensors")
    assert again.to_dict() == found.to_dict()
    assert again.settings == found.settings
    assert len(again.substituted) == len(found.substituted) == 2 * options.get("layers", 1)
    for one, two in zip(found.substituted, again.substituted):
        assert one.call == two.call
        for part in ("group", "row", "weights"):
            assert torch.equal(getattr(one, part), getattr(two, part))
            assert getattr(one, part).dtype == getattr(two, part).dtype
    for stream, r in found.by_source.items():
        assert torch.equal(r, again.by_source[stream])
        assert torch.equal(found.per_call[stream], again.per_call[stream])


def test_a_sample_of_a_record_is_the_record_of_the_sample():
    case = paper.clip(depth=2)
    found = zl.grad_eclip(case.model, case.inputs, layers=2)
    for n in (1, -1):
        mine, alone = found.sample(n), zl.grad_eclip(case.model, {k: v[n % 3 : n % 3 + 1] for k, v in case.inputs.items()}, layers=2)
        assert mine.readout == alone.readout
        assert len(mine.substituted) == 4
        for one, two in zip(mine.substituted, alone.substituted):
            assert (one.call, one.group.tolist(), one.row.tolist()) == (two.call, two.group.tolist(), two.row.tolist())
            assert torch.allclose(one.weights, two.weights, rtol=0, atol=1e-12)
    assert found.substituted[0].group.tolist() == [0, 1, 2]


def windowed():
    """Swin whose last attention has four windows for each sample."""
    import transformers

    config = transformers.SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4, image_size=64, patch_size=4, num_labels=5)
    return transformers.SwinForImageClassification(config).double().eval(), torch.randn(2, 3, 64, 64).double()


def test_in_windows_every_token_is_compared_with_those_of_its_own_window():
    model, pixels = windowed()
    kept, attention = {}, model.swin.encoder.layers[1].blocks[0].attention
    for part in ("q_proj", "k_proj"):
        getattr(attention, part).register_forward_hook(lambda _, __, out, part=part: kept.update({part: out.detach()}))
    model(pixels)
    query, key = kept["q_proj"], kept["k_proj"]  # [windows, 16, channels]
    put = zl.grad_eclip(model, {"pixel_values": pixels}, target=1).substituted[0]
    assert sorted(zip(put.group.tolist(), put.row.tolist())) == [(g, r) for g in range(8) for r in range(16)]
    for group, row, weights in zip(put.group.tolist(), put.row.tolist(), put.weights):
        cosines = torch.cosine_similarity(query[group, row][None], key[group])
        others = cosines[torch.arange(16) != row]
        truth = (cosines - others.min()) / (others.max() - others.min())
        truth[row] = 0
        assert torch.allclose(weights, truth, rtol=0, atol=1e-9)


def test_a_sample_of_a_model_with_windows_keeps_its_windows():
    model, pixels = windowed()
    found, alone = zl.grad_eclip(model, {"pixel_values": pixels}, target=1), zl.grad_eclip(model, {"pixel_values": pixels[1:]}, target=1)
    mine, truth = found.sample(1).substituted[0], alone.substituted[0]
    assert (mine.group.tolist(), mine.row.tolist()) == (truth.group.tolist(), truth.row.tolist())
    assert torch.allclose(mine.weights, truth.weights, atol=1e-9)


def test_a_model_that_makes_its_own_map_is_explained_like_its_fused_twin():
    """A float16 softmax is 0 from 17 below its largest score on: such keys are seen all the same."""
    case = paper.clip(depth=1, batch=1)
    for name, parameter in case.model.named_parameters():
        if "q_proj" in name:
            parameter.data *= 30
    inputs = {n: v.float() if v.is_floating_point() else v for n, v in case.inputs.items()}
    fused = zl.grad_eclip(case.model.float(), inputs).by_source["pixel_values"]
    case.model.set_attn_implementation("eager")
    assert paper.close(zl.grad_eclip(case.model, inputs).by_source["pixel_values"], fused, 1e-3)


def test_a_model_that_makes_its_own_map_hides_what_its_mask_hides():
    """Tokens after the end token, where attention is sharp: their weight is 0 by the mask, and would be 0 without it."""
    torch.manual_seed(11)
    case = paper.clip(depth=1)
    for name, parameter in case.model.named_parameters():
        if "q_proj" in name:
            parameter.data *= 100
    inputs = {n: v.float() if v.is_floating_point() else v for n, v in case.inputs.items()}
    fused = zl.grad_eclip(case.model.float(), inputs, relu="none").by_source["input_ids"]
    case.model.set_attn_implementation("eager")
    found = zl.grad_eclip(case.model, inputs, relu="none").by_source["input_ids"]
    for n, end in enumerate(case.inputs["attention_mask"].sum(1) - 1):
        assert float(found[n, end:].abs().max()) == 0
    assert paper.close(found, fused, 1e-3)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"layers": 9}, UsageError, "layers=9 was asked.*1 to 2"),
        ({"layers": 3}, UsageError, "layers=3 was asked.*passed 1 .*1 to 2"),
        ({"layers": 0}, UsageError, "layers=0 was asked.*1 or more"),
        ({"layers": -1}, UsageError, "layers=-1"),
        ({"layers": True}, UsageError, "layers=True"),
        ({"layers": 1.0}, UsageError, "layers=1.0"),
        ({"similarity": "dot"}, NotFoundError, "no similarity 'dot'; possible: query-key, projected, none"),
        ({"similarity": "project"}, NotFoundError, "nearest: projected"),
        ({"similarity": None}, NotFoundError, "no similarity 'None'"),
        ({"heads": "two"}, NotFoundError, "no heads 'two'"),
        ({"relu": "eech"}, NotFoundError, "nearest: each"),
        ({"scale_over": "tokens"}, NotFoundError, "no scale_over 'tokens'.*shown, all"),
        ({"target": zl.target.output(lambda o: o.image_embeds[:, 0].detach())}, TargetError, "needs no gradient"),
        ({"target": zl.target.output(lambda o: o.image_embeds)}, TargetError, r"\(3, 16\)|one number per sample"),
        ({"grid": (3, 3)}, UsageError, "3 x 3"),
    ],
    ids=plain,
)
def test_bad_options_get_one_clear_error(options, error, words):
    case = paper.clip(depth=2)
    with pytest.raises(error, match=words) as caught:
        zl.grad_eclip(case.model, case.inputs, **options)
    assert isinstance(caught.value, ZerolineError)
    assert "\n" not in str(caught.value)


def test_layers_are_counted_for_each_side():
    case = paper.siglip()
    with pytest.raises(UsageError, match=r"layers=2 was asked.*vision_model.head.attention.*1 to 1"):
        zl.grad_eclip(case.model, case.inputs, layers=2)


class Unprojected(nn.Module):
    """An attention whose output is read as it is."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, 0] ** 2


def test_a_projection_that_is_not_there_is_an_error():
    model, x = toy(Unprojected)
    assert float(zl.grad_eclip(model, x, target=0).by_source["x"].max()) > 0
    with pytest.raises(TraceError, match="no linear layer takes the output"):
        zl.grad_eclip(model, x, target=0, similarity="projected")


def test_the_projection_is_found_whatever_the_inputs_are_called():
    """Positional inputs, tokens first inside (nn.MultiheadAttention with weights): SigLIP's pooling head."""
    case = paper.siglip()
    truth, _, _ = written(case, similarity="projected")
    found = zl.grad_eclip(case.model, case.inputs, similarity="projected")
    for stream, expected_map in truth.items():
        assert paper.close(found.by_source[stream], expected_map)


def test_a_text_of_nothing_but_its_end_has_no_evidence():
    model, inputs = models.clip("sdpa")
    ids = torch.zeros(2, 7, dtype=torch.int64)
    ids[:, 0] = 59
    found = zl.grad_eclip(model.eval(), {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert float(found.by_source["input_ids"].abs().max()) == 0
    assert float(found.by_source["pixel_values"].max()) > 0


def test_a_dual_encoder_of_bound_methods_is_explained_like_the_model():
    case = paper.open_clip()
    pair = zl.DualEncoder(image=case.model.encode_image, text=case.model.encode_text)
    one, two = zl.grad_eclip(pair, case.inputs), zl.grad_eclip(case.model, case.inputs)
    for stream in ("image", "text"):
        assert paper.close(one.by_source[stream], two.by_source[stream])
