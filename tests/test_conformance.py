"""Every method of METHODS keeps every law on every toy model; and a method that breaks one is caught."""

import functools

import pytest
import torch

import zeroline as zl
from zeroline.methods import CAMS
from zeroline.testing import ConformanceError, check_method, check_route
from zeroline.testing.routes import ROUTE_TOYS
from zeroline.testing.toys import TOYS

CLAIMS = {"integrated_gradients": 0.0101}  # relative error claimed; the others claim none
GRIDS = [toy.name for toy in TOYS if not toy.name.startswith("mlp")]  # the CAM family needs positions
OFF = {
    "grad_cam": {"pool": False, "rectify": False},
    "layer_cam": {"rectify_gradient": False, "rectify": False},
    "odam": {"rectify": False},
    "difference_map": {},
}


@pytest.mark.parametrize("toy", [toy.name for toy in TOYS])
@pytest.mark.parametrize("name", sorted(set(zl.METHODS) - set(CAMS)))
def test_every_method_keeps_every_law(name, toy):
    held = check_method(zl.METHODS[name], tolerance=CLAIMS.get(name), toys=[toy])
    assert len(held) > 14


def test_every_member_of_the_cam_family_has_its_changes_off_somewhere_below():
    assert set(OFF) == set(CAMS)


@pytest.mark.parametrize("toy", GRIDS)
@pytest.mark.parametrize("name", CAMS)
def test_the_cam_family_keeps_every_law_as_published(name, toy):
    check_method(zl.METHODS[name], toys=[toy], linear=name == "difference_map")


@pytest.mark.parametrize("name", CAMS)
def test_the_cam_family_with_its_changes_off_has_the_closed_form_of_a_linear_model(name):
    check_method(functools.partial(zl.METHODS[name], **OFF[name]), toys=["linear", "convolutional"])


def test_averages_over_draws_keep_the_laws():
    def method(model, inputs, *, baseline, **asked):
        return zl.gradient_x_input(model, inputs, baseline=zl.baseline.distribution([baseline, baseline]), **asked)

    check_method(method, toys=["linear", "transformer", "mlp in bfloat16"])


@pytest.mark.parametrize("rule", ["gausslegendre", "midpoint", "trapezoid"])
def test_fixed_paths_keep_the_laws_too(rule):
    def method(model, inputs, **asked):
        return zl.integrated_gradients(model, inputs, path=rule, n_steps=200, **asked)

    check_method(method, tolerance=0.1, toys=["mlp", "transformer", "structured"])  # LayerNorm at zero is hard for equal steps


def test_a_closed_sum_keeps_the_laws_and_is_exact():
    def method(model, inputs, **asked):
        return zl.integrated_gradients(model, inputs, closure="discrete_gradient", tolerance=0.2, local_tolerance=1.0, **asked)

    check_method(method, tolerance=1e-5, toys=["mlp", "transformer"])


def _hides_part_of_its_error(model, inputs, **asked):
    from dataclasses import replace

    found = zl.gradient_x_input(model, inputs, **asked)
    return replace(found, budget={"truncation": found.error * 0.9 - 0.1})


def _scaled(model, inputs, **asked):
    from dataclasses import replace

    found = zl.integrated_gradients(model, inputs, **asked)
    return replace(found, parts={n: p * 1.5 for n, p in found.parts.items()})


def _leaves_a_hook(model, inputs, **asked):
    next(iter(model.modules())).register_forward_hook(lambda *_: None)
    return zl.gradient_x_input(model, inputs, **asked)


def _mixes_the_batch(model, inputs, **asked):
    from dataclasses import replace

    found = zl.gradient_x_input(model, inputs, **asked)
    return replace(found, parts={n: p.mean(0, keepdim=True).expand_as(p) for n, p in found.parts.items()})


def _draws_noise(model, inputs, **asked):
    from dataclasses import replace

    found = zl.gradient_x_input(model, inputs, **asked)
    return replace(found, parts={n: p + 1e-3 * torch.randn_like(p) for n, p in found.parts.items()})


@pytest.mark.parametrize(
    ("method", "law"),
    [
        (_scaled, "closed form"),
        (_hides_part_of_its_error, "closed form|adds up"),
        (_leaves_a_hook, "left as it was"),
        (_mixes_the_batch, "closed form|batch equals"),
        (_draws_noise, "closed form|same answer"),
    ],
)
def test_a_method_that_breaks_a_law_is_caught(method, law):
    with pytest.raises(ConformanceError, match=law):
        check_method(method, toys=["mlp"])


def test_a_sum_that_is_not_what_was_claimed_is_caught():
    with pytest.raises(ConformanceError, match="complete where claimed"):
        check_method(zl.gradient_x_input, tolerance=0.02, toys=["mlp"])


ROUTES = {
    "positive": zl.attention_relevance,
    "signed, largest head": lambda *a, **k: zl.attention_relevance(*a, **k, correction="signed", head_fusion="max"),
    "incomplete": lambda *a, **k: zl.attention_relevance(*a, **k, coverage="incomplete"),
    "bi-modal": lambda *a, **k: zl.attention_relevance(*a, **k, rule="chefer-bimodal"),
    "rollout": zl.rollout,
    "grad_eclip": zl.grad_eclip,
    "grad_eclip, variations": functools.partial(zl.grad_eclip, similarity="projected", relu="each", scale_over="all"),
    "attention_eclip": zl.attention_eclip,
    "attention_eclip, faithful": functools.partial(zl.attention_eclip, weights="attention"),
}


@pytest.mark.parametrize("toy", [toy.name for toy in ROUTE_TOYS])
@pytest.mark.parametrize("name", sorted(ROUTES))
def test_every_attention_route_keeps_every_law(name, toy):
    if "eclip" in name and toy == "two streams":
        pytest.skip("ECLIP looks at the keys of the last attention alone: one of the two sources")
    assert len(check_route(ROUTES[name], toys=[toy])) > 10


def _forgets_the_batch(model, inputs, **asked):
    from dataclasses import replace

    found = zl.attention_relevance(model, inputs, **asked)
    return replace(found, by_source={n: r.mean(0, keepdim=True).expand_as(r) for n, r in found.by_source.items()})


def _opens_a_parameter(model, inputs, **asked):
    found = zl.attention_relevance(model, inputs, **asked)
    next(iter(model.parameters())).requires_grad_(True)
    return found


@pytest.mark.parametrize(("route", "law"), [(_forgets_the_batch, "batch equals"), (_opens_a_parameter, "left as it was")])
def test_a_route_that_breaks_a_law_is_caught(route, law):
    with pytest.raises(ConformanceError, match=law):
        check_route(route, toys=["two streams"])


def test_the_last_block_written_again_with_one_head_is_not_the_original_model_and_is_caught():
    with pytest.raises(ConformanceError, match="f is the models own output"):
        check_route(functools.partial(zl.grad_eclip, heads="one"), toys=["transformer"])
