"""What a question measures: cuts, f(do), f(x0), passes, and suffix execution that is given up where it is unsound."""

import copy

import pytest
import torch
from torch import nn

import zeroline as zl
from zeroline.errors import BaselineError, InputError, NonFiniteError, SiteError, TargetError
from zeroline.model.ask import ask
from zeroline.testing.toys import Structured, Transformer


def put(model, inputs, site=None, baseline=None, target=0, **more):
    with ask(model, inputs, target=target, site=site, baseline=baseline or zl.baseline.zeros(), **more) as question:
        return question


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return Transformer().eval(), torch.randn(2, 5, 8)


@pytest.mark.parametrize(
    ("site", "is_cut"), [(None, True), ("blocks.0", True), ("blocks.1", True), ("head", True), ("blocks.0.mlp", False), ("blocks.1.norm1", False)]
)
@pytest.mark.parametrize("baseline", [zl.baseline.zeros(), zl.baseline.zeros(at="input"), zl.baseline.noise(1)], ids=lambda b: b.name)
def test_a_cut_is_told_from_a_side_path(transformer, site, is_cut, baseline):
    model, x = transformer
    fresh = copy.deepcopy(model)
    assert put(fresh, x, site, baseline).is_cut is is_cut
    assert put(fresh, x, site, baseline).is_cut is is_cut, "the remembered answer differs"


def test_at_a_side_path_the_difference_is_measured_from_the_replaced_model(transformer):
    model, x = transformer
    x0 = torch.zeros_like(x)
    question = put(model, x, "blocks.0.mlp", zl.baseline.of(x0))
    z0 = model.blocks[0].mlp(model.blocks[0].norm2(x0 + model.blocks[0].out(attention_of(model.blocks[0], x0)))).detach()
    hook = model.blocks[0].mlp.register_forward_hook(lambda *_: z0)
    replaced = model(x)[:, 0].double()
    hook.remove()
    assert torch.allclose(question.baseline_output, replaced, atol=1e-6)
    assert torch.allclose(question.reference_output, model(x0)[:, 0].double(), atol=1e-6)
    assert float((question.baseline_output - question.reference_output).abs().min()) > 1e-3


def attention_of(block, tokens):
    batch, count, width = tokens.shape
    q, k, v = block.qkv(block.norm1(tokens)).view(batch, count, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)


def test_masks_are_part_of_the_other_input():
    torch.manual_seed(0)
    inputs = {"features": torch.randn(2, 5, 4), "mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])}
    assert put(Structured().eval(), inputs, "recurrent[0]").is_cut is True


def test_a_weight_that_changes_makes_the_cut_be_tested_again(transformer):
    _, x = transformer

    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.gate = nn.Linear(8, 3), nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return self.body(x) + self.gate * x[:, :3]

    skip, x = Skipping(), x[:, 0]
    assert put(skip, x, "body").is_cut is True
    with torch.no_grad():
        skip.gate += 1
    assert put(skip, x, "body").is_cut is False


def count_passes(model):
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    return passes


@pytest.mark.parametrize(("site", "baseline", "passes"), [(None, "zeros", 2), (None, "black", 2), ("blocks.0", "zeros", 2), ("blocks.0", "noise", 2)])
def test_a_first_order_question_takes_two_passes_once_the_cut_is_known(transformer, site, baseline, passes):
    model, x = transformer
    chosen = {"zeros": zl.baseline.zeros(), "black": zl.baseline.zeros(at="input"), "noise": zl.baseline.noise(0)}[baseline]
    put(model, x, site, chosen, gradient=True)
    seen = count_passes(model)
    question = put(model, x, site, chosen, gradient=True)
    assert len(seen) == passes
    assert question.forward_passes + 1 == passes


class Keeper(nn.Linear):
    def forward(self, x):
        self.kept = super().forward(x)
        return self.kept


class Stateful(nn.Module):
    """Reads in the suffix what a module of the prefix kept aside: replaying the prefix would leave it stale."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = Keeper(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.second(self.first(x)))) + self.first.kept.mean(1, keepdim=True)


class Mixing(nn.Module):
    """A module before the site whose output depends on the batch as a whole."""

    def __init__(self):
        super().__init__()
        self.gram, self.second, self.head = Gram(), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        self.gram(x)
        return self.head(torch.tanh(self.second(x)))


class Gram(nn.Module):
    def forward(self, x):
        return x @ x.T


class Counter(nn.Module):
    """Gives another answer on a second call within a pass; replay must count calls."""

    def __init__(self):
        super().__init__()
        self.shared, self.site, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        z = self.site(torch.tanh(self.shared(torch.tanh(self.shared(x)))))
        return self.head(torch.tanh(self.shared(z)))


@pytest.mark.parametrize(("build", "site", "execution"), [(Mixing, "second", "full: 'gram' mixes samples"), (Counter, "site", "suffix after site")])
def test_replay_is_used_where_sound_and_given_up_where_not(build, site, execution):
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(3, 4).double()
    found = zl.integrated_gradients(model, x, target=[0, 1, 0], site=site, baseline=zl.baseline.zeros(), path="gausslegendre", n_steps=20)
    assert found.execution.startswith(execution)
    assert float(found.error.abs().max()) < 1e-9


def test_a_prefix_that_keeps_state_is_found_out_by_the_full_run():
    torch.manual_seed(0)
    model, x = Stateful().double(), torch.randn(3, 4).double()
    found = zl.integrated_gradients(model, x, target=[0, 1, 0], site="second", baseline=zl.baseline.zeros(), path="gausslegendre", n_steps=20)
    assert found.execution.startswith("full: ")
    assert float(found.error.abs().max()) < 1e-9
    assert torch.allclose(found.output, model(x)[[0, 1, 2], [0, 1, 0]].detach())


def test_a_forward_that_was_replaced_before_is_put_back(transformer):
    model, x = transformer
    block = model.blocks[0]
    original = type(block).forward

    def wrapped(tokens):
        return original(block, tokens)

    block.forward = wrapped
    zl.integrated_gradients(model, x, target=0, site="blocks.1", baseline=zl.baseline.zeros())
    assert block.__dict__["forward"] is wrapped


@pytest.mark.parametrize(
    ("site", "baseline", "target", "error", "message"),
    [
        ("blocks.9", None, 0, zl.errors.NotFoundError, r"nearest: blocks\.[01].*zeroline sites"),
        ("blocks.*", None, 0, SiteError, r"matches 2 modules \(blocks.0, blocks.1"),
        ("blocks.0#1", None, 0, SiteError, r"never reached call 1 of 'blocks.0#1'"),
        ("blocks.0[1]", None, 0, SiteError, "gives one tensor"),
        (nn.Linear(1, 1), None, 0, SiteError, "not part of the model"),
        (None, zl.baseline.zeros(), lambda out: out.sum(), TargetError, r"shape \(\) for 2 samples"),
        (None, zl.baseline.zeros(), lambda out: out, TargetError, "one number per sample"),
        (None, zl.baseline.zeros(), lambda out: out.argmax(1), TargetError, "real numbers"),
        (None, zl.baseline.tensor(torch.zeros(3, 3)), 0, BaselineError, r"shape \(3, 3\); the features have \(2, 5, 8\)"),
        (None, zl.baseline.of(torch.zeros(2, 4, 8)), 0, BaselineError, r"\(2, 4, 8\) for input 'tokens'"),
        ("input:nothing", None, 0, zl.errors.NotFoundError, "possible: tokens"),
    ],
)
def test_bad_questions_are_one_clear_error(transformer, site, baseline, target, error, message):
    model, x = transformer
    with pytest.raises(error, match=message):
        put(model, x, site, baseline, target)


def test_an_unreached_site_is_an_error():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(SiteError, match="never reached 'unused'"):
        put(Branch(), torch.ones(1, 3), "unused")


def test_nan_names_the_sample_and_the_path_point():
    class Hole(nn.Module):
        def forward(self, x):
            return torch.where((x[:, :1] < 0) & (x[:, :1] > -2), torch.nan, x).sum(1, keepdim=True)

    x, x0 = torch.tensor([[1.0, 1.0], [-4.0, 1.0]]), torch.ones(2, 2)
    with pytest.raises(NonFiniteError, match=r"nan at sample 1, path point t = 0\.25 \(0 is the baseline"):
        zl.integrated_gradients(Hole(), x, target=0, baseline=zl.baseline.tensor(x0))


def test_integer_inputs_are_no_site_and_the_way_out_is_named():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 4)

        def forward(self, ids):
            return self.embed(ids).mean(1)

    model, ids = Words(), {"ids": torch.tensor([[1, 2, 3]])}
    with pytest.raises(InputError, match=r"no floating-point input.*integer inputs: ids.*zl\.site\.embedding"):
        put(model, ids)
    with pytest.raises(InputError, match=r"holds integers \(torch.int64\).*zl\.site\.embedding\('ids'\)"):
        put(model, ids, "input:ids")
    with pytest.raises(BaselineError, match=r"inputs are ids.*zl\.baseline\.of"):
        put(model, ids, "embed", zl.baseline.mean())


def test_an_integer_module_output_is_no_site():
    class Ranks(nn.Module):
        def __init__(self):
            super().__init__()
            self.rank = Rank()

        def forward(self, x):
            return x + self.rank(x)

    class Rank(nn.Module):
        def forward(self, x):
            return x.argsort(1)

    with pytest.raises(SiteError, match="holds integers|no floating-point"):
        put(Ranks(), torch.rand(2, 3), "rank")


def test_an_input_on_another_device_is_one_clear_error():
    with pytest.raises(InputError, match="is on meta, the model on cpu"):
        put(nn.Linear(3, 2), torch.ones(1, 3, device="meta"))


def test_several_tensors_in_an_output_must_be_chosen_from():
    inputs = {"features": torch.randn(2, 5, 4), "mask": torch.ones(2, 5)}
    with pytest.raises(SiteError, match=r"2 tensors; name one: recurrent\[0\] \(2, 5, 6\), recurrent\[1\]"):
        put(Structured().eval(), inputs, "recurrent")


def test_two_floating_inputs_must_be_chosen_from():
    inputs = {"features": torch.randn(2, 5, 4), "mask": torch.ones(2, 5)}
    with pytest.raises(InputError, match="2 floating-point inputs.*input:features, input:mask"):
        put(Structured().eval(), inputs)


def test_hooks_of_the_caller_see_what_they_saw_and_act_as_they_did(transformer):
    """A caller's hook that changes a module's output is part of the model, at the site and before it."""
    model, x = transformer
    model.blocks[0].register_forward_hook(lambda m, a, out: out * 2)
    bare = model(x)[:, 0].detach().double()
    found = zl.integrated_gradients(model, x, target=0, site="blocks.1", baseline=zl.baseline.zeros(at="input"), tolerance=1e-3)
    assert torch.allclose(found.output, bare, atol=1e-6)
    assert torch.allclose(found.reference_output, found.baseline_output, atol=1e-5)
    assert found.execution == "suffix after blocks.1"


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(nn.functional.dropout(x, 0.5))  # training=True is this function's default


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(x - x.mean(0, keepdim=True)) + x.std()


@pytest.mark.parametrize("build", [Noisy, Centred])
def test_a_model_that_answers_at_random_or_mixes_samples_is_refused(build):
    torch.manual_seed(0)
    with pytest.raises(zl.errors.ModelStateError, match="draws random numbers or mixes the samples"):
        zl.integrated_gradients(build().eval(), torch.randn(3, 4), target=0, baseline=zl.baseline.constant(0.5))


@pytest.mark.parametrize("path", ["gausslegendre", "midpoint", "riemann", "trapezoid", "adaptive"])
def test_mixing_is_found_out_by_every_path_and_by_first_order_methods(path):
    torch.manual_seed(0)
    with pytest.raises(zl.errors.ModelStateError, match="mixes the samples"):
        zl.integrated_gradients(Centred().eval(), torch.randn(3, 4), target=0, baseline=zl.baseline.constant(0.5), path=path)
    for method in (zl.gradient_x_input, zl.taylor):
        with pytest.raises(zl.errors.ModelStateError, match="mixes the samples"):
            method(Centred().eval(), torch.randn(3, 4), target=0, baseline=zl.baseline.constant(0.5))


def test_a_cut_for_one_class_is_no_cut_for_another():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.feature, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 1)

        def forward(self, x):
            return torch.cat([self.a(torch.tanh(self.feature(x))), self.b(x)], 1)

    torch.manual_seed(0)
    model, x = TwoHeads(), torch.randn(2, 4)
    found = [zl.gradient_x_input(model, x, target=c, site="feature", baseline=zl.baseline.zeros(at="input")) for c in (0, 1)]
    assert [a.is_cut for a in found] == [True, False]
    assert torch.equal(found[1].difference, torch.zeros(2).double())


def test_an_argument_that_is_no_tensor_is_part_of_the_question():
    class Switch(nn.Module):
        def __init__(self):
            super().__init__()
            self.feature, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x, skip):
            return self.head(torch.tanh(self.feature(x))) + (x[:, :2] if skip else 0)

    torch.manual_seed(0)
    model, x = Switch(), torch.randn(2, 4)
    cuts = [put(model, {"x": x, "skip": skip}, "feature").is_cut for skip in (False, True, False)]
    assert cuts == [True, False, True]


def test_the_embedding_of_an_input_is_the_call_that_looks_it_up():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, first, second):
            return self.head(torch.tanh(self.shared(first).mean(1) * self.shared(second).mean(1)))

    torch.manual_seed(0)
    inputs = {"first": torch.tensor([[1, 2, 3]]), "second": torch.tensor([[4, 5]])}
    found = zl.gradient_x_input(Shared(), inputs, target=0, site="embedding:second", baseline=zl.baseline.zeros())
    assert found.site == "shared#1"
    assert found.values.shape == (1, 2, 4)


def test_scores_for_other_rows_than_the_samples_are_an_error():
    class Frames(nn.Module):
        def forward(self, x):
            return x.flatten(0, 1)

    with pytest.raises(TargetError, match="scores for 6 rows of 2 samples"):
        put(Frames(), torch.randn(2, 3, 4))


def test_a_callable_target_that_knows_only_one_batch_size_is_one_clear_error():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    with pytest.raises(TargetError, match="must work for any number of rows"):
        zl.integrated_gradients(model, torch.randn(2, 4), target=lambda out: out[torch.arange(2), [0, 1]] + out[1], baseline=zl.baseline.zeros())


def test_half_precision_path_points_are_told_apart():
    from zeroline.model.question import _between

    z0, z = torch.zeros(1, 1).bfloat16(), torch.full((1, 1), 100.0).bfloat16()
    t = torch.tensor([0.501, 0.509], dtype=torch.float64)
    a, b = _between(z0, z, torch.tensor([0, 0]), t).flatten().tolist()
    assert (a, b) == (50.0, 51.0)


@pytest.mark.parametrize("path", ["adaptive", "gausslegendre"])
def test_a_supplied_cache_is_copied_for_every_pass_and_rows_stay_in_their_batch(path):
    class Cache:
        def __init__(self, kept):
            self.kept = kept

    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.feature, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x, past):
            past.kept = past.kept + self.feature(x)  # a pass that saw the last one's cache would answer otherwise
            return self.head(torch.tanh(past.kept))

    torch.manual_seed(0)
    model, x, start = Cached().double(), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    cache = Cache(start)
    found = zl.integrated_gradients(model, {"x": x, "past": cache}, target=[0, 1, 0], baseline=zl.baseline.zeros(), path=path, tolerance=1e-3)
    assert torch.equal(cache.kept, start)
    assert bool((found.relative_error <= 1e-3).all())
    truth = model(x, Cache(start))[[0, 1, 2], [0, 1, 0]] - model(torch.zeros_like(x), Cache(start))[[0, 1, 2], [0, 1, 0]]
    assert torch.allclose(found.difference, truth.detach())


def test_the_rounding_is_that_of_the_coarser_of_features_and_output():
    class Half(nn.Linear):
        def forward(self, x):
            return super().forward(x.bfloat16())

    found = zl.gradient_x_input(Half(4, 2).bfloat16(), torch.randn(1, 4), target=0, baseline=zl.baseline.zeros())
    assert found.values.dtype == torch.float32
    assert found.resolution == torch.finfo(torch.bfloat16).eps


def test_the_seed_of_a_drawn_baseline_is_in_the_record():
    model, x = nn.Linear(4, 2), torch.randn(1, 4)
    assert zl.gradient_x_input(model, x, target=0, baseline=zl.baseline.noise(7)).seed == 7
    assert zl.gradient_x_input(model, x, target=0, baseline=zl.baseline.zeros()).seed is None


@pytest.mark.parametrize("site", [None, "vit.layers.1"])
@pytest.mark.parametrize("target", [zl.contrast("nine", "four"), zl.target.mix({9: 3.0, 4: -3.0})], ids=["contrast", "mix"])
def test_a_contrast_near_zero_is_rounded_by_units_of_its_logits(digits_vit, samples, target, site):
    """Two classes whose weights are almost one: rows in other company round otherwise, and that is no random number."""
    model = copy.deepcopy(digits_vit)
    with torch.no_grad():
        for part in (model.classifier.weight, model.classifier.bias):
            part[4] = part[9]
        model.classifier.weight[4, 0] += 1e-6
    x = torch.cat([s.inputs["pixel_values"] for s in samples[:6]])
    with torch.no_grad():
        together, alone = model(x).logits, torch.cat([model(one[None]).logits for one in x])
    assert not torch.equal(together[:, 9] - together[:, 4], alone[:, 9] - alone[:, 4])  # here they do
    found = zl.integrated_gradients(model, x, target=target, site=site, baseline=zl.baseline.black(), path="midpoint", n_steps=3)
    assert found.output.abs().max() < 1e-4
    assert found.execution.startswith("full" if site is None else "suffix after")


@pytest.mark.parametrize(
    ("target", "size"),
    [
        (0, 7.0),
        (zl.contrast(0, 1), 14.0),
        (zl.target.mix({0: 0.5, 1: -2.0}), 17.5),
        (zl.target.probability(1), 1.0),
        (zl.target.log_probability(1), 7.0),
        (lambda scores: scores[:, 1], 2.0),
    ],
)
def test_the_size_of_a_question_is_that_of_its_terms(target, size):
    scores = torch.tensor([[1.0, -2.0, -7.0]])
    question = put(nn.Identity(), scores, target=target)
    assert question.size.tolist() == pytest.approx([size])


def test_a_contrast_of_rows_that_mix_is_still_refused():
    class Mixed(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum(1) + x.mean(), x.sum(1)], 1)

    with pytest.raises(zl.errors.ModelStateError, match="mixes the samples"):
        zl.integrated_gradients(Mixed(), torch.randn(3, 4) + 2, target=zl.contrast(0, 1), baseline=zl.baseline.zeros())
