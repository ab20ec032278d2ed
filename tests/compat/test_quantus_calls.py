"""Quantus' own metrics with ``explain_func``: they call it, and what they find is what the values say."""

import numpy as np
import pytest
import torch
from torch import nn

import zeroline as zl
from only import plain
from zeroline.compat.quantus import explain_func
from zeroline.errors import BaselineError, InputError, ModelStateError, NotFoundError, SiteError, TargetError, UsageError

quantus = pytest.importorskip("quantus", reason="installed by make test")
QUIET = dict(disable_warnings=True, display_progressbar=False)


class Corner(nn.Module):
    """Reads the upper right quarter of an image of one channel, class k with weight k + 1, through a layer; [batch, 1, 8, 12] -> [batch, 3]."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2, stride=2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.ones(2, 1, 2, 2))
            self.conv.bias.zero_()

    def forward(self, x):
        corner = torch.tanh(0.1 * self.conv(x))[:, :, :2, 3:].sum((1, 2, 3))
        return corner[:, None] * torch.arange(1, 4, device=x.device)


def linear(channels=1):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 6 * 8, 3)).eval()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 6 * 8, 3)).eval()


def images(channels=1, count=4):
    return np.random.default_rng(0).normal(size=(count, channels, 6, 8)).astype(np.float32), np.array([0, 1, 2, 1][:count])


def asked(**more):
    return {"method": "integrated_gradients", "baseline": "zeros", **more}


def test_values_of_a_linear_model_are_perfectly_faithful_and_those_of_another_class_are_not():
    model, (x, y) = linear(), images()
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=30, subset_size=12, perturb_baseline=0.0, abs=False, normalise=False, return_aggregate=False, **QUIET
    )
    call = dict(model=model, x_batch=x, y_batch=y, device="cpu", softmax=False)
    found = metric(**call, explain_func=explain_func, explain_func_kwargs=asked())
    assert np.allclose(found, 1, atol=1e-5)
    other = metric(**call, explain_func=lambda **given: explain_func(**{**given, "targets": (given["targets"] + 1) % 3}), explain_func_kwargs=asked())
    assert max(other) < 0.9


METRICS = {
    "Sparseness": dict(),
    "Complexity": dict(),
    "PixelFlipping": dict(features_in_step=8, perturb_baseline=0.0),
    "Selectivity": dict(patch_size=2, perturb_baseline=0.0),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_find_in_explain_func_what_they_find_in_our_values(name):
    model, (x, y) = network(), images()
    metric = getattr(quantus, name)(**METRICS[name], **QUIET)
    record = zl.integrated_gradients(model, torch.from_numpy(x), target=y.tolist(), baseline=zl.baseline.zeros())
    call = dict(model=model, x_batch=x, y_batch=y, device="cpu")
    mine = metric(**call, a_batch=None, explain_func=explain_func, explain_func_kwargs=asked())
    assert np.allclose(mine, metric(**call, a_batch=record.values.numpy()))
    assert not np.allclose(mine, metric(**call, a_batch=record.values.numpy()[:, :, ::-1, ::-1].copy() ** 3))


def test_randomised_models_and_disturbed_inputs_are_explained_again():
    model, (x, y) = network(), images()
    call = dict(model=model, x_batch=x, y_batch=y, device="cpu", explain_func=explain_func, explain_func_kwargs=asked(tolerance=0.1))
    np.random.seed(0)
    likeness = quantus.MPRT(**QUIET)(**call)
    assert likeness["original"] == pytest.approx([1, 1, 1, 1], abs=1e-6)
    assert max(map(max, (value for name, value in likeness.items() if name != "original"))) < 0.95
    near, far = (quantus.MaxSensitivity(nr_samples=3, lower_bound=bound, **QUIET)(**call) for bound in (1e-4, 0.5))
    assert max(near) < 0.01 < min(far)


def test_evaluate_takes_methods_by_zerolines_names():
    model, (x, y) = network(), images()
    found = quantus.evaluate(
        metrics={"Sparseness": quantus.Sparseness(**QUIET)},
        xai_methods={"integrated_gradients": explain_func, "gradient_x_input": explain_func},
        model=model,
        x_batch=x,
        y_batch=y,
        explain_func_kwargs={"baseline": "zeros"},
        call_kwargs={"call": {"device": "cpu"}},
    )
    one, two = (found[name]["Sparseness"] for name in ("integrated_gradients", "gradient_x_input"))
    assert len(one) == 4
    assert not np.allclose(one, two)


def test_channels_are_summed_as_quantus_sums_them():
    model, (x, y) = linear(3), images(3)
    truth = x * model[1].weight.detach().numpy()[y].reshape(x.shape)
    assert np.allclose(explain_func(model=model, inputs=x, targets=y, **asked()), truth.sum(1, keepdims=True), atol=1e-5)
    assert np.allclose(explain_func(model=model, inputs=x, targets=y, **asked(reduce_axes=())), truth, atol=1e-5)
    assert np.allclose(explain_func(model=model, inputs=x, targets=y, **asked(reduce_axes=(1, 2), keepdims=False)), truth.sum((1, 2)), atol=1e-5)
    table = nn.Linear(5, 3).eval()
    rows = np.random.default_rng(1).normal(size=(4, 5))
    found = explain_func(model=table, inputs=rows, targets=y, **asked())
    assert found.dtype == np.float32
    assert np.allclose(found, rows * table.weight.detach().numpy()[y], atol=1e-5)


@pytest.mark.parametrize(
    ("given", "x0"),
    [("zeros", 0), (0.5, 0.5), ("constant(0.5)", 0.5), (zl.baseline.constant(0.5), 0.5), (np.full((1, 1, 6, 8), 0.5), 0.5)],
    ids=plain,
)
def test_baselines_are_words_numbers_arrays_and_records(given, x0):
    model, (x, y) = linear(), images()
    found = explain_func(model=model, inputs=x, targets=y, method="gradient_x_input", baseline=given)
    assert np.allclose(found, (x - x0) * model[1].weight.detach().numpy()[y].reshape(x.shape), atol=1e-5)


def test_options_of_the_method_come_by_name_or_as_xai_lib_kwargs():
    model, (x, y) = network(), images()
    coarse = dict(path="riemann", n_steps=1)
    one, two = (
        explain_func(model=model, inputs=x, targets=y, **asked(**coarse)),
        explain_func(model=model, inputs=x, targets=y, **asked(xai_lib_kwargs=coarse)),
    )
    truth = zl.integrated_gradients(model, torch.from_numpy(x), target=y.tolist(), baseline=zl.baseline.zeros(), **coarse).values.numpy()
    assert np.array_equal(one, two)
    assert np.allclose(one, truth)
    assert not np.allclose(one, explain_func(model=model, inputs=x, targets=y, **asked()), atol=1e-3)


def test_maps_of_a_layer_lie_where_the_layer_looks():
    model, x = Corner().eval(), np.abs(np.random.default_rng(0).normal(size=(3, 1, 8, 12))).astype(np.float32)
    for method in ("integrated_gradients", "layer_cam"):
        found = explain_func(model=model, inputs=x, targets=2, method=method, site="conv", baseline="zeros")
        assert found.shape == (3, 1, 8, 12)
        assert (found[:, 0, :3, 7:] > 0).all()
        assert np.abs(found[:, 0, 5:, :5]).max() == 0


def test_routes_through_attentions_give_the_map_that_their_record_has(digits_vit, samples):
    x = torch.cat([one.inputs["pixel_values"] for one in samples[:2]])
    found = explain_func(model=digits_vit, inputs=x.numpy(), targets=np.array([7, 6]), method="attention_relevance")
    grid = zl.attention_relevance(digits_vit, x, target=[7, 6]).grid()
    assert np.allclose(found, nn.functional.interpolate(grid[:, None], (64, 64), mode="bilinear").numpy(), atol=1e-6)
    metric = quantus.Sparseness(**QUIET)
    seen = metric(
        model=digits_vit,
        x_batch=x.numpy(),
        y_batch=np.array([7, 6]),
        explain_func=explain_func,
        explain_func_kwargs={"method": "grad_eclip"},
        device="cpu",
    )
    assert all(0 < one < 1 for one in seen)


def ask(model=None, x=None, y=None, **more):
    model, (images_, classes) = model or linear(), images()
    return explain_func(model=model, inputs=images_ if x is None else x, targets=classes if y is None else y, **more)


ERRORS = {
    "no baseline": (lambda: ask(), UsageError, "there is no default"),
    "a method that is none": (lambda: ask(method="IntegratedGradients", baseline=0), NotFoundError, "nearest: integrated_gradients"),
    "an option that is none": (lambda: ask(baseline=0, steps=5), NotFoundError, "n_steps"),
    "a baseline for a route": (lambda: ask(method="grad_eclip", baseline="zeros"), UsageError, "mean nothing to grad_eclip"),
    "black of a model without normalisation": (
        lambda: ask(x=np.zeros((4, 3, 6, 8)), baseline="black", model=linear(3)),
        BaselineError,
        "normalisation",
    ),
    "classes that are no whole numbers": (lambda: ask(y=np.array([0.0, 1, 2, 1]), baseline=0), TargetError, "float64"),
    "too few classes": (lambda: ask(y=np.array([0, 1]), baseline=0), TargetError, "for 4 inputs"),
    "another device": (lambda: ask(baseline=0, device="meta"), InputError, "model.to"),
    "a model in training": (lambda: ask(nn.Sequential(nn.Dropout(), linear()), baseline=0), ModelStateError, "training mode"),
    "a function": (lambda: ask(lambda x: x, baseline=0), UsageError, "not function"),
    "a sum over the batch": (lambda: ask(baseline=0, reduce_axes=(0,)), UsageError, "the batch"),
    "a layer of a table": (
        lambda: ask(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).eval(), x=np.ones((4, 5)), baseline=0, site="0"),
        SiteError,
        "no place on inputs",
    ),
}


@pytest.mark.parametrize(("call", "error", "says"), ERRORS.values(), ids=ERRORS.keys())
def test_what_is_not_possible_is_said_in_one_error(call, error, says):
    with pytest.raises(error, match=says):
        call()
