"""Our Captum classes against Captum's own, in float64: the same call, the same values.

Captum rounds its nodes and weights to float32 whatever the model's dtype. ``exactly`` runs it without that, so that nothing but float64 rounding is left
between the two; one test says how large the difference is with it.
"""

import inspect
from contextlib import contextmanager

import captum.attr
import pytest
import torch
from torch import nn
from torch.nn.modules import module as module_state

import zeroline as zl
from zeroline.compat import captum as ours
from zeroline.errors import BaselineError, InputError, ModelStateError, NotFoundError, SiteError, TargetError, UsageError, ZerolineError
from zeroline.testing.toys import Transformer

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients", "ignore:Multiple layers provided")
RULES = ["gausslegendre", "riemann_left", "riemann_middle", "riemann_right", "riemann_trapezoid"]
KINDS = ["IntegratedGradients", "LayerIntegratedGradients", "InputXGradient"]


@contextmanager
def exactly():
    """Captum with float64 nodes and weights."""
    single, kind = torch.Tensor.float, torch.get_default_dtype()
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.Tensor.float = single
        torch.set_default_dtype(kind)


def flat(found):
    if isinstance(found, torch.Tensor):
        return [found]
    return [tensor for part in found for tensor in flat(part)]


def same(mine, theirs, share=1e-11):
    """The same structure, shapes and dtypes, and values that differ by rounding."""
    assert type(mine) is type(theirs)
    if not isinstance(mine, torch.Tensor):
        assert len(mine) == len(theirs)
        return all(same(a, b, share) for a, b in zip(mine, theirs))
    assert mine.shape == theirs.shape
    assert mine.dtype == theirs.dtype
    assert not mine.requires_grad
    theirs = theirs.detach()
    return float((mine - theirs).abs().max()) <= share * max(1.0, float(theirs.abs().max()))


def moved(found):
    """Values that compare something: not all zero."""
    return all(float(tensor.abs().max()) > 1e-6 for tensor in flat(found))


class Bent(nn.Module):
    """Smooth, with a branch, on a tensor of any shape: [batch, ...] -> [batch, 4]."""

    def __init__(self, width, classes=4):
        super().__init__()
        self.first, self.act, self.side, self.last = nn.Linear(width, 6), nn.Tanh(), nn.Linear(width, 6), nn.Linear(6, classes)

    def forward(self, x, scale=1.0, shift=None):
        flat = x.flatten(1)
        h = self.act(self.first(flat)) * scale + self.side(flat).sigmoid()
        h = h if shift is None else h + shift
        return self.last(h)


class Pair(nn.Module):
    """A layer that takes two tensors and gives a tuple of two."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(2, 5)

    def forward(self, x, y):
        return torch.tanh(self.a(x)) + self.b(y), torch.sigmoid(self.b(y))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair, self.last = Pair(), nn.Linear(5, 3)

    def forward(self, x, y, power=1, mask=None):
        u, v = self.pair(x, y)
        out = self.last(u * v) ** power
        return out if mask is None else out * mask


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.last = nn.Embedding(11, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, ids):
        return self.last(torch.tanh(self.mix(self.embedding(ids))).mean(1))


class Picture(nn.Module):
    """A convolution on images that are not square."""

    def __init__(self, inplace=False):
        super().__init__()
        self.conv, self.relu, self.pool, self.last = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace), nn.MaxPool2d(2), nn.Linear(4 * 3 * 5, 4)

    def forward(self, x):
        return self.last(self.pool(self.relu(self.conv(x))).flatten(1))


def bent():
    return Bent(6).eval().double(), torch.randn(3, 2, 3).double()


def called(kind, *arguments):
    return getattr(captum.attr, kind)(*arguments), getattr(ours, kind)(*arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["__init__", "attribute"])
def test_arguments_begin_with_captums_in_its_order_with_its_defaults(kind, method):
    theirs, mine = (list(inspect.signature(getattr(getattr(module, kind), method)).parameters.values()) for module in (captum.attr, ours))
    assert [(p.name, p.default, p.kind) for p in theirs] == [(p.name, p.default, p.kind) for p in mine[: len(theirs)]]
    assert all(p.kind is p.KEYWORD_ONLY for p in mine[len(theirs) :])


@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("start", [None, 0.3, "one sample", "each"])
def test_values_and_delta_are_captums_for_every_rule_and_baseline(rule, multiply, start):
    model, x = bent()
    x0 = {"one sample": torch.randn(1, 2, 3).double(), "each": torch.randn(3, 2, 3).double()}.get(start, start)
    theirs, mine = called("IntegratedGradients", model, multiply)
    asked = dict(target=2, n_steps=7, method=rule, return_convergence_delta=True)
    with exactly():
        truth = theirs.attribute(x, x0, **asked)
    found = mine.attribute(x, x0, **asked)
    assert moved(found[0])
    assert same(found, truth)
    assert mine.multiplies_by_inputs is multiply
    assert mine.record.baseline == {None: "zeros", 0.3: "constant(0.3)"}.get(start, "given tensor")


def test_with_captums_own_rounding_the_difference_is_that_of_float32():
    model, x = bent()
    theirs, mine = called("IntegratedGradients", model)
    (a, da), (b, db) = (one.attribute(x, target=1, return_convergence_delta=True) for one in (theirs, mine))
    assert 1e-16 < float((a - b).abs().max()) < 1e-6 * float(a.abs().max())
    assert float((da - db).abs().max()) < 1e-6
    assert float(mine.record.error.abs().max()) < 1e-12, "50 Gauss-Legendre nodes on a smooth function: ours is exact"


TARGETS = {
    "an int": 1,
    "a negative int": -1,
    "a tensor of one": torch.tensor(2),
    "a tensor of one in a list's shape": torch.tensor([2]),
    "a tensor": torch.tensor([0, 3, 1]),
    "a list": [3, 0, 2],
    "a tuple of one": (1,),
    "a list of tuples": [(1,), (0,), (3,)],
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("kind", ["IntegratedGradients", "InputXGradient"])
def test_targets_of_all_kinds_are_captums(kind, target):
    model, x = bent()
    theirs, mine = called(kind, model)
    with exactly():
        truth = theirs.attribute(x, target=target)
    assert same(mine.attribute(x, target=target), truth)


@pytest.mark.parametrize("target", [(1, 0), (-1, 2), [(0, 1), (2, 2), (1, 0)]], ids=str)
def test_targets_in_outputs_of_more_dimensions_are_captums(target):
    x = bent()[1]
    net = Bent(6, 9).eval().double()
    function = lambda x: net(x).reshape(-1, 3, 3)  # noqa: E731
    theirs, mine = called("IntegratedGradients", function)
    with exactly():
        truth = theirs.attribute(x, target=target, n_steps=5)
    assert same(mine.attribute(x, target=target, n_steps=5), truth)
    assert mine.record.target[0] == f"output {target if isinstance(target, tuple) else target[0]}"


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 1)], ids=str)
def test_without_a_target_the_output_is_one_number_per_sample(shape):
    model, x = bent()
    theirs, mine = called("IntegratedGradients", lambda x: model(x)[:, 0].reshape(shape))
    with exactly():
        truth = theirs.attribute(x, n_steps=5)
    assert same(mine.attribute(x, n_steps=5), truth)


def test_tuples_of_inputs_and_baselines_and_further_arguments_are_captums():
    model, x, y = TwoInputs().eval().double(), torch.randn(4, 3).double(), torch.randn(4, 2).double()
    mask = torch.rand(4, 3).double()
    theirs, mine = called("IntegratedGradients", model)
    for starts in (None, (0.2, torch.randn(1, 2).double()), (torch.randn(4, 3).double(), 1)):
        asked = dict(baselines=starts, target=[0, 1, 2, 1], additional_forward_args=(2, mask), n_steps=9, return_convergence_delta=True)
        with exactly():
            truth = theirs.attribute((x, y), **asked)
        found = mine.attribute((x, y), **asked)
        assert moved(found[0])
        assert same(found, truth)
    assert mine.record.site == "input:x + input:y"
    assert mine.record.baseline == "given tensor, constant(1)"
    with exactly():
        truth = theirs.attribute((x,), target=1, additional_forward_args=y, n_steps=5)
    assert same(mine.attribute((x,), target=1, additional_forward_args=y, n_steps=5), truth), "a tuple of one stays a tuple"
    theirs, mine = called("InputXGradient", model)
    assert same(mine.attribute((x, y), 1, (2, mask)), theirs.attribute((x, y), 1, (2, mask)))
    assert same(mine.attribute((x,), 1, y), theirs.attribute((x,), 1, y)), "a tuple of one stays a tuple"


def test_images_that_are_not_square_and_batches_in_pieces():
    model, x = Picture().eval().double(), torch.randn(3, 3, 8, 12).double()
    theirs, mine = called("IntegratedGradients", model)
    for pieces in (None, 3, 7):
        with exactly():
            truth = theirs.attribute(x, 0.1, [0, 1, 2], n_steps=11, internal_batch_size=pieces)
        assert same(mine.attribute(x, 0.1, [0, 1, 2], n_steps=11, internal_batch_size=pieces), truth)
    passes = []
    hook = model.register_forward_hook(lambda module, given, output: passes.append(len(output)))
    mine.attribute(x, 0.1, [0, 1, 2], n_steps=11, internal_batch_size=7)
    hook.remove()
    assert max(passes) == 7


def test_half_precision_gives_captums_dtype_and_its_values_to_half_precision():
    model, x = bent()
    model, x = model.bfloat16(), x.bfloat16()
    theirs, mine = called("IntegratedGradients", model)
    a, b = theirs.attribute(x, target=1, n_steps=20), mine.attribute(x, target=1, n_steps=20)
    assert a.dtype == b.dtype == torch.float32
    assert float((a - b).abs().max()) < 0.03 * float(a.abs().max())
    theirs, mine = called("InputXGradient", model)
    assert same(mine.attribute(x, target=1), theirs.attribute(x, target=1), 0.01)


LAYERS = {
    "a linear layer": (bent, lambda m: m.first, 2),
    "a layer beside another": (bent, lambda m: m.side, 2),
    "two layers beside each other": (bent, lambda m: [m.first, m.side], 2),
    "a convolution": (lambda: (Picture().eval().double(), torch.randn(2, 3, 8, 12).double()), lambda m: m.conv, [1, 3]),
    "a layer that writes in place": (lambda: (Picture(inplace=True).eval().double(), torch.randn(2, 3, 8, 12).double()), lambda m: m.relu, [1, 3]),
    "ids at their embedding": (lambda: (Words().eval().double(), torch.randint(1, 11, (3, 5))), lambda m: m.embedding, 1),
}


@pytest.mark.parametrize("at_input", [False, True])
@pytest.mark.parametrize(("build", "layer", "target"), LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("around", [False, True], ids=["module", "function"])
def test_layers_are_captums(build, layer, target, at_input, around):
    model, x = build()
    if at_input and not x.is_floating_point():
        pytest.skip("ids have no gradient")
    if at_input and getattr(layer(model), "inplace", False):
        pytest.skip("Captum fails there: see test_layers_around_one_that_writes_in_place")
    function = (lambda given: model(given)) if around else model
    theirs, mine = called("LayerIntegratedGradients", function, layer(model))
    x0 = torch.zeros_like(x[:1]) if not x.is_floating_point() else 0.2 * torch.randn_like(x)
    for multiply in (True, False):
        theirs.ig._multiply_by_inputs = mine._multiply_by_inputs = multiply
        asked = dict(target=target, n_steps=6, return_convergence_delta=True, attribute_to_layer_input=at_input)
        with exactly():
            truth = theirs.attribute(x, x0, **asked)
        found = mine.attribute(x, x0, **asked)
        assert moved(found[0])
        assert same(found, truth)
    assert mine.record.baseline == "given tensor at the input"


@pytest.mark.parametrize("at_input", [False, True])
def test_layers_around_one_that_writes_in_place_where_captum_fails(at_input):
    model, x = Picture(inplace=True).eval().double(), torch.randn(2, 3, 8, 12).double()
    copied = Picture().eval().double()
    copied.load_state_dict(model.state_dict())
    before = "relu" if at_input else "conv"
    asked = dict(target=1, n_steps=6, attribute_to_layer_input=at_input, return_convergence_delta=True)
    with pytest.raises(RuntimeError, match="in-place operation"):
        captum.attr.LayerIntegratedGradients(model, getattr(model, before)).attribute(x, **asked)
    with exactly():
        truth = captum.attr.LayerIntegratedGradients(copied, getattr(copied, before)).attribute(x, **asked)
    assert same(ours.LayerIntegratedGradients(model, getattr(model, before)).attribute(x, **asked), truth)


@pytest.mark.parametrize("at_input", [False, True])
def test_a_layer_of_several_tensors_gives_a_tuple_as_captums(at_input):
    model, x, y = TwoInputs().eval().double(), torch.randn(4, 3).double(), torch.randn(4, 2).double()
    theirs, mine = called("LayerIntegratedGradients", model, model.pair)
    asked = dict(baselines=(0.1, 0.2), target=1, additional_forward_args=(3,), n_steps=6, attribute_to_layer_input=at_input)
    with exactly():
        truth = theirs.attribute((x, y), **asked)
    assert same(mine.attribute((x, y), **asked), truth)
    assert mine.record.site == ("input 0 of model.pair + input 1 of model.pair" if at_input else "pair[0] + pair[1]")
    listed, ours_listed = called("LayerIntegratedGradients", model, [model.pair])
    with exactly():
        truth = listed.attribute((x, y), **asked)
    assert same(ours_listed.attribute((x, y), **asked), truth), "a list of one layer stays a list"


def test_at_a_side_path_the_delta_is_captums_and_the_record_knows_the_error():
    model, x = Transformer().eval().double(), torch.randn(3, 5, 8).double()
    x0 = torch.full_like(x, 0.1) + 0.05 * torch.randn_like(x)
    theirs, mine = called("LayerIntegratedGradients", model, model.blocks[0].mlp)
    with exactly():
        truth = theirs.attribute(x, x0, 0, n_steps=30, return_convergence_delta=True)
    found = mine.attribute(x, x0, 0, n_steps=30, return_convergence_delta=True)
    assert same(found, truth)
    assert float(found[1].abs().min()) > 1e-2
    assert float(mine.record.error.abs().max()) < 1e-6
    assert torch.allclose(mine.record.reference_gap, found[1], atol=1e-6)


def test_only_the_part_after_a_layer_runs_along_the_path_in_a_function_too():
    class Counted(nn.Linear):
        def forward(self, x):
            runs.append(1)
            return super().forward(x)

    runs = []
    model, x = bent()
    model.first = Counted(6, 6).eval().double()
    mine = ours.LayerIntegratedGradients(lambda x: model(x).log_softmax(-1), model.last)
    mine.attribute(x, target=0, n_steps=30, internal_batch_size=3)
    assert mine.record.execution == "suffix after model.last"
    assert mine.record.settings["internal_batch_size"] == 3
    assert len(runs) < 12


def test_adaptive_is_zerolines_path_with_its_tolerances():
    model, x = Picture().eval().double(), torch.randn(3, 3, 8, 12).double()
    mine = ours.IntegratedGradients(model)
    found = mine.attribute(x, target=1, method="adaptive", tolerance=1e-4, local_tolerance=1e-3)
    truth = zl.integrated_gradients(model, x, target=1, baseline=zl.baseline.zeros(), tolerance=1e-4, local_tolerance=1e-3)
    assert torch.equal(found, truth.values)
    assert float(mine.record.relative_error.max()) < 1e-4
    assert mine.record.stopped == ("tolerance",) * 3
    raw = ours.IntegratedGradients(model, multiply_by_inputs=False)
    assert torch.allclose(raw.attribute(x, target=1, method="adaptive", tolerance=1e-4, local_tolerance=1e-3) * x, found, atol=1e-12)
    layer = ours.LayerIntegratedGradients(model, model.conv)
    layer.attribute(x, target=1, method="adaptive", tolerance=1e-4)
    assert float(layer.record.relative_error.max()) < 1e-4


def test_the_record_says_what_was_asked_and_of_which_model():
    model, x = bent()
    direct, around, layer = (
        ours.IntegratedGradients(model),
        ours.IntegratedGradients(lambda x: model(x)),
        ours.LayerIntegratedGradients(model, model.first),
    )
    with pytest.raises(UsageError, match="no record yet"):
        direct.record  # noqa: B018
    direct.attribute(x, target=2)
    around.attribute(x, target=2)
    layer.attribute(x, target=2)
    truth = zl.integrated_gradients(model, x, target=2, baseline=zl.baseline.zeros(), path="gausslegendre")
    assert direct.record.target == ("output 2",) * 3
    assert direct.record.model_id == around.record.model_id == layer.record.model_id == truth.model_id
    assert (direct.record.site, around.record.site, layer.record.site) == ("input:x", "input:arg0", "first")
    assert layer.record.baseline == "zeros at the input"
    assert torch.allclose(direct.record.output, truth.output)
    for one in (direct, layer):
        for wrong, error in ((dict(target=9), TargetError), (dict(target=1, baselines=(0, 0)), BaselineError)):
            one.attribute(x, target=2)
            with pytest.raises(error):
                one.attribute(x, **wrong)
            with pytest.raises(UsageError, match="no record yet"):
                one.record  # noqa: B018
    layer.attribute(x, target=2, attribute_to_layer_input=True)
    assert (layer.record.site, layer.record.execution) == ("input of model.first", "full")


def test_the_record_of_captums_trapezoid_says_what_its_weights_leave_out():
    model, x = bent()
    mine = ours.IntegratedGradients(model)
    mine.attribute(x, target=1, n_steps=4, method="riemann_trapezoid")
    record = mine.record
    truth = zl.integrated_gradients(model, x, target=1, baseline=zl.baseline.zeros(), path="trapezoid", n_steps=4)
    assert torch.allclose(record.total, 0.75 * truth.total)
    assert torch.allclose(record.budget["short weights"], -0.25 * truth.total)
    assert torch.allclose(sum(record.budget.values()), record.error)


def test_labels_of_the_model_are_in_the_record(digits_vit, samples):
    pixels = samples[3].inputs["pixel_values"]
    mine = ours.IntegratedGradients(digits_vit)  # its output is no tensor: the logits are read
    found = mine.attribute(pixels, -1.0, target=9, n_steps=6)
    assert mine.record.target == ("output 9 (nine)",)
    theirs = captum.attr.IntegratedGradients(lambda pixels: digits_vit(pixels).logits).attribute(pixels, -1.0, target=9, n_steps=6)
    assert float((found - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


def test_captums_tutorial_on_a_text_classifier_runs_as_it_stands():
    from transformers import BertConfig, BertForSequenceClassification

    size = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=2, vocab_size=30, initializer_range=0.5)
    model = BertForSequenceClassification(BertConfig(**size)).eval().double()

    def probability(ids, token_type_ids=None, position_ids=None, attention_mask=None):
        return model(ids, token_type_ids=token_type_ids, position_ids=position_ids, attention_mask=attention_mask).logits.softmax(1)[:, 0]

    ids = torch.randint(5, 30, (2, 7))
    kinds, places, mask = torch.zeros(2, 7).long(), torch.arange(7).expand(2, 7), torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    for layer in (model.bert.embeddings, model.bert.embeddings.word_embeddings, model.bert.encoder.layer[0].attention.output):
        theirs, mine = called("LayerIntegratedGradients", probability, layer)
        asked = dict(
            inputs=ids, baselines=torch.zeros_like(ids), additional_forward_args=(kinds, None, mask), n_steps=8, return_convergence_delta=True
        )
        with exactly():
            truth = theirs.attribute(**asked)
        found = mine.attribute(**asked)
        assert moved(found[0])
        assert same(found, truth)
        assert same(mine.attribute(**asked | {"additional_forward_args": (kinds, places, mask)}), truth)
    assert mine.record.site == "model.bert.encoder.layer.0.attention.output"


def test_random_numbers_that_a_function_draws_are_given_back():
    model, x = bent()
    before = torch.get_rng_state()
    ours.IntegratedGradients(lambda x: model(x + 0 * torch.randn_like(x))).attribute(x, target=1, n_steps=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_functions_of_two_models_and_of_none():
    one, two, x = Bent(6).eval().double(), Bent(6).eval().double(), torch.randn(3, 6).double()
    both = lambda x: one(x) * two(x)  # noqa: E731
    theirs, mine = called("IntegratedGradients", both)
    with exactly():
        truth = theirs.attribute(x, target=1, n_steps=6)
    assert same(mine.attribute(x, target=1, n_steps=6), truth)
    assert mine.record.model_class.count("Bent") == 2
    assert len(mine.record.weights()) == 16
    part_first = ours.IntegratedGradients(lambda x: one.first(x)[:, :4] * one(x))  # a part of the model is called before the whole
    part_first.attribute(x, target=1, n_steps=3)
    assert part_first.record.model_id == zl.gradient_x_input(one, x, target=1, baseline=zl.baseline.zeros()).model_id
    theirs, mine = called("IntegratedGradients", lambda x: (x**3).sum(1))
    with exactly():
        truth = theirs.attribute(x, n_steps=6)
    assert same(mine.attribute(x, n_steps=6), truth)
    assert "no module" in mine.record.model_class


def state(model, x):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.modules()]
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()] + [m.training for m in model.modules()]
    return (
        hooks,
        flags,
        len(module_state._global_forward_pre_hooks),
        x.requires_grad,
        x.grad,
        torch.get_rng_state().tolist(),
        model.state_dict().keys(),
    )


class Fails(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.inner, self.left = Bent(6), after

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of order")
        return self.inner(x)


@pytest.mark.parametrize("around", [False, True], ids=["module", "function"])
@pytest.mark.parametrize("after", [0, 1, 3, 100])
@pytest.mark.parametrize("how", ["inputs", "layer", "layer input", "gradient"])
def test_nothing_is_changed_in_the_model_whatever_happens(how, after, around):
    model, x = Fails(after).eval().double(), torch.randn(3, 6).double().requires_grad_()
    model.inner.last.weight.requires_grad_(False)
    before = state(model, x)
    function = (lambda x: model(x)) if around else model
    layer = ours.LayerIntegratedGradients(function, model.inner.first)
    calls = {
        "inputs": lambda: ours.IntegratedGradients(function).attribute(x, target=1, n_steps=20, internal_batch_size=6),
        "layer": lambda: layer.attribute(x, target=1, n_steps=20, internal_batch_size=6),
        "layer input": lambda: layer.attribute(x, target=1, n_steps=20, internal_batch_size=6, attribute_to_layer_input=True),
        "gradient": lambda: ours.InputXGradient(function).attribute(x, target=1),
    }
    try:
        calls[how]()
    except (RuntimeError, ZerolineError) as problem:
        assert after < 100, problem
    else:
        assert after > 1
    assert state(model, x) == before


def test_a_model_that_would_learn_while_it_is_explained_is_refused_and_stays():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).train()
    before = model[1].running_mean.clone()
    for function in (model, lambda x: model(x)):
        with pytest.raises(ModelStateError, match="training mode"):
            ours.IntegratedGradients(function).attribute(torch.randn(5, 4), target=0)
    assert torch.equal(model[1].running_mean, before)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.spare = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


def at_layer(model, layer, **asked):
    return ours.LayerIntegratedGradients(model, layer).attribute(torch.randn(3, 6), target=0, **asked)


ERRORS = {
    "two baselines for one input": (lambda m, x: ours.IntegratedGradients(m).attribute(x, (0, 0), 0), BaselineError, "2 baselines"),
    "a baseline of another shape": (
        lambda m, x: ours.IntegratedGradients(m).attribute(x, torch.zeros(2, 6), 0),
        BaselineError,
        r"possible: \(3, 6\)",
    ),
    "a baseline in words": (lambda m, x: ours.IntegratedGradients(m).attribute(x, "black", 0), BaselineError, "of type str"),
    "a rule that is none": (lambda m, x: ours.IntegratedGradients(m).attribute(x, target=0, method="simpson"), NotFoundError, "riemann_middle"),
    "ids as inputs": (lambda m, x: ours.IntegratedGradients(m).attribute(x.long(), target=0), InputError, "holds integers"),
    "inputs in a list": (lambda m, x: ours.IntegratedGradients(m).attribute([x], target=0), InputError, "not list"),
    "no target where one is needed": (lambda m, x: ours.IntegratedGradients(m).attribute(x), TargetError, "leaves 4 numbers"),
    "a target too far": (lambda m, x: ours.IntegratedGradients(m).attribute(x, target=4), TargetError, "target 4 was asked"),
    "too few targets": (lambda m, x: ours.IntegratedGradients(m).attribute(x, target=[0, 1]), TargetError, "2 targets .* batch of 3"),
    "a target of two dimensions": (
        lambda m, x: ours.IntegratedGradients(m).attribute(x, target=torch.zeros(3, 1).long()),
        TargetError,
        r"shape \(3, 1\)",
    ),
    "a target in words": (lambda m, x: ours.InputXGradient(m).attribute(x, "top"), TargetError, "possible: None, an int"),
    "samples that mix": (
        lambda m, x: ours.IntegratedGradients(lambda x: m(x - x.mean(0))).attribute(x, target=0),
        ModelStateError,
        "mixes the samples",
    ),
    "no function": (lambda m, x: ours.IntegratedGradients("resnet"), UsageError, "not str"),
    "several devices": (lambda m, x: ours.LayerIntegratedGradients(m, m.first, [0, 1]), UsageError, "give model.module"),
    "a model in parallel": (lambda m, x: ours.IntegratedGradients(nn.DataParallel(m)), UsageError, "give model.module"),
    "a layer by name": (lambda m, x: ours.LayerIntegratedGradients(m, "first"), UsageError, "not 'first'"),
    "arguments for autograd": (lambda m, x: at_layer(m, m.first, grad_kwargs={"allow_unused": True}), UsageError, "leave it out"),
    "a layer that runs twice": (lambda m, x: at_layer(t := Twice().eval(), t.layer), SiteError, "called 2 times"),
    "a layer that never runs": (lambda m, x: at_layer(t := Twice().eval(), t.spare), SiteError, "called 0 times"),
    "a layer on ids": (
        lambda m, x: ours.LayerIntegratedGradients(w := Words().eval(), w.embedding).attribute(
            x.long().abs(), target=0, attribute_to_layer_input=True
        ),
        SiteError,
        "torch.int64",
    ),
}


@pytest.mark.parametrize(("call", "error", "says"), ERRORS.values(), ids=ERRORS.keys())
def test_what_is_not_possible_is_said_in_one_error(call, error, says):
    model = Bent(6).eval()
    with pytest.raises(error, match=says):
        call(model, torch.randn(3, 6))
