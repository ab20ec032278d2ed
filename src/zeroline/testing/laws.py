"""What must hold for every attribution method on every model: the laws, each a function that raises on a breach.

A law gets a ``Case`` and asserts. Laws compare with closed forms, with the same method on a changed question, or
with the model as it was before; none compares with the method's own stored output.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zeroline import baseline as baselines
from zeroline.attribution import Attribution
from zeroline.errors import ModelStateError, NonFiniteError
from zeroline.target import logit
from zeroline.testing.toys import Flat, Toy, Transformer, made

Method = Callable[..., Attribution]


@dataclass(frozen=True)
class Case:
    """One method on one toy at one site. ``tolerance`` is the relative error claimed, None where none is."""

    method: Method
    toy: Toy
    site: str | None
    tolerance: float | None

    def build(self) -> tuple[nn.Module, Any]:
        return made(self.toy)

    def __call__(self, model: nn.Module, inputs: Any, **changes: Any) -> Attribution:
        asked: dict[str, Any] = {"target": logit([0, 2]), "site": self.site, "baseline": baselines.zeros()}
        return self.method(model, inputs, **(asked | changes))

    def close(self, a: Tensor, b: Tensor) -> bool:
        loose = 5e-2 if self.toy.dtype == torch.bfloat16 else 1e-4
        scale = float(b.abs().max()) or 1.0
        return a.shape == b.shape and float((a.double() - b.double()).abs().max()) <= loose * scale


def values_look_like_the_features(case: Case) -> None:
    model, inputs = case.build()
    found = case(model, inputs)
    seen = _features(model, inputs, found.site)
    assert found.values.shape == seen.shape, f"values {tuple(found.values.shape)}, features {tuple(seen.shape)}"
    assert found.values.dtype == seen.dtype
    assert found.values.device == seen.device


def the_record_adds_up(case: Case) -> None:
    model, inputs = case.build()
    found = case(model, inputs)
    total = found.values.double().flatten(1).sum(1)
    assert torch.allclose(found.total, total)
    assert torch.allclose(found.error, total - (found.output - found.baseline_output))
    if found.budget:
        parts = torch.stack(list(found.budget.values())).sum(0)
        scale = float(torch.stack(list(found.budget.values())).abs().max()) + float(found.output.abs().max())
        assert float((parts - found.error).abs().max()) <= 1e-9 * scale, (
            f"the budget adds up to {parts.tolist()}, the error is {found.error.tolist()}"
        )
    bare = _logits(model, inputs).double()
    bare = bare[torch.arange(2), torch.tensor([0, 2])]
    kernels = 32 * torch.finfo(case.toy.dtype).eps * float(bare.abs().max())  # kernels with and without gradients round differently
    assert float((found.output - bare).abs().max()) <= kernels, f"f(x) is {found.output.tolist()}, the model gives {bare.tolist()}"


def f_of_the_baseline_is_the_model_with_the_features_replaced(case: Case) -> None:
    """Against a plain hook of the test's own, for baselines at the site and at the input, asked twice."""
    model, inputs = case.build()
    picked = (torch.arange(2), torch.tensor([0, 2]))
    chosen = [baselines.constant(0.25)]
    if case.toy.name != "words":
        chosen.append(baselines.constant(0.25, at="input"))
    for baseline in chosen * 2:
        found = case(model, inputs, baseline=baseline)
        other = _filled(inputs, found.site) if baseline.at == "input" else None
        z0 = torch.full_like(found.values, 0.25) if other is None else _features(model, other, found.site)
        replaced = _replaced_scores(model, inputs, found.site, z0)[picked].double()
        assert case.close(found.baseline_output, replaced), f"f(do) is {found.baseline_output.tolist()}, the replaced model gives {replaced.tolist()}"
        if other is not None and found.reference_output is not None:
            assert case.close(found.reference_output, _logits(model, other)[picked].double()), "f(x0) is not the model's output on x0"


def sums_are_complete_where_claimed(case: Case) -> None:
    if case.tolerance is None:
        return
    model, inputs = case.build()
    found = case(model, inputs)
    rounding = 0.1 if case.toy.dtype == torch.bfloat16 else 1e-6
    allowed = case.tolerance * found.difference.abs() + rounding
    assert bool((found.error.abs() <= allowed).all()), f"error {found.error.tolist()} of difference {found.difference.tolist()}"


def a_constant_model_gets_zeros(case: Case) -> None:
    model, inputs = case.build()
    for parameter in list(model.parameters())[-2:]:  # the head: weight and bias
        parameter.data = torch.zeros_like(parameter) if parameter.ndim > 1 else torch.ones_like(parameter)
    found = case(model, inputs)
    assert not bool(found.values.any())
    assert found.relative_error is None
    assert found.relative_error_reason


def a_batch_equals_its_samples(case: Case) -> None:
    model, inputs = case.build()
    together = case(model, inputs)
    for index, target in enumerate((0, 2)):
        alone = case(model, _row(inputs, index), target=target)
        assert case.close(alone.values[0], together.values[index]), f"sample {index} differs when alone"


def the_same_question_gets_the_same_answer(case: Case) -> None:
    model, inputs = case.build()
    assert torch.equal(case(model, inputs).values, case(model, inputs).values)


def the_callers_grad_mode_does_not_matter(case: Case) -> None:
    model, inputs = case.build()
    truth = case(model, inputs).values
    with torch.no_grad():
        assert torch.equal(case(model, inputs).values, truth)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(case(model, inputs).values, truth)


def the_model_is_left_as_it_was(case: Case) -> None:
    model, inputs = case.build()
    first = next(iter(model.parameters()))
    first.requires_grad_(False)
    first.grad = torch.ones_like(first)
    next(module for module in model.modules() if not list(module.children())).train()
    before, output = fingerprint(model), _logits(model, inputs)
    case(model, inputs)
    assert fingerprint(model) == before, "something in the model changed"
    assert torch.equal(_logits(model, inputs), output)


def the_model_is_left_as_it_was_after_an_error(case: Case) -> None:
    model, inputs = case.build()
    before = fingerprint(model)

    class Interrupted(Exception):
        pass

    for calls in range(1, 100):
        remaining = [calls]

        def target(output: Any, remaining: list[int] = remaining) -> Tensor:
            remaining[0] -= 1
            if remaining[0] == 0:
                raise Interrupted
            return _scores(output)[:, 0]

        try:
            case(model, inputs, target=target)
        except Interrupted:
            pass
        else:
            return  # the method was through before this pass
        assert fingerprint(model) == before, f"something in the model changed by an error in pass {calls}"


def the_model_is_left_as_it_was_after_an_error_inside_it(case: Case) -> None:
    model, inputs = case.build()
    before = fingerprint(model)
    last = [module for module in model.modules() if not list(module.children())][-1]
    original = type(last).forward

    class Interrupted(Exception):
        pass

    for calls in range(1, 100):
        remaining = [calls]

        def forward(self: Any, *args: Any, remaining: list[int] = remaining) -> Any:
            remaining[0] -= self is last
            if remaining[0] == 0 and self is last:
                raise Interrupted
            return original(self, *args)

        type(last).forward = forward
        try:
            case(model, inputs)
        except Interrupted:
            pass
        else:
            return  # the method was through before this call
        finally:
            type(last).forward = original
        assert fingerprint(model) == before, f"something in the model changed by an error in call {calls} of its last module"


def records_survive_saving(case: Case) -> None:
    model, inputs = case.build()
    found = case(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        found.save(path)
        again = Attribution.load(path)
        assert sorted(p.name for p in Path(folder).iterdir()) == ["a.safetensors"]
    assert torch.equal(again.values, found.values)
    assert again.to_dict() == found.to_dict()
    assert repr(again) == repr(found)


def repeating_does_not_grow_memory(case: Case) -> None:
    model, inputs = case.build()
    case(model, inputs)
    before = live_tensors()
    for _ in range(3):
        case(model, inputs)
    assert live_tensors() <= before + 2, "tensors stay alive after the call"


def a_training_model_with_dropout_is_refused(case: Case) -> None:
    model, inputs = case.build()
    noisy = nn.Sequential()
    noisy.add_module("noisy", nn.Dropout(0.5))
    model.add_module("added", noisy)
    model.train()
    try:
        case(model, inputs)
    except ModelStateError as problem:
        assert "eval()" in str(problem)
        return
    raise AssertionError("a model that drops out at random was explained")


def nan_is_an_error_that_names_the_sample(case: Case) -> None:
    model, inputs = case.build()

    def target(output: Any) -> Tensor:
        scores = _scores(output)[:, 0]
        return torch.where(torch.arange(len(scores)) % 2 == 1, scores * float("nan"), scores)

    try:
        case(model, inputs, target=target)
    except NonFiniteError as problem:
        assert "sample 1" in str(problem)
        return
    raise AssertionError("NaN passed as an attribution")


def a_linear_model_gets_its_closed_form(method: Method) -> None:
    """a = w * (z - z0), from a non-zero baseline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, x, x0 = Flat().double(), torch.randn(2, 2, 3, 5).double(), torch.randn(2, 2, 3, 5).double()
    found = method(model, x, target=1, baseline=baselines.tensor(x0))
    truth = model.head.weight[1].view(2, 3, 5) * (x - x0)
    assert torch.allclose(found.values, truth, atol=1e-12)
    assert float(found.error.abs().max()) < 1e-12


def permuting_tokens_permutes_the_map(method: Method) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model, x = Transformer().double().eval(), torch.randn(1, 5, 8).double()
    order = torch.tensor([3, 0, 4, 1, 2])
    for site in (None, "blocks.0"):
        straight = method(model, x, target=0, site=site, baseline=baselines.zeros()).values
        permuted = method(model, x[:, order], target=0, site=site, baseline=baselines.zeros()).values
        assert torch.allclose(permuted, straight[:, order], atol=1e-9), f"at site {site}"


CASE_LAWS: tuple[Callable[[Case], None], ...] = (
    values_look_like_the_features,
    the_record_adds_up,
    f_of_the_baseline_is_the_model_with_the_features_replaced,
    sums_are_complete_where_claimed,
    a_constant_model_gets_zeros,
    a_batch_equals_its_samples,
    the_same_question_gets_the_same_answer,
    the_callers_grad_mode_does_not_matter,
    the_model_is_left_as_it_was,
    the_model_is_left_as_it_was_after_an_error,
    the_model_is_left_as_it_was_after_an_error_inside_it,
    records_survive_saving,
    repeating_does_not_grow_memory,
    a_training_model_with_dropout_is_refused,
    nan_is_an_error_that_names_the_sample,
)
METHOD_LAWS: tuple[Callable[[Method], None], ...] = (a_linear_model_gets_its_closed_form, permuting_tokens_permutes_the_map)


def _scores(output: Any) -> Tensor:
    return output["logits"] if isinstance(output, Mapping) else output  # type: ignore[no-any-return]


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@torch.no_grad()
def _logits(model: nn.Module, inputs: Any) -> Tensor:
    return _scores(_call(model, inputs))


def _row(inputs: Any, index: int) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[index : index + 1]
    if isinstance(inputs, Mapping):
        return {name: value[index : index + 1] for name, value in inputs.items()}
    return tuple(value[index : index + 1] for value in inputs)


def _features(model: nn.Module, inputs: Any, site: str) -> Tensor:
    """The tensor at a site, read with a plain hook of the test's own."""
    if site.startswith("input:"):
        name = site.removeprefix("input:")
        return inputs[name] if isinstance(inputs, Mapping) else inputs[0] if isinstance(inputs, tuple) else inputs  # type: ignore[no-any-return]
    if site.startswith("attention:"):
        maps: list[Tensor] = []
        with _written_out(model.get_submodule(site.removeprefix("attention:")), _kept(maps)):
            _logits(model, inputs)
        return maps[0]
    name, _, call = site.partition("#")
    name, _, output = name.partition("[")
    seen: list[Any] = []
    hook = model.get_submodule(name).register_forward_hook(lambda m, a, o: seen.append(o))
    _logits(model, inputs)
    hook.remove()
    found = seen[int(call or 0)]
    return found if isinstance(found, Tensor) else found[int(output.rstrip("]") or 0)]


def _filled(inputs: Any, site: str) -> Any:
    """The inputs with the image or the features (the site's own input, or the first) at 0.25."""
    if isinstance(inputs, Tensor):
        return torch.full_like(inputs, 0.25)
    if isinstance(inputs, tuple):
        return (torch.full_like(inputs[0], 0.25), *inputs[1:])
    name = site.removeprefix("input:") if site.startswith("input:") else next(iter(inputs))
    return {**inputs, name: torch.full_like(inputs[name], 0.25)}


@torch.no_grad()
def _replaced_scores(model: nn.Module, inputs: Any, site: str, z0: Tensor) -> Tensor:
    """The model's scores with z0 at the site, by a hook of the test's own."""
    if site.startswith("input:"):
        changed = z0 if isinstance(inputs, Tensor) else (z0,) if isinstance(inputs, tuple) else {**inputs, site.removeprefix("input:"): z0}
        return _logits(model, changed)
    if site.startswith("attention:"):
        with _written_out(model.get_submodule(site.removeprefix("attention:")), lambda a: z0):
            return _logits(model, inputs)
    name, _, call = site.partition("#")
    name, _, output = name.partition("[")
    calls = [0]

    def put(module: nn.Module, arguments: Any, found: Any) -> Any:
        calls[0] += 1
        if calls[0] - 1 != int(call or 0):
            return None
        if isinstance(found, Tensor):
            return z0
        return tuple(z0 if i == int(output.rstrip("]")) else item for i, item in enumerate(found))

    hook = model.get_submodule(name).register_forward_hook(put)
    try:
        return _logits(model, inputs)
    finally:
        hook.remove()


def _kept(found: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def keep(attention: Tensor) -> Tensor:
        found.append(attention)
        return attention

    return keep


@contextmanager
def _written_out(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, fused attention inside ``module`` is softmax(q k^T) v with the map changed."""
    fused = functional.scaled_dot_product_attention

    def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return change((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)) @ v

    def enter(*_: Any) -> None:
        functional.__dict__["scaled_dot_product_attention"] = explicit

    def leave(*_: Any) -> None:
        functional.__dict__["scaled_dot_product_attention"] = fused

    hooks = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        functional.__dict__["scaled_dot_product_attention"] = fused
        for hook in hooks:
            hook.remove()


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that an explanation could leave changed."""
    modules = dict(model.named_modules())
    return {
        "weights": {n: (t.data_ptr(), t._version, t.clone().double().sum().item()) for n, t in model.state_dict().items()},
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "grad": {n: None if p.grad is None else (id(p.grad), p.grad.sum().item()) for n, p in model.named_parameters()},
        "training": {n: m.training for n, m in modules.items()},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for n, m in modules.items()},
        "forwards": {n: "forward" in m.__dict__ for n, m in modules.items()},
        "random": torch.get_rng_state().tolist(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "gradients": torch.is_grad_enabled(),
    }


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
