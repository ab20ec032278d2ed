"""Putting a question: target, site and baseline resolved on a running model, everything put back afterwards.

Holds ``ask``, the only way methods reach a model, and the passes it takes to pose a question: one at x, one at the
baseline input, one with the site replaced, and the tests (is the site a cut? may the prefix be replayed?).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from zeroline.attribution import rounding
from zeroline.baseline import Baseline, BaselineLike, as_baseline
from zeroline.errors import BaselineError, InputError, NonFiniteError, SiteError
from zeroline.model import cut, identity, normalisation
from zeroline.model.inputs import Inputs
from zeroline.model.places import Place, resolve, run
from zeroline.model.question import Question, check_gradients, checked, differentiate, double, fit
from zeroline.model.state import untouched
from zeroline.model.suffix import Axes, Prefix, Shapes, Unsound
from zeroline.site import SiteLike, as_site
from zeroline.target import Target, TargetLike, as_target

_axes_known: WeakKeyDictionary[nn.Module, dict[object, Axes]] = WeakKeyDictionary()


@contextmanager
def ask(
    model: nn.Module,
    inputs: Any,
    *,
    target: TargetLike,
    site: SiteLike,
    baseline: BaselineLike,
    gradient: bool = False,
    replay: bool = False,
) -> Iterator[Question]:
    """Put one question; inside the block the model is frozen, after it everything is as before.

    ``gradient`` also gives df/dz at z, from the first pass. ``replay`` prepares suffix execution for many
    evaluations along the path. Passes: one at x; one at x0 where the baseline is an input and the site is not;
    one with the site replaced (spared where the site is known to be a cut); and, once per model and site, those
    of the cut test.
    """
    with untouched(model):
        wanted = Inputs.of(model, inputs)
        places = resolve(model, wanted, as_site(site))
        question = _at_x(model, wanted, places, as_target(target), as_baseline(baseline), gradient, replay)
        _measure_baseline(question)
        if question.prefix is not None:
            _prove_suffix(question)
        if gradient:
            question.require_gradient()
        yield question


def labels_of(model: nn.Module) -> Mapping[str, int]:
    """Class names of the model, where its configuration has them."""
    by_index = getattr(getattr(model, "config", None), "id2label", None) or {}
    return {str(name): int(index) for index, name in by_index.items()}


def _at_x(model: nn.Module, inputs: Inputs, places: tuple[Place, ...], target: Target, baseline: Baseline, gradient: bool, replay: bool) -> Question:
    """The pass at x: features, f(x), and where asked the gradient at z and the recording of the prefix."""
    prefix = Prefix(model, places) if replay and inputs.repeatable else None
    if prefix is not None and not prefix.modules:
        prefix = None
    leaves: dict[int, Tensor] = {}

    def transform(i: int, tensor: Tensor) -> Tensor:
        if prefix is not None:
            prefix.reached()
        if not tensor.is_floating_point():
            raise SiteError(f"the tensor at {str(places[i])!r} holds integers ({tensor.dtype}); a site needs real numbers")
        if tensor.ndim == 0 or tensor.shape[0] != inputs.batch:
            raise SiteError(f"the tensor at {str(places[i])!r} is {tuple(tensor.shape)}; its first dimension must be the batch of {inputs.batch}")
        leaves[i] = tensor.detach().clone().requires_grad_(gradient)
        return leaves[i].clone()

    execution = "full"
    with torch.set_grad_enabled(gradient):
        try:
            if prefix is None:
                output = run(model, inputs, places, transform)
            else:
                with prefix.recorded():
                    output = run(model, inputs, places, transform)
        except Unsound as reason:
            prefix, execution = None, f"full: {reason}"
            output = run(model, inputs, places, transform)
    everyone = torch.arange(inputs.batch)
    target = target.resolve(output, labels_of(model))
    value = checked(target.read(output, everyone), everyone, None)
    points = tuple(leaves[i] for i in range(len(places)))
    resolution = max(torch.finfo(tensor.dtype).eps for tensor in (value, *points))
    slopes, connected = differentiate(value, points) if gradient else (None, True)
    if slopes is not None:
        check_gradients(slopes, everyone, torch.ones(inputs.batch))
    question = Question(model, inputs, places, target, baseline, tuple(p.detach() for p in points), double(value), resolution, slopes, connected)
    question.prefix, question.execution = prefix, execution
    question.forward_passes = 0 if gradient else 1
    return question


def _measure_baseline(question: Question) -> None:
    """z0, f(do(z := z0)), f(x0) and whether the site is a cut."""
    baseline, places = question.baseline, question.places
    at_inputs = all(place.input for place in places)
    other = None if baseline.at == "site" else _reference_inputs(question)
    key = _signature(question)
    known = True if at_inputs and baseline.inputs is None else cut.known(question.model, key) if key else None
    if other is None or (at_inputs and baseline.inputs is None):
        norm = normalisation.of(question.model) if baseline.at == "input" else None
        source = other.named if other is not None else {}
        question.baseline_features = tuple(
            source[str(place.input)] if place.input in source else baseline(z, norm) for place, z in zip(places, question.features)
        )
    else:
        question.reference_output, question.baseline_features = question.forward(other, question.everyone(), None)
        question.baseline_features = tuple(fit(z0, z, p) for z0, z, p in zip(question.baseline_features, question.features, places))
    if question.prefix is not None:
        question.prefix.axes = _axes_known.get(question.model, {}).get(_axes_key(question))
    if known is True and question.reference_output is not None and (question.prefix is None or question.prefix.axes is not None):
        question.baseline_output = question.reference_output
    else:
        question.baseline_output = _do_baseline(question)
    if at_inputs and baseline.inputs is None:
        question.reference_output = question.baseline_output if _all_floating(question) or baseline.at == "input" else None
    question.is_cut = known if known is not None else _test_cut(question, other, key)


def _reference_inputs(question: Question) -> Inputs:
    """x0: the complete inputs that the baseline stands for."""
    baseline, inputs = question.baseline, question.inputs
    if baseline.inputs is not None:
        other = Inputs.of(question.model, baseline.inputs)
        for name, tensor in inputs.tensors.items():
            found = other.tensors.get(name)
            if found is None or found.shape != tensor.shape:
                shape = "nothing" if found is None else str(tuple(found.shape))
                raise BaselineError(f"baseline {baseline.name!r} gives {shape} for input {name!r}; x has {tuple(tensor.shape)}")
        return other
    names = [place.input for place in question.places if place.input] or [_main_input(question)]
    norm = normalisation.of(question.model)
    return inputs.with_values({name: baseline(inputs.tensors[name], norm) for name in names})


def reference_inputs(model: nn.Module, inputs: Any, baseline: Baseline) -> Mapping[str, Any]:
    """The inputs x0 that an input baseline stands for (to show it as a picture)."""
    known = Inputs.of(model, inputs)
    place = Place(input=known.only_floating(_named_main(model, known)))
    question = Question(model, known, (place,), as_target(0), baseline, (), torch.empty(0), 0.0)
    return _reference_inputs(question).named


def _main_input(question: Question) -> str:
    try:
        return question.inputs.only_floating(_named_main(question.model, question.inputs))
    except InputError:
        if not question.inputs.floating():
            message = "fills pixels or features, and the model's inputs are ids; use zl.baseline.of(other ids), or zeros() at the embedding"
            raise BaselineError(f"baseline {question.baseline.name!r} {message}") from None
        raise


def _named_main(model: nn.Module, inputs: Inputs) -> str | None:
    name = getattr(model, "main_input_name", None)
    return name if name in inputs.floating() else None


def _do_baseline(question: Question) -> Tensor:
    """f(do(z := z0)) from a full run; one more row than the batch where the prefix' batch axes are to be found."""
    samples = question.everyone()
    prefix = question.prefix
    if prefix is None or prefix.axes is not None:
        return question.forward(question.inputs, samples, question.baseline_features)[0]
    longer = torch.cat([samples, samples[:1]])
    shapes: Shapes = {}
    features = tuple(z0.index_select(0, longer.to(z0.device)) for z0 in question.baseline_features)
    with prefix.measured(shapes):
        values, _ = question.forward(question.inputs.rows(longer), longer, features)
    try:
        prefix.axes = prefix.find_axes(shapes, question.batch, len(longer))
    except Unsound as reason:
        question.prefix, question.execution = None, f"full: {reason}"
    else:
        _axes_known.setdefault(question.model, {})[_axes_key(question)] = prefix.axes
    return values[: question.batch]


def _axes_key(question: Question) -> object:
    names = tuple((n, tuple(t.shape[1:]), t.dtype) for n, t in question.inputs.tensors.items())
    return (question.places, names, identity.weights_version(question.model))


def _prove_suffix(question: Question) -> None:
    """Compare the replayed model with the full run at t = 0; run everything where they differ."""
    prefix = question.prefix
    assert prefix is not None
    samples = torch.cat([question.everyone(), torch.zeros(1, dtype=torch.long)])
    features = tuple(z0.index_select(0, samples.to(z0.device)) for z0 in question.baseline_features)

    def transform(i: int, tensor: Tensor) -> Tensor:
        prefix.reached()
        return features[i].clone()

    truth = question.baseline_output[samples]
    scale = (question.output - question.baseline_output).abs()[samples]
    where = " + ".join(map(str, question.places))
    try:
        with torch.no_grad(), prefix.replayed(samples):
            output = run(question.model, question.inputs.rows(samples), question.places, transform)
        question.forward_passes += 1
        off = (question.read(output, samples) - truth).abs()
        if bool((off > 1e-4 * scale + rounding(question.resolution, truth, question.output[samples])).any()):
            raise Unsound("replaying the modules before the site gives another output")
    except (Unsound, RuntimeError, NonFiniteError) as reason:
        question.prefix, question.execution = None, f"full: {reason}"
    else:
        question.execution = f"suffix after {where}"


def _test_cut(question: Question, other: Inputs | None, key: object) -> bool | None:
    """Run x0 (or a probe) with the site's features of x; see ``model.cut``."""
    source = cut.probe(question.inputs) if other is None else other
    f_other = question.reference_output if other is not None else None

    def run_other(mixed: bool) -> Tensor:
        return question.forward(source, question.everyone(), question.features if mixed else None)[0]

    try:
        answer = cut.test(question.resolution, question.output, run_other, f_other)
    except (NonFiniteError, BaselineError):
        return None
    if key:
        cut.remember(question.model, key, answer)
    return answer


def _signature(question: Question) -> object:
    """What the answer of a cut test depends on; None where it may depend on more than can be named."""
    kind = type(question.target).__name__
    if kind == "OutputTarget":
        return None
    names = tuple((n, tuple(t.shape[1:]), t.dtype) for n, t in question.inputs.tensors.items())
    return (question.places, names, kind)


def _all_floating(question: Question) -> bool:
    return {place.input for place in question.places} == set(question.inputs.floating())
