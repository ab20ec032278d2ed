"""What must hold for every attention route on every model: the laws of ``check_route``.

As for attributions, laws compare with the same route on a changed question, with a closed form, or with the model as it was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zeroline.errors import ModelStateError, NonFiniteError
from zeroline.relevance import Relevance
from zeroline.target import logit
from zeroline.testing.laws import fingerprint, live_tensors
from zeroline.testing.toys import CLASSES, Block, Toy, Transformer, made

Route = Callable[..., Relevance]


class Patches(nn.Module):
    """A class token beside patches of an image that is not square."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 7, 8))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(image), -1, -1), patches], 1) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        scores: Tensor = self.head(tokens[:, 0])
        return scores


class TwoStreams(nn.Module):
    """Words look at regions: self-attention, then cross-attention written out, then a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = Block()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, ids: Tensor, regions: Tensor) -> Tensor:
        words = self.block(self.embed(ids))
        seen = self.query(words) @ self.key(regions).transpose(-1, -2) / 8**0.5
        words = words + functional.softmax(seen, -1) @ self.value(regions)
        scores: Tensor = self.head(words.mean(1))
        return scores


ROUTE_TOYS: tuple[Toy, ...] = (
    Toy("transformer", Transformer, lambda: (torch.randn(2, 5, 8),), (None,)),
    Toy("patches", Patches, lambda: torch.randn(2, 3, 4, 6), (None,)),
    Toy("two streams", TwoStreams, lambda: {"ids": torch.randint(0, 11, (2, 4)), "regions": torch.randn(2, 6, 8)}, (None,)),
    Toy("patches in bfloat16", Patches, lambda: torch.randn(2, 3, 4, 6).bfloat16(), (None,), torch.bfloat16),
)


def _ask(route: Route, model: nn.Module, inputs: Any, **changes: Any) -> Relevance:
    return route(model, inputs, **({"target": logit([0, 2])} | changes))


def _row(inputs: Any, index: int) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[index : index + 1]
    return {n: t[index : index + 1] for n, t in inputs.items()} if isinstance(inputs, dict) else tuple(t[index : index + 1] for t in inputs)


def _call(model: nn.Module, inputs: Any) -> Tensor:
    with torch.enable_grad():
        found = model(**inputs) if isinstance(inputs, dict) else model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return found.detach()  # type: ignore[no-any-return]


def relevance_has_a_row_per_sample_and_a_number_per_token(route: Route, toy: Toy) -> None:
    model, inputs = made(toy)
    found = _ask(route, model, inputs)
    counts = {"transformer": {"tokens": 5}, "two streams": {"ids": 4, "regions": 6}}.get(toy.name, {"image": 7})
    assert {name: tuple(r.shape) for name, r in found.by_source.items()} == {name: (2, n) for name, n in counts.items()}
    assert all(r.dtype == torch.promote_types(toy.dtype, torch.float32) and bool(r.isfinite().all()) for r in found.by_source.values())
    if toy.name.startswith("patches"):
        assert found.grid("image").shape == (2, 2, 3)


def f_is_the_models_own_output_bit_for_bit(route: Route, toy: Toy) -> None:
    model, inputs = made(toy)
    own = _call(model, inputs)[torch.arange(2), torch.tensor([0, 2])]
    assert torch.equal(_ask(route, model, inputs).output, own.double())


def a_batch_equals_its_samples(route: Route, toy: Toy) -> None:
    model, inputs = made(toy)
    together = _ask(route, model, inputs)
    for index, target in enumerate((0, 2)):
        alone = _ask(route, model, _row(inputs, index), target=target)
        for name, r in together.by_source.items():
            loose = 5e-2 if toy.dtype == torch.bfloat16 else 1e-4
            scale = float(r.abs().max()) or 1.0
            assert float((alone.by_source[name][0] - r[index]).abs().max()) <= loose * scale, f"sample {index} differs when alone"


def the_same_question_gets_the_same_answer_in_any_grad_mode(route: Route, toy: Toy) -> None:
    model, inputs = made(toy)
    truth = _ask(route, model, inputs).by_source
    for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with mode:
            again = _ask(route, model, inputs).by_source
        assert all(torch.equal(again[name], truth[name]) for name in truth)


def the_model_is_left_as_it_was(route: Route, toy: Toy) -> None:
    model, inputs = made(toy)
    for parameter in list(model.parameters())[:-1]:  # a frozen model stays frozen, its tokens included
        parameter.requires_grad_(False)
    next(iter(model.parameters())).grad = torch.ones_like(next(iter(model.parameters())))
    before, output = _all_of(model), _call(model, inputs)
    _ask(route, model, inputs)
    assert _all_of(model) == before, "something in the model changed"
    assert torch.equal(_call(model, inputs), output)


def the_model_is_left_as_it_was_after_an_error(route: Route, toy: Toy) -> None:
    """Errors in the target, in the model's first module, and in its last."""
    model, inputs = made(toy)
    before = _all_of(model)

    class Interrupted(Exception):
        pass

    def interrupt(*_: Any, **__: Any) -> Any:
        raise Interrupted

    leaves = [module for module in model.modules() if not list(module.children())]
    places: list[Any] = [lambda: _ask(route, model, inputs, target=interrupt)]
    for where in (leaves[-1], leaves[0]):

        def inside(where: nn.Module = where) -> None:
            hook = where.register_forward_hook(interrupt)
            try:
                _ask(route, model, inputs)
            finally:
                hook.remove()

        places.append(inside)
    for attempt in places:
        try:
            attempt()
        except Interrupted:
            assert _all_of(model) == before, "something in the model changed by an error"
        else:
            raise AssertionError("the error was swallowed")


def permuting_tokens_permutes_relevance(route: Route, toy: Toy) -> None:
    if toy.name != "transformer":
        return
    model, (tokens,) = made(toy)
    order = torch.tensor([3, 0, 4, 2, 1])
    found, moved = _ask(route, model, (tokens,)), _ask(route, model, (tokens[:, order],))
    assert torch.allclose(moved.by_source["tokens"], found.by_source["tokens"][:, order], rtol=1e-4, atol=1e-6)


def records_survive_saving(route: Route, toy: Toy) -> None:
    model, inputs = made(toy)
    found = _ask(route, model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.safetensors"
        found.save(path)
        again = Relevance.load(path)
        assert sorted(p.name for p in Path(folder).iterdir()) == ["r.safetensors"]
    assert all(torch.equal(again.by_source[name], found.by_source[name]) for name in found.by_source)
    assert all(torch.equal(again.per_call[name], found.per_call[name]) for name in found.per_call)
    assert again.to_dict() == found.to_dict()
    assert repr(again) == repr(found)


def repeating_does_not_grow_memory(route: Route, toy: Toy) -> None:
    model, inputs = made(toy)
    _ask(route, model, inputs)
    before = live_tensors()
    for _ in range(3):
        _ask(route, model, inputs)
    assert live_tensors() <= before + 2, "tensors stay alive after the call"


def a_training_model_with_dropout_is_refused(route: Route, toy: Toy) -> None:
    model, inputs = made(toy)
    model.add_module("added", nn.Dropout(0.5))
    model.train()
    try:
        _ask(route, model, inputs)
    except ModelStateError as problem:
        assert "eval()" in str(problem)
        return
    raise AssertionError("a model that drops out at random was explained")


def nan_is_an_error_that_names_the_sample(route: Route, toy: Toy) -> None:
    model, inputs = made(toy)

    def target(output: Tensor) -> Tensor:
        return torch.where(torch.arange(len(output)) % 2 == 1, output[:, 0] * float("nan"), output[:, 0])

    try:
        _ask(route, model, inputs, target=target)
    except NonFiniteError as problem:
        assert "sample 1" in str(problem)
        return
    raise AssertionError("NaN passed as relevance")


def _all_of(model: nn.Module) -> dict[str, Any]:
    return {
        **fingerprint(model),
        "functional": (functional.__dict__["has_torch_function"], functional.scaled_dot_product_attention, functional.softmax),
    }


ROUTE_LAWS: tuple[Callable[[Route, Toy], None], ...] = (
    relevance_has_a_row_per_sample_and_a_number_per_token,
    f_is_the_models_own_output_bit_for_bit,
    a_batch_equals_its_samples,
    the_same_question_gets_the_same_answer_in_any_grad_mode,
    the_model_is_left_as_it_was,
    the_model_is_left_as_it_was_after_an_error,
    permuting_tokens_permutes_relevance,
    records_survive_saving,
    repeating_does_not_grow_memory,
    a_training_model_with_dropout_is_refused,
    nan_is_an_error_that_names_the_sample,
)
