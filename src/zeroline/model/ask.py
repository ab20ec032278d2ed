"""Putting a question: target, site and baseline resolved on a running model, everything put back afterwards.

Holds ``ask``, the only way methods reach a model, and the passes it takes to pose a question: one at x, one at the
baseline input, one with the site replaced, and the tests (is the site a cut? may the prefix be replayed?).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from zeroline.attribution import rounding
from zeroline.baseline import Baseline, BaselineLike, as_baseline
from zeroline.errors import ModelStateError, SiteError, ZerolineError
from zeroline.model import cut
from zeroline.model.identity import Memory
from zeroline.model.inputs import Inputs, is_dual_encoder
from zeroline.model.places import Place, resolve, run
from zeroline.model.question import Features, Question, check_gradients, checked, differentiate, double, fit
from zeroline.model.reference import like_those_of_x, reference_inputs, settled
from zeroline.model.shared import current
from zeroline.model.state import untouched
from zeroline.model.suffix import Axes, Prefix, Shapes, Unsound
from zeroline.model.targets import target_of
from zeroline.site import SiteLike, as_site
from zeroline.target import ClassTarget, OutputTarget, Target, TargetLike, TokenTarget

_axes: Memory[Axes] = Memory()
_separate: Memory[bool] = Memory()
# what a model may raise on inputs that it was not made for: then a test says nothing, and nothing is broken
_FAILURES = (ZerolineError, RuntimeError, ValueError, LookupError, TypeError, AssertionError)


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
    evaluations along the path. Passes: those of the baseline's recipe, if it has one; one at x; one at x0 where the baseline
    is an input and the site is not;
    one with the site replaced (spared where the site is known to be a cut); and, once per model and site, those
    of the cut test and of the test that samples do not mix.
    """
    with untouched(model):
        wanted = Inputs.of(model, inputs)
        places = resolve(model, wanted, as_site(site))
        known = settled(model, wanted, as_baseline(baseline), places)
        question = _at_x(model, wanted, places, target_of(model, wanted, target), known, gradient, replay)
        if replay or (question.batch > 1 and not isinstance(question.target, OutputTarget)):
            _require_separate_samples(question)
        _measure_baseline(question)
        if question.prefix is not None:
            _prove_suffix(question)
        if gradient:
            question.require_gradient()
        yield question


def labels_of(model: nn.Module) -> Mapping[str, int]:
    """Class names of the model, where its configuration has them; the classes of a dual encoder are the texts that it is given."""
    if is_dual_encoder(model):
        return {}
    by_index = getattr(getattr(model, "config", None), "id2label", None) or {}
    return {str(name): int(index) for index, name in by_index.items()}


def _at_x(model: nn.Module, inputs: Inputs, places: tuple[Place, ...], target: Target, baseline: Baseline, gradient: bool, replay: bool) -> Question:
    """The pass at x: features, f(x), and where asked the gradient at z and the recording of the prefix."""
    shared = current(model)
    prefix = Prefix(model, places, shared.outputs(inputs) if shared else None) if replay and inputs.repeatable else None
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
            with prefix.recorded() if prefix is not None else nullcontext():
                output = run(model, inputs, places, transform)
        except Unsound as reason:
            prefix, execution = None, f"full: {reason}"
            output = run(model, inputs, places, transform)
    everyone = torch.arange(inputs.batch)
    target = target.resolve(output, labels_of(model))
    value = checked(target.read(output, everyone), everyone, None)
    if any(module.training for module in model.modules()):
        refuse_random(model, inputs, target, value.detach())
    points = tuple(leaves[i] for i in range(len(places)))
    resolution = max(_kernel_rounding(value), *(torch.finfo(tensor.dtype).eps for tensor in (value, *points)))
    slopes, connected = differentiate(value, points) if gradient else (None, True)
    if slopes is not None:
        check_gradients(slopes, everyone, torch.ones(inputs.batch))
    size = double(target.size(output).detach()) if hasattr(target, "size") else double(value).abs()
    question = Question(
        model, inputs, places, target, baseline, tuple(p.detach() for p in points), double(value), size, resolution, slopes, connected
    )
    question.prefix, question.execution = prefix, execution
    question.forward_passes = 0 if gradient else 1
    return question


def _kernel_rounding(value: Tensor) -> float:
    """The relative rounding of kernels that compute in fewer digits than they store (autocast, TF32)."""
    kind = value.device.type
    if torch.is_autocast_enabled(kind):
        return torch.finfo(torch.get_autocast_dtype(kind)).eps
    short = kind == "cuda" and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    return 2.0**-10 if short and value.dtype == torch.float32 else 0.0


def refuse_random(model: nn.Module, inputs: Inputs, target: Target, value: Tensor) -> None:
    """Raise where a model in training mode answers otherwise a second time (functional dropout)."""
    everyone = torch.arange(inputs.batch)
    with torch.no_grad():
        again = checked(target.read(inputs.call(model), everyone), everyone, None)
    if bool(((again - value).abs() > 1e-3 * value.abs() + 1e-6).any()):
        raise ModelStateError("the model is in training mode and gives two answers to one input; call model.eval() first")


def _measure_baseline(question: Question) -> None:
    """z0, f(do(z := z0)), f(x0) and whether the site is a cut."""
    baseline, places = question.baseline, question.places
    other = reference_inputs(question.model, question.inputs, baseline, places) if baseline.at == "input" else None
    if all(place.input for place in places) and baseline.inputs is None:
        _replace_inputs_only(question, other)
        return
    if other is None:
        question.baseline_features = _at_site(baseline, question.features)
    else:
        question.reference_output, found = _forward_shared(question, other, None)
        question.baseline_features = tuple(fit(z0, z, place) for z0, z, place in zip(found, question.features, places))
    source = cut.probe(question.inputs) if other is None else other
    key = _signature(question, source)
    question.is_cut = cut.known.get(question.model, key) if key else None
    if question.prefix is not None:
        axes = _axes.get(question.model, _structure(question))
        question.prefix.axes = axes if axes is not None and axes.keys() == question.prefix.outputs.keys() else None
        if question.prefix.axes is None:
            _take_up_axes(question)
    axes_missing = question.prefix is not None and question.prefix.axes is None
    if question.is_cut and question.reference_output is not None and not axes_missing:
        question.baseline_output = question.reference_output
    else:
        question.baseline_output = _do_baseline(question)
    if question.is_cut is None:
        question.is_cut = _test_cut(question, source, key)


def _replace_inputs_only(question: Question, other: Inputs | None) -> None:
    """The site is the input and the baseline fills it: then do(z := z0) *is* the model on x0, and the site a cut."""
    places, features = question.places, question.features
    if other is None:
        question.baseline_features = _at_site(question.baseline, features)
    else:
        question.baseline_features = tuple(other.named[str(p.input)] for p in places)
    question.baseline_output = question.reference_output = _do_baseline(question)
    question.is_cut = True


def _at_site(baseline: Baseline, features: Features) -> Features:
    """z0 of a baseline at the site: known features, or filled in."""
    if not baseline.features:
        return tuple(baseline(z) for z in features)
    return tuple(like_those_of_x(baseline, z0, z) for z0, z in zip(baseline.features, features))


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
    shared = current(question.model)
    if shared is not None:
        shared.longer[_call_of(question)] = shapes
    _find_axes(question, prefix, shapes)
    return values[: question.batch]


def _find_axes(question: Question, prefix: Prefix, shapes: Shapes) -> None:
    """The batch dimensions of what the prefix recorded, from its shapes here and at one row more; no replay where they are none."""
    try:
        prefix.axes = prefix.find_axes(shapes, question.batch, question.batch + 1)
    except Unsound as reason:
        question.prefix, question.execution = None, f"full: {reason}"
    else:
        _axes.put(question.model, _structure(question), prefix.axes)


def _take_up_axes(question: Question) -> None:
    """The same from the shapes that an earlier question about these inputs has measured, where there is one."""
    shared, prefix = current(question.model), question.prefix
    shapes = shared.longer.get(_call_of(question)) if shared is not None else None
    if shapes is not None and prefix is not None and prefix.outputs.keys() <= shapes.keys():
        _find_axes(question, prefix, shapes)


def _forward_shared(question: Question, inputs: Inputs, features: Features | None) -> tuple[Tensor, Features]:
    """A plain pass on other inputs; where passes are shared, modules before the site are taken up from an earlier one."""
    shared = current(question.model)
    before = Prefix(question.model, question.places, shared.outputs(inputs)) if shared is not None and inputs.repeatable else None
    if before is None or not before.modules:
        return question.forward(inputs, question.everyone(), features)
    try:
        return question.forward(inputs, question.everyone(), features, before)
    except Unsound:
        return question.forward(inputs, question.everyone(), features)


def _structure(question: Question) -> object:
    """What remembered facts belong to: places, input signature, arguments that are no tensors."""
    tensors = question.inputs.tensors
    names = tuple((name, tuple(t.shape[1:]), t.dtype) for name, t in tensors.items())
    others = tuple((name, repr(value)) for name, value in question.inputs.named.items() if name not in tensors)
    return (question.places, names, others)


def _call_of(question: Question) -> object:
    """What the shapes of all module outputs depend on, wherever the site is."""
    shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in question.inputs.tensors.items())
    return (shapes, tuple((name, repr(value)) for name, value in question.inputs.named.items() if not isinstance(value, Tensor)))


def _require_separate_samples(question: Question) -> None:
    """Raise where a sample's f depends on the rows beside it: then no row of a pass is that sample's own.

    One pass on a row of its own (or, for a single sample, beside its copy), once per structure of the question.
    """
    key = _structure(question)
    if not question.inputs.repeatable or _separate.get(question.model, key):
        return
    rows = question.everyone().flip(0)[:1] if question.batch > 1 else torch.zeros(2, dtype=torch.long)
    values, _ = question.forward(question.inputs.rows(rows), rows, None)
    question.require_same(values, rows, question.output)
    _separate.put(question.model, key, True)


def _prove_suffix(question: Question) -> None:
    """Compare the replayed model with the full run at t = 0, in other rows; run everything where they differ."""
    prefix = question.prefix
    assert prefix is not None
    samples = torch.cat([question.everyone().flip(0), torch.zeros(2, dtype=torch.long)])
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
        if bool((off > 1e-4 * scale + rounding(question.resolution, truth, question.output[samples], question.size[samples])).any()):
            raise Unsound("replaying the modules before the site gives another output")
    except (Unsound, *_FAILURES) as reason:
        question.prefix, question.execution = None, f"full: {reason}"
    else:
        question.execution = f"suffix after {where}"


def _test_cut(question: Question, source: Inputs, key: object) -> bool | None:
    """Run ``source`` (x0, or a probe) with the site's features of x; see ``model.cut``."""

    def run_other(mixed: bool) -> Tensor:
        return _forward_shared(question, source, question.features if mixed else None)[0]

    try:
        answer = cut.test(question.resolution, question.output, run_other, question.reference_output)
    except _FAILURES:
        return None
    if key and answer is not None:
        cut.known.put(question.model, key, answer)
    return answer


def _signature(question: Question, source: Inputs) -> object:
    """What the answer of a cut test depends on; None where it may depend on more than can be named."""
    target = question.target
    if isinstance(target, ClassTarget) and target.indices is not None:
        read: object = (target.weights, target.scale, tuple(map(tuple, target.indices.tolist())))
    elif isinstance(target, TokenTarget):
        read = target
    else:
        return None
    changed = frozenset(name for name, t in question.inputs.tensors.items() if not torch.equal(t, source.tensors[name]))
    return (_structure(question), read, changed)
